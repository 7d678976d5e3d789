"""Random augmentation of training batches on their device: geometry in mm, intensities in HU.

Each sample is resampled at most once, with parameters that are a function of the batch seed and its
index. MONAI's ``RandAffined`` and ``Rand3DElasticd`` resample once each and rotate in voxels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pancseg.errors import PancsegError

T = TypeVar("T")
Floats = Sequence[float]
Ints = Sequence[int]
Matrix = NDArray[np.float64]
PROBABILITY = "_probability"
GEOMETRY = ("rotation", "scale", "shear", "elastic")  # changes that resample
POSITIVE = 1e-6
ABOVE_0 = ("scale_range", "contrast_range", "gamma_range", "elastic_spacing_mm")
LIMITS = {  # of values; 0 and 1 for a probability, 0 and infinity for others
    "rotation_degrees": (0, 180),
    "low_resolution_range": (POSITIVE, 1),
    **dict.fromkeys(("shear_share", "margin_share"), (0, 1)),
    **dict.fromkeys(ABOVE_0, (POSITIVE, math.inf)),
}
CUBIC_BSPLINE_3D = 2.479772  # K3 of Choi and Lee 2000: beyond spacing / K3 a lattice can fold
STEP_STRIDE = 1_000_003  # a prime: runs whose seeds are neighbours share no step seed
N_UNIFORM = 64  # uniform numbers per sample; more than needed, so that new parameters fit in
BOX_DRAWS, BOX_SHARE = 256, 0.95  # random draws, and the share of them that the box must hold
ELASTIC_REACH = 0.5  # of the largest control point shift; 2.5 standard deviations of the field
ROTATION_PLANES = ((1, 2), (2, 0), (0, 1))  # of rotations about axis 0, 1 and 2, right-handed
BLUR_TRUNCATION = 3.0  # sigmas
CLIP_TOLERANCE = 1e-4  # share of the window; interpolation turns 1 into 0.9999999


def step_seed(seed: int, step: int) -> int:
    """Seed of all random numbers of a training step."""
    return seed * STEP_STRIDE + step


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges of the augmentation; with the defaults nothing changes.

    Each ``*_probability`` is per sample. A pair is the lowest and the highest value drawn. Axes
    are 0 left-right, 1 front-back, 2 feet-head.
    """

    flip_probability: Floats = (0.0, 0.0, 0.0)  # for each axis
    rotation_probability: float = 0.0
    rotation_degrees: Floats = (10.0, 10.0, 10.0)  # largest angle about each axis
    scale_probability: float = 0.0
    scale_range: Floats = (0.9, 1.1)  # factor of length, log-uniform
    shear_probability: float = 0.0
    shear_share: float = 0.1  # largest shift, mm per mm, either sign
    elastic_probability: float = 0.0
    elastic_mm: Floats = (0.0, 8.0)  # largest shift of a control point along each axis
    elastic_spacing_mm: float = 40.0  # distance of control points
    margin_share: float = 0.3  # most voxels cropped around a patch, share of size
    low_resolution_probability: float = 0.0
    low_resolution_range: Floats = (0.5, 1.0)  # share of voxels per axis
    blur_probability: float = 0.0
    blur_mm: Floats = (0.5, 1.5)  # sigma of the Gaussian
    contrast_probability: float = 0.0
    contrast_range: Floats = (0.75, 1.25)  # factor about the window's middle
    brightness_probability: float = 0.0
    brightness_hu: float = 20.0  # largest shift, either sign
    gamma_probability: float = 0.0
    gamma_range: Floats = (0.7, 1.5)  # exponent of 0..1, log-uniform
    noise_probability: float = 0.0
    noise_hu: Floats = (0.0, 25.0)  # standard deviation

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            low, high = LIMITS.get(name, (0, 1 if name.endswith(PROBABILITY) else math.inf))
            count = len(field.default) if isinstance(field.default, tuple) else 0
            is_list = isinstance(value, Sequence) and not isinstance(value, str)
            values = tuple(value) if is_list else (value,)
            is_valid = is_list == bool(count) and len(values) == (count or 1)
            is_valid = is_valid and all(type(v) in (int, float) for v in values)  # not bool
            is_valid = is_valid and all(low <= v <= high and math.isfinite(v) for v in values)
            if not is_valid or (count == 2 and values[0] > values[1]):
                raise PancsegError(
                    f"augment.{name}={value}: expected {count or 1} number(s) from {low} to {high}"
                    f"{', the lowest first' * (count == 2)}"
                )
            object.__setattr__(self, name, values if count else value)  # lists become tuples
        largest = self.elastic_spacing_mm / CUBIC_BSPLINE_3D
        if self.elastic_mm[1] > largest:
            raise PancsegError(
                f"augment.elastic_mm={list(self.elastic_mm)}: folds tissue over itself; expected "
                f"at most {largest:.1f} mm with control points every {self.elastic_spacing_mm} mm"
            )

    @property
    def resamples(self) -> bool:
        """Whether samples may be resampled; a flip only reverses the order of voxels."""
        return any(getattr(self, name + PROBABILITY) for name in GEOMETRY)


@dataclass(frozen=True)
class SampleParameters:
    """Parameters of a sample; with the defaults nothing changes."""

    flips: tuple[bool, ...] = (False, False, False)  # along each axis
    angles: Floats = (0.0, 0.0, 0.0)  # about each axis, radians, right-handed
    scale: float = 1.0  # factor of length
    shears: Floats = (0.0, 0.0, 0.0)  # of axis 0 by 1, 0 by 2 and 1 by 2; mm per mm
    elastic_mm: float = 0.0  # largest shift of a control point along each axis
    elastic_spacing_mm: float = 40.0  # distance of control points
    elastic_seed: int = 0
    low_resolution: float = 1.0  # share of voxels along each axis
    blur_mm: float = 0.0  # sigma
    contrast: float = 1.0  # factor about the middle of the window
    brightness_hu: float = 0.0  # shift
    gamma: float = 1.0  # exponent
    noise_hu: float = 0.0  # standard deviation
    noise_seed: int = 0

    @property
    def resamples(self) -> bool:
        """Whether the sample must be resampled."""
        return any(self.angles) or self.scale != 1 or any(self.shears) or self.elastic_mm > 0


def draw(settings: Augmentation, seed: int, index: int) -> SampleParameters:
    """Draw the parameters of a sample from the batch seed and its index over all processes.

    Every number is drawn whether it is used or not, so that disabling one change leaves the
    parameters of the others as they were.
    """
    states = np.random.SeedSequence([seed % 2**64, index]).generate_state(3, np.uint64)
    uniform_seed, elastic_seed, noise_seed = map(int, states)
    generator = torch.Generator().manual_seed(uniform_seed)
    numbers = iter(torch.rand(N_UNIFORM, generator=generator, dtype=torch.float64).tolist())

    def chance(probability: float, draw_value: Callable[[], T], otherwise: T) -> T:
        is_chosen, value = next(numbers) < probability, draw_value()
        return value if is_chosen else otherwise

    def uniform(bounds: Floats) -> float:
        return bounds[0] + (bounds[1] - bounds[0]) * next(numbers)

    def log_uniform(bounds: Floats) -> float:
        return math.exp(uniform([math.log(bound) for bound in bounds]))

    def either_sign(*largest: float) -> tuple[float, ...]:
        return tuple(uniform((-bound, bound)) for bound in largest)

    s, zeros, hu = settings, (0.0, 0.0, 0.0), settings.brightness_hu
    radians, low_share = [*map(math.radians, s.rotation_degrees)], s.low_resolution_range
    return SampleParameters(  # another order would give other samples for the same seed
        flips=tuple(next(numbers) < probability for probability in s.flip_probability),
        angles=chance(s.rotation_probability, lambda: either_sign(*radians), zeros),
        scale=chance(s.scale_probability, lambda: log_uniform(s.scale_range), 1.0),
        shears=chance(s.shear_probability, lambda: either_sign(*3 * [s.shear_share]), zeros),
        elastic_mm=chance(s.elastic_probability, lambda: uniform(s.elastic_mm), 0.0),
        elastic_spacing_mm=s.elastic_spacing_mm,
        elastic_seed=elastic_seed,
        low_resolution=chance(s.low_resolution_probability, lambda: uniform(low_share), 1.0),
        blur_mm=chance(s.blur_probability, lambda: uniform(s.blur_mm), 0.0),
        contrast=chance(s.contrast_probability, lambda: uniform(s.contrast_range), 1.0),
        brightness_hu=chance(s.brightness_probability, lambda: uniform((-hu, hu)), 0.0),
        gamma=chance(s.gamma_probability, lambda: log_uniform(s.gamma_range), 1.0),
        noise_hu=chance(s.noise_probability, lambda: uniform(s.noise_hu), 0.0),
        noise_seed=noise_seed,
    )


class Augmenter:
    """Augment batches, sample by sample.

    ``window_hu`` are the HU values that are 0 and 1 in the images, ``size`` the voxels of a patch,
    ``box`` those to crop around it, so that rotated corners are rarely filled with air.
    """

    def __init__(
        self, settings: Augmentation, *, spacing_mm: Floats, window_hu: Floats, size: Ints
    ) -> None:
        self.settings, self.spacing_mm, self.window_hu = settings, spacing_mm, window_hu
        self.size = tuple(size)
        self.box = self._find_box()

    def __call__(
        self,
        image: Tensor,
        label: Tensor,
        seed: int,
        *,
        first: int = 0,
        spacings_mm: Sequence[Floats] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Augment a batch without using or changing the global random state.

        Args:
            image: ``(B, 1, *box)`` float, 0..1.
            label: ``(B, 1, *box)`` of any type, integer values.
            seed: Of the whole batch.
            first: Index of the first sample in the whole batch, where processes share it.
            spacings_mm: Voxel sizes of each sample, where volumes were resized.

        Returns:
            Image float32 and label of its type, ``(B, 1, *size)``, centred in the box.
        """
        expected = (len(image), 1, *self.box)
        if not image.shape == label.shape == expected or not len(image):
            shapes = f"image and label of shape {tuple(image.shape)} and {tuple(label.shape)}"
            raise PancsegError(f"{shapes}: expected {expected}")
        images, labels = [], []
        spacings_mm = spacings_mm or [self.spacing_mm] * len(image)
        samples = zip(image.float().split(1), label.split(1), spacings_mm, strict=True)
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            for i, (scan, mask, spacing_mm) in enumerate(samples):
                parameters = draw(self.settings, seed, first + i)
                scan, mask = resample(scan, mask, parameters, spacing_mm, self.size)
                images.append(change_values(scan, parameters, spacing_mm, self.window_hu))
                labels.append(mask)
            return torch.cat(images), torch.cat(labels)

    @property
    def margin(self) -> tuple[int, ...]:
        """Voxels by which the box exceeds the patch, both sides together."""
        return tuple(box - size for box, size in zip(self.box, self.size, strict=True))

    def _find_box(self) -> tuple[int, ...]:
        """The box that nearly all draws need, with margins of whole voxels, equal on both sides."""
        needed = half_mm = np.multiply(self.size, self.spacing_mm) / 2
        if self.settings.resamples:
            elastic = self.settings.elastic_mm[1] * (self.settings.elastic_probability > 0)
            corners = np.stack(np.meshgrid(*3 * [(-1, 1)]), axis=-1).reshape(-1, 3)
            corners = corners * (half_mm + ELASTIC_REACH * elastic)
            names = [f"{name}{PROBABILITY}" for name in GEOMETRY]
            chances = {name: float(getattr(self.settings, name) > 0) for name in names}
            certain = replace(self.settings, **chances)  # type: ignore[arg-type]
            matrices = [affine_matrix(draw(certain, 0, i)) for i in range(BOX_DRAWS)]
            reached = np.abs(np.linalg.inv(matrices) @ corners.T).max(axis=2)
            needed = np.maximum(half_mm, np.quantile(reached, BOX_SHARE, axis=0))
        margins = np.ceil((needed - half_mm) / self.spacing_mm - 1e-9)
        most = np.floor(np.multiply(self.size, self.settings.margin_share) / 2)
        return tuple(np.add(self.size, 2 * np.minimum(margins, most)).astype(int).tolist())


# geometry


def resample(
    image: Tensor, label: Tensor, parameters: SampleParameters, spacing_mm: Floats, size: Ints
) -> tuple[Tensor, Tensor]:
    """Transform one sample about the centre of its box and crop the patch from its middle.

    Args:
        image: ``(1, 1, *box)`` float, resampled linearly; 0, which is air, beyond the box.
        label: ``(1, 1, *box)`` integers below 2**24, resampled by nearest neighbour.
        parameters: Without rotation, scale, shear and deformation nothing is interpolated.
        spacing_mm: Voxel size.
        size: Voxels of the patch.
    """
    if parameters.resamples:
        grid = sampling_grid(parameters, spacing_mm, size, image.shape[2:], image.device)
        image = interpolate(image, grid, "bilinear")
        label = interpolate(label.to(image.dtype), grid, "nearest").to(label.dtype)
    else:
        image, label = center_crop(image, size), center_crop(label, size)
    axes = [2 + axis for axis, flip in enumerate(parameters.flips) if flip]
    return (image.flip(axes), label.flip(axes)) if axes else (image, label)


def center_crop(volume: Tensor, size: Ints) -> Tensor:
    """The central ``size`` voxels of ``(..., H, W, D)``."""
    for axis, count in enumerate(size, start=-3):
        volume = volume.narrow(axis, (volume.shape[axis] - count) // 2, count)
    return volume


def affine_matrix(parameters: SampleParameters) -> Matrix:
    """Matrix ``(3, 3)`` that maps anatomy, mm from the centre: scale, then shear, then rotation."""
    shear = np.eye(3)
    shear[0, 1], shear[0, 2], shear[1, 2] = parameters.shears
    matrix = shear @ (np.eye(3) * parameters.scale)
    for plane, angle in zip(ROTATION_PLANES, parameters.angles, strict=True):
        rotation, sine, cosine = np.eye(3), math.sin(angle), math.cos(angle)
        rotation[np.ix_(plane, plane)] = [[cosine, -sine], [sine, cosine]]
        matrix = rotation @ matrix
    return matrix


def sampling_grid(
    parameters: SampleParameters, spacing_mm: Floats, size: Ints, box: Ints, device: torch.device
) -> Tensor:
    """Source position in the box of each voxel of the patch, ``(*size, 3)`` for ``grid_sample``.

    A voxel at ``p``, mm from the centre, comes from ``M^-1 (p + d(p))``. Both maps are invertible,
    hence also their composition. The sums are written out because CUDA may round a matrix product
    to TF32.
    """
    # without align_corners -1 and 1 are the outer faces of the box: 0 is its centre
    to_box = 2 / (np.asarray(spacing_mm) * np.asarray(box))
    matrix = to_box[:, None] * np.linalg.inv(affine_matrix(parameters))
    centers = [voxel_centers(n, step, device) for n, step in zip(size, spacing_mm, strict=True)]
    columns, rows, slices = centers[0][:, None, None], centers[1][:, None], centers[2]
    grid = torch.empty(*size, 3, dtype=torch.float32, device=device)
    for axis, (x, y, z) in enumerate(matrix.tolist()):  # grid_sample counts axes from the last
        grid[..., 2 - axis] = columns * x + rows * y + slices * z
    if parameters.elastic_mm > 0:
        displacement = displacement_field(parameters, matrix, spacing_mm, size, device)
        grid += displacement.flip(0).movedim(0, -1)
    return grid


def voxel_centers(count: int, step: float, device: torch.device) -> Tensor:
    """Centres of voxels along an axis from its middle, in the unit of ``step``."""
    return (torch.arange(count, dtype=torch.float32, device=device) - (count - 1) / 2) * step


def displacement_field(
    p: SampleParameters, matrix: Matrix, spacing_mm: Floats, size: Ints, device: torch.device
) -> Tensor:
    """A smooth random field ``(3, *size)``: cubic B-splines on a lattice (Rueckert et al. 1999).

    ``matrix`` ``(3, 3)`` converts mm to the unit of the result. The lattice is drawn on the CPU, so
    that the field is the same on every device.
    """
    weights = []
    for count, step in zip(size, spacing_mm, strict=True):
        positions = voxel_centers(count, step / p.elastic_spacing_mm, device)
        reach = math.ceil((count - 1) / 2 * step / p.elastic_spacing_mm) + 1
        knots = torch.arange(-reach, reach + 1, dtype=torch.float32, device=device)
        distance = (positions[:, None] - knots).abs()
        near, far = (1 - distance).clamp(min=0), (2 - distance).clamp(min=0)
        weights.append((far**3 - 4 * near**3) / 6)  # the uniform cubic B-spline
    generator = torch.Generator().manual_seed(p.elastic_seed)
    shape = (3, *(weight.shape[1] for weight in weights))
    lattice = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    lattice = torch.tensordot(torch.from_numpy(matrix), lattice * p.elastic_mm, dims=1)
    displacement = lattice.to(device, torch.float32)
    for weight in weights:  # contracts lattice axis 1 and appends the voxels as the last axis
        displacement = torch.tensordot(displacement, weight, dims=([1], [1]))
    return displacement


def interpolate(volume: Tensor, grid: Tensor, mode: str) -> Tensor:
    """Sample ``(1, 1, *box)`` at a grid ``(*size, 3)``: ``(1, 1, *size)``, 0 beyond the box."""
    # on a CPU grid_sample runs in parallel over the batch alone: a batch of slabs of the patch
    slabs = math.gcd(len(grid), torch.get_num_threads()) if grid.device.type == "cpu" else 1
    parts = grid.view(slabs, len(grid) // slabs, *grid.shape[1:])
    volumes = volume.expand(slabs, *volume.shape[1:])
    values = F.grid_sample(volumes, parts, mode=mode, padding_mode="zeros", align_corners=False)
    return values.view(1, 1, *grid.shape[:3])


# intensities


def change_values(
    image: Tensor, parameters: SampleParameters, spacing_mm: Floats, window_hu: Floats
) -> Tensor:
    """Change the values of a sample ``(1, 1, H, W, D)``, 0..1 over the HU window."""
    if parameters.low_resolution < 1:
        image = reduce_resolution(image, parameters.low_resolution)
    if parameters.blur_mm > 0:
        image = gaussian_blur(image, [parameters.blur_mm / step for step in spacing_mm])
    width_hu, values = window_hu[1] - window_hu[0], image
    if parameters.contrast != 1:
        values = (values - 0.5) * parameters.contrast + 0.5
    if parameters.brightness_hu:
        values = values + parameters.brightness_hu / width_hu
    if parameters.gamma != 1:
        values = values.clamp(0, 1) ** parameters.gamma
    if parameters.noise_hu > 0:  # last, so that it keeps its standard deviation
        generator = torch.Generator(image.device).manual_seed(parameters.noise_seed)
        std = parameters.noise_hu / width_hu
        values = values + torch.empty_like(image).normal_(std=std, generator=generator)
    if values is image:
        return image
    # values that the window clipped stay: air and bone lie many HU beyond its ends
    inside = (image > CLIP_TOLERANCE) & (image < 1 - CLIP_TOLERANCE)
    return torch.where(inside, values.clamp(0, 1), image)


def reduce_resolution(image: Tensor, share: float) -> Tensor:
    """Resample ``(1, 1, H, W, D)`` to a share of its voxels per axis and back."""
    shape = image.shape[2:]
    small = [max(1, round(count * share)) for count in shape]
    # nnU-Net uses nearest neighbours; a thick slice of CT is a mean
    means = F.interpolate(image, size=small, mode="area")
    return F.interpolate(means, size=shape, mode="trilinear", align_corners=False)


def gaussian_blur(image: Tensor, sigmas: Floats) -> Tensor:
    """Blur ``(1, 1, H, W, D)`` with a sigma in voxels for each axis; border values are repeated."""
    # sums of shifted volumes, because CUDA may round a convolution to TF32
    for axis, sigma in enumerate(sigmas, start=2):
        reach = min(math.ceil(BLUR_TRUNCATION * sigma), image.shape[axis] - 1)
        weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-reach, reach + 1)]
        padding = [0] * 6
        padding[8 - 2 * axis] = padding[9 - 2 * axis] = reach  # pad counts from the last axis
        padded, length = F.pad(image, padding, mode="replicate"), image.shape[axis]
        image = torch.zeros_like(image)
        for start, weight in enumerate(weights):
            image.add_(padded.narrow(axis, start, length), alpha=weight / sum(weights))
    return image
