"""Weights of a file, of pancseg, of MONAI's examples or published, to begin a training with."""

import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pancseg.errors import PancsegError
from pancseg.models.known_weights import AdaptedNetwork, KnownWeights, find_record

# keys of the weights
WRAPPERS = ("state_dict", "model", "model_state_dict", "network_weights", "net")
PREFIXES = ("network.", "module.", "_orig_mod.")  # of their names
MIN_SHARE = 0.5  # of the network's tensors that a file must hold
NUMBERS = ("numpy.dtype", "numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")


class Skipped:
    """In place of NumPy's numbers, which nnU-Net saves beside its weights."""

    def __init__(self, *values: Any) -> None:
        self.__setstate__(values)

    def __setstate__(self, values: Any) -> None:
        """Forget the values."""


@dataclass(frozen=True)
class InitialWeights:
    """Weights of a file."""

    path: Path
    weights: dict[str, Tensor]  # by the network's names
    seen: frozenset[str] | None  # patients of training and validation; None: unknown
    record: KnownWeights | None = None  # of published weights
    model: dict[str, Any] | None = None  # network of a checkpoint of pancseg


def open_weights(path: Path) -> InitialWeights:
    """Read a checkpoint of pancseg or nnU-Net, or a state dict as MONAI's examples save it."""
    try:
        content = load_tensors(path)
        weights, seen = weights_in(content), patients_in(content)
        if seen is not None:
            hparams = content.get("hyper_parameters")
            model = hparams.get("model") if isinstance(hparams, Mapping) else None
            return InitialWeights(path, without_prefixes(weights), seen, model=model)
        record = find_record(path, content, weights)
        weights = record.rename(weights) if record else without_prefixes(weights)
        return InitialWeights(path, weights, seen, record)
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
        pickles = [name for name in archive.namelist() if name.endswith(".pkl")]
        if any(b"bytearray" in archive.read(name) for name in pickles):  # of any length, to torch
            raise PancsegError("asks for memory, which no checkpoint does; get the original file")
        if damaged := archive.testzip():  # torch does not compare the checksums
            raise PancsegError(f"is damaged in {damaged}; use another checkpoint or a copy")
    numbers: Any = [(Skipped, name) for name in NUMBERS]
    with warnings.catch_warnings(), torch.serialization.safe_globals(numbers):
        # torch warns of what it then refuses
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)


def network_arguments(
    path: Path | None, model: dict[str, Any], orientation: str, window_hu: Sequence[float]
) -> dict[str, Any]:
    """``_target_`` and arguments of the network of a file's weights, for images of the data.

    ``model`` is that of ``conf/model/pretrained.yaml``; its ``network`` are further arguments.
    """
    if path is None:
        raise PancsegError("model=pretrained: give init_from=FILE, weights with their network")
    origin = origin_of(path, path.stat().st_mtime if path.exists() else 0.0)
    if isinstance(origin, KnownWeights):
        codes = model["orientation"] or origin.orientation
        origin = replace(origin, orientation=codes).adapt(orientation, window_hu)
    if "network" in origin:
        return origin | {"network": origin["network"] | model["network"]}
    return origin | model["network"]


@lru_cache(maxsize=1)  # ``changed_at`` is a part of its key: a replaced file is read again
def origin_of(path: Path, changed_at: float) -> KnownWeights | dict[str, Any]:
    """The record of a file's weights, or the network of a checkpoint of pancseg."""
    initial = open_weights(path)
    if (origin := initial.record or initial.model) is None:
        raise PancsegError(f"init_from={path}: its network is not known; give the model")
    return origin


def load_pretrained(network: nn.Module, initial: InitialWeights) -> str:
    """Copy every weight of equal name and shape into a network; their number, in a line."""
    own, weights, record = network.state_dict(), initial.weights, initial.record
    if record and isinstance(network, AdaptedNetwork):
        weights = matched_weights(own, {f"network.{k}": v for k, v in weights.items()}, initial)
    fitting = {k: weights[k] for k in own if k in weights and own[k].shape == weights[k].shape}
    if len(fitting) < max(1, MIN_SHARE * len(own)):
        advice = "give the model that it was trained with, as in its run's .hydra/config.yaml"
        raise PancsegError(
            f"init_from={initial.path}: holds {len(fitting)} of this network's {len(own)} weights; "
            + (f"these are of {record.name}: give model=pretrained" if record else advice)
        )
    network.load_state_dict(fitting, strict=False)
    new = sorted(set(own) - set(fitting))
    rest = f", new: {', '.join(new[:3])}{'...' * (len(new) > 3)}" if new else ""
    return f"init_from: {len(fitting)} of {len(own)} weights taken{rest}"


def matched_weights(
    own: dict[str, Tensor], weights: dict[str, Tensor], initial: InitialWeights
) -> dict[str, Tensor]:
    """Published weights that fit their network; a head of other classes is left out.

    Raises:
        PancsegError: If others are missing, of another shape, or unknown.
    """
    record: Any = initial.record
    names = {*own, *weights}
    head = {name for name in names if re.search(record.head, name.removeprefix("network."))}
    shapes = [{name: tensor.shape for name, tensor in each.items()} for each in (own, weights)]
    wrong = sorted(name for name in names - head if shapes[0].get(name) != shapes[1].get(name))
    if wrong:
        given = f"init_from={initial.path}: is no {record.name}"
        raise PancsegError(f"{given}: unknown, missing or of another shape: {', '.join(wrong[:5])}")
    return {k: v for k, v in weights.items() if record.has_background or k not in head}


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
    """The weights in the content of a file, by its names."""
    for name in WRAPPERS:
        if isinstance(content.get(name), Mapping):
            content = content[name]
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def without_prefixes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the network's names."""
    for prefix in PREFIXES:
        inside = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        weights = inside or weights
    return weights
