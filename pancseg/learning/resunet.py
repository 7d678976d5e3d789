"""A residual U-Net whose levels are planned from the patch and its voxels, as nnU-Net's are."""

import math
from collections.abc import Iterable, Sequence

from monai.networks.nets import DynUNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Triple = tuple[int, int, int]


def plan_levels(
    spatial_size: Sequence[int],
    spacing_mm: Sequence[float],
    max_levels: int = 6,
    smallest: int = 4,
) -> tuple[list[Triple], list[Triple]]:
    """Strides and kernels of each level, the finest first.

    nnU-Net's rule (Isensee et al. 2021, Nature Methods 18:203, and its ``network_topology.py``):
    an axis is halved while at least ``smallest`` voxels stay, three halves of that if it is the
    only one, and only while its voxels are less than twice as long as the shortest that can be
    halved. A kernel is 1 along an axis whose voxels are twice as long as the shortest or more,
    until halving the others has made them alike; at the bottom it is 3.

    Args:
        spatial_size: Voxels of the patch.
        spacing_mm: Length of a voxel along each axis, mm.
        max_levels: Levels at most, the full resolution included.
        smallest: Voxels that stay along each axis that is halved.

    >>> plan_levels([32, 32, 16], [1.5, 1.5, 1.0])
    ([(1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 1)], [(3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)])
    >>> plan_levels([32, 32, 16], [1.0, 1.0, 5.0])
    ([(1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2)], [(3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3)])
    """
    size, spacing = list(spatial_size), list(spacing_mm)
    strides: list[Triple] = [(1, 1, 1)]
    kernels: list[Triple] = []
    kernel: Triple = (1, 1, 1)
    while len(strides) <= max_levels:
        kernel = wider(kernel, spacing)
        kernels.append(kernel)
        can = [axis for axis in range(3) if size[axis] >= 2 * smallest]
        shortest = min((spacing[axis] for axis in can), default=0.0)
        halved = [axis for axis in can if spacing[axis] < 2 * shortest]
        if not halved or (len(halved) == 1 and size[halved[0]] < 3 * smallest):
            break
        stride = triple(2 if axis in halved else 1 for axis in range(3))
        size = [voxels // step for voxels, step in zip(size, stride, strict=True)]
        spacing = [length * step for length, step in zip(spacing, stride, strict=True)]
        strides.append(stride)
    levels = min(len(strides), max_levels)
    return strides[:levels], [*kernels[: levels - 1], (3, 3, 3)]


def wider(kernel: Triple, spacing_mm: Sequence[float]) -> Triple:
    """A kernel, 3 along the axes where it was or where voxels are no longer than twice the least.

    >>> wider((1, 1, 1), [1.0, 1.0, 2.0]), wider((1, 1, 3), [1.0, 1.0, 0.1])
    ((3, 3, 1), (1, 1, 3))
    """
    alike = [length < 2 * min(spacing_mm) for length in spacing_mm]
    return triple(3 if alike[axis] else kernel[axis] for axis in range(3))


def triple(numbers: Iterable[int]) -> Triple:
    """Three numbers as a tuple of known length."""
    a, b, c = numbers
    return a, b, c


class ResUNet(DynUNet):
    """MONAI's DynUNet with residual blocks and instance norm, planned by :func:`plan_levels`.

    In training it gives a list of logits, fine to coarse, each at its own resolution; DynUNet
    would bring all to full resolution, which costs more than the heads. In evaluation, or without
    deep supervision, it gives one tensor.

    Args:
        spatial_size: Voxels of the patch.
        spacing_mm: Length of a voxel along each axis, mm.
        in_channels: Channels of the image.
        out_channels: Channels of the logits.
        width: Channels at full resolution; they double with each level.
        max_width: Channels of a level at most.
        max_levels: Levels at most, the full resolution included.
        deep_supervision: Coarser heads in training; fewer where there are not as many levels.
        dropout: Share of values dropped after each convolution.
        prior: Probability of foreground that an untrained network gives, about, as for a rare class
            in Lin and others 2017 (arXiv 1708.02002): else the first steps teach nothing but that
            most is background.
        use_checkpoint: Whether what is inside a block is computed again in the backward pass
            instead of kept: less memory, slower.

    Raises:
        ValueError: If the patch is too small for three levels, or a number makes no sense.
    """

    def __init__(
        self,
        spatial_size: Sequence[int],
        spacing_mm: Sequence[float],
        in_channels: int = 1,
        out_channels: int = 2,
        width: int = 32,
        max_width: int = 320,
        max_levels: int = 6,
        deep_supervision: int = 2,
        dropout: float = 0.0,
        prior: float = 0.01,
        use_checkpoint: bool = False,
    ) -> None:
        strides, kernels = plan_levels(spatial_size, spacing_mm, max_levels)
        if len(strides) < 3:
            raise ValueError(
                f"a patch of {list(spatial_size)} with max_levels={max_levels} gives "
                f"{len(strides)} levels; expected 3 or more: at least 16 voxels along an axis"
            )
        if width < 1 or deep_supervision < 0:
            raise ValueError(
                f"width={width}, deep_supervision={deep_supervision}: expected 1 or more, 0 or more"
            )
        if not 0 < prior < 1:
            raise ValueError(f"prior={prior}: expected between 0 and 1")
        heads = min(deep_supervision, len(strides) - 2)
        super().__init__(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernels,
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=[min(width * 2**level, max_width) for level in range(len(strides))],
            dropout=dropout or None,
            deep_supervision=heads > 0,
            deep_supr_num=max(heads, 1),
            res_block=True,
        )
        # DynUNet keeps its heads' last output, and every weight under a second name
        del self.skip_layers, self.heads
        for head in (self.output_block, *(self.deep_supervision_heads if heads else ())):
            nn.init.constant_(head.conv.conv.bias[1:], math.log(prior / (1 - prior)))
        self.use_checkpoint = use_checkpoint

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits ``(B, 2, H, W, D)``; in training with deep supervision a list, fine to coarse."""
        skips = [self.through(self.input_block, image)]
        for downsample in self.downsamples:
            skips.append(self.through(downsample, skips[-1]))
        features = self.through(self.bottleneck, skips[-1])
        decoded: list[Tensor] = []
        for upsample, skip in zip(self.upsamples, reversed(skips), strict=True):
            features = self.through(upsample, features, skip)
            decoded.insert(0, features)
        logits = self.output_block(decoded[0])
        if not (self.training and self.deep_supervision):
            return logits
        heads = zip(self.deep_supervision_heads, decoded[1:], strict=False)
        return [logits, *(head(coarser) for head, coarser in heads)]

    def through(self, block: nn.Module, *features: Tensor) -> Tensor:
        """A block's answer, in training with what is inside kept or not."""
        if self.use_checkpoint and self.training:
            return checkpoint(block, *features, use_reentrant=False)
        return block(*features)
