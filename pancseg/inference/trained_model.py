"""A trained network with the settings that it is applied with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pancseg.data.scan_statistics import TrainingProfile
from pancseg.data.splits import Split
from pancseg.data.transforms import Preprocessing
from pancseg.errors import PancsegError
from pancseg.structures import Structure


@dataclass(frozen=True)
class TrainedModel:
    """Content of a checkpoint."""

    path: Path
    network: nn.Module  # in evaluation mode, on the CPU
    hparams: dict[str, Any]  # of the LightningModule: ``model``, ``loss``, ``view`` and others
    data: dict[str, Any]  # arguments of the data module, ``root`` absolute
    preprocessing: Preprocessing
    split: Split
    structures: tuple[Structure, ...]
    names: str  # how the prepared folder names patients, with an identifier of its key
    epoch: int  # completed
    step: int
    fingerprint: str  # of the prepared data
    has_average: bool  # whether the weights are a running mean
    optimizer_states: Any  # as Lightning stores them
    training_seconds: float  # that count towards ``trainer.max_time``
    seen_before: frozenset[str]  # patients of train and validation of the initial weights
    profile: TrainingProfile | None  # statistics of the training scans

    @property
    def seen(self) -> frozenset[str]:
        """Patients whom the weights were trained on or chosen by, now or before."""
        return self.seen_before | {*self.split.train, *self.split.val}

    @property
    def depth(self) -> int | None:
        """Slices of the groups it was trained on; None for patches of whole scans."""
        return None if self.preprocessing.spatial_size is None else self.data["depth"]

    @property
    def mirrored_axes(self) -> tuple[int, ...]:
        """Axes along which training mirrored images."""
        chances = (self.data["augment"] or {}).get("flip_probability") or ()
        axes = tuple(axis for axis, chance in enumerate(chances) if chance > 0)
        if not axes:
            raise PancsegError(
                f"tta=true: {self.path} was trained without mirrored images, which would mislead "
                "it (augment.flip_probability is 0 on every axis); leave tta out"
            )
        return axes
