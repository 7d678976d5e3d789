"""SEG and RTSTRUCT on the grid of their image, voxel for voxel, or refused."""

import math

import nibabel as nib
import numpy as np
import pytest
from matplotlib.path import Path as Polygon

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
    return scan_of(tmp_path / "ct")


@pytest.fixture
def wide(tmp_path):
    return scan_of(tmp_path / "ct", count=6, size=SIZE)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "label.dcm"


def read(file, scan, *labels):
    reader = read_rtstruct if b"RTSTRUCT" in file.read_bytes() else read_segmentation
    image = reader(file, scan.stack, structures(*labels)).image
    assert (image.shape, image.get_data_dtype()) == (scan.image.shape, np.uint8)
    np.testing.assert_array_equal(image.affine, scan.image.affine)
    return image


def codes_of(image):
    codes = np.asarray(image.dataobj)
    return {tuple(place): int(codes[tuple(place)]) for place in voxels(image)}


def test_frames_land_on_their_slice_from_half_of_the_largest_fraction_on(file, scan):
    rounded, outside = at(2.09, 0.09, -0.09), at(-30)  # empty frames may lie anywhere
    frames = [Frame(DOT, at(3)), Frame(ONE, rounded), Frame(np.zeros((4, 3)), outside)]
    image = read(write_segmentation(file, frames), scan)
    assert voxels(image) == [[0, 0, 2], [1, 1, 3], [2, 2, 3]]  # column, row, slice
    frames = [Frame([[0, 49, 50], [100, 0, 0], [0] * 3, [0] * 3], at(1))]
    image = read(write_segmentation(file, frames, kind="FRACTIONAL"), scan)
    assert voxels(image) == [[0, 1, 1], [2, 0, 1]]


def test_values_of_a_label_map_are_segment_numbers(file, scan):
    frame = Frame([[1, 0, 0], [0, 2, 2], [0, 0, 0], [0, 0, 0]], at(1))
    write_segmentation(file, [frame], kind="LABELMAP", segments=BOTH)
    expected = {(0, 0, 1): 2, (1, 1, 1): 1, (2, 1, 1): 1}
    assert codes_of(read(file, scan, ("pancreas",), ("liver",))) == expected


def test_where_segments_overlap_the_later_structure_wins(file, scan):
    frames = [Frame(ONE, at(1), 2), Frame([[1, 1, 0], *DOT[1:]], at(1), 1)]
    write_segmentation(file, frames, segments=BOTH)
    rest, both = dict.fromkeys([(1, 0, 1), (1, 1, 1), (2, 2, 1)], 1), (0, 0, 1)
    assert codes_of(read(file, scan, (1, 2))) == {both: 1, **rest}
    assert codes_of(read(file, scan, ("liver",), ("pancreas",))) == {both: 2, **rest}


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
    (at(2, 0.5), {}, r"0\.250 mm beside"), (at(2, 1), {}, "1 pixels of foreground"),
    (at(2), {"pixel_spacing": (0.9, 0.5)}, r"0\.5000 x 0\.9000 mm, .* 0\.5000 x 0\.8000"),
    (at(2), {"orientation": TURNED}, r"turned by 5\.73 degrees"),
])  # fmt: skip
def test_pixels_that_are_not_the_images_are_refused(file, scan, position, options, sentence):
    write_segmentation(file, [Frame(DOT, position)], **options)
    with pytest.raises(Refused, match=f"label_off_grid: .*{sentence}"):
        read(file, scan)


@pytest.mark.parametrize(("image", "seg", "choice", "nrrd", "value"), [
    ("ct", "liver.dcm", "liver", "liver_seg.nrrd", 1),
    ("ct", "partial_overlaps.dcm", "20982000", "partial_overlaps-3.nrrd", 3),
    ("multiframe", "seg/label.seg", 1, "nrrd/label.nrrd", 1),
])  # fmt: skip
def test_published_segs_equal_their_nrrd(shared_data, image, seg, choice, nrrd, value):
    folder = shared_data / "seg" / ("single_and_multiframe" if image == "multiframe" else "")
    scan = read_series(tuple((folder / image).glob("*.dcm")), Repair())
    theirs = by_simpleitk(folder / nrrd)
    truth = nib.Nifti1Image((np.asarray(theirs.dataobj) == value).astype(np.uint8), theirs.affine)
    assert np.asarray(truth.dataobj).any()
    label = read_segmentation(folder / seg, scan.stack, structures((choice,)))
    assert_same(label.image, truth)


def on(k, pixels):
    """Points of a slice given as column and row, LPS mm."""
    return [at(k, column, row) for column, row in pixels]


def box(columns, rows):
    return [[column, row, 2] for column in columns for row in rows]


FILLED = box(range(2, 8), range(3, 9))  # by SQUARE on slice 2
RING = [voxel for voxel in FILLED if voxel not in box(range(4, 6), range(5, 7))]
TRACED_SQUARE = [(2, 3), (7, 3), (7, 8), (2, 8)]  # by OpenCV: through pixel centres
ISLAND = box(range(9, 15), range(6, 12))
OTHER = [(8.5, 5.5), (14.5, 5.5), (14.5, 11.5), (8.5, 11.5)]  # around ISLAND
LEFT = [(1.5, 3), (6, 3), (5, 8), (1.5, 8)]  # the border between them is on pixel centres
RIGHT = [(6, 3), (9.5, 3), (9.5, 8), (5, 8)]
WHOLE = [(-1.5, -1.5), (16.5, -1.5), (16.5, 14.5), (-1.5, 14.5)]
BESIDE = [(-10.5, 2.5), (-4.5, 2.5), (-4.5, 8.5)]
COPIES = [[*SQUARE[2:], *SQUARE[:2]], [*SQUARE, SQUARE[0]][::-1]]


def filled(file, scan, *contours, **options):
    return voxels(read(write_contours(file, {"Pancreas": contours}, **options), scan))


@pytest.mark.parametrize(("contours", "expected"), [
    ([SQUARE], FILLED), ([SQUARE, HOLE], RING), ([SQUARE, *COPIES], FILLED),
    ([[*SQUARE, SQUARE[0], *reversed(HOLE), HOLE[-1], SQUARE[0]]], RING),  # keyhole
    ([SQUARE, OTHER], FILLED + ISLAND),
    ([TRACED_SQUARE, TRACED_SQUARE, [*TRACED_SQUARE[1:], TRACED_SQUARE[0]]], FILLED),
    ([WHOLE], box(range(16), range(14))),  # reaches beyond the image by less than 2 pixels
    ([LEFT, RIGHT], box(range(2, 10), range(3, 8))), ([SQUARE[:2]], []), ([], []),
])  # fmt: skip
def test_pixels_whose_centre_is_inside_are_filled(file, wide, contours, expected):
    points = [on(2, contour) for contour in contours]
    for geometry in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
        assert filled(file, wide, *points, geometry=geometry) == expected
    assert filled(file, wide, *points, geometry="OPEN_PLANAR") == []


def test_rois_are_chosen_by_number_name_or_code_and_united(file, wide):
    rois = {"Body": [on(1, SQUARE)], "Pancreas": [on(2, SQUARE)], "Hole": [on(2, HOLE)]}
    write_contours(file, rois, codes={"Pancreas": ("15776009", "Pancreatic structure")})
    for choice in ((2,), ("pancreas", 3), (15776009,)):
        assert voxels(read(file, wide, choice)) == FILLED


# as cv2.findContours traces it (4.8 and 5.0, RETR_TREE, CHAIN_APPROX_SIMPLE): two rings around a
# pixel, a line, and a diamond whose hole runs along the same pixels in the other direction
TRACED = """
1,1 1,9 9,9 9,1 / 1,2 2,1 8,1 9,2 9,8 8,9 2,9 1,8 / 3,3 3,7 7,7 7,3 / 12,12 15,12 /
3,4 4,3 6,3 7,4 7,6 6,7 4,7 3,6 / 5,5 / 12,8 11,9 12,10 13,9 / 11,9 12,8 13,9 12,10
"""


def test_a_mask_traced_by_opencv_comes_back_voxel_for_voxel(file, wide):
    mask, contours = np.zeros(SIZE[::-1], bool), []
    for start, end, value in ((1, 10, True), (2, 9, False), (3, 8, True), (4, 7, False)):
        mask[start:end, start:end] = value
    mask[5, 5] = mask[12:, 12] = mask[[12, 11, 13, 12], [8, 9, 9, 10]] = True
    for contour in TRACED.split("/"):
        points = on(2, [map(int, point.split(",")) for point in contour.split()])
        error_mm = np.random.default_rng(0).choice([-0.005, 0.005], (len(points), 3))
        contours.append(points + error_mm)  # as rounded to 0.01 mm
    expected = [[*place, 2] for place in np.argwhere(mask).tolist()]
    assert filled(file, wide, *contours) == expected


@pytest.mark.parametrize(("points", "reason"), [
    (on(2.3, SQUARE), r"off_slice: .* 0\.75 mm from the nearest slice, expected at most 0\.62"),
    (on(2, SQUARE[:2]) + on(3, SQUARE[2:]), r"off_slice: .* 2\.50 mm .* spans 2\.50 mm"),
    (on(2, BESIDE), r"label_off_grid: .* 10\.5 pixels beyond the image"),
    ([(1e9, 0, 0)] * 3, "bad_contour"),
])  # fmt: skip
def test_a_contour_beside_the_slices_is_refused_with_numbers(file, wide, points, reason):
    write_contours(file, {"Pancreas": [on(2, SQUARE), points]})
    with pytest.raises(Refused, match=reason):
        read(file, wide)


def test_random_polygons_are_filled_as_matplotlib_does(file, wide):
    for seed, k in enumerate((3.76, 4.0, 4.24)):  # a quarter of the step is on the slice
        random = np.random.default_rng(seed)
        angles = np.sort(random.uniform(0, 2 * np.pi, random.integers(3, 40)))
        around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = (7.3, 6.6) + random.uniform(1, 8, (len(angles), 1)) * around
        centres = np.stack(np.indices(SIZE[::-1]), axis=-1).reshape(-1, 2)
        inside = Polygon(points).contains_points(centres).reshape(SIZE[::-1])
        expected = [[*place, 4] for place in np.argwhere(inside).tolist()]
        assert filled(file, wide, on(k, points.tolist())) == expected != []
