"""Coarse to fine: only the part that holds the organ is looked at closely, and all of the organ."""

from typing import cast

import nibabel as nib
import numpy as np
import pytest

from pancseg.data.transforms import Preprocessing
from pancseg.geometry import spacing_of
from pancseg.inference import region
from pancseg.inference.own_grid import OwnGrid
from pancseg.inference.region import first_look, look_coarse_to_fine
from pancseg.inference.whole_case import WholeCase
from tests.test_whole_case import AFFINES, Bright, scan, whole

PATCHES = Preprocessing("RAS", (1.5, 1.5, 1.5), (-200.0, 200.0), None)
VIEW = {"size": [32, 32, 32], "overlap": 0.25}
SHAPE = (100, 90, 120)


def asked(case: WholeCase) -> int:
    return cast(Bright, case.windows.segmenter).asked


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_all_of_the_organ_is_found_with_fewer_windows(affine: np.ndarray) -> None:
    image, organ = scan(SHAPE, affine)
    everything, close = whole(None, PATCHES, VIEW), whole(None, PATCHES, VIEW)
    expected = everything.probability(image) > 0.5
    looked = OwnGrid(SHAPE, image.affine, [look_coarse_to_fine(close, image)]).probability() > 0.5
    assert 2 * (looked & organ).sum() / (looked.sum() + organ.sum()) > 0.97
    assert 2 * (looked & expected).sum() / (looked.sum() + expected.sum()) > 0.97
    assert asked(close) < 0.8 * asked(everything)


def test_the_box_has_a_margin_and_is_no_smaller_than_a_window() -> None:
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    hu = np.full(SHAPE, 0, np.int16)
    hu[48:54, 40:46, 60:64] = 180  # 12 x 12 x 12 mm
    box = first_look(whole(None, PATCHES, VIEW), nib.Nifti1Image(hu, affine))
    assert box is not None
    for part, lows, mm in zip(box, (48, 40, 60), spacing_of(affine), strict=True):
        assert (lows - part.start) * mm >= region.MARGIN_MM - 2 * region.COARSE_MM
        assert (part.stop - part.start) * mm >= 32 * 1.5


def test_a_region_that_cuts_the_organ_is_made_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    image, organ = scan(SHAPE, np.diag([2.0, 2.0, 3.0, 1.0]))
    monkeypatch.setattr(region, "ROUNDS", 8)
    tight = (slice(45, 55), slice(40, 50), slice(55, 65))  # in the middle of the organ
    monkeypatch.setattr(region, "first_look", lambda case, image: tight)
    pieces = look_coarse_to_fine(whole(None, PATCHES, VIEW), image)
    found = OwnGrid(SHAPE, image.affine, [pieces]).probability() > 0.5
    assert 2 * (found & organ).sum() / (found.sum() + organ.sum()) > 0.97


def test_where_nothing_is_seen_from_afar_the_whole_scan_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, organ = scan(SHAPE, np.diag([2.0, 2.0, 3.0, 1.0]))
    monkeypatch.setattr(region, "PRESENT", 2.0)
    pieces = look_coarse_to_fine(whole(None, PATCHES, VIEW), image)
    found = OwnGrid(SHAPE, image.affine, [pieces]).probability() > 0.5
    assert 2 * (found & organ).sum() / (found.sum() + organ.sum()) > 0.97
