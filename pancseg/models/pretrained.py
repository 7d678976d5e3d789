"""Weights of a file, of pancseg or of MONAI's examples, to begin a training with."""

import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pancseg.errors import PancsegError

WRAPPERS = ("state_dict", "model", "model_state_dict", "network_weights")  # keys of the weights
PREFIXES = ("network.", "module.", "_orig_mod.")  # of their names
MIN_SHARE = 0.5  # of the network's tensors that a file must hold


@dataclass(frozen=True)
class InitialWeights:
    """Weights of a file."""

    path: Path
    weights: dict[str, Tensor]  # by the network's names
    seen: frozenset[str] | None  # patients of training and validation; None: unknown


def open_weights(path: Path) -> InitialWeights:
    """Read a checkpoint of pancseg, or a state dict as MONAI's examples save it."""
    try:
        content = load_tensors(path)
        return InitialWeights(path, weights_in(content), patients_in(content))
    except Exception as error:  # a damaged or forged file raises nearly any
        reason = f"is neither a checkpoint nor a state_dict ({type(error).__name__})"
        reason = str(error) if isinstance(error, PancsegError) else reason
        raise PancsegError(f"init_from={path}: {reason}") from error


def load_tensors(path: Path) -> Any:
    """Read tensors and plain values of a file of ``torch.save``, on the CPU.

    Raises PancsegError if it is missing or damaged, and errors of many classes for other files.
    """
    if not path.is_file():
        raise PancsegError("there is no such file")
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise PancsegError("is compressed, which torch.save never does; get the original file")
        if damaged := archive.testzip():  # torch does not compare the checksums
            raise PancsegError(f"is damaged in {damaged}; use another checkpoint or a copy")
    with warnings.catch_warnings():
        # torch warns of what it then refuses
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)


def load_pretrained(network: nn.Module, initial: InitialWeights) -> str:
    """Copy every weight of equal name and shape into a network; their number, in a line."""
    own, weights = network.state_dict(), initial.weights
    fitting = {k: weights[k] for k in own if k in weights and own[k].shape == weights[k].shape}
    if len(fitting) < max(1, MIN_SHARE * len(own)):
        raise PancsegError(
            f"init_from={initial.path}: holds {len(fitting)} of this network's {len(own)} weights; "
            "give the model that it was trained with, as in its run's .hydra/config.yaml"
        )
    network.load_state_dict(fitting, strict=False)
    new = sorted(set(own) - set(fitting))
    rest = f", new: {', '.join(new[:3])}{'...' * (len(new) > 3)}" if new else ""
    return f"init_from: {len(fitting)} of {len(own)} weights taken{rest}"


def patients_in(content: Any) -> frozenset[str] | None:
    """Patients of training and validation; None if a file does not say."""
    if "CTDataModule" not in content:
        return None
    state = content["CTDataModule"]
    lists = state["split"]["train"], state["split"]["val"], state.get("seen_before", ())
    if not all(isinstance(names, list | tuple) for names in lists):
        raise PancsegError("holds no list of the patients that it was trained on")
    return frozenset(str(name) for names in lists for name in names)


def weights_in(content: Any) -> dict[str, Tensor]:
    """The weights in the content of a file, by the network's names."""
    for name in WRAPPERS:
        if isinstance(content.get(name), Mapping):
            content = content[name]
    weights = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        inside = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        weights = inside or weights
    return weights
