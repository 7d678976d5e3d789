"""Opening a checkpoint that somebody else may have written."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from pancseg.dataset.splits import Split
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
        sha: First digits of the file's data fingerprint.
    """

    segmenter: Segmenter
    data: dict[str, Any]
    preprocessing: Preprocessing
    split: Split
    epoch: int
    fingerprint: str


def open_checkpoint(path: Path) -> Trained:
    """Load a checkpoint; nothing in it is executed.

    Raises:
        PancsegError: If it is no checkpoint of pancseg.
    """
    if not path.is_file():
        raise PancsegError(f"checkpoint={path}: there is no such file")
    try:
        content = load(path)
        data = dict(content["datamodule_hyper_parameters"])
        state = content["GroupData"]
        split = Split(**state["split"])
        numbers = ("orientation", "spacing_mm", "window_hu", "spatial_size")
        preprocessing = Preprocessing(*(plain(data[name]) for name in numbers))
        segmenter = Segmenter.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except PancsegError as error:
        raise PancsegError(f"checkpoint={path}: {error}") from error
    except (UnpicklingError, RuntimeError, KeyError, TypeError, EOFError, ValueError) as error:
        raise PancsegError(
            f"checkpoint={path}: is no checkpoint that pancseg.train wrote "
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


def load(path: Path) -> dict[str, Any]:
    """Read a file of tensors and plain values; torch warns of what it then refuses anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)


def plain(value: Any) -> Any:
    """Lists as tuples."""
    return tuple(value) if isinstance(value, list) else value
