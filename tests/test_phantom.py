"""Simulated patients: frozen statistics, one anatomy for every grid, valid DICOM.

The bounds on how hard the phantoms are may be tightened by later work, never loosened.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.ndimage import label as connected_components

from pancseg.phantoms.anatomy import Anatomy
from pancseg.phantoms.patient import Phantom, simulate_patient, write_patient
from pancseg.phantoms.scanner import Tissue, draw_scanner, scan
from pancseg.phantoms.shapes import Grid
from tests.conftest import run_command
from tests.other_software import errors_of

SHAPE, SPACING_MM = (160, 160, 100), (2.4, 2.4, 2.5)
SMALL_SHAPE, SMALL_SPACING_MM = (48, 40, 24), (8.0, 9.0, 7.5)
SEEDS = [(seed, index) for seed in (0, 1) for index in range(7)]
MEAN_HU = {"native": (25, 55), "arterial": (80, 130), "portal": (72, 112), "late": (50, 85)}
NAMED = """
    SKIN FAT MUSCLE CORTICAL_BONE MARROW LIVER SPLEEN KIDNEY_CORTEX KIDNEY_MEDULLA STOMACH_WALL
    STOMACH_FLUID DUODENUM_WALL BOWEL_WALL BOWEL_FLUID BOWEL_GAS AORTA VENA_CAVA SPLENIC_VEIN
    PANCREAS
"""
Written = tuple[Path, list[Phantom]]


@pytest.fixture(scope="module")
def patients() -> list[Phantom]:
    """Fourteen whole abdomens at 2.4 x 2.4 x 2.5 mm."""
    return [simulate_patient(seed, index, SHAPE, SPACING_MM) for seed, index in SEEDS]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Ten small patients on disk."""
    out = tmp_path_factory.mktemp("phantoms")
    drawn = [simulate_patient(5, index, SMALL_SHAPE, SMALL_SPACING_MM) for index in range(10)]
    for phantom in drawn:
        write_patient(phantom, out)
    return out, drawn


def volume_ml(label: NDArray[Any], spacing_mm: tuple[float, float, float]) -> float:
    return float(np.count_nonzero(label) * np.prod(spacing_mm) / 1000)


def best_window_dice(image_hu: NDArray[np.int16], label: NDArray[np.uint8]) -> float:
    """Dice of the best of all windows [low, high) between -200 and 400 HU as a segmentation."""
    inside = label > 0
    levels = np.arange(-200, 401)
    hits, alarms = (
        np.concatenate([[0], np.cumsum(np.bincount(values + 1024, minlength=4096))])[levels + 1024]
        for values in (image_hu[inside].astype(int), image_hu[~inside].astype(int))
    )
    low, high = np.triu_indices(len(levels), 1)
    both = hits[high] - hits[low]
    return float((2 * both / (both + alarms[high] - alarms[low] + inside.sum())).max())


def shared_histogram(image_hu: NDArray[np.int16], label: NDArray[np.uint8]) -> float:
    """Intersection of the HU histograms of the pancreas and of what lies within 15 mm of it."""
    inside = label > 0
    distance_mm = distance_transform_edt(~inside, sampling=SPACING_MM)
    shares = []
    for region in (inside, (distance_mm > 0) & (distance_mm <= 15)):
        counts = np.bincount((image_hu[region].astype(int) + 1024) // 5, minlength=820)
        shares.append(counts / counts.sum())
    return float(np.minimum(*shares).sum())


def test_best_window_dice_of_a_case_done_by_hand() -> None:
    image_hu = np.array([0, 10, 10, 10, 30], np.int16)
    label = np.array([0, 1, 1, 0, 0], np.uint8)
    assert best_window_dice(image_hu, label) == pytest.approx(0.8)


def test_no_single_window_finds_the_pancreas(patients: list[Phantom]) -> None:
    found = [best_window_dice(p.image_hu, p.label) for p in patients]
    assert max(found) < 0.35
    assert np.mean(found) < 0.09


def test_neighbours_share_the_hu_of_the_pancreas(patients: list[Phantom]) -> None:
    shared = [shared_histogram(p.image_hu, p.label) for p in patients]
    assert min(shared) > 0.2
    assert np.mean(shared) > 0.3


def test_a_short_narrow_scan_is_not_easier() -> None:
    for index in range(4):
        phantom = simulate_patient(0, index, (128, 128, 48), (2.0, 2.0, 2.5))
        assert best_window_dice(phantom.image_hu, phantom.label) < 0.35


def test_the_pancreas_has_the_size_of_a_pancreas(patients: list[Phantom]) -> None:
    volumes = [volume_ml(p.label, SPACING_MM) for p in patients]
    assert len(set(volumes)) == len(patients)
    assert 40 < min(volumes) < max(volumes) < 130
    assert np.std(volumes) > 6
    for seed, index in SEEDS:
        anatomy = Anatomy(seed, index)
        assert 125 < anatomy.plan.axis.length_mm * anatomy.body.scale.mean() < 205


def test_the_pancreas_runs_from_the_right_to_the_left_and_tapers(patients: list[Phantom]) -> None:
    for phantom in patients:
        voxels = np.argwhere(phantom.label)
        world = voxels @ phantom.affine[:3, :3].T
        right, left = np.quantile(world[:, 0], [0.95, 0.05])
        head, tail = world[world[:, 0] > right - 25], world[world[:, 0] < left + 25]
        assert right - left > 80
        assert tail[:, 2].mean() > head[:, 2].mean()
        assert len(head) > len(tail)


def test_organs_have_adult_volumes_and_lie_on_their_sides(patients: list[Phantom]) -> None:
    for phantom in patients:
        assert {Tissue[name] for name in NAMED.split()} <= set(np.unique(phantom.tissue))
        ml = {t: volume_ml(phantom.tissue == t, SPACING_MM) for t in Tissue}
        assert 900 < ml[Tissue.LIVER] < 2800
        assert 60 < ml[Tissue.SPLEEN] < 400
        assert 180 < ml[Tissue.KIDNEY_CORTEX] + ml[Tissue.KIDNEY_MEDULLA] < 600
        x = {
            t: (np.argwhere(phantom.tissue == t) @ phantom.affine[:3, :3].T)[:, 0].mean()
            for t in (Tissue.LIVER, Tissue.AORTA, Tissue.SPLEEN)
        }
        assert x[Tissue.LIVER] > x[Tissue.AORTA] > x[Tissue.SPLEEN]


def test_enhancement_follows_the_phase_and_noise_the_scanner(patients: list[Phantom]) -> None:
    assert len({p.phase for p in patients}) == 4
    noise_hu = np.array([p.noise_hu for p in patients])
    assert 8 <= noise_hu.min() < 12 and 18 < noise_hu.max() <= 25
    for phantom in patients:
        low, high = MEAN_HU[phantom.phase]
        assert low < phantom.image_hu[phantom.label > 0].mean() < high
        core = binary_erosion(phantom.tissue == Tissue.AORTA)
        assert (phantom.image_hu[core].mean() > 200) == (phantom.phase == "arterial")
        core = binary_erosion(phantom.tissue == Tissue.SPLEEN, iterations=2)
        noise_and_texture = np.hypot(phantom.noise_hu, 7)
        assert phantom.image_hu[core].std() == pytest.approx(noise_and_texture, rel=0.2)


def test_noise_is_correlated_between_neighbours() -> None:
    grid = Grid((96, 96, 12), (0.8, 0.8, 2.0), (0.0, 0.0, 0.0))
    air = np.full(grid.shape[::-1], Tissue.AIR, np.uint8)
    scanner = draw_scanner(np.random.default_rng(0))
    hu = scan(air, grid, scanner, np.random.default_rng(0)) + 1000
    along_row = np.corrcoef(hu[:, :, 1:].ravel(), hu[:, :, :-1].ravel())[0, 1]
    assert hu.std() == pytest.approx(scanner.noise_hu, rel=0.06)
    assert along_row > 0.5


def test_the_anatomy_does_not_depend_on_the_grid(patients: list[Phantom]) -> None:
    other_mm = (1.3, 1.7, 2.0)
    other = simulate_patient(0, 2, (256, 220, 90), other_mm)
    coarse = patients[SEEDS.index((0, 2))]
    assert volume_ml(other.label, other_mm) == pytest.approx(
        volume_ml(coarse.label, SPACING_MM), rel=0.02
    )
    centres = [(p.affine @ np.append(np.argwhere(p.label).mean(0), 1))[:3] for p in (other, coarse)]
    assert np.abs(centres[0] - centres[1]).max() < 0.3


def test_a_long_scan_holds_the_whole_pancreas(patients: list[Phantom]) -> None:
    for phantom in patients:
        assert not phantom.label[:, :, [0, -1]].any()
    for phantom in patients[::4]:
        coarse = simulate_patient(phantom.seed, phantom.index, (96, 96, 30), (4.0, 4.0, 5.0))
        assert not coarse.label[:, :, [0, -1]].any()


def test_the_same_seed_gives_the_same_files_in_place_of_earlier_ones(
    tmp_path: Path, written: Written
) -> None:
    for slices in (SMALL_SHAPE[2] + 9, SMALL_SHAPE[2]):
        shape = (*SMALL_SHAPE[:2], slices)
        write_patient(simulate_patient(5, 1, shape, SMALL_SPACING_MM), tmp_path)
    files = [path for path in tmp_path.rglob("*.*") if path.is_file()]
    assert len(files) == 2 * SMALL_SHAPE[2] + 2
    assert all(f.read_bytes() == (written[0] / f.relative_to(tmp_path)).read_bytes() for f in files)


def test_simpleitk_reads_what_the_truth_holds(written: Written) -> None:
    out, phantoms = written
    for patient in (phantom.patient for phantom in phantoms):
        for name, dtype in (("image", np.int16), ("label", np.uint8)):
            truth = nib.load(out / "truth" / f"{patient}_{name}.nii.gz")
            assert truth.get_data_dtype() == dtype
            assert truth.get_qform(coded=True)[1] == truth.get_sform(coded=True)[1] == 1
            reader = sitk.ImageSeriesReader()
            folder = str(out / f"{name}s" / patient)
            reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder))
            series = reader.Execute()
            voxels = sitk.GetArrayFromImage(series).T
            voxels = voxels > 0 if name == "label" else voxels
            np.testing.assert_array_equal(voxels, truth.get_fdata())
            corner = series.TransformIndexToPhysicalPoint((0, 0, 0)) * np.array([-1, -1, 1])
            np.testing.assert_allclose(corner, truth.affine[:3, 3], atol=1e-3)
            np.testing.assert_allclose(series.GetSpacing(), SMALL_SPACING_MM, atol=1e-4)


def test_dciodvfy_finds_no_error_in_ct_and_mask(written: Written) -> None:
    for name in ("images", "labels"):
        assert errors_of(next((written[0] / name / "phantom-5-000").iterdir())) == []


def test_ten_patients_hold_every_way_of_storing_and_no_order_of_slices(written: Written) -> None:
    out, phantoms = written
    positions, upward, stored, values = set(), set(), set(), set()
    for phantom in phantoms:
        paths = sorted((out / "images" / phantom.patient).iterdir())
        ct = [pydicom.dcmread(path) for path in paths]
        mask = [pydicom.dcmread(path) for path in (out / "labels" / phantom.patient).iterdir()]
        for name, count in (("StudyInstanceUID", 1), ("SeriesInstanceUID", 2), ("PatientID", 1)):
            assert len({header[name].value for header in ct + mask}) == count
        assert len({header.SOPInstanceUID for header in ct + mask}) == len(ct) + len(mask)
        z = [float(header.SliceLocation) for header in ct]
        assert abs(np.corrcoef(z, np.arange(len(z)))[0, 1]) < 0.7
        upward.add(np.corrcoef(z, [int(header.InstanceNumber) for header in ct])[0, 1] > 0)
        positions.add(ct[0].PatientPosition)
        stored.add((float(ct[0].RescaleSlope), float(ct[0].RescaleIntercept)))
        values.add(max(int(header.pixel_array.max()) for header in mask))
    assert positions == {"HFS", "FFS"} and upward == {True, False}
    assert len(stored) >= 3 and values == {1, 255}


LESION_SHAPE, LESION_SPACING_MM = (76, 62, 56), (2.5, 3.0, 3.0)


@pytest.fixture(scope="module")
def with_lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients of ``lesions=true``."""
    out = tmp_path_factory.mktemp("lesions")
    grid = f"shape={[*LESION_SHAPE]}", f"spacing_mm={[*LESION_SPACING_MM]}"
    assert run_command("phantom", f"out={out}", "patients=6", "seed=1", "lesions=true", *grid) == 0
    return out


def truth_of(out: Path, index: int, name: str) -> NDArray[Any]:
    return np.asarray(nib.load(out / "truth" / f"phantom-1-{index:03d}_{name}.nii.gz").dataobj)


def test_two_of_three_patients_in_a_row_have_a_lesion(with_lesions: Path) -> None:
    for seed in range(4):
        has = [Anatomy(seed, index, lesions=True).has_lesion for index in range(12)]
        assert [sum(has[i : i + 3]) for i in range(10)] == [2] * 10
        assert not any(Anatomy(seed, index).has_lesion for index in range(3))
    values = [set(np.unique(truth_of(with_lesions, index, "label"))) for index in range(6)]
    assert values == [{0, 1, 2} if (1 + index) % 3 < 2 else {0, 1} for index in range(6)]


def test_a_lesion_is_one_dark_piece_of_8_to_40_mm_in_the_pancreas(with_lesions: Path) -> None:
    extents = []
    for index in range(6):
        values, image_hu = (truth_of(with_lesions, index, name) for name in ("label", "image"))
        without = simulate_patient(1, index, LESION_SHAPE, LESION_SPACING_MM)
        lesion = values == 2
        if not lesion.any():  # the lesions of others change nothing
            np.testing.assert_array_equal(image_hu, without.image_hu)
            np.testing.assert_array_equal(values, without.label)
            continue
        extents.append((np.ptp(np.argwhere(lesion), axis=0) + 1) * LESION_SPACING_MM)
        assert connected_components(lesion)[1] == 1
        assert (lesion & (without.label == 1)).any()
        np.testing.assert_array_equal(values == 1, (without.label == 1) & ~lesion)
        assert image_hu[lesion].mean() < image_hu[values == 1].mean() - 5
    assert (np.array(extents) >= 8 - np.array(LESION_SPACING_MM)).all()
    assert (np.array(extents) <= 40 + np.array(LESION_SPACING_MM)).all()
    assert len(np.unique(extents, axis=0)) == 4


def test_a_mask_series_with_lesions_holds_the_values_of_the_label(with_lesions: Path) -> None:
    plain = simulate_patient(1, 0, SMALL_SHAPE, SMALL_SPACING_MM)
    assert plain.uid("study") != replace(plain, lesions=True).uid("study")
    for index in range(6):
        files = list((with_lesions / "labels" / f"phantom-1-{index:03d}").iterdir())
        slices = sorted(map(pydicom.dcmread, files), key=lambda header: header.SliceLocation)
        stored = np.stack([header.pixel_array.T for header in slices], axis=-1)
        np.testing.assert_array_equal(stored, truth_of(with_lesions, index, "label"))


def test_dciodvfy_finds_no_error_in_a_mask_with_a_lesion(with_lesions: Path) -> None:
    assert errors_of(next((with_lesions / "labels" / "phantom-1-000").iterdir())) == []


@pytest.mark.parametrize("source", ["dicom", "nifti"])
def test_prepare_reads_pancreas_and_lesion(with_lesions: Path, tmp_path: Path, source: str) -> None:
    images, labels = (
        with_lesions / (f"{name}s" if source == "dicom" else f"truth/*_{name}.nii.gz")
        for name in ("image", "label")
    )
    places = f"source.images={images}", f"source.labels={labels}", f"data.root={tmp_path / 'data'}"
    chosen = f"source={source}", "structures=pancreas_tumour", "data=volume", "privacy=none"
    assert run_command("prepare", *places, *chosen, "data.spacing_mm=[4,4,4]") == 0
    cases = json.loads((tmp_path / "data" / "manifest.json").read_text())["cases"]
    values = [truth_of(with_lesions, index, "label") for index in range(6)]
    expected = [{"pancreas": (v > 0).sum(), "tumour": (v == 2).sum()} for v in values]
    assert [case["structure_voxels"] for case in cases] == expected
