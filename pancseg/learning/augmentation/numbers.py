"""The numbers of augmentation: how often each change happens and how large it may be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from pancseg.errors import PancsegError

CUBIC_BSPLINE_3D = 2.479772  # K3 of Choi and Lee 2000: beyond spacing / K3 a lattice can fold
PROBABILITY = "_probability"


@dataclass(frozen=True)
class Augmentation:
    """Numbers of the random changes; every probability is 0 by default, so nothing changes.

    Each ``*_probability`` is of the change in one sample; a pair is the lowest and the highest
    value drawn. Axes are 0 left-right, 1 front-back, 2 feet-head. Lists become tuples.

    Attributes:
        flip_probability: Of a flip along each axis.
        rotation_probability: Of a turn about all three axes.
        rotation_degrees: Largest angle about each axis, either way.
        scale_probability: Of a change of size.
        scale_range: Factors of length, drawn evenly in their logarithm.
        shear_probability: Of a shear.
        shear_share: Largest shift along one axis for each mm along another, either way.
        elastic_probability: Of a smooth random deformation.
        elastic_mm: Largest shift of a control point along each axis.
        elastic_spacing_mm: Distance of control points.
        margin_share: Most voxels cropped around a patch for turned corners, share of its size.
        low_resolution_probability: Of a coarser scan.
        low_resolution_range: Voxels that are left along each axis, share.
        blur_probability: Of Gaussian blur.
        blur_mm: Its sigma.
        contrast_probability: Of a stretch of values about the middle of the HU window.
        contrast_range: Its factors.
        brightness_probability: Of a shift of all values.
        brightness_hu: Largest shift, either way.
        gamma_probability: Of a power of the values 0..1.
        gamma_range: Its exponents, drawn evenly in their logarithm.
        noise_probability: Of Gaussian noise.
        noise_hu: Its standard deviation.

    Raises:
        PancsegError: If a number is impossible.
    """

    flip_probability: tuple[float, ...] = (0.0, 0.0, 0.0)
    rotation_probability: float = 0.0
    rotation_degrees: tuple[float, ...] = (10.0, 10.0, 10.0)
    scale_probability: float = 0.0
    scale_range: tuple[float, ...] = (0.9, 1.1)
    shear_probability: float = 0.0
    shear_share: float = 0.1
    elastic_probability: float = 0.0
    elastic_mm: tuple[float, ...] = (0.0, 8.0)
    elastic_spacing_mm: float = 40.0
    margin_share: float = 0.3
    low_resolution_probability: float = 0.0
    low_resolution_range: tuple[float, ...] = (0.5, 1.0)
    blur_probability: float = 0.0
    blur_mm: tuple[float, ...] = (0.5, 1.5)
    contrast_probability: float = 0.0
    contrast_range: tuple[float, ...] = (0.75, 1.25)
    brightness_probability: float = 0.0
    brightness_hu: float = 20.0
    gamma_probability: float = 0.0
    gamma_range: tuple[float, ...] = (0.7, 1.5)
    noise_probability: float = 0.0
    noise_hu: tuple[float, ...] = (0.0, 25.0)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, field.name, tuple(value))
            count = len(field.default) if isinstance(field.default, tuple) else None
            self._check_numbers(field.name, count)
            if field.name.endswith(PROBABILITY):
                self._check(field.name, 0, 1)
        self._check("rotation_degrees", 0, 180)
        self._check("shear_share", 0, 1)
        self._check("margin_share", 0, 1)
        self._check("brightness_hu", 0)
        self._check("elastic_spacing_mm", above=0)
        for name in ("elastic_mm", "blur_mm", "noise_hu"):
            self._check(name, 0, ordered=True)
        for name in ("scale_range", "contrast_range", "gamma_range"):
            self._check(name, above=0, ordered=True)
        self._check("low_resolution_range", above=0, most=1, ordered=True)
        largest = self.elastic_spacing_mm / CUBIC_BSPLINE_3D
        if self.elastic_mm[1] > largest:
            raise PancsegError(
                f"augment.elastic_mm={list(self.elastic_mm)}: folds tissue over itself; expected "
                f"at most {largest:.1f} mm with control points every {self.elastic_spacing_mm} mm"
            )

    def _check_numbers(self, name: str, count: int | None) -> None:
        """Check that a field is a finite number, or ``count`` of them."""
        value: Any = getattr(self, name)
        values = value if isinstance(value, tuple) else (value,)
        right = isinstance(value, tuple) == (count is not None) and len(values) == (count or 1)
        if right and all(is_number(one) for one in values):
            return
        expected = f"a list of {count} numbers" if count else "a number"
        raise PancsegError(f"augment.{name}={shown(value)}: expected {expected}")

    def _check(
        self,
        name: str,
        least: float = -math.inf,
        most: float = math.inf,
        *,
        above: float = -math.inf,
        ordered: bool = False,
    ) -> None:
        """Check the bounds of a field and, of a pair, that it is lowest and highest."""
        value = getattr(self, name)
        values = value if isinstance(value, tuple) else (value,)
        inside = all(least <= one <= most and one > above for one in values)
        if inside and (not ordered or values[0] <= values[1]):
            return
        bounds = [f"from {least} on" if least > -math.inf else f"above {above}"]
        bounds += [f"up to {most}"] * (most < math.inf) + ["the lowest first"] * ordered
        raise PancsegError(f"augment.{name}={shown(value)}: expected {', '.join(bounds)}")

    @property
    def bends(self) -> bool:
        """Whether a sample may be resampled; flips only turn its voxels round."""
        chances = (self.rotation_probability, self.scale_probability)
        return max(*chances, self.shear_probability, self.elastic_probability) > 0

    def always(self) -> Self:
        """The same numbers with every change that can happen made certain, but flips.

        >>> Augmentation(noise_probability=0.1).always().noise_probability
        1.0
        """
        chances = [field.name for field in fields(self) if field.name.endswith(PROBABILITY)]
        chances.remove("flip_probability")
        certain: dict[str, Any] = {name: float(getattr(self, name) > 0) for name in chances}
        return replace(self, **certain)


def is_number(value: object) -> bool:
    """Whether a value is a finite number; true and false are none."""
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and math.isfinite(value)  # type: ignore[arg-type]


def shown(value: object) -> object:
    """A value as it is written in a configuration file."""
    return list(value) if isinstance(value, tuple) else value
