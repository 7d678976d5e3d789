"""The data module on prepared phantoms."""

import json
from pathlib import Path
from typing import Any

import monai.transforms
import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.seed import pl_worker_init_function

from pancseg.dataset.datamodule import GroupData
from pancseg.dataset.splits import Split
from pancseg.errors import PancsegError

NO_AUGMENT: dict[str, Any] = {}


def group_data(root: Path, **changes: Any) -> GroupData:
    settings: dict[str, Any] = {
        "name": "test", "root": str(root), "depth": 32, "tail": "shift", "keep_empty": False,
        "orientation": "RAS", "spacing_mm": [8.0, 8.0, 8.0], "window_hu": [-200, 200],
        "spatial_size": [32, 32, 32], "augment": NO_AUGMENT, "batch_size": 2, "num_workers": 0,
        "pin_memory": False, "cache": True, "split": {"val": 1, "test": 2},
    }  # fmt: skip
    return GroupData(**{**settings, **changes})


@pytest.fixture
def data(prepared: Path) -> GroupData:
    module = group_data(prepared)
    module.setup()
    return module


def test_a_batch_has_the_shapes_of_the_contract(data: GroupData) -> None:
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == batch["label"].shape == (2, 1, 32, 32, 32)
    assert batch["image"].dtype == torch.float32
    assert set(batch["label"].unique().tolist()) <= {0.0, 1.0}
    assert batch["patient"].shape == (2,)


def test_no_patient_is_in_two_parts(data: GroupData) -> None:
    parts = [{group.patient for group in data.groups(part)} for part in ("train", "val", "test")]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert [len(part) for part in parts] == [3, 1, 2]


def test_a_leaking_split_is_caught_when_the_module_starts(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leak = Split(["phantom-3-000"], ["phantom-3-001"], ["phantom-3-000"], "holdout", 0)
    monkeypatch.setattr("pancseg.dataset.datamodule.deal", lambda *_, **__: leak)
    with pytest.raises(PancsegError, match="both train and test: phantom-3-000"):
        group_data(prepared).setup()


def test_the_deterministic_part_runs_once_a_group_and_on_first_use(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    resize = monai.transforms.Resized.__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return resize(self, *args, **kwargs)

    monkeypatch.setattr(monai.transforms.Resized, "__call__", counted)
    module = group_data(prepared, spatial_size=[32, 32, 48])  # a size no other test has cached
    module.setup()
    loader = module.train_dataloader()
    next(iter(loader))
    assert len(calls) == 2  # one batch of two: nothing is prepared ahead
    for _ in range(3):
        list(loader)
    assert len(calls) <= len(module.groups("train"))


def test_other_settings_do_not_use_an_older_cache(prepared: Path, data: GroupData) -> None:
    window = group_data(prepared, window_hu=[-100, 100])
    window.setup()
    one, other = (next(iter(m.val_dataloader()))["image"] for m in (data, window))
    assert not torch.equal(one, other)


def test_cached_batches_equal_uncached_ones(prepared: Path, data: GroupData) -> None:
    list(data.val_dataloader())  # fills the cache
    plain = group_data(prepared, cache=False)
    plain.setup()
    for one, other in zip(data.val_dataloader(), plain.val_dataloader(), strict=True):
        assert one.keys() == other.keys()
        torch.testing.assert_close(one["image"], other["image"])
        torch.testing.assert_close(one["label"], other["label"])


def test_a_batch_may_mix_cached_groups_and_new_ones(prepared: Path) -> None:
    module = group_data(prepared, spatial_size=[32, 48, 32])  # a size no other test has cached
    module.setup()
    dataset = module.dataset("train")
    dataset[0]
    batch = next(iter(module.loader(dataset)))
    assert batch["group"] == [group.group for group in module.groups("train")[:2]]


def test_a_cached_group_that_was_cut_short_is_made_again(prepared: Path, data: GroupData) -> None:
    good = next(iter(data.val_dataloader()))["image"]
    for path in (prepared / "cache").rglob("*.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    torch.testing.assert_close(next(iter(data.val_dataloader()))["image"], good)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_seed_gives_one_sequence_of_augmentation_and_samples_differ(
    prepared: Path, workers: int
) -> None:
    noisy = {"intensity_probability": 1.0, "scale_share": 0.5, "shift_share": 0.5}
    module = group_data(prepared, augment=noisy, num_workers=workers, batch_size=1)
    module.setup()

    def means() -> list[float]:
        pl.seed_everything(0, workers=True, verbose=False)
        loader = module.loader(module.dataset("train"), worker_init_fn=pl_worker_init_function)
        return [float(batch["image"].mean()) for batch in loader]

    first = means()
    assert means() == first
    plain = group_data(prepared, batch_size=1)
    plain.setup()
    factors = [
        one / float(b["image"].mean())
        for one, b in zip(first, plain.loader(plain.dataset("train")), strict=True)
    ]
    assert len({round(factor, 3) for factor in factors}) == len(factors)


def test_training_is_shuffled_and_validation_is_not(data: GroupData) -> None:
    torch.manual_seed(0)
    orders = [[g for b in data.train_dataloader() for g in b["group"]] for _ in range(4)]
    assert len({tuple(order) for order in orders}) > 1
    names = [group.group for group in data.groups("val")]
    assert [g for b in data.val_dataloader() for g in b["group"]] == names


def test_a_last_batch_of_one_takes_no_step_of_its_own(prepared: Path) -> None:
    for size in (1, 2, 3, 4):
        module = group_data(prepared, batch_size=size, split={"val": 1, "test": 1})
        module.setup()
        sizes = [len(batch["group"]) for batch in module.train_dataloader()]
        assert min(sizes) > 1 or size == 1


def test_a_folder_of_another_depth_is_refused(prepared: Path) -> None:
    with pytest.raises(PancsegError, match=r"groups of 32, data\.depth is 64"):
        group_data(prepared, depth=64).setup()


def test_a_folder_without_groups_to_train_on_says_why(prepared: Path, tmp_path: Path) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "groups": []}))
    with pytest.raises(PancsegError, match=r"no labelled group.*data\.tail=shift"):
        group_data(tmp_path).setup()


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "cannot be read"), ("[]", "not a manifest"), ('{"schema": 99}', "schema 99")],
)
def test_a_damaged_manifest_is_told(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(PancsegError, match=says):
        group_data(tmp_path).setup()


def test_unlabelled_patients_are_never_dealt(prepared: Path, tmp_path: Path) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    for entry in manifest["cases"] + manifest["groups"]:
        if entry["patient"] == "phantom-3-000":
            entry["label"] = entry["label_voxels"] = None
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    module = group_data(tmp_path)
    module.setup()
    dealt = module.dealt.train + module.dealt.val + module.dealt.test
    assert len(dealt) == 5
    assert "phantom-3-000" not in dealt
