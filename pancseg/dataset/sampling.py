"""Sample ``n`` of a training: a whole volume or a patch, a function of the seed and ``n`` alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pancseg.dataset.kept_volumes import KeptVolumes
from pancseg.dataset.steps import Steps
from pancseg.errors import PancsegError

Kind = Literal["whole", "patches"]
Item = dict[str, Any]
Size = tuple[int, int, int]


@dataclass(frozen=True)
class Sampling:
    """Whole groups or patches of whole cases.

    Attributes:
        kind: ``whole`` (each group once an epoch, resized) or ``patches`` (of full resolution,
            from anywhere in a case; validation on whole cases by sliding window).
        steps_per_epoch: Of patches, which know no epoch of their own.
        foreground_share: Of the patches, one after the other, that hold a labelled voxel.
        jitter: How far from that voxel the patch's middle lies at most, share of the patch.
        overlap: Of neighbouring validation windows, share.

    Raises:
        PancsegError: If the numbers make no sampling.
    """

    kind: str = "whole"
    steps_per_epoch: int = 0
    foreground_share: float = 0.0
    jitter: float = 0.0
    overlap: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise PancsegError(f"sampling.kind={self.kind}: expected {' or '.join(get_args(Kind))}")
        if self.of_patches and self.steps_per_epoch < 1:
            raise PancsegError(
                f"sampling.steps_per_epoch={self.steps_per_epoch}: expected 1 or more"
            )
        for name, high in (("foreground_share", 1.0), ("jitter", 0.5), ("overlap", 0.9)):
            if not 0 <= getattr(self, name) <= high:
                raise PancsegError(f"sampling.{name}={getattr(self, name)}: expected 0 to {high:g}")

    @property
    def of_patches(self) -> bool:
        """Whether patches are taken."""
        return self.kind == "patches"


class Volumes(Dataset[Item]):
    """Whole volumes, each once.

    Args:
        volumes: That samples are taken from.
    """

    def __init__(self, volumes: KeptVolumes) -> None:
        self.volumes = volumes

    def __len__(self) -> int:
        """How many volumes."""
        return len(self.volumes)

    def __getitem__(self, index: int) -> Item:
        """A whole volume, image and label ``(1, H, W, D)``."""
        image, label, _ = self.volumes[index]
        start, size = (0, 0, 0), tuple(image.shape)
        return self.item(index, box_of(image, start, size), box_of(label, start, size))

    def item(self, index: int, image: Tensor, label: Tensor) -> Item:
        """What goes into the batch, with a channel."""
        source = self.volumes.sources[index]
        return {
            "image": image[None],
            "label": label[None],
            "patient": patient_number(source.patient),
            "name": source.name,
        }


class WholeVolumes(Volumes):
    """Whole volumes, each once an epoch, in an order of the epoch's own.

    Args:
        volumes: That samples are taken from.
        steps: The batches.
        seed: Of the order.
    """

    def __init__(self, volumes: KeptVolumes, steps: Steps, seed: int) -> None:
        super().__init__(volumes)
        self.steps, self.seed = steps, seed
        self.drawn: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    def order_of(self, epoch: int) -> NDArray[np.int64]:
        """The order of an epoch, drawn once: with 20,000 volumes it takes longer than a sample."""
        if self.drawn[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.volumes))
            self.drawn = epoch, order
        return self.drawn[1]

    def __getitem__(self, sample: int) -> Item:
        """The volume of a sample."""
        batch, place = divmod(sample, self.steps.together)
        epoch, batch_of_epoch = divmod(batch, len(self.steps))
        index = int(self.order_of(epoch)[batch_of_epoch * self.steps.together + place])
        return {**super().__getitem__(index), "step": batch, "place": place}


class Patches(Volumes):
    """Patches from anywhere in the volumes.

    Args:
        volumes: That samples are taken from.
        steps: The batches.
        seed: Of what is taken.
        size: Voxels of a patch.
        margin: Voxels that augmentation needs beside it, both sides together, even.
        sampling: Numbers.
    """

    def __init__(
        self,
        volumes: KeptVolumes,
        steps: Steps,
        seed: int,
        size: Size,
        margin: Size,
        sampling: Sampling,
    ) -> None:
        super().__init__(volumes)
        self.steps, self.seed, self.sampling = steps, seed, sampling
        self.size, self.margin = size, margin
        self.labelled = [i for i in range(len(volumes)) if len(volumes[i][2])]

    def __getitem__(self, sample: int) -> Item:
        """The patch of a sample."""
        random = np.random.default_rng((self.seed, sample))
        step, place = divmod(sample, self.steps.together)
        centred = is_centred(sample, self.sampling.foreground_share)
        among = self.labelled if centred and self.labelled else range(len(self.volumes))
        index = int(among[random.integers(len(among))])
        image, label, foreground = self.volumes[index]
        shape = np.array(image.shape)
        if centred and len(foreground):
            voxel = foreground[random.integers(len(foreground))]
            shift = random.uniform(-self.sampling.jitter, self.sampling.jitter, 3) * self.size
            start = np.rint(voxel + shift - np.array(self.size) / 2).astype(int)
            start = start.clip(voxel - self.size + 1, voxel)  # the voxel itself stays in
        else:
            start = np.rint(random.uniform(0, 1, 3) * (shape - self.size)).astype(int)
        corner = np.array(within(start, self.size, image.shape)) - np.array(self.margin) // 2
        box = [side + more for side, more in zip(self.size, self.margin, strict=True)]
        image, label = (box_of(array, corner.tolist(), box) for array in (image, label))
        return {**self.item(index, image, label), "step": step, "place": place}


def is_centred(sample: int, share: float) -> bool:
    """Whether a sample is one of the share that lie around the organ, spread evenly.

    By number, not by its place in the batch: of batches of one, some must lie elsewhere, too.

    >>> [is_centred(sample, 1 / 3) for sample in range(6)]
    [True, False, False, True, False, False]
    """
    before, now = (np.ceil(round(number * share, 6)) for number in (sample, sample + 1))
    return bool(now > before)


def within(start: NDArray[Any], size: Sequence[int], shape: Sequence[int]) -> Size:
    """Where a box begins once it was moved into a volume; around the middle of a smaller one.

    >>> within(np.array([-5, 90, 3]), (10, 20, 8), (50, 100, 4))
    (0, 80, -2)
    """
    moved = [
        min(max(int(first), 0), whole - side) if whole >= side else -((side - whole) // 2)
        for first, side, whole in zip(start, size, shape, strict=True)
    ]
    return moved[0], moved[1], moved[2]


def box_of(array: Any, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """Cut a box out of a volume; beyond its edge everything is 0: air, and no label.

    Args:
        array: ``(H, W, D)``, tensor or memory map.
        start: May lie before the volume.
        size: Of the box.
    """
    there = tuple(
        slice(max(first, 0), min(first + side, whole))
        for first, side, whole in zip(start, size, array.shape, strict=True)
    )
    piece = array[there]
    if not isinstance(piece, Tensor):
        piece = torch.from_numpy(np.array(piece))  # a memory map is read-only
    if tuple(piece.shape) == tuple(size):
        return piece.contiguous()
    box = piece.new_zeros(tuple(size))
    inside = tuple(
        slice(part.start - first, part.stop - first)
        for part, first in zip(there, start, strict=True)
    )
    box[inside] = piece
    return box


def patient_number(patient: str) -> int:
    """A number that stands for a patient in tensors, the same in every folder."""
    return int.from_bytes(hashlib.sha256(patient.encode()).digest()[:7], "big")
