"""Trained folders of nnU-Net v2 as checkpoints of ``predict`` and ``evaluate``."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pancseg.data.splits import Split
from pancseg.data.transforms import Preprocessing
from pancseg.errors import PancsegError
from pancseg.inference.trained_model import TrainedModel
from pancseg.models.factory import build
from pancseg.models.known_weights import nnunet_plan, nnunet_record
from pancseg.models.pretrained import load_tensors, weights_in
from pancseg.structures import Structure, parse_structures

ORIENTATION = "RAS"
OVERLAP = 0.5  # of windows
SIGMA = 1 / 8  # of the weights of a window, share of its size
LESION = re.compile("tumou?r|lesion|cancer|cyst|metast")
CODES = {"pancreas": 15776009, "liver": 10200004, "tumour": 126859007}  # SNOMED CT
BODY_STRUCTURE = 123037004
ANY_ML = (0.0, 20_000.0)  # no volume is implausible


def open_nnunet(path: Path) -> TrainedModel:
    """Open ``fold_0/checkpoint_final.pth`` of a model folder with plans.json and dataset.json.

    Scans are resampled linearly, where nnU-Net takes cubic splines, and a structure is where its
    probability is above one half, where nnU-Net takes the likeliest label.
    """
    content = load_tensors(path)
    plan = nnunet_plan(path, content["init_args"])
    record = nnunet_record(plan)
    network = record.adapt(ORIENTATION, record.window_hu)
    network["out_channels"] = plan.model["out_channels"]
    built = build(network, nn.Module)
    own, weights = built.state_dict(), record.rename(weights_in(content))
    named = {f"network.{name}": tensor for name, tensor in weights.items()}
    heads = "network.decoder.seg_layers."  # without those of deep supervision
    built.load_state_dict({k: v for k, v in named.items() if k in own or not k.startswith(heads)})
    order = record.transform_from(ORIENTATION)[:, 0].astype(int)  # axis of the weights' orientation
    mirrored = content.get("inference_allowed_mirroring_axes") or ()
    flips = [0.5 * (plan.axes.index(int(axis)) in mirrored) for axis in order]
    spacing_mm = tuple(record.spacing_mm[axis] for axis in order)
    structures, channels = structures_of(plan.labels, bool(plan.regions_order))
    return TrainedModel(
        path=path,
        network=built.eval(),
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


def whole_logits(network: Any, image: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Logits ``(1, C, H, W, D)`` of an ``AdaptedNetwork``, by the windows of nnU-Net.

    They are evenly spaced, and weighted by a Gaussian around voxel ``n // 2``; smaller images are
    padded by the mean HU. MONAI's windows are others, which shifts a mask by several per cent.
    """
    volume = network.prepare(image)
    shape = volume.shape[2:]
    missing = [max(0, n - have) for n, have in zip(patch_size, shape, strict=True)]
    padding = [side for n in reversed(missing) for side in (n // 2, n - n // 2)]
    volume = F.pad(volume, padding)
    delta = np.zeros(patch_size)
    delta[tuple(n // 2 for n in patch_size)] = 1
    weight = gaussian_filter(delta, [n * SIGMA for n in patch_size], mode="constant")
    weights = torch.from_numpy(weight.clip(weight[weight > 0].min()) / weight.max()).float()
    weights, total = weights.to(volume.device), torch.tensor(0.0)
    count = torch.zeros(volume.shape[2:], device=volume.device)
    for start in itertools.product(*map(window_starts, volume.shape[2:], patch_size)):
        box = tuple(slice(a, a + n) for a, n in zip(start, patch_size, strict=True))
        logits = network.network(volume[(..., *box)])[0].float() * weights
        if not total.ndim:
            total = logits.new_zeros(len(logits), *volume.shape[2:])
        total[(..., *box)] += logits
        count[box] += weights
    inside = (slice(n // 2, n // 2 + size) for n, size in zip(missing, shape, strict=True))
    return network.restore((total / count)[(None, slice(None), *inside)])


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
    names = {re.sub("[^a-z0-9]+", "_", name.lower()).strip("_"): name for name in ordered}
    if len(names) < len(ordered):
        raise PancsegError("dataset.json: two labels have names that differ in punctuation only")
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
