"""What is drawn for one sample: a function of the seed and of its place in the batch alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from pancseg.learning.augmentation.numbers import Augmentation

Drawn = TypeVar("Drawn")
DRAWS = 64  # more than are used: a later change may use the rest without moving those before
LARGEST_SEED = 2**64


@dataclass(frozen=True)
class Change:
    """What happens to one sample; every default is nothing.

    Attributes:
        flips: Whether each axis is turned round.
        angles: About each axis, radians, right-handed.
        scale: Factor of length.
        shears: Shift along axis 0 by 1, 0 by 2 and 1 by 2; mm a mm.
        elastic_mm: Largest shift of a control point along each axis.
        elastic_spacing_mm: Distance of control points.
        elastic_seed: Of the control points.
        low_resolution: Voxels that are left along each axis, share.
        blur_mm: Sigma.
        contrast: Factor about the middle of the window.
        brightness_hu: Shift.
        gamma: Exponent.
        noise_hu: Standard deviation.
        noise_seed: Of the noise.
    """

    flips: tuple[bool, ...] = (False, False, False)
    angles: tuple[float, ...] = (0.0, 0.0, 0.0)
    scale: float = 1.0
    shears: tuple[float, ...] = (0.0, 0.0, 0.0)
    elastic_mm: float = 0.0
    elastic_spacing_mm: float = 40.0
    elastic_seed: int = 0
    low_resolution: float = 1.0
    blur_mm: float = 0.0
    contrast: float = 1.0
    brightness_hu: float = 0.0
    gamma: float = 1.0
    noise_hu: float = 0.0
    noise_seed: int = 0

    @property
    def bends(self) -> bool:
        """Whether the sample must be resampled."""
        return any(self.angles) or self.scale != 1 or any(self.shears) or self.elastic_mm > 0

    @property
    def recolours(self) -> bool:
        """Whether values change voxel by voxel."""
        stretched = self.contrast != 1 or self.gamma != 1
        return stretched or self.brightness_hu != 0 or self.noise_hu > 0


def draw(numbers: Augmentation, seed: int, position: int) -> Change:
    """Draw what happens to one sample.

    Every number is drawn whether it is used or not, so that turning one change off leaves the
    others as they were.

    Args:
        numbers: From the configuration.
        seed: Of the batch.
        position: Of the sample in the whole batch, over all processes.
    """
    streams = np.random.SeedSequence([seed % LARGEST_SEED, position]).generate_state(3, np.uint64)
    first, elastic_seed, noise_seed = (int(one) for one in streams)
    generator = torch.Generator().manual_seed(first)
    shares = iter(torch.rand(DRAWS, generator=generator, dtype=torch.float64).tolist())

    def chosen(probability: float, value: Callable[[], Drawn], otherwise: Drawn) -> Drawn:
        is_chosen, drawn = next(shares) < probability, value()
        return drawn if is_chosen else otherwise

    def evenly(bounds: Sequence[float]) -> float:
        return bounds[0] + (bounds[1] - bounds[0]) * next(shares)

    def as_factor(bounds: Sequence[float]) -> float:
        return math.exp(evenly([math.log(bound) for bound in bounds]))

    def either_way(*largest: float) -> tuple[float, ...]:
        return tuple(evenly((-bound, bound)) for bound in largest)

    n, none = numbers, (0.0, 0.0, 0.0)
    degrees = [math.radians(angle) for angle in n.rotation_degrees]
    return Change(  # in this order: another one gives other samples for the same seed
        flips=tuple(next(shares) < chance for chance in n.flip_probability),
        angles=chosen(n.rotation_probability, lambda: either_way(*degrees), none),
        scale=chosen(n.scale_probability, lambda: as_factor(n.scale_range), 1.0),
        shears=chosen(n.shear_probability, lambda: either_way(*3 * [n.shear_share]), none),
        elastic_mm=chosen(n.elastic_probability, lambda: evenly(n.elastic_mm), 0.0),
        elastic_spacing_mm=n.elastic_spacing_mm,
        elastic_seed=elastic_seed,
        low_resolution=chosen(
            n.low_resolution_probability, lambda: evenly(n.low_resolution_range), 1.0
        ),
        blur_mm=chosen(n.blur_probability, lambda: evenly(n.blur_mm), 0.0),
        contrast=chosen(n.contrast_probability, lambda: evenly(n.contrast_range), 1.0),
        brightness_hu=chosen(n.brightness_probability, lambda: either_way(n.brightness_hu)[0], 0.0),
        gamma=chosen(n.gamma_probability, lambda: as_factor(n.gamma_range), 1.0),
        noise_hu=chosen(n.noise_probability, lambda: evenly(n.noise_hu), 0.0),
        noise_seed=noise_seed,
    )
