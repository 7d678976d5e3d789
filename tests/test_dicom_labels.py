"""SEG and RTSTRUCT on the grid of their image, voxel for voxel, or refused."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from pydicom.dataset import Dataset

from pancseg.dicom.labels import EDGES_AT_ONCE, fill, read_rtstruct, read_segmentation
from pancseg.dicom.series import Repair, Scan, read_series
from pancseg.errors import Refused
from tests.other_software import assert_same, by_simpleitk
from tests.tiny_dicom import AXIAL
from tests.tiny_labels import (
    LIVER,
    PANCREAS,
    SPACING,
    Frame,
    at,
    scan_of,
    structures,
    voxels,
    write_contours,
    write_segmentation,
)

DOT = [[0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]  # rows x columns: (1, 1) and (2, 2)
ONE = [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
BOTH = {1: LIVER, 2: PANCREAS}
SIZE = (14, 16)  # rows, columns of the image of contours
Points = Sequence[tuple[float, float]]
SQUARE: Points = [(1.5, 2.5), (7.5, 2.5), (7.5, 8.5), (1.5, 8.5)]  # columns 2 to 7, rows 3 to 8
HOLE: Points = [(3.5, 4.5), (5.5, 4.5), (5.5, 6.5), (3.5, 6.5)]  # columns 4 and 5, rows 5 and 6


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    """Five slices of four rows and three columns."""
    return scan_of(tmp_path / "ct")


@pytest.fixture
def wide(tmp_path: Path) -> Scan:
    """Six slices of 14 rows and 16 columns."""
    return scan_of(tmp_path / "ct", count=6, size=SIZE)


def read(file: Path, scan: Scan, *labels: Any, reader: Any = read_segmentation) -> nib.Nifti1Image:
    label = reader(file, scan.stack, structures(*labels))
    assert label.image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(label.image.affine, scan.image.affine)
    assert label.image.shape == scan.image.shape
    return label.image


def refusal(file: Path, scan: Scan, *labels: Any, reader: Any = read_segmentation) -> Refused:
    with pytest.raises(Refused) as refused:
        reader(file, scan.stack, structures(*labels))
    assert "\n" not in str(refused.value)
    return refused.value


def codes_of(image: nib.Nifti1Image) -> dict[tuple[int, ...], int]:
    """Voxels that are not background, with their codes."""
    codes = np.asarray(image.dataobj)
    return {tuple(place): int(codes[tuple(place)]) for place in voxels(image)}


def once(dataset: Dataset) -> None:
    """Move geometry and position of the only frame to the shared groups."""
    (own,) = dataset.PerFrameFunctionalGroupsSequence
    dataset.SharedFunctionalGroupsSequence[0].update(own)
    dataset.PerFrameFunctionalGroupsSequence = [Dataset()]


@pytest.mark.parametrize("options", [{}, {"shared": False}, {"damage": once}])
@pytest.mark.parametrize("position", [at(2), at(2, 0.09), at(2, 0, -0.09), at(2.09)])  # rounded
def test_geometry_of_a_seg_stands_once_or_in_every_frame(tmp_path, scan, options, position):
    file = write_segmentation(tmp_path / "seg", [Frame(ONE, position)], **options)
    assert voxels(read(file, scan)) == [[0, 0, 2]]


@pytest.mark.parametrize("position", [at(-30), at(2, 70)])
def test_pixels_land_on_their_slice_and_empty_frames_may_lie_anywhere(tmp_path, scan, position):
    frames = [Frame(DOT, at(3)), Frame(ONE, at(0)), Frame(np.zeros((4, 3)), position)]
    image = read(write_segmentation(tmp_path / "seg", frames), scan)
    assert voxels(image) == [[0, 0, 0], [1, 1, 3], [2, 2, 3]]  # column, row, slice


def test_half_of_the_largest_fraction_is_foreground(tmp_path, scan):
    frames = [Frame([[0, 49, 50], [100, 0, 0], [0] * 3, [0] * 3], at(1))]
    image = read(write_segmentation(tmp_path / "seg", frames, kind="FRACTIONAL"), scan)
    assert voxels(image) == [[0, 1, 1], [2, 0, 1]]


def test_values_of_a_label_map_are_segment_numbers(tmp_path, scan):
    pixels = np.array([[1, 0, 0], [0, 2, 2], [0, 0, 0], [0, 0, 0]])
    segments = {0: ("Background", "125040", "Background"), **BOTH}
    frames, options = [Frame(pixels, at(1))], {"kind": "LABELMAP", "segments": segments}
    file = write_segmentation(tmp_path / "seg", frames, **options)
    expected = {(0, 0, 1): 2, (1, 1, 1): 1, (2, 1, 1): 1}
    assert codes_of(read(file, scan, ("pancreas",), ("liver",))) == expected
    refused = refusal(file, scan, ("background",))  # its number is PixelPaddingValue
    assert refused.code == "no_such_segment"


def test_a_segment_is_chosen_by_number_label_or_code_alone(tmp_path, scan):
    beside = (99.3, 0, 0)
    frames = [Frame(DOT, beside, 1), Frame(ONE, at(1), 2), Frame(ONE, at(2), 2)]
    file = write_segmentation(tmp_path / "seg", frames, segments=BOTH)
    for choice in ((2,), ("PANCREAS",), (15776009,), ("2", "x")):
        assert voxels(read(file, scan, choice)) == [[0, 0, 1], [0, 0, 2]]


def test_segments_that_overlap_are_united_and_the_later_structure_wins(tmp_path, scan):
    frames = [Frame(ONE, at(1), 2), Frame([[1, 1, 0], *DOT[1:]], at(1), 1)]
    file = write_segmentation(tmp_path / "seg", frames, segments=BOTH)
    rest, both = [(1, 0, 1), (1, 1, 1), (2, 2, 1)], (0, 0, 1)
    for labels, expected in (
        ([(1, 2)], {both: 1, **dict.fromkeys(rest, 1)}),
        ([("liver",), ("pancreas",)], {both: 2, **dict.fromkeys(rest, 1)}),
        ([("liver", "pancreas"), (2,)], {both: 2, **dict.fromkeys(rest, 1)}),
        ([("spleen",), ("liver",)], dict.fromkeys([both, *rest], 2)),
    ):
        assert codes_of(read(file, scan, *labels)) == expected


TURNS: dict[str, tuple[Any, Any, tuple[float, ...], tuple[float, float]]] = {
    "half_turn": (np.rot90(DOT, 2), at(2, 2, 3), (-1, 0, 0, 0, -1, 0), SPACING),
    "quarter_turn": (np.rot90(DOT), at(2, 2, 0), (0, 1, 0, -1, 0, 0), SPACING[::-1]),
    "window": (np.array(DOT)[1:3, 1:], at(2, 1, 1), AXIAL, SPACING),
    "larger": (np.pad(DOT, ((1, 2), (3, 1))), at(2, -3, -1), AXIAL, SPACING),
}


@pytest.mark.parametrize("turn", TURNS)
def test_rows_and_columns_may_run_otherwise_as_long_as_pixels_coincide(tmp_path, scan, turn):
    pixels, position, orientation, spacing = TURNS[turn]
    options = {"orientation": orientation, "pixel_spacing": spacing}
    file = write_segmentation(tmp_path / "seg", [Frame(pixels, position)], **options)
    assert voxels(read(file, scan)) == [[1, 1, 2], [2, 2, 2]]


TURNED = (math.cos(0.1), math.sin(0.1), 0, -math.sin(0.1), math.cos(0.1), 0)
OFF_GRID: list[tuple[dict[str, Any], str]] = [
    ({"position": at(2, 0.5)}, r"0\.250 mm beside"),
    ({"position": at(2, 0, 0.2)}, r"0\.160 mm beside"),
    ({"position": at(2.5)}, r"1\.25 mm from the nearest slice"),
    ({"pixel_spacing": (0.9, 0.5)}, r"0\.5000 x 0\.9000 mm, .* 0\.5000 x 0\.8000"),
    ({"orientation": (1, 0, 0, 0, 0, -1)}, r"turned by 90\.00 degrees"),
    ({"orientation": TURNED}, r"turned by 5\.73 degrees"),
    ({"position": at(2, 1)}, "1 pixels of foreground"),
]


@pytest.mark.parametrize(("options", "sentence"), OFF_GRID)
def test_pixels_that_are_not_the_images_are_refused_with_numbers(tmp_path, scan, options, sentence):
    others = {key: value for key, value in options.items() if key != "position"}
    frames = [Frame(DOT, options.get("position", at(2)))]
    refused = refusal(write_segmentation(tmp_path / "seg", frames, **others), scan)
    assert refused.code == "label_off_grid"
    assert pytest.raises(Refused, match=sentence).matches(refused)


def test_a_label_on_repaired_slices_follows_the_repair(tmp_path):
    places = [(0, 0.9 * k, 2.5 * k) for k in (0, 1, 2, 4)]
    square = {"pixel_spacing": (0.9, 0.5)}
    scan = scan_of(tmp_path / "ct", Repair(gaps=True, tilt=True), positions=places, **square)
    frames = [Frame(ONE, place) for place in places]
    image = read(write_segmentation(tmp_path / "seg", frames, **square), scan)
    ras = nib.affines.apply_affine(image.affine, voxels(image)) * [-1, -1, 1]
    np.testing.assert_allclose(ras[[0, 1, 2, -1]], places, atol=1e-6)


def without(keyword: str) -> Callable[[Dataset], None]:
    return lambda dataset: delattr(dataset, keyword)


def no_identification(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence


FAULTS = [
    (without("SegmentationType"), "bad_segments"),
    (without("SegmentSequence"), "bad_segments"),
    (without("PerFrameFunctionalGroupsSequence"), "no_geometry"),
    (no_identification, "bad_segments"),
]


@pytest.mark.parametrize(("damage", "code"), FAULTS)
def test_a_seg_with_a_fault_is_refused_with_its_reason(tmp_path, scan, damage, code):
    file = write_segmentation(tmp_path / "seg", [Frame(ONE, at(1))], damage=damage)
    assert refusal(file, scan).code == code


PUBLISHED: list[tuple[str, str, Any, str, int]] = [
    ("ct", "liver.dcm", "liver", "liver_seg.nrrd", 1),
    ("ct", "partial_overlaps.dcm", 1, "partial_overlaps-1.nrrd", 1),
    ("ct", "partial_overlaps.dcm", "20982000", "partial_overlaps-3.nrrd", 3),
]
PUBLISHED += [
    (f"single_and_multiframe/{image}", "single_and_multiframe/seg/label.seg", 1, "", 1)
    for image in ("image", "multiframe")
]


@pytest.mark.parametrize(("image", "seg", "choice", "nrrd", "value"), PUBLISHED)
def test_published_segs_equal_their_nrrd(shared_data, image, seg, choice, nrrd, value):
    folder = shared_data / "seg"
    scan = read_series(tuple((folder / image).glob("*.dcm")), Repair())
    theirs = by_simpleitk(folder / (nrrd or "single_and_multiframe/nrrd/label.nrrd"))
    truth = nib.Nifti1Image((np.asarray(theirs.dataobj) == value).astype(np.uint8), theirs.affine)
    assert np.asarray(truth.dataobj).any()
    assert_same(read(folder / seg, scan, (choice,)), truth)


def on(k: float, pixels: Points) -> list[tuple[float, ...]]:
    """Points of a slice given as column and row, LPS mm."""
    return [at(k, column, row) for column, row in pixels]


def box(columns: range, rows: range, k: int) -> list[list[int]]:
    return [[column, row, k] for column in columns for row in rows]


def moved(points: Points, columns: float, rows: float = 0) -> Points:
    return [(column + columns, row + rows) for column, row in points]


FILLED = box(range(2, 8), range(3, 9), 2)  # by SQUARE on slice 2
RING = [voxel for voxel in FILLED if voxel not in box(range(4, 6), range(5, 7), 2)]
TRACED_SQUARE: Points = [(2, 3), (7, 3), (7, 8), (2, 8)]  # by OpenCV: through pixel centres
ISLAND = box(range(9, 15), range(6, 12), 2)
WHOLE: Points = [(-1.5, -1.5), (16.5, -1.5), (16.5, 14.5), (-1.5, 14.5)]


def filled(folder: Path, scan: Scan, *contours: Any, **options: Any) -> list[list[int]]:
    """Voxels of the contours of an ROI."""
    file = write_contours(folder / "rt", {"Pancreas": contours}, **options)
    return voxels(read(file, scan, reader=read_rtstruct))


@pytest.mark.parametrize(
    ("contours", "expected"),
    [
        ([SQUARE], FILLED),
        ([SQUARE, HOLE], RING),
        ([[*SQUARE, SQUARE[0], *reversed(HOLE), HOLE[-1], SQUARE[0]]], RING),  # keyhole
        ([SQUARE, moved(SQUARE, 7, 3)], FILLED + ISLAND),
        ([SQUARE, SQUARE, [*SQUARE[2:], *SQUARE[:2]], SQUARE[::-1], [*SQUARE, SQUARE[0]]], FILLED),
        ([TRACED_SQUARE, TRACED_SQUARE, [*TRACED_SQUARE[1:], TRACED_SQUARE[0]]], FILLED),
        ([WHOLE], box(range(16), range(14), 2)),  # reaches beyond the image by less than 2 pixels
        ([SQUARE[:2]], []),
        ([], []),
    ],
)
def test_pixels_whose_centre_is_inside_are_filled(tmp_path, wide, contours, expected):
    points = [on(2, contour) for contour in contours]
    for geometry in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
        assert filled(tmp_path, wide, *points, geometry=geometry) == expected
    assert filled(tmp_path, wide, *points, geometry="OPEN_PLANAR") == []


def test_neighbours_share_no_pixel_and_leave_none(tmp_path, wide):
    left = [(1.5, 3), (6, 3), (5, 8), (1.5, 8)]  # the border between them is on pixel centres
    right = [(6, 3), (9.5, 3), (9.5, 8), (5, 8)]
    both = filled(tmp_path, wide, on(2, left)) + filled(tmp_path, wide, on(2, right))
    assert sorted(both) == box(range(2, 10), range(3, 8), 2)


def test_rois_are_chosen_by_number_name_or_code_and_united(tmp_path, wide):
    rois = {
        "Body": [on(1, SQUARE)],
        "Pancreas": [on(2, SQUARE)],
        "Hole": [on(2, HOLE)],
        "Empty": [],
    }
    codes = {"Pancreas": ("15776009", "Pancreatic structure")}
    file = write_contours(tmp_path / "rt", rois, codes=codes)
    for choice in ((2,), ("Pancreatic structure",), ("pancreas", 3), (15776009,)):
        assert voxels(read(file, wide, choice, reader=read_rtstruct)) == FILLED
    assert voxels(read(file, wide, ("Empty",), reader=read_rtstruct)) == []


# as cv2.findContours traces it (4.8 and 5.0, RETR_TREE, CHAIN_APPROX_SIMPLE): pixel, lines, holes
# that run along the pixels of their border in the other direction, an island in a hole in a hole
TRACED_MASK = """
................
.#########...#..
.#.......#......
.#.#####.#..###.
.#.#...#.#.##.##
.#.#.#.#.#..###.
.#.#...#.#...#..
.#.#####.#......
.#.......#..#...
.#########.#.#..
............#...
.##.#....#......
####.....#..####
.##...#.#.......
"""
CONTOURS = """
6,13 / 12,12 15,12 / 9,11 9,12 8,13 9,12 / 1,11 0,12 1,13 2,13 4,11 3,12 2,11 /
12,8 11,9 12,10 13,9 / 11,9 12,8 13,9 12,10 / 12,3 11,4 13,6 15,4 14,3 / 12,4 13,3 14,4 13,5 /
13,1 / 1,1 1,9 9,9 9,1 / 1,2 2,1 8,1 9,2 9,8 8,9 2,9 1,8 / 3,3 3,7 7,7 7,3 /
3,4 4,3 6,3 7,4 7,6 6,7 4,7 3,6 / 5,5
"""
TRACED: list[Points] = [
    [(int(point.split(",")[0]), int(point.split(",")[1])) for point in contour.split()]
    for contour in CONTOURS.split("/")
]


def every_pixel(contour: Points) -> Points:
    """The same contour by CHAIN_APPROX_NONE: with all pixels between its points."""
    pixels = []
    for start, end in pairwise([*contour, contour[0]]):
        count = int(np.abs(np.subtract(end, start)).max())
        pixels += np.linspace(start, end, max(count, 1), endpoint=False).tolist()
    return pixels


@pytest.mark.parametrize("method", [list, every_pixel], ids=["simple", "none"])
@pytest.mark.parametrize("error_mm", [0, 0.005])  # where coordinates are rounded to 0.01 mm
def test_a_mask_traced_by_opencv_comes_back_voxel_for_voxel(tmp_path, wide, method, error_mm):
    mask = np.array([[mark == "#" for mark in row] for row in TRACED_MASK.split()]).T
    contours = [np.array(on(2, method(contour))) for contour in TRACED]
    for contour in contours:
        contour += np.random.default_rng(0).choice([-error_mm, error_mm], contour.shape)
    expected = [[*place, 2] for place in np.argwhere(mask).tolist()]
    assert filled(tmp_path, wide, *contours) == expected


def flags_of(file: Path, scan: Scan) -> tuple[str, ...]:
    return read_rtstruct(file, scan.stack, structures()).flags


def test_a_file_without_preamble_is_read_and_slices_left_out_between_contours_are_flagged(
    tmp_path, wide
):
    file = write_contours(tmp_path / "rt", {"Pancreas": [on(k, SQUARE) for k in (1, 3)]})
    content = file.read_bytes()
    for start in (b"\2\0\0\0", b"\x08\0\x16\0"):  # of the meta information, of the data set
        file.write_bytes(content[content.index(start, 128) :])
        assert flags_of(file, wide) == ("contour_gaps",)
    for slices in ((1, 2, 3), (5,), ()):
        file = write_contours(tmp_path / "rt", {"Pancreas": [on(k, SQUARE) for k in slices]})
        assert flags_of(file, wide) == ()


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (on(2.3, SQUARE), r"off_slice: .* 0\.75 mm from the nearest slice, expected at most 0\.62"),
        (on(40, SQUARE), r"off_slice: .* 87\.50 mm from the nearest slice"),
        (on(2, SQUARE[:2]) + on(3, SQUARE[2:]), r"off_slice: .* 2\.50 mm .* spans 2\.50 mm"),
        (on(2, moved(SQUARE, 0, -9e5)), "label_off_grid: .* pixels beyond the image"),
        (on(2, moved(SQUARE, -12)), r"label_off_grid: .* 10\.5 pixels beyond the image"),
    ],
)
def test_a_contour_beside_the_slices_is_refused_with_numbers(tmp_path, wide, points, reason):
    file = write_contours(tmp_path / "rt", {"Pancreas": [on(2, SQUARE), points]})
    refused = refusal(file, wide, reader=read_rtstruct)
    assert pytest.raises(Refused, match=reason).matches(refused)


@pytest.mark.parametrize("k", [3.76, 4.0, 4.24])  # a quarter of the step is on the slice
def test_random_polygons_are_filled_as_matplotlib_does(tmp_path, wide, k):
    for seed in range(3):
        random = np.random.default_rng(seed)
        angles = np.sort(random.uniform(0, 2 * np.pi, random.integers(3, 40)))
        around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = (7.3, 6.6) + random.uniform(1, 8, (len(angles), 1)) * around
        centres = np.stack(np.indices(SIZE[::-1]), axis=-1).reshape(-1, 2)
        inside = Polygon(points).contains_points(centres).reshape(SIZE[::-1])
        expected = [[*place, 4] for place in np.argwhere(inside).tolist()]
        assert filled(tmp_path, wide, on(k, points.tolist())) == expected != []


def test_an_outline_of_thousands_of_edges_is_filled_in_parts():
    angles = np.linspace(0, 2 * np.pi, 5 * EDGES_AT_ONCE, endpoint=False)
    points = 50 + 40.25 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    column, row = np.indices((100, 101))
    np.testing.assert_array_equal(
        fill([points], (100, 101)), np.hypot(column - 50, row - 50) < 40.25
    )


def with_data(values: Sequence[Any]) -> Callable[[Dataset], None]:
    def damage(dataset: Dataset) -> None:
        dataset.ROIContourSequence[0].ContourSequence[0].ContourData = values

    return damage


@pytest.mark.filterwarnings("ignore:.*exceeds the:UserWarning")
def test_numbers_and_contours_longer_than_dicom_allows_are_read(tmp_path, wide):
    digits = with_data([f"{value:.20f}" for value in np.ravel(on(2, SQUARE))])
    assert filled(tmp_path, wide, on(2, SQUARE), damage=digits) == FILLED
    along = np.linspace(0, 1, 1501)[:-1, None]
    corners = pairwise(np.array([*SQUARE, SQUARE[0]]))
    points = np.vstack([a + along * (b - a) for a, b in corners])
    assert filled(tmp_path, wide, on(2, points)) == FILLED


RT_FAULTS = [
    (with_data([1, 2, 3, 4]), "bad_contour"),
    (with_data([1e9, 0, 0] * 3), "bad_contour"),
]


@pytest.mark.parametrize(("damage", "code"), RT_FAULTS)
def test_an_rtstruct_with_a_fault_is_refused_with_its_reason(tmp_path, wide, damage, code):
    file = write_contours(tmp_path / "rt", {"Pancreas": [on(2, SQUARE)]}, damage=damage)
    assert refusal(file, wide, reader=read_rtstruct).code == code


@pytest.mark.parametrize("word", [b"nan ", b"x.0 "])
def test_points_that_are_nowhere_are_refused(tmp_path, wide, word):
    file = write_contours(tmp_path / "rt", {"Pancreas": [on(2, SQUARE)]})
    assert b"35.0" in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(b"35.0", word, 1))
    code = "unreadable" if word == b"x.0 " else "bad_contour"
    assert refusal(file, wide, reader=read_rtstruct).code == code
