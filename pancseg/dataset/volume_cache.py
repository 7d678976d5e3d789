"""Preprocessed volumes on disk: made once, in parallel, opened by every process without copying.

MONAI's PersistentDataset makes them one by one, as pickles that each process copies into memory,
and stops on a file that was cut short.
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from monai.transforms import Compose
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from pancseg.dataset.case_files import is_as_prepared, told_change
from pancseg.dataset.transforms import Preprocessing, deterministic
from pancseg.errors import PancsegError
from pancseg.files import replaced
from pancseg.parallel import cores, process_map, progress

log = logging.getLogger(__name__)
ARRAYS = ("image", "label", "foreground")  # written in this order: the last one says that all are
LOOKING = 8  # threads
TRIES = 20
ALONE_VOXELS = 2 * 10**8  # input below it is read faster than other processes start


@dataclass(frozen=True)
class Source:
    """A labelled group or case, as it was prepared.

    Attributes:
        name: Of the group or case.
        patient: Pseudonym.
        image: File.
        label: File.
        key: Stands for the content of both.
        voxels: How many there are.
        sha256: Of image and label as they were prepared; empty where that is not known.
    """

    name: str
    patient: str
    image: Path
    label: Path
    key: str
    voxels: int
    sha256: str = ""

    @property
    def files(self) -> tuple[tuple[str, Path], tuple[str, Path]]:
        """The array that is made of each file, and the file."""
        return ("image", self.image), ("label", self.label)


@dataclass(frozen=True)
class Volume:
    """A preprocessed image with its label, as memory maps.

    Attributes:
        image: ``(H, W, D)`` float16, 0..1: within 0.0003 of the value, 0.1 HU of a window of 400.
        label: ``(H, W, D)`` uint8, 0 or 1.
        foreground: ``(N, 3)`` int32, voxels of the label.
    """

    image: NDArray[np.float16]
    label: NDArray[np.uint8]
    foreground: NDArray[np.int32]


@dataclass(frozen=True)
class Job:
    """A volume to make in another process."""

    source: Source
    folder: Path
    preprocessing: Preprocessing
    threads: int


@dataclass(frozen=True)
class Made:
    """What became of a job: what is wrong, if it failed, or what is odd, if it did not."""

    problem: str = ""
    warning: str = ""


class VolumeCache:
    """The volumes of one way of preprocessing.

    Args:
        folder: Belongs to this way alone: its name stands for all the numbers.
        preprocessing: The numbers.
    """

    def __init__(self, folder: Path, preprocessing: Preprocessing) -> None:
        self.folder = folder
        self.preprocessing = preprocessing

    def fill(self, sources: Sequence[Source], processes: int | None = None) -> None:
        """Make what is missing or cut short; several runs at once wait for each other.

        Args:
            sources: What will be opened.
            processes: How many work at a time; None is one a core where that pays.

        Raises:
            PancsegError: If the folder cannot be written, or a volume cannot be made.
        """
        missing = self.lacking(list(dict.fromkeys(sources)))  # split=same names all twice
        if not missing:
            return  # also where nothing may be written
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):
                self.make(self.lacking(missing), processes)
        except OSError as error:
            raise PancsegError(
                f"{self.folder}: the cache cannot be written ({error.strerror or error}); give "
                "data.cache_folder=FOLDER on a disk with room"
            ) from error

    def lacking(self, sources: Sequence[Source]) -> list[Source]:
        """Those whose volume is not whole, with progress; in threads, for disks far away wait."""
        with ThreadPoolExecutor(LOOKING) as pool:
            whole = progress(
                pool.map(self.is_whole, sources), "checking", "volume", len(sources), delay_s=2
            )
            return [one for one, is_whole in zip(sources, whole, strict=True) if not is_whole]

    def make(self, missing: list[Source], processes: int | None) -> None:
        """Make volumes, with progress."""
        if processes is None:
            alone = sum(source.voxels for source in missing) < ALONE_VOXELS
            processes = 0 if alone else min(cores(), len(missing))
        threads = torch.get_num_threads() if processes < 1 else max(1, cores() // processes)
        jobs = [Job(source, self.folder, self.preprocessing, threads) for source in missing]
        done = process_map(make_volume, jobs, processes, died)
        for made in progress(done, "preprocessing", "volume", len(jobs), delay_s=2):
            if made.problem:
                raise PancsegError(made.problem)
            if made.warning:
                log.warning(made.warning)

    def is_whole(self, source: Source) -> bool:
        """Whether a volume is there, as long as it says it is, and made of the files as they are.

        By time: the key is of what preparation wrote, and a label may have been corrected by hand
        since. Each array bears the time of its file: a later time says nothing once a clock was
        set back.
        """
        try:
            self.open(source)
            return all(
                microsecond(path.stat()) == microsecond(path_of(self.folder, source, name).stat())
                for name, path in source.files
            )
        except (OSError, ValueError):  # numpy's words for a file that is cut short
            return False

    def open(self, source: Source) -> Volume:
        """A volume as memory maps."""
        return Volume(*(opened(path_of(self.folder, source, name)) for name in ARRAYS))


def opened(path: Path) -> NDArray[Any]:
    """An array as a memory map.

    NumPy reads its header by ``ast``, of which Python 3.11 now and then loses count where several
    threads are at it: then it is read again. A lock would make each thread wait for its turn.
    """
    for _ in range(TRIES):
        try:
            return open_memmap(path, mode="r")
        except SystemError as error:
            told = error
    raise told


def path_of(folder: Path, source: Source, array: str) -> Path:
    """The file of one array of a volume."""
    return folder / f"{source.key}_{array}.npy"


def microsecond(status: os.stat_result) -> int:
    """When a file was changed; not every file system keeps the nanosecond."""
    return status.st_mtime_ns // 1000


def make_volume(job: Job) -> Made:
    """Run the deterministic transforms on one source and store the result."""
    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    source = job.source
    try:
        times = {name: path.stat() for name, path in source.files}
        made = Compose(deterministic(job.preprocessing))(
            {"image": str(source.image), "label": str(source.label)}
        )
        arrays: dict[str, NDArray[Any]] = {
            "image": made["image"][0].numpy().astype(np.float16),
            "label": (made["label"][0].numpy() > 0).astype(np.uint8),
        }
        arrays["foreground"] = np.argwhere(arrays["label"]).astype(np.int32)
        for name in ARRAYS:
            with replaced(path_of(job.folder, source, name)) as temporary:
                np.save(temporary, np.ascontiguousarray(arrays[name]))
                if name in times:
                    os.utime(temporary, ns=(times[name].st_atime_ns, times[name].st_mtime_ns))
        if not is_as_prepared(source.image, source.label, source.sha256):
            return Made(warning=told_change(source.image, source.label))
    except OSError as error:
        if error.filename and Path(error.filename) in (source.image, source.label):
            return unreadable(source, error)
        raise
    except Exception as error:
        return unreadable(source, error)
    finally:
        torch.set_num_threads(before)
    return Made()


def unreadable(source: Source, error: Exception) -> Made:
    """One line on a volume that cannot be made."""
    told = " ".join(str(error).split())[:200]
    return Made(
        f"{source.image}: cannot be preprocessed ({type(error).__name__}: {told}); delete it and "
        f"{source.label.name}, and run the same pancseg.prepare again, which makes them anew"
    )


def died(job: Job) -> Made:
    """One line on a volume whose process ended."""
    told = "its process was ended; memory ran out? close other programs and run it again"
    return Made(f"{job.source.image}: {told}")
