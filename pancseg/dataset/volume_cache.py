"""Preprocessed volumes on disk: made once, in parallel, opened by every process without copying.

MONAI's PersistentDataset makes them one by one, as pickles that each process copies into memory,
and stops on a file that was cut short.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from monai.transforms import Compose
from numpy.typing import NDArray

from pancseg.atomic import replaced
from pancseg.dataset.transforms import Preprocessing, deterministic
from pancseg.errors import PancsegError
from pancseg.processes import cores, in_processes
from pancseg.progress import passing

ARRAYS = ("image", "label", "foreground")  # written in this order: the last one says that all are
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
    """

    name: str
    patient: str
    image: Path
    label: Path
    key: str
    voxels: int


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
        if all(map(self.is_whole, sources)):
            return  # also where nothing may be written
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):
                missing = [source for source in sources if not self.is_whole(source)]
                self.make(missing, processes)
        except OSError as error:
            raise PancsegError(
                f"{self.folder}: the cache cannot be written ({error.strerror or error}); give "
                "data.cache_folder=FOLDER on a disk with room"
            ) from error

    def make(self, missing: list[Source], processes: int | None) -> None:
        """Make volumes, with progress."""
        if processes is None:
            alone = sum(source.voxels for source in missing) < ALONE_VOXELS
            processes = 0 if alone else min(cores(), len(missing))
        threads = torch.get_num_threads() if processes < 1 else max(1, cores() // processes)
        jobs = [Job(source, self.folder, self.preprocessing, threads) for source in missing]
        done = in_processes(make_volume, jobs, processes, died)
        for problem in passing(done, len(jobs), "preprocessing", "volume"):
            if problem:
                raise PancsegError(problem)

    def is_whole(self, source: Source) -> bool:
        """Whether a volume is there, as long as it says it is, and made of the files as they are.

        By time, as make does: the key is of what preparation wrote, and a label may have been
        corrected by hand since.
        """
        try:
            self.open(source)
            made = path_of(self.folder, source, ARRAYS[0]).stat().st_mtime_ns
            read = max(path.stat().st_mtime_ns for path in (source.image, source.label))
        except (OSError, ValueError):  # numpy's words for a file that is cut short
            return False
        return read <= made

    def open(self, source: Source) -> Volume:
        """A volume as memory maps."""
        return Volume(
            *(np.load(path_of(self.folder, source, name), mmap_mode="r") for name in ARRAYS)
        )


def path_of(folder: Path, source: Source, array: str) -> Path:
    """The file of one array of a volume."""
    return folder / f"{source.key}_{array}.npy"


def make_volume(job: Job) -> str | None:
    """Run the deterministic transforms on one source and store the result.

    Returns:
        What is wrong, if something is.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    source = job.source
    try:
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
    except OSError as error:
        if error.filename and Path(error.filename) in (source.image, source.label):
            return unreadable(source, error)
        raise
    except Exception as error:
        return unreadable(source, error)
    finally:
        torch.set_num_threads(before)
    return None


def unreadable(source: Source, error: Exception) -> str:
    """One line on a volume that cannot be made."""
    told = " ".join(str(error).split())[:200]
    return (
        f"{source.image}: cannot be preprocessed ({type(error).__name__}: {told}); run the same "
        "pancseg.prepare again, it makes damaged cases anew"
    )


def died(job: Job) -> str:
    """One line on a volume whose process ended."""
    return f"{job.source.image}: its process was ended; memory ran out? see hardware.num_workers"
