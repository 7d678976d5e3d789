"""Repairs: uneven and tilted series put on a regular grid, as an independent resampling does."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from scipy.interpolate import interp1d

from pancseg.errors import Refused
from pancseg.intake.dicom.finding import find_series
from pancseg.intake.dicom.series import read_ct, read_mask_series
from pancseg.intake.dicom.stack import Repair
from pancseg.intake.found import Reading, Scan
from tests.tiny_dicom import AXIAL, write_series

UNEVEN_MM = [0.0, 4.0, 11.0, 12.0, 16.0, 24.0, 28.0]  # gaps of 4, 7, 1, 4, 8 and 4 mm


def read(folder: Path, **repair: bool) -> Scan:
    (series,), _ = find_series(folder)
    return read_ct(series.files, Reading(repair=Repair(**repair)))


def random_pixels(count: int, rows: int = 9, columns: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, (count, rows, columns))


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    positions = [(-10, -20, z) for z in UNEVEN_MM]
    return write_series(tmp_path / "uneven", pixels=random_pixels(7), positions=positions)


def test_uneven_gaps_are_refused_unless_they_may_be_repaired(uneven: Path) -> None:
    with pytest.raises(Refused, match=r"uneven_gaps: gaps go from 1\.00 to 8\.00 mm"):
        read(uneven)
    assert read(uneven, gaps=True).stack.repairs == ("gaps of 1.00 to 8.00 mm, now 4.00 mm",)  # type: ignore[union-attr]


def test_uneven_slices_are_interpolated_as_scipy_interpolates(uneven: Path) -> None:
    image = read(uneven, gaps=True).image
    assert image.shape == (7, 9, 8)
    stored = random_pixels(7).transpose(2, 1, 0)
    expected = interp1d(UNEVEN_MM, stored, axis=-1)(np.arange(0, 29, 4.0))
    np.testing.assert_allclose(image.dataobj, expected, atol=0.5)  # HU are whole numbers
    np.testing.assert_allclose(image.affine[:3, 2], [0, 0, 4.0])
    assert image.affine[2, 3] == 0


def test_a_missing_slice_is_the_mean_of_its_neighbours_and_the_others_are_untouched(
    tmp_path: Path,
) -> None:
    pixels = random_pixels(5)
    positions = [(0, 0, z) for z in (0, 5, 10, 20, 25)]
    image = read(write_series(tmp_path, pixels=pixels, positions=positions), gaps=True).image
    stored, regular = pixels.transpose(2, 1, 0), np.asarray(image.dataobj)
    np.testing.assert_array_equal(regular[..., [0, 1, 2, 4, 5]], stored)
    np.testing.assert_allclose(regular[..., 3], stored[..., 2:4].mean(axis=-1), atol=0.5)


def test_a_gap_that_lacks_too_much_is_refused_even_so(tmp_path: Path) -> None:
    positions = [(0, 0, z) for z in (0, 5, 10, 35, 40)]
    with pytest.raises(Refused, match="missing_slice"):
        read(write_series(tmp_path, positions=positions), gaps=True)


def test_a_mask_is_repaired_by_the_nearest_slice(uneven: Path, tmp_path: Path) -> None:
    drawn = random_pixels(7) > 0
    positions = [(-10, -20, z) for z in UNEVEN_MM]
    write_series(tmp_path / "mask", pixels=drawn.astype(int), positions=positions)
    (series,), _ = find_series(tmp_path / "mask")
    scan = read(uneven, gaps=True)
    mask = read_mask_series(series.files, Reading(choice=None, repair=Repair(gaps=True)), scan)
    assert mask.image.shape == scan.image.shape
    np.testing.assert_allclose(mask.image.affine, scan.image.affine)
    nearest = [0, 1, 2, 3, 4, 4, 5, 6]  # for 0, 4, 8, 12, 16, 20, 24 and 28 mm
    np.testing.assert_array_equal(mask.image.dataobj, drawn.transpose(2, 1, 0)[..., nearest])


def tilted(folder: Path, step: tuple[float, float, float], **options: object) -> Path:
    positions = np.array([-10.0, -20.0, 30.0]) + np.outer(np.arange(6), step)
    return write_series(folder, pixels=random_pixels(6), positions=positions, **options)  # type: ignore[arg-type]


def test_a_tilted_stack_is_refused_unless_it_may_be_repaired(tmp_path: Path) -> None:
    folder = tilted(tmp_path, (0.3, 0.9, 4.0))
    with pytest.raises(Refused, match="gantry_tilt"):
        read(folder)
    assert read(folder, tilt=True).stack.repairs == ("tilt of 13.3 degrees",)  # type: ignore[union-attr]


@pytest.mark.parametrize("step", [(0.3, 0.9, 4.0), (-0.7, -0.2, 4.0), (0.0, -1.1, -4.0)])
def test_a_straightened_stack_is_what_simpleitk_resamples(
    tmp_path: Path, step: tuple[float, float, float]
) -> None:
    image = read(tilted(tmp_path, step), tilt=True).image
    per_mm = np.array(step) / step[2]
    first = np.array([-10.0, -20.0, 30.0]) + (np.array(step) * 5 if step[2] < 0 else 0)
    pixels = random_pixels(6)[:: 1 if step[2] > 0 else -1]
    moving = SimpleITK.GetImageFromArray(pixels.astype(np.float32))
    moving.SetSpacing((0.5, 0.8, 4.0))
    moving.SetOrigin(first.tolist())
    shear = np.eye(3)
    shear[:2, 2] = -per_mm[:2]
    transform = SimpleITK.AffineTransform(3)
    transform.SetMatrix(shear.ravel())
    transform.SetTranslation((per_mm * first[2] * [1, 1, 0]).tolist())
    grid = SimpleITK.Image([int(n) for n in image.shape], SimpleITK.sitkFloat32)
    grid.SetSpacing((0.5, 0.8, 4.0))
    grid.SetOrigin((np.diag([-1, -1, 1]) @ image.affine[:3, 3]).tolist())
    theirs = SimpleITK.Resample(moving, grid, transform, SimpleITK.sitkLinear, -1024.0)
    theirs = SimpleITK.GetArrayFromImage(theirs).T
    inside = np.zeros(image.shape, bool)
    inside[1:-1, 1:-1] = theirs[1:-1, 1:-1] != -1024
    inside &= np.roll(inside, 1, 0) & np.roll(inside, -1, 0)  # borders are a matter of taste
    inside &= np.roll(inside, 1, 1) & np.roll(inside, -1, 1)
    assert inside.sum() > 100
    np.testing.assert_allclose(np.asarray(image.dataobj)[inside], theirs[inside], atol=0.6)
    assert np.asarray(image.dataobj).min() == -1024


def test_every_voxel_of_a_straightened_stack_keeps_its_place(tmp_path: Path) -> None:
    pixels = np.full((6, 9, 7), -1000)
    pixels[4, 6, 3] = 1000
    positions = np.array([-10.0, -20.0, 30.0]) + np.outer(np.arange(6), (0.5, 1.6, 4.0))
    folder = write_series(tmp_path, pixels=pixels, positions=positions)  # whole pixels a slice
    image = read(folder, tilt=True).image
    (index,) = np.argwhere(np.asarray(image.dataobj) == 1000)
    place_lps = positions[4] + [3 * 0.5, 6 * 0.8, 0]
    found = image.affine @ [*index, 1]
    np.testing.assert_allclose(found[:3], place_lps * [-1, -1, 1], atol=1e-6)


def test_tilt_and_gaps_are_repaired_together(tmp_path: Path) -> None:
    z = np.array([0, 4, 8, 16, 20, 24.0])
    positions = np.outer(z, (0.1, 0.3, 1.0))
    folder = write_series(tmp_path, positions=positions, orientation=AXIAL)
    with pytest.raises(Refused):
        read(folder, tilt=True)
    with pytest.raises(Refused):
        read(folder, gaps=True)
    scan = read(folder, gaps=True, tilt=True)
    assert scan.image.shape[2] == 7
    assert len(scan.stack.repairs) == 2  # type: ignore[union-attr]


def test_a_series_that_needs_no_repair_is_left_alone(tmp_path: Path) -> None:
    write_series(tmp_path, pixels=random_pixels(4))
    plain, repaired = read(tmp_path), read(tmp_path, gaps=True, tilt=True)
    np.testing.assert_array_equal(plain.image.dataobj, repaired.image.dataobj)
    np.testing.assert_array_equal(plain.image.affine, repaired.image.affine)
    assert repaired.stack.repairs == ()  # type: ignore[union-attr]
