"""Building networks, losses and optimisers from plain values, and only those.

The values may come out of a checkpoint that somebody else wrote, so a ``_target_`` is looked up
in four libraries and nowhere else. Hydra's ``instantiate`` would call any function it names.
"""

import importlib
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

from pancseg.errors import PancsegError

Built = TypeVar("Built")
ALLOWED = ("monai.networks", "monai.losses", "torch.optim", "pancseg")


def build(node: dict[str, Any], kind: type[Built], *first: Any) -> Built:
    """Build what a node describes.

    Args:
        node: ``_target_`` and keyword arguments, all plain values.
        kind: What it must be.
        first: Positional arguments that come before.

    Raises:
        PancsegError: If the target is not a class of an allowed library, or takes no such argument.
    """
    target = str(node.get("_target_", ""))
    found = find_class(target)
    if found is None or not issubclass(found, kind):
        raise PancsegError(
            f"_target_={target}: not allowed; expected a {kind.__name__} of {', '.join(ALLOWED)}"
        )
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    try:
        return found(*first, **arguments)
    except (TypeError, ValueError) as error:
        raise PancsegError(f"{target}: {error}") from error


def find_class(target: str) -> type | None:
    """The class of that dotted name, if it is defined in an allowed library, else None."""
    module, _, name = target.rpartition(".")
    if not is_allowed(module):
        return None
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    return found if isinstance(found, type) and is_allowed(found.__module__) else None


def is_allowed(module: str) -> bool:
    """Whether a module is one of the allowed libraries or inside one.

    >>> is_allowed("monai.networks.nets"), is_allowed("monai.networks_evil"), is_allowed("os")
    (True, False, False)
    """
    return any(module == root or module.startswith(root + ".") for root in ALLOWED)


def check_spatial_size(model: dict[str, Any], spatial_size: Sequence[int]) -> None:
    """Check that a network with strides takes patches of a size.

    Each axis must be a multiple of the product of its strides, so that skip connections fit, and
    at least twice that, so that batch norm has more than one value at the bottom.

    Raises:
        PancsegError: Naming the axis and the two nearest sizes that work.
    """
    if len(spatial_size) != 3:
        raise PancsegError(f"data.spatial_size={list(spatial_size)}: expected three sizes, voxels")
    strides = [s if isinstance(s, (list, tuple)) else [s] * 3 for s in model.get("strides", [])]
    for axis, size in enumerate(spatial_size):
        factor = math.prod(int(stride[axis]) for stride in strides)
        if size >= 2 * factor and size % factor == 0:
            continue
        below = max(2 * factor, size // factor * factor)
        nearest = [below, below + factor]
        raise PancsegError(
            f"data.spatial_size={list(spatial_size)}: axis {axis} is {size}, but this network "
            f"takes multiples of {factor} from {2 * factor} on; the nearest that work are "
            f"{nearest[0]} and {nearest[1]}"
        )


def count_parameters(network: nn.Module) -> int:
    """Trainable parameters of a network."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
