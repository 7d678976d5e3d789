"""Preprocessed volumes: made once as ``.npy`` files, and read from disk, RAM or GPU."""

import logging
import os
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from filelock import FileLock, Timeout
from monai.transforms import Compose
from numpy.lib.format import open_memmap

from pancseg.data.manifest import Case, Group
from pancseg.data.transforms import Preprocessing, preprocessing_transforms
from pancseg.errors import PancsegError
from pancseg.files import replaced, unpacked_sha256
from pancseg.geometry import spacing_of
from pancseg.hardware import VOLUME_SHARE
from pancseg.parallel import cores, process_map, progress
from pancseg.structures import IGNORED

log = logging.getLogger(__name__)
Entry = Case | Group
STORAGES = ("disk", "ram", "gpu")
ARRAYS = ("image", "spacing_mm", "label", "foreground")
CACHE_FOLDER = re.compile("[0-9a-f]{16}")
CACHE_FILE = re.compile(r".+-[0-9a-f]{16}_(image|spacing_mm|label|foreground)\.npy")
TIME_TOLERANCE_S = 1e-5  # not every file system keeps nanoseconds
MIN_POOL_BYTES = 10**8  # of images; less is read faster than processes start
USE_LOCKS: dict[Path, FileLock] = {}  # of folders that this process uses


class Volume(NamedTuple):
    """A preprocessed volume, memory maps or tensors."""

    image: Any  # (H, W, D) float16, 0..1, within 0.0003 of the value: 0.1 HU of 400
    spacing_mm: Any  # (3,) float32, of the voxels of ``image``
    label: Any = None  # (H, W, D) uint8, structure codes
    foreground: Any = None  # (N, 3), indices of the voxels with a label


@dataclass
class VolumeCache:
    """Preprocessed volumes of cases or groups of a prepared folder, by number."""

    root: Path
    folder: Path  # of all volumes with the same settings, named by 16 digits of their hash
    preprocessing: Preprocessing
    entries: Sequence[Entry]
    loaded: list[Volume] = field(default_factory=list)
    is_on_gpu: bool = False

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Volume:
        return self.loaded[index] if self.loaded else self.open(self.entries[index])

    def open(self, entry: Entry) -> Volume:
        """Open a volume as memory maps."""
        return Volume(*(open_memmap(self.folder / n, mode="r") for n in arrays_of(entry).values()))

    def make_missing(self, processes: int | None = None) -> None:
        """Make volumes that are missing, truncated or of changed files; else PancsegError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder.with_suffix(".lock")):  # other runs wait
                if self.folder not in USE_LOCKS:
                    remove_stale_locks(self.folder)
                    USE_LOCKS[self.folder] = FileLock(self.folder / f".use-{secrets.token_hex(6)}")
                    USE_LOCKS[self.folder].acquire()  # until the process ends; sets folder's time
                self.make(self.missing(), processes)
        except OSError as error:
            if self.missing():  # a complete cache may be read-only
                problem = f"{self.folder}: the cache cannot be written ({error.strerror or error})"
                advice = "give data.cache_folder=FOLDER on a disk with room"
                raise PancsegError(f"{problem}; {advice}") from error

    def missing(self) -> list[Entry]:
        """Volumes that cannot be opened, or whose arrays have other times than their files."""
        missing = []
        for entry in progress(self.entries, "checking", "volume", delay_s=2):
            files, arrays = files_of(self.root, entry), arrays_of(entry)
            pairs = ((path, self.folder / arrays[key]) for key, path in files.items())
            try:
                self.open(entry)
                ages_s = [path.stat().st_mtime - array.stat().st_mtime for path, array in pairs]
            except (OSError, ValueError):  # NumPy's error for a truncated file
                missing.append(entry)
            else:
                missing += [entry] * (max(map(abs, ages_s)) > TIME_TOLERANCE_S)
        return missing

    def make(self, entries: Sequence[Entry], processes: int | None) -> None:
        """Make volumes, by default in a pool of processes if they are large."""
        if processes is None:
            images = (self.root / entry.image for entry in entries)
            image_bytes = sum(file.stat().st_size for file in images if file.is_file())
            processes = min(cores(), len(entries)) if image_bytes >= MIN_POOL_BYTES else 0
        threads = max(1, cores() // processes) if processes else 0
        function = partial(make_volume, self.root, self.folder, self.preprocessing, threads)
        results = process_map(function, entries, processes, partial(raise_crash, self.root))
        for changed in progress(results, "preprocessing", "volume", len(entries), delay_s=2):
            for path in changed:
                problem = f"{path}: is not what pancseg.prepare wrote; it is used as it is"
                log.warning(f"{problem}. For a corrected label, run the same pancseg.prepare again")

    def copy_to(self, storage: str, device: torch.device) -> None:
        """Copy all volumes to ``ram`` or ``gpu``; to RAM if they exceed their share of the GPU."""
        if storage == "gpu" and device.type == "cuda":
            arrays = (array for entry in self.entries for array in self.open(entry))
            needed = sum(array.nbytes for array in arrays if array is not None)
            available = torch.cuda.mem_get_info(device)[0] * VOLUME_SHARE
            self.is_on_gpu = needed <= available
            if not self.is_on_gpu:
                sizes = f"{needed / 1e9:.1f} GB of volumes, {available / 1e9:.1f} GB for them"
                log.warning(f"hardware.cache=gpu: {sizes}; they are kept in ram")
        if storage != "disk":
            target = device if self.is_on_gpu else torch.device("cpu")
            self.loaded = []
            for entry in progress(self.entries, "reading", "volume", delay_s=2):
                volume = self.open(entry)
                keys = files_of(self.root, entry)
                tensors = {k: torch.tensor(getattr(volume, k), device=target) for k in keys}
                foreground = np.array(volume.foreground)
                self.loaded.append(volume._replace(**tensors, foreground=foreground))


def files_of(root: Path, entry: Entry) -> dict[str, Path]:
    """``image`` and, if there is one, ``label`` of a case or group."""
    return {"image": root / entry.image, **({"label": root / entry.label} if entry.label else {})}


def arrays_of(entry: Entry) -> dict[str, str]:
    """Names of the cached arrays of a case or group."""
    key = sha256((entry.image_sha256 + entry.label_sha256).encode()).hexdigest()[:16]
    arrays = ARRAYS if entry.label else ARRAYS[:2]
    return {array: f"{entry.name}-{key}_{array}.npy" for array in arrays}


def make_volume(
    root: Path, folder: Path, preprocessing: Preprocessing, threads: int, entry: Entry
) -> list[Path]:
    """Preprocess and store a volume with the times of its files; return files that were changed."""
    if threads:
        torch.set_num_threads(threads)
    files, arrays = files_of(root, entry), arrays_of(entry)
    try:
        times = {key: path.stat().st_mtime_ns for key, path in files.items()}
        steps = Compose(preprocessing_transforms(preprocessing, tuple(files)))
        item = steps({key: str(path) for key, path in files.items()})
        digests = {key: unpacked_sha256(path) for key, path in files.items()}
    except Exception as error:  # nibabel and MONAI raise many kinds
        message = " ".join(str(error).split())[:200]
        raise PancsegError(
            f"{files['image']}: cannot be preprocessed ({type(error).__name__}: {message}); delete "
            "it and its label, and run the same pancseg.prepare again"
        ) from error
    values = {"image": item["image"][0].numpy().astype(np.float16)}
    values["spacing_mm"] = np.array(spacing_of(item["image"].affine.numpy()), np.float32)
    if entry.label:
        values["label"] = item["label"][0].numpy().astype(np.uint8)
        labelled = (values["label"] > 0) & (values["label"] != IGNORED)
        values["foreground"] = np.argwhere(labelled).astype(np.int32)
    for key, array in arrays.items():
        with replaced(folder / array) as temporary:
            np.save(temporary, np.ascontiguousarray(values[key]))
            if key in times:
                os.utime(temporary, ns=(times[key], times[key]))
    return [files[key] for key in files if digests[key] != getattr(entry, f"{key}_sha256")]


def raise_crash(root: Path, entry: Entry) -> NoReturn:
    """Raise the error of a volume whose process died."""
    raise PancsegError(f"{root / entry.image}: its process ended; run again with more memory")


def remove_stale_locks(folder: Path) -> None:
    """Remove the lock files of processes that ended; those of running ones stay."""
    for path in folder.glob(".use-*"):
        with suppress(Timeout), FileLock(path, timeout=0):
            path.unlink()


def evict(used: Path, max_gb: float) -> None:
    """Remove volumes of other settings and not in use, longest unused first, to ``max_gb``."""
    files = {
        folder: [file for file in folder.iterdir() if CACHE_FILE.fullmatch(file.name)]
        for folder in used.parent.iterdir()
        if CACHE_FOLDER.fullmatch(folder.name) and not folder.is_symlink()
    }
    gb = {folder: sum(f.stat().st_size for f in files[folder]) / 1e9 for folder in files}
    for folder in sorted(gb.keys() - {used}, key=lambda folder: folder.stat().st_mtime):
        with suppress(OSError, Timeout), FileLock(folder.with_suffix(".lock"), timeout=0):
            if sum(gb.values()) <= max_gb:
                break
            remove_stale_locks(folder)
            if not any(folder.glob(".use-*")):
                for file in files[folder]:
                    file.unlink()
                log.info("cache    removed %.1f GB of other settings", gb.pop(folder))
                folder.rmdir()
