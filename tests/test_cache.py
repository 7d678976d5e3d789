"""The cache of preprocessed volumes: made once, made again where needed, and evicted."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, Resized

from pancseg.data import cache as cache_module
from pancseg.data.cache import USE_LOCKS, VolumeCache, arrays_of, evict, is_in_use
from pancseg.data.manifest import Group
from pancseg.data.transforms import Preprocessing, deterministic
from pancseg.errors import PancsegError
from tests.conftest import contents
from tests.tiny_root import write_root

NUMBERS = Preprocessing("RAS", (8.0, 8.0, 8.0), (-200.0, 200.0), (16, 16, 16))
OTHER = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _use_locks_of_this_test() -> Iterator[None]:
    yield
    for lock in USE_LOCKS.values():
        lock.release()
    USE_LOCKS.clear()


@pytest.fixture
def cache(tmp_path: Path) -> VolumeCache:
    """The cases of three patients, not made yet."""
    cases = write_root(tmp_path / "root", "abc").cases
    folder = tmp_path / "cache" / ("f" * 16)
    return VolumeCache(tmp_path / "root", folder, NUMBERS, cases)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the volumes that are preprocessed from now on."""
    calls: list[int] = []
    resize = Resized.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return resize(self, *args, **kwargs)

    monkeypatch.setattr(Resized, "__call__", call)
    return calls


def test_stored_volumes_equal_those_of_the_transforms_and_labels_keep_their_codes(
    cache: VolumeCache,
) -> None:
    cache.fill()
    for case, volume in zip(cache.entries, cache, strict=True):
        files = {"image": str(cache.root / case.image), "label": str(cache.root / str(case.label))}
        item = Compose(deterministic(NUMBERS))(files)
        np.testing.assert_allclose(volume.image, item["image"][0].numpy(), atol=3e-4)
        np.testing.assert_array_equal(volume.label, item["label"][0].numpy())
        assert (volume.image.dtype, volume.label.dtype) == (np.float16, np.uint8)
        assert set(np.unique(volume.label)) == {0, 1, 2}
        np.testing.assert_array_equal(volume.foreground, np.argwhere(volume.label > 0))


def test_volumes_are_made_once(cache: VolumeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    for _ in range(2):
        replace(cache).fill()
    assert len(calls) == 3


@pytest.mark.parametrize("array", ["image", "label", "foreground"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_truncated_or_missing_volume_is_made_again(
    cache: VolumeCache, array: str, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.fill()
    good = contents(cache.folder)
    path = cache.folder / arrays_of(cache.entries[1])[array]
    if damage == "cut":
        os.truncate(path, path.stat().st_size - 1)
    else:
        path.unlink()
    calls = counted(monkeypatch)
    cache.fill()
    assert len(calls) == 1
    assert contents(cache.folder) == good


def test_a_label_corrected_by_hand_is_used_with_a_warning(
    cache: VolumeCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.fill()
    assert caplog.text == ""
    path = cache.root / str(cache.entries[0].label)
    label = nib.load(path)
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), path)
    cache.fill()
    assert [bool(volume.label.any()) for volume in cache] == [False, True, True]
    assert f"{path}: is not what pancseg.prepare wrote; it is used as it is" in caplog.text


def test_a_file_that_cannot_be_read_is_named(cache: VolumeCache) -> None:
    path = cache.root / cache.entries[2].image
    path.write_bytes(b"no image")
    with pytest.raises(PancsegError, match=rf"{path}: cannot be preprocessed \(\w+.*; delete it"):
        cache.fill()


def test_an_unlabelled_volume_has_an_image_alone(cache: VolumeCache) -> None:
    cache.entries = [replace(case, label=None, label_sha256="") for case in cache.entries]
    cache.fill()
    assert cache[0].image.shape == (16, 16, 16)
    assert cache[0].label is None
    assert len(list(cache.folder.glob("*.npy"))) == 3


def test_groups_and_cases_of_one_name_do_not_share_volumes(cache: VolumeCache) -> None:
    case = cache.entries[0]
    group = Group("a", "a", "a", 0, case.image, case.label, 1, "other image", "other label")
    assert arrays_of(group)["image"] != arrays_of(case)["image"]


def test_a_complete_cache_is_read_where_nothing_can_be_written(
    cache: VolumeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path, **_: Any) -> None:
        raise OSError(30, "Read-only file system")

    cache.fill()
    monkeypatch.setattr(cache_module, "FileLock", read_only)
    cache.fill()
    assert cache[0].image.shape == (16, 16, 16)
    other = replace(cache, folder=cache.folder.with_name(OTHER))
    with pytest.raises(PancsegError, match=r"Read-only file system.*data\.cache_folder=FOLDER"):
        other.fill()


@pytest.mark.slow
def test_several_processes_make_the_same_volumes_as_one(cache: VolumeCache) -> None:
    trees = []
    for processes in (0, 2):
        made = replace(cache, folder=cache.folder.with_name(f"{processes:016}"))
        made.fill(processes)
        trees.append({k: v for k, v in contents(made.folder).items() if k.endswith(".npy")})
    assert trees[0] == trees[1]
    assert len(trees[0]) == 9


@pytest.mark.parametrize("where", ["ram", "gpu"])
def test_loaded_volumes_equal_those_on_disk(cache: VolumeCache, where: str) -> None:
    cache.fill()
    on_disk = list(cache)
    cache.load(where, torch.device("cpu"))
    assert not cache.is_on_gpu
    for volume, expected in zip(cache, on_disk, strict=True):
        assert isinstance(volume.image, torch.Tensor)
        for array, other in zip(volume, expected, strict=True):
            np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize(("more", "fits"), [(3, True), (-3, False)])
def test_volumes_are_loaded_to_the_gpu_if_they_fit_in_a_fifth_of_its_free_memory(
    cache: VolumeCache, more: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.fill()
    free = int(5 * sum(array.nbytes for volume in cache for array in volume)) + more
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    targets = []
    monkeypatch.setattr(torch, "tensor", lambda _, device: targets.append(device.type))
    cache.load("gpu", torch.device("cuda"))
    assert cache.is_on_gpu is fits
    assert targets == ["cuda" if fits else "cpu"] * 6


def filled_folder(cache: VolumeCache, name: str, used_s: int) -> Path:
    """Volumes of other settings, last used at a time."""
    folder = cache.folder.with_name(name)
    folder.mkdir(parents=True)
    for array in arrays_of(cache.entries[0]).values():
        np.save(folder / array, np.zeros(10_000, np.uint8))
    os.utime(folder, (used_s, used_s))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_volumes_of_other_settings_are_removed_longest_unused_first(cache: VolumeCache) -> None:
    cache.fill()
    old, older, new = (
        filled_folder(cache, c * 16, t) for c, t in (("a", 200), ("b", 100), ("c", 300))
    )
    evict(cache.folder, 1)
    assert len(names(cache.folder.parent)) == 4
    evict(cache.folder, 110_000 / 1e9)
    assert names(cache.folder.parent) == [old.name, new.name, cache.folder.name]
    evict(cache.folder, 0)
    assert not older.exists()
    assert names(cache.folder.parent) == [cache.folder.name]
    assert cache.missing() == []


def test_files_that_pancseg_did_not_write_are_not_removed(cache: VolumeCache) -> None:
    cache.fill()
    other = filled_folder(cache, OTHER, 100)
    mine = [other / "notes.txt", other / "case_image.npy", cache.folder.parent / "experiment"]
    mine[2].mkdir()
    mine.append(mine[2] / f"x-{OTHER}_image.npy")
    (cache.folder.parent / ("d" * 16)).symlink_to(mine[2])
    for path in (mine[0], mine[1], mine[3]):
        path.write_text("kept")
    evict(cache.folder, 0)
    assert all(path.exists() for path in mine)
    assert sorted(path.name for path in other.iterdir()) == ["case_image.npy", "notes.txt"]


def test_volumes_that_another_process_fills_or_uses_are_not_removed(cache: VolumeCache) -> None:
    cache.fill()
    folders = [filled_folder(cache, c * 16, 100) for c in ("a", "b")]
    program = (
        "import sys; from filelock import FileLock; locks = [FileLock(p) for p in sys.argv[1:]];"
        "[lock.acquire() for lock in locks]; print('held', flush=True); sys.stdin.read()"
    )
    paths = [folders[0] / ".use-other", folders[1].with_suffix(".lock")]
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, paths)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        evict(cache.folder, 0)
        assert [len(list(folder.glob("*.npy"))) for folder in folders] == [3, 3]
        other.kill()  # its locks end with it
    evict(cache.folder, 0)
    assert names(cache.folder.parent) == [cache.folder.name]


def test_a_filled_folder_is_marked_as_used_and_old_marks_are_removed(cache: VolumeCache) -> None:
    cache.folder.mkdir(parents=True)
    (cache.folder / ".use-killed").touch()
    cache.fill()
    assert is_in_use(cache.folder)
    assert len(list(cache.folder.glob(".use-*"))) == 1
    USE_LOCKS.pop(cache.folder).release()
    assert not is_in_use(cache.folder)
