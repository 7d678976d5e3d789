"""The data module on a small prepared folder."""

import shutil
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from pancseg.data.datamodule import CTDataModule
from pancseg.data.manifest import read_manifest
from pancseg.data.splits import SUBSETS
from pancseg.errors import PancsegError
from tests.tiny_root import PATCHES, SHAPE, WHOLE, data_module, write_root

BOTH = pytest.mark.parametrize("sampling", [WHOLE, PATCHES], ids=["whole", "patches"])
NOISE = {"noise_probability": 1.0, "noise_hu": [20.0, 20.0]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients with three groups each."""
    folder = tmp_path_factory.mktemp("tiny") / "root"
    write_root(folder)
    return folder


@pytest.fixture
def copied(root: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(root, tmp_path / "root", ignore=shutil.ignore_patterns("cache")))


def edited(root: Path, **cases: dict[str, Any]) -> None:
    """Change fields of cases, by their names."""
    manifest = read_manifest(root)
    manifest.cases = [replace(case, **cases.get(case.name, {})) for case in manifest.cases]
    manifest.write(root)


def names_of(loader: Any) -> list[str]:
    return [name for batch in loader for name in batch["name"]]


@BOTH
def test_batches_of_all_subsets_have_the_documented_content(
    root: Path, sampling: dict[str, Any]
) -> None:
    data = data_module(root, sampling=sampling)
    size = (16, 16, 16) if sampling == WHOLE else (20, 20, 20)  # the body of a whole case
    for loader, shape in ((data.train_dataloader(), (16, 16, 16)), (data.val_dataloader(), size)):
        batch = next(iter(loader))
        n = len(batch["name"])
        assert batch["image"].shape == batch["label"].shape == (n, 1, *shape)
        assert (batch["image"].dtype, batch["label"].dtype) == (torch.float16, torch.uint8)
        assert set(batch["label"].unique().tolist()) == {0, 1}
        assert batch["patient"].shape == (n,)
        on_device = data.on_after_batch_transfer(batch, 0)
        assert on_device["image"].dtype == on_device["label"].dtype == torch.float32
    assert (size == (16, 16, 16)) == (next(iter(data.val_dataloader()))["image"].shape[0] == 2)


def test_training_draws_each_group_once_and_other_subsets_keep_the_order(root: Path) -> None:
    data = data_module(root)
    groups = {subset: [entry.name for entry in data.entries(subset)] for subset in SUBSETS}
    assert [len(found) for found in groups.values()] == [9, 3, 6]
    assert len(names_of(data.train_dataloader())) == 8  # a last batch of one is left out
    assert set(names_of(data.train_dataloader())) < set(groups["train"])
    assert names_of(data.val_dataloader()) == groups["val"]
    assert names_of(data.test_dataloader()) == groups["test"]


@BOTH
def test_prediction_is_on_everything_in_the_folder_without_labels(
    copied: Path, sampling: dict[str, Any]
) -> None:
    edited(copied, a={"label": None, "label_sha256": "", "label_voxels": None})
    data = data_module(copied, sampling=sampling, split={"val": 1, "test": 1})
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert not any("label" in batch for batch in batches)
    names = names_of(batches)
    assert len(names) == (18 if sampling == WHOLE else 6)
    assert {name[0] for name in names} == set("abcdef")
    assert not any(name.startswith("a") for name in names_of(data.train_dataloader()))


@pytest.mark.parametrize(
    ("stage", "subsets"),
    [("fit", "train val"), ("validate", "val"), ("test", "test"), (None, "train val test")],
)
def test_setup_preprocesses_the_subsets_of_a_stage(
    root: Path, tmp_path: Path, stage: str | None, subsets: str
) -> None:
    data = data_module(root, cache_folder=str(tmp_path))
    data.setup(stage)
    names = {path.name[0] for path in tmp_path.rglob("*.npy")}
    expected = {entry.patient for subset in subsets.split() for entry in data.entries(subset)}
    assert names == expected


@pytest.mark.parametrize(("cache_gb", "is_kept"), [(100, True), (0, False)])
def test_setup_removes_volumes_of_other_settings_above_the_size_of_the_cache(
    root: Path, tmp_path: Path, cache_gb: float, is_kept: bool
) -> None:
    other = tmp_path / "0123456789abcdef"
    other.mkdir()
    (other / f"a-{other.name}_image.npy").write_bytes(bytes(1000))
    data_module(root, cache_folder=str(tmp_path), cache_gb=cache_gb).setup("validate")
    assert other.exists() is is_kept
    assert len(list(tmp_path.glob("*/*.npy"))) == 9 + is_kept


@BOTH
@pytest.mark.parametrize("change", [{"num_workers": 2}, {"cache": "ram"}, {"cache": "gpu"}])
def test_neither_workers_nor_storage_change_a_batch(
    root: Path, sampling: dict[str, Any], change: dict[str, Any]
) -> None:
    loaders = [data_module(root, sampling=sampling, **c).train_dataloader() for c in ({}, change)]
    for batch, other in zip(*loaders, strict=True):
        assert batch["name"] == other["name"]
        assert torch.equal(batch["image"], other["image"])
        assert torch.equal(batch["label"], other["label"])


@BOTH
def test_a_batch_depends_on_the_seed_the_epoch_and_its_number_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch, sampling: dict[str, Any]
) -> None:
    def images_of(epoch: int, **changes: Any) -> list[torch.Tensor]:
        data = data_module(root, sampling=sampling, augment=NOISE, **changes)
        monkeypatch.setattr(data, "epoch", lambda: epoch)
        return [data.augment_batch(batch)["image"] for batch in data.train_dataloader()]

    first, again, other_seed = images_of(0), images_of(0), images_of(0, seed=1)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(first, other_seed, strict=True))
    next_epoch = images_of(1)
    assert not any(torch.equal(*pair) for pair in zip(first, next_epoch, strict=True))


class Recorder(pl.LightningModule):
    """Keeps the batches that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches: dict[str, list[Any]] = {"train": [], "val": [], "test": [], "predict": []}

    def record(self, subset: str, batch: Any) -> torch.Tensor:
        self.batches[subset].append(batch)
        return self.weight.sum()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.record("train", batch)

    def validation_step(self, batch: Any, index: int) -> None:
        self.record("val", batch)

    def test_step(self, batch: Any, index: int) -> None:
        self.record("test", batch)

    def predict_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.record("predict", batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def quiet_trainer(**options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        num_sanity_val_steps=0, **options,
    )  # fmt: skip


@BOTH
def test_a_trainer_is_given_augmented_batches_in_training_alone(
    root: Path, sampling: dict[str, Any]
) -> None:
    moved = {"rotation_probability": 1.0, "rotation_degrees": [9, 9, 9], **NOISE}
    data, plain = (data_module(root, sampling=sampling, augment=a) for a in (moved, None))
    assert max(data.augmenter.margin) > 0 or sampling == WHOLE
    module = Recorder()
    quiet_trainer().fit(module, datamodule=data)
    quiet_trainer().test(module, datamodule=plain, verbose=False)
    quiet_trainer().predict(module, datamodule=plain, return_predictions=False)
    steps = [batch["step"] for batch in module.batches["train"]]
    assert steps == list(range(len(steps)))
    assert len(steps) == 2 * len(data.train_dataloader())
    first = next(iter(plain.train_dataloader()))
    assert module.batches["train"][0]["name"] == first["name"]
    assert not torch.equal(module.batches["train"][0]["image"], first["image"].float())
    for subset in ("val", "test"):
        expected = list(plain.whole_volumes(subset))
        assert len(module.batches[subset]) == len(expected) * (2 if subset == "val" else 1)
        for batch, other in zip(module.batches[subset], expected, strict=False):
            assert torch.equal(batch["image"], other["image"].float())
    assert len(module.batches["predict"]) == len(plain.predict_dataloader())
    assert all(batch["image"].dtype == torch.float32 for batch in module.batches["predict"])


def test_a_plan_is_made_once_and_stored_in_the_hyperparameters_of_checkpoints(root: Path) -> None:
    given = {"spacing_mm": None, "spatial_size": None}
    data = data_module(root, sampling=PATCHES, depth=None, patch_voxels=32**3, **given)
    assert data.plan is data.plan
    assert data.plan.spatial_size == (32, 32, 32)
    assert data.plan.spacing_mm == (8.0, 8.0, 8.0)
    assert data.hparams["spatial_size"] == [32, 32, 32]
    assert data.hparams["spacing_mm"] == [8.0, 8.0, 8.0]
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 1, 32, 32, 32)


def test_given_spacing_and_size_need_no_prepared_folder(tmp_path: Path) -> None:
    assert data_module(tmp_path / "nowhere").plan.spatial_size == (16, 16, 16)


def test_settings_of_preparation_are_those_of_the_folder(root: Path) -> None:
    data = data_module(root, tail="pad", keep_empty=True)
    data.setup("fit")
    assert (data.hparams["tail"], data.hparams["keep_empty"]) == ("shift", False)


def test_a_checkpoint_holds_the_split_the_fingerprint_and_the_profile(root: Path) -> None:
    data = data_module(root)
    state = data.state_dict()
    assert state["split"] == asdict(data.split)
    assert state["profile"]["n"] == 3
    assert state["seen_before"] == []
    assert data_module(root, window_hu=[0, 100]).fingerprint != state["fingerprint"]
    assert data_module(root).fingerprint == state["fingerprint"]


@pytest.mark.parametrize(
    "shared", [{"patient_id_hash": "P"}, {"study_hash": "S"}, {"voxel_hash": "scan"}]
)
def test_names_of_one_person_are_never_in_two_subsets(copied: Path, shared: dict[str, str]) -> None:
    split = data_module(copied).split
    first, second = split.train[0], split.test[0]
    edited(copied, **{first: shared, second: shared})
    subsets = [getattr(data_module(copied).split, subset) for subset in SUBSETS]
    assert sorted({first, second} <= set(names) for names in subsets) == [False, False, True]
    path = copied / "split.json"
    path.write_text(f'{{"train": ["{first}"], "val": [], "test": ["{second}"]}}')
    with pytest.raises(PancsegError, match="in both train and test"):
        _ = data_module(copied, split={"rule": "file", "path": str(path)}).split


def test_unlabelled_and_duplicate_cases_are_not_in_the_split(copied: Path) -> None:
    edited(copied, a={"label": None}, b={"duplicate_of": "c", "voxel_hash": "pixels c"})
    split = data_module(copied).split
    assert sorted(split.train + split.val + split.test) == list("cdef")


def test_labelled_patients_without_groups_are_ranked_too(copied: Path) -> None:
    before = data_module(copied).split
    manifest = read_manifest(copied)
    manifest.groups = [group for group in manifest.groups if group.patient != before.test[0]]
    manifest.write(copied)
    assert data_module(copied).split == before


def test_patches_need_no_groups(tmp_path: Path) -> None:
    write_root(tmp_path, groups=False)
    data = data_module(tmp_path, depth=None, sampling=PATCHES)
    assert next(iter(data.train_dataloader()))["image"].shape[2:] == (16, 16, 16)
    assert next(iter(data.val_dataloader()))["image"].shape[4] == SHAPE[2]


def without_groups(root: Path) -> None:
    manifest = read_manifest(root)
    manifest.groups = []
    manifest.write(root)


def without_voxels(root: Path) -> None:
    edited(root, **{name: {"label_voxels": 0} for name in "abcdef"})
    manifest = read_manifest(root)
    manifest.groups = [replace(group, label_voxels=0) for group in manifest.groups]
    manifest.write(root)


def interrupted(root: Path) -> None:
    replace(read_manifest(root), complete=False).write(root)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (None, {"depth": 64}, r"prepared with groups of 8 slices, data\.depth is 64"),
        (without_groups, {}, r"the 3 training patients have no labelled group.*data\.tail=shift"),
        (without_voxels, {}, "training patients have no labelled group"),
        (without_voxels, {"sampling": PATCHES}, "3 training patients have no labelled voxel"),
        (interrupted, {}, "run the same pancseg.prepare again"),
        (None, {"batch_size": 0}, r"data\.batch_size=0: expected at least 1"),
        (None, {"cache": "tape"}, r"hardware\.cache=tape: expected one of disk, ram, gpu"),
        (None, {"depth": None}, "no groups to take whole; give sampling=patches"),
    ],
)
def test_a_folder_or_setting_that_does_not_fit_is_refused(
    copied: Path, change: Any, settings: dict[str, Any], message: str
) -> None:
    if change:
        change(copied)
    with pytest.raises(PancsegError, match=message):
        data_module(copied, **settings).setup("fit")


def test_an_unprepared_folder_is_prepared_once(tmp_path: Path) -> None:
    calls, root = [], tmp_path / "root"
    data = data_module(root, prepare=lambda: calls.append(write_root(root)))
    for _ in range(2):
        data.prepare_data()
    assert len(calls) == 1
    assert data.split.train


def test_of_several_processes_one_prepares_and_the_others_wait(tmp_path: Path) -> None:
    root, calls = tmp_path / "root", []
    started, may_end = threading.Event(), threading.Event()

    def prepare() -> None:
        calls.append(1)
        started.set()
        may_end.wait(60)
        write_root(root)

    modules = [data_module(root, prepare=prepare) for _ in range(3)]
    threads = [threading.Thread(target=data.prepare_data, daemon=True) for data in modules]
    for thread in threads:
        thread.start()
    assert started.wait(60)
    threads[0].join(0.5)
    assert all(thread.is_alive() for thread in threads)
    may_end.set()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert calls == [1]


def test_processes_share_subsets_and_too_many_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_rank(rank: int, processes: int) -> CTDataModule:
        data = data_module(root)
        monkeypatch.setattr(data, "rank_and_processes", lambda: (rank, processes))
        return data

    names = [names_of(of_rank(rank, 2).val_dataloader()) for rank in range(2)]
    assert sorted(names[0] + names[1]) == names_of(data_module(root).val_dataloader())
    with pytest.raises(PancsegError, match="3 val volumes for 4 processes"):
        of_rank(0, 4).val_dataloader()
    with pytest.raises(PancsegError, match="9 training groups for 5 processes"):
        of_rank(0, 5).train_dataloader()
