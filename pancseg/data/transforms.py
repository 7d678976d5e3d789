"""The deterministic MONAI transforms of training and inference."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai import transforms as mt

AXES = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True)
class Preprocessing:
    """Arguments of the deterministic transforms."""

    orientation: str  # axis codes, such as RAS
    spacing_mm: tuple[float, ...]
    window_hu: tuple[float, ...]  # mapped to 0 and 1; values outside are clipped
    spatial_size: tuple[int, ...] | None  # that a group is resized to; None for patches


def deterministic(
    preprocessing: Preprocessing, keys: Sequence[str] = ("image", "label"), load: bool = True
) -> list[mt.Transform]:
    """Transforms to an image ``(1, H, W, D)``, 0..1, and a label of the same shape.

    Without ``load`` items hold tensors ``(1, H, W, D)`` with an affine instead of file names.
    """
    linear = ["bilinear" if key == "image" else "nearest" for key in keys]
    # torch's "nearest" shifts labels by up to half a voxel
    resize = ["trilinear" if key == "image" else "nearest-exact" for key in keys]
    low, high = preprocessing.window_hu
    size = preprocessing.spatial_size
    return [
        *([nifti_loader(keys), mt.EnsureChannelFirstd(keys)] if load else []),
        mt.Orientationd(keys, axcodes=preprocessing.orientation, labels=AXES),
        mt.Spacingd(keys, pixdim=preprocessing.spacing_mm, mode=linear),
        mt.ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
        mt.CropForegroundd(  # the affine holds the coordinates too
            keys, "image", inside_body, allow_smaller=True, start_coord_key=None, end_coord_key=None
        ),
        *([mt.Resized(keys, spatial_size=size, mode=resize)] if size else []),
        mt.EnsureTyped(keys, dtype=torch.float32),
    ]


def nifti_loader(keys: Sequence[str]) -> mt.Transform:
    """MONAI's loader, without the warnings of the DICOM readers that it also sets up."""
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "NvImgCodecPydicomReader", UserWarning)
        return mt.LoadImaged(keys, reader="NibabelReader", image_only=True)


def inside_body(image: torch.Tensor) -> torch.Tensor:
    """Columns of voxels along the last axis with any value above 0; all columns without any.

    Whole columns, so that slices of air that pad a group are not cropped.
    """
    body = (image > 0).any(dim=-1, keepdim=True).expand_as(image)
    return body if body.any() else torch.ones_like(body)
