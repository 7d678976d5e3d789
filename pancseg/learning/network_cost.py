"""What a network costs: parameters, arithmetic, and the memory of a training step.

Counted on torch's meta device, where a step has shapes and no values.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pancseg.learning.building import count_parameters
from pancseg.learning.deep_supervision import deep_supervision_loss
from pancseg.learning.network_sizes import build_on_meta


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
