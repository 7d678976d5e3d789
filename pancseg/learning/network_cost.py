"""What a network costs: parameters, arithmetic, and the memory of a training step.

Counted on torch's meta device, where a step has shapes and no values.
"""

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pancseg.errors import PancsegError
from pancseg.learning.building import count_parameters
from pancseg.learning.deep_supervision import deep_supervision_loss
from pancseg.learning.network_sizes import build_on_meta, check_spatial_size, fitted, needs_values

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
SHARE = 0.9  # of the memory an advised size may take: the estimate is no measurement


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        parameters: Trainable ones.
        multiply_adds: Of convolutions and matrix products, one forward pass of one patch.
        step_bytes: Memory of a training step: weights, gradients, what the optimiser keeps, and
            the most that activations and the tensors of the backward pass take at once. Without
            what a convolution library takes for itself.
    """

    parameters: int
    multiply_adds: int
    step_bytes: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive at once while it is on.

    By hand: torch's own tracker (``torch.distributed._tools.mem_tracker``) is not public.

    Attributes:
        now: Bytes alive now.
        peak: The most at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.add(tensor.untyped_storage())
        return out

    def add(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is freed; a view shares one that is counted already."""
        name = storage._cdata
        if name not in self.alive:
            self.alive.add(name)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.drop, name, storage.nbytes())

    def drop(self, name: int, size: int) -> None:
        """Count a storage no longer."""
        self.alive.discard(name)
        self.now -= size


def cost_of(
    model: dict[str, Any],
    spatial_size: Sequence[int],
    batch_size: int,
    *,
    optimizer_states: int = 2,
    bytes_per_value: int = 4,
) -> Cost:
    """Count what a network costs, without values.

    Args:
        model: ``_target_`` and arguments of the network.
        spatial_size: Voxels of a patch.
        batch_size: Patches of a step.
        optimizer_states: Numbers the optimiser keeps for a weight: Adam 2, with amsgrad 3, SGD
            with momentum 1.
        bytes_per_value: Of an activation: 4 in float32, 2 in mixed precision. Weights, gradients
            and what the optimiser keeps are float32 in both.

    Raises:
        PancsegError: If the network cannot be built.
    """
    network = build_on_meta(model)
    weights = 4 * sum(one.numel() for one in network.parameters())
    image = torch.empty(1, 1, *spatial_size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        network.eval()(image)
    activations = live_bytes_of_step(network.train(), spatial_size, batch_size)
    return Cost(
        parameters=count_parameters(network),
        multiply_adds=flops.get_total_flops() // 2,
        step_bytes=(2 + optimizer_states) * weights + activations * bytes_per_value // 4,
    )


def live_bytes_of_step(network: nn.Module, spatial_size: Sequence[int], batch_size: int) -> int:
    """Most bytes alive at once in a forward and backward pass, float32.

    Dice with cross-entropy stands for the loss: of the losses in ``conf/loss`` it keeps the most.
    """
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    with LiveBytes() as live:
        image = torch.empty(batch_size, 1, *spatial_size, device="meta")
        logits = network(image)
        deep_supervision_loss(loss, logits, torch.zeros_like(image)).backward()
    return live.peak


def describe(cost: Cost) -> str:
    """A line for people.

    >>> describe(Cost(4_808_917, 63_000_000_000, 2_100_000_000))
    '4.8 M parameters, 63 G multiply-adds a patch, 2.1 GB a step'
    """
    return (
        f"{cost.parameters / 1e6:.1f} M parameters, {cost.multiply_adds / 1e9:.0f} G multiply-adds "
        f"a patch, {gigabytes(cost.step_bytes)} a step"
    )


def gigabytes(size: int) -> str:
    """Bytes in GB, one digit below ten; in MB below a tenth.

    >>> gigabytes(2_149_000_000), gigabytes(31_200_000_000), gigabytes(5_000_000)
    ('2.1 GB', '31 GB', '5 MB')
    """
    if size < 1e8:
        return f"{size / 1e6:.0f} MB"
    return f"{size / 1e9:.1f} GB" if size < 9.95e9 else f"{size / 1e9:.0f} GB"


def check_memory(
    model: dict[str, Any],
    spatial_size: Sequence[int],
    batch_size: int,
    available_bytes: int | None,
    accelerator: str = "cpu",
    **counting: int,
) -> str | None:
    """One line of advice where a training step does not fit into memory, else None.

    None, too, where it is not known: a network that looks at values cannot be counted.

    Args:
        model: ``_target_`` and arguments of the network.
        spatial_size: Voxels of a patch.
        batch_size: Patches of a step.
        available_bytes: What there is, as :func:`available_memory` finds it; None is not known.
        accelerator: ``gpu`` or ``cpu``, for the words.
        counting: ``optimizer_states`` and ``bytes_per_value`` of :func:`cost_of`.
    """
    try:
        needed = cost_of(model, spatial_size, batch_size, **counting).step_bytes
    except Exception as error:  # a network of another library raises what it likes
        if needs_values(error):
            return None
        raise
    if available_bytes is None or needed <= available_bytes:
        return None
    room = int(SHARE * available_bytes)
    advice = []
    batch = smaller_batch(model, spatial_size, batch_size, room, **counting)
    if batch:
        advice.append(f"data.batch_size={batch}")
    size = smaller_patch(model, spatial_size, batch_size, room, **counting)
    if size:
        advice.append(f"data.spatial_size=[{','.join(map(str, size))}]")
    what = "this GPU" if accelerator != "cpu" else "this machine"
    return (
        f"data.batch_size={batch_size}: a step needs about {gigabytes(needed)}, {what} has "
        f"{gigabytes(available_bytes)}; give {' or '.join(advice) or 'a smaller network'}"
    )


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
    try:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
    for path in map(Path, CGROUP_LIMITS):
        limit = path.read_text().strip() if path.is_file() else "max"
        found += [int(limit)] if limit.isdigit() else []
    return min(found)
