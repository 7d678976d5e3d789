"""Simulated patients: frozen statistics, one anatomy for every grid, valid DICOM.

The bounds on how hard the phantoms are may be tightened by later work, never loosened.
"""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.ndimage import label as connected_components

from pancseg.phantoms.patient import simulate_patient, write_patient
from pancseg.phantoms.scanner import Tissue
from tests.conftest import run_command
from tests.other_software import assert_same, by_simpleitk, errors_of

SHAPE, SPACING_MM = (160, 160, 100), (2.4, 2.4, 2.5)
SMALL_SHAPE, SMALL_SPACING_MM = (48, 40, 24), (8.0, 9.0, 7.5)
LESION_SHAPE, LESION_SPACING_MM = (76, 62, 56), (2.5, 3.0, 3.0)
SEEDS = [(seed, index) for seed in (0, 1) for index in range(7)]
MEAN_HU = {"native": (25, 55), "arterial": (80, 130), "portal": (72, 112), "late": (50, 85)}


@pytest.fixture(scope="module")
def patients():
    """Fourteen whole abdomens at 2.4 x 2.4 x 2.5 mm."""
    return [simulate_patient(seed, index, SHAPE, SPACING_MM) for seed, index in SEEDS]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with ten small patients, and the patients."""
    out = tmp_path_factory.mktemp("phantoms")
    drawn = [simulate_patient(5, index, SMALL_SHAPE, SMALL_SPACING_MM) for index in range(10)]
    for phantom in drawn:
        write_patient(phantom, out)
    return out, drawn


@pytest.fixture(scope="module")
def with_lesions(tmp_path_factory):
    """A folder with six patients of ``lesions=true``."""
    out = tmp_path_factory.mktemp("lesions")
    grid = f"shape={[*LESION_SHAPE]}", f"spacing_mm={[*LESION_SPACING_MM]}"
    assert run_command("phantom", f"out={out}", "patients=6", "seed=1", "lesions=true", *grid) == 0
    return out


def volume_ml(mask, spacing_mm=SPACING_MM):
    return float(np.count_nonzero(mask) * np.prod(spacing_mm) / 1000)


def positions(phantom, mask):
    """Voxels of a mask, RAS mm, up to a shift."""
    return np.argwhere(mask) @ phantom.affine[:3, :3].T


def best_window_dice(phantom):
    """Dice of the best of all windows [low, high) between -200 and 400 HU as a segmentation."""
    inside = phantom.label > 0
    levels = np.arange(-200, 401)
    hits, alarms = (
        np.concatenate([[0], np.cumsum(np.bincount(values + 1024, minlength=4096))])[levels + 1024]
        for values in (phantom.image_hu[inside].astype(int), phantom.image_hu[~inside].astype(int))
    )
    low, high = np.triu_indices(len(levels), 1)
    both = hits[high] - hits[low]
    return float((2 * both / (both + alarms[high] - alarms[low] + inside.sum())).max())


def shared_histogram(phantom):
    """Intersection of the HU histograms of the pancreas and of what lies within 15 mm of it."""
    inside = phantom.label > 0
    distance_mm = distance_transform_edt(~inside, sampling=SPACING_MM)
    shares = []
    for region in (inside, (distance_mm > 0) & (distance_mm <= 15)):
        counts = np.bincount((phantom.image_hu[region].astype(int) + 1024) // 5, minlength=820)
        shares.append(counts / counts.sum())
    return float(np.minimum(*shares).sum())


def test_no_single_window_finds_the_pancreas_and_its_neighbours_share_its_hu(patients):
    found = [best_window_dice(phantom) for phantom in patients]
    shared = [shared_histogram(phantom) for phantom in patients]
    assert max(found) < 0.35 and np.mean(found) < 0.09
    assert min(shared) > 0.2 and np.mean(shared) > 0.3


def test_organs_have_adult_volumes_and_lie_on_their_sides(patients):
    volumes = [volume_ml(phantom.label) for phantom in patients]
    assert 40 < min(volumes) < max(volumes) < 130 and np.std(volumes) > 6
    for phantom in patients:
        assert not phantom.label[:, :, [0, -1]].any()
        ml = {tissue: volume_ml(phantom.tissue == tissue) for tissue in Tissue}
        assert 900 < ml[Tissue.LIVER] < 2800
        assert 60 < ml[Tissue.SPLEEN] < 400
        assert 180 < ml[Tissue.KIDNEY_CORTEX] + ml[Tissue.KIDNEY_MEDULLA] < 600
        liver, aorta, spleen = (
            positions(phantom, phantom.tissue == tissue)[:, 0].mean()
            for tissue in (Tissue.LIVER, Tissue.AORTA, Tissue.SPLEEN)
        )
        assert liver > aorta > spleen
        pancreas = positions(phantom, phantom.label)
        right, left = np.quantile(pancreas[:, 0], [0.95, 0.05])
        head, tail = pancreas[pancreas[:, 0] > right - 25], pancreas[pancreas[:, 0] < left + 25]
        assert right - left > 80
        assert tail[:, 2].mean() > head[:, 2].mean()


def test_enhancement_follows_the_phase_and_noise_the_scanner(patients):
    assert len({phantom.phase for phantom in patients}) == 4
    for phantom in patients:
        low, high = MEAN_HU[phantom.phase]
        assert low < phantom.image_hu[phantom.label > 0].mean() < high
        core = binary_erosion(phantom.tissue == Tissue.AORTA)
        assert (phantom.image_hu[core].mean() > 200) == (phantom.phase == "arterial")
        core = binary_erosion(phantom.tissue == Tissue.SPLEEN, iterations=2)
        noise_and_texture = np.hypot(phantom.noise_hu, 7)
        assert phantom.image_hu[core].std() == pytest.approx(noise_and_texture, rel=0.2)


def test_the_anatomy_does_not_depend_on_the_grid(patients):
    other_mm = (1.3, 1.7, 2.0)
    other, coarse = simulate_patient(0, 2, (256, 220, 90), other_mm), patients[2]
    assert volume_ml(other.label, other_mm) == pytest.approx(volume_ml(coarse.label), rel=0.02)
    centres = [(p.affine @ np.append(np.argwhere(p.label).mean(0), 1))[:3] for p in (other, coarse)]
    assert np.abs(centres[0] - centres[1]).max() < 0.3


def test_the_same_seed_gives_the_same_files_in_place_of_earlier_ones(tmp_path, written):
    for slices in (SMALL_SHAPE[2] + 9, SMALL_SHAPE[2]):
        shape = (*SMALL_SHAPE[:2], slices)
        write_patient(simulate_patient(5, 1, shape, SMALL_SPACING_MM), tmp_path)
    files = [path for path in tmp_path.rglob("*.*") if path.is_file()]
    assert len(files) == 2 * SMALL_SHAPE[2] + 2
    assert all(f.read_bytes() == (written[0] / f.relative_to(tmp_path)).read_bytes() for f in files)


def test_simpleitk_reads_what_the_truth_holds(written):
    out, phantoms = written
    for patient in (phantom.patient for phantom in phantoms):
        for name in ("image", "label"):
            theirs = by_simpleitk(out / f"{name}s" / patient)
            if name == "label":  # some masks hold 255
                mask = (np.asarray(theirs.dataobj) > 0).astype(np.uint8)
                theirs = nib.Nifti1Image(mask, theirs.affine)
            assert_same(nib.load(out / "truth" / f"{patient}_{name}.nii.gz"), theirs)


def test_dciodvfy_finds_no_error_in_scans_and_masks(written, with_lesions):
    for out, patient in ((written[0], "phantom-5-000"), (with_lesions, "phantom-1-000")):
        for name in ("images", "labels"):
            assert errors_of(next((out / name / patient).iterdir())) == []


def truth_of(out, index, name):
    return np.asarray(nib.load(out / "truth" / f"phantom-1-{index:03d}_{name}.nii.gz").dataobj)


def test_four_of_six_patients_have_a_dark_lesion_of_8_to_40_mm_in_the_pancreas(with_lesions):
    extents = []
    for index in range(6):
        values, image_hu = (truth_of(with_lesions, index, name) for name in ("label", "image"))
        without = simulate_patient(1, index, LESION_SHAPE, LESION_SPACING_MM)
        lesion = values == 2
        np.testing.assert_array_equal(values == 1, (without.label == 1) & ~lesion)
        if lesion.any():
            extents.append((np.ptp(np.argwhere(lesion), axis=0) + 1) * LESION_SPACING_MM)
            assert connected_components(lesion)[1] == 1
            assert (lesion & (without.label == 1)).any()
            assert image_hu[lesion].mean() < image_hu[values == 1].mean() - 5
    assert len(extents) == 4
    assert (np.array(extents) >= 8 - np.array(LESION_SPACING_MM)).all()
    assert (np.array(extents) <= 40 + np.array(LESION_SPACING_MM)).all()


def test_prepare_reads_pancreas_and_lesion_from_the_masks(with_lesions, tmp_path):
    source = [f"source.{role}={with_lesions / role}" for role in ("images", "labels")]
    words = ["structures=pancreas_tumour", "data=volume", "privacy=none", "data.spacing_mm=[4,4,4]"]
    assert run_command("prepare", *source, f"data.root={tmp_path / 'data'}", *words) == 0
    cases = json.loads((tmp_path / "data" / "manifest.json").read_text())["cases"]
    values = [truth_of(with_lesions, index, "label") for index in range(6)]
    expected = [{"pancreas": (v > 0).sum(), "tumour": (v == 2).sum()} for v in values]
    assert [case["structure_voxels"] for case in cases] == expected
