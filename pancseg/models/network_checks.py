"""Cost of a network, and the patch sizes that it takes, found on the meta device."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pancseg.errors import PancsegError
from pancseg.models.factory import build_on_meta, count_parameters, one_line

DIVISORS = (1, 2, 4, 8, 16, 32, 64, 128)  # of a patch size, tried in this order


def count_multiply_adds(network: nn.Module, spatial_size: Sequence[int]) -> int:
    """Multiply-adds of convolutions and matrix products of the inference of one patch.

    ``network`` is on the meta device; 0 if it reads values, which are not there.
    """
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network.eval()(torch.empty(1, 1, *spatial_size, device="meta"))
    except Exception as error:  # networks of other libraries raise any class
        if not needs_values(error):
            raise
        return 0
    return counter.get_total_flops() // 2


def describe_cost(model: dict[str, Any], spatial_size: Sequence[int]) -> str:
    """Parameters of a network, and its multiply-adds for a patch where they can be counted."""
    network = build_on_meta(model)
    multiply_adds = count_multiply_adds(network, spatial_size)
    cost = f", {multiply_adds / 1e9:.0f} G multiply-adds a patch" if multiply_adds else ""
    return f"{count_parameters(network) / 1e6:.1f} M parameters{cost}"


def needs_values(error: Exception) -> bool:
    """Whether a network failed only because it reads values, which the meta device lacks."""
    return isinstance(error, NotImplementedError) or "meta tensor" in str(error)


def check_spatial_size(
    model: dict[str, Any], spatial_size: Sequence[int], batch_size: int = 2, classes: int = 2
) -> None:
    """Check that a network takes patches of a size, voxels, and returns a logit a class per voxel.

    Raises:
        PancsegError: With the axis and the two nearest sizes that work if sizes must be multiples
            of a number, else with the network's own message.
    """
    size = [int(voxels) for voxels in spatial_size]
    if len(size) != 3:
        raise PancsegError(f"data.spatial_size={size}: expected three sizes, voxels")
    depends_on_size = "img_size" in model  # then the constructor refuses the size
    try:
        network = build_on_meta(model)
    except PancsegError:
        if depends_on_size:
            check_by_trials(model, None, size, batch_size, classes)
        raise
    strides = [[s] * 3 if isinstance(s, int) else s for s in getattr(network, "strides", ())]
    if strides and all(len(stride) == 3 for stride in strides):
        for axis in range(3):
            divisor = math.prod(stride[axis] for stride in strides)  # for the skip connections
            # a bottom level of one voxel has no spatial context
            check_axis(size, axis, divisor, 2 * divisor)
    if problem := find_problem(network, size, batch_size, classes):
        check_by_trials(model, None if depends_on_size else network, size, batch_size, classes)
        raise PancsegError(problem)


def find_problem(network: nn.Module, size: Sequence[int], batch_size: int, classes: int) -> str:
    """Why a network on the meta device cannot be trained on patches of a size; empty if it can."""
    image, name = torch.empty(batch_size, 1, *size, device="meta"), type(network).__name__
    try:
        with torch.no_grad():
            outputs, logits = network.train()(image), network.eval()(image)
    except Exception as error:  # networks of other libraries raise any class
        if needs_values(error):
            return ""
        return f"data.spatial_size={list(size)}: this network does not take it: {one_line(error)}"
    finest = outputs[0] if isinstance(outputs, list | tuple) and outputs else outputs
    expected = [batch_size, classes, *size]
    for output in (finest, logits):
        if not isinstance(output, Tensor) or list(output.shape) != expected:
            given = f"of shape {list(output.shape)}" if isinstance(output, Tensor) else "in a list"
            return f"{name}: gives logits {given}; expected {expected}, in training also a list"
    return ""


def check_axis(size: Sequence[int], axis: int, divisor: int, least: int) -> None:
    """Raise PancsegError unless an axis is a multiple of ``divisor``, ``least`` or more."""
    if size[axis] < least or size[axis] % divisor:
        below = max(least, size[axis] // divisor * divisor)
        given = f"data.spatial_size={list(size)}: axis {axis} is {size[axis]}"
        rule = f"this network takes multiples of {divisor} from {least} on"
        nearest = f"the nearest that work are {below} and {below + divisor}"
        raise PancsegError(f"{given}, but {rule}; {nearest}")


def check_by_trials(
    model: dict[str, Any],
    network: nn.Module | None,
    size: list[int],
    batch_size: int,
    classes: int,
) -> None:
    """Find the divisor of each axis by trying sizes, and check the size by it.

    Without ``network``, it is built anew with each size as its ``img_size``.
    """
    whole = [max(128, math.ceil(voxels / 128) * 128) for voxels in size]  # all DIVISORS divide it

    def is_taken(axis: int, voxels: int) -> bool:
        tried = [*whole[:axis], voxels, *whole[axis + 1 :]]
        try:
            trial = network or build_on_meta({**model, "img_size": tried})
        except PancsegError:
            return False
        return not find_problem(trial, tried, batch_size, classes)

    for axis in range(3) if is_taken(0, whole[0]) else ():
        divisor = next((n for n in DIVISORS if is_taken(axis, 128 + n)), None)
        if divisor:
            multiples = range(divisor, 129 + divisor, divisor)
            check_axis(size, axis, divisor, next(n for n in multiples if is_taken(axis, n)))
