"""RTSTRUCT: contours filled on the slices of their image."""

import contextlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from pydicom.dataset import Dataset

from pancseg.dicom.labels import EDGES_AT_ONCE, fill, read_rtstruct
from pancseg.dicom.series import Repair, Scan
from pancseg.errors import Refused
from pancseg.structures import Label, LabelMap
from tests.tiny_labels import at, damaged, scan_of, structures, voxels, write_contours

OBLIQUE = (0.936293, 0.275096, -0.218351, -0.289629, 0.956425, -0.036957)
SIZE = (14, 16)  # rows, columns
Points = Sequence[tuple[float, float]]
SQUARE: Points = [(1.5, 2.5), (7.5, 2.5), (7.5, 8.5), (1.5, 8.5)]  # columns 2 to 7, rows 3 to 8
HOLE: Points = [(3.5, 4.5), (5.5, 4.5), (5.5, 6.5), (3.5, 6.5)]  # columns 4 and 5, rows 5 and 6


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    """Six slices of 14 rows and 16 columns."""
    return scan_of(tmp_path / "ct", count=6, size=SIZE)


def on(k: float, pixels: Points) -> list[tuple[float, ...]]:
    """Points of a slice given as column and row, LPS mm."""
    return [at(k, column, row) for column, row in pixels]


def box(columns: range, rows: range, k: int) -> list[list[int]]:
    return [[column, row, k] for column in columns for row in rows]


FILLED = box(range(2, 8), range(3, 9), 2)  # by SQUARE on slice 2
RING = [voxel for voxel in FILLED if voxel not in box(range(4, 6), range(5, 7), 2)]


def read(file: Path, scan: Scan, *labels: Sequence[Label]) -> LabelMap:
    assert scan.stack is not None
    label = read_rtstruct(file, scan.stack, structures(*labels))
    assert label.unknown_values == ()
    assert label.image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(label.image.affine, scan.image.affine)
    assert label.image.shape == scan.image.shape
    return label


def filled(tmp_path: Path, scan: Scan, *contours: Any) -> list[list[int]]:
    """Voxels of contours of one ROI."""
    return voxels(read(write_contours(tmp_path / "rt", {"Pancreas": contours}), scan).image)


def refusal(file: Path, scan: Scan, *labels: Sequence[Label]) -> Refused:
    assert scan.stack is not None
    with pytest.raises(Refused) as refused:
        read_rtstruct(file, scan.stack, structures(*labels))
    assert "\n" not in str(refused.value)
    return refused.value


def moved(points: Points, columns: float, rows: float = 0) -> Points:
    return [(column + columns, row + rows) for column, row in points]


TRACED_SQUARE: Points = [(2, 3), (7, 3), (7, 8), (2, 8)]  # by OpenCV: through pixel centres
ISLAND = box(range(9, 15), range(6, 12), 2)
WHOLE: Points = [(-1.5, -1.5), (16.5, -1.5), (16.5, 14.5), (-1.5, 14.5)]


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
    ids=[
        "centres",
        "hole",
        "keyhole",
        "islands",
        "copies",
        "traced_copies",
        "whole",
        "line",
        "none",
    ],
)
def test_pixels_whose_centre_is_inside_are_filled(
    tmp_path: Path, scan: Scan, contours: list[Points], expected: list[list[int]]
) -> None:
    for geometry in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
        rois = {"Pancreas": [on(2, contour) for contour in contours]}
        label = read(write_contours(tmp_path / "rt", rois, geometry=geometry), scan)
        assert (voxels(label.image), label.flags) == (expected, ())


def test_neighbours_share_no_pixel_and_leave_none(tmp_path: Path, scan: Scan) -> None:
    left = [(1.5, 3), (6, 3), (5, 8), (1.5, 8)]  # the border between them is on pixel centres
    right = [(6, 3), (9.5, 3), (9.5, 8), (5, 8)]
    found = [filled(tmp_path, scan, on(2, part)) for part in (left, right)]
    assert sorted(found[0] + found[1]) == box(range(2, 10), range(3, 8), 2)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ((2,), FILLED), (("pancreas",), FILLED), ((15776009,), FILLED),
        (("Pancreatic structure",), FILLED), (("pancreas", 3), FILLED), (("Empty",), []),
    ],
)  # fmt: skip
def test_rois_are_chosen_by_number_name_or_code_and_united(
    tmp_path: Path, scan: Scan, choice: Sequence[Label], expected: list[list[int]]
) -> None:
    rois = {
        "Body": [on(1, SQUARE)],
        "Pancreas": [on(2, SQUARE)],
        "Hole": [on(2, HOLE)],
        "Empty": [],
    }
    codes = {"Pancreas": ("15776009", "Pancreatic structure")}
    mask = read(write_contours(tmp_path / "rt", rois, codes=codes), scan, choice)
    assert voxels(mask.image) == expected


def test_of_structures_that_overlap_the_later_one_wins(tmp_path: Path, scan: Scan) -> None:
    file = write_contours(tmp_path / "rt", {"Tumour": [on(2, HOLE)], "Body": [on(2, SQUARE)]})
    codes = np.asarray(read(file, scan, ("body", "tumour"), ("tumour",)).image.dataobj)
    assert np.argwhere(codes == 2).tolist() == box(range(4, 6), range(5, 7), 2)
    assert np.argwhere(codes > 0).tolist() == box(range(2, 8), range(3, 9), 2)
    codes = np.asarray(read(file, scan, ("tumour",), ("body",)).image.dataobj)
    assert np.unique(codes).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("labels", "code"), [((), "ambiguous_roi"), ((("spleen",),), "no_such_roi")]
)
def test_names_of_rois_are_not_quoted_in_a_reason(
    tmp_path: Path, scan: Scan, labels: tuple[Sequence[Label], ...], code: str
) -> None:
    file = write_contours(tmp_path / "rt", {"Liver of DOE JOHN": [], "Pancreas": []})
    refused = refusal(file, scan, *labels)
    assert (refused.code, "DOE" in str(refused)) == (code, False)
    assert refused.names == ("1 Liver of DOE JOHN", "2 Pancreas")


@pytest.mark.parametrize("geometry", ["POINT", "OPEN_PLANAR"])
def test_contours_that_are_not_closed_fill_nothing(
    tmp_path: Path, scan: Scan, geometry: str
) -> None:
    file = write_contours(tmp_path / "rt", {"Pancreas": [on(2.4, SQUARE)]}, geometry=geometry)
    assert voxels(read(file, scan).image) == []


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
TRACED: list[Points] = [
    [(6, 13)],
    [(12, 12), (15, 12)],
    [(9, 11), (9, 12), (8, 13), (9, 12)],
    [(1, 11), (0, 12), (1, 13), (2, 13), (4, 11), (3, 12), (2, 11)],
    [(12, 8), (11, 9), (12, 10), (13, 9)],
    [(11, 9), (12, 8), (13, 9), (12, 10)],
    [(12, 3), (11, 4), (13, 6), (15, 4), (14, 3)],
    [(12, 4), (13, 3), (14, 4), (13, 5)],
    [(13, 1)],
    [(1, 1), (1, 9), (9, 9), (9, 1)],
    [(1, 2), (2, 1), (8, 1), (9, 2), (9, 8), (8, 9), (2, 9), (1, 8)],
    [(3, 3), (3, 7), (7, 7), (7, 3)],
    [(3, 4), (4, 3), (6, 3), (7, 4), (7, 6), (6, 7), (4, 7), (3, 6)],
    [(5, 5)],
]


def every_pixel(contour: Points) -> Points:
    """The same contour by CHAIN_APPROX_NONE: with all pixels between its points."""
    pixels = []
    for start, end in zip(contour, [*contour[1:], contour[0]], strict=True):
        count = int(np.abs(np.subtract(end, start)).max())
        pixels += np.linspace(start, end, max(count, 1), endpoint=False).tolist()
    return pixels


@pytest.mark.parametrize("method", [list, every_pixel], ids=["simple", "none"])
@pytest.mark.parametrize("error_mm", [0, 0.005])  # where coordinates are rounded to 0.01 mm
def test_a_mask_traced_by_opencv_comes_back_voxel_for_voxel(
    tmp_path: Path, scan: Scan, method: Callable[[Points], Points], error_mm: float
) -> None:
    mask = np.array([[mark == "#" for mark in row] for row in TRACED_MASK.split()]).T
    contours = [np.array(on(2, method(contour))) for contour in TRACED]
    for contour in contours:
        contour += np.random.default_rng(0).choice([-error_mm, error_mm], contour.shape)
    found = filled(tmp_path, scan, *contours)
    assert found == [[*place, 2] for place in np.argwhere(mask).tolist()]


@pytest.mark.parametrize("kind", [None, ""])
def test_a_contour_without_type_is_taken_as_closed_and_flagged(
    tmp_path: Path, scan: Scan, kind: str | None
) -> None:
    def damage(dataset: Dataset) -> None:
        contour = dataset.ROIContourSequence[0].ContourSequence[1]
        contour.ContourGeometricType = kind

    rois = {"Pancreas": [on(1, SQUARE), on(2, SQUARE)]}
    label = read(write_contours(tmp_path / "rt", rois, damage=damage), scan)
    assert label.flags == ("contour_type_assumed",)
    assert sorted(voxels(label.image)) == sorted(box(range(2, 8), range(3, 9), 1) + FILLED)


@pytest.mark.parametrize("start", [b"\2\0\0\0", b"\x08\0\x16\0"], ids=["meta", "data"])
def test_a_file_without_preamble_is_read(tmp_path: Path, scan: Scan, start: bytes) -> None:
    file = write_contours(tmp_path / "rt", {"Pancreas": [on(2, SQUARE)]})
    content = file.read_bytes()
    file.write_bytes(content[content.index(start, 128) :])
    assert voxels(read(file, scan).image) == FILLED


@pytest.mark.parametrize(
    ("slices", "flags"), [((1, 2, 3), ()), ((1, 3), ("contour_gaps",)), ((5,), ()), ((), ())]
)
def test_slices_left_out_between_contours_are_flagged(
    tmp_path: Path, scan: Scan, slices: tuple[int, ...], flags: tuple[str, ...]
) -> None:
    file = write_contours(tmp_path / "rt", {"Pancreas": [on(k, SQUARE) for k in slices]})
    assert read(file, scan).flags == flags


@pytest.mark.parametrize("k", [1.76, 2.0, 2.24])
def test_a_contour_within_a_quarter_of_the_step_is_on_its_slice(
    tmp_path: Path, scan: Scan, k: float
) -> None:
    assert filled(tmp_path, scan, on(k, SQUARE)) == FILLED


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (on(2.3, SQUARE), r"off_slice: .* 0\.75 mm from the nearest slice, expected at most 0\.62"),
        (on(-1, SQUARE), r"off_slice: .* 2\.50 mm from the nearest slice"),
        (on(40, SQUARE), r"off_slice: .* 87\.50 mm from the nearest slice"),
        (on(2, SQUARE[:2]) + on(3, SQUARE[2:]), r"off_slice: .* 2\.50 mm .* spans 2\.50 mm"),
        (on(2, moved(SQUARE, 500)), r"label_off_grid: .* 492\.5 pixels beyond the image"),
        (on(2, moved(SQUARE, 0, -9e5)), "label_off_grid: .* pixels beyond the image"),
        (on(2, moved(SQUARE, -12)), r"label_off_grid: .* 10\.5 pixels beyond the image"),
    ],
)
def test_a_contour_beside_the_slices_is_refused_with_numbers(
    tmp_path: Path, scan: Scan, points: Any, reason: str
) -> None:
    file = write_contours(tmp_path / "rt", {"Pancreas": [on(2, SQUARE), points]})
    assert pytest.raises(Refused, match=reason).matches(refusal(file, scan))


def test_random_polygons_are_filled_as_matplotlib_does(tmp_path: Path, scan: Scan) -> None:
    for seed in range(8):
        random = np.random.default_rng(seed)
        angles = np.sort(random.uniform(0, 2 * np.pi, random.integers(3, 40)))
        around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = (7.3, 6.6) + random.uniform(1, 8, (len(angles), 1)) * around
        centres = np.stack(np.indices(SIZE[::-1]), axis=-1).reshape(-1, 2)
        inside = Polygon(points).contains_points(centres).reshape(SIZE[::-1])
        assert inside.any()
        found = filled(tmp_path, scan, on(4, points.tolist()))
        assert found == [[*place, 4] for place in np.argwhere(inside).tolist()]


def test_an_outline_of_thousands_of_edges_is_filled_in_parts() -> None:
    angles = np.linspace(0, 2 * np.pi, 5 * EDGES_AT_ONCE, endpoint=False)
    points = 50 + 40.25 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    column, row = np.indices((100, 101))
    disc = np.hypot(column - 50, row - 50) < 40.25
    np.testing.assert_array_equal(fill([points], (100, 101)), disc)


def test_contours_of_oblique_slices_are_filled_in_their_planes(tmp_path: Path) -> None:
    scan = scan_of(tmp_path / "ct", count=6, size=SIZE, orientation=OBLIQUE)
    row, column = np.reshape(OBLIQUE, (2, 3))
    corner = np.array([-10, -20, 30]) + 2 * 2.5 * np.cross(row, column)
    points = [corner + u * 0.5 * row + v * 0.8 * column for u, v in SQUARE]
    assert filled(tmp_path, scan, points) == FILLED


def test_contours_of_a_tilted_scan_lie_on_its_stored_slices(tmp_path: Path) -> None:
    places = [(0, 1.6 * k, 2.5 * k) for k in range(5)]  # two rows further with each slice
    scan = scan_of(tmp_path / "ct", Repair(tilt=True), positions=places, size=SIZE)
    points = [(0.5 * u, 0.8 * v + 1.6 * 2, 5.0) for u, v in SQUARE]
    image = read(write_contours(tmp_path / "rt", {"Pancreas": [points]}), scan).image
    lps = nib.affines.apply_affine(image.affine, voxels(image)) * [-1, -1, 1]
    expected = [[0.5 * u, 0.8 * v + 3.2, 5.0] for u, v, _ in FILLED]
    np.testing.assert_allclose(lps, expected, atol=1e-6)


def test_numbers_with_more_digits_than_dicom_allows_are_read(tmp_path: Path, scan: Scan) -> None:
    def damage(one: Dataset) -> None:
        contour = one.ROIContourSequence[0].ContourSequence[0]
        contour.ContourData = [f"{value:.20f}" for value in np.ravel(on(2, SQUARE))]

    with pytest.warns(UserWarning, match="exceeds the maximum length of 16"):
        file = write_contours(tmp_path / "rt", {"Pancreas": [on(2, SQUARE)]}, damage=damage)
    assert b"35.00000000000000000000" in file.read_bytes()
    assert voxels(read(file, scan).image) == FILLED


def test_contours_too_long_for_their_type_of_number_are_read(tmp_path: Path, scan: Scan) -> None:
    corners = np.array([*SQUARE, SQUARE[0]])
    along = np.linspace(0, 1, 1501)[:-1, None]
    points = np.vstack([a + along * (b - a) for a, b in pairwise(corners)])
    with pytest.warns(UserWarning, match="exceeds the size of 64 kByte"):
        file = write_contours(tmp_path / "rt", {"Pancreas": [on(2, points)]})
    assert voxels(read(file, scan).image) == FILLED


def with_data(values: Sequence[Any]) -> Callable[[Dataset], None]:
    def damage(one: Dataset) -> None:
        contour = one.ROIContourSequence[0].ContourSequence[0]
        contour.ContourData = values

    return damage


def without_rois(one: Dataset) -> None:
    del one.StructureSetROISequence


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (with_data([1, 2, 3, 4]), "bad_contour"),
        (with_data([1e9, 0, 0] * 3), "bad_contour"),
        (without_rois, "no_rois"),
    ],
)
def test_a_file_with_one_fault_is_refused_with_its_reason(
    tmp_path: Path, scan: Scan, damage: Callable[[Dataset], None], code: str
) -> None:
    file = write_contours(tmp_path / "rt", {"Pancreas": [on(2, SQUARE)]}, damage=damage)
    assert refusal(file, scan).code == code


@pytest.mark.parametrize("word", [b"nan", b"inf", b"x.0"])
def test_points_that_are_nowhere_are_refused(tmp_path: Path, scan: Scan, word: bytes) -> None:
    file = write_contours(tmp_path / "rt", {"Pancreas": [on(2, SQUARE)]})
    content = file.read_bytes()
    assert b"35.0" in content
    file.write_bytes(content.replace(b"35.0", word.ljust(4), 1))
    assert refusal(file, scan).code == ("unreadable" if word == b"x.0" else "bad_contour")


def test_a_damaged_file_is_refused_or_read_and_never_stops_the_batch(
    tmp_path: Path, scan: Scan
) -> None:
    file = write_contours(tmp_path / "rt", {"Pancreas": [on(2, SQUARE), on(3, HOLE)]})
    for one in damaged(file.read_bytes(), every=30, changes=80, places=3, behind=128):
        file.write_bytes(one)
        with contextlib.suppress(Refused):
            read(file, scan)
