"""Changing the values of a sample, in HU where they have a unit; the label is not asked."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pancseg.learning.augmentation.draws import Change

CLIPPED = 1e-4  # share of the window; interpolation leaves 1 as 0.9999999
TRUNCATION = 3.0  # sigmas


def changed(
    image: Tensor, change: Change, spacing_mm: Sequence[float], window_hu: Sequence[float]
) -> Tensor:
    """Change the values of one sample: softer first, then contrast and so on, noise last.

    Noise comes last so that it has the standard deviation that was drawn.

    Args:
        image: ``(1, 1, H, W, D)`` float, 0..1 is the window.
        change: What happens.
        spacing_mm: Voxel size.
        window_hu: What 0 and 1 are.

    Returns:
        The same shape, 0..1.
    """
    if change.low_resolution < 1:
        image = coarser(image, change.low_resolution)
    if change.blur_mm > 0:
        image = blurred(image, [change.blur_mm / step for step in spacing_mm])
    return recoloured(image, change, window_hu[1] - window_hu[0]) if change.recolours else image


def coarser(image: Tensor, share: float) -> Tensor:
    """As if scanned with larger voxels: means of them, then linear interpolation between.

    Means, where nnU-Net takes the nearest voxel: a thick slice of CT is a mean.
    """
    shape = image.shape[2:]
    small = [max(1, round(count * share)) for count in shape]
    means = F.interpolate(image, size=small, mode="area")
    return F.interpolate(means, size=shape, mode="trilinear", align_corners=False)


def blurred(image: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Gaussian blur, the border's values going on beyond it.

    Sums of shifted volumes: a convolution may be rounded to TF32 on CUDA.

    Args:
        image: ``(1, 1, H, W, D)``.
        sigmas: Voxels, for each axis.
    """
    for axis, sigma in enumerate(sigmas, start=2):
        reach = min(math.ceil(TRUNCATION * sigma), image.shape[axis] - 1)
        weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-reach, reach + 1)]
        sides = [0] * 6
        sides[2 * (4 - axis)] = sides[2 * (4 - axis) + 1] = reach  # pad counts from the last axis
        padded, length = F.pad(image, sides, mode="replicate"), image.shape[axis]
        image = torch.zeros_like(image)
        for start, weight in enumerate(weights):
            image.add_(padded.narrow(axis, start, length), alpha=weight / sum(weights))
    return image


def recoloured(image: Tensor, change: Change, width_hu: float) -> Tensor:
    """Contrast, brightness, gamma and noise, clipped to 0..1.

    What the window clipped stays clipped: air is far below it and bone far above, so that a few
    HU would not bring them back.
    """
    values = image
    if change.contrast != 1:
        values = (values - 0.5) * change.contrast + 0.5
    if change.brightness_hu:
        values = values + change.brightness_hu / width_hu
    if change.gamma != 1:
        values = values.clamp(0, 1) ** change.gamma
    if change.noise_hu > 0:
        generator = torch.Generator(image.device).manual_seed(change.noise_seed)
        noise = torch.empty_like(image).normal_(std=change.noise_hu / width_hu, generator=generator)
        values = values + noise
    inside = (image > CLIPPED) & (image < 1 - CLIPPED)
    return torch.where(inside, values.clamp(0, 1), image)
