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

from pancseg.data.transforms import AXES, Preprocessing, preprocessing_transforms
from pancseg.geometry import AIR_HU, Affine, bounding_box, cut_group, plan_cut

BLOCK_VOXELS = 4_000_000  # interpolated at a time
MAX_SKEW = 1e-3  # voxels that an axis may deviate from the parallel over its length
Box = tuple[slice, ...]


@dataclass(frozen=True)
class NetworkVolume:
    """A volume on the network's grid, of slices ``start`` to ``stop`` of a scan."""

    values: Tensor  # (H, W, D) float32: the network's input, 0..1, or a probability
    affine: Affine
    start: int
    stop: int
    are_logits: bool = False  # values of a probability, which becomes one after interpolation


@dataclass(frozen=True)
class AxisPositions:
    """Coordinates of the voxels of one axis, in voxels of the parallel axis of another grid."""

    axis: int  # of the other grid
    positions: Tensor  # (n,) float64, voxels of the other grid


def network_inputs(
    image: nib.Nifti1Image, preprocessing: Preprocessing, depth: int | None
) -> list[NetworkVolume]:
    """A scan in HU as training sees it: groups of ``depth`` that cover all slices, or whole.

    Slice 0 is nearest the feet, and the axes are at right angles.
    """
    if depth is None:
        return [whole_input(image, preprocessing)]
    transform = Compose(preprocessing_transforms(preprocessing, keys=("image",), load=False))
    inputs = []
    for start in plan_cut(image.shape[2], depth, "shift")[0] or [0]:
        group = cut_group(image, start, depth, fill=AIR_HU)
        values = torch.as_tensor(np.asanyarray(group.dataobj).astype(np.float32))[None]
        item: dict[Any, Any] = {"image": MetaTensor(values, affine=torch.as_tensor(group.affine))}
        ready = transform(item)["image"]
        affine, stop = np.asarray(ready.affine, np.float64), min(start + depth, image.shape[2])
        inputs.append(NetworkVolume(ready.as_tensor()[0], affine, start, stop))
    return inputs


def whole_input(image: nib.Nifti1Image, preprocessing: Preprocessing) -> NetworkVolume:
    """A whole scan, reoriented, resampled, windowed, and cropped to the columns of the body."""
    scan = np.asanyarray(image.dataobj)
    if scan.dtype not in (np.int16, np.float32):  # these are not copied
        scan = scan.astype(np.float32)
    # torch reads no negative strides
    flips = np.array([[axis, -1 if step < 0 else 1] for axis, step in enumerate(scan.strides)])
    image = nib.Nifti1Image(scan, image.affine).as_reoriented(flips)
    hu = torch.from_numpy(np.asanyarray(image.dataobj))
    shape, affine = network_grid(image, preprocessing)
    x, y, z = axis_positions(affine, shape, image.affine)
    low, high = preprocessing.window_hu
    values = torch.empty(shape[::-1]).permute(2, 1, 0)
    for part in blocks(tuple(slice(0, size) for size in shape)):
        values[part] = interpolate(hu, (x, y, replace(z, positions=z.positions[part[2]])))
    values.sub_(low).div_(high - low).clamp_(0, 1)
    columns = bounding_box((values > 0).any(dim=-1).numpy())
    affine[:3, 3] += affine[:3, :2] @ np.array([part.start for part in columns], np.float64)
    return NetworkVolume(values[columns], affine, 0, image.shape[2])


def network_grid(image: nib.Nifti1Image, preprocessing: Preprocessing) -> tuple[list[int], Affine]:
    """Shape and affine that the transforms give an image, by MONAI's lazy resampling."""
    empty = torch.zeros(1, 1, 1, 1).expand(1, *image.shape)
    item: Any = {"image": MetaTensor(empty, affine=torch.as_tensor(image.affine))}
    item = Orientationd("image", preprocessing.orientation, labels=AXES)(item, lazy=True)
    item = Spacingd("image", preprocessing.spacing_mm, mode="bilinear")(item, lazy=True)
    shape = [int(size) for size in item["image"].peek_pending_shape()]
    return shape, np.asarray(item["image"].peek_pending_affine(), np.float64).copy()


def axis_positions(affine: Affine, shape: Sequence[int], other: Affine) -> list[AxisPositions]:
    """Positions of the voxels of a grid on another grid with parallel axes, axis by axis."""
    to_other = np.linalg.inv(other) @ affine
    skew = np.abs(to_other[:3, :3]) * np.array(shape[:3])
    axes = np.abs(to_other[:3, :3]).argmax(axis=0)
    skew[axes, range(3)] = 0.0
    if sorted(axes) != [0, 1, 2] or skew.max() > MAX_SKEW:
        raise ValueError("the axes of the two grids are not parallel")
    starts, steps = to_other[axes, 3], to_other[axes, range(3)]
    positions = (starts[i] + steps[i] * np.arange(shape[i], dtype=np.float64) for i in range(3))
    return list(map(AxisPositions, axes.tolist(), map(torch.from_numpy, positions)))


def interpolate(values: Tensor, axes: Sequence[AxisPositions]) -> Tensor:
    """Values ``(X, Y, Z)``, interpolated linearly; the border's values beyond it.

    ``axes`` holds for each axis of the result its positions on ``values``. The result is float32,
    the first axis fastest in memory, as in NIfTI.
    """
    result = values.permute(*(along.axis for along in axes)).permute(2, 1, 0)
    for dim, along in enumerate(reversed(axes)):
        last = result.shape[dim] - 1
        at = along.positions.clamp(0, last)
        low = at.floor().long()
        weight = (at - low).float()
        left = result.index_select(dim, low).float()
        if weight.any():
            right = result.index_select(dim, (low + 1).clamp(max=last)).float()
            left.lerp_(right, weight.reshape([-1 if i == dim else 1 for i in range(3)]))
        result = left
    return result.permute(2, 1, 0)


def dependent_box(axes: Sequence[AxisPositions], box: Box, shape: Sequence[int]) -> Box:
    """Box of the voxels of a grid whose interpolated values depend on a box of the other grid."""
    parts = []
    for along in axes:
        part, at = box[along.axis], along.positions.clamp(0, shape[along.axis] - 1)
        voxels = ((at > part.start - 1) & (at < part.stop)).nonzero().ravel().tolist()
        parts.append(slice(voxels[0], voxels[-1] + 1) if voxels else slice(0, 0))
    return tuple(parts)


@dataclass(frozen=True)
class ScanProbability:
    """The probability by a network on a scan's grid, computed box by box.

    Where volumes overlap, their mean counts. It is 0 where none lies, and for voxels with more than
    half of their interpolation weights outside.
    """

    shape: tuple[int, ...]  # of the scan
    affine: Affine  # of the scan
    volumes: Sequence[NetworkVolume]  # probabilities on the network's grid

    def __getitem__(self, box: Box) -> NDArray[np.float32]:
        """The probability in a box."""
        sizes = [part.stop - part.start for part in box]
        total = np.zeros(sizes, np.float32, order="F")
        count = np.zeros(sizes[2], np.float32)
        for volume in self.volumes:
            start, stop = max(box[2].start, volume.start), min(box[2].stop, volume.stop)
            if start < stop:
                here = slice(start - box[2].start, stop - box[2].start)
                total[..., here] += self.resampled(volume, (*box[:2], slice(start, stop)))
                count[here] += 1
        if count.max(initial=0) > 1:
            total /= np.maximum(count, 1)
        return total

    def resampled(self, volume: NetworkVolume, box: Box) -> NDArray[np.float32]:
        """A network's volume in a box of the scan."""
        pairs = zip(self.axes(volume), box, strict=True)
        axes = [replace(axis, positions=axis.positions[part]) for axis, part in pairs]
        values, shape = interpolate(volume.values, axes), volume.values.shape
        values = values.sigmoid() if volume.are_logits else values
        # shares of the interpolation weights that fall on the network's grid
        beyond = [torch.maximum(-a.positions, a.positions - (shape[a.axis] - 1)) for a in axes]
        x, y, z = ((1 - distance).clamp(0, 1).float() for distance in beyond)
        if min(weight.min() for weight in (x, y, z)) < 1:
            values *= (x[:, None, None] * y[:, None] * z) > 0.5
        return values.numpy()

    def axes(self, volume: NetworkVolume) -> list[AxisPositions]:
        """Positions of the scan's voxels on a network's volume."""
        return axis_positions(self.affine, self.shape, volume.affine)

    def box_above(self, probability: float) -> Box:
        """A box that holds all voxels with more than a probability; may be empty."""
        boxes = []
        for volume in self.volumes:
            level = torch.logit(torch.tensor(probability)) if volume.are_logits else probability
            above = (volume.values > level).numpy()
            if above.any():
                x, y, z = dependent_box(self.axes(volume), bounding_box(above), above.shape)
                boxes.append((x, y, slice(max(z.start, volume.start), min(z.stop, volume.stop))))
        return union(boxes)


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all boxes; an empty box without any voxel.

    >>> union([(slice(0, 2),), (slice(0, 0),), (slice(5, 6),)])
    (slice(0, 6, None),)
    """
    if not (filled := [box for box in boxes if all(part.start < part.stop for part in box)]):
        return (slice(0, 0),) * 3
    ends = zip(*filled, strict=True)
    return tuple(slice(min(p.start for p in ps), max(p.stop for p in ps)) for ps in ends)


def blocks(box: Box) -> Iterator[Box]:
    """Parts of a box, each of some slices."""
    x, y, z = box
    planes = max(1, BLOCK_VOXELS // max(1, (x.stop - x.start) * (y.stop - y.start)))
    for start in range(z.start, z.stop, planes):
        yield x, y, slice(start, min(start + planes, z.stop))
