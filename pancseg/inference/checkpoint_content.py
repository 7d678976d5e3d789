"""What a checkpoint must hold, checked before any of it is used: a stranger may have written it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pancseg.data.splits import SUBSETS
from pancseg.errors import PancsegError
from pancseg.files import is_mapping
from pancseg.models.augmentation import Augmentation
from pancseg.models.factory import build

LONGEST_AXIS = 4096  # voxels of a patch
MOST_VOXELS = 2**28  # of a patch: 640 along each axis
SPACINGS_MM = 0.1, 100.0
LARGEST_HU = 1e6
DEEPEST = 100_000  # slices of a group


def check_content(content: Any) -> None:
    """Check the parts of a checkpoint that pancseg reads.

    Raises:
        PancsegError: Naming the first that cannot be, with its value.
        KeyError: If one is not there.
    """
    if not isinstance(content, dict):
        raise PancsegError("holds no checkpoint")
    data = content["datamodule_hyper_parameters"]
    told: dict[str, tuple[Any, Callable[[Any], bool]]] = {
        "data": (data, is_mapping),
        "CTDataModule": (content["CTDataModule"], is_mapping),
        "hyper_parameters": (content["hyper_parameters"], is_mapping),
        "state_dict": (content["state_dict"], is_mapping),
        "epoch": (content["epoch"], lambda v: is_whole(v, 0, 10**9)),
        "global_step": (content["global_step"], lambda v: is_whole(v, 0, 10**12)),
    }
    check_each(told)
    check_each(
        {
            "data.root": (data["root"], lambda v: isinstance(v, str) and "\0" not in v),
            "data.orientation": (data["orientation"], lambda v: isinstance(v, str) and len(v) == 3),
            "data.spacing_mm": (data["spacing_mm"], is_spacing),
            "data.window_hu": (data["window_hu"], is_window),
            "data.spatial_size": (data["spatial_size"], is_size),
            "data.depth": (data["depth"], lambda v: v is None or is_whole(v, 1, DEEPEST)),
            "data.sampling": (data["sampling"], is_mapping),
            "data.split": (data["split"], is_mapping),
            "data.augment": (data["augment"] or {}, is_mapping),
        }
    )
    Augmentation(**(data["augment"] or {}))
    check_view(content["hyper_parameters"].get("view"))
    check_dealt(content["CTDataModule"])


def check_view(view: Any) -> None:
    """Check what the network is said to be given.

    Raises:
        PancsegError: If it cannot be.
    """
    if view is None:
        return
    check_each({"view": (view, is_mapping)})
    check_each(
        {
            "view.size": (view["size"], is_size),
            "view.overlap": (view["overlap"], lambda v: is_number(v) and 0 <= v < 1),
        }
    )


def check_dealt(state: dict[str, Any]) -> None:
    """Check who is said to have been dealt where.

    Raises:
        PancsegError: If those are no lists of names.
    """
    split, before = state["split"], state.get("seen_before", ())
    check_each({"split": (split, is_mapping), "seen_before": (before, are_names)})
    check_each({f"split.{part}": (split[part], are_names) for part in SUBSETS})
    if not isinstance(state.get("fingerprint", ""), str):
        raise PancsegError("holds a fingerprint that is no text")


def check_network_fits(model: dict[str, Any], state: dict[str, Any]) -> None:
    """Check that a network is as large as its weights, before memory is taken for it.

    Raises:
        PancsegError: If it is larger.
    """
    try:
        with torch.device("meta"):
            network = build(model, nn.Module)
    except PancsegError:  # some look at values and can be built with them alone
        return
    needed = sum(one.numel() for one in network.parameters())
    there = sum(one.numel() for one in state.values() if isinstance(one, torch.Tensor))
    if needed > there:
        raise PancsegError(f"names a network of {needed} weights and holds {there}")


def check_each(told: dict[str, tuple[Any, Callable[[Any], bool]]]) -> None:
    """Check values by name.

    Raises:
        PancsegError: Naming the first that is not what it should be.
    """
    for name, (value, is_right) in told.items():
        if not is_right(value):
            shown = " ".join(repr(value)[:60].split())
            raise PancsegError(f"holds {name}={shown}, which pancseg.train never wrote")


def is_number(value: Any) -> bool:
    """Whether it is a finite number.

    >>> is_number(0.5), is_number(True), is_number(float("nan")), is_number("1")
    (True, False, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any, least: int, most: int) -> bool:
    """Whether it is a whole number within bounds."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def are_names(value: Any) -> bool:
    """Whether it is a list of names."""
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


def are_numbers(value: Any, count: int) -> bool:
    """Whether it is so many numbers."""
    return isinstance(value, list | tuple) and len(value) == count and all(map(is_number, value))


def is_spacing(value: Any) -> bool:
    """Whether it can be the size of a voxel, mm: a finer one would fill any memory."""
    least, most = SPACINGS_MM
    return are_numbers(value, 3) and all(least <= one <= most for one in value)


def is_window(value: Any) -> bool:
    """Whether it can be what becomes 0 and 1, HU."""
    return are_numbers(value, 2) and -LARGEST_HU <= value[0] < value[1] <= LARGEST_HU


def is_size(value: Any) -> bool:
    """Whether it can be the size of a patch, voxels.

    >>> is_size([96, 96, 64]), is_size([4096, 4096, 4096]), is_size([96, 96]), is_size(None)
    (True, False, False, False)
    """
    if not are_numbers(value, 3) or not all(is_whole(one, 1, LONGEST_AXIS) for one in value):
        return False
    return math.prod(value) <= MOST_VOXELS
