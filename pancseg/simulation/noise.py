"""Draws random numbers and smooth random fields that do not depend on any grid."""

from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

# Computed as float32; numpy's types cannot follow that through Python numbers.
Field = NDArray[np.floating[Any]]


def stream(seed: int, index: int, purpose: str) -> np.random.Generator:
    """Open the random numbers that one patient has for one purpose.

    A purpose has numbers of its own, so that a new organ leaves the others as they were.

    >>> bool(stream(0, 3, "liver").random() == stream(0, 3, "liver").random())
    True
    """
    return np.random.default_rng([seed, index, crc32(purpose.encode())])


class SmoothNoise:
    """A sum of plane waves in random directions: mean 0, variance 1, defined everywhere."""

    def __init__(self, rng: np.random.Generator, wavelength_mm: float, waves: int = 12) -> None:
        """Draw the waves.

        Args:
            rng: Where the directions and phases come from.
            wavelength_mm: Typical distance from bump to bump.
            waves: How many waves are summed; more look less regular.
        """
        direction = rng.standard_normal((waves, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        per_mm = 2 * np.pi / wavelength_mm * rng.uniform(0.7, 1.4, (waves, 1))
        self.wave_xyz = direction * per_mm
        self.phase = rng.uniform(0, 2 * np.pi, waves)

    def on_axes(
        self, z_mm: NDArray[np.float64], y_mm: NDArray[np.float64], x_mm: NDArray[np.float64]
    ) -> Field:
        """Evaluate on the grid that three axes span.

        ``cos(a + b) = cos a cos b - sin a sin b`` splits each wave into a table of (z, y)
        and one of x, so that one matrix product does the whole volume.

        Returns:
            ``(len(z_mm), len(y_mm), len(x_mm))`` float32.

        >>> axis = np.arange(0.0, 400.0, 5.0)
        >>> values = SmoothNoise(np.random.default_rng(0), 20.0).on_axes(axis, axis, axis)
        >>> values.shape, round(float(values.std()), 1)
        ((80, 80, 80), 1.0)
        """
        x, y, z = self.wave_xyz.T
        slow = z_mm[:, None, None] * z + y_mm[:, None] * y + self.phase
        fast = x_mm[:, None] * x
        left = np.concatenate([np.cos(slow), -np.sin(slow)], axis=-1)
        right = np.concatenate([np.cos(fast), np.sin(fast)], axis=-1)
        scale = np.sqrt(2 / len(self.phase))
        product: Field = (left * scale).astype(np.float32) @ right.T.astype(np.float32)
        return product
