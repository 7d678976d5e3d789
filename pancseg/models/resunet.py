"""A residual U-Net whose levels are planned from patch size and voxel spacing, as in nnU-Net."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks.dynunet_block import UnetResBlock, UnetUpBlock
from monai.networks.nets import DynUNet
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

Triple = tuple[int, int, int]
MIN_VOXELS = 4  # that remain along each axis that is halved


def plan_levels(
    spatial_size: Sequence[int], spacing_mm: Sequence[float], max_levels: int = 6
) -> tuple[list[Triple], list[Triple]]:
    """Strides and kernel sizes of the levels, from full resolution down.

    nnU-Net's rule (Isensee et al. 2021, Nature Methods 18:203, and its ``network_topology.py``):
    an axis is halved while at least 4 voxels remain, 6 if it is halved alone, and while its spacing
    is less than twice the finest of the axes that can be halved. A kernel is 1 along an axis whose
    spacing is at least twice the finest, until halving has made them similar; at the bottom level
    it is 3.

    >>> plan_levels([32, 32, 16], [1.0, 1.0, 5.0])
    ([(1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2)], [(3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3)])
    """
    size, spacing = list(spatial_size), list(spacing_mm)
    strides, kernels = [(1, 1, 1)], [(1, 1, 1)]
    while len(strides) <= max_levels:
        x, y, z = (
            3 if length < 2 * min(spacing) else before
            for length, before in zip(spacing, kernels[-1], strict=True)
        )
        kernels.append((x, y, z))
        divisible = [axis for axis in range(3) if size[axis] >= 2 * MIN_VOXELS]
        finest = min((spacing[axis] for axis in divisible), default=0.0)
        halved = [axis for axis in divisible if spacing[axis] < 2 * finest]
        if not halved or (len(halved) == 1 and size[halved[0]] < 3 * MIN_VOXELS):
            break
        x, y, z = (2 if axis in halved else 1 for axis in range(3))
        strides.append((x, y, z))
        size = [voxels // step for voxels, step in zip(size, strides[-1], strict=True)]
        spacing = [length * step for length, step in zip(spacing, strides[-1], strict=True)]
    levels = min(len(strides), max_levels)
    return strides[:levels], [*kernels[1:levels], (3, 3, 3)]


class LeakyReLUFunction(Function):
    """Leaky ReLU that saves its output, which the next convolution saves as well, not its input."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, slope: float) -> Tensor:
        """Output of the shape of ``features``."""
        output = F.leaky_relu(features, slope)
        ctx.save_for_backward(output)
        ctx.slope = slope
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Gradient with respect to ``features``."""
        backward = torch.ops.aten.leaky_relu_backward
        return backward(gradient, *ctx.saved_tensors, ctx.slope, True), None


class LeakyReLU(nn.LeakyReLU):
    """Takes as little memory as ``inplace=True``, without its clones in the backward pass.

    Instance norm returns a view, and changing a view in place makes autograd clone its gradient.
    GroupNorm returns no view, but bf16 autocast on CUDA computes it in float32.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Output of the shape of ``features``."""
        if not self.training:
            return super().forward(features)
        return LeakyReLUFunction.apply(features, self.negative_slope)


class ResidualBlock(UnetResBlock):
    """MONAI's residual block without its addition in place."""

    def forward(self, features: Tensor) -> Tensor:
        """Two convolutions and the residual, ``(B, C, H, W, D)``."""
        residual = self.norm3(self.conv3(features)) if self.downsample else features
        features = self.lrelu(self.norm1(self.conv1(features)))
        return self.lrelu(self.norm2(self.conv2(features)) + residual)


class LightUpBlock(UnetUpBlock):
    """A level of DynUNet's decoder with a sum in place of concatenation and first convolution."""

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """Output of the shape of ``skip``, ``(B, C, H, W, D)``."""
        block = self.conv_block
        return block.lrelu(block.norm2(block.conv2(self.transp_conv(features) + skip)))


class ResUNet(DynUNet):
    """MONAI's DynUNet with residual blocks and instance norm, planned by :func:`plan_levels`.

    In training it returns a list of logits from fine to coarse, each at its own resolution, where
    DynUNet interpolates all to full resolution. In evaluation, or without deep supervision, it
    returns one tensor.

    ``deep_supervision`` is the number of coarser heads, at most two fewer than there are levels.
    ``prior`` is about the foreground probability of an untrained network (Lin et al. 2017, arXiv
    1708.02002); from 0.5, the first steps only learn that most voxels are background. Without
    ``full_resolution`` the first of four or more levels is left out: the first convolution has the
    stride of the second level, and a transposed convolution gives the logits. With
    ``light_decoder`` each level of the decoder is a :class:`LightUpBlock`. The other arguments are
    described in ``conf/model/resunet.yaml``.
    """

    def __init__(
        self,
        spatial_size: Sequence[int],
        spacing_mm: Sequence[float],
        in_channels: int = 1,
        out_channels: int = 2,
        width: int = 32,
        full_resolution: bool = True,
        light_decoder: bool = False,
        max_width: int = 320,
        max_levels: int = 6,
        deep_supervision: int = 0,
        dropout: float = 0.0,
        prior: float = 0.01,
        use_checkpoint: bool = False,
    ) -> None:
        strides, kernels = plan_levels(spatial_size, spacing_mm, max_levels)
        filters = [min(width * 2**level, max_width) for level in range(len(strides))]
        is_coarse = not full_resolution and len(strides) > 3
        if is_coarse:
            strides, kernels, filters = strides[1:], kernels[1:], filters[1:]
        if len(strides) < 3:
            given = f"a patch of {list(spatial_size)} with max_levels={max_levels}"
            expected = "expected 3 or more: at least 16 voxels along an axis"
            raise ValueError(f"{given} gives {len(strides)} levels; {expected}")
        if width < 1 or deep_supervision < 0 or not 0 < prior < 1:
            given = f"width={width}, deep_supervision={deep_supervision}, prior={prior}"
            raise ValueError(f"{given}: expected 1 or more, 0 or more, between 0 and 1")
        heads = min(deep_supervision, len(strides) - 2)
        super().__init__(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernels,
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=filters,
            dropout=dropout or None,
            act_name=("leakyrelu", {"negative_slope": 0.01}),
            deep_supervision=heads > 0,
            deep_supr_num=max(heads, 1),
            res_block=True,
        )
        # DynUNet keeps the last output of its heads, and each weight under a second name
        del self.skip_layers, self.heads
        for block in self.upsamples if light_decoder else ():
            block.__class__ = LightUpBlock
            del block.conv_block.conv1, block.conv_block.norm1
        for module in self.modules():
            if type(module) is UnetResBlock:
                module.__class__ = ResidualBlock
            elif type(module) is nn.LeakyReLU:
                module.__class__ = LeakyReLU
        last: list[Any] = [head.conv.conv for head in self.deep_supervision_heads] if heads else []
        if is_coarse:
            self.output_block = nn.ConvTranspose3d(filters[0], out_channels, strides[0], strides[0])
        last.append(self.output_block if is_coarse else self.output_block.conv.conv)
        for layer in last:
            nn.init.constant_(layer.bias[1:], math.log(prior / (1 - prior)))
        self.use_checkpoint = use_checkpoint

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits ``(B, out_channels, H, W, D)``; with deep supervision in training a list."""
        skips = [self.run_block(self.input_block, image)]
        for downsample in self.downsamples:
            skips.append(self.run_block(downsample, skips[-1]))
        features = self.run_block(self.bottleneck, skips[-1])
        decoded: list[Tensor] = []
        for upsample, skip in zip(self.upsamples, reversed(skips), strict=True):
            features = self.run_block(upsample, features, skip)
            decoded.insert(0, features)
        logits = self.output_block(decoded[0])
        if not (self.training and self.deep_supervision):
            return logits
        heads = zip(self.deep_supervision_heads, decoded[1:], strict=False)
        return [logits, *(head(coarser) for head, coarser in heads)]

    def run_block(self, block: nn.Module, *features: Tensor) -> Tensor:
        """Output of a block, in training with gradient checkpointing if it is configured."""
        if self.use_checkpoint and self.training:
            return checkpoint(block, *features, use_reentrant=False)
        return block(*features)
