"""Resampling from a scan's grid to the network's and back, block by block.

The transforms of training would hold the whole scan as floats with three coordinates a voxel. Their
reorientation and resampling keep the directions of the axes, so each axis is interpolated by
itself: a tenth of the memory, and values that do not depend on the block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd, Spacingd
from numpy.typing import NDArray
from torch import Tensor

from pancseg.data.transforms import AXES, Preprocessing, deterministic
from pancseg.geometry import AIR_HU, Affine, bounding_box, covering_starts, cut_group

BLOCK_VOXELS = 4_000_000  # interpolated at a time
MAX_SKEW = 1e-3  # voxels that an axis may deviate from the parallel over its length
Box = tuple[slice, ...]


@dataclass(frozen=True)
class NetworkVolume:
    """A volume on the network's grid, of slices ``start`` to ``stop`` of a scan.

    Attributes:
        values: ``(H, W, D)`` float32: the network's input, 0..1, or a probability.
        affine: RAS, mm.
        start: First slice of the scan.
        stop: The slice after the last.
    """

    values: Tensor
    affine: Affine
    start: int
    stop: int


@dataclass(frozen=True)
class AxisPositions:
    """Positions of the voxels along an axis of a grid on the parallel axis of another grid.

    Attributes:
        axis: Of the other grid.
        size: Of the other grid along it, voxels.
        positions: ``(n,)`` float64, voxels.
    """

    axis: int
    size: int
    positions: Tensor

    def part(self, voxels: slice) -> "AxisPositions":
        """Positions of some of the voxels."""
        return replace(self, positions=self.positions[voxels])

    @property
    def weight_inside(self) -> Tensor:
        """Share of each voxel's interpolation weights that falls on the other grid."""
        beyond = torch.maximum(-self.positions, self.positions - (self.size - 1))
        return (1 - beyond.clamp(min=0)).clamp(min=0).float()


def network_inputs(
    image: nib.Nifti1Image, preprocessing: Preprocessing, depth: int | None
) -> list[NetworkVolume]:
    """A scan as the transforms of training give it: groups that cover all slices, or whole.

    Args:
        image: HU, slice 0 nearest the feet, axes at right angles.
        preprocessing: Of the training.
        depth: Slices of a group; None for the whole scan.
    """
    slices = image.shape[2]
    if depth is None:
        return [whole_input(image, preprocessing)]
    transform = Compose(deterministic(preprocessing, keys=("image",), load=False))
    inputs = []
    for start in covering_starts(slices, depth):
        group = cut_group(image, start, depth, fill=AIR_HU)
        values = torch.as_tensor(np.asanyarray(group.dataobj).astype(np.float32))[None]
        item: dict[Any, Any] = {"image": MetaTensor(values, affine=torch.as_tensor(group.affine))}
        found = transform(item)["image"]
        affine = np.asarray(found.affine, np.float64)
        inputs.append(
            NetworkVolume(found.as_tensor()[0], affine, start, min(start + depth, slices))
        )
    return inputs


def whole_input(image: nib.Nifti1Image, preprocessing: Preprocessing) -> NetworkVolume:
    """A whole scan, reoriented, resampled, windowed, and cropped to the columns of the body."""
    image = readable_by_torch(image)
    hu = torch.from_numpy(np.asanyarray(image.dataobj))
    shape, affine = resampled_grid(image, preprocessing)
    x, y, z = axis_positions(affine, shape, image.affine, image.shape)
    low, high = preprocessing.window_hu
    values = torch.empty(shape[::-1]).permute(2, 1, 0)
    for part in blocks(tuple(slice(0, size) for size in shape)):
        values[part] = interpolate(hu, (x, y, z.part(part[2])))
    values.sub_(low).div_(high - low).clamp_(0, 1)
    columns = bounding_box((values > 0).any(dim=-1).numpy())
    affine[:3, 3] += affine[:3, :2] @ np.array([part.start for part in columns], np.float64)
    return NetworkVolume(values[columns], affine, 0, image.shape[2])


def readable_by_torch(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The same image without negative strides, as int16 or float32, which are not copied."""
    values = np.asanyarray(image.dataobj)
    if values.dtype not in (np.int16, np.float32):
        values = values.astype(np.float32)
    flips = [[axis, -1 if step < 0 else 1] for axis, step in enumerate(values.strides)]
    return nib.Nifti1Image(values, image.affine).as_reoriented(np.array(flips))


def resampled_grid(
    image: nib.Nifti1Image, preprocessing: Preprocessing
) -> tuple[tuple[int, int, int], Affine]:
    """Shape and affine that the transforms give an image, by MONAI's lazy resampling."""
    empty = torch.zeros(1, 1, 1, 1).expand(1, *image.shape)
    steps = (
        Orientationd("image", axcodes=preprocessing.orientation, labels=AXES),
        Spacingd("image", pixdim=preprocessing.spacing_mm, mode="bilinear"),
    )
    item: dict[Any, Any] = {"image": MetaTensor(empty, affine=torch.as_tensor(image.affine))}
    for step in steps:
        item = step(item, lazy=True)
    x, y, z = (int(size) for size in item["image"].peek_pending_shape())
    return (x, y, z), np.asarray(item["image"].peek_pending_affine(), np.float64).copy()


def axis_positions(
    affine: Affine, shape: Sequence[int], other: Affine, other_shape: Sequence[int]
) -> tuple[AxisPositions, AxisPositions, AxisPositions]:
    """Positions of the voxels of a grid on another grid, axis by axis.

    Args:
        affine: Of the grid, RAS, mm.
        shape: Its size.
        other: Affine of the other grid.
        other_shape: Its size.

    Raises:
        ValueError: If their axes are not parallel.

    >>> grid, other = np.diag([1, 2, 2, 1.0]), np.diag([2, 2, 2, 1.0])
    >>> x, y, z = axis_positions(grid, (3, 1, 1), other, (2, 1, 1))
    >>> x.axis, x.positions.tolist()
    (0, [0.0, 0.5, 1.0])
    """
    to_other = np.linalg.inv(other) @ affine
    steps = to_other[:3, :3]
    axes = np.abs(steps).argmax(axis=0)
    straight = np.zeros((3, 3))
    straight[axes, range(3)] = steps[axes, range(3)]
    skew = np.abs(steps - straight) * np.array(shape[:3])
    if sorted(axes) != [0, 1, 2] or skew.max() > MAX_SKEW:
        raise ValueError("the axes of the two grids are not parallel")
    found = []
    for i, axis in enumerate(axes):
        positions = to_other[axis, 3] + steps[axis, i] * np.arange(shape[i], dtype=np.float64)
        found.append(AxisPositions(int(axis), int(other_shape[axis]), torch.from_numpy(positions)))
    return found[0], found[1], found[2]


def interpolate(values: Tensor, axes: Sequence[AxisPositions]) -> Tensor:
    """Linear interpolation at the positions of another grid; the border's values beyond it.

    Args:
        values: ``(X, Y, Z)`` of any type.
        axes: For each axis of the result its positions on ``values``.

    Returns:
        float32, the first axis fastest in memory, as in NIfTI.

    >>> x, y = AxisPositions(0, 2, torch.tensor([0.5])), AxisPositions(1, 1, torch.tensor([0.0]))
    >>> interpolate(torch.tensor([[[2]], [[4]]]), (x, y, replace(y, axis=2)))
    tensor([[[3.]]])
    """
    found = values.permute(*(along.axis for along in axes)).permute(2, 1, 0)
    for dim, along in enumerate(reversed(axes)):
        at = along.positions.clamp(0, along.size - 1)
        low = at.floor().long()
        weight = (at - low).float()
        left = found.index_select(dim, low).float()
        if weight.any():
            right = found.index_select(dim, (low + 1).clamp(max=along.size - 1)).float()
            left.lerp_(right, weight.reshape([-1 if i == dim else 1 for i in range(3)]))
        found = left
    return found.permute(2, 1, 0)


def dependent_box(axes: Sequence[AxisPositions], box: Box) -> Box:
    """Box of the voxels of a grid whose interpolated values depend on a box of the other grid."""
    found = []
    for along in axes:
        part, at = box[along.axis], along.positions
        inside = (at > part.start - 1) & (at < part.stop)
        if part.start == 0:
            inside |= at <= 0
        if part.stop == along.size:
            inside |= at >= along.size - 1
        voxels = inside.nonzero().ravel().tolist()
        found.append(slice(voxels[0], voxels[-1] + 1) if voxels else slice(0, 0))
    return tuple(found)


@dataclass(frozen=True)
class ScanProbability:
    """The probability by a network on a scan's grid, computed box by box.

    Where volumes overlap, their mean counts. It is 0 where none lies, and for voxels with more than
    half of their interpolation weights outside.

    Attributes:
        shape: Of the scan.
        affine: Of the scan, RAS, mm.
        volumes: Probabilities on the network's grid.
    """

    shape: tuple[int, ...]
    affine: Affine
    volumes: Sequence[NetworkVolume]

    def __getitem__(self, box: Box) -> NDArray[np.float32]:
        """The probability in a box."""
        sizes = [part.stop - part.start for part in box]
        found = np.zeros(sizes, np.float32, order="F")
        count = np.zeros(sizes[2], np.float32)
        for volume in self.volumes:
            start, stop = max(box[2].start, volume.start), min(box[2].stop, volume.stop)
            if start < stop:
                here = slice(start - box[2].start, stop - box[2].start)
                found[..., here] += self.resampled(volume, (*box[:2], slice(start, stop)))
                count[here] += 1
        if count.max(initial=0) > 1:
            found /= np.maximum(count, 1)
        return found

    def resampled(self, volume: NetworkVolume, box: Box) -> NDArray[np.float32]:
        """A network's volume in a box of the scan."""
        axes = [axis.part(part) for axis, part in zip(self.axes(volume), box, strict=True)]
        found = interpolate(volume.values, axes)
        x, y, z = (axis.weight_inside for axis in axes)
        if min(weight.min() for weight in (x, y, z)) < 1:
            found *= (x[:, None, None] * y[:, None] * z) > 0.5
        return found.numpy()

    def axes(self, volume: NetworkVolume) -> Sequence[AxisPositions]:
        """Positions of the scan's voxels on a network's volume."""
        return axis_positions(self.affine, self.shape, volume.affine, volume.values.shape)

    def box_above(self, probability: float) -> Box:
        """A box that holds all voxels with more than a probability; may be empty."""
        boxes = []
        for volume in self.volumes:
            above = (volume.values > probability).numpy()
            if above.any():
                x, y, z = dependent_box(self.axes(volume), bounding_box(above))
                boxes.append((x, y, slice(max(z.start, volume.start), min(z.stop, volume.stop))))
        return union([box for box in boxes if all(part.start < part.stop for part in box)])


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all boxes; an empty box without any.

    >>> union([(slice(0, 2),), (slice(5, 6),)])
    (slice(0, 6, None),)
    """
    if not boxes:
        return (slice(0, 0),) * 3
    return tuple(
        slice(min(part.start for part in parts), max(part.stop for part in parts))
        for parts in zip(*boxes, strict=True)
    )


def blocks(box: Box) -> Iterator[Box]:
    """Parts of a box, each of some slices."""
    x, y, z = box
    planes = max(1, BLOCK_VOXELS // max(1, (x.stop - x.start) * (y.stop - y.start)))
    for start in range(z.start, z.stop, planes):
        yield x, y, slice(start, min(start + planes, z.stop))
