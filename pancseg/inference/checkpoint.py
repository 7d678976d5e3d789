"""Opening a checkpoint that somebody else may have written."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from pancseg.dataset.splits import PARTS, Split
from pancseg.dataset.transforms import Preprocessing
from pancseg.errors import PancsegError
from pancseg.learning.segmenter import Segmenter


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds.

    Attributes:
        segmenter: The network with its best or last weights, in evaluation mode.
        data: Arguments of the data module, ``root`` absolute.
        preprocessing: Numbers of the deterministic transforms.
        split: Who was dealt where.
        epoch: Epochs that were complete.
        fingerprint: Of the data it was trained on.
    """

    segmenter: Segmenter
    data: dict[str, Any]
    preprocessing: Preprocessing
    split: Split
    epoch: int
    fingerprint: str

    @property
    def depth(self) -> int | None:
        """Slices of the groups it was trained on; None for patches of whole cases."""
        return None if self.preprocessing.spatial_size is None else self.data["depth"]


def open_checkpoint(path: Path, key: str = "checkpoint") -> Trained:
    """Load a checkpoint; nothing in it is executed.

    Args:
        path: The file.
        key: What the path was given as, for messages.

    Raises:
        PancsegError: If it is no checkpoint of pancseg.
    """
    if not path.is_file():
        raise PancsegError(f"{key}={path}: there is no such file")
    try:
        content = load(path)
        data = dict(content["datamodule_hyper_parameters"])
        state = content["GroupData"]
        split = Split(**state["split"])
        numbers = ("orientation", "spacing_mm", "window_hu", "spatial_size")
        preprocessing = Preprocessing(*(plain(data[name]) for name in numbers))
        if data["sampling"]["kind"] == "patches":
            preprocessing = replace(preprocessing, spatial_size=None)
        segmenter = Segmenter.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except PancsegError as error:
        raise PancsegError(f"{key}={path}: {error}") from error
    except (UnpicklingError, RuntimeError, KeyError, TypeError, EOFError, ValueError) as error:
        raise PancsegError(
            f"{key}={path}: is no checkpoint that pancseg.train wrote "
            f"({type(error).__name__}); give RUN/checkpoints/best.ckpt"
        ) from error
    return Trained(
        segmenter.eval(),
        data,
        preprocessing,
        split,
        int(content["epoch"]) + 1,
        state["fingerprint"],
    )


def check_resumable(
    trained: Trained,
    model: dict[str, Any],
    optimizer: dict[str, Any],
    preprocessing: Preprocessing,
    split: Split,
) -> None:
    """Check that a run can go on from a checkpoint with what is configured now.

    Raises:
        PancsegError: If it would go on with other patients, another network or another optimiser.
    """
    before, now = trained.split, split
    if any(getattr(before, part) != getattr(now, part) for part in PARTS):
        raise PancsegError(
            "ckpt_path was trained with another split or other patients; to go on with its own, "
            "give split=file split.path=RUN/splits.json"
        )
    if trained.segmenter.hparams["model"] != model or trained.preprocessing != preprocessing:
        raise PancsegError(
            "ckpt_path was trained with another model, or with other numbers under data; give the "
            "same experiment and overrides, RUN/.hydra/overrides.yaml lists them"
        )
    own = trained.segmenter.hparams["optimizer"]
    keys = (set(own) | set(optimizer)) - {"fused"}  # which is of the machine
    changed = sorted(key for key in keys if own.get(key) != optimizer.get(key))
    if changed:
        raise PancsegError(
            f"ckpt_path goes on with its own optimizer.{changed[0]}; give the same, or begin anew "
            "with its weights by init_from"
        )


def load(path: Path) -> dict[str, Any]:
    """Read a file of tensors and plain values; torch warns of what it then refuses anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)


def plain(value: Any) -> Any:
    """Lists as tuples."""
    return tuple(value) if isinstance(value, list) else value
