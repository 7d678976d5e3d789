"""Trained folders of nnU-Net v2 as checkpoints of ``predict`` and ``evaluate``."""

import itertools
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pancseg import geometry
from pancseg.data.splits import Split
from pancseg.data.transforms import Preprocessing
from pancseg.errors import PancsegError
from pancseg.inference.resampling import NetworkVolume
from pancseg.inference.trained_model import (
    NETWORK,
    TrainedModel,
    check_sizes,
    rebuild_network,
)
from pancseg.models.factory import build_on_meta
from pancseg.models.known_weights import nnunet_plan, nnunet_record
from pancseg.models.pretrained import load_tensors, weights_in
from pancseg.structures import Structure, parse_structures

log = logging.getLogger(__name__)
ORIENTATION = "RAS"
OVERLAP = 0.5  # of windows
SIGMA = 1 / 8  # of the weights of a window, share of its size
ANISOTROPY = 3.0  # ratio of spacings
LESION = re.compile("tumou?r|lesion|cancer|cyst|metast")
CODES = {"pancreas": 15776009, "liver": 10200004, "tumour": 126859007}  # SNOMED CT
BODY_STRUCTURE = 123037004
ANY_ML = (0.0, 20_000.0)  # no volume is implausible


def open_nnunet(path: Path) -> TrainedModel:
    """Open ``fold_0/checkpoint_final.pth`` of a model folder with plans.json and dataset.json.

    A structure is where its probability is above one half, where nnU-Net takes the likeliest
    label.
    """
    content = load_tensors(path)
    plan = nnunet_plan(path, content["init_args"])
    record = nnunet_record(plan)
    if plan.orientation is None:
        text = '%s: dataset.json has no "orientation" of its files, such as "LPS"; %s is taken'
        log.warning(text, path, record.orientation)
    network = record.adapt(ORIENTATION, record.window_hu)
    network["out_channels"] = plan.model["out_channels"]
    own = build_on_meta(network).state_dict()
    weights = {f"network.{k}": v for k, v in record.rename(weights_in(content)).items()}
    heads = "network.decoder.seg_layers."  # without those of deep supervision
    weights = {k: v for k, v in weights.items() if k in own or not k.startswith(heads)}
    order = record.transform_from(ORIENTATION)[:, 0].astype(int)  # axis of the weights' orientation
    mirrored = content.get("inference_allowed_mirroring_axes") or ()
    flips = [0.5 * (plan.axes.index(int(axis)) in mirrored) for axis in order]
    spacing_mm = tuple(record.spacing_mm[axis] for axis in order)
    check_sizes(spacing_mm, plan.patch_size)
    structures, channels = structures_of(plan.labels, bool(plan.regions_order))
    return TrainedModel(
        path=path,
        network=rebuild_network(network, {f"{NETWORK}{k}": v for k, v in weights.items()}),
        hparams={
            "model": network,
            "loss": {"sigmoid": bool(plan.regions_order)},
            "nnunet": {"channels": channels, "patch_size": plan.patch_size},
        },
        data={"root": "", "augment": {"flip_probability": flips}, "split": {}},
        preprocessing=Preprocessing(ORIENTATION, spacing_mm, record.window_hu, None),
        split=Split([], [], [], "unknown", None),
        structures=structures,
        names="",
        epoch=int(content["current_epoch"]),
        step=0,
        fingerprint="",
        has_average=False,
        optimizer_states=None,
        training_seconds=0.0,
        seen_before=frozenset(),
        profile=None,
    )


def nnunet_input(image: nib.Nifti1Image, preprocessing: Preprocessing) -> NetworkVolume:
    """A whole scan as nnU-Net resamples it: clipped first, then by cubic splines.

    Both grids cover the same field. Along an axis three times as coarse as another the nearest
    voxel counts. Splines are separable: slice by slice, then along columns, in little memory.
    """
    image = nib.as_closest_canonical(image)
    hu, old_mm = np.asanyarray(image.dataobj), np.array(geometry.spacing_of(image.affine))
    new_mm, (low, high) = np.array(preprocessing.spacing_mm), preprocessing.window_hu
    shape = np.maximum(1, np.rint(old_mm / new_mm * hu.shape)).astype(int)
    orders, coarsest = [3, 3, 3], max((old_mm, new_mm), key=lambda mm: mm.max() / mm.min())
    if coarsest.max() > ANISOTROPY * coarsest.min():
        orders[int(coarsest.argmax())] = 0
    values = np.empty((*shape[:2], hu.shape[2]), np.float32)
    for k in range(hu.shape[2]):
        plane = ((hu[..., k].astype(np.float32) - low) / (high - low)).clip(0, 1)
        values[..., k] = resized(resized(plane, 0, shape[0], orders[0]), 1, shape[1], orders[1])
    resampled = np.empty(shape, np.float32)
    for part, target in zip(values, resampled, strict=True):
        target[:] = resized(part, 1, shape[2], orders[2]).clip(0, 1)
    affine = image.affine @ np.diag([*(hu.shape / shape), 1.0])
    affine[:3, 3] += image.affine[:3, :3] @ ((hu.shape / shape - 1) / 2)
    return NetworkVolume(torch.from_numpy(resampled), affine, 0, image.shape[2])


def resized(values: NDArray[np.float32], axis: int, size: int, order: int) -> NDArray[np.float32]:
    """Two axes, of which one is interpolated to another size."""
    if size == values.shape[axis]:
        return values
    factors = [size / n if i == axis else 1.0 for i, n in enumerate(values.shape)]
    options: Any = {"order": order, "mode": "nearest", "grid_mode": True}
    return ndimage.zoom(values, factors, **options)


def whole_logits(
    network: Any, image: Tensor, patch_size: Sequence[int], device: torch.device | str
) -> Tensor:
    """Logits ``(1, C, H, W, D)`` of an ``AdaptedNetwork``, by the windows of nnU-Net.

    They are evenly spaced, and weighted by a Gaussian around voxel ``n // 2``; smaller images are
    padded by the mean HU. MONAI's windows are others, which shifts a mask by several per cent.
    Windows go to ``device``, sums stay where the image is.
    """
    volume = network.prepare(image)
    shape = volume.shape[2:]
    missing = [max(0, n - have) for n, have in zip(patch_size, shape, strict=True)]
    padding = [side for n in reversed(missing) for side in (n // 2, n - n // 2)]
    volume = F.pad(volume, padding)
    delta = np.zeros(patch_size)
    delta[tuple(n // 2 for n in patch_size)] = 1
    weight = ndimage.gaussian_filter(delta, [n * SIGMA for n in patch_size], mode="constant")
    weights = torch.from_numpy(weight.clip(weight[weight > 0].min()) / weight.max()).float()
    weights, total = weights.to(volume.device), torch.tensor(0.0)
    count = torch.zeros(volume.shape[2:], device=volume.device)
    for start in itertools.product(*map(window_starts, volume.shape[2:], patch_size)):
        box: Any = tuple(slice(a, a + n) for a, n in zip(start, patch_size, strict=True))
        window = volume[(..., *box)].to(device)
        logits = network.network(window)[0].float().to(volume.device) * weights
        if not total.ndim:
            total = logits.new_zeros(len(logits), *volume.shape[2:])
        total[(..., *box)] += logits
        count[box] += weights
    inside = (slice(n // 2, n // 2 + size) for n, size in zip(missing, shape, strict=True))
    return network.restore(total.div_(count)[(None, slice(None), *inside)])


def window_starts(size: int, window: int) -> list[int]:
    """First voxels of evenly spaced windows along an axis.

    >>> window_starts(80, 48), window_starts(10, 10)
    ([0, 16, 32], [0])
    """
    count = math.ceil((size - window) / (window * (1 - OVERLAP))) + 1
    return [round((size - window) / max(1, count - 1) * n) for n in range(count)]


def structures_of(
    labels: Mapping[str, Any], are_regions: bool
) -> tuple[tuple[Structure, ...], list[list[int]]]:
    """Structures of ``labels`` in dataset.json, wholes before their parts, and their channels.

    Labels are channels of a softmax with the background; regions have a channel each.
    """
    foreground = {name: v for name, v in labels.items() if v not in (0, [0])}
    values = {name: v if isinstance(v, list) else [v] for name, v in foreground.items()}
    own = {name: [number] if are_regions else values[name] for number, name in enumerate(values)}
    ordered = sorted(values, key=lambda name: -len(values[name]))
    names = {plain_name(name): name for name in ordered}
    if len(names) < len(ordered):
        raise PancsegError("dataset.json: names of labels differ by punctuation or endings only")
    node = {
        new: {
            "labels": values[name],
            "code": CODES.get(new, BODY_STRUCTURE),
            "kind": "lesion" if LESION.search(new) else "organ",
            "volume_ml": ANY_ML,
        }
        for new, name in names.items()
    }
    return parse_structures(node), [own[name] for name in ordered]


def plain_name(label: str) -> str:
    """A name that can be a part of file names.

    >>> plain_name("Left Kidney"), plain_name("1st rib")
    ('left_kidney', 'label_1st_rib')
    """
    name = re.sub("[^a-z0-9]+", "_", label.lower()).strip("_")
    return (name if name[:1].isalpha() else f"label_{name}")[:31]
