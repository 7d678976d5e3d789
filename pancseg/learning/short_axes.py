"""Convolutions of images shorter than their kernel, computed in full precision on a CPU.

oneDNN's bfloat16 gradient of such a kernel reads memory that nobody wrote: wrong in silence, or a
loss that is no number a step later (seen in torch 2.13; a 3 x 3 x 3 kernel over 2 x 4 x 4 voxels).
At the bottom of a deep network on a small patch there are such images, and they cost nothing.
"""

import torch
from torch import Tensor, nn


class CarefulConv3d(nn.Conv3d):
    """A ``Conv3d`` that leaves bfloat16 where an axis is shorter than the kernel, on a CPU."""

    def forward(self, image: Tensor) -> Tensor:
        """Convolve ``(B, C, H, W, D)``."""
        if image.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(image)
        if all(n >= k for n, k in zip(image.shape[2:], self.kernel_size, strict=True)):
            return super().forward(image)
        with torch.autocast("cpu", enabled=False):
            return super().forward(image.float())


def convolve_carefully(network: nn.Module) -> None:
    """Make every plain ``Conv3d`` of a network a careful one; its weights and names stay.

    The class is changed in place: networks come from a library, and a copy of one, such as that of
    averaged weights, must convolve with its own weights.
    """
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = CarefulConv3d
