"""SEG and RTSTRUCT of label maps, as other software reads them."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from highdicom import UID
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from matplotlib.path import Path as Polygon
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from scipy import ndimage

from pancseg.dicom.labels import read_rtstruct, read_segmentation
from pancseg.dicom.series import Repair, Scan, read_series
from pancseg.dicom.writers import trace_borders, write_rtstruct, write_seg
from pancseg.errors import Refused
from pancseg.structures import Structure, region_mask
from tests import other_software as other
from tests.tiny_dicom import AXIAL, put
from tests.tiny_labels import FIRST, GAP_MM, scan_of, structures

OBLIQUE = (0.936293, 0.275096, -0.218351, -0.289629, 0.956425, -0.036957)
GEOMETRIES: dict[str, Any] = {  # orientation, pixel spacing
    "oblique": (OBLIQUE, (0.8, 0.8)),
    "feet_first": ((-1, 0, 0, 0, 1, 0), (0.8, 0.8)),
    "non_square": (AXIAL, (0.7, 0.9)),
}
STRUCTURES = (
    Structure("pancreas", (1, 2), "15776009", "organ", (15, 400), (1, 2)),
    Structure("pancreatic_tumour", (2,), "126859007", "lesion", (0, 400), (2,)),  # a part of it
    Structure("liver", (3,), "10200004", "organ", (500, 4000), (3,)),
)
NAMES = ("Pancreas", "Pancreatic tumour", "Liver")
WRITERS = {"seg": write_seg, "rtstruct": write_rtstruct}
READERS: dict[str, Any] = {"seg": read_segmentation, "rtstruct": read_rtstruct}
BOTH = pytest.mark.parametrize("kind", WRITERS)


def series(folder: Path, *damages: Callable[[list[Dataset]], None], **options: Any) -> Scan:
    """A series of one study as ``write_series`` makes it, as read."""

    def damage(slices: list[Dataset]) -> None:
        for change in (put(StudyInstanceUID="1.2.3"), *damages):
            change(slices)

    return scan_of(folder, damage=damage, **options)


def unchecked(keyword: str, value: Any, vr: str = "") -> Callable[[list[Dataset]], None]:
    """Set an attribute without pydicom's validation."""

    def damage(slices: list[Dataset]) -> None:
        name = vr or pydicom.datadict.dictionary_VR(keyword)
        for dataset in slices:
            dataset.add(DataElement(keyword, name, value, validation_mode=config.IGNORE))

    return damage


def write(kind: str, path: Path, scan: Scan, values: Any, parts: Any = STRUCTURES[:1]) -> list[str]:
    """Write a label map on the grid of a scan; the attributes that were left empty."""
    labels = nib.Nifti1Image(np.asarray(values, np.uint8), scan.image.affine)
    return WRITERS[kind](path, labels, parts, scan.stack)  # type: ignore[arg-type]


def read_back(kind: str, path: Path, scan: Scan, name: str = "pancreas") -> np.ndarray:
    label = READERS[kind](path, scan.stack, structures([name]))
    return np.asarray(label.image.dataobj) > 0


def blobs(shape: tuple[int, ...]) -> np.ndarray:
    """Codes 0 to 3 in blobs with holes, islands and corners that touch."""
    noise = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=shape), 0.8)
    return np.digitize(noise, np.quantile(noise, [0.5, 0.7, 0.8])).astype(np.uint8)


@pytest.fixture(scope="module", params=GEOMETRIES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A series whose stored values are codes, its SEG and RTSTRUCT, and the codes in space."""
    folder, (orientation, spacing) = tmp_path_factory.mktemp("w"), GEOMETRIES[request.param]
    codes = blobs((6, 20, 24))  # slices, rows, columns
    scan = series(folder / "ct", pixels=codes, orientation=orientation, pixel_spacing=spacing)
    for kind in WRITERS:
        write(kind, folder / f"{kind}.dcm", scan, scan.image.dataobj, STRUCTURES)
    row, column = np.reshape(orientation, (2, 3))
    affine = np.eye(4)  # from column, row and slice, by DICOM PS3.3 C.7.6.2.1.1
    affine[:3, 0], affine[:3, 1] = row * spacing[1], column * spacing[0]
    affine[:3, 2], affine[:3, 3] = np.cross(row, column) * GAP_MM, FIRST
    return folder, scan, nib.Nifti1Image(codes.T, other.LPS_TO_RAS @ affine)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("reader", ["simpleitk", "dcmqi", "matplotlib", "plastimatch", "pancseg"])
def test_each_structure_is_the_same_mask_for_other_software(written, reader, number, tmp_path):
    folder, scan, truth = written
    seg, rtstruct, ct = folder / "seg.dcm", folder / "rtstruct.dcm", folder / "ct"
    structure, name = STRUCTURES[number - 1], NAMES[number - 1]
    if reader == "pancseg":
        for kind in WRITERS:
            mask = read_back(kind, folder / f"{kind}.dcm", scan, name)
            np.testing.assert_array_equal(mask, region_mask(scan.image.get_fdata(), structure))
        return
    mask = {
        "simpleitk": lambda: other.seg_by_simpleitk(seg, truth, number),
        "dcmqi": lambda: other.seg_by_dcmqi(seg, truth, tmp_path, number),
        "matplotlib": lambda: other.rtstruct_by_matplotlib(rtstruct, ct, truth, number),
        "plastimatch": lambda: other.rtstruct_by_plastimatch(rtstruct, ct, truth, tmp_path, name),
    }[reader]()
    np.testing.assert_array_equal(mask, region_mask(np.asarray(truth.dataobj), structure))


def test_dciodvfy_finds_no_error(written, tmp_path):
    folder, scan, _ = written
    for kind in WRITERS:
        assert other.errors_of(folder / f"{kind}.dcm") == []
        write(kind, tmp_path / kind, scan, np.zeros(scan.image.shape))  # nothing was segmented
        assert other.errors_of(tmp_path / kind) == []
        assert not read_back(kind, tmp_path / kind, scan).any()


def coded(sequence: Any) -> list[tuple[str, str]]:
    return [(code[0].CodeValue, code[0].CodeMeaning) for code in sequence]


def test_segments_and_rois_are_named_after_their_structures(tmp_path):
    scan = series(tmp_path / "ct")
    for kind in WRITERS:
        write(kind, tmp_path / kind, scan, np.ones(scan.image.shape), STRUCTURES)
        write(kind, tmp_path / f"liver_{kind}", scan, np.ones(scan.image.shape), STRUCTURES[2:])
        text = str(pydicom.dcmread(tmp_path / f"liver_{kind}"))
        assert "ancrea" not in text and "Liver, not for clinical use" in text
    segments = pydicom.dcmread(tmp_path / "seg").SegmentSequence
    rtstruct = pydicom.dcmread(tmp_path / "rtstruct")
    observations = rtstruct.RTROIObservationsSequence
    expected = list(zip(("15776009", "126859007", "10200004"), NAMES, strict=True))
    assert coded(s.SegmentedPropertyTypeCodeSequence for s in segments) == expected
    assert coded(o.RTROIIdentificationCodeSequence for o in observations) == expected
    assert [o.RTROIInterpretedType for o in observations] == ["ORGAN", "", "ORGAN"]
    assert [s.SegmentLabel for s in segments] == list(NAMES)
    assert [roi.ROIName for roi in rtstruct.StructureSetROISequence] == list(NAMES)
    categories = coded(s.SegmentedPropertyCategoryCodeSequence for s in segments)
    anatomical, abnormal = "91723000", "49755003"
    assert [value for value, _ in categories] == [anatomical, abnormal, anatomical]


KNOWN = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Ann", "StudyID": "S-7"}
KNOWN |= {"PatientSex": "F", "AccessionNumber": "A-9", "PatientBirthDate": "19501112"}


@BOTH
def test_patient_study_and_images_are_those_of_the_series(tmp_path, kind):
    scan = series(tmp_path / "ct", put(**KNOWN))
    headers = [pydicom.dcmread(file) for file in (tmp_path / "ct").iterdir()]
    write(kind, tmp_path / "out", scan, np.ones(scan.image.shape))
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


INVALID = [
    ("PatientBirthDate", "11/12/1950"),
    ("PatientBirthDate", "ANON"),
    ("StudyDate", "20200101-20210101"),
    ("StudyTime", "99:99"),
    ("PatientSex", "WEIBLICH"),
    ("PatientName", ["DOE^JOHN", "ANON^"]),
]


@BOTH
@pytest.mark.parametrize(("keyword", "value"), INVALID)
def test_an_invalid_attribute_is_left_empty_and_named_but_never_quoted(
    kind, keyword, value, tmp_path, caplog, capfd
):
    scan = series(tmp_path / "ct", put(StudyID="S-7"), unchecked(keyword, value))
    values, path = blobs(scan.image.shape) == 1, tmp_path / "out.dcm"
    with caplog.at_level(logging.WARNING):
        assert write(kind, path, scan, values) == [keyword]
    out = pydicom.dcmread(path)
    assert (out[keyword].value, out.StudyID, out.PatientID) == ("", "S-7", "P-1")
    assert other.errors_of(path) == []
    np.testing.assert_array_equal(read_back(kind, path, scan), values)
    assert caplog.text + "".join(capfd.readouterr()) == ""


CHARACTERS: list[tuple[Any, str, Any]] = [
    (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎", ["", "ISO 2022 IR 87"]),
    ("", "Doe^John", None),  # as anonymisers leave it
    ("ISO_IR 999", "Müller^Ann", "ISO_IR 192"),  # unknown, read as Latin-1, written as UTF-8
]


@BOTH
@pytest.mark.parametrize(("names", "patient", "written_as"), CHARACTERS)
def test_names_keep_their_characters(kind, names, patient, written_as, tmp_path):
    known = "ISO_IR 100" if names == "ISO_IR 999" else names
    scan = series(tmp_path / "ct", put(SpecificCharacterSet=known, PatientName=patient))
    for file in (tmp_path / "ct").iterdir() if known != names else ():
        file.write_bytes(file.read_bytes().replace(b"ISO_IR 100", names.encode()))
    emptied = write(kind, tmp_path / "out", scan, np.ones(scan.image.shape))
    assert emptied == ["SpecificCharacterSet"] * (known != names)
    out = pydicom.dcmread(tmp_path / "out")
    assert (str(out.PatientName), out.get("SpecificCharacterSet")) == (patient, written_as)


@BOTH
def test_a_series_that_nothing_can_refer_to_is_refused(kind, tmp_path):
    places = [(0, 0, 2.5 * k) for k in (0, 1, 2, 4)]
    for scan, reason in (
        (series(tmp_path / "a", positions=places, repair=Repair(gaps=True)), f"{kind}_repaired"),
        (series(tmp_path / "b", put(StudyInstanceUID="")), f"{kind}_no_uid.* no StudyInstanceUID"),
    ):
        with pytest.raises(Refused, match=reason):
            write(kind, tmp_path / "out", scan, np.ones(scan.image.shape))
    assert not (tmp_path / "out").exists()


@BOTH
def test_slices_may_differ_in_the_last_digits_of_their_orientation(kind, tmp_path):
    def wobble(slices: list[Dataset]) -> None:
        for n, dataset in enumerate(slices):
            dataset.ImageOrientationPatient = [1, f"{n * 1e-7:.7f}", 0, 0, 1, 0]

    scan = series(tmp_path / "ct", wobble)
    values = blobs(scan.image.shape) == 1
    write(kind, tmp_path / "out", scan, values)
    np.testing.assert_array_equal(read_back(kind, tmp_path / "out", scan), values)


@BOTH
def test_frames_of_a_multi_frame_file_may_lie_in_any_order(kind, tmp_path):
    empty = dict.fromkeys(("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
                           "StudyDate", "StudyTime", "ReferringPhysicianName"), "")  # fmt: skip
    thick = put(SliceThickness=2.5, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], **empty)
    series(tmp_path / "single", thick)
    slices = [pydicom.dcmread(file) for file in (tmp_path / "single").iterdir()]
    slices.sort(key=lambda one: -one.ImagePositionPatient[2])  # from the head, against the stack
    LegacyConvertedEnhancedCTImage(slices, UID(), 2, UID(), 1).save_as(tmp_path / "frames.dcm")
    scan = read_series((tmp_path / "frames.dcm",), Repair())
    values = np.zeros(scan.image.shape)
    values[1, 1, 3] = values[2, 2, 0] = 1  # on frames 2 and 5
    write(kind, tmp_path / "out", scan, values)
    np.testing.assert_array_equal(read_back(kind, tmp_path / "out", scan), values)
    out = pydicom.dcmread(tmp_path / "out")
    if kind == "seg":
        groups = out.PerFrameFunctionalGroupsSequence
        images = [group.DerivationImageSequence[0].SourceImageSequence[0] for group in groups]
    else:
        contours = out.ROIContourSequence[0].ContourSequence
        images = [contour.ContourImageSequence[0] for contour in contours]
    assert sorted(image.ReferencedFrameNumber for image in images) == [2, 5]


def test_numbers_of_contours_have_at_most_16_characters_and_contours_any_length(tmp_path):
    first = (-99_999.123456, 99_999.654321, -99_999.111111)
    scan = series(tmp_path / "a", first=first, orientation=OBLIQUE, count=3, size=(120, 120))
    values = np.zeros(scan.image.shape)
    values[..., 1] = np.random.default_rng(0).random((120, 120)) < 0.7
    write("rtstruct", tmp_path / "rt", scan, values)
    contours = pydicom.dcmread(tmp_path / "rt").ROIContourSequence[0].ContourSequence
    assert max(len(v.original_string) for c in contours for v in c.ContourData) <= 16
    assert max(len(c.ContourData) for c in contours) * 4 > 2**16  # more than an explicit length
    np.testing.assert_array_equal(read_back("rtstruct", tmp_path / "rt", scan), values)


def area_of(outline: np.ndarray) -> float:
    """By the shoelace formula; a hole counts less for it is walked round the other way."""
    x, y = outline.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


@pytest.mark.parametrize(
    ("rows", "areas"),
    [
        ("...", []),
        ("## ## ##", [6]),  # the whole image
        ("#. .#", [1, 1]),  # touch at a corner
        ("##### #.#.# ##.## #####", [17]),  # holes side by side and at a corner
        ("####### #.....# #.###.# #.#.#.# #.###.# #.....# #######", [24, 8]),
    ],
)
def test_each_component_is_an_outline_around_its_area(rows, areas):
    mask = np.array([[mark == "#" for mark in row] for row in rows.split()]).T
    assert [area_of(outline) for outline in trace_borders(mask)] == areas


@pytest.mark.parametrize("seed", range(2))
def test_random_masks_come_back_with_their_components_and_their_area(seed):
    random = np.random.default_rng(seed)
    for _ in range(50):
        mask = random.random(random.integers(1, 15, 2)) < random.uniform(0.1, 0.98)
        outlines = trace_borders(mask)
        centres = np.stack(np.indices(mask.shape), axis=-1).reshape(-1, 2)
        filled = sum(Polygon(outline).contains_points(centres).astype(int) for outline in outlines)
        np.testing.assert_array_equal(filled + np.zeros(mask.size, int), mask.ravel())
        assert len(outlines) == ndimage.label(mask)[1]
        assert sum(map(area_of, outlines)) == mask.sum()
