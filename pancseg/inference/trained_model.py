"""A trained network with the settings that it is applied with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pancseg.data.scan_statistics import TrainingProfile
from pancseg.data.splits import Split
from pancseg.data.transforms import Preprocessing
from pancseg.errors import PancsegError
from pancseg.models.factory import build, build_on_meta, use_cpu_layers
from pancseg.structures import Structure

SPACING_LIMITS_MM = 0.1, 100.0
MAX_INPUT_VOXELS = 2**28  # 640 along each axis
NETWORK = "network."  # prefix of the network's weights in a checkpoint


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


def check_sizes(spacing_mm: Sequence[float], size: Sequence[int] | None) -> None:
    """Check the numbers that decide how much memory a scan takes; raise PancsegError."""
    low, high = SPACING_LIMITS_MM
    if len(spacing_mm) != 3 or not all(low <= mm <= high for mm in spacing_mm):
        raise PancsegError(f"holds data.spacing_mm={list(spacing_mm)}; expected {low} to {high} mm")
    if size is not None and not 1 <= math.prod(size) <= MAX_INPUT_VOXELS:
        raise PancsegError(f"holds data.spatial_size={list(size)}, which no network takes")


def rebuild_network(model: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    """Build a network with the weights of a checkpoint, in evaluation mode.

    It is built without memory and filled with the tensors of the file, so that a small file cannot
    name a large network.
    """
    weights = {k.removeprefix(NETWORK): v for k, v in state.items() if k.startswith(NETWORK)}
    for name, tensor in weights.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise PancsegError(f"holds {name} of shape {tuple(tensor.shape)} without its values")
    network = build_on_meta(model)
    network.load_state_dict(weights, strict=True, assign=True)
    if any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers())):
        network = build(model, nn.Module)  # it computes tensors that checkpoints do not hold
        network.load_state_dict(weights, strict=True)
    use_cpu_layers(network)
    return network.eval()
