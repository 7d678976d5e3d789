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
from pydicom.uid import ImplicitVRLittleEndian
from scipy import ndimage

from pancseg.dicom.labels import read_rtstruct, read_segmentation
from pancseg.dicom.series import Repair, Scan, read_series
from pancseg.dicom.writers import trace_borders, write_rtstruct, write_seg
from pancseg.errors import Refused
from pancseg.structures import Structure, region_mask
from tests.other_software import (
    LPS_TO_RAS,
    errors_of,
    rtstruct_by_matplotlib,
    rtstruct_by_plastimatch,
    seg_by_dcmqi,
    seg_by_simpleitk,
)
from tests.tiny_dicom import AXIAL, put
from tests.tiny_labels import FIRST, GAP_MM, SPACING, scan_of, structures

OBLIQUE = (0.936293, 0.275096, -0.218351, -0.289629, 0.956425, -0.036957)
GEOMETRIES: dict[str, dict[str, Any]] = {
    "axial": {"orientation": AXIAL, "pixel_spacing": (0.8, 0.8)},
    "oblique": {"orientation": OBLIQUE, "pixel_spacing": (0.8, 0.8)},
    "feet_first": {"orientation": (-1, 0, 0, 0, 1, 0), "pixel_spacing": (0.8, 0.8)},
    "non_square": {"orientation": AXIAL, "pixel_spacing": (0.7, 0.9)},
}
STRUCTURES = (
    Structure("pancreas", (1, 2), "15776009", "organ", (15, 400), (1, 2)),
    Structure("pancreatic_tumour", (2,), "126859007", "lesion", (0, 400), (2,)),  # a part of it
    Structure("liver", (3,), "10200004", "organ", (500, 4000), (3,)),
)
ORGAN = STRUCTURES[:1]
WRITERS = {"seg": write_seg, "rtstruct": write_rtstruct}
READERS: dict[str, Any] = {"seg": read_segmentation, "rtstruct": read_rtstruct}


def same_study(slices: list[Dataset]) -> None:
    for dataset in slices:
        dataset.StudyInstanceUID = slices[0].StudyInstanceUID


def series(folder: Path, *damages: Callable[[list[Dataset]], None], **options: Any) -> Scan:
    """A series of one study as ``write_series`` makes it, as read."""

    def damage(slices: list[Dataset]) -> None:
        same_study(slices)
        for change in damages:
            change(slices)

    return scan_of(folder, damage=damage, **options)


def invalid(**values: Any) -> Callable[[list[Dataset]], None]:
    """Set attributes without pydicom's validation."""

    def damage(slices: list[Dataset]) -> None:
        for dataset in slices:
            for keyword, value in values.items():
                vr = pydicom.datadict.dictionary_VR(keyword)
                dataset.add(DataElement(keyword, vr, value, validation_mode=config.IGNORE))

    return damage


def labels_of(scan: Scan, values: np.ndarray) -> nib.Nifti1Image:
    return nib.Nifti1Image(values.astype(np.uint8), scan.image.affine)


def write(kind: str, path: Path, scan: Scan, values: np.ndarray, parts: Any = ORGAN) -> Dataset:
    """Write a label map on the grid of a scan; the file, read back."""
    assert scan.stack is not None
    assert WRITERS[kind](path, labels_of(scan, values), parts, scan.stack) == []
    return pydicom.dcmread(path)


def read_back(kind: str, path: Path, scan: Scan, name: str) -> np.ndarray:
    assert scan.stack is not None
    return np.asarray(READERS[kind](path, scan.stack, structures([name])).image.dataobj) > 0


def blobs(shape: tuple[int, ...]) -> np.ndarray:
    """Codes 0 to 3 in blobs with holes, islands and corners that touch."""
    random = np.random.default_rng(3)
    noise = ndimage.gaussian_filter(random.normal(size=shape), 0.8)
    return np.digitize(noise, np.quantile(noise, [0.5, 0.7, 0.8])).astype(np.uint8)


@pytest.fixture(scope="module", params=GEOMETRIES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A series whose stored values are codes, its SEG and RTSTRUCT, and the codes in space."""
    folder, options = tmp_path_factory.mktemp(request.param), GEOMETRIES[request.param]
    codes = blobs((6, 20, 24))  # slices, rows, columns
    scan = series(folder / "ct", pixels=codes, **options)
    values = np.asarray(scan.image.dataobj)
    for kind in WRITERS:
        write(kind, folder / f"{kind}.dcm", scan, values, STRUCTURES)
    row, column = np.reshape(options["orientation"], (2, 3))
    rows_mm, columns_mm = options["pixel_spacing"]
    affine = np.eye(4)  # from column, row and slice, by DICOM PS3.3 C.7.6.2.1.1
    affine[:3, 0], affine[:3, 1] = row * columns_mm, column * rows_mm
    affine[:3, 2], affine[:3, 3] = np.cross(row, column) * GAP_MM, FIRST
    return folder, scan, nib.Nifti1Image(codes.T, LPS_TO_RAS @ affine)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("reader", ["simpleitk", "dcmqi", "matplotlib", "plastimatch", "pancseg"])
def test_each_structure_is_the_same_mask_for_other_software(
    written: Any, reader: str, number: int, tmp_path: Path
) -> None:
    folder, scan, truth = written
    seg, rtstruct, ct = folder / "seg.dcm", folder / "rtstruct.dcm", folder / "ct"
    expected = region_mask(np.asarray(truth.dataobj), STRUCTURES[number - 1])
    name = ("Pancreas", "Pancreatic tumour", "Liver")[number - 1]
    if reader == "pancseg":
        inside = region_mask(np.asarray(scan.image.dataobj), STRUCTURES[number - 1])
        for kind in WRITERS:
            np.testing.assert_array_equal(
                read_back(kind, folder / f"{kind}.dcm", scan, name), inside
            )
        return
    found = {
        "simpleitk": lambda: seg_by_simpleitk(seg, truth, number),
        "dcmqi": lambda: seg_by_dcmqi(seg, truth, tmp_path, number),
        "matplotlib": lambda: rtstruct_by_matplotlib(rtstruct, ct, truth, number),
        "plastimatch": lambda: rtstruct_by_plastimatch(rtstruct, ct, truth, tmp_path, name),
    }[reader]()
    np.testing.assert_array_equal(found, expected)


def test_dciodvfy_finds_no_error(written: Any, tmp_path: Path) -> None:
    folder, scan, _ = written
    for kind in WRITERS:
        assert errors_of(folder / f"{kind}.dcm") == []
        one = write(kind, tmp_path / kind, scan, np.zeros(scan.image.shape))  # nothing found
        assert errors_of(tmp_path / kind) == []
        assert not read_back(kind, tmp_path / kind, scan, "pancreas").any()
        del one["ContentLabel" if kind == "seg" else "StructureSetLabel"]
        one.save_as(tmp_path / "less")
        assert len(errors_of(tmp_path / "less")) == 1
    assert "ContourSequence" not in one.ROIContourSequence[0]


def test_segments_and_rois_are_named_after_their_structures(tmp_path: Path) -> None:
    scan = series(tmp_path / "ct")
    values = np.ones(scan.image.shape)
    seg = write("seg", tmp_path / "seg", scan, values, STRUCTURES)
    rtstruct = write("rtstruct", tmp_path / "rt", scan, values, STRUCTURES)
    types = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in seg.SegmentSequence]
    observed = [
        observation.RTROIIdentificationCodeSequence[0]
        for observation in rtstruct.RTROIObservationsSequence
    ]
    for found in (types, observed):
        assert [
            (code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning) for code in found
        ] == [
            ("15776009", "SCT", "Pancreas"),
            ("126859007", "SCT", "Pancreatic tumour"),
            ("10200004", "SCT", "Liver"),
        ]
    labels = [segment.SegmentLabel for segment in seg.SegmentSequence]
    assert labels == ["Pancreas", "Pancreatic tumour", "Liver"]
    assert labels == [roi.ROIName for roi in rtstruct.StructureSetROISequence]
    assert [
        segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue
        for segment in seg.SegmentSequence
    ] == ["91723000", "49755003", "91723000"]  # anatomical, or morphologically abnormal structure
    assert [
        (observation.ReferencedROINumber, observation.RTROIInterpretedType)
        for observation in rtstruct.RTROIObservationsSequence
    ] == [(1, "ORGAN"), (2, ""), (3, "ORGAN")]
    for kind in WRITERS:  # of a network trained on liver
        one = write(kind, tmp_path / "one", scan, values, STRUCTURES[2:])
        assert "ancrea" not in str(one)
        assert "Liver, not for clinical use" in str(one)


def test_patient_study_and_images_are_those_of_the_series(tmp_path: Path) -> None:
    known = put(
        SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Ann", StudyID="S-7",
        PatientSex="F", AccessionNumber="A-9", PatientBirthDate="19501112", StudyTime="2359",
    )  # fmt: skip
    scan = series(tmp_path / "ct", known)
    headers = [pydicom.dcmread(file) for file in (tmp_path / "ct").iterdir()]
    for kind in WRITERS:
        one = write(kind, tmp_path / kind, scan, np.ones(scan.image.shape))
        for name in ("SpecificCharacterSet", "PatientName", "PatientID", "PatientSex", "StudyID",
                     "PatientBirthDate", "StudyTime", "AccessionNumber", "StudyInstanceUID",
                     "FrameOfReferenceUID"):  # fmt: skip
            assert one[name].value == headers[0][name].value
        assert one.ReferringPhysicianName == one.StudyDate == ""  # required, but not in the series
        assert one.SeriesInstanceUID != headers[0].SeriesInstanceUID
        if kind == "seg":
            (series_item,) = one.ReferencedSeriesSequence
            images = series_item.ReferencedInstanceSequence
        else:
            (frame,) = one.ReferencedFrameOfReferenceSequence
            (study,) = frame.RTReferencedStudySequence
            (series_item,) = study.RTReferencedSeriesSequence
            images = series_item.ContourImageSequence
            assert frame.FrameOfReferenceUID == headers[0].FrameOfReferenceUID
            assert study.ReferencedSOPInstanceUID == headers[0].StudyInstanceUID
            assert one.ApprovalStatus == "UNAPPROVED"
        assert series_item.SeriesInstanceUID == headers[0].SeriesInstanceUID
        listed = [image.ReferencedSOPInstanceUID for image in images]
        assert sorted(listed) == sorted(header.SOPInstanceUID for header in headers)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientBirthDate", "11/12/1950"),
        ("PatientBirthDate", "ANON"),
        ("PatientBirthDate", "20230231"),
        ("StudyDate", "20200101-20210101"),
        ("StudyTime", "99:99"),
        ("PatientSex", "WEIBLICH"),
        ("PatientName", ["DOE^JOHN", "ANON^"]),
    ],
)
def test_an_invalid_attribute_is_left_empty_and_named_but_never_quoted(
    kind: str, keyword: str, value: Any, tmp_path: Path, caplog: Any, capfd: Any
) -> None:
    scan = series(tmp_path / "ct", put(StudyID="S-7"), invalid(**{keyword: value}))
    values, path = blobs(scan.image.shape) == 1, tmp_path / "out.dcm"
    assert scan.stack is not None
    with caplog.at_level(logging.WARNING):
        emptied = WRITERS[kind](path, labels_of(scan, values), ORGAN, scan.stack)
    assert emptied == [keyword]
    one = pydicom.dcmread(path)
    assert one[keyword].value == ""
    assert (one.StudyID, one.PatientID) == ("S-7", "P-1")
    assert errors_of(path) == []
    np.testing.assert_array_equal(read_back(kind, path, scan, "pancreas"), values)
    assert caplog.text + "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("kind", WRITERS)
def test_a_damaged_sequence_is_left_empty_and_named(kind: str, tmp_path: Path) -> None:
    def damage(slices: list[Dataset]) -> None:
        for dataset in slices:
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
            dataset.add(DataElement("ReferencedPatientSequence", "OB", b"DOE^"))
            dataset.add(DataElement("SliceThickness", "OB", b"thin"))

    scan = series(tmp_path / "ct", damage)
    assert scan.stack is not None
    label = labels_of(scan, np.ones(scan.image.shape))
    emptied = WRITERS[kind](tmp_path / "out", label, ORGAN, scan.stack)
    assert emptied == ["ReferencedPatientSequence"]  # a SEG has its own thickness
    assert len(pydicom.dcmread(tmp_path / "out").ReferencedPatientSequence) == 0


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("names", "patient", "written_as"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎", ["", "ISO 2022 IR 87"]),
        ("", "Doe^John", None),  # as anonymisers leave it
        ("ISO_IR 999", "Müller^Ann", "ISO_IR 192"),  # unknown, read as Latin-1, written as UTF-8
    ],
)
def test_names_keep_their_characters(
    kind: str, names: Any, patient: str, written_as: Any, tmp_path: Path
) -> None:
    known = "ISO_IR 100" if names == "ISO_IR 999" else names
    scan = series(tmp_path / "ct", put(SpecificCharacterSet=known, PatientName=patient))
    for file in (tmp_path / "ct").iterdir():
        content = file.read_bytes()
        file.write_bytes(
            content.replace(b"ISO_IR 100", names.encode()) if known != names else content
        )
    label = labels_of(scan, np.ones(scan.image.shape))
    assert scan.stack is not None
    emptied = WRITERS[kind](tmp_path / "out", label, ORGAN, scan.stack)
    assert emptied == ["SpecificCharacterSet"] * (known != names)
    one = pydicom.dcmread(tmp_path / "out")
    assert (str(one.PatientName), one.get("SpecificCharacterSet")) == (patient, written_as)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_series_that_nothing_can_refer_to_is_refused(kind: str, tmp_path: Path) -> None:
    places = [(0, 0, 2.5 * k) for k in (0, 1, 2, 4)]
    resampled = series(tmp_path / "gap", positions=places, repair=Repair(gaps=True))
    nameless = series(tmp_path / "uid", put(StudyInstanceUID=""))
    told = "the series has no StudyInstanceUID to refer to"
    for scan, reason in (
        (resampled, f"{kind}_repaired: the series was interpolated"),
        (nameless, f"{kind}_no_uid: {told}"),
    ):
        with pytest.raises(Refused, match=reason):
            write(kind, tmp_path / "out", scan, np.ones(scan.image.shape))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", WRITERS)
def test_slices_may_differ_in_the_last_digits_of_their_orientation(
    kind: str, tmp_path: Path
) -> None:
    def wobble(slices: list[Dataset]) -> None:
        for n, dataset in enumerate(slices):
            dataset.ImageOrientationPatient = [1, f"{n * 1e-7:.7f}", 0, 0, 1, 0]

    scan = series(tmp_path / "ct", wobble)
    values = blobs(scan.image.shape) == 1
    write(kind, tmp_path / "out", scan, values)
    np.testing.assert_array_equal(read_back(kind, tmp_path / "out", scan, "pancreas"), values)


@pytest.mark.parametrize("kind", WRITERS)
def test_frames_of_a_multi_frame_file_may_lie_in_any_order(kind: str, tmp_path: Path) -> None:
    empty = dict.fromkeys(("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
                           "StudyDate", "StudyTime", "ReferringPhysicianName"), "")  # fmt: skip
    thick = put(SliceThickness=2.5, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], **empty)
    series(tmp_path / "single", thick)
    slices = [pydicom.dcmread(file) for file in (tmp_path / "single").iterdir()]
    slices.sort(key=lambda one: -one.ImagePositionPatient[2])  # from the head, against the stack
    file = tmp_path / "frames.dcm"
    LegacyConvertedEnhancedCTImage(slices, UID(), 2, UID(), 1).save_as(file)
    scan = read_series((file,), Repair())
    values = np.zeros(scan.image.shape)
    values[1, 1, 3] = values[2, 2, 0] = 1
    one = write(kind, tmp_path / "out", scan, values)
    np.testing.assert_array_equal(read_back(kind, tmp_path / "out", scan, "pancreas"), values)
    found = {}
    if kind == "seg":
        for group in one.PerFrameFunctionalGroupsSequence:
            image = group.DerivationImageSequence[0].SourceImageSequence[0]
            position = group.PlanePositionSequence[0].ImagePositionPatient
            found[int(image.ReferencedFrameNumber)] = float(position[2])
    else:
        for contour in one.ROIContourSequence[0].ContourSequence:
            (image,) = contour.ContourImageSequence
            found[int(image.ReferencedFrameNumber)] = float(contour.ContourData[2])
    assert found == {2: FIRST[2] + 3 * GAP_MM, 5: FIRST[2]}


def test_a_voxel_is_a_square_around_its_centre_on_its_image(tmp_path: Path) -> None:
    scan = series(tmp_path / "ct")
    values = np.zeros(scan.image.shape)
    values[2, 1, 3] = 1
    one = write("rtstruct", tmp_path / "rt", scan, values)
    (contour,) = one.ROIContourSequence[0].ContourSequence
    centre = np.array(FIRST) + [2 * SPACING[1], SPACING[0], 3 * GAP_MM]
    half = np.array([SPACING[1], SPACING[0], 0]) / 2
    corners = [centre + half * sign for sign in ((1, -1, 0), (1, 1, 0), (-1, 1, 0), (-1, -1, 0))]
    np.testing.assert_allclose(np.reshape(contour.ContourData, (4, 3)).astype(float), corners)
    assert (contour.ContourGeometricType, contour.NumberOfContourPoints) == ("CLOSED_PLANAR", 4)
    (image,) = contour.ContourImageSequence
    headers = {str(h.SOPInstanceUID): h for h in map(pydicom.dcmread, (tmp_path / "ct").iterdir())}
    assert headers[image.ReferencedSOPInstanceUID].ImagePositionPatient[2] == centre[2]
    assert "ReferencedFrameNumber" not in image


def test_numbers_of_contours_have_at_most_16_characters(tmp_path: Path) -> None:
    first = (-99_999.123456, 99_999.654321, -99_999.111111)
    scan = series(tmp_path / "ct", first=first, orientation=OBLIQUE)
    values = np.zeros(scan.image.shape)
    values[1, 1:3, 2] = 1
    one = write("rtstruct", tmp_path / "rt", scan, values)
    data = one.ROIContourSequence[0].ContourSequence[0].ContourData
    assert max(len(value.original_string) for value in data) <= 16
    np.testing.assert_array_equal(read_back("rtstruct", tmp_path / "rt", scan, "pancreas"), values)


def test_a_contour_too_long_for_an_explicit_length_is_written_whole(tmp_path: Path) -> None:
    scan = series(tmp_path / "ct", count=3, size=(120, 120))
    values = np.zeros(scan.image.shape)
    values[..., 1] = np.random.default_rng(0).random((120, 120)) < 0.7
    one = write("rtstruct", tmp_path / "rt", scan, values)
    contours = one.ROIContourSequence[0].ContourSequence
    assert max(len(contour.ContourData) for contour in contours) * 4 > 2**16  # bytes at the least
    np.testing.assert_array_equal(read_back("rtstruct", tmp_path / "rt", scan, "pancreas"), values)


def picture(*rows: str) -> np.ndarray:
    """A mask ``(columns, rows)`` drawn with ``#``."""
    return np.array([[mark == "#" for mark in row] for row in rows]).T


def area_of(outline: np.ndarray) -> float:
    """By the shoelace formula; a hole counts less for it is walked round the other way."""
    x, y = outline.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


@pytest.mark.parametrize(
    ("rows", "areas"),
    [
        (["...", "..."], []),
        (["##", "##", "##"], [6]),  # the whole image
        (["#.", ".#"], [1, 1]),  # touch at a corner
        (["#####", "#.#.#", "##.##", "#####"], [17]),  # holes side by side and at a corner
        (["#######", "#.....#", "#.###.#", "#.#.#.#", "#.###.#", "#.....#", "#######"], [24, 8]),
    ],
)
def test_each_component_is_an_outline_around_its_area(rows: list[str], areas: list[int]) -> None:
    assert [area_of(outline) for outline in trace_borders(picture(*rows))] == areas


def test_a_ring_is_one_outline_that_enters_its_hole_and_leaves_it_the_same_way() -> None:
    (outline,) = trace_borders(picture("....", "###.", "#.#.", "###."))
    around = [(2.5, 0.5), (2.5, 3.5), (-0.5, 3.5), (-0.5, 1.5)]
    hole = [(0.5, 1.5), (0.5, 2.5), (1.5, 2.5), (1.5, 1.5)]
    expected = [*around, *hole, (-0.5, 1.5), (-0.5, 0.5)]
    start = expected.index((outline[0][0], outline[0][1]))
    assert [tuple(point) for point in outline.tolist()] == expected[start:] + expected[:start]


@pytest.mark.parametrize("seed", range(4))
def test_random_masks_come_back_with_their_components_and_their_area(seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(50):
        mask = random.random(random.integers(1, 15, 2)) < random.uniform(0.1, 0.98)
        outlines = trace_borders(mask)
        centres = np.stack(np.indices(mask.shape), axis=-1).reshape(-1, 2)
        filled = sum(Polygon(outline).contains_points(centres).astype(int) for outline in outlines)
        np.testing.assert_array_equal(filled + np.zeros(mask.size, int), mask.ravel())
        assert len(outlines) == ndimage.label(mask)[1]
        assert sum(map(area_of, outlines)) == mask.sum()
