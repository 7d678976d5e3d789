"""Adapt a network to its device: memory format, and a workaround for oneDNN."""

import torch
from torch import Tensor, nn


class ShortAxisConv3d(nn.Conv3d):
    """A ``Conv3d`` that leaves bfloat16 autocast where an axis is shorter than the kernel, on CPUs.

    oneDNN's bfloat16 gradient of such a convolution reads uninitialised memory (torch 2.13; a
    3 x 3 x 3 kernel over 2 x 4 x 4 voxels). The bottom levels of a network on a small patch have
    such axes, and are so small that float32 costs nothing.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Convolve ``(B, C, H, W, D)``."""
        if image.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(image)
        if all(n >= k for n, k in zip(image.shape[2:], self.kernel_size, strict=True)):
            return super().forward(image)
        with torch.autocast("cpu", enabled=False):
            return super().forward(image.float())


def fix_short_axes(network: nn.Module) -> None:
    """Turn every plain ``Conv3d`` of a network into a :class:`ShortAxisConv3d`, in place.

    Only the class changes, so that a deep copy of the network uses its own weights.
    """
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = ShortAxisConv3d


def use_channels_last(network: nn.Module, device_type: str) -> bool:
    """Whether a network trains faster as ``channels_last_3d`` on ``cpu`` or ``cuda``."""
    # CPU seconds of a step on two patches of 64 x 64 x 48 and one core (AMD EPYC, AVX2, float32):
    # model=unet 0.52 contiguous, 0.50 channels-last; model=resunet of width 8 1.58 and 1.23
    if device_type == "cpu":
        return True
    # on CUDA these norms copy a channels-last tensor to the contiguous format and back
    copying = (nn.InstanceNorm3d, nn.GroupNorm)
    return not any(isinstance(module, copying) for module in network.modules())
