"""SEG and RTSTRUCT of label maps, as other software reads them."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
from highdicom import UID
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom import config
from pydicom.dataelem import DataElement
from scipy import ndimage

from pancseg.dicom.labels import read_rtstruct, read_segmentation
from pancseg.dicom.series import Repair, read_series
from pancseg.dicom.writers import trace_borders, write_rtstruct, write_seg
from pancseg.errors import Refused
from pancseg.structures import Structure, region_mask
from tests import other_software as other
from tests.tiny_dicom import AXIAL, put
from tests.tiny_labels import FIRST, GAP_MM, scan_of, structures

OBLIQUE = (0.936293, 0.275096, -0.218351, -0.289629, 0.956425, -0.036957)
GEOMETRIES = {  # orientation, pixel spacing
    "oblique": (OBLIQUE, (0.8, 0.8)), "feet_first": ((-1, 0, 0, 0, 1, 0), (0.8, 0.8)),
    "non_square": (AXIAL, (0.7, 0.9)),
}  # fmt: skip
STRUCTURES = (
    Structure("pancreas", (1, 2), "15776009", "organ", (15, 400), (1, 2)),
    Structure("pancreatic_tumour", (2,), "126859007", "lesion", (0, 400), (2,)),  # a part of it
    Structure("liver", (3,), "10200004", "organ", (500, 4000), (3,)),
)
NAMES = ("Pancreas", "Pancreatic tumour", "Liver")
WRITERS = {"seg": write_seg, "rtstruct": write_rtstruct}
READERS = {"seg": read_segmentation, "rtstruct": read_rtstruct}
BOTH = pytest.mark.parametrize("kind", WRITERS)


def series(folder, *damages, **options):
    """A series of one study as ``write_series`` makes it, as read."""

    def damage(slices):
        for change in (put(StudyInstanceUID="1.2.3"), *damages):
            change(slices)

    return scan_of(folder, damage=damage, **options)


def unchecked(keyword, value):
    vr = pydicom.datadict.dictionary_VR(keyword)
    element = DataElement(keyword, vr, value, validation_mode=config.IGNORE)
    return lambda slices: [dataset.add(element) for dataset in slices]


def write(kind, path, scan, values=None, parts=STRUCTURES[:1]):
    """Write a label map, by default all of the scan; the attributes that were left empty."""
    values = np.ones(scan.image.shape) if values is None else values
    labels = nib.Nifti1Image(np.asarray(values, np.uint8), scan.image.affine)
    return WRITERS[kind](path, labels, parts, scan.stack)


def read_back(kind, path, scan):
    label = READERS[kind](path, scan.stack, structures(["pancreas"]))
    return np.asarray(label.image.dataobj) > 0


def blobs(shape):
    """Codes 0 to 3 in blobs with holes, islands and corners that touch."""
    noise = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=shape), 0.8)
    return np.digitize(noise, np.quantile(noise, [0.5, 0.7, 0.8])).astype(np.uint8)


@pytest.fixture(scope="module", params=GEOMETRIES)
def written(request, tmp_path_factory):
    """A series whose stored values are codes, its SEG and RTSTRUCT, and the codes in space."""
    folder, (orientation, spacing) = tmp_path_factory.mktemp("w"), GEOMETRIES[request.param]
    codes = blobs((6, 20, 24))  # slices, rows, columns
    scan = series(folder / "ct", pixels=codes, orientation=orientation, pixel_spacing=spacing)
    for kind in WRITERS:
        write(kind, folder / kind, scan, scan.image.dataobj, STRUCTURES)
    row, column = np.reshape(orientation, (2, 3))
    axes = [row * spacing[1], column * spacing[0], np.cross(row, column) * GAP_MM]
    affine = nib.affines.from_matvec(np.transpose(axes), FIRST)  # by DICOM PS3.3 C.7.6.2.1.1
    return folder, scan, nib.Nifti1Image(codes.T, other.LPS_TO_RAS @ affine)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("reader", ["simpleitk", "dcmqi", "matplotlib", "plastimatch"])
def test_each_structure_is_the_same_mask_for_other_software(written, reader, number, tmp_path):
    folder, _, truth = written
    seg, rtstruct, ct, name = folder / "seg", folder / "rtstruct", folder / "ct", NAMES[number - 1]
    mask = {
        "simpleitk": lambda: other.seg_by_simpleitk(seg, truth, number),
        "dcmqi": lambda: other.seg_by_dcmqi(seg, truth, tmp_path, number),
        "matplotlib": lambda: other.rtstruct_by_matplotlib(rtstruct, ct, truth, number),
        "plastimatch": lambda: other.rtstruct_by_plastimatch(rtstruct, ct, truth, tmp_path, name),
    }[reader]()
    expected = region_mask(np.asarray(truth.dataobj), STRUCTURES[number - 1])
    np.testing.assert_array_equal(mask, expected)


def test_dciodvfy_finds_no_error(written, tmp_path):
    folder, scan, _ = written
    for kind in WRITERS:
        write(kind, tmp_path / kind, scan, np.zeros(scan.image.shape))  # nothing was segmented
        assert not read_back(kind, tmp_path / kind, scan).any()
    for file in (root / kind for root in (folder, tmp_path) for kind in WRITERS):
        assert other.errors_of(file) == []


def coded(sequence):
    return [(code[0].CodeValue, code[0].CodeMeaning) for code in sequence]


def test_segments_and_rois_are_named_after_their_structures(tmp_path):
    scan = series(tmp_path / "ct")
    for kind in WRITERS:
        write(kind, tmp_path / kind, scan, parts=STRUCTURES)
    segments = pydicom.dcmread(tmp_path / "seg").SegmentSequence
    observations = pydicom.dcmread(tmp_path / "rtstruct").RTROIObservationsSequence
    expected = list(zip(("15776009", "126859007", "10200004"), NAMES, strict=True))
    assert coded(s.SegmentedPropertyTypeCodeSequence for s in segments) == expected
    assert coded(o.RTROIIdentificationCodeSequence for o in observations) == expected
    assert [o.RTROIInterpretedType for o in observations] == ["ORGAN", "", "ORGAN"]
    categories = coded(s.SegmentedPropertyCategoryCodeSequence for s in segments)
    assert [value for value, _ in categories] == ["91723000", "49755003", "91723000"]


KNOWN = {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎"}
KNOWN |= {"PatientBirthDate": "19501112", "PatientSex": "F", "AccessionNumber": "A-9"}


@BOTH
def test_patient_study_and_images_are_those_of_the_series(tmp_path, kind):
    def wobble(slices):  # orientations that differ in their last digits
        for n, dataset in enumerate(slices):
            dataset.ImageOrientationPatient = [1, f"{n * 1e-7:.7f}", 0, 0, 1, 0]

    scan = series(tmp_path / "ct", put(**KNOWN), wobble)
    headers = [pydicom.dcmread(file) for file in (tmp_path / "ct").iterdir()]
    write(kind, tmp_path / "out", scan)
    out = pydicom.dcmread(tmp_path / "out")
    for name in (*KNOWN, "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert out[name].value == headers[0][name].value
    assert out.ReferringPhysicianName == out.StudyDate == ""  # required, but not in the series
    assert out.SeriesInstanceUID != headers[0].SeriesInstanceUID
    if kind == "seg":
        images = out.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    else:
        (study,) = out.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence
        images = study.RTReferencedSeriesSequence[0].ContourImageSequence
        assert out.ApprovalStatus == "UNAPPROVED"
    listed = {image.ReferencedSOPInstanceUID for image in images}
    assert listed == {header.SOPInstanceUID for header in headers}


@BOTH
@pytest.mark.parametrize(("keyword", "value"), [
    ("PatientBirthDate", "11/12/1950"), ("StudyDate", "20200101-20210101"),
    ("PatientName", ["DOE^JOHN", "ANON^"]),
])  # fmt: skip
def test_an_invalid_attribute_is_left_empty_and_named_but_never_quoted(
    kind, keyword, value, tmp_path, caplog, capfd
):
    scan = series(tmp_path / "ct", put(StudyID="S-7"), unchecked(keyword, value))
    assert write(kind, tmp_path / "out", scan) == [keyword]
    out = pydicom.dcmread(tmp_path / "out")
    assert (out[keyword].value, out.StudyID, out.PatientID) == ("", "S-7", "P-1")
    assert caplog.text + "".join(capfd.readouterr()) == ""
    assert other.errors_of(tmp_path / "out") == []


@BOTH
def test_a_series_that_nothing_can_refer_to_is_refused(kind, tmp_path):
    places = [(0, 0, 2.5 * k) for k in (0, 1, 2, 4)]
    repaired = series(tmp_path / "a", positions=places, repair=Repair(gaps=True))
    nameless = series(tmp_path / "b", put(StudyInstanceUID=""))
    for scan, reason in ((repaired, "repaired"), (nameless, "no_uid.* no StudyInstanceUID")):
        with pytest.raises(Refused, match=f"{kind}_{reason}"):
            write(kind, tmp_path / "out", scan)
    assert not (tmp_path / "out").exists()


@BOTH
def test_frames_of_a_multi_frame_series_lie_in_any_order(kind, tmp_path):
    empty = dict.fromkeys(("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
                           "StudyDate", "StudyTime", "ReferringPhysicianName"), "")  # fmt: skip
    thick = put(SliceThickness=2.5, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], **empty)
    series(tmp_path / "ct", thick)
    slices = [pydicom.dcmread(file) for file in (tmp_path / "ct").iterdir()]
    slices.sort(key=lambda one: -one.ImagePositionPatient[2])  # against the stack
    LegacyConvertedEnhancedCTImage(slices, UID(), 2, UID(), 1).save_as(tmp_path / "x.dcm")
    scan = read_series((tmp_path / "x.dcm",), Repair())
    values, out = np.zeros(scan.image.shape), tmp_path / "out"
    values[1, 1, 3] = values[2, 2, 0] = 1  # on frames 2 and 5
    write(kind, out, scan, values)
    np.testing.assert_array_equal(read_back(kind, out, scan), values)
    label = pydicom.dcmread(out)
    if kind == "seg":
        groups = label.PerFrameFunctionalGroupsSequence
        images = [group.DerivationImageSequence[0].SourceImageSequence[0] for group in groups]
    else:
        contours = label.ROIContourSequence[0].ContourSequence
        images = [contour.ContourImageSequence[0] for contour in contours]
    assert sorted(image.ReferencedFrameNumber for image in images) == [2, 5]


def test_each_component_is_an_outline():
    for mask in blobs((6, 20, 24)) > 0:
        assert len(trace_borders(mask)) == ndimage.label(mask)[1] > 1
