"""SEG and RTSTRUCT on the grid of their image, voxel for voxel, or refused."""

import math
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from pydicom.dataset import Dataset

from pancseg.dicom.labels import read_rtstruct, read_segmentation
from pancseg.dicom.series import Repair, read_series
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
SQUARE = [(1.5, 2.5), (7.5, 2.5), (7.5, 8.5), (1.5, 8.5)]  # columns 2 to 7, rows 3 to 8
HOLE = [(3.5, 4.5), (5.5, 4.5), (5.5, 6.5), (3.5, 6.5)]  # columns 4 and 5, rows 5 and 6


@pytest.fixture
def scan(tmp_path):
    """Five slices of four rows and three columns."""
    return scan_of(tmp_path / "ct")


@pytest.fixture
def wide(tmp_path):
    """Six slices of 14 rows and 16 columns."""
    return scan_of(tmp_path / "ct", count=6, size=SIZE)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "label.dcm"


def label_of(file, scan, *labels):
    reader = read_rtstruct if b"RTSTRUCT" in file.read_bytes() else read_segmentation
    return reader(file, scan.stack, structures(*labels))


def read(file, scan, *labels):
    image = label_of(file, scan, *labels).image
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.affine, scan.image.affine)
    assert image.shape == scan.image.shape
    return image


def refusal(file, scan, *labels):
    with pytest.raises(Refused) as refused:
        label_of(file, scan, *labels)
    assert "\n" not in str(refused.value)
    return refused.value


def codes_of(image):
    codes = np.asarray(image.dataobj)
    return {tuple(place): int(codes[tuple(place)]) for place in voxels(image)}


def once(dataset):
    """Move geometry and position of the only frame to the shared groups."""
    (own,) = dataset.PerFrameFunctionalGroupsSequence
    dataset.SharedFunctionalGroupsSequence[0].update(own)
    dataset.PerFrameFunctionalGroupsSequence = [Dataset()]


@pytest.mark.parametrize("options", [{}, {"shared": False}, {"damage": once}])
def test_geometry_of_a_seg_stands_once_or_in_every_frame(file, scan, options):
    for position in (at(2), at(2, 0.09), at(2, 0, -0.09), at(2.09)):  # rounded
        write_segmentation(file, [Frame(ONE, position)], **options)
        assert voxels(read(file, scan)) == [[0, 0, 2]]


def test_frames_land_on_their_slice_from_half_of_the_largest_fraction_on(file, scan):
    for empty in (at(-30), at(2, 70)):  # empty frames may lie anywhere
        frames = [Frame(DOT, at(3)), Frame(ONE, at(0)), Frame(np.zeros((4, 3)), empty)]
        image = read(write_segmentation(file, frames), scan)
        assert voxels(image) == [[0, 0, 0], [1, 1, 3], [2, 2, 3]]  # column, row, slice
    frames = [Frame([[0, 49, 50], [100, 0, 0], [0] * 3, [0] * 3], at(1))]
    image = read(write_segmentation(file, frames, kind="FRACTIONAL"), scan)
    assert voxels(image) == [[0, 1, 1], [2, 0, 1]]


def test_values_of_a_label_map_are_segment_numbers(file, scan):
    pixels = np.array([[1, 0, 0], [0, 2, 2], [0, 0, 0], [0, 0, 0]])
    segments = {0: ("Background", "125040", "Background"), **BOTH}
    write_segmentation(file, [Frame(pixels, at(1))], kind="LABELMAP", segments=segments)
    expected = {(0, 0, 1): 2, (1, 1, 1): 1, (2, 1, 1): 1}
    assert codes_of(read(file, scan, ("pancreas",), ("liver",))) == expected
    refused = refusal(file, scan, ("background",))  # its number is PixelPaddingValue
    assert refused.code == "no_such_segment"


def test_segments_are_chosen_by_number_label_or_code_and_the_later_structure_wins(file, scan):
    frames = [Frame(DOT, (99.3, 0, 0), 1), Frame(ONE, at(1), 2), Frame(ONE, at(2), 2)]
    write_segmentation(file, frames, segments=BOTH)
    for choice in ((2,), ("PANCREAS",), (15776009,), ("2", "x")):
        assert voxels(read(file, scan, choice)) == [[0, 0, 1], [0, 0, 2]]
    frames = [Frame(ONE, at(1), 2), Frame([[1, 1, 0], *DOT[1:]], at(1), 1)]
    write_segmentation(file, frames, segments=BOTH)
    rest, both = dict.fromkeys([(1, 0, 1), (1, 1, 1), (2, 2, 1)], 1), (0, 0, 1)
    for labels, expected in (
        ([(1, 2)], {both: 1, **rest}),
        ([("liver",), ("pancreas",)], {both: 2, **rest}),
        ([("liver", "pancreas"), (2,)], {both: 2, **rest}),
        ([("spleen",), ("liver",)], dict.fromkeys([both, *rest], 2)),
    ):
        assert codes_of(read(file, scan, *labels)) == expected


@pytest.mark.parametrize(("pixels", "position", "orientation", "spacing"), [
    (np.rot90(DOT, 2), at(2, 2, 3), (-1, 0, 0, 0, -1, 0), SPACING),  # a half turn
    (np.rot90(DOT), at(2, 2, 0), (0, 1, 0, -1, 0, 0), SPACING[::-1]),  # a quarter turn
    (np.array(DOT)[1:3, 1:], at(2, 1, 1), AXIAL, SPACING),
    (np.pad(DOT, ((1, 2), (3, 1))), at(2, -3, -1), AXIAL, SPACING),
])  # fmt: skip
def test_rows_and_columns_may_run_otherwise_as_long_as_pixels_coincide(
    file, scan, pixels, position, orientation, spacing
):
    options = {"orientation": orientation, "pixel_spacing": spacing}
    write_segmentation(file, [Frame(pixels, position)], **options)
    assert voxels(read(file, scan)) == [[1, 1, 2], [2, 2, 2]]


TURNED = (math.cos(0.1), math.sin(0.1), 0, -math.sin(0.1), math.cos(0.1), 0)


@pytest.mark.parametrize(("position", "options", "sentence"), [
    (at(2, 0.5), {}, r"0\.250 mm beside"), (at(2, 0, 0.2), {}, r"0\.160 mm beside"),
    (at(2.5), {}, r"1\.25 mm from the nearest slice"), (at(2, 1), {}, "1 pixels of foreground"),
    (at(2), {"pixel_spacing": (0.9, 0.5)}, r"0\.5000 x 0\.9000 mm, .* 0\.5000 x 0\.8000"),
    (at(2), {"orientation": (1, 0, 0, 0, 0, -1)}, r"turned by 90\.00 degrees"),
    (at(2), {"orientation": TURNED}, r"turned by 5\.73 degrees"),
])  # fmt: skip
def test_pixels_that_are_not_the_images_are_refused(file, scan, position, options, sentence):
    refused = refusal(write_segmentation(file, [Frame(DOT, position)], **options), scan)
    assert pytest.raises(Refused, match=f"label_off_grid: .*{sentence}").matches(refused)


def test_a_label_on_repaired_slices_follows_the_repair(file, tmp_path):
    places = [(0, 0.9 * k, 2.5 * k) for k in (0, 1, 2, 4)]
    square = {"pixel_spacing": (0.9, 0.5)}
    scan = scan_of(tmp_path / "ct", Repair(gaps=True, tilt=True), positions=places, **square)
    frames = [Frame(ONE, place) for place in places]
    image = read(write_segmentation(file, frames, **square), scan)
    ras = nib.affines.apply_affine(image.affine, voxels(image)) * [-1, -1, 1]
    np.testing.assert_allclose(ras[[0, 1, 2, -1]], places, atol=1e-6)


@pytest.mark.parametrize(("keyword", "code"), [
    ("SegmentationType", "bad_segments"), ("SegmentSequence", "bad_segments"),
    ("PerFrameFunctionalGroupsSequence", "no_geometry"),
    ("SegmentIdentificationSequence", "bad_segments"),
])  # fmt: skip
def test_a_seg_with_a_fault_is_refused_with_its_reason(file, scan, keyword, code):
    def damage(dataset):
        frame = dataset.PerFrameFunctionalGroupsSequence[0]
        delattr(dataset if keyword in dataset else frame, keyword)

    write_segmentation(file, [Frame(ONE, at(1))], damage=damage)
    assert refusal(file, scan).code == code


MANY = "single_and_multiframe"


@pytest.mark.parametrize(("image", "seg", "choice", "nrrd", "value"), [
    ("ct", "liver.dcm", "liver", "liver_seg.nrrd", 1),
    ("ct", "partial_overlaps.dcm", 1, "partial_overlaps-1.nrrd", 1),
    ("ct", "partial_overlaps.dcm", "20982000", "partial_overlaps-3.nrrd", 3),
    (f"{MANY}/image", f"{MANY}/seg/label.seg", 1, f"{MANY}/nrrd/label.nrrd", 1),
    (f"{MANY}/multiframe", f"{MANY}/seg/label.seg", 1, f"{MANY}/nrrd/label.nrrd", 1),
])  # fmt: skip
def test_published_segs_equal_their_nrrd(shared_data, image, seg, choice, nrrd, value):
    folder = shared_data / "seg"
    scan = read_series(tuple((folder / image).glob("*.dcm")), Repair())
    theirs = by_simpleitk(folder / nrrd)
    truth = nib.Nifti1Image((np.asarray(theirs.dataobj) == value).astype(np.uint8), theirs.affine)
    assert np.asarray(truth.dataobj).any()
    label = read_segmentation(folder / seg, scan.stack, structures((choice,)))
    assert_same(label.image, truth)


def on(k, pixels):
    """Points of a slice given as column and row, LPS mm."""
    return [at(k, column, row) for column, row in pixels]


def box(columns, rows, k):
    return [[column, row, k] for column in columns for row in rows]


def moved(points, columns, rows=0):
    return [(column + columns, row + rows) for column, row in points]


FILLED = box(range(2, 8), range(3, 9), 2)  # by SQUARE on slice 2
RING = [voxel for voxel in FILLED if voxel not in box(range(4, 6), range(5, 7), 2)]
TRACED_SQUARE = [(2, 3), (7, 3), (7, 8), (2, 8)]  # by OpenCV: through pixel centres
ISLAND = box(range(9, 15), range(6, 12), 2)
WHOLE = [(-1.5, -1.5), (16.5, -1.5), (16.5, 14.5), (-1.5, 14.5)]
COPIES = [SQUARE, [*SQUARE[2:], *SQUARE[:2]], SQUARE[::-1], [*SQUARE, SQUARE[0]]]


def filled(file, scan, *contours, **options):
    return voxels(read(write_contours(file, {"Pancreas": contours}, **options), scan))


@pytest.mark.parametrize(("contours", "expected"), [
    ([SQUARE], FILLED), ([SQUARE, HOLE], RING), ([SQUARE, *COPIES], FILLED),
    ([[*SQUARE, SQUARE[0], *reversed(HOLE), HOLE[-1], SQUARE[0]]], RING),  # keyhole
    ([SQUARE, moved(SQUARE, 7, 3)], FILLED + ISLAND),
    ([TRACED_SQUARE, TRACED_SQUARE, [*TRACED_SQUARE[1:], TRACED_SQUARE[0]]], FILLED),
    ([WHOLE], box(range(16), range(14), 2)),  # reaches beyond the image by less than 2 pixels
    ([SQUARE[:2]], []), ([], []),
])  # fmt: skip
def test_pixels_whose_centre_is_inside_are_filled(file, wide, contours, expected):
    points = [on(2, contour) for contour in contours]
    for geometry in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
        assert filled(file, wide, *points, geometry=geometry) == expected
    assert filled(file, wide, *points, geometry="OPEN_PLANAR") == []


def test_neighbours_share_no_pixel_and_leave_none(file, wide):
    left = [(1.5, 3), (6, 3), (5, 8), (1.5, 8)]  # the border between them is on pixel centres
    right = [(6, 3), (9.5, 3), (9.5, 8), (5, 8)]
    both = filled(file, wide, on(2, left)) + filled(file, wide, on(2, right))
    assert sorted(both) == box(range(2, 10), range(3, 8), 2)


def test_rois_are_chosen_by_number_name_or_code_and_united(file, wide):
    contours = {"Body": on(1, SQUARE), "Pancreas": on(2, SQUARE), "Hole": on(2, HOLE)}
    rois = {**{name: [points] for name, points in contours.items()}, "Empty": []}
    write_contours(file, rois, codes={"Pancreas": ("15776009", "Pancreatic structure")})
    for choice in ((2,), ("Pancreatic structure",), ("pancreas", 3), (15776009,)):
        assert voxels(read(file, wide, choice)) == FILLED
    assert voxels(read(file, wide, ("Empty",))) == []


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
TRACED = [
    [tuple(map(int, point.split(","))) for point in contour.split()]
    for contour in CONTOURS.split("/")
]


def every_pixel(contour):
    """The same contour by CHAIN_APPROX_NONE: with all pixels between its points."""
    pixels = []
    for start, end in pairwise([*contour, contour[0]]):
        count = max(1, np.abs(np.subtract(end, start)).max())
        pixels += np.linspace(start, end, count, endpoint=False).tolist()
    return pixels


@pytest.mark.parametrize("method", [list, every_pixel], ids=["simple", "none"])
@pytest.mark.parametrize("error_mm", [0, 0.005])  # where coordinates are rounded to 0.01 mm
def test_a_mask_traced_by_opencv_comes_back_voxel_for_voxel(file, wide, method, error_mm):
    mask = np.array([[mark == "#" for mark in row] for row in TRACED_MASK.split()]).T
    contours = [np.array(on(2, method(contour))) for contour in TRACED]
    for contour in contours:
        contour += np.random.default_rng(0).choice([-error_mm, error_mm], contour.shape)
    expected = [[*place, 2] for place in np.argwhere(mask).tolist()]
    assert filled(file, wide, *contours) == expected


def test_a_file_without_preamble_is_read_and_slices_between_contours_are_flagged(file, wide):
    content = write_contours(file, {"A": [on(k, SQUARE) for k in (1, 3)]}).read_bytes()
    for start in (b"\2\0\0\0", b"\x08\0\x16\0"):  # of the meta information, of the data set
        file.write_bytes(content[content.index(start, 128) :])
        assert label_of(file, wide).flags == ("contour_gaps",)
    for slices in ((1, 2, 3), (5,), ()):
        write_contours(file, {"A": [on(k, SQUARE) for k in slices]})
        assert label_of(file, wide).flags == ()


@pytest.mark.parametrize(("points", "reason"), [
    (on(2.3, SQUARE), r"off_slice: .* 0\.75 mm from the nearest slice, expected at most 0\.62"),
    (on(40, SQUARE), r"off_slice: .* 87\.50 mm from the nearest slice"),
    (on(2, SQUARE[:2]) + on(3, SQUARE[2:]), r"off_slice: .* 2\.50 mm .* spans 2\.50 mm"),
    (on(2, moved(SQUARE, 0, -9e5)), "label_off_grid: .* pixels beyond the image"),
    (on(2, moved(SQUARE, -12)), r"label_off_grid: .* 10\.5 pixels beyond the image"),
    ([(1e9, 0, 0)] * 3, "bad_contour"),
])  # fmt: skip
def test_a_contour_beside_the_slices_is_refused_with_numbers(file, wide, points, reason):
    refused = refusal(write_contours(file, {"Pancreas": [on(2, SQUARE), points]}), wide)
    assert pytest.raises(Refused, match=reason).matches(refused)


@pytest.mark.parametrize("k", [3.76, 4.0, 4.24])  # a quarter of the step is on the slice
def test_random_polygons_are_filled_as_matplotlib_does(file, wide, k):
    for seed in range(3):
        random = np.random.default_rng(seed)
        angles = np.sort(random.uniform(0, 2 * np.pi, random.integers(3, 40)))
        around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = (7.3, 6.6) + random.uniform(1, 8, (len(angles), 1)) * around
        centres = np.stack(np.indices(SIZE[::-1]), axis=-1).reshape(-1, 2)
        inside = Polygon(points).contains_points(centres).reshape(SIZE[::-1])
        expected = [[*place, 4] for place in np.argwhere(inside).tolist()]
        assert filled(file, wide, on(k, points.tolist())) == expected != []


def with_data(values):
    def damage(dataset):
        dataset.ROIContourSequence[0].ContourSequence[0].ContourData = values

    return damage


@pytest.mark.filterwarnings("ignore:.*exceeds the:UserWarning")
def test_numbers_and_contours_longer_than_dicom_allows_are_read(file, wide):
    digits = with_data([f"{value:.20f}" for value in np.ravel(on(2, SQUARE))])
    assert filled(file, wide, on(2, SQUARE), damage=digits) == FILLED
    corners = np.array([*SQUARE, SQUARE[0]])
    points = np.vstack([np.linspace(*ends, 1500, endpoint=False) for ends in pairwise(corners)])
    assert filled(file, wide, on(2, points)) == FILLED


@pytest.mark.parametrize(("word", "code"), [
    (b"nan ", "bad_contour"), (b"x.0 ", "unreadable"), (b"1\\2 ", "bad_contour")
])  # fmt: skip
def test_contours_of_other_than_three_numbers_a_point_are_refused(file, wide, word, code):
    content = write_contours(file, {"A": [on(2, SQUARE)]}).read_bytes()
    assert b"35.0" in content
    file.write_bytes(content.replace(b"35.0", word, 1))
    assert refusal(file, wide).code == code
