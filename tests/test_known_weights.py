"""Weights that others published: nnU-Net v2, MONAI's model zoo, SuPreM."""

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pancseg.errors import PancsegError
from pancseg.models import known_weights
from pancseg.models.factory import build, build_on_meta
from pancseg.models.known_weights import RECORDS, KnownWeights, nnunet_record
from pancseg.models.pretrained import load_pretrained, network_arguments, open_weights
from tests.conftest import Command, smoke

CHOICE = {"network": {}, "orientation": None}
WINDOW = (-300.0, 500.0)
KERNELS, STRIDES = [[1, 3, 3], [3, 3, 3], [3, 3, 3]], [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
KEYWORDS: dict[str, Any] = {
    "n_stages": 3, "features_per_stage": [2, 3, 4], "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": KERNELS, "strides": STRIDES, "n_conv_per_stage": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1], "conv_bias": True, "dropout_op": None,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "dropout_op_kwargs": None,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}  # fmt: skip
UNET = "dynamic_network_architectures.architectures.unet"
ARCHITECTURE = {"network_class_name": f"{UNET}.PlainConvUNet", "arch_kwargs": KEYWORDS}
FULL = {
    "patch_size": [8, 16, 16], "spacing": [3.0, 1.0, 2.0], "architecture": ARCHITECTURE,
    "normalization_schemes": ["CTNormalization"],
}  # fmt: skip
HU = {"percentile_00_5": -50.0, "percentile_99_5": 200.0, "mean": 80.0, "std": 40.0}
PLANS: dict[str, Any] = {
    "dataset_name": "Dataset501_Pancreas", "transpose_forward": [1, 0, 2],
    "foreground_intensity_properties_per_channel": {"0": HU},
    "configurations": {"3d_fullres": FULL, "bs4": {"batch_size": 4, "inherits_from": "3d_fullres"}},
}  # fmt: skip
DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "pancreas": 1, "ignore": 2}}
ARGUMENTS = {"plans": PLANS, "configuration": "bs4", "fold": 0, "dataset_json": DATASET}
BLOCKS = {  # nnU-Net's names of the blocks of PlainConvUNet: inputs, outputs, stage
    "encoder.stages.0.0.convs.0": (1, 2, 0),
    "encoder.stages.1.0.convs.0": (2, 3, 1),
    "encoder.stages.2.0.convs.0": (3, 4, 2),
    "decoder.stages.0.convs.0": (6, 3, 1),
    "decoder.stages.1.convs.0": (4, 2, 0),
}


def nnunet_weights() -> dict[str, Tensor]:
    """Weights under all the names of nnU-Net, some of them twice or three times."""
    torch.manual_seed(0)
    weights: dict[str, Tensor] = {}
    for name, (inputs, outputs, stage) in BLOCKS.items():
        shapes = (("conv", (outputs, inputs, *KERNELS[stage])), ("norm", (outputs,)))
        for number, (part, shape) in enumerate(shapes):
            for kind, size in (("weight", shape), ("bias", (outputs,))):
                tensor = weights[f"{name}.{part}.{kind}"] = torch.randn(size)
                weights[f"{name}.all_modules.{number}.{kind}"] = tensor
    for number, (below, width) in enumerate([(4, 3), (3, 2)]):
        up, head = f"decoder.transpconvs.{number}", f"decoder.seg_layers.{number}"
        weights |= {f"{up}.weight": torch.randn(below, width, *STRIDES[2 - number])}
        weights |= {f"{up}.bias": torch.randn(width), f"{head}.bias": torch.randn(2)}
        weights[f"{head}.weight"] = torch.randn(2, width, 1, 1, 1)
    return weights | {f"decoder.{k}": v for k, v in weights.items() if k.startswith("encoder.")}


def plain_conv_unet(weights: dict[str, Tensor], image: Tensor) -> Tensor:
    """PlainConvUNet by hand."""

    def block(name: str, features: Tensor, stride: Any = 1) -> Tensor:
        w = {key: weights[f"{name}.{key}"] for key in ("conv.weight", "conv.bias")}
        padding = [side // 2 for side in w["conv.weight"].shape[2:]]
        features = F.conv3d(features, *w.values(), stride=stride, padding=padding)
        norm = {key: weights[f"{name}.norm.{key}"] for key in ("weight", "bias")}
        return F.leaky_relu(F.instance_norm(features, **norm), 0.01)

    skips = [image]
    for stage in range(3):
        skips.append(block(f"encoder.stages.{stage}.0.convs.0", skips[-1], STRIDES[stage]))
    features = skips[3]
    for number in range(2):
        up = [weights[f"decoder.transpconvs.{number}.{kind}"] for kind in ("weight", "bias")]
        features = F.conv_transpose3d(features, *up, stride=STRIDES[2 - number])
        features = torch.cat([features, skips[2 - number]], dim=1)
        features = block(f"decoder.stages.{number}.convs.0", features)
    head = [weights[f"decoder.seg_layers.1.{kind}"] for kind in ("weight", "bias")]
    return F.conv3d(features, *head)


@pytest.fixture
def nnunet(tmp_path: Path) -> Path:
    """A checkpoint as nnU-Net saves it, with NumPy's numbers in it."""
    path = tmp_path / "fold_0" / "checkpoint_final.pth"
    path.parent.mkdir()
    numbers = {"mean_fg_dice": [np.float64(0.5)], "dice": [[np.float32(0.25)]]}
    content = {"network_weights": nnunet_weights(), "init_args": ARGUMENTS, "logging": numbers}
    torch.save(content | {"trainer_name": "nnUNetTrainer", "_best_ema": np.float64(0.5)}, path)
    return path


def load(path: Path, classes: int, orientation: str = "RAS", **choice: Any) -> tuple[Any, str]:
    """A network with the weights of a file, in evaluation mode, and the line about them."""
    arguments = network_arguments(path, CHOICE | choice, orientation, WINDOW)
    network = build(arguments | {"out_channels": classes}, nn.Module).eval()
    return network, load_pretrained(network, open_weights(path))


def test_a_checkpoint_of_nnunet_gives_its_logits_for_the_same_patient(nnunet: Path) -> None:
    network, line = load(nnunet, 2, orientation="LPI", orientation_of_files="")
    assert line == "init_from: 26 of 26 weights taken"
    hu = torch.empty(1, 1, 16, 8, 16).uniform_(-250, 450)  # x, y, z of files in RAS
    theirs = (hu.clamp(-50, 200) - 80) / 40
    expected = plain_conv_unet(nnunet_weights(), theirs.permute(0, 1, 3, 4, 2))  # y, z, x
    image = ((hu - WINDOW[0]) / (WINDOW[1] - WINDOW[0])).flip([2, 3, 4])  # LPI
    with torch.no_grad():
        logits = network(image).flip([2, 3, 4]).permute(0, 1, 3, 4, 2)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
