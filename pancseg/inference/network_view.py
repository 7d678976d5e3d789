"""A scan as a network sees it, made block by block: never the whole of it as floats."""

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd, Spacingd
from torch import Tensor

from pancseg.data.transforms import AXES, Preprocessing, deterministic
from pancseg.geometry import Affine, bounding_box
from pancseg.inference.parallel_grids import interpolate, lie_on

BLOCK_VOXELS = 4_000_000  # interpolated at a time


@dataclass(frozen=True)
class NetworkView:
    """An image on the network's grid.

    Attributes:
        image: ``(H, W, D)`` float32, 0..1.
        affine: RAS, mm.
    """

    image: Tensor
    affine: Affine


def whole_view(image: nib.Nifti1Image, numbers: Preprocessing) -> NetworkView:
    """A whole case as the transforms of training give it: reoriented, resampled, windowed, cropped.

    MONAI says where the resampled grid lies; its voxels are then interpolated in blocks, which
    for a scan of 512 x 512 x 1000 takes a tenth of the memory.

    Args:
        image: HU, three axes in any order.
        numbers: With a ``spatial_size`` of None.
    """
    image = as_torch_reads(image)
    hu = torch.from_numpy(np.asanyarray(image.dataobj))
    shape, affine = resampled_grid(image, numbers)
    x, y, z = lie_on(affine, shape, image.affine, image.shape)
    low, high = numbers.window_hu
    seen = torch.empty(shape[::-1]).permute(2, 1, 0)
    planes = max(1, BLOCK_VOXELS // (shape[0] * shape[1]))
    for start in range(0, shape[2], planes):
        part = slice(start, start + planes)
        seen[..., part] = interpolate(hu, (x, y, z.part(part)))
    seen.sub_(low).div_(high - low).clamp_(0, 1)
    return cropped(NetworkView(seen, affine))


def as_torch_reads(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The same image in a form that torch reads in place: no axis backwards, a common type.

    What intake reads is int16 or float32, and is not copied.
    """
    values = np.asanyarray(image.dataobj)
    if values.dtype not in (np.int16, np.float32):
        values = values.astype(np.float32)
    backwards = [[axis, -1 if step < 0 else 1] for axis, step in enumerate(values.strides)]
    return nib.Nifti1Image(values, image.affine).as_reoriented(np.array(backwards))


def resampled_grid(
    image: nib.Nifti1Image, numbers: Preprocessing
) -> tuple[tuple[int, int, int], Affine]:
    """Size and affine that the transforms give an image, without resampling anything."""
    no_voxels = torch.zeros(1, 1, 1, 1).expand(1, *image.shape)
    steps = Compose(
        [
            Orientationd("image", axcodes=numbers.orientation, labels=AXES),
            Spacingd("image", pixdim=numbers.spacing_mm, mode="bilinear"),
        ]
    )
    item = {"image": MetaTensor(no_voxels, affine=torch.as_tensor(image.affine))}
    for step in steps.transforms:
        item = step(item, lazy=True)
    pending = item["image"]
    x, y, z = (int(size) for size in pending.peek_pending_shape())
    return (x, y, z), np.asarray(pending.peek_pending_affine(), np.float64)


def cropped(view: NetworkView) -> NetworkView:
    """The columns between the outermost ones that hold anything above the window's floor."""
    columns = (view.image > 0).any(dim=-1).numpy()
    x, y = bounding_box(columns)
    moved = view.affine.copy()
    moved[:3, 3] += moved[:3, :2] @ np.array([x.start, y.start], np.float64)
    return NetworkView(view.image[x, y], moved)


def group_view(group: nib.Nifti1Image, numbers: Preprocessing) -> NetworkView:
    """A group as the transforms of training give it, by these very transforms."""
    values = torch.as_tensor(np.asanyarray(group.dataobj).astype(np.float32))[None]
    transform = Compose(deterministic(numbers, keys=("image",), load=False))
    item = transform({"image": MetaTensor(values, affine=torch.as_tensor(group.affine))})
    seen = item["image"]
    return NetworkView(seen.as_tensor()[0], np.asarray(seen.affine, np.float64))
