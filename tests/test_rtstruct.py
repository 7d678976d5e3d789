"""RTSTRUCT: contours filled on the slices of their image, and written from masks."""

import contextlib
import csv
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon
from pydicom.dataset import Dataset
from scipy import ndimage

from pancseg.dicom import rtstruct
from pancseg.dicom.rtstruct import EDGES_AT_ONCE, fill, read_rtstruct
from pancseg.dicom.series import read_series
from pancseg.dicom.slices import Repair
from pancseg.errors import Refused
from pancseg.intake.types import Scan
from pancseg.output.dicom_rtstruct import write_rtstruct
from pancseg.output.pixel_borders import pixel_borders
from pancseg.structures import Label, LabelMap
from tests.conftest import Command
from tests.other_software import errors_of
from tests.tiny_labels import (
    FIRST,
    GAP_MM,
    SPACING,
    at,
    damaged,
    scan_of,
    structures,
    voxels,
    write_contours,
)

OBLIQUE = (0.936293, 0.275096, -0.218351, -0.289629, 0.956425, -0.036957)
SIZE = (14, 16)  # rows, columns
SQUARE = [(1.5, 2.5), (7.5, 2.5), (7.5, 8.5), (1.5, 8.5)]  # columns 2 to 7, rows 3 to 8
HOLE = [(3.5, 4.5), (5.5, 4.5), (5.5, 6.5), (3.5, 6.5)]  # columns 4 and 5, rows 5 and 6
Points = Sequence[tuple[float, float]]


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    """Six slices of 14 rows and 16 columns."""
    return scan_of(tmp_path / "ct", count=6, size=SIZE)


def on(k: float, pixels: Points) -> list[tuple[float, ...]]:
    """Points of a slice given as column and row, LPS mm."""
    return [at(k, column, row) for column, row in pixels]


def box(columns: range, rows: range, k: int) -> list[list[int]]:
    return [[column, row, k] for column in columns for row in rows]


def read(file: Path, scan: Scan, *labels: Sequence[Label]) -> LabelMap:
    assert scan.stack is not None
    label = read_rtstruct(file, scan.stack, structures(*labels))
    assert label.unknown_values == ()
    assert label.image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(label.image.affine, scan.image.affine)
    assert label.image.shape == scan.image.shape
    return label


def drawn(tmp_path: Path, scan: Scan, *contours: Any) -> list[list[int]]:
    """Voxels of contours of one ROI."""
    return voxels(read(write_contours(tmp_path / "rt", {"Pancreas": contours}), scan).image)


def refusal(file: Path, scan: Scan, *labels: Sequence[Label]) -> Refused:
    assert scan.stack is not None
    with pytest.raises(Refused) as refused:
        read_rtstruct(file, scan.stack, structures(*labels))
    assert "\n" not in str(refused.value)
    return refused.value


def test_pixels_whose_centre_is_inside_are_filled(tmp_path: Path, scan: Scan) -> None:
    assert drawn(tmp_path, scan, on(2, SQUARE)) == box(range(2, 8), range(3, 9), 2)


@pytest.mark.parametrize("geometry", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_a_contour_within_another_is_a_hole(tmp_path: Path, scan: Scan, geometry: str) -> None:
    rois = {"Pancreas": [on(2, SQUARE), on(2, HOLE)]}
    found = voxels(read(write_contours(tmp_path / "rt", rois, geometry=geometry), scan).image)
    hole = box(range(4, 6), range(5, 7), 2)
    assert found == [voxel for voxel in box(range(2, 8), range(3, 9), 2) if voxel not in hole]


def test_a_keyhole_is_a_hole(tmp_path: Path, scan: Scan) -> None:
    bridge = [*SQUARE, SQUARE[0], *reversed(HOLE), HOLE[-1], SQUARE[0]]
    both = drawn(tmp_path, scan, on(2, SQUARE), on(2, HOLE))
    assert drawn(tmp_path, scan, on(2, bridge)) == both


def test_islands_of_one_slice_are_all_filled(tmp_path: Path, scan: Scan) -> None:
    other = [(column + 7, row + 3) for column, row in SQUARE]
    found = drawn(tmp_path, scan, on(1, SQUARE), on(1, other))
    assert found == box(range(2, 8), range(3, 9), 1) + box(range(9, 15), range(6, 12), 1)


@pytest.mark.parametrize(
    "copy",
    [SQUARE, SQUARE[2:] + SQUARE[:2], SQUARE[::-1], [*SQUARE, SQUARE[0]]],
    ids=["same", "begun_elsewhere", "other_way_round", "closed"],
)
def test_copies_of_a_contour_count_once(tmp_path: Path, scan: Scan, copy: Points) -> None:
    found = drawn(tmp_path, scan, on(2, SQUARE), on(2, copy))
    assert found == box(range(2, 8), range(3, 9), 2)


def test_neighbours_share_no_pixel_and_leave_none(tmp_path: Path, scan: Scan) -> None:
    left = [(1.5, 3), (6, 3), (5, 8), (1.5, 8)]  # the border between them is on pixel centres
    right = [(6, 3), (9.5, 3), (9.5, 8), (5, 8)]
    found = [drawn(tmp_path, scan, on(2, part)) for part in (left, right)]
    whole = box(range(2, 10), range(3, 8), 2)
    assert sorted(found[0] + found[1]) == whole


def test_several_chosen_rois_are_united(tmp_path: Path, scan: Scan) -> None:
    rois = {"Head": [on(2, SQUARE)], "Other": [on(3, SQUARE)], "Tail": [on(2, HOLE)]}
    mask = read(write_contours(tmp_path / "rt", rois), scan, ("head", 3))
    assert voxels(mask.image) == box(range(2, 8), range(3, 9), 2)


@pytest.mark.parametrize("choice", [(2,), ("pancreas",), (15776009,), ("Pancreatic structure",)])
def test_an_roi_is_chosen_by_number_name_or_code(
    tmp_path: Path, scan: Scan, choice: Sequence[Label]
) -> None:
    rois = {"Body": [on(1, SQUARE)], "Pancreas": [on(2, SQUARE)]}
    codes = {"Pancreas": ("15776009", "Pancreatic structure")}
    mask = read(write_contours(tmp_path / "rt", rois, codes=codes), scan, choice)
    assert voxels(mask.image) == box(range(2, 8), range(3, 9), 2)


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


def test_each_observation_is_read_once_however_many_rois_there_are(
    tmp_path: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    rois = {f"R{n}": [] for n in range(50)}
    codes = dict.fromkeys(rois, ("15776009", "Pancreas"))
    file = write_contours(tmp_path / "rt", rois, codes=codes)
    read, names_of_codes = [], rtstruct.names_of_codes
    monkeypatch.setattr(rtstruct, "names_of_codes", lambda c: read.append(1) or names_of_codes(c))
    assert refusal(file, scan, ("spleen",)).code == "no_such_roi"
    assert len(read) == 50


def test_an_roi_without_contours_is_an_empty_mask(tmp_path: Path, scan: Scan) -> None:
    assert drawn(tmp_path, scan) == []


@pytest.mark.parametrize("geometry", ["POINT", "OPEN_PLANAR"])
def test_what_is_not_closed_fills_nothing(tmp_path: Path, scan: Scan, geometry: str) -> None:
    file = write_contours(tmp_path / "rt", {"Pancreas": [on(2.4, SQUARE)]}, geometry=geometry)
    assert voxels(read(file, scan).image) == []


def test_two_points_enclose_nothing(tmp_path: Path, scan: Scan) -> None:
    assert drawn(tmp_path, scan, on(2, SQUARE[:2])) == []


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
    found = drawn(tmp_path, scan, *contours)
    assert found == [[*place, 2] for place in np.argwhere(mask).tolist()]


def test_copies_of_a_traced_contour_count_once(tmp_path: Path, scan: Scan) -> None:
    square = [(2, 3), (7, 3), (7, 8), (2, 8)]
    found = drawn(tmp_path, scan, on(2, square), on(2, square), on(2, square[1:] + square[:1]))
    assert found == box(range(2, 8), range(3, 9), 2)


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
    whole = [box(range(2, 8), range(3, 9), k) for k in (1, 2)]
    assert sorted(voxels(label.image)) == sorted(whole[0] + whole[1])


@pytest.mark.parametrize("start", [b"\2\0\0\0", b"\x08\0\x16\0"], ids=["meta", "data"])
def test_a_file_without_preamble_is_read(tmp_path: Path, scan: Scan, start: bytes) -> None:
    file = write_contours(tmp_path / "rt", {"Pancreas": [on(2, SQUARE)]})
    content = file.read_bytes()
    file.write_bytes(content[content.index(start, 128) :])
    assert voxels(read(file, scan).image) == box(range(2, 8), range(3, 9), 2)


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
    assert drawn(tmp_path, scan, on(k, SQUARE)) == box(range(2, 8), range(3, 9), 2)


@pytest.mark.parametrize(
    ("points", "sentence"),
    [
        (on(2.3, SQUARE), r"0\.75 mm from the nearest slice, expected at most 0\.62 mm"),
        (on(-1, SQUARE), r"2\.50 mm from the nearest slice"),
        (on(40, SQUARE), r"87\.50 mm from the nearest slice"),
        (on(2, SQUARE[:2]) + on(3, SQUARE[2:]), r"2\.50 mm .* spans 2\.50 mm"),
    ],
    ids=["between", "below", "above", "leaning"],
)
def test_a_contour_on_no_slice_is_refused_with_numbers(
    tmp_path: Path, scan: Scan, points: Any, sentence: str
) -> None:
    file = write_contours(tmp_path / "rt", {"Pancreas": [on(2, SQUARE), points]})
    with pytest.raises(Refused, match=sentence) as refused:
        read(file, scan)
    assert refused.value.code == "contour_off_slice"


def test_what_reaches_beyond_the_image_is_cut_off(tmp_path: Path, scan: Scan) -> None:
    around = [(-1.5, -1.5), (SIZE[1] + 0.5, -1.5), (SIZE[1] + 0.5, SIZE[0] + 0.5)]
    whole = [*around, (-1.5, SIZE[0] + 0.5)]
    assert len(drawn(tmp_path, scan, on(2, whole))) == SIZE[0] * SIZE[1]


@pytest.mark.parametrize("move", [(500, 0), (0, -9e5), (-12, 0)])
def test_a_contour_that_lies_beyond_the_image_is_of_another_one(
    tmp_path: Path, scan: Scan, move: tuple[float, float]
) -> None:
    beside = [(column + move[0], row + move[1]) for column, row in SQUARE]
    with pytest.raises(Refused, match="pixels beyond the image") as refused:
        drawn(tmp_path, scan, on(2, beside))
    assert refused.value.code == "label_off_grid"


@pytest.mark.parametrize("seed", range(8))
def test_random_polygons_are_filled_as_matplotlib_does(
    tmp_path: Path, scan: Scan, seed: int
) -> None:
    random = np.random.default_rng(seed)
    angles = np.sort(random.uniform(0, 2 * np.pi, random.integers(3, 40)))
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = (7.3, 6.6) + random.uniform(1, 8, (len(angles), 1)) * around
    centres = np.stack(np.indices(SIZE[::-1]), axis=-1).reshape(-1, 2)
    inside = Polygon(points).contains_points(centres).reshape(SIZE[::-1])
    assert inside.any()
    found = drawn(tmp_path, scan, on(4, points.tolist()))
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
    assert drawn(tmp_path, scan, points) == box(range(2, 8), range(3, 9), 2)


def test_contours_of_a_tilted_scan_lie_on_its_stored_slices(tmp_path: Path) -> None:
    places = [(0, 1.6 * k, 2.5 * k) for k in range(5)]  # two rows further with each slice
    scan = scan_of(tmp_path / "ct", Repair(tilt=True), positions=places, size=SIZE)
    points = [(0.5 * u, 0.8 * v + 1.6 * 2, 5.0) for u, v in SQUARE]
    image = read(write_contours(tmp_path / "rt", {"Pancreas": [points]}), scan).image
    lps = nib.affines.apply_affine(image.affine, voxels(image)) * [-1, -1, 1]
    expected = [[0.5 * u, 0.8 * v + 3.2, 5.0] for u, v, _ in box(range(2, 8), range(3, 9), 2)]
    np.testing.assert_allclose(lps, expected, atol=1e-6)


def test_numbers_with_more_digits_than_dicom_allows_are_read(tmp_path: Path, scan: Scan) -> None:
    def damage(one: Dataset) -> None:
        contour = one.ROIContourSequence[0].ContourSequence[0]
        contour.ContourData = [f"{value:.20f}" for value in np.ravel(on(2, SQUARE))]

    with pytest.warns(UserWarning, match="exceeds the maximum length of 16"):
        file = write_contours(tmp_path / "rt", {"Pancreas": [on(2, SQUARE)]}, damage=damage)
    assert b"35.00000000000000000000" in file.read_bytes()
    assert voxels(read(file, scan).image) == box(range(2, 8), range(3, 9), 2)


def test_contours_too_long_for_their_type_of_number_are_read(tmp_path: Path, scan: Scan) -> None:
    corners = np.array([*SQUARE, SQUARE[0]])
    along = np.linspace(0, 1, 1501)[:-1, None]
    points = np.vstack([a + along * (b - a) for a, b in pairwise(corners)])
    with pytest.warns(UserWarning, match="exceeds the size of 64 kByte"):
        file = write_contours(tmp_path / "rt", {"Pancreas": [on(2, points)]})
    assert voxels(read(file, scan).image) == box(range(2, 8), range(3, 9), 2)


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


@pytest.mark.parametrize("word", [b"nan", b"inf", b"1e9", b"x.0"])
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


def picture(*rows: str) -> np.ndarray:
    """A mask ``(columns, rows)`` drawn with ``#``."""
    return np.array([[mark == "#" for mark in row] for row in rows]).T


def filled_by_matplotlib(outlines: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """How many outlines have each pixel's centre inside, by matplotlib."""
    centres = np.stack(np.indices(shape), axis=-1).reshape(-1, 2)
    inside = [Polygon(outline).contains_points(centres).reshape(shape) for outline in outlines]
    return np.sum(inside, axis=0) if inside else np.zeros(shape, int)


def area_of(outlines: list[np.ndarray]) -> float:
    """By the shoelace formula; a hole counts less for it is walked round the other way."""
    areas = []
    for x, y in (outline.T for outline in outlines):
        areas.append(x @ np.roll(y, -1) - y @ np.roll(x, -1))
    return sum(areas) / 2


def written(tmp_path: Path, scan: Scan, values: np.ndarray) -> Dataset:
    """The structure set of a mask of a scan, read back."""
    image = nib.Nifti1Image(values.astype(np.uint8), scan.image.affine)
    assert scan.stack is not None
    write_rtstruct(tmp_path / "rt.dcm", image, scan.stack)
    return pydicom.dcmread(tmp_path / "rt.dcm")


def contours_of(one: Dataset) -> list[np.ndarray]:
    """Points of each contour, LPS mm."""
    items = one.ROIContourSequence[0].get("ContourSequence") or []
    return [np.reshape(item.ContourData, (-1, 3)).astype(float) for item in items]


def read_back(tmp_path: Path, scan: Scan) -> np.ndarray:
    return np.asarray(read(tmp_path / "rt.dcm", scan).image.dataobj)


def test_one_pixel_has_its_four_corners() -> None:
    (outline,) = pixel_borders(picture("...", ".#.", "..."))
    assert sorted(outline.tolist()) == [[0.5, 0.5], [0.5, 1.5], [1.5, 0.5], [1.5, 1.5]]


def test_a_mask_that_fills_the_frame_has_the_frames_corners() -> None:
    (outline,) = pixel_borders(np.ones((5, 3), bool))
    assert sorted(outline.tolist()) == [[-0.5, -0.5], [-0.5, 2.5], [4.5, -0.5], [4.5, 2.5]]


def test_no_mask_has_no_outline() -> None:
    assert pixel_borders(np.zeros((4, 4), bool)) == []


def test_a_ring_is_one_outline_that_enters_its_hole_and_leaves_it_the_same_way() -> None:
    ring = picture("....", "###.", "#.#.", "###.")
    (outline,) = pixel_borders(ring)
    around = [(2.5, 0.5), (2.5, 3.5), (-0.5, 3.5), (-0.5, 1.5)]
    hole = [(0.5, 1.5), (0.5, 2.5), (1.5, 2.5), (1.5, 1.5)]
    expected = [*around, *hole, (-0.5, 1.5), (-0.5, 0.5)]
    start = expected.index((outline[0][0], outline[0][1]))
    assert [tuple(point) for point in outline.tolist()] == expected[start:] + expected[:start]
    assert area_of([outline]) == 8


def test_pieces_that_touch_at_a_corner_are_two_outlines() -> None:
    outlines = pixel_borders(picture("#.", ".#"))
    assert sorted(map(len, outlines)) == [4, 4]
    assert [outline.mean(axis=0).tolist() for outline in outlines] == [[0, 0], [1, 1]]


def test_an_island_within_a_hole_is_an_outline_of_its_own() -> None:
    rows = ["#######", "#.....#", "#.###.#", "#.#.#.#", "#.###.#", "#.....#", "#######"]
    outlines = pixel_borders(picture(*rows))
    assert sorted(area_of([outline]) for outline in outlines) == [8, 24]
    np.testing.assert_array_equal(filled_by_matplotlib(outlines, (7, 7)), picture(*rows))


def test_holes_side_by_side_and_holes_that_touch_at_a_corner_are_all_joined() -> None:
    mask = picture("#######", "#.#.#.#", "##.##.#", "#######")
    (outline,) = pixel_borders(mask)
    assert area_of([outline]) == mask.sum()
    np.testing.assert_array_equal(filled_by_matplotlib([outline], (7, 4)), mask)


@pytest.mark.parametrize("seed", range(10))
def test_random_masks_come_back_with_their_pieces_and_their_area(seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(25):
        mask = random.random(random.integers(1, 15, 2)) < random.uniform(0.1, 0.98)
        outlines = pixel_borders(mask)
        np.testing.assert_array_equal(filled_by_matplotlib(outlines, mask.shape), mask)
        assert len(outlines) == ndimage.label(mask)[1]
        assert area_of(outlines) == mask.sum()


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, 1, 0), OBLIQUE])
def test_random_masks_of_a_scan_come_back_from_its_contours(
    tmp_path: Path, orientation: tuple[float, ...]
) -> None:
    scan = scan_of(tmp_path / "ct", count=20, size=(14, 16), orientation=orientation)
    random = np.random.default_rng(5)
    values = random.random(scan.image.shape) < random.uniform(0, 1, 20)
    written(tmp_path, scan, values)
    np.testing.assert_array_equal(read_back(tmp_path, scan), values)


def test_a_voxel_of_a_slice_is_a_square_around_its_centre_on_that_image(tmp_path: Path) -> None:
    scan = scan_of(tmp_path / "ct")
    values = np.zeros(scan.image.shape)
    values[2, 1, 3] = 1
    one = written(tmp_path, scan, values)
    (points,) = contours_of(one)
    centre = np.array(FIRST) + [2 * SPACING[1], SPACING[0], 3 * GAP_MM]
    half = np.array([SPACING[1], SPACING[0], 0]) / 2
    corners = [centre + half * sign for sign in ((1, -1, 0), (1, 1, 0), (-1, 1, 0), (-1, -1, 0))]
    np.testing.assert_allclose(points, corners)
    (contour,) = one.ROIContourSequence[0].ContourSequence
    assert (contour.ContourGeometricType, contour.NumberOfContourPoints) == ("CLOSED_PLANAR", 4)
    (image,) = contour.ContourImageSequence
    headers = {str(h.SOPInstanceUID): h for h in map(pydicom.dcmread, (tmp_path / "ct").iterdir())}
    assert headers[image.ReferencedSOPInstanceUID].ImagePositionPatient[2] == centre[2]
    assert "ReferencedFrameNumber" not in image


def test_it_says_whose_organ_on_which_images_by_whom(tmp_path: Path) -> None:
    def known(slices: list[Dataset]) -> None:
        for one in slices:
            one.SpecificCharacterSet, one.PatientName = "ISO_IR 100", "Müller^Ann"
            one.StudyID, one.PatientSex, one.AccessionNumber = "S-7", "F", "A-9"
            one.StudyInstanceUID = slices[0].StudyInstanceUID

    scan = scan_of(tmp_path / "ct", damage=known)
    headers = [pydicom.dcmread(file) for file in (tmp_path / "ct").iterdir()]
    one = written(tmp_path, scan, np.ones(scan.image.shape))
    for name in ("PatientName", "PatientID", "PatientSex", "StudyID", "AccessionNumber",
                 "StudyInstanceUID", "FrameOfReferenceUID"):  # fmt: skip
        assert one[name].value == headers[0][name].value
    assert one.PatientBirthDate == one.ReferringPhysicianName == ""
    assert one.SeriesInstanceUID != headers[0].SeriesInstanceUID
    (frame,) = one.ReferencedFrameOfReferenceSequence
    (study,) = frame.RTReferencedStudySequence
    (series,) = study.RTReferencedSeriesSequence
    assert frame.FrameOfReferenceUID == headers[0].FrameOfReferenceUID
    assert study.ReferencedSOPInstanceUID == headers[0].StudyInstanceUID
    assert series.SeriesInstanceUID == headers[0].SeriesInstanceUID
    listed = [image.ReferencedSOPInstanceUID for image in series.ContourImageSequence]
    assert sorted(listed) == sorted(header.SOPInstanceUID for header in headers)
    (roi,), (seen,) = one.StructureSetROISequence, one.RTROIObservationsSequence
    assert (roi.ROIName, roi.ROIGenerationAlgorithm) == ("Pancreas", "AUTOMATIC")
    assert (seen.RTROIInterpretedType, seen.ReferencedROINumber) == ("ORGAN", roi.ROINumber)
    (code,) = seen.RTROIIdentificationCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("15776009", "SCT")
    assert one.ApprovalStatus == "UNAPPROVED"


def test_no_mask_is_a_roi_without_contours(tmp_path: Path) -> None:
    scan = scan_of(tmp_path / "ct")
    one = written(tmp_path, scan, np.zeros(scan.image.shape))
    assert len(one.StructureSetROISequence) == len(one.ROIContourSequence) == 1
    assert "ContourSequence" not in one.ROIContourSequence[0]
    assert not read_back(tmp_path, scan).any()
    assert errors_of(tmp_path / "rt.dcm") == []


def test_a_validator_sees_what_is_missing(tmp_path: Path) -> None:
    scan = scan_of(tmp_path / "ct")
    one = written(tmp_path, scan, np.ones(scan.image.shape))
    del one.StructureSetLabel
    one.save_as(tmp_path / "less.dcm")
    assert any("StructureSetLabel" in line for line in errors_of(tmp_path / "less.dcm"))


def test_numbers_far_from_the_scanners_centre_have_at_most_16_characters(tmp_path: Path) -> None:
    first = (-99_999.123456, 99_999.654321, -99_999.111111)
    scan = scan_of(tmp_path / "ct", first=first, orientation=OBLIQUE)
    values = np.zeros(scan.image.shape)
    values[1, 1:3, 2] = 1
    one = written(tmp_path, scan, values)
    raw = one.ROIContourSequence[0].ContourSequence[0].ContourData
    assert max(len(value.original_string) for value in raw) <= 16
    np.testing.assert_array_equal(read_back(tmp_path, scan), values)


def test_an_outline_too_long_for_an_explicit_length_is_written_whole(tmp_path: Path) -> None:
    scan = scan_of(tmp_path / "ct", count=3, size=(120, 120))
    values = np.zeros(scan.image.shape)
    values[..., 1] = np.random.default_rng(0).random((120, 120)) < 0.7
    one = written(tmp_path, scan, values)
    assert max(contour.size for contour in contours_of(one)) * 4 > 2**16  # bytes at the least
    np.testing.assert_array_equal(read_back(tmp_path, scan), values)


def test_contours_on_a_multi_frame_file_name_their_frames(tmp_path: Path) -> None:
    def complete(slices: list[Dataset]) -> None:
        for one in slices:
            one.StudyInstanceUID, one.SliceThickness = slices[0].StudyInstanceUID, 2.5
            one.PatientBirthDate = one.PatientSex = one.AccessionNumber = one.StudyID = ""
            one.StudyDate = one.StudyTime = one.ReferringPhysicianName = ""
            one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]

    scan_of(tmp_path / "single", damage=complete)
    singles = [pydicom.dcmread(file) for file in (tmp_path / "single").iterdir()]
    singles.sort(key=lambda one: -one.ImagePositionPatient[2])  # from the head, against the stack
    file = tmp_path / "frames.dcm"
    highdicom.legacy.LegacyConvertedEnhancedCTImage(
        singles, highdicom.UID(), 2, highdicom.UID(), 1
    ).save_as(file)
    volume = read_series((file,), Repair())
    scan = Scan(volume.image, volume.stack)
    values = np.zeros(scan.image.shape)
    values[1, 1, 3] = values[2, 2, 0] = 1
    one = written(tmp_path, scan, values)
    groups = pydicom.dcmread(file).PerFrameFunctionalGroupsSequence
    contours = one.ROIContourSequence[0].ContourSequence
    named = [item.ContourImageSequence[0].ReferencedFrameNumber for item in contours]
    for number, points in zip(named, contours_of(one), strict=True):
        position = groups[number - 1].PlanePositionSequence[0].ImagePositionPatient
        assert set(points[:, 2].tolist()) == {float(position[2])}
    assert sorted(named) == [2, 5]
    np.testing.assert_array_equal(read_back(tmp_path, scan), values)


def test_a_repaired_series_is_refused_for_nothing_lies_on_its_images(tmp_path: Path) -> None:
    places = [(0, 0, 2.5 * k) for k in (0, 1, 2, 4)]
    scan = scan_of(tmp_path / "ct", Repair(gaps=True), positions=places)
    with pytest.raises(Refused, match="rtstruct_repaired: the series was interpolated"):
        written(tmp_path, scan, np.ones(scan.image.shape))
    assert not (tmp_path / "rt.dcm").exists()


def rows_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))


@pytest.fixture
def series(dicom: Path) -> Path:
    """One phantom's images."""
    return next(path for path in sorted((dicom / "images").iterdir()) if path.is_dir())


def words(trained: Path, scans: Path) -> list[str]:
    best = trained / "checkpoints" / "best.ckpt"
    return [f"checkpoint={best}", f"input={scans}", "output=out"]


def test_it_is_written_only_where_asked_for_and_a_batch_goes_on_for_it(
    trained: Path, series: Path, command: Command
) -> None:
    assert command("predict", *words(trained, series)).code == 0
    (row,) = rows_of(Path("out"))
    file = Path("out") / f"{row['case']}_pancreas_rtstruct.dcm"
    assert not file.exists()
    assert command("predict", *words(trained, series), "rtstruct=true").code == 0
    content = file.read_bytes()
    assert command("predict", *words(trained, series), "rtstruct=true").code == 0
    assert file.read_bytes() == content  # UIDs would be new ones


def test_emptied_uids_and_unforeseen_headers_cost_seg_and_rtstruct_alone(
    trained: Path, series: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(series, tmp_path / "in")
    for path in (tmp_path / "in").iterdir():
        header = pydicom.dcmread(path)
        header.StudyInstanceUID = ""
        header.save_as(path)
    assert command("predict", *words(trained, tmp_path / "in"), "rtstruct=true").code == 0
    (row,) = rows_of(Path("out"))
    told = "the series has no StudyInstanceUID to refer to"
    assert row["reason"] == f"seg_no_uid: {told}; rtstruct_no_uid: {told}"
    assert row["flags"].split()[-2:] == ["no_seg", "no_rtstruct"]
    assert not list(Path("out").glob("*.dcm"))
    preview = Path("out") / f"{row['case']}_preview.png"
    before = preview.stat().st_mtime_ns
    assert command("predict", *words(trained, tmp_path / "in"), "rtstruct=true").code == 0
    assert preview.stat().st_mtime_ns == before  # it is done as far as it can be

    def unhappy(*given: Any) -> None:
        raise ValueError("a value of a header")

    monkeypatch.setattr("pancseg.applying.scan_files.write_rtstruct", unhappy)
    out = ["output=more", "rtstruct=true"]
    assert command("predict", *words(trained, series)[:2], *out).code == 0
    (row,) = rows_of(Path("more"))
    assert row["reason"] == "rtstruct_failed: ValueError: a value of a header"
    assert row["flags"].split()[-1] == "no_rtstruct"
