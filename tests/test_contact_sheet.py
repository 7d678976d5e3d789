"""Thumbnails and contact sheets: pictures of a case."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform
from PIL import Image

from pancseg.data.manifest import Row
from pancseg.intake import contact_sheet as sheet
from pancseg.intake.contact_sheet import COLOURS, GAP, HEADER, SIDE, thumbnail


def scan(code="RAS", codes=None):
    """Bone at the right, half grey at the front, air elsewhere; 20 x 10 x 3 voxels of 2 mm."""
    hu = np.full((20, 10, 3), -1000, np.int16)
    hu[15:, 4:6] = 1000  # x runs to the right
    hu[9:11, 8:] = 40  # y runs to the front
    label = np.zeros(hu.shape, np.uint8) if codes is None else codes
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(code))
    affine = np.diag([2.0, 2, 2, 1])
    image, mask = (nib.Nifti1Image(v, affine).as_reoriented(turn) for v in (hu, label))
    return image, np.asanyarray(mask.dataobj)


@pytest.mark.parametrize("code", ["RAS", "LPS", "SAR", "IPL"])
def test_the_patients_right_is_on_the_left_and_the_front_above(code):
    pixels = thumbnail(*scan(code))
    assert pixels[SIDE // 2, 10].tolist() == [255, 255, 255]
    assert pixels[SIDE // 2, SIDE - 10].tolist() == [0, 0, 0]
    assert pixels[65, SIDE // 2].tolist() == [127, 127, 127]  # 40 HU, middle of the window
    assert not pixels[:60].any() and not pixels[180:].any()  # 20 mm high in a square of 40 mm


@pytest.mark.parametrize("code", ["RAS", "PIR"])
def test_each_structure_is_outlined_in_its_colour_on_the_fullest_slice(code):
    codes = np.zeros((20, 10, 3), np.uint8)
    codes[3, 3, 0] = 1
    codes[2:9, 2:8, 1] = 1  # 12 pixels a voxel, the right side on the left
    codes[4:6, 4:6, 1] = 2
    pixels = thumbnail(*scan(code, codes))
    for colour, (left, right) in zip(COLOURS, ((11, 18), (14, 16)), strict=False):
        columns = np.flatnonzero((pixels == colour).all(axis=2).any(axis=0))
        assert columns[[0, -1]].tolist() == [12 * left - 2, 12 * right + 1]
    first = (pixels == COLOURS[0]).all(axis=2)
    assert not first[60 + 24 : 60 + 96, 12 * 11 : 12 * 18].any()  # nothing inside, round the lesion


def test_pages_hold_forty_cases_and_those_of_a_longer_sheet_go(tmp_path):
    (tmp_path / "intake_notes.png").touch()
    rows = [Row("p7", f"case-{n:02}", "", "image", "kept", flags="label_cut") for n in range(81)]
    sheet.write_thumbnail(tmp_path / sheet.picture_path("case-00"), *scan())
    pages = sheet.draw_contact_sheet(tmp_path, rows)
    assert [page.name for page in pages] == ["intake.png", "intake_2.png", "intake_3.png"]
    shown = np.asarray(Image.open(pages[0]))[HEADER : HEADER + SIDE, GAP : GAP + SIDE]
    np.testing.assert_array_equal(shown, thumbnail(*scan()))
    sheet.draw_contact_sheet(tmp_path, rows[:40])
    left = sorted(path.name for path in tmp_path.glob("*.png"))
    assert left == ["intake.png", "intake_notes.png"]
