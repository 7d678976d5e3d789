"""Losses of two logits per voxel that teach a softmax, and deep supervision.

A voxel is decided by the rule that its loss teaches (``Segmenter``): by the softmax of both
channels, or, for a loss with ``sigmoid=True``, by channel 1 alone. MONAI's ``DiceFocalLoss`` fits
neither: ``softmax=True`` applies to its Dice term, while the focal term is a sigmoid of channel 1.
MONAI's ``DiceCELoss`` calls ``nll_loss``, which has no deterministic kernel on CUDA.
"""

from monai.losses import DeepSupervisionLoss, DiceLoss, FocalLoss
from monai.networks.utils import one_hot
from torch import Tensor, nn


class DiceCELoss(nn.Module):
    """Soft Dice loss plus cross-entropy, both of the softmax.

    Args:
        include_background: Whether Dice is the mean of both classes, or of the foreground.
        batch: Whether Dice is one ratio over the batch, or the mean over samples.
    """

    def __init__(self, include_background: bool = False, batch: bool = True) -> None:
        super().__init__()
        self.dice = DiceLoss(
            include_background=include_background, to_onehot_y=True, softmax=True, batch=batch
        )

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits ``(B, C, H, W, D)`` and labels ``(B, 1, H, W, D)``."""
        return self.dice(logits, label) + self.voxel_loss(logits, label)

    def voxel_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """The second term, a mean over voxels."""
        return cross_entropy(logits, label)


class DiceFocalLoss(DiceCELoss):
    """Soft Dice loss plus focal loss (Lin et al. 2017, arXiv 1708.02002), both of the softmax.

    ``gamma`` is the exponent of the factor ``(1 - p) ** gamma``; 0 is cross-entropy.
    """

    def __init__(
        self, include_background: bool = False, batch: bool = True, gamma: float = 2.0
    ) -> None:
        super().__init__(include_background, batch)
        self.focal = FocalLoss(to_onehot_y=True, gamma=gamma, use_softmax=True)

    def voxel_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Focal loss, a mean over voxels; MONAI divides by the number of classes, too."""
        return logits.shape[1] * self.focal(logits, label)


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy of logits ``(B, C, H, W, D)`` and labels ``(B, 1, H, W, D)``.

    Deterministic on CUDA, where ``torch.nn.functional.cross_entropy`` is not.
    """
    target = one_hot(label, num_classes=logits.shape[1])
    return -(logits.log_softmax(dim=1) * target).sum(dim=1).mean()


def deep_supervision_loss(loss: nn.Module, logits: Tensor | list[Tensor], label: Tensor) -> Tensor:
    """Weighted mean of the losses of all heads; the loss itself for a single tensor.

    Args:
        loss: Of logits ``(B, 2, h, w, d)`` and labels ``(B, 1, h, w, d)``.
        logits: One tensor, or several from fine to coarse; converted to float32, because sums over
            10^6 voxels lose digits in half precision.
        label: ``(B, 1, H, W, D)``. MONAI resamples it by ``nearest-exact``, which is off by half a
            voxel at most; ``nearest`` takes the first voxel of each block.
    """
    if isinstance(logits, Tensor):
        return loss(logits.float(), label)
    weights = head_weights(len(logits))
    weighted = DeepSupervisionLoss(loss, weights=weights)  # type: ignore[arg-type]  # any module
    return weighted([head.float() for head in logits], label.float())


def head_weights(heads: int) -> list[float]:
    """Weights of the heads, fine to coarse: 1, 1/2, 1/4, ... over their sum, as in nnU-Net.

    MONAI does not divide by the sum: more heads would act as a higher learning rate.

    >>> head_weights(2)
    [0.6666666666666666, 0.3333333333333333]
    """
    halves = [0.5**level for level in range(heads)]
    return [weight / sum(halves) for weight in halves]
