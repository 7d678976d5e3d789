"""Folders of nnU-Net v2 as checkpoints: resampling, windows, structures, masks and scores.

That masks equal those of nnU-Net's own predictor is in benchmarks/RESULTS.md.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from pancseg.data.transforms import Preprocessing
from pancseg.errors import PancsegError
from pancseg.inference import nnunet_model
from pancseg.inference.checkpoint import open_checkpoints
from tests.conftest import Command
from tests.test_known_weights import DATASET, save
from tests.tiny_root import write_root

LABELS = {"background": 0, "Tumour": 2, "Pancreas": [1, 2]}
REGIONS = DATASET | {"labels": LABELS, "regions_class_order": [2, 1], "orientation": "LPS"}


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    folder = tmp_path / "Dataset1_Own" / "fold_0"
    folder.mkdir(parents=True)
    save(folder / "checkpoint_final.pth", dataset=REGIONS)
    return folder


def codes_of(path: Path) -> np.ndarray:
    return np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj)


@pytest.mark.parametrize("spacing_mm", [(2.0, 3.0, 1.5), (2.7, 1.9, 2.2), (6.0, 6.0, 1.4)])
def test_a_scan_is_resampled_as_by_splines_in_three_dimensions(spacing_mm) -> None:
    hu = np.random.default_rng(0).integers(-150, 300, (10, 12, 9)).astype(np.int16)
    image = nib.Nifti1Image(hu, np.diag([2.0, 3.0, 1.5, 1.0]))
    volume = nnunet_model.nnunet_input(image, Preprocessing("RAS", spacing_mm, (-50, 200), None))
    clipped = ((hu - -50.0) / 250).clip(0, 1)
    shape = np.rint(np.multiply(hu.shape, (2.0, 3.0, 1.5)) / spacing_mm)
    if max(spacing_mm) / min(spacing_mm) > 3:  # the coarsest axis by nearest neighbours
        clipped = ndimage.zoom(
            clipped, [shape[0] / 10, 1, 1], order=0, grid_mode=True, mode="nearest"
        )
    factors = shape / clipped.shape
    expected = ndimage.zoom(clipped, factors, order=3, grid_mode=True, mode="nearest").clip(0, 1)
    assert volume.values.numpy() == pytest.approx(expected, abs=1e-5)
    grids = (image.affine, hu.shape), (volume.affine, volume.values.shape)
    corners = [
        nib.affines.apply_affine(affine, [[-0.5] * 3, np.array(size) - 0.5])
        for affine, size in grids
    ]
    assert corners[0] == pytest.approx(corners[1])  # the grids cover the same field


@pytest.mark.parametrize("shape", [(8, 16, 16), (21, 30, 17), (5, 40, 3)])
def test_windows_cover_every_voxel_once_in_the_mean(shape) -> None:
    identity = SimpleNamespace(
        prepare=lambda image: image, restore=lambda logits: logits, network=lambda window: window
    )
    image = torch.rand(1, 1, *shape)
    torch.testing.assert_close(
        nnunet_model.whole_logits(identity, image, (8, 16, 16), "cpu"), image
    )


def test_structures_are_the_labels_and_regions_of_dataset_json(fold: Path) -> None:
    (model,) = open_checkpoints(fold)
    assert [(s.name, s.values, s.kind) for s in model.structures] == [
        ("pancreas", (1, 2), "organ"), ("tumour", (2,), "lesion"),
    ]  # fmt: skip
    assert model.hparams["nnunet"]["channels"] == [[1], [0]]
    labels = {"background": 0, "vein": 2, "pancreas": 1}
    structures, channels = nnunet_model.structures_of(labels, are_regions=False)
    assert ([s.values for s in structures], channels) == ([(1,), (2,)], [[2], [1]])


def test_predict_writes_the_structures_of_a_model_folder(fold: Path, command: Command) -> None:
    hu = np.random.default_rng(0).integers(-100, 200, (20, 16, 12)).astype(np.int16)
    nib.save(nib.Nifti1Image(hu, np.diag([2.0, 3.0, 1.5, 1.0])), "p1.nii.gz")
    words = (f"checkpoint={fold.parent}", "input=p1.nii.gz", "output=out", "hardware=cpu")
    assert command("predict", *words).code == 0
    codes = codes_of(Path("out/p1_labels.nii.gz"))
    assert codes.shape == hu.shape
    row = pd.read_csv("out/predictions.csv").iloc[0]
    ml = [(codes > 0).sum() * 0.009, (codes == 2).sum() * 0.009]
    assert row["structures_ml"] == f"pancreas={ml[0]:.3f} tumour={ml[1]:.3f}"


def test_evaluate_scores_the_labelled_patients_of_a_prepared_folder(
    fold: Path, command: Command
) -> None:
    save(fold / "checkpoint_final.pth", dataset=REGIONS, spacing=[8.0, 8.0, 8.0])
    manifest = write_root(root := Path("root"), "abc", groups=False)
    manifest.cases[1] = replace(manifest.cases[1], label=None)
    manifest.write(root)
    words = ("evaluate", f"checkpoint={fold}", "hardware=cpu")
    assert command(*words, "data.root=root").code == 0
    table = pd.read_csv(fold / "scores" / "external_root.csv")
    assert table["patient"].tolist() == ["a", "a", "c", "c"]
    for case, structure, dice in table[["case", "structure", "dice"]].itertuples(index=False):
        values = (1, 2) if structure == "pancreas" else (2,)
        label = np.isin(codes_of(root / "cases" / f"{case}_label.nii.gz"), values)
        own = codes_of(fold / "scores" / "external_root" / f"{case}_prediction.nii.gz")
        mask = np.isin(own, values)
        expected = 2 * (mask & label).sum() / (mask.sum() + label.sum())
        assert dice == pytest.approx(expected, abs=1e-6)
    for more in ([], ["predictions=root"]):
        ended = command(*words, *more)
        assert ended.code == 2 and "is of nnU-Net; give data.root=PREPARED" in ended.err


def test_plans_that_would_fill_the_memory_are_refused(fold: Path) -> None:
    save(fold / "checkpoint_final.pth", dataset=REGIONS, patch_size=[4000, 4000, 4000])
    with pytest.raises(PancsegError, match="which no network takes"):
        open_checkpoints(fold)
