"""Masks of ``predict`` in three formats and three geometries, as other software reads them."""

import csv
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pancseg.inference.predictor import load_segmenter
from tests.conftest import SHALLOW, run_command
from tests.other_software import LPS_TO_RAS, rtstruct_by_matplotlib, seg_by_simpleitk, voxels_of
from tests.tiny_dicom import put, write_series

SIDE_MM, DENSE_HU = 8.0, 100  # bone: a network of two epochs finds that rather than a pancreas
OBLIQUE = (0.936293, 0.275096, -0.218351, -0.289629, 0.956425, -0.036957)
GEOMETRIES: dict[str, Any] = {  # rows and columns, pixel spacing
    "oblique": (OBLIQUE, (SIDE_MM, SIDE_MM)),
    "feet_first": ((-1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (SIDE_MM, SIDE_MM)),  # on the back
    "non_square": ((1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (7.0, 9.0)),
}


def stored(dicom: Path, name: str) -> np.ndarray:
    """HU of a phantom, ``(slices, rows, columns)``, as a scanner stores them; no two are equal."""
    image = nib.load(dicom / "truth" / "phantom-3-000_image.nii.gz")
    values = np.asarray(image.dataobj).T + list(GEOMETRIES).index(name)
    return values[::-1, :, ::-1] if name == "feet_first" else values


def affine_of(name: str) -> np.ndarray:
    """From column, row and slice to RAS mm by DICOM PS3.3 C.7.6.2.1.1, as ``write_series`` does."""
    orientation, spacing = GEOMETRIES[name]
    row, column = np.reshape(orientation, (2, 3))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * spacing[1], column * spacing[0]
    affine[:3, 2], affine[:3, 3] = np.cross(row, column) * SIDE_MM, (-10, -20, 30)
    return LPS_TO_RAS @ affine


def rows_of(table: Path, key: str = "path") -> dict[str, dict[str, str]]:
    with table.open(newline="") as file:
        return {Path(row[key]).name: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def predicted(
    trained: Path, dicom: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A folder of series and masks, at a threshold that makes about 1 % of a scan a mask."""
    folder, best = tmp_path_factory.mktemp("predicted"), trained / "checkpoints" / "best.ckpt"
    for name, (orientation, spacing) in GEOMETRIES.items():
        known = {"FrameOfReferenceUID": f"1.2.{len(name)}", "StudyInstanceUID": f"1.3.{len(name)}"}
        known |= {"SpecificCharacterSet": ""} if name == "oblique" else {"SliceThickness": SIDE_MM}
        options = {"gap_mm": SIDE_MM, "orientation": orientation, "pixel_spacing": spacing}
        options |= {"patient_id": name, "damage": put(**known)}
        hu = stored(dicom, name)
        write_series(folder / "images" / name, pixels=hu, **options)
        write_series(folder / "labels" / name, pixels=hu > DENSE_HU, **options)
    image = nib.load(dicom / "truth" / "phantom-3-000_image.nii.gz")
    level = np.quantile(load_segmenter(best).predict(image, 0.0).probability, 0.99)
    threshold = f"postprocess.threshold={level:.6f}"
    words = [f"checkpoint={best}", f"input={folder / 'images'}", f"output={folder / 'out'}"]
    assert run_command("predict", *words, threshold, "rtstruct=true") == 0
    return folder, threshold


@pytest.mark.parametrize("name", GEOMETRIES)
def test_seg_and_rtstruct_hold_the_mask_of_the_nifti_file(predicted, name):
    out = predicted[0] / "out"
    row = rows_of(out / "predictions.csv")[name]
    assert row["reason"] == ""
    start = f"{row['case']}_pancreas"
    grid = nib.Nifti1Image(np.zeros((48, 48, 40)), affine_of(name))
    mask = voxels_of(nib.load(out / f"{start}.nii.gz"), grid)
    assert 100 < mask.sum() < 20_000
    np.testing.assert_array_equal(seg_by_simpleitk(out / f"{start}.dcm", grid), mask)
    series, rtstruct = predicted[0] / "images" / name, out / f"{start}_rtstruct.dcm"
    np.testing.assert_array_equal(rtstruct_by_matplotlib(rtstruct, series, grid), mask)


def test_evaluate_computes_the_dice_of_the_mask_in_the_rtstruct(
    predicted, trained, dicom, tmp_path
):
    (folder, threshold), root, run = predicted, tmp_path / "prepared", tmp_path / "run"
    source = [f"source.{kind}={folder / kind}" for kind in ("images", "labels")]
    assert run_command("prepare", *source, f"data.root={root}", "privacy=none", *SHALLOW) == 0
    shutil.copytree(trained, run)
    best = run / "checkpoints" / "best.ckpt"
    assert run_command("evaluate", f"checkpoint={best}", f"data.root={root}", threshold) == 0
    scores = rows_of(run / "scores" / "external_prepared.csv", "patient")
    for name in GEOMETRIES:
        drawn = (stored(dicom, name) > DENSE_HU).T
        grid = nib.Nifti1Image(drawn.astype(np.uint8), affine_of(name))
        case = rows_of(folder / "out" / "predictions.csv")[name]["case"]
        rtstruct = folder / "out" / f"{case}_pancreas_rtstruct.dcm"
        mask = rtstruct_by_matplotlib(rtstruct, folder / "images" / name, grid)
        dice = 2 * (mask & drawn).sum() / (mask.sum() + drawn.sum())
        assert 0.01 < dice < 0.9
        assert float(scores[name]["dice"]) == pytest.approx(dice, abs=1e-6)
