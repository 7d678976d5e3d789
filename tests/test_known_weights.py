"""Weights that others published: nnU-Net v2, MONAI's model zoo, SuPreM."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pancseg.errors import PancsegError
from pancseg.models import known_weights
from pancseg.models.factory import build, build_on_meta
from pancseg.models.known_weights import RECORDS, KnownWeights
from pancseg.models.nnunet import architecture_of
from pancseg.models.pretrained import load_pretrained, network_arguments, open_weights
from tests.conftest import Command, smoke

WINDOW = (-300.0, 500.0)
KERNELS, STRIDES = [[1, 3, 3], [3, 3, 3], [3, 3, 3]], [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
KEYS: dict[str, Any] = {
    "kernel_sizes": KERNELS, "strides": STRIDES, "features_per_stage": [2, 4, 4], "n_stages": 3,
    "n_conv_per_stage_decoder": [1, 1], "conv_op": "torch.nn.Conv3d", "conv_bias": True,
    "norm_op": "torch.nn.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None, "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
}  # fmt: skip
PLAIN_KEYS, RESIDUAL_KEYS = (
    KEYS | {f"n_{depths}_per_stage": [1, 1, 1]} for depths in ("conv", "blocks")
)
PLAIN = {"network_class_name": "x.PlainConvUNet", "arch_kwargs": PLAIN_KEYS}
RESIDUAL = {"network_class_name": "x.ResidualEncoderUNet", "arch_kwargs": RESIDUAL_KEYS}
EARLY = {  # plans of nnU-Net's first versions
    "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 2, "unet_max_num_features": 4,
    "n_conv_per_stage_encoder": [1, 1, 1], "n_conv_per_stage_decoder": [1, 1],
    "conv_kernel_sizes": KERNELS, "pool_op_kernel_sizes": STRIDES,
}  # fmt: skip
HU = {"percentile_00_5": -50.0, "percentile_99_5": 200.0, "mean": 80.0, "std": 40.0}
DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "pancreas": 1, "ignore": 2}}
CONVS = {  # nnU-Net's names of blocks with the shapes of their convolutions
    "encoder.stages.0.0.convs.0": (2, 1, 1, 3, 3), "encoder.stages.1.0.convs.0": (4, 2, 3, 3, 3),
    "encoder.stages.2.0.convs.0": (4, 4, 3, 3, 3), "decoder.stages.0.convs.0": (4, 8, 3, 3, 3),
    "decoder.stages.1.convs.0": (2, 4, 1, 3, 3),
}  # fmt: skip
OTHERS = {
    "decoder.transpconvs.0": (4, 4, 2, 2, 2), "decoder.transpconvs.1": (4, 2, 1, 2, 2),
    "decoder.seg_layers.0": (2, 4, 1, 1, 1), "decoder.seg_layers.1": (2, 2, 1, 1, 1),
}  # fmt: skip


def nnunet_weights() -> dict[str, Tensor]:
    """Weights by all names that nnU-Net gives them, made of sines."""
    parts: dict[str, tuple[int, ...]] = {f"{k}.conv": shape for k, shape in CONVS.items()}
    parts |= {f"{name}.norm": shape[:1] for name, shape in CONVS.items()}
    tensors: dict[str, Tensor] = {}
    for name, shape in (parts | OTHERS).items():
        for kind, size in (("weight", shape), ("bias", shape["transp" in name :][:1])):
            numbers = torch.arange(float(math.prod(size))) + len(tensors)
            tensors[f"{name}.{kind}"] = numbers.sin().reshape(size)
    for part, other in ((".conv.", ".all_modules.0."), (".norm.", ".all_modules.1.")):
        tensors |= {k.replace(part, other): v for k, v in tensors.items() if part in k}
    return tensors | {f"decoder.{k}": v for k, v in tensors.items() if k.startswith("encoder")}


def save(path: Path, name: str = "Dataset1_Own", dataset: Any = DATASET, **change: Any) -> Path:
    """Save a checkpoint as nnU-Net does, with NumPy's numbers in it."""
    change = {"architecture": PLAIN, "normalization_schemes": ["CTNormalization"]} | change
    plans: dict[str, Any] = {
        "dataset_name": name, "transpose_forward": [1, 0, 2], "configurations": {
            "3d_fullres": {"patch_size": [8, 16, 16], "spacing": [3.0, 1.0, 2.0], **change},
            "bs4": {"inherits_from": "3d_fullres"},
        }, "foreground_intensity_properties_per_channel": {"0": HU},
    }  # fmt: skip
    arguments = {"plans": plans, "configuration": "bs4", "dataset_json": dataset}
    content = {"network_weights": nnunet_weights(), "init_args": arguments, "current_epoch": 3}
    torch.save(content | {"logging": {"dice": [np.float64(0.5)]}, "_best": np.float32(1)}, path)
    return path


def load(path: Path, classes: int = 2, codes: str = "RAS", **choice: Any) -> tuple[Any, str]:
    """A network with the weights of a file, in evaluation mode, and the line about them."""
    built = network_arguments(path, {"network": {}, "orientation": None} | choice, codes, WINDOW)
    network = build(built | {"out_channels": classes}, nn.Module).eval()
    return network, load_pretrained(network, open_weights(path))


def test_nnunet_gives_its_logits_for_the_same_patient_in_other_axes(tmp_path: Path) -> None:
    network, line = load(path := save(tmp_path / "x.pth"), 2, "LPI")
    hu = torch.arange(16.0 * 8 * 16).reshape(1, 1, 16, 8, 16).mul(0.7).sin() * 300 + 100  # RAS
    image = ((hu - WINDOW[0]) / (WINDOW[1] - WINDOW[0])).flip([2, 3, 4])
    logits = network(image).flip([2, 3, 4]).permute(0, 1, 3, 4, 2)  # y, z, x
    # of the PlainConvUNet of dynamic-network-architectures 0.4.4
    for voxel, expected in {(3, 5, 7): [1.9272, -0.4033], (0, 15, 15): [1.7681, -0.2980]}.items():
        assert logits[(0, slice(None), *voxel)].tolist() == pytest.approx(expected, abs=1e-4)
    turned, _ = load(path, 2, "LPI", orientation="LPI")
    torch.testing.assert_close(turned(image.flip([2, 3, 4])).flip([2, 3, 4]), network(image))
    assert line == "init_from: 26 of 26 weights taken"
    assert architecture_of({"architecture": PLAIN}) == architecture_of(EARLY)


def test_a_head_of_other_classes_is_new_and_unknown_weights_are_named(tmp_path: Path) -> None:
    network, line = load(path := save(tmp_path / "x.pth"), 3)
    assert network(torch.rand(1, 1, 16, 8, 16)).shape[1] == 3
    assert re.search("24 of 26 weights taken, new: network.decoder.seg_layers.1.bias, ", line)
    labels = {"background": 0, "organ": [1, 2], "tumour": 2}
    regions = DATASET | {"labels": labels, "regions_class_order": [1, 2]}
    assert "new: " in load(save(path, dataset=regions))[1]
    with pytest.raises(PancsegError, match=r"no nnU-Net v2: unknown, .*0\.0\.convs\.0\."):
        load(save(path, architecture=RESIDUAL))
    names = build_on_meta(architecture_of({"architecture": RESIDUAL})).state_dict()
    parts = ("stem.convs.0.conv", "stages.2.blocks.0.conv2.norm", "stages.1.blocks.0.skip.1.conv")
    assert {f"encoder.{part}.weight" for part in parts} <= set(names)


def test_other_plans_are_refused(tmp_path: Path) -> None:
    batch_norm = PLAIN | {"arch_kwargs": PLAIN_KEYS | {"norm_op": "torch.nn.BatchNorm3d"}}
    with pytest.raises(PancsegError, match="nnU-Net with norm_op=BatchNorm3d is not supported"):
        open_weights(save(tmp_path / "x.pth", architecture=batch_norm))
    with pytest.raises(PancsegError, match="nnU-Net with ZScore of 1 channels: expected CTN"):
        open_weights(save(tmp_path / "x.pth", normalization_schemes=["ZScore"]))


def test_a_record_gives_licence_and_settings(tmp_path: Path) -> None:
    record: Any = open_weights(save(tmp_path / "x.pth", "Dataset551_Totalseg251")).record
    assert "; licence: CC BY 4.0" in str(record)
    assert record.differences("RAS", (2.0, 3.0, 1.0), (-50, 200)) == ""
    settings = "data.spacing_mm=[1.0,3.0,2.0] data.window_hu=[-50,200]"
    assert record.differences("SAR", (1.0, 1.0, 1.0), (0, 200)) == settings


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_weights_in_the_form_of_their_publisher_give_equal_logits(
    record: KnownWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = build_on_meta(record.model | {"out_channels": 105}).state_dict()
    assert all(tuple(own[name].shape) == shape for name, shape in record.recognised_by.items())
    small = record.model | ({"feature_size": 12} if "Swin" in record.name else {"init_filters": 8})
    theirs: Any = build(small | {"out_channels": 4}, nn.Module).eval()
    content, prefix = theirs.state_dict(), "module." + "backbone." * ("Swin" in record.name)
    shapes = {name: tuple(content[name].shape) for name in record.recognised_by}
    tiny = replace(record, model=small, recognised_by=shapes, has_background=True)
    monkeypatch.setattr(known_weights, "RECORDS", (tiny,))
    if record.wrapper:
        content = {f"{prefix}{name}": value for name, value in content.items()}
        content = {"net": content | {"module.GAP.0.bias": torch.ones(1)}}
    torch.save(content, path := tmp_path / "weights.pth")
    hu = torch.empty(1, 1, 64, 32, 32).uniform_(*WINDOW)
    (low, high), (first, last) = record.window_hu, record.values
    expected = theirs((hu.clamp(low, high) - low) / (high - low) * (last - first) + first)
    logits = load(path, 4)[0]((hu - WINDOW[0]) / (WINDOW[1] - WINDOW[0]))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_a_frozen_encoder_is_released(prepared: Path, tmp_path: Path, command: Command) -> None:
    choice = ["model=pretrained", f"init_from={save(tmp_path / 'x.pth')}", "model.freeze=encoder"]
    words = smoke(prepared, tmp_path / "run", *choice, "model.freeze_epochs=1", "ckpt_path=last")
    for epochs in (1, 2):
        ended = command("train", *words, f"trainer.max_epochs={epochs}")
        warned = "weights give data.spacing_mm=[2.0,3.0,1.0]" in ended.out
        assert (ended.code, warned) == (0, epochs == 1)
        file = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
        for name in ("encoder.stages.0.0.convs.0.conv.weight", "decoder.transpconvs.1.bias"):
            weight = file["state_dict"][f"network.network.{name}"]
            is_frozen = epochs == 1 and name.startswith("encoder")
            assert torch.equal(weight, nnunet_weights()[name]) == is_frozen
