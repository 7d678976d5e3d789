"""The loss of a network that answers at several resolutions."""

from monai.losses import DeepSupervisionLoss
from torch import Tensor, nn


def deep_supervision_loss(loss: nn.Module, logits: Tensor | list[Tensor], label: Tensor) -> Tensor:
    """Weighted mean of the losses at every resolution; of one tensor, its loss.

    Args:
        loss: Of logits ``(B, 2, h, w, d)`` and labels ``(B, 1, h, w, d)``.
        logits: One tensor, or several from fine to coarse; taken as float32.
        label: ``(B, 1, H, W, D)``. MONAI brings it to each size by ``nearest-exact``, which is at
            most half a voxel off; plain ``nearest`` takes the first voxel of each block, one and
            a half off where four become one.
    """
    if isinstance(logits, Tensor):
        return loss(logits.float(), label)
    weights = head_weights(len(logits))
    weighted = DeepSupervisionLoss(loss, weights=weights)  # type: ignore[arg-type]  # any module
    return weighted(logits, label.float())


def head_weights(heads: int) -> list[float]:
    """Weights of the heads, fine to coarse: 1, 1/2, 1/4, ... over their sum, as in nnU-Net.

    MONAI's own weights are not divided by their sum: a head more would be a higher learning rate.

    >>> head_weights(2)
    [0.6666666666666666, 0.3333333333333333]
    """
    halves = [0.5**level for level in range(heads)]
    return [one / sum(halves) for one in halves]
