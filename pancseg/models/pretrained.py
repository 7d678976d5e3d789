"""Files of weights: of pancseg or of MONAI's examples, to begin a training with."""

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
    """Weights of a file.

    Attributes:
        path: The file.
        weights: By the network's names.
        seen: Patients whom they were trained on or chosen by; None if the file does not say.
    """

    path: Path
    weights: dict[str, Tensor]
    seen: frozenset[str] | None


def open_weights(path: Path) -> InitialWeights:
    """Read a checkpoint of pancseg, or a state dict as MONAI's examples save it.

    Raises:
        PancsegError: If the file holds no weights, or an unreadable list of patients.
    """
    try:
        content = load_tensors(path)
        return InitialWeights(path, weights_in(content), patients_in(content))
    except PancsegError as error:
        raise PancsegError(f"init_from={path}: {error}") from error
    except Exception as error:  # a damaged or forged file raises nearly any
        raise PancsegError(
            f"init_from={path}: is neither a checkpoint nor a state_dict ({type(error).__name__})"
        ) from error


def load_tensors(path: Path) -> Any:
    """Read tensors and plain values of a file of ``torch.save``, on the CPU.

    Raises:
        PancsegError: If there is no file, it is damaged, or it claims more than it holds.
        Exception: Of many types, if it is another file.
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
    """Copy every weight of equal name and shape into a network.

    Returns:
        Number of copied weights, in a line.

    Raises:
        PancsegError: If fewer than half of the network's tensors are there.
    """
    own = network.state_dict()
    fitting = {
        name: value
        for name, value in initial.weights.items()
        if name in own and own[name].shape == value.shape
    }
    if len(fitting) < max(1, MIN_SHARE * len(own)):
        raise PancsegError(
            f"init_from={initial.path}: holds {len(fitting)} of this network's {len(own)} weights; "
            "give the model that it was trained with: RUN/.hydra/config.yaml names it, and "
            "RUN/summary.json its width"
        )
    network.load_state_dict(fitting, strict=False)
    new = sorted(set(own) - set(fitting))
    rest = f", new: {', '.join(new[:3])}{'...' if len(new) > 3 else ''}" if new else ""
    return f"init_from: {len(fitting)} of {len(own)} weights taken{rest}"


def patients_in(content: Any) -> frozenset[str] | None:
    """Patients whom weights were trained on or chosen by; None if a file does not say."""
    if "CTDataModule" not in content:
        return None
    state = content["CTDataModule"]
    lists = state["split"]["train"], state["split"]["val"], state.get("seen_before", ())
    if not all(isinstance(names, list | tuple) for names in lists):
        raise PancsegError("holds no list of the patients that it was trained on")
    return frozenset(str(name) for names in lists for name in names)


def weights_in(content: Any) -> dict[str, Tensor]:
    """The weights in the content of a file, by the network's names.

    >>> import torch
    >>> list(weights_in({"state_dict": {"network.conv.weight": torch.ones(1), "epoch": 3}}))
    ['conv.weight']
    """
    for name in WRAPPERS:
        if isinstance(content.get(name), Mapping):
            content = content[name]
    found = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in found):
            inside = (item for item in found.items() if item[0].startswith(prefix))
            found = {name.removeprefix(prefix): value for name, value in inside}
    return found
