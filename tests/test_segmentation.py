"""DICOM SEG: chosen segments on the grid of their image, voxel for voxel, or refused."""

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from pancseg.dicom.labels import read_segmentation
from pancseg.dicom.series import Repair, Scan, read_series
from pancseg.errors import REASON_LENGTH, Refused
from pancseg.structures import Label
from tests.tiny_dicom import AXIAL
from tests.tiny_labels import (
    LIVER,
    PANCREAS,
    SPACING,
    Frame,
    at,
    damaged,
    scan_of,
    structures,
    voxels,
    write_segmentation,
)

DOT = [[0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]  # rows x columns: (1, 1) and (2, 2)
ONE = [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
NONE = np.zeros((4, 3))
BOTH = {1: LIVER, 2: PANCREAS}


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    """Five slices of four rows and three columns."""
    return scan_of(tmp_path / "ct")


def read(file: Path, scan: Scan, *labels: Sequence[Label] | None) -> nib.Nifti1Image:
    assert scan.stack is not None
    label = read_segmentation(file, scan.stack, structures(*labels))
    assert (label.unknown_values, label.flags) == ((), ())
    assert label.image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(label.image.affine, scan.image.affine)
    assert label.image.shape == scan.image.shape
    return label.image


def refusal(file: Path, scan: Scan, *labels: Sequence[Label]) -> Refused:
    assert scan.stack is not None
    with pytest.raises(Refused) as refused:
        read_segmentation(file, scan.stack, structures(*labels))
    assert "\n" not in str(refused.value)
    return refused.value


def codes_of(image: nib.Nifti1Image) -> dict[tuple[int, ...], int]:
    """Voxels that are not background, with their codes."""
    codes = np.asarray(image.dataobj)
    return {tuple(at): int(codes[tuple(at)]) for at in voxels(image)}


def once(one: Dataset) -> None:
    """Move geometry and position of the only frame to the shared groups."""
    shared, own = one.SharedFunctionalGroupsSequence[0], one.PerFrameFunctionalGroupsSequence[0]
    shared.update(own)
    one.PerFrameFunctionalGroupsSequence = [Dataset()]


@pytest.mark.parametrize("options", [{}, {"shared": False}, {"damage": once}])
def test_geometry_stands_once_or_in_every_frame(
    tmp_path: Path, scan: Scan, options: dict[str, Any]
) -> None:
    file = write_segmentation(tmp_path / "seg", [Frame(ONE, at(2))], **options)
    assert voxels(read(file, scan)) == [[0, 0, 2]]


@pytest.mark.parametrize("position", [at(-30), at(2.5), at(2, 70)])
def test_pixels_land_on_the_slice_at_their_position_and_empty_frames_may_lie_anywhere(
    tmp_path: Path, scan: Scan, position: tuple[float, ...]
) -> None:
    frames = [Frame(DOT, at(3)), Frame(ONE, at(0)), Frame(NONE, position)]
    image = read(write_segmentation(tmp_path / "seg", frames), scan)
    assert voxels(image) == [[0, 0, 0], [1, 1, 3], [2, 2, 3]]  # column, row, slice


@pytest.mark.parametrize(("value", "is_in"), [(0, False), (49, False), (50, True), (100, True)])
def test_half_of_the_largest_fraction_is_foreground(
    tmp_path: Path, scan: Scan, value: int, is_in: bool
) -> None:
    frames = [Frame(np.multiply(ONE, value), at(1))]
    image = read(write_segmentation(tmp_path / "seg", frames, kind="FRACTIONAL"), scan)
    assert voxels(image) == ([[0, 0, 1]] if is_in else [])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([(1,)], {(0, 0, 1): 1}),
        ([("pancreas",)], {(1, 1, 1): 1, (2, 1, 1): 1}),
        ([(1, 2)], {(0, 0, 1): 1, (1, 1, 1): 1, (2, 1, 1): 1}),
        ([("pancreas",), ("liver",)], {(0, 0, 1): 2, (1, 1, 1): 1, (2, 1, 1): 1}),
        ([("background",)], "no_such_segment"),  # its number is PixelPaddingValue
    ],
)
def test_values_of_a_label_map_are_segment_numbers(
    tmp_path: Path, scan: Scan, labels: list[Sequence[Label]], expected: Any
) -> None:
    pixels = np.zeros((4, 3))
    pixels[0, 0], pixels[1, 1:] = 1, 2
    segments = {0: ("Background", "125040", "Background"), **BOTH}
    frames = [Frame(pixels, at(1))]
    file = write_segmentation(tmp_path / "seg", frames, kind="LABELMAP", segments=segments)
    if isinstance(expected, str):
        assert refusal(file, scan, *labels).code == expected
    else:
        assert codes_of(read(file, scan, *labels)) == expected


def test_the_only_segment_of_a_label_map_needs_no_choice(tmp_path: Path, scan: Scan) -> None:
    segments = {0: ("Background", "125040", "Background"), 1: PANCREAS}
    frames = [Frame(ONE, at(1))]
    file = write_segmentation(tmp_path / "seg", frames, kind="LABELMAP", segments=segments)
    assert voxels(read(file, scan)) == [[0, 0, 1]]


@pytest.mark.parametrize("choice", [(2,), ("pancreas",), ("PANCREAS",), (15776009,), ("2", "x")])
def test_a_segment_is_chosen_by_number_label_or_code_and_others_are_not_judged(
    tmp_path: Path, scan: Scan, choice: Sequence[Label]
) -> None:
    beside = (99.3, 0, 0)
    frames = [Frame(DOT, beside, 1), Frame(ONE, at(1), 2), Frame(ONE, at(2), 2)]
    file = write_segmentation(tmp_path / "seg", frames, segments=BOTH)
    assert voxels(read(file, scan, choice)) == [[0, 0, 1], [0, 0, 2]]


def test_segments_that_overlap_are_united_and_the_later_structure_wins(
    tmp_path: Path, scan: Scan
) -> None:
    frames = [Frame(ONE, at(1), 2), Frame([[1, 1, 0], *DOT[1:]], at(1), 1)]
    file = write_segmentation(tmp_path / "seg", frames, segments=BOTH)
    rest, both = [(1, 0, 1), (1, 1, 1), (2, 2, 1)], (0, 0, 1)
    for labels, expected in (
        ([(1, 2)], {both: 1, **dict.fromkeys(rest, 1)}),
        ([(2,)], {both: 1}),
        ([("liver",), ("pancreas",)], {both: 2, **dict.fromkeys(rest, 1)}),
        ([("liver", "pancreas"), (2,)], {both: 2, **dict.fromkeys(rest, 1)}),
        ([("spleen",), ("liver",)], dict.fromkeys([both, *rest], 2)),
    ):
        assert codes_of(read(file, scan, *labels)) == expected


@pytest.mark.parametrize(
    ("labels", "code"), [((), "ambiguous_segment"), ((("spleen",),), "no_such_segment")]
)
def test_names_of_segments_are_not_quoted_in_a_reason(
    tmp_path: Path, scan: Scan, labels: tuple[Sequence[Label], ...], code: str
) -> None:
    segments = dict.fromkeys(range(1, 4001), ("Liver of DOE JOHN", "10200004", "Liver"))
    file = write_segmentation(tmp_path / "seg", [Frame(ONE, at(1))], segments=segments)
    refused = refusal(file, scan, *labels)
    assert (refused.code, "DOE" in str(refused)) == (code, False)
    assert len(str(refused)) <= REASON_LENGTH
    assert refused.names[:2] == ("1 Liver of DOE JOHN", "2 Liver of DOE JOHN")


TURNS: dict[str, tuple[Any, Any, tuple[float, ...], tuple[float, float]]] = {
    "rows_backwards": (np.flipud(DOT), at(2, 0, 3), (1, 0, 0, 0, -1, 0), SPACING),
    "columns_backwards": (np.fliplr(DOT), at(2, 2, 0), (-1, 0, 0, 0, 1, 0), SPACING),
    "half_turn": (np.rot90(DOT, 2), at(2, 2, 3), (-1, 0, 0, 0, -1, 0), SPACING),
    "swapped": (np.transpose(DOT), at(2), (0, 1, 0, 1, 0, 0), SPACING[::-1]),
    "quarter_turn": (np.rot90(DOT), at(2, 2, 0), (0, 1, 0, -1, 0, 0), SPACING[::-1]),
    "window": (np.array(DOT)[1:3, 1:], at(2, 1, 1), AXIAL, SPACING),
    "larger": (np.pad(DOT, ((1, 2), (3, 1))), at(2, -3, -1), AXIAL, SPACING),
}


@pytest.mark.parametrize("turn", TURNS)
def test_rows_and_columns_may_run_otherwise_as_long_as_pixels_coincide(
    tmp_path: Path, scan: Scan, turn: str
) -> None:
    pixels, position, orientation, spacing = TURNS[turn]
    file = write_segmentation(
        tmp_path / "seg",
        [Frame(pixels, position)],
        orientation=orientation,
        pixel_spacing=spacing,
    )
    assert voxels(read(file, scan)) == [[1, 1, 2], [2, 2, 2]]


def test_every_turn_of_a_frame_lands_where_its_position_says(tmp_path: Path) -> None:
    oblique = (0.936293, 0.275096, -0.218351, -0.289629, 0.956425, -0.036957)
    scan = scan_of(tmp_path / "ct", orientation=oblique)
    row, column = np.reshape(oblique, (2, 3))
    normal = np.cross(row, column)
    where = np.array([-10, -20, 30]) + 2 * 2.5 * normal + 3 * 0.8 * column + 2 * 0.5 * row
    file = write_segmentation(
        tmp_path / "seg", [Frame(np.rot90(DOT, 2), where)], orientation=[*-row, *-column]
    )
    image = read(file, scan)
    ras = nib.affines.apply_affine(image.affine, voxels(image)) * [-1, -1, 1]
    for number, (own_row, own_column) in enumerate([(2, 1), (1, 0)]):
        expected = where - own_row * 0.8 * column - own_column * 0.5 * row
        np.testing.assert_allclose(ras[number], expected, atol=0.01)


OFF_GRID: dict[str, tuple[dict[str, Any], str]] = {
    "half_a_pixel_aside": ({"position": at(2, 0.5)}, r"0\.250 mm beside"),
    "a_fifth_of_a_pixel_down": ({"position": at(2, 0, 0.2)}, r"0\.160 mm beside"),
    "between_slices": ({"position": at(2.5)}, r"1\.25 mm from the nearest slice"),
    "above_the_scan": ({"position": at(7)}, r"7\.50 mm from .* 2\.50 mm apart"),
    "larger_pixels": ({"pixel_spacing": (0.9, 0.5)}, r"0\.5000 x 0\.9000 mm, .* 0\.5000 x 0\.8000"),
    "coronal": ({"orientation": (1, 0, 0, 0, 0, -1)}, r"turned by 90\.00 degrees"),
    "turned": (
        {"orientation": (*(math.cos(0.1), math.sin(0.1), 0), *(-math.sin(0.1), math.cos(0.1), 0))},
        r"turned by 5\.73 degrees",
    ),
    "beside_the_image": ({"position": at(2, 1)}, "1 pixels of foreground"),
    "wholly_beside": ({"position": at(2, 20)}, "2 pixels of foreground"),
}


@pytest.mark.parametrize("fault", OFF_GRID)
def test_pixels_that_do_not_coincide_with_the_images_are_refused_with_numbers(
    tmp_path: Path, scan: Scan, fault: str
) -> None:
    options, sentence = OFF_GRID[fault]
    options = dict(options)
    frames = [Frame(DOT, options.pop("position", at(2)))]
    refused = refusal(write_segmentation(tmp_path / "seg", frames, **options), scan)
    assert refused.code == "label_off_grid"
    assert pytest.raises(Refused, match=sentence).matches(refused)


@pytest.mark.parametrize("position", [at(2, 0.09), at(2, 0, -0.09), at(2.09)])
def test_rounded_positions_are_the_images(
    tmp_path: Path, scan: Scan, position: tuple[float, ...]
) -> None:
    file = write_segmentation(tmp_path / "seg", [Frame(ONE, position)])
    assert voxels(read(file, scan)) == [[0, 0, 2]]


def test_a_label_on_repaired_slices_follows_the_repair(tmp_path: Path) -> None:
    places = [(0, 0.9 * k, 2.5 * k) for k in (0, 1, 2, 4)]
    repair = Repair(gaps=True, tilt=True)
    scan = scan_of(tmp_path / "ct", repair, positions=places, pixel_spacing=(0.9, 0.5))
    frames = [Frame(ONE, place) for place in places]
    file = write_segmentation(tmp_path / "seg", frames, pixel_spacing=(0.9, 0.5))
    image = read(file, scan)
    ras = nib.affines.apply_affine(image.affine, voxels(image)) * [-1, -1, 1]
    np.testing.assert_allclose(ras[[0, 1, 2, -1]], places, atol=1e-6)


def lack(keyword: str) -> Callable[[Dataset], None]:
    return lambda one: delattr(one, keyword)


def no_identification(one: Dataset) -> None:
    del one.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence


def far_away(one: Dataset) -> None:
    place = one.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    place.ImagePositionPatient = [1e300, 0, 0]


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lack("SegmentationType"), "bad_segments"),
        (lack("SegmentSequence"), "bad_segments"),
        (lack("PixelData"), "no_pixels"),
        (lack("PerFrameFunctionalGroupsSequence"), "no_geometry"),
        (no_identification, "bad_segments"),
        (far_away, "no_geometry"),
    ],
)
def test_a_file_with_one_fault_is_refused_with_its_reason(
    tmp_path: Path, scan: Scan, damage: Callable[[Dataset], None], code: str
) -> None:
    file = write_segmentation(tmp_path / "seg", [Frame(ONE, at(1))], damage=damage)
    assert refusal(file, scan).code == code


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_damaged_file_is_refused_or_read_and_never_stops_the_batch(
    tmp_path: Path, scan: Scan, kind: str
) -> None:
    file = write_segmentation(tmp_path / "seg", [Frame(DOT, at(1)), Frame(ONE, at(2))], kind=kind)
    assert scan.stack is not None
    for one in damaged(file.read_bytes(), every=40, changes=60, places=3, behind=128):
        file.write_bytes(one)
        with contextlib.suppress(Refused):
            read_segmentation(file, scan.stack, structures())


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_what_highdicom_writes_is_read_voxel_for_voxel(tmp_path: Path, kind: str) -> None:
    def complete(slices: list[Dataset]) -> None:
        for one in slices:
            one.PatientBirthDate = one.PatientSex = one.AccessionNumber = one.StudyID = ""
            one.StudyInstanceUID, one.SliceThickness = slices[0].StudyInstanceUID, 2.5
            one.StudyDate = one.StudyTime = one.ReferringPhysicianName = ""

    scan = scan_of(tmp_path / "ct", size=(5, 7), damage=complete)
    sources = [pydicom.dcmread(file) for file in sorted((tmp_path / "ct").iterdir())]
    random = np.random.default_rng(1)
    truth = random.random((7, 5, 5)) < 0.3  # column, row, slice
    heights = [round((one.ImagePositionPatient[2] - 30) / 2.5) for one in sources]
    described = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="Pancreas",
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.Pancreas,
        algorithm_type="MANUAL",
    )
    highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=np.array([truth[..., k].T for k in heights]).astype(np.uint8),
        segmentation_type=kind,
        segment_descriptions=[described],
        series_instance_uid=highdicom.UID(),
        series_number=2,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
    ).save_as(tmp_path / "seg")
    np.testing.assert_array_equal(read(tmp_path / "seg", scan, ("15776009",)).dataobj, truth)


def assert_equals_nrrd(ours: nib.Nifti1Image, file: Path, value: int = 1) -> None:
    """In place, and where the file has a value, as SimpleITK reads it."""
    image = SimpleITK.ReadImage(str(file))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    truth = nib.Nifti1Image(SimpleITK.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ affine)
    ours, truth = nib.as_closest_canonical(ours), nib.as_closest_canonical(truth)
    np.testing.assert_allclose(ours.affine, truth.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(truth.dataobj) == value)
    assert np.asarray(ours.dataobj).any()


def test_a_published_seg_equals_its_nrrd(shared_data: Path) -> None:
    scan = read_series(tuple((shared_data / "seg" / "ct").glob("*.dcm")), Repair())
    image = read(shared_data / "seg" / "liver.dcm", scan, ("liver",))
    assert_equals_nrrd(image, shared_data / "seg" / "liver_seg.nrrd")


@pytest.mark.parametrize(
    ("number", "name", "file"),
    [(1, "GREEN", 1), (2, "orange", 2), (3, "20982000", 3), (4, "Edema", 1), (5, "DARK_BLUE", 1)],
)
def test_each_of_overlapping_published_segments_equals_its_nrrd(
    shared_data: Path, number: int, name: str, file: int
) -> None:
    scan = read_series(tuple((shared_data / "seg" / "ct").glob("*.dcm")), Repair())
    nrrd = shared_data / "seg" / f"partial_overlaps-{file}.nrrd"  # 4 and 5 do not overlap with 1
    for choice in ((number,), (name,)):
        image = read(shared_data / "seg" / "partial_overlaps.dcm", scan, choice)
        assert_equals_nrrd(image, nrrd, number)


@pytest.mark.parametrize("image", ["image", "multiframe"])
def test_a_label_is_one_on_single_frames_and_on_one_multi_frame_file(
    shared_data: Path, image: str
) -> None:
    folder = shared_data / "seg" / "single_and_multiframe"
    scan = read_series(tuple((folder / image).glob("*.dcm")), Repair())
    assert_equals_nrrd(read(folder / "seg" / "label.seg", scan), folder / "nrrd" / "label.nrrd")
