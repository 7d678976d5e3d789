"""The data module on prepared phantoms."""

import json
import shutil
from pathlib import Path
from typing import Any

import monai.transforms
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose

from pancseg.dataset import volume_cache
from pancseg.dataset.datamodule import GroupData
from pancseg.dataset.splits import PARTS, Split, deal
from pancseg.dataset.transforms import deterministic
from pancseg.errors import PancsegError
from tests.conftest import contents

PHANTOMS = [f"phantom-3-00{n}" for n in range(6)]
WHOLE: dict[str, Any] = {"kind": "whole"}
PATCHES = {"kind": "patches", "steps_per_epoch": 3, "foreground_share": 0.5, "jitter": 0.25}


def group_data(root: Path, **changes: Any) -> GroupData:
    settings: dict[str, Any] = {
        "name": "test", "root": str(root), "depth": 32, "tail": "shift", "keep_empty": False,
        "orientation": "RAS", "spacing_mm": [8.0, 8.0, 8.0], "window_hu": [-200, 200],
        "spatial_size": [32, 32, 32], "field_mm": [220, 180, 160], "patch_voxels": 40_000,
        "batch_size": 2, "num_workers": 0, "pin_memory": False, "cache": "disk",
        "cache_folder": None, "sampling": WHOLE, "split": {"val": 1, "test": 2},
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
    assert (batch["image"].dtype, batch["label"].dtype) == (torch.float16, torch.uint8)
    assert set(batch["label"].unique().tolist()) == {0, 1}
    assert batch["patient"].shape == (2,)


def test_no_patient_is_in_two_parts(data: GroupData) -> None:
    parts = [{one.patient for one in data.chosen.sources(part)} for part in PARTS]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert [len(part) for part in parts] == [3, 1, 2]


def test_a_leaking_split_is_caught_when_the_module_starts(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leak = Split(["phantom-3-000"], ["phantom-3-001"], ["phantom-3-000"], "holdout", 0)
    monkeypatch.setattr("pancseg.dataset.chosen_data.deal", lambda *_, **__: leak)
    with pytest.raises(PancsegError, match="both train and test: phantom-3-000"):
        group_data(prepared).setup()


def test_the_deterministic_part_runs_once_a_group_for_all_trainings(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    resize = monai.transforms.Resized.__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return resize(self, *args, **kwargs)

    monkeypatch.setattr(monai.transforms.Resized, "__call__", counted)
    for _ in range(2):
        module = group_data(prepared, spatial_size=[32, 32, 48])  # a size no other test has cached
        module.setup()
        list(module.train_dataloader())
    assert len(calls) == len(module.chosen.sources("train")) + len(module.chosen.sources("val"))


def test_other_settings_do_not_use_an_older_cache(prepared: Path, data: GroupData) -> None:
    window = group_data(prepared, window_hu=[-100, 100])
    window.setup()
    one, other = (next(iter(m.val_dataloader()))["image"] for m in (data, window))
    assert not torch.equal(one, other)


def test_what_is_stored_is_what_the_transforms_give(prepared: Path, data: GroupData) -> None:
    steps = Compose(deterministic(data.chosen.preprocessing))
    for batch, source in zip(data.val_dataloader(), [data.chosen.sources("val")[:2]], strict=False):
        for i, one in enumerate(source):
            made = steps({"image": str(one.image), "label": str(one.label)})
            assert torch.equal(batch["label"][i], made["label"].to(torch.uint8))
            torch.testing.assert_close(
                batch["image"][i].float(), made["image"].as_tensor(), atol=3e-4, rtol=0
            )


def test_a_filled_cache_is_read_where_nothing_may_be_written(
    prepared: Path, data: GroupData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(volume_cache, "FileLock", forbidden)
    group_data(prepared).setup()
    with pytest.raises(PancsegError, match=r"Read-only file system.*data\.cache_folder=FOLDER"):
        group_data(prepared, spatial_size=[32, 64, 32]).setup()


@pytest.mark.slow
def test_several_processes_make_the_same_volumes_as_one(data: GroupData, tmp_path: Path) -> None:
    trees = []
    for processes in (0, 2):
        store = data.chosen.store(tmp_path / str(processes))
        store.fill(data.chosen.sources("train"), processes)
        trees.append(contents(store.folder))
    assert trees[0] == trees[1]
    assert len(trees[0]) > 6


def test_a_cached_group_that_was_cut_short_is_made_again(prepared: Path, data: GroupData) -> None:
    good = next(iter(data.val_dataloader()))["image"]
    for path in data.store().folder.glob("*_image.npy"):
        path.write_bytes(path.read_bytes()[:1000])
    again = group_data(prepared)
    again.setup()
    assert torch.equal(next(iter(again.val_dataloader()))["image"], good)


def test_a_label_that_was_corrected_by_hand_is_read_anew(prepared: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(prepared, root)
    for corrected in (False, True):
        module = group_data(root, sampling=PATCHES)
        module.setup()
        source = module.chosen.sources("train")[0]
        assert module.store().open(source).label.any() != corrected
        label = nib.load(source.label)
        nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), source.label)


@pytest.mark.parametrize("sampling", [WHOLE, PATCHES], ids=["whole", "patches"])
@pytest.mark.parametrize("change", [{"num_workers": 2}, {"cache": "ram"}, {"cache": "gpu"}])
def test_neither_workers_nor_where_volumes_are_kept_change_a_batch(
    prepared: Path, sampling: dict[str, Any], change: dict[str, Any]
) -> None:
    batches = []
    for more in ({}, change):
        module = group_data(prepared, sampling=sampling, **more)
        module.setup()
        batches.append(list(module.train_dataloader()))
    for one, other in zip(*batches, strict=True):
        assert one["name"] == other["name"]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])


@pytest.mark.parametrize("sampling", [WHOLE, PATCHES], ids=["whole", "patches"])
def test_a_batch_depends_on_the_seed_and_on_its_number_alone(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, sampling: dict[str, Any]
) -> None:
    def from_batch(done: int, **changes: Any) -> list[torch.Tensor]:
        module = group_data(prepared, sampling=sampling, **changes)
        module.setup()
        length = len(module.train_dataloader())
        monkeypatch.setattr(module, "position", lambda: (done, done % length))
        return [batch["image"] for batch in module.train_dataloader()]

    whole, second, other = from_batch(0), from_batch(1), from_batch(0, seed=1)
    assert len(second) == len(whole) - 1
    assert all(torch.equal(*pair) for pair in zip(whole[1:], second, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(whole, other, strict=True))
    later = from_batch(len(whole))
    assert not all(torch.equal(*pair) for pair in zip(whole, later, strict=True))


def test_an_epoch_has_each_group_once_and_validation_keeps_their_order(data: GroupData) -> None:
    def names(loader: Any) -> list[str]:
        return [name for batch in loader for name in batch["name"]]

    groups = [one.name for one in data.chosen.sources("train")]
    assert sorted(names(data.train_dataloader())) == groups
    assert names(data.val_dataloader()) == [one.name for one in data.chosen.sources("val")]


def test_a_last_batch_of_one_takes_no_step_of_its_own(prepared: Path) -> None:
    for size in (1, 2, 3, 4):
        module = group_data(prepared, batch_size=size, split={"val": 1, "test": 1})
        module.setup()
        sizes = [len(batch["name"]) for batch in module.train_dataloader()]
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
    (tmp_path / "groups").symlink_to(prepared / "groups")
    module = group_data(tmp_path)
    module.setup()
    dealt = module.chosen.split.train + module.chosen.split.val + module.chosen.split.test
    assert len(dealt) == 5
    assert "phantom-3-000" not in dealt


def test_two_names_of_one_person_never_fall_on_two_sides(prepared: Path, tmp_path: Path) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    names = sorted({case["patient"] for case in manifest["cases"]})
    rules = ({"val": 1, "test": 2, "seed": seed} for seed in range(100))
    rule = next(rule for rule in rules if names[0] in deal(names, **rule).test)
    apart = next(name for name in names if name not in deal(names, **rule).test)
    for case in manifest["cases"]:
        if case["patient"] in (names[0], apart):
            case["person"] = "one and the same"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for folder in ("cases", "groups"):
        (tmp_path / folder).symlink_to(prepared / folder)
    module = group_data(tmp_path, split=rule)
    module.setup()
    parts = (module.chosen.split.train, module.chosen.split.val, module.chosen.split.test)
    assert sorted({names[0], apart} <= set(part) for part in parts) == [False, False, True]
