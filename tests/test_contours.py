"""RTSTRUCT: contours filled at pixel centres on the slices they were drawn on, or refused."""

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

from pancseg.errors import Refused
from pancseg.intake.dicom.stack import Repair
from pancseg.intake.found import Choice, Mask, Reading, Scan
from pancseg.intake.labels.contours import EDGES_AT_ONCE, filled, read_contours
from tests.tiny_labels import at, damaged, scan_of, voxels, write_contours

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


def read(file: Path, scan: Scan, choice: Choice = None) -> Mask:
    mask = read_contours(file, Reading(choice), scan)
    assert mask.undeclared == ()
    assert mask.image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.image.affine, scan.image.affine)
    assert mask.image.shape == scan.image.shape
    return mask


def drawn(tmp_path: Path, scan: Scan, *contours: Any) -> list[list[int]]:
    """Voxels of contours of one ROI."""
    return voxels(read(write_contours(tmp_path / "rt", {"Pancreas": contours}), scan).image)


def refusal(file: Path, scan: Scan, choice: Choice = None) -> Refused:
    with pytest.raises(Refused) as refused:
        read_contours(file, Reading(choice), scan)
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
    left = [(2, 3), (6, 3), (5, 8), (2, 8)]  # corners on pixel centres
    right = [(6, 3), (9, 3), (9, 8), (5, 8)]
    found = [drawn(tmp_path, scan, on(2, part)) for part in (left, right)]
    whole = box(range(2, 9), range(3, 8), 2)
    assert sorted(found[0] + found[1]) == whole


def test_several_chosen_rois_are_united(tmp_path: Path, scan: Scan) -> None:
    rois = {"Head": [on(2, SQUARE)], "Other": [on(3, SQUARE)], "Tail": [on(2, HOLE)]}
    mask = read(write_contours(tmp_path / "rt", rois), scan, ("head", 3))
    assert voxels(mask.image) == box(range(2, 8), range(3, 9), 2)


@pytest.mark.parametrize("choice", [(2,), ("pancreas",), (15776009,), ("Pancreatic structure",)])
def test_an_roi_is_chosen_by_number_name_or_code(
    tmp_path: Path, scan: Scan, choice: Choice
) -> None:
    rois = {"Body": [on(1, SQUARE)], "Pancreas": [on(2, SQUARE)]}
    codes = {"Pancreas": ("15776009", "Pancreatic structure")}
    mask = read(write_contours(tmp_path / "rt", rois, codes=codes), scan, choice)
    assert voxels(mask.image) == box(range(2, 8), range(3, 9), 2)


@pytest.mark.parametrize(
    ("choice", "code"), [(None, "ambiguous_roi"), (("spleen",), "no_such_roi")]
)
def test_an_unclear_choice_is_refused_with_what_there_is(
    tmp_path: Path, scan: Scan, choice: Choice, code: str
) -> None:
    file = write_contours(tmp_path / "rt", {"Body": [], "Pancreas": []})
    refused = refusal(file, scan, choice)
    assert (refused.code, "1 Body, 2 Pancreas" in str(refused)) == (code, True)


def test_an_roi_without_contours_is_an_empty_mask(tmp_path: Path, scan: Scan) -> None:
    assert drawn(tmp_path, scan) == []


@pytest.mark.parametrize("geometry", ["POINT", "OPEN_PLANAR"])
def test_what_is_not_closed_fills_nothing(tmp_path: Path, scan: Scan, geometry: str) -> None:
    file = write_contours(tmp_path / "rt", {"Pancreas": [on(2.4, SQUARE)]}, geometry=geometry)
    assert voxels(read(file, scan).image) == []


def test_two_points_enclose_nothing(tmp_path: Path, scan: Scan) -> None:
    assert drawn(tmp_path, scan, on(2, SQUARE[:2])) == []


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
        (on(2, SQUARE[:2]) + on(3, SQUARE[2:]), r"2\.50 mm .* leans over 2\.50 mm"),
    ],
    ids=["between", "below", "above", "leaning"],
)
def test_a_contour_on_no_slice_is_refused_with_numbers(
    tmp_path: Path, scan: Scan, points: Any, sentence: str
) -> None:
    file = write_contours(tmp_path / "rt", {"Pancreas": [on(2, SQUARE), points]})
    with pytest.raises(Refused, match=sentence) as refused:
        read_contours(file, Reading(), scan)
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
    ends = np.hstack([points, np.roll(points, -1, axis=0)])
    ends = np.where(ends[:, [1]] > ends[:, [3]], ends[:, [2, 3, 0, 1]], ends)
    column, row = np.indices((100, 101))
    disc = np.hypot(column - 50, row - 50) < 40.25
    np.testing.assert_array_equal(filled(ends, (100, 101)), disc)


def test_contours_of_oblique_slices_are_filled_in_their_planes(tmp_path: Path) -> None:
    oblique = (0.936293, 0.275096, -0.218351, -0.289629, 0.956425, -0.036957)
    scan = scan_of(tmp_path / "ct", count=6, size=SIZE, orientation=oblique)
    row, column = np.reshape(oblique, (2, 3))
    corner = np.array([-10, -20, 30]) + 2 * 2.5 * np.cross(row, column)
    points = [corner + u * 0.5 * row + v * 0.8 * column for u, v in SQUARE]
    assert drawn(tmp_path, scan, points) == box(range(2, 8), range(3, 9), 2)


def test_contours_of_a_tilted_scan_lie_on_its_stored_slices(tmp_path: Path) -> None:
    places = [(0, 1.6 * k, 2.5 * k) for k in range(5)]  # two rows further with each slice
    reading = Reading(repair=Repair(tilt=True))
    scan = scan_of(tmp_path / "ct", positions=places, size=SIZE, reading=reading)
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


def test_an_image_that_is_no_dicom_has_no_slices_for_contours(tmp_path: Path, scan: Scan) -> None:
    refused = refusal(write_contours(tmp_path / "rt", {"Pancreas": []}), Scan(scan.image))
    assert refused.code == "label_needs_dicom"
    assert "convert the label to NIfTI" in str(refused)


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
            read_contours(file, Reading(), scan)
