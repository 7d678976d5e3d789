"""Which patches a network takes, found out without computing anything.

A network on torch's meta device has shapes and no values, so a forward pass costs no memory and
next to no time, and fails where the real one would.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pancseg.errors import PancsegError
from pancseg.learning.building import build, one_line

STEPS = (1, 2, 4, 8, 16, 32, 64, 128)
SIZE_KEYS = ("spatial_size", "img_size")  # arguments that say the patch: ResUNet's, UNETR's


def check_spatial_size(
    model: dict[str, Any], spatial_size: Sequence[int], batch_size: int = 2
) -> None:
    """Check that a network takes patches of a size and gives two logits a voxel.

    Args:
        model: ``_target_`` and arguments of the network.
        spatial_size: Voxels of a patch.
        batch_size: Patches of a step.

    Raises:
        PancsegError: Naming the axis and the two nearest sizes that work, where there is a rule;
            else with what the network says.
    """
    size = [int(voxels) for voxels in spatial_size]
    if len(size) != 3:
        raise PancsegError(f"data.spatial_size={size}: expected three sizes, voxels")
    try:
        network = build_on_meta(model)
    except PancsegError:
        if "img_size" in model:  # such a network refuses the size when it is built
            name_the_axis(model, None, size, batch_size)
        raise
    for axis, (step, least) in enumerate(strides_rule(getattr(network, "strides", ()))):
        refuse_off_step(size, axis, step, least)
    try:
        shape = logits_shape(network, batch_size, size)
    except PancsegError:
        raise
    except Exception as error:  # a network of another library raises what it likes
        if needs_values(error):  # it cannot be tried here; the first step will tell
            return
        name_the_axis(model, network, size, batch_size)
        raise PancsegError(
            f"data.spatial_size={size}: this network does not take it: {one_line(error)}"
        ) from error
    if shape != (batch_size, 2, *size):
        name_the_axis(model, network, size, batch_size)
        raise PancsegError(
            f"{model['_target_']}: gives logits of shape {list(shape)} for images of shape "
            f"{[batch_size, 1, *size]}; expected {[batch_size, 2, *size]}"
        )


def strides_rule(strides: Sequence[int | Sequence[int]]) -> list[tuple[int, int]]:
    """Step and least size of each axis of a network with strides; empty without.

    A multiple of the strides' product, so that skip connections fit, and at least twice that:
    a bottom of one voxel sees the same whatever lies to its sides.

    >>> strides_rule([2, [2, 2, 1]])
    [(4, 8), (4, 8), (2, 4)]
    """
    by_axis = [[stride] * 3 if isinstance(stride, int) else stride for stride in strides]
    if any(len(stride) != 3 for stride in by_axis):  # a network of images in two dimensions
        return []
    steps = [math.prod(stride[axis] for stride in by_axis) for axis in range(3)]
    return [(step, 2 * step) for step in steps] if by_axis else []


def refuse_off_step(size: Sequence[int], axis: int, step: int, least: int) -> None:
    """Refuse a size that is no multiple of a step, or too small.

    Raises:
        PancsegError: Naming the axis and the two nearest sizes that work.
    """
    if size[axis] >= least and size[axis] % step == 0:
        return
    below = max(least, size[axis] // step * step)
    raise PancsegError(
        f"data.spatial_size={list(size)}: axis {axis} is {size[axis]}, but this network takes "
        f"multiples of {step} from {least} on; the nearest that work are {below} and {below + step}"
    )


def name_the_axis(
    model: dict[str, Any], network: nn.Module | None, size: list[int], batch_size: int
) -> None:
    """Find the rule of each axis by trying sizes, and refuse by the first that does not fit.

    Returns where no such rule explains the failure.
    """

    def works(tried: Sequence[int]) -> bool:
        """Whether it takes a size; building anew where an argument says the size."""
        try:
            same = network if "img_size" not in model else None
            takes = same or build_on_meta(fitted(model, tried))
            return logits_shape(takes, batch_size, tried) == (batch_size, 2, *tried)
        except Exception:  # a network of another library raises what it likes
            return False

    whole = [max(128, math.ceil(voxels / 128) * 128) for voxels in size]  # every step divides it
    for axis in range(3) if works(whole) else ():

        def works_along(voxels: int, axis: int = axis) -> bool:
            return works([*whole[:axis], voxels, *whole[axis + 1 :]])

        rule = rule_of_axis(works_along)
        if rule:
            refuse_off_step(size, axis, *rule)


def rule_of_axis(works: Callable[[int], bool]) -> tuple[int, int] | None:
    """Step and least size of an axis, from whether a size of it works.

    >>> rule_of_axis(lambda voxels: voxels >= 24 and voxels % 8 == 0)
    (8, 24)
    """
    step = next((step for step in STEPS if works(128 + step)), None)
    if step is None:
        return None
    least = next(voxels for voxels in range(step, 128 + step + 1, step) if works(voxels))
    return step, least


def fitted(model: dict[str, Any], spatial_size: Sequence[int]) -> dict[str, Any]:
    """A network's node for patches of another size.

    >>> fitted({"spatial_size": [1, 1, 1], "width": 2}, [4, 4, 4])
    {'spatial_size': [4, 4, 4], 'width': 2}
    """
    return {key: list(spatial_size) if key in SIZE_KEYS else model[key] for key in model}


def build_on_meta(model: dict[str, Any]) -> nn.Module:
    """A network with shapes and no values.

    Raises:
        PancsegError: If it cannot be built.
    """
    try:
        with torch.device("meta"):
            return build(model, nn.Module)
    except PancsegError:  # some constructors look at values, and only then is it built with them
        with torch.random.fork_rng(devices=[]):
            return build(model, nn.Module).to("meta")


def needs_values(error: Exception) -> bool:
    """Whether something failed only because a network looks at values, and meta has none.

    >>> needs_values(RuntimeError("Tensor.item() cannot be called on meta tensors"))
    True
    """
    return isinstance(error, NotImplementedError) or "meta tensor" in str(error)


def logits_shape(network: nn.Module, batch_size: int, size: Sequence[int]) -> tuple[int, ...]:
    """Shape of the finest logits in training, of a network on the meta device.

    Raises:
        PancsegError: If it gives something else than a tensor, or tensors from fine to coarse.
    """
    image = torch.empty(batch_size, 1, *size, device="meta")
    with torch.no_grad():
        given = network.train()(image)
        several = isinstance(given, (list, tuple))
        if several and not isinstance(network.eval()(image), Tensor):
            raise PancsegError(
                f"{type(network).__name__}: gives several outputs in evaluation too; expected one"
            )
    logits = list(given) if several else [given]
    if not logits or not all(isinstance(one, Tensor) and one.ndim == 5 for one in logits):
        raise PancsegError(
            f"{type(network).__name__}: gives something else than logits of five axes; expected "
            "a tensor, or a list of tensors from fine to coarse"
        )
    return tuple(logits[0].shape)
