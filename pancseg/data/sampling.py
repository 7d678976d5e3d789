"""Samples of training: which volume or patch, as a function of seed, epoch and step alone.

They are numbered from the beginning of the training, over all processes, without any state.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset, Sampler, default_collate

from pancseg.data.cache import Volume, VolumeCache
from pancseg.errors import PancsegError

Item = dict[str, Any]


@dataclass(frozen=True)
class Sampling:
    """Settings of ``conf/sampling``; PancsegError where a value is out of range."""

    kind: str = "whole"
    steps_per_epoch: int = 0
    foreground_share: float = 0.0
    jitter: float = 0.0
    overlap: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in ("whole", "patches"):
            raise PancsegError(f"sampling.kind={self.kind}: expected whole or patches")
        steps = self.steps_per_epoch
        if self.uses_patches and steps < 1:
            raise PancsegError(f"sampling.steps_per_epoch={steps}: expected 1 or more")
        for name, high in (("foreground_share", 1.0), ("jitter", 0.5), ("overlap", 0.9)):
            if not 0 <= getattr(self, name) <= high:
                raise PancsegError(f"sampling.{name}={getattr(self, name)}: expected 0 to {high:g}")

    @property
    def uses_patches(self) -> bool:
        """Whether samples are patches."""
        return self.kind == "patches"


class BatchSampler(Sampler[list[int]]):
    """Numbers of the samples of each batch of the present epoch."""

    def __init__(
        self,
        per_epoch: int,  # samples of all processes
        batch_size: int,  # of each process
        epoch: Callable[[], int] = lambda: 0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.per_epoch, self.epoch, self.first = per_epoch, epoch, rank * batch_size
        self.batch_size, self.global_batch_size = batch_size, batch_size * processes

    def __getstate__(self) -> dict[str, Any]:
        """State for worker processes, which have no trainer."""
        return {**vars(self), "epoch": None}

    def __len__(self) -> int:
        whole, rest = divmod(self.per_epoch, self.global_batch_size)
        # batch norm needs two samples, and each process a batch of its own
        return max(1, whole + (rest > 1 and self.batch_size == self.global_batch_size))

    def __iter__(self) -> Iterator[list[int]]:
        first_batch = self.epoch() * len(self)
        for batch in range(len(self)):
            start = (first_batch + batch) * self.global_batch_size
            left = self.per_epoch - batch * self.global_batch_size
            yield [start + i for i in range(self.first, self.first + self.batch_size) if i < left]


@dataclass(eq=False)
class VolumeDataset(Dataset[Item]):
    """Whole volumes in order."""

    volumes: VolumeCache

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> Item:
        return self.item(index, (0, 0, 0), self.volumes[index].image.shape)

    def item(self, index: int, start: Sequence[int], size: Sequence[int]) -> Item:
        """A box of a volume: image and label ``(1, H, W, D)``."""
        entry, volume = self.volumes.entries[index], self.volumes[index]
        item = {
            "image": crop(volume.image, start, size)[None],
            "patient": int.from_bytes(sha256(entry.patient.encode()).digest()[:7], "big"),
            "name": entry.name,
            "spacing_mm": tuple(map(float, volume.spacing_mm)),
        }
        if volume.label is not None:
            item["label"] = crop(volume.label, start, size)[None]
        return item


@dataclass(eq=False)
class ShuffledDataset(VolumeDataset):
    """Whole volumes by sample number: each once an epoch, in another order each epoch."""

    batches: BatchSampler
    seed: int

    def __getitem__(self, sample: int) -> Item:
        number, index_in_batch = divmod(sample, self.batches.global_batch_size)
        epoch, batch = divmod(number, len(self.batches))
        order = epoch_order(self.seed, epoch, len(self.volumes))
        index = int(order[batch * self.batches.global_batch_size + index_in_batch])
        item = super().__getitem__(index)
        return {**item, "batch_number": number, "sample_index": index_in_batch}


@lru_cache(2)  # drawn for each sample, 20,000 volumes would take longer than loading
def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Order of the volumes in an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(count)


@dataclass(eq=False)
class PatchDataset(VolumeDataset):
    """Patches by sample number."""

    batches: BatchSampler
    seed: int
    size: Sequence[int]  # voxels
    margin: Sequence[int]  # additional voxels of both sides together, even numbers
    sampling: Sampling
    structures: Sequence[Sequence[int]] = ((1,),)  # codes of each; foreground patches alternate

    def __post_init__(self) -> None:
        # of each volume, the rows of ``foreground`` that belong to each structure
        volumes, numbers = self.volumes, range(len(self.structures))
        self.rows = [structure_rows(volumes[i], self.structures) for i in range(len(volumes))]
        with_structure = [[i for i, own in enumerate(self.rows) if len(own[n])] for n in numbers]
        self.with_structure = [(n, found) for n, found in enumerate(with_structure) if found]

    def __getitem__(self, sample: int) -> Item:
        random = np.random.default_rng((self.seed, sample))
        share = self.sampling.foreground_share  # spread evenly: a batch may have a single sample
        before, after = (math.ceil(round(n * share, 6)) for n in (sample, sample + 1))
        is_foreground = after > before and bool(self.with_structure)
        among: Any = range(len(self.volumes))
        if is_foreground:
            number, among = self.with_structure[before % len(self.with_structure)]
        index = int(among[random.integers(len(among))])
        volume, size, margin = self.volumes[index], np.array(self.size), np.array(self.margin)
        room = volume.image.shape - size
        if is_foreground:
            rows = self.rows[index][number]
            voxel = volume.foreground[rows[random.integers(len(rows))]]
            shift = random.uniform(-self.sampling.jitter, self.sampling.jitter, 3) * size
            start = np.rint(voxel + shift - size / 2).astype(int)
            start = start.clip(voxel - size + 1, voxel)  # the patch contains the voxel
        else:
            start = np.rint(random.uniform(0, 1, 3) * room).astype(int)
        # inside the volume, and centred on axes where the volume is smaller
        start = np.where(room >= 0, start.clip(0, room.clip(0)), -(-room // 2))
        item = self.item(index, start - margin // 2, size + margin)
        number, index_in_batch = divmod(sample, self.batches.global_batch_size)
        return {**item, "batch_number": number, "sample_index": index_in_batch}


def structure_rows(volume: Volume, structures: Sequence[Sequence[int]]) -> list[Any]:
    """Rows of a volume's ``foreground`` that belong to each structure."""
    if len(structures) == 1:
        return [range(len(volume.foreground))]
    voxels = volume.foreground
    codes = np.asarray(torch.as_tensor(volume.label[tuple(voxels.T)]).cpu())
    return [np.flatnonzero(np.isin(codes, own)) for own in structures]


def collate(items: list[Item]) -> Item:
    """A batch; its numbers and the voxel sizes stay plain numbers on the CPU."""
    numbers = {key: items[0][key] for key in ("batch_number", "sample_index") if key in items[0]}
    rest = [{k: v for k, v in i.items() if k not in (*numbers, "spacing_mm")} for i in items]
    spacings_mm = [item["spacing_mm"] for item in items]
    return {**default_collate(rest), **numbers, "spacing_mm": spacings_mm}


def crop(array: Any, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """A box of a volume ``(H, W, D)``, tensor or memory map; 0 outside of the volume."""
    axes = list(zip(start, np.add(start, size).tolist(), array.shape, strict=True))
    part = array[tuple(slice(max(first, 0), min(stop, n)) for first, stop, n in axes)]
    if not isinstance(part, Tensor):
        part = torch.from_numpy(np.array(part))  # a memory map is read-only
    padding = [int(p) for first, stop, n in axes[::-1] for p in (max(-first, 0), max(stop - n, 0))]
    return pad(part, padding) if any(padding) else part.contiguous()
