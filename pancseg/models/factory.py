"""Build networks, losses and optimizers from plain values.

The values may come from a checkpoint of unknown origin: a ``_target_`` is looked up in four
libraries only, and may load no file. Hydra's ``instantiate`` would call any function.
"""

import importlib
import inspect
import re
from typing import Any, TypeVar

import torch
from torch import nn

from pancseg.errors import PancsegError

Built = TypeVar("Built")
ALLOWED = ("monai.networks", "monai.losses", "torch.optim", "pancseg.models")
DOWNLOADING = {"monai.losses.perceptual"}  # runs torch.hub.load whatever its arguments
# arguments by which classes of MONAI 1.6 download or open a file of weights
LOADS = re.compile(r"pretrained.*|.*url|weights|checkpoint|.*path.*|filename|.*_dir")


def build(node: dict[str, Any], kind: type[Built], *args: Any) -> Built:
    """Build an object of class ``kind`` from ``_target_``, keyword and positional arguments.

    Raises:
        PancsegError: If the target is missing or not an allowed class, would load weights, or
            refuses its arguments.
    """
    target = str(node.get("_target_", ""))
    expected = f"expected a {kind.__name__} of {', '.join(ALLOWED)}"
    if target == "???":  # OmegaConf's mandatory value
        raise PancsegError(
            f"_target_ is not given; {expected}, such as "
            "model._target_=monai.networks.nets.AttentionUnet"
        )
    found = find_class(target)
    if found is None or not issubclass(found, kind):
        raise PancsegError(f"_target_={target}: not allowed; {expected}")
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    check_loads_nothing(found, arguments)
    try:
        return found(*args, **arguments)
    except PancsegError:
        raise
    except Exception as error:  # constructors of other libraries raise any kind
        raise PancsegError(f"{target}: {one_line(error)}") from error


def check_loads_nothing(found: type, arguments: dict[str, Any]) -> None:
    """Check that no argument, given or default, makes a class download or open weights.

    Raises:
        PancsegError: Naming the argument and a value that is accepted.
    """
    parameters = inspect.signature(found).parameters.items()
    defaults = {name: p.default for name, p in parameters if p.default is not p.empty}
    for name, value in {**defaults, **arguments}.items():
        # numbers are not files: DeepSupervisionLoss(weights=[1, 0.5])
        if LOADS.fullmatch(name) and (value is True or isinstance(value, (str, dict))):
            raise PancsegError(
                f"{found.__name__}: {name}={value} would load weights from elsewhere, which is not "
                f"allowed; give {name}={'false' if value is True else 'null'}"
            )


def one_line(error: Exception) -> str:
    """The message of an exception without line breaks; its type if it has none.

    >>> one_line(ValueError("no such" + chr(10) + "size")), one_line(KeyError())
    ('no such size', 'KeyError')
    """
    return " ".join(str(error).split()) or type(error).__name__


def find_class(target: str) -> type | None:
    """The class of a dotted name if an allowed library defines it, else None."""
    module, _, name = target.rpartition(".")
    if not is_allowed(module):
        return None
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None
    is_class = isinstance(found, type) and found.__module__ not in DOWNLOADING
    return found if is_class and is_allowed(found.__module__) else None


def is_allowed(module: str) -> bool:
    """Whether a module is an allowed library or inside one.

    >>> is_allowed("monai.networks.nets"), is_allowed("monai.networks_evil"), is_allowed("os")
    (True, False, False)
    """
    return any(module == root or module.startswith(root + ".") for root in ALLOWED)


def build_on_meta(model: dict[str, Any]) -> nn.Module:
    """Build a network with shapes and without values.

    Raises:
        PancsegError: If it cannot be built.
    """
    try:
        with torch.device("meta"):
            return build(model, nn.Module)
    except PancsegError:  # a constructor that reads values
        with torch.random.fork_rng(devices=[]):
            return build(model, nn.Module).to("meta")


def count_parameters(network: nn.Module) -> int:
    """Trainable parameters of a network."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
