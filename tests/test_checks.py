"""Flags: for each a case that raises it and a near one that does not."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from pancseg.errors import PancsegError
from pancseg.intake.checks.flags import FLAGS, Checks, flags_of, in_order
from pancseg.intake.checks.label_grid import grid_problem

SHAPE = (40, 40, 12)
SPACING_MM = (2.0, 2.0, 5.0)  # a voxel is 0.02 ml
NOTHING: list[str] = []


def body() -> np.ndarray:
    """Air around fat around muscle, some bone; what has contrast grows to the head; noise."""
    x, y, z = np.indices(SHAPE)
    radius = np.hypot(x - 19.5, y - 19.5)
    hu = np.where(radius < 18, -100, -1000)
    hu[radius < 15] = 50
    hu[(radius < 15) & (x < 8 + z)] = 240
    hu[18:21, 30:33] = 1200
    return (hu + np.random.default_rng(0).normal(0, 10, SHAPE)).astype(np.int16)


def organ() -> np.ndarray:
    """A block of 8 x 16 x 8 voxels, 20.48 ml, inside the body."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[16:24, 12:28, 2:10] = 1
    return mask


def flags(hu: np.ndarray, mask: np.ndarray | None = None, checks: Checks | None = None) -> list:
    return flags_of(hu, mask, SPACING_MM, checks or Checks())


def test_a_body_with_an_organ_has_no_flags() -> None:
    assert flags(body(), organ()) == NOTHING
    assert flags(body().astype(np.float32), organ()) == NOTHING
    assert flags(np.asfortranarray(body()), np.asfortranarray(organ())) == NOTHING


@pytest.mark.parametrize(
    "change",
    [
        lambda hu: hu + 1024,  # no intercept
        lambda hu: (hu + 1000).clip(0),  # half of the air at exactly 0
        lambda hu: ((hu + 1024.0) / 4095).astype(np.float32),
        lambda hu: np.abs(hu) + 1,  # as an MR
    ],
)
def test_values_without_intercept_are_not_hu(change) -> None:  # type: ignore[no-untyped-def]
    assert flags(change(body())) == ["hu_not_applied"]


@pytest.mark.parametrize(
    "change",
    [
        lambda hu: hu.clip(-200, 200),
        lambda hu: hu.clip(-1000, 300),
        lambda hu: hu.clip(-160, None),
        lambda hu: ((hu.clip(-160, 240) + 160) * 0.6375).astype(np.uint8),  # 0..255
        lambda hu: ((hu.clip(-160, 240) + 160) / 400).astype(np.float32),
    ],
)
def test_a_display_window_is_noticed(change) -> None:  # type: ignore[no-untyped-def]
    assert flags(change(body())) == ["hu_windowed"]


@pytest.mark.parametrize(
    "change",
    [
        lambda hu: hu - 1024,  # intercept twice
        lambda hu: hu * 2,
        lambda hu: np.where(hu < -900, -9000, hu),
        lambda hu: np.where(hu > 1000, 60000, hu.astype(np.int32)),
        lambda hu: hu / 4.0 - 1000,  # nothing but air
    ],
)
def test_what_else_cannot_be_hu_is_implausible(change) -> None:  # type: ignore[no-untyped-def]
    assert flags(change(body())) == ["hu_implausible"]


@pytest.mark.parametrize("padding", [-2000, -3024])
def test_padding_outside_the_scanners_circle_is_no_flaw(padding: int) -> None:
    x, y, _ = np.indices(SHAPE)
    for radius in (18, 19):  # without and with a rim of air
        padded = np.where(np.hypot(x - 19.5, y - 19.5) > radius, padding, body())
        assert flags(padded) == NOTHING


def test_metal_storage_limits_and_a_field_of_view_without_air_are_no_flaws() -> None:
    metal = body()
    metal[20, 20, 5:7] = 30000
    assert flags(metal) == NOTHING
    assert flags(body().clip(-1024, 3071)) == NOTHING
    assert flags(body()[4:36, 4:36]) == NOTHING


def test_an_image_of_a_few_voxels_is_not_judged() -> None:
    assert flags(np.zeros((4, 3, 5), np.int16)) == NOTHING


@pytest.mark.parametrize("at", [0, 1, 5, 9, 10])
def test_swapped_neighbours_are_noticed_at_every_place(at: int) -> None:
    order = np.arange(SHAPE[2])
    order[[at, at + 1]] = at + 1, at
    assert flags(body()[..., order]) == ["slice_order"]


def test_order_is_not_doubted_for_odd_repeated_alternating_or_noisy_slices() -> None:
    noise = np.random.default_rng(1).normal(0, 60, SHAPE)
    for k in range(SHAPE[2]):
        odd = body()
        odd[..., k] = (odd[..., k] + 5 * noise[..., k]).clip(-1500, 1500)
        assert flags(odd) == NOTHING
    assert flags(body().repeat(2, axis=2)) == NOTHING
    assert flags((body() + noise).astype(np.int16)) == NOTHING
    alternating = body()
    alternating[..., ::2] += (noise[..., :1] / 2).astype(np.int16)
    assert flags(alternating) == NOTHING


def test_an_empty_label_is_nothing_but_empty() -> None:
    assert flags(body(), np.zeros(SHAPE, np.uint8)) == ["label_empty"]
    assert flags(body(), None) == NOTHING


def test_a_label_in_air_is_noticed_from_a_tenth_of_it() -> None:
    mask, hu = organ(), body()
    hu[16:24, 12:28, 2] = np.where(np.indices((8, 16))[1] < 12, -950, 50)  # 96 of 1024 voxels
    assert flags(hu, mask) == NOTHING
    hu[16:24, 12:28, 2] = -950  # 128
    assert flags(hu, mask) == ["label_outside_body"]


def test_air_beside_a_label_is_none_in_it() -> None:
    mask = organ()
    mask[24:, 20, 5] = 1  # out to the edge of the scan: 2 of 1040 voxels in air, much of the box
    assert flags(body(), mask) == NOTHING


def test_volume_is_judged_in_ml() -> None:
    assert flags(body(), organ(), Checks(volume_ml=(20.4, 20.5))) == NOTHING
    assert flags(body(), organ(), Checks(volume_ml=(20.5, 300))) == ["label_volume"]
    assert flags(body(), organ(), Checks(volume_ml=(1, 20.4))) == ["label_volume"]


def test_a_second_large_piece_is_noticed_and_a_speck_is_not() -> None:
    mask = organ()
    mask[26, 12:28, 2:8] = 1  # 96 of 1120 voxels
    assert flags(body(), mask) == NOTHING
    mask[26, 12:28, 2:10] = 1  # 128 of 1152
    assert flags(body(), mask) == ["label_pieces"]
    mask[25, 28, 5] = mask[24, 27, 5] = 1  # a bridge over corners
    assert flags(body(), mask) == NOTHING


@pytest.mark.parametrize(("k", "found"), [(0, ["label_cut"]), (1, []), (11, ["label_cut"])])
def test_a_label_on_the_first_or_last_slice_may_be_cut(k: int, found: list[str]) -> None:
    mask = organ()
    mask[16:24, 12:28, min(k, 2) : max(k, 9) + 1] = 1
    assert flags(body(), mask) == found


def test_an_empty_slice_inside_a_label_is_a_gap() -> None:
    mask = organ()
    mask[..., 9] = 0
    checks = Checks(volume_ml=(1, 300), piece_share=1)
    assert flags(body(), mask, checks) == NOTHING
    mask[..., 5] = 0
    assert flags(body(), mask, checks) == ["label_gaps"]


def test_several_flags_come_in_the_order_of_the_table() -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[0:4, 0:4, 0] = 1
    assert flags(body() - 1024, mask) == [
        *("hu_implausible", "label_outside_body", "label_volume", "label_cut")
    ]
    assert in_order(reversed(FLAGS)) == list(FLAGS)


def test_refuse_takes_known_flags_only() -> None:
    assert Checks(refuse=("phantom", "unlabelled")).refuse == ("phantom", "unlabelled")
    with pytest.raises(PancsegError, match=r"names label_emty, .*flags are hu_not_applied, "):
        Checks(refuse=("label_cut", "label_emty"))
    with pytest.raises(PancsegError, match="volume_ml goes from 300 to 15"):
        Checks(volume_ml=(300, 15))


def test_phantoms_raise_no_flag(dicom: Path) -> None:
    paths = sorted((dicom / "truth").glob("*_image.nii.gz"))
    assert len(paths) == 6
    for path in paths:
        label = nib.load(str(path).replace("_image", "_label"))
        values = [np.asanyarray(nib.load(path).dataobj), np.asanyarray(label.dataobj)]
        assert flags_of(*values, nib.affines.voxel_sizes(label.affine), Checks()) == NOTHING


def test_real_scans_are_hu_in_order_and_an_mr_is_none(shared_data: Path) -> None:
    ct = np.asanyarray(nib.load(shared_data / "abdomen/ct.nii.gz").dataobj)
    assert flags(ct) == NOTHING
    order = np.arange(ct.shape[2])
    order[[40, 41]] = 41, 40
    assert flags(ct[..., order]) == ["slice_order"]
    assert flags(stacked(shared_data / "abdomen/ct_dicom")) == NOTHING
    assert flags(stacked(shared_data / "seg/ct")) == NOTHING
    mr = np.asanyarray(nib.load(shared_data / "abdomen/mr.nii.gz").dataobj)
    assert flags(mr) == ["hu_not_applied"]


def stacked(folder: Path) -> np.ndarray:
    """HU of a series in order of position, by plain pydicom."""
    files = [pydicom.dcmread(file, force=True) for file in folder.iterdir()]
    files.sort(key=lambda one: float(one.ImagePositionPatient[2]))
    slices = [one.pixel_array.T * one.RescaleSlope + one.RescaleIntercept for one in files]
    return np.stack(slices, axis=2).astype(np.int16)


GRID = np.array([[-0.8, 0, 0, 90.0], [0, -0.8, 0, 70.0], [0, 0, 2.5, -300.0], [0, 0, 0, 1]])


def on(affine: np.ndarray, shape: tuple[int, ...] = (50, 40, 30)) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.zeros(shape, np.uint8), affine)


def moved(mm: tuple[float, float, float]) -> np.ndarray:
    affine = GRID.copy()
    affine[:3, 3] += mm
    return affine


def problem(label: nib.Nifti1Image) -> str:
    return str(grid_problem(on(GRID), label))


def test_one_grid_has_no_problem() -> None:
    assert grid_problem(on(GRID), on(moved((0.07, 0, 0)))) is None


def test_another_size_is_told_with_both() -> None:
    assert problem(on(GRID, (50, 40, 31))) == (
        "label_size: label has 50 x 40 x 31 voxels of 0.800 x 0.800 x 2.500 mm, LPS; "
        "image has 50 x 40 x 30 voxels of 0.800 x 0.800 x 2.500 mm, LPS"
    )


def test_another_spacing_is_told_in_mm() -> None:
    assert problem(on(GRID @ np.diag([1, 1, 2, 1]))) == (
        "label_spacing: label has voxels of 0.8 x 0.8 x 5 mm, image of 0.8 x 0.8 x 2.5 mm"
    )
    assert grid_problem(on(GRID), on(GRID @ np.diag([1, 1, 1.0005, 1]))) is None


def test_another_direction_is_told_in_degrees() -> None:
    angle = np.radians(12)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert problem(on(turn @ GRID)) == (
        "label_direction: label's axes lie 12.00 degrees off the image's"
    )


@pytest.mark.parametrize(
    ("mm", "axes"),
    [
        ((49 * 0.8, 0, 0), "left-right"),
        ((0, 39 * 0.8, 0), "back-front"),
        ((0, 0, -29 * 2.5), "feet-head"),
        ((49 * 0.8, 39 * 0.8, 0), "left-right and back-front"),
    ],
)
def test_a_wrong_sign_in_the_affine_is_told_by_its_axis(
    mm: tuple[float, float, float], axes: str
) -> None:
    found = problem(on(moved(mm)))
    assert found.startswith(f"label_flipped: label begins where the image ends, {axes}: ")


def test_a_label_whose_affine_was_written_in_lps_is_flipped() -> None:
    other = np.diag([-1, -1, 1, 1]) @ GRID  # runs right and front from (-90, -70)
    turned = on(other).as_reoriented([[0, -1], [1, -1], [2, 1]])
    assert problem(turned).startswith(
        "label_flipped: label lies mirrored at the scanner's zero, left-right and back-front: "
    )


@pytest.mark.parametrize("mm", [(49 * 0.8, 3, 0), (-140.8, 5, 0), (20 * 0.8, 0, 0)])
def test_a_label_aside_in_another_way_as_well_is_shifted(mm: tuple[float, float, float]) -> None:
    assert problem(on(moved(mm))).startswith(f"label_shifted: label lies ({mm[0]:.2f}, ")


def test_a_shift_is_told_in_mm_and_in_voxels() -> None:
    assert problem(on(moved((1.6, 0, -5)))) == (
        "label_shifted: label lies (1.60, 0.00, -5.00) mm to the right, front and head of the "
        "image: (-2.00, 0.00, -2.00) of its voxels"
    )
