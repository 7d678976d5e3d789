"""Input of a network: its planned voxel spacing and size, and the MONAI transforms to it."""

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai import transforms as mt

AXES = (("L", "R"), ("P", "A"), ("I", "S"))
MIN_SIDE = 32  # voxels of a patch
COARSENING = 1.02  # factor of a step


@dataclass(frozen=True)
class Plan:
    """Input of a network: voxel spacing, and voxels of a patch or of a resized group."""

    spacing_mm: tuple[float, ...]
    spatial_size: tuple[int, ...]

    def __str__(self) -> str:
        field_mm = np.multiply(self.spatial_size, self.spacing_mm).round()
        triples = (self.spatial_size, self.spacing_mm, field_mm)
        voxels, spacing, field = (" x ".join(f"{n:g}" for n in triple) for triple in triples)
        return f"{voxels} voxels of {spacing} mm: {field} mm"


def make_plan(
    cases: Sequence[Any],  # with ``shape`` and ``spacing_mm``
    patch_voxels: int,  # at most
    field_mm: Sequence[float],  # that a patch should cover
    spacing_mm: Sequence[float] | None = None,
    spatial_size: Sequence[int] | None = None,
) -> Plan:
    """Plan the spacing and the size of a patch for whole scans, where they are None.

    As in nnU-Net (Isensee et al. 2021): the median spacing of the data and the largest patch that
    the machine allows. Where it would cover too little of the abdomen, the spacing is coarser.
    """
    if spacing_mm is None or spatial_size is None:
        spacings_mm = np.array([case.spacing_mm for case in cases], dtype=float)
        extent_mm = np.median(spacings_mm * [case.shape for case in cases], axis=0)
        patch_voxels = patch_voxels if spatial_size is None else math.prod(spatial_size)
        if spacing_mm is None:
            spacing, field = np.median(spacings_mm, axis=0), np.minimum(field_mm, extent_mm)
            while math.prod(field / spacing) > patch_voxels * COARSENING:  # the finest axes first
                spacing = np.maximum(spacing, spacing.min() * COARSENING)
            spacing_mm = [round(float(mm), 2) for mm in spacing]
        if spatial_size is None:
            field = np.array(field_mm) / spacing_mm
            spatial_size = largest_patch(extent_mm / spacing_mm, field, patch_voxels)
    return Plan(tuple(map(float, spacing_mm)), tuple(map(int, spatial_size)))


def largest_patch(volume: Any, field: Any, most_voxels: int) -> list[int]:
    """Smallest patch that covers the volume, reduced until it has at most ``most_voxels``."""

    def step(side: float) -> int:  # networks halve a long side five times, and others four times
        return 32 if side > 128 else 16

    patch = [max(MIN_SIDE, math.ceil(side / step(side)) * step(side)) for side in volume]
    while math.prod(patch) > most_voxels and max(patch) > MIN_SIDE:
        axis = int(np.where(np.array(patch) > MIN_SIDE, patch / field, 0.0).argmax())
        patch[axis] -= step(patch[axis])  # of the side that is longest relative to ``field``
    return patch


@dataclass(frozen=True)
class Preprocessing:
    """Arguments of :func:`preprocessing_transforms`."""

    orientation: str  # axis codes, such as RAS
    spacing_mm: tuple[float, ...]
    window_hu: tuple[float, ...]  # mapped to 0 and 1; values outside are clipped
    spatial_size: tuple[int, ...] | None  # that a group is resized to; None for patches


def preprocessing_transforms(
    preprocessing: Preprocessing, keys: Sequence[str] = ("image", "label"), load: bool = True
) -> list[mt.Transform]:
    """Transforms to an image ``(1, H, W, D)``, 0..1, and a label of the same shape.

    Without ``load`` items hold tensors ``(1, H, W, D)`` with an affine instead of file names.
    """
    spacing_modes = ["bilinear" if key == "image" else "nearest" for key in keys]
    # torch's "nearest" shifts labels by up to half a voxel
    resize_modes = ["trilinear" if key == "image" else "nearest-exact" for key in keys]
    (low, high), size = preprocessing.window_hu, preprocessing.spatial_size
    no_coordinates: dict[str, Any] = {"start_coord_key": None, "end_coord_key": None}
    return [
        *([nifti_loader(keys), mt.EnsureChannelFirstd(keys)] if load else []),
        mt.Orientationd(keys, axcodes=preprocessing.orientation, labels=AXES),
        mt.Spacingd(keys, pixdim=preprocessing.spacing_mm, mode=spacing_modes),
        mt.ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
        mt.CropForegroundd(keys, "image", inside_body, allow_smaller=True, **no_coordinates),
        *([mt.Resized(keys, spatial_size=size, mode=resize_modes)] if size else []),
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
