"""Weights to begin with, from another training or from anybody's state_dict."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from torch import Tensor, nn

from pancseg.errors import PancsegError
from pancseg.inference.archive import load_tensors
from pancseg.inference.checkpoint_content import check_dealt

WRAPPERS = ("state_dict", "model", "model_state_dict", "network_weights")  # around the weights
PREFIXES = ("network.", "module.", "_orig_mod.")  # that trainings put before names
FEWEST = 0.5  # share of the network's tensors that must be there


@dataclass(frozen=True)
class InitialWeights:
    """What a file gives to begin with.

    Attributes:
        path: The file.
        weights: By the network's own names.
        seen: Patients whom they were trained on or chosen by; None where the file does not say.
    """

    path: Path
    weights: dict[str, Tensor]
    seen: frozenset[str] | None


def open_weights(path: Path) -> InitialWeights:
    """Read weights to begin with.

    Args:
        path: Of a checkpoint of pancseg, or of a state_dict as MONAI's examples save it.

    Raises:
        PancsegError: If the file holds no weights, or lies about whom they know.
    """
    if not path.is_file():
        raise PancsegError(f"init_from={path}: there is no such file")
    try:
        content = load_tensors(path)
        weights = weights_in(content)
    except PancsegError as error:
        raise PancsegError(f"init_from={path}: {error}") from error
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise PancsegError(
            f"init_from={path}: is neither a checkpoint nor a state_dict ({type(error).__name__})"
        ) from error
    return InitialWeights(path, weights, patients_behind(content, path))


def begin_with(network: nn.Module, given: InitialWeights) -> str:
    """Copy every weight of the same name and shape into a network.

    Returns:
        How many weights were taken, in one line.

    Raises:
        PancsegError: If they are not those of such a network.
    """
    own = network.state_dict()
    fitting = {name: value for name, value in given.weights.items() if fits(own.get(name), value)}
    if len(fitting) < max(1, FEWEST * len(own)):
        raise PancsegError(
            f"init_from={given.path}: {len(fitting)} of this network's {len(own)} weights are "
            "there with their shapes; give the model it was trained with: RUN/.hydra/config.yaml "
            "names it, and the hardware in RUN/summary.json its width"
        )
    network.load_state_dict(fitting, strict=False)
    new = sorted(set(own) - set(fitting))
    told = f", new: {', '.join(new[:3])}{'...' if len(new) > 3 else ''}" if new else ""
    return f"init_from: {len(fitting)} of {len(own)} weights taken{told}"


def patients_behind(content: Any, path: Path) -> frozenset[str] | None:
    """Patients whom weights were trained on or chosen by; None where a file does not say.

    Raises:
        PancsegError: If it says something else.
    """
    if not isinstance(content, Mapping) or "CTDataModule" not in content:
        return None
    state = content["CTDataModule"]
    try:
        check_dealt(state)
    except (PancsegError, LookupError, TypeError, AttributeError) as error:
        raise PancsegError(f"init_from={path}: does not say whom it was trained on") from error
    return frozenset(
        (*state["split"]["train"], *state["split"]["val"], *state.get("seen_before", ()))
    )


def weights_in(content: Any) -> dict[str, Tensor]:
    """The weights in what a file holds, under the network's own names.

    >>> import torch
    >>> list(weights_in({"state_dict": {"network.conv.weight": torch.ones(1), "epoch": 3}}))
    ['conv.weight']
    """
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise ValueError("no weights")
    found = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in found):
            inside = (item for item in found.items() if item[0].startswith(prefix))
            found = {name.removeprefix(prefix): value for name, value in inside}
    return found


def fits(own: Tensor | None, stored: Tensor) -> bool:
    """Whether a stored weight can take the place of the network's own."""
    return own is not None and own.shape == stored.shape
