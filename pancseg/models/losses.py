"""Losses on the softmax of logits, a channel a class, and deep supervision.

A voxel is decided by the rule that its loss teaches: the softmax of all channels, or, with
``sigmoid=True``, the channels of a structure alone. MONAI's ``DiceFocalLoss`` fits neither:
``softmax=True`` applies to its Dice term only. Its ``DiceCELoss`` calls ``nll_loss``, not
deterministic on CUDA.
"""

import torch
from monai.losses import DeepSupervisionLoss, DiceLoss, FocalLoss
from monai.networks.utils import one_hot
from torch import Tensor, nn

from pancseg.structures import IGNORED

CERTAIN = 20.0  # logit of a probability of 2e-9 from 1


class DiceCELoss(nn.Module):
    """Soft Dice loss plus cross-entropy, both of the softmax.

    Args:
        include_background: Whether Dice is the mean of all classes, or of those of structures.
        batch: Whether Dice is one ratio over the batch, or the mean over samples.
    """

    def __init__(self, include_background: bool = False, batch: bool = True) -> None:
        super().__init__()
        self.dice = DiceLoss(include_background, to_onehot_y=True, softmax=True, batch=batch)

    def forward(self, logits: Tensor, label: Tensor, labelled: Tensor | float = 1.0) -> Tensor:
        """Loss of logits ``(B, C, H, W, D)`` and labels ``(B, 1, H, W, D)``.

        ``labelled`` is the share of voxels that count in the mean of the cross-entropy.
        """
        return self.dice(logits, label) + self.voxel_loss(logits, label) / labelled

    def voxel_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Mean cross-entropy, deterministic on CUDA, where torch's own is not."""
        target = one_hot(label, num_classes=logits.shape[1])
        return -(logits.log_softmax(dim=1) * target).sum(dim=1).mean()


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


class IgnoringLoss(nn.Module):
    """A loss without ignored voxels: they have no gradient, and count as right background.

    The mean of cross-entropy and focal loss is over the other voxels, as in nnU-Net.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits ``(B, C, H, W, D)`` and labels ``(B, 1, H, W, D)``."""
        given: tuple[Tensor, ...] = without_ignored(logits, label)
        if isinstance(self.loss, DiceCELoss):
            given += ((label != IGNORED).float().mean().clamp(min=1e-6),)
        return self.loss(*given)


def without_ignored(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and label with certain and right background, without a gradient, where ignored."""
    ignored = label == IGNORED
    background = torch.full_like(logits, -CERTAIN)
    background[:, 0] = CERTAIN
    return torch.where(ignored, background, logits), label.masked_fill(ignored, 0)


def deep_supervision_loss(loss: nn.Module, logits: Tensor | list[Tensor], label: Tensor) -> Tensor:
    """Loss of one tensor of logits, or mean over heads from fine to coarse.

    Heads have weights 1, 1/2, 1/4, ... over their sum, as in nnU-Net; MONAI does not divide by the
    sum, so that more heads act as a higher learning rate. Logits become float32, because sums over
    10^6 voxels lose digits in half precision. MONAI resamples the label by ``nearest-exact``, which
    is off by half a voxel at most; ``nearest`` takes the first voxel of each block.
    """
    if isinstance(logits, Tensor):
        return loss(logits.float(), label)
    halves = [0.5**level for level in range(len(logits))]
    weights = [weight / sum(halves) for weight in halves]
    weighted = DeepSupervisionLoss(loss, weights=weights)  # type: ignore[arg-type]  # any module
    return weighted([head.float() for head in logits], label.float())
