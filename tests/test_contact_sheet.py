"""Thumbnails and contact sheets: what a person sees of a case."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image
from scipy import ndimage

from pancseg.data.manifest import Row
from pancseg.intake.contact_sheet import (
    COLOURS,
    FRAME,
    GAP,
    HEADER,
    SIDE,
    draw_contact_sheet,
    picture_path,
    text_lines,
    thumbnail,
    write_thumbnail,
)

WARNING = (255, 179, 71)


def scan(code: str = "RAS") -> nib.Nifti1Image:
    """Bone at the right, half grey at the front, air elsewhere; 20 x 10 x 3 voxels of 2 mm."""
    hu = np.full((20, 10, 3), -1000, np.int16)
    hu[15:, 4:6] = 1000  # x runs to the right
    hu[9:11, 8:] = 40  # y runs to the front
    image = nib.Nifti1Image(hu, np.diag([2.0, 2, 2, 1]))
    return image.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(code)))


def is_outline(pixels: np.ndarray) -> np.ndarray:
    return (pixels == COLOURS[0]).all(axis=2)


@pytest.mark.parametrize("code", ["RAS", "LPS", "LAS", "SAR", "IPL"])
def test_the_patients_right_is_on_the_left_and_the_front_above(code: str) -> None:
    pixels = thumbnail(scan(code), None)
    assert pixels.shape == (SIDE, SIDE, 3)
    assert pixels[SIDE // 2, 10].tolist() == [255, 255, 255]
    assert pixels[SIDE // 2, SIDE - 10].tolist() == [0, 0, 0]
    assert pixels[65, SIDE // 2].tolist() == [127, 127, 127]  # 40 HU, middle of the window
    assert not pixels[:60].any() and not pixels[180:].any()  # 20 mm high in a square of 40 mm


def test_pixels_are_as_many_mm_down_as_across() -> None:
    image = nib.Nifti1Image(np.full((10, 20, 3), 40, np.int16), np.diag([4.0, 1, 2, 1]))
    shown = thumbnail(image, None)[..., 0] > 0
    assert np.flatnonzero(shown.any(axis=0)).tolist() == list(range(SIDE))
    assert np.flatnonzero(shown.any(axis=1)).tolist() == list(range(60, 180))  # 20 of 40 mm


def test_the_outline_lies_around_the_label_on_its_fullest_slice() -> None:
    mask = np.zeros((20, 10, 3), np.uint8)
    mask[3, 3, 0] = 1
    mask[5:10, 2:4, 2] = 1  # 12 pixels a voxel: columns 120 to 180, rows 132 to 156
    image = scan()
    found = is_outline(thumbnail(image, mask))
    assert np.flatnonzero(found.any(axis=0))[[0, -1]].tolist() == [118, 181]
    assert np.flatnonzero(found.any(axis=1))[[0, -1]].tolist() == [130, 157]
    assert not found[132:156, 120:180].any()
    turned = image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt("PIR")))
    label = nib.Nifti1Image(mask, image.affine).as_reoriented(
        ornt_transform(io_orientation(image.affine), axcodes2ornt("PIR"))
    )
    again = thumbnail(turned, np.asanyarray(label.dataobj))
    np.testing.assert_array_equal(again, thumbnail(image, mask))


def test_each_structure_has_an_outline_of_its_own_colour() -> None:
    codes = np.zeros((20, 10, 3), np.uint8)
    codes[2:9, 2:8, 1] = codes[14:17, 2:6, 1] = 1  # 12 pixels a voxel, the right side on the left
    codes[4:6, 4:6, 1] = 2
    pixels = thumbnail(scan(), codes)
    first, second = ((pixels == colour).all(axis=2) for colour in COLOURS[:2])
    assert np.flatnonzero(second.any(axis=0))[[0, -1]].tolist() == [12 * 14 - 2, 12 * 16 + 1]
    assert second.sum() > 4 * 24 and first.sum() > 4 * 24
    inner = ndimage.binary_fill_holes(second)
    assert not (first & inner).any()  # the organ has no outline around the lesion in it
    alone = thumbnail(scan(), (codes > 0).astype(np.uint8))
    np.testing.assert_array_equal(first, is_outline(alone))


def test_a_label_of_one_small_voxel_is_still_outlined() -> None:
    image = nib.Nifti1Image(np.zeros((600, 500, 2), np.int16), np.diag([0.6, 0.6, 1, 1]))
    mask = np.zeros((600, 500, 2), np.uint8)
    mask[301, 251, 1] = 1
    assert is_outline(thumbnail(image, mask)).sum() >= 8
    assert not is_outline(thumbnail(image, np.zeros_like(mask))).any()


def test_a_thumbnail_comes_back_from_its_file_and_equal_ones_are_equal_files(
    tmp_path: Path,
) -> None:
    pixels = thumbnail(scan(), None)
    for name in ("a.png", "b.png"):
        write_thumbnail(tmp_path / name, scan(), None)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), pixels)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def rows(count: int, flags: str = "") -> list[Row]:
    return [
        Row(f"patient-{n}", f"case-{n}", "", "image", "kept", flags=flags, label_ml=20.5)
        for n in range(count)
    ]


def names(pages: list[Path]) -> list[str]:
    return [page.name for page in pages]


def test_pages_hold_forty_cases_and_those_of_a_longer_sheet_go(tmp_path: Path) -> None:
    other = tmp_path / "intake_notes.png"
    other.touch()
    assert names(draw_contact_sheet(tmp_path, rows(81))) == [
        *("intake.png", "intake_2.png", "intake_3.png")
    ]
    assert names(draw_contact_sheet(tmp_path, rows(40))) == ["intake.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["intake.png", "intake_notes.png"]
    assert draw_contact_sheet(tmp_path, []) == []
    assert list(tmp_path.iterdir()) == [other]


def test_a_picture_keeps_its_pixels(tmp_path: Path) -> None:
    write_thumbnail(tmp_path / picture_path("case-0"), scan(), None)
    (page,) = draw_contact_sheet(tmp_path, rows(3))
    sheet = np.asarray(Image.open(page).convert("RGB"))
    shown = sheet[HEADER : HEADER + SIDE, GAP : GAP + SIDE]
    np.testing.assert_array_equal(shown, thumbnail(scan(), None))


@pytest.mark.parametrize(
    ("flags", "framed"),
    [("", False), ("unlabelled phantom", False), ("label_cut", True), ("phantom label_cut", True)],
)
def test_a_frame_marks_what_to_look_at_but_not_what_somebody_chose(
    flags: str, framed: bool, tmp_path: Path
) -> None:
    (page,) = draw_contact_sheet(tmp_path, rows(1, flags=flags))
    sheet = np.asarray(Image.open(page).convert("RGB"))
    left = sheet[HEADER + SIDE // 2, GAP - FRAME // 2 + 1]
    assert (tuple(left.tolist()) == WARNING) == framed
    is_orange = sheet[..., 0].astype(int) - sheet[..., 2] > 60
    assert is_orange.any() == framed


def test_equal_tiles_give_equal_bytes(tmp_path: Path) -> None:
    (page,) = draw_contact_sheet(tmp_path, rows(3, flags="label_cut"))
    before = page.read_bytes()
    page.unlink()
    draw_contact_sheet(tmp_path, rows(3, flags="label_cut"))
    assert page.read_bytes() == before


def test_volumes_of_several_structures_are_written_in_full() -> None:
    row = Row("patient", "case", "", "image", "kept", flags="phantom")
    row.structures_ml = "pancreas=82.100 tumour=4.500"
    assert [line for line, _ in text_lines(row)][1:] == ["pancreas:82.1ml tumour:4.5ml", "phantom"]
    row.structures_ml, row.flags = "", "label_volume:pancreas label_cut phantom"
    assert [line for line, _ in text_lines(row)][1:] == [
        "label_volume:pancreas",
        "label_cut",
        "phantom",
    ]


def test_strange_names_and_many_flags_stay_inside_their_tile(tmp_path: Path) -> None:
    """Nothing is drawn into the gap between two tiles; no warning for letters the font lacks."""
    strange = "漢字$x_1$\n\udcff" + 50 * "long-"
    flags, volumes = " ".join(["label_outside_body"] * 9), 50 * "organ=20.5 "
    row = Row(strange, strange, "", "image", "kept", flags=flags, structures_ml=volumes)
    (page,) = draw_contact_sheet(tmp_path, [row, row])
    sheet = np.asarray(Image.open(page).convert("RGB")).astype(int)
    between = sheet[HEADER + SIDE + FRAME :, GAP + SIDE + 1 : 2 * GAP + SIDE - 1]
    assert np.abs(between - sheet[-1, -1]).max() == 0
