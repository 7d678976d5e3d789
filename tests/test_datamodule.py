"""The data module on a small prepared folder."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pancseg.data.manifest import read_manifest
from pancseg.data.splits import SUBSETS
from pancseg.errors import PancsegError
from tests.tiny_root import PATCHES, WHOLE, data_module, write_root

BOTH = pytest.mark.parametrize("sampling", [WHOLE, PATCHES], ids=["whole", "patches"])
NOISE = {"noise_probability": 1.0, "noise_hu": [20.0, 20.0]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Six patients with three groups each."""
    folder = tmp_path_factory.mktemp("tiny") / "root"
    write_root(folder)
    return folder


@pytest.fixture
def copied(root, tmp_path):
    return Path(shutil.copytree(root, tmp_path / "root", ignore=shutil.ignore_patterns("cache")))


def edited(root, groups=None, complete=True, **cases):
    """Change fields of cases, by their names, and the groups."""
    manifest = read_manifest(root)
    manifest.cases = [replace(case, **cases.get(case.name, {})) for case in manifest.cases]
    if groups:
        manifest.groups = groups(manifest.groups)
    replace(manifest, complete=complete).write(root)


@BOTH
def test_batches_have_the_documented_content(root, sampling):
    data = data_module(root, sampling=sampling)
    whole = (2, 1, 16, 16, 16) if sampling == WHOLE else (1, 1, 20, 20, 20)  # body of a whole case
    for loader, shape in (
        (data.train_dataloader(), (2, 1, 16, 16, 16)),
        (data.val_dataloader(), whole),
    ):
        batch = next(iter(loader))
        assert batch["image"].shape == batch["label"].shape == shape
        assert (batch["image"].dtype, batch["label"].dtype) == (torch.float16, torch.uint8)
        assert set(batch["label"].unique().tolist()) == {0, 1, 2}
        assert batch["patient"].shape == shape[:1]
        voxel_mm = (10.0, 10.0, 4.0) if sampling == WHOLE else (8.0, 8.0, 8.0)  # groups are resized
        np.testing.assert_allclose(batch["spacing_mm"], [voxel_mm] * shape[0])


def test_setup_caches_the_subsets_of_a_stage_and_evicts_volumes_of_other_settings(root, tmp_path):
    other = tmp_path / "0123456789abcdef"
    other.mkdir()
    data = data_module(root, cache_folder=str(tmp_path), cache_gb=0)
    for stage, subsets in (("validate", ["val"]), ("fit", ["train", "val"]), (None, SUBSETS)):
        data.setup(stage)
        volumes = {path.name[0] for path in tmp_path.rglob("*.npy")}
        assert volumes == {entry.patient for s in subsets for entry in data.entries(s)}
    assert not other.exists()


@BOTH
def test_neither_workers_nor_storage_change_a_batch(root, sampling):
    modules = (
        data_module(root, sampling=sampling),
        data_module(root, sampling=sampling, num_workers=2, cache="ram"),
    )
    for batch, other in zip(*(data.train_dataloader() for data in modules), strict=True):
        assert batch["name"] == other["name"]
        assert all(torch.equal(batch[key], other[key]) for key in ("image", "label"))


@BOTH
def test_a_batch_depends_on_the_seed_the_epoch_and_its_number_alone(root, monkeypatch, sampling):
    def images(epoch, **changes):
        data = data_module(root, sampling=sampling, augment=NOISE, **changes)
        monkeypatch.setattr(data, "epoch", lambda: epoch)
        return torch.cat([data.augment_batch(b)["image"] for b in data.train_dataloader()])

    first = images(0)
    assert torch.equal(first, images(0))
    for other in (images(0, seed=1), images(1)):
        assert (first != other).flatten(1).any(1).all()


@BOTH
def test_batches_are_augmented_in_training_alone(root, sampling):
    data = data_module(root, sampling=sampling, augment=NOISE)
    batch = next(iter(data.train_dataloader()))
    for is_training in (True, False):
        data.trainer = SimpleNamespace(training=is_training)
        given = data.on_after_batch_transfer(batch, 0)
        assert torch.equal(given["label"], batch["label"].float())
        assert torch.equal(given["image"], batch["image"].float()) is not is_training


def test_a_plan_is_stored_in_the_hyperparameters_of_checkpoints(root):
    given = {"spacing_mm": None, "spatial_size": None, "depth": None, "patch_voxels": 32**3}
    data = data_module(root, sampling=PATCHES, **given)
    assert vars(data.plan) == {"spacing_mm": (8.0, 8.0, 8.0), "spatial_size": (32, 32, 32)}
    assert data.hparams["spacing_mm"] == [8.0, 8.0, 8.0]
    assert data.hparams["spatial_size"] == [32, 32, 32]
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 1, 32, 32, 32)


def test_a_checkpoint_holds_the_split_and_the_fingerprint(root):
    data = data_module(root)
    state = data.state_dict()
    assert (state["split"], state["seen_before"]) == (asdict(data.split), [])
    assert data_module(root, window_hu=[0, 100]).fingerprint != state["fingerprint"]
    assert data_module(root).fingerprint == state["fingerprint"]


def test_unlabelled_and_duplicate_cases_are_not_in_the_split_and_those_without_groups_are(copied):
    before = data_module(copied).split
    edited(copied, lambda groups: [g for g in groups if g.patient != before.test[0]])
    assert data_module(copied).split == before
    edited(copied, a={"label": None}, b={"duplicate_of": "c", "voxel_hash": "pixels c"})
    split = data_module(copied).split
    assert sorted(split.train + split.val + split.test) == list("cdef")


REFUSED = [
    ({}, {"depth": 64}, r"prepared with groups of 8 slices, data\.depth is 64"),
    ({"groups": lambda _: []}, {}, r"3 training patients have no labelled group.*data\.tail=shift"),
    ({"complete": False}, {}, "run the same pancseg.prepare again"),
    ({}, {"orientation": "SAR"}, r"data\.orientation=SAR: expected"),
    ({}, {"window_hu": [200, -200]}, r"data\.window_hu=\[200, -200\]: expected"),
    ({}, {"spatial_size": None}, r"data\.spatial_size=null plans patches"),
    ({}, {"augment": {"noise_probability": 2}}, r"augment\.noise_probability=2"),
]


@pytest.mark.parametrize(("changes", "settings", "message"), REFUSED)
def test_a_folder_or_setting_that_does_not_fit_is_refused(copied, changes, settings, message):
    edited(copied, **changes)
    with pytest.raises(PancsegError, match=message):
        data_module(copied, **settings).setup("fit")


def test_of_several_processes_one_prepares_and_the_others_wait(tmp_path):
    root, calls = tmp_path / "root", []

    def prepare():
        calls.append(1)
        time.sleep(0.3)
        write_root(root)

    modules = [data_module(root, prepare=prepare) for _ in range(3)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda data: data.prepare_data(), modules))
    modules[0].prepare_data()  # prepared already
    assert calls == [1]
