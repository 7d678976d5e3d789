"""The recipe's transforms, in the right order: reorient, resample, window, crop, resize.

The structure is here, the numbers come from the configuration.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.transforms import (
    CropForegroundd,
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    Orientationd,
    Resized,
    ScaleIntensityRanged,
    Spacingd,
    Transform,
)

AXES = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True)
class Preprocessing:
    """Numbers of the deterministic transforms.

    Attributes:
        orientation: Axis codes, such as ``RAS``.
        spacing_mm: Voxel size after resampling.
        window_hu: What becomes 0 and 1; values outside are clipped.
        spatial_size: Voxels that a whole group is resized to; None leaves the resolution as it is,
            for patches.
    """

    orientation: str
    spacing_mm: tuple[float, ...]
    window_hu: tuple[float, ...]
    spatial_size: tuple[int, ...] | None


def deterministic(
    numbers: Preprocessing, keys: Sequence[str] = ("image", "label"), load: bool = True
) -> list[Transform]:
    """The steps of the recipe, for training and inference alike.

    Args:
        numbers: From the configuration.
        keys: ``image`` and, where there is one, ``label``; labels are resampled by nearest.
        load: Whether the items hold paths, rather than tensors with an affine and a channel.

    Returns:
        Transforms whose image is ``(1, H, W, D)``, 0..1, of ``spatial_size`` where that is given.
    """
    loading = [nifti_loader(keys), EnsureChannelFirstd(keys)] if load else []
    linear = ["bilinear" if key == "image" else "nearest" for key in keys]
    # torch's plain "nearest" takes the voxel's corner and moves labels by up to half a voxel
    resize = ["trilinear" if key == "image" else "nearest-exact" for key in keys]
    low, high = numbers.window_hu
    size = numbers.spatial_size
    return [
        *loading,
        Orientationd(keys, axcodes=numbers.orientation, labels=AXES),
        Spacingd(keys, pixdim=numbers.spacing_mm, mode=linear),
        ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
        CropForegroundd(
            keys,
            source_key="image",
            select_fn=inside_body,
            allow_smaller=True,
            start_coord_key=None,  # the affine says it too, and batches hold only what is used
            end_coord_key=None,
        ),
        *([Resized(keys, spatial_size=size, mode=resize)] if size else []),
        EnsureTyped(keys, dtype=torch.float32),  # the recipe's ToTensord
    ]


def nifti_loader(keys: Sequence[str]) -> Transform:
    """MONAI's loader; it sets up its DICOM readers too, and their complaints do not concern us."""
    plugin = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    level = plugin.level
    plugin.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="NvImgCodecPydicomReader", category=UserWarning
            )
            return LoadImaged(keys, reader="NibabelReader", image_only=True)
    finally:
        plugin.setLevel(level)


def inside_body(image: torch.Tensor) -> torch.Tensor:
    """Columns of voxels along the last axis that hold anything above the window's floor.

    Never part of a column: slices of air that pad a group are part of its depth. All of them
    where there is nothing above the floor.

    >>> inside_body(torch.tensor([[0.0, 0.5], [0.0, 0.0]])).tolist()
    [[True, True], [False, False]]
    >>> inside_body(torch.zeros(1, 2)).tolist()
    [[True, True]]
    """
    body = (image > 0).any(dim=-1, keepdim=True).expand_as(image)
    return body if body.any() else torch.ones_like(body)
