"""The cache of preprocessed volumes: made once, made again where needed, and evicted."""

import os
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose

from pancseg.data import cache as module
from pancseg.data.cache import USE_LOCKS, VolumeCache, arrays_of, evict
from pancseg.data.transforms import Preprocessing, preprocessing_transforms
from pancseg.errors import PancsegError
from pancseg.structures import IGNORED
from tests.conftest import contents
from tests.tiny_root import write_root

NUMBERS = Preprocessing("RAS", (8.0, 8.0, 8.0), (-200.0, 200.0), (16, 16, 16))


@pytest.fixture
def cache(tmp_path):
    """The cases of three patients, preprocessed."""
    cases = write_root(tmp_path / "root", "abc", ignored=True).cases
    cache = VolumeCache(tmp_path / "root", tmp_path / "cache" / ("f" * 16), NUMBERS, cases)
    cache.make_missing()
    yield cache
    for lock in USE_LOCKS.values():
        lock.release()
    USE_LOCKS.clear()


def test_stored_volumes_equal_those_of_the_transforms_and_labels_keep_their_codes(cache):
    for case, volume in zip(cache.entries, cache, strict=True):
        files = {"image": str(cache.root / case.image), "label": str(cache.root / case.label)}
        item = Compose(preprocessing_transforms(NUMBERS))(files)
        np.testing.assert_allclose(volume.image, item["image"][0].numpy(), atol=3e-4)
        np.testing.assert_array_equal(volume.label, item["label"][0].numpy())
        assert (volume.image.dtype, volume.label.dtype) == (np.float16, np.uint8)
        assert set(np.unique(volume.label)) == {0, 1, 2, IGNORED}
        labelled = np.argwhere(np.isin(volume.label, (1, 2)))
        np.testing.assert_array_equal(volume.foreground, labelled)


def test_volumes_are_made_once_and_again_where_one_is_truncated_or_missing(cache, monkeypatch):
    made, make = [], module.make_volume
    monkeypatch.setattr(
        module, "make_volume", lambda *args: made.append(args[-1].name) or make(*args)
    )
    cache.make_missing()
    assert made == []
    good = contents(cache.folder)
    missing, truncated = (cache.folder / arrays_of(case)["label"] for case in cache.entries[:2])
    missing.unlink()
    os.truncate(truncated, truncated.stat().st_size - 1)
    cache.make_missing()
    assert (made, contents(cache.folder)) == (["a", "b"], good)


def test_a_corrected_label_is_used_with_a_warning(cache, caplog):
    assert caplog.text == ""
    path = cache.root / cache.entries[0].label
    label = nib.load(path)
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), path)
    cache.make_missing()
    assert [bool(volume.label.any()) for volume in cache] == [False, True, True]
    assert f"{path}: is not what pancseg.prepare wrote; it is used as it is" in caplog.text


def test_a_complete_cache_is_read_where_nothing_can_be_written(cache, monkeypatch):
    def read_only(path, **_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module, "FileLock", read_only)
    cache.make_missing()
    with pytest.raises(PancsegError, match=r"Read-only file system.*data\.cache_folder=FOLDER"):
        replace(cache, folder=cache.folder.with_name("e" * 16)).make_missing()


def other_folder(cache, letter, used_s=100):
    """Volumes of other settings, last used at a time."""
    folder = cache.folder.with_name(letter * 16)
    folder.mkdir()
    for array in arrays_of(cache.entries[0]).values():
        np.save(folder / array, np.zeros(10_000, np.uint8))
    os.utime(folder, (used_s, used_s))
    return folder


def test_volumes_of_other_settings_are_removed_longest_unused_first(cache):
    for letter, used_s in (("a", 200), ("b", 100), ("c", 300)):
        other_folder(cache, letter, used_s)
    for gigabytes, expected in ((1, "abcf"), (140_000 / 1e9, "acf"), (0, "f")):
        evict(cache.folder, gigabytes)
        assert sorted(path.name[0] for path in cache.folder.parent.glob("*/")) == [*expected]
    assert cache.missing() == []


def test_files_that_pancseg_did_not_write_are_not_removed(cache):
    other, mine = other_folder(cache, "a"), cache.folder.parent / "experiment"
    mine.mkdir()
    (cache.folder.parent / ("d" * 16)).symlink_to(mine)
    kept = [other / "notes.txt", mine / f"x-{other.name}_image.npy"]
    for path in kept:
        path.write_text("kept")
    evict(cache.folder, 0)
    assert all(path.exists() for path in kept)
    assert list(other.iterdir()) == kept[:1]


def test_volumes_in_use_are_not_removed(cache):
    other = other_folder(cache, "a")
    evict(other, 0)
    assert cache.missing() == []
    USE_LOCKS.pop(cache.folder).release()  # as where the process ends
    evict(other, 0)
    assert not cache.folder.exists()
