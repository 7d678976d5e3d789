"""Whether a training step fits into memory, and what would: said before, not by a crash."""

import logging
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch

from pancseg.errors import PancsegError
from pancseg.learning.building import find_class
from pancseg.learning.network_cost import cost_of, describe, gigabytes
from pancseg.learning.network_sizes import check_spatial_size, fitted, needs_values
from pancseg.parallel import main_memory

log = logging.getLogger(__name__)
CHECKPOINT = "use_checkpoint"  # MONAI's name for it
SHARE = 0.9  # of the memory an advised size may take: the estimate is no measurement


def tell_cost(
    model: dict[str, Any],
    spatial_size: Sequence[int],
    batch_size: int,
    accelerator: str,
    **counting: int,
) -> int | None:
    """Log what a step costs, and warn where it may not fit: an estimate refuses nothing.

    Returns:
        Bytes of a step, or None where they are not known.

    Args:
        model: ``_target_`` and arguments of the network.
        spatial_size: Voxels of a patch.
        batch_size: Patches of a step.
        accelerator: ``gpu`` or ``cpu``.
        counting: ``optimizer_states`` and ``bytes_per_value`` of
            :func:`pancseg.learning.network_cost.cost_of`.
    """
    try:
        cost = cost_of(model, spatial_size, batch_size, **counting)
    except Exception as error:  # a network of another library raises what it likes
        if not needs_values(error):
            raise
        return None
    log.info("a step   %s", describe(cost))
    available = available_memory(accelerator)
    advice = check_memory(
        cost.step_bytes, model, spatial_size, batch_size, available, accelerator, **counting
    )
    if advice:
        log.warning(advice)
    return cost.step_bytes


def counting_of(optimizer: Mapping[str, Any], precision: str) -> dict[str, int]:
    """How the memory of a step is counted.

    Args:
        optimizer: ``_target_`` and arguments.
        precision: Lightning's name of the arithmetic.

    Returns:
        ``optimizer_states`` and ``bytes_per_value`` of :func:`cost_of`.

    >>> counting_of({"_target_": "torch.optim.Adam", "amsgrad": True}, "bf16-mixed")
    {'optimizer_states': 3, 'bytes_per_value': 2}
    """
    is_sgd = str(optimizer["_target_"]).endswith(".SGD")
    states = 1 if is_sgd else 2 + bool(optimizer.get("amsgrad"))
    return {"optimizer_states": states, "bytes_per_value": 2 if "16" in precision else 4}


def check_memory(
    needed_bytes: int,
    model: dict[str, Any],
    spatial_size: Sequence[int],
    batch_size: int,
    available_bytes: int | None,
    accelerator: str = "cpu",
    **counting: int,
) -> str | None:
    """One line of advice where a training step does not fit into memory, else None.

    Args:
        needed_bytes: Of a step, as :func:`cost_of` estimates it.
        model: ``_target_`` and arguments of the network.
        spatial_size: Voxels of a patch.
        batch_size: Patches of a step.
        available_bytes: What there is, as :func:`available_memory` finds it; None is not known.
        accelerator: ``gpu`` or ``cpu``, for the words.
        counting: ``optimizer_states`` and ``bytes_per_value`` of :func:`cost_of`.
    """
    if available_bytes is None or needed_bytes <= available_bytes:
        return None
    room = int(SHARE * available_bytes)
    advice = []
    batch = smaller_batch(model, spatial_size, batch_size, room, **counting)
    if batch:
        advice.append(f"data.batch_size={batch}")
    size = smaller_patch(model, spatial_size, batch_size, room, **counting)
    if size:
        advice.append(f"data.spatial_size=[{','.join(map(str, size))}]")
    if can_checkpoint(model):
        less = {**model, CHECKPOINT: True}
        if cost_of(less, spatial_size, batch_size, **counting).step_bytes <= room:
            advice.append(f"{'' if CHECKPOINT in model else '+'}model.{CHECKPOINT}=true")
    what = "this GPU" if accelerator != "cpu" else "this machine"
    return (
        f"data.batch_size={batch_size}: a step needs about {gigabytes(needed_bytes)}, {what} has "
        f"{gigabytes(available_bytes)}; give {' or '.join(advice) or 'a smaller network'}"
    )


def can_checkpoint(model: dict[str, Any]) -> bool:
    """Whether a network could compute its insides again instead of keeping them, and does not.

    >>> can_checkpoint({"_target_": "monai.networks.nets.SwinUNETR"})
    True
    >>> can_checkpoint({"_target_": "monai.networks.nets.UNet"})
    False
    """
    target = find_class(str(model["_target_"]))
    knows = target is not None and CHECKPOINT in signature(target).parameters
    return knows and not model.get(CHECKPOINT)


def smaller_batch(
    model: dict[str, Any], spatial_size: Sequence[int], batch_size: int, room: int, **counting: int
) -> int:
    """The largest smaller batch whose step fits; 0 if none does."""
    fits, too_many = 0, batch_size
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if cost_of(model, spatial_size, middle, **counting).step_bytes <= room:
            fits = middle
        else:
            too_many = middle
    return fits


def smaller_patch(
    model: dict[str, Any], spatial_size: Sequence[int], batch_size: int, room: int, **counting: int
) -> list[int] | None:
    """A smaller patch of about the same form whose step fits; None if none is found.

    Its axes are multiples of 16, else of 32, which nearly every network takes.
    """
    seen = [list(spatial_size)]
    for percent in range(95, 10, -5):
        for step in (16, 32):
            size = [voxels * percent // 100 // step * step for voxels in spatial_size]
            if min(size) < step or size in seen:
                continue
            seen.append(size)
            try:
                check_spatial_size(fitted(model, size), size, batch_size)
            except PancsegError:
                continue
            if cost_of(fitted(model, size), size, batch_size, **counting).step_bytes <= room:
                return size
    return None


def available_memory(accelerator: str) -> int | None:
    """Bytes that a training may take: free ones of the GPU, all of the machine or container.

    None where it is not known.
    """
    if accelerator in ("gpu", "cuda"):
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    return main_memory()
