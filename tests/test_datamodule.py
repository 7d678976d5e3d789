"""The data module on a small prepared folder."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel

from pancseg.data.manifest import read_manifest
from pancseg.data.splits import SUBSETS
from pancseg.errors import PancsegError
from tests.tiny_root import PATCHES, WHOLE, data_module, write_root

BOTH = pytest.mark.parametrize("sampling", [WHOLE, PATCHES], ids=["whole", "patches"])
NOISE = {"noise_probability": 1.0, "noise_hu": [20.0, 20.0]}
MOVED = {"rotation_probability": 1.0, "rotation_degrees": [9, 9, 9], **NOISE}


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


def names_of(loader):
    return [name for batch in loader for name in batch["name"]]


def are_equal(batches, others, compare=all):
    pairs = zip(batches, others, strict=True)
    return compare(torch.equal(a["image"].float(), b["image"].float()) for a, b in pairs)


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
        on_device = data.on_after_batch_transfer(batch, 0)
        assert on_device["image"].dtype == on_device["label"].dtype == torch.float32


@BOTH
def test_prediction_is_on_everything_in_the_folder_without_labels(copied, sampling):
    edited(copied, a={"label": None, "label_sha256": "", "label_voxels": None})
    data = data_module(copied, sampling=sampling, split={"val": 1, "test": 1})
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert not any("label" in batch for batch in batches)
    assert len(names_of(batches)) == (18 if sampling == WHOLE else 6)
    assert {name[0] for name in names_of(batches)} == set("abcdef")
    assert not any(name.startswith("a") for name in names_of(data.train_dataloader()))


@pytest.mark.parametrize(("cache_gb", "is_kept"), [(100, True), (0, False)])
def test_setup_caches_the_subsets_of_a_stage_and_evicts(root, tmp_path, cache_gb, is_kept):
    other = tmp_path / "0123456789abcdef"
    other.mkdir()
    (other / f"a-{other.name}_image.npy").write_bytes(bytes(1000))
    data = data_module(root, cache_folder=str(tmp_path), cache_gb=cache_gb)
    for stage, subsets in (("validate", ["val"]), ("fit", ["train", "val"]), (None, SUBSETS)):
        data.setup(stage)
        volumes = {p.name[0] for p in tmp_path.rglob("*.npy") if p.parent != other}
        assert volumes == {entry.patient for s in subsets for entry in data.entries(s)}
    assert other.exists() is is_kept


@BOTH
@pytest.mark.parametrize("change", [{"num_workers": 2}, {"cache": "ram"}])
def test_neither_workers_nor_storage_change_a_batch(root, sampling, change):
    loaders = [data_module(root, sampling=sampling, **c).train_dataloader() for c in ({}, change)]
    for batch, other in zip(*loaders, strict=True):
        assert batch["name"] == other["name"]
        assert all(torch.equal(batch[key], other[key]) for key in ("image", "label"))


@BOTH
def test_a_batch_depends_on_the_seed_the_epoch_and_its_number_alone(root, monkeypatch, sampling):
    def batches(epoch, **changes):
        data = data_module(root, sampling=sampling, augment=NOISE, **changes)
        monkeypatch.setattr(data, "epoch", lambda: epoch)
        return [data.augment_batch(batch) for batch in data.train_dataloader()]

    first = batches(0)
    assert are_equal(first, batches(0))
    for others in (batches(0, seed=1), batches(1)):
        assert not are_equal(first, others, any)


class Recorder(BoringModel):
    """Keeps the batches that it is given."""

    def training_step(self, batch, index):
        self.batches.append(batch)
        return self.layer.weight.sum()

    validation_step = training_step


@BOTH
def test_a_trainer_is_given_augmented_batches_in_training_alone(root, sampling):
    data, plain = (data_module(root, sampling=sampling, augment=a) for a in (MOVED, None))
    assert max(data.augmenter.margin) > 0 or sampling == WHOLE
    module = Recorder()
    module.batches = []
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options = dict.fromkeys((*quiet, "use_distributed_sampler"), False)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=2, num_sanity_val_steps=0, **options)
    trainer.fit(module, datamodule=data)
    train = [batch for batch in module.batches if "step" in batch]
    assert [batch["step"] for batch in train] == list(range(2 * len(data.train_dataloader())))
    first = next(iter(plain.train_dataloader()))
    assert train[0]["name"] == first["name"] and not are_equal(train[:1], [first])
    val = [batch for batch in module.batches if "step" not in batch]
    assert are_equal(val, 2 * list(plain.val_dataloader()))


def test_a_plan_is_made_once_and_stored_in_the_hyperparameters_of_checkpoints(root, tmp_path):
    given = {"spacing_mm": None, "spatial_size": None, "depth": None, "patch_voxels": 32**3}
    data = data_module(root, sampling=PATCHES, **given)
    assert data.plan is data.plan
    plan, stored = vars(data.plan), {key: data.hparams[key] for key in vars(data.plan)}
    assert plan == {"spacing_mm": (8.0, 8.0, 8.0), "spatial_size": (32, 32, 32)}
    assert stored == {"spacing_mm": [8.0, 8.0, 8.0], "spatial_size": [32, 32, 32]}
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 1, 32, 32, 32)
    assert data_module(tmp_path / "nowhere").plan.spatial_size == (16, 16, 16)


def test_a_checkpoint_holds_the_split_the_fingerprint_and_the_settings_of_preparation(root):
    data = data_module(root, tail="pad", keep_empty=True)
    state = data.state_dict()
    assert state["split"] == asdict(data.split)
    assert (state["profile"]["n"], state["seen_before"]) == (3, [])
    assert data_module(root, window_hu=[0, 100]).fingerprint != state["fingerprint"]
    assert data_module(root).fingerprint == state["fingerprint"]
    assert (data.hparams["tail"], data.hparams["keep_empty"]) == ("shift", False)


def test_unlabelled_and_duplicate_cases_are_not_in_the_split_and_those_without_groups_are(copied):
    before = data_module(copied).split
    edited(copied, lambda groups: [g for g in groups if g.patient != before.test[0]])
    assert data_module(copied).split == before
    edited(copied, a={"label": None}, b={"duplicate_of": "c", "voxel_hash": "pixels c"})
    split = data_module(copied).split
    assert sorted(split.train + split.val + split.test) == list("cdef")


EMPTY = {name: {"label_voxels": 0} for name in "abcdef"}
EMPTY["groups"] = lambda groups: [replace(group, label_voxels=0) for group in groups]
REFUSED = [
    ({}, {"depth": 64}, r"prepared with groups of 8 slices, data\.depth is 64"),
    ({"groups": lambda _: []}, {}, r"3 training patients have no labelled group.*data\.tail=shift"),
    (EMPTY, {"sampling": PATCHES}, "training patients have no labelled voxel"),
    ({"complete": False}, {}, "run the same pancseg.prepare again"),
    ({}, {"batch_size": 0}, r"data\.batch_size=0: expected at least 1"),
    ({}, {"orientation": "SAR"}, r"data\.orientation=SAR: expected"),
    ({}, {"cache": "tape"}, r"hardware\.cache=tape: expected one of disk, ram, gpu"),
    ({}, {"depth": None}, "no groups to take whole; give sampling=patches"),
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


def test_processes_share_subsets_and_too_many_are_refused(root, monkeypatch):
    def of_rank(rank, processes):
        data = data_module(root)
        monkeypatch.setattr(data, "rank_and_processes", lambda: (rank, processes))
        return data

    names = [name for rank in range(2) for name in names_of(of_rank(rank, 2).val_dataloader())]
    assert sorted(names) == names_of(data_module(root).val_dataloader())
    with pytest.raises(PancsegError, match="3 val volumes for 4 processes"):
        of_rank(0, 4).val_dataloader()
    with pytest.raises(PancsegError, match="9 training groups for 5 processes"):
        of_rank(0, 5).train_dataloader()
