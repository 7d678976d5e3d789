"""Building from plain values, and what is refused."""

import pytest
from torch import nn

from pancseg.errors import PancsegError
from pancseg.learning.building import build, count_parameters, find_class

UNET = {
    "_target_": "monai.networks.nets.UNet", "spatial_dims": 3, "in_channels": 1,
    "out_channels": 2, "channels": [16, 32, 64, 128, 256], "strides": [2, 2, 2, 2],
    "num_res_units": 2, "norm": "batch",
}  # fmt: skip


def test_the_recipes_network_has_its_number_of_parameters() -> None:
    assert count_parameters(build(UNET, nn.Module)) == 4_808_917


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "builtins.eval", "torch.load", "subprocess.Popen", "pancseg.files.os.system",
        "pancseg.command.run", "monai.networks.nets.unet.torch.load", "torch.optim", "",
        "monai.networks.nets.NoSuchNet", "monai.networks.nowhere.Net", "torch.nn.Linear",
        "monai.networks_evil.Net", "pancseg.errors.PancsegError",
    ],
)  # fmt: skip
def test_only_classes_of_the_allowed_libraries_are_built(target: str) -> None:
    with pytest.raises(PancsegError, match=r"not allowed; expected a Module of monai\.networks"):
        build({"_target_": target, "command": "false"}, nn.Module)


def test_an_unknown_argument_is_told_with_the_class() -> None:
    with pytest.raises(PancsegError, match=r"nets\.UNet: .*chanels"):
        build({**UNET, "chanels": [1]}, nn.Module)


def test_a_target_that_was_not_given_is_said_in_one_line() -> None:
    with pytest.raises(PancsegError, match=r"^_target_ is not given; expected a Module .*$"):
        build({"_target_": "???", "spatial_dims": 3}, nn.Module)


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("nets.FlexibleUNet", "pretrained", True),
        ("nets.HoVerNet", "pretrained_url", "https://example.org/weights.pth"),
        ("nets.resnet.ResNetFeatures", "pretrained", "weights.pth"),
        ("nets.TorchVisionFCModel", "weights", "DEFAULT"),
        ("nets.Transchex", "path_or_repo_id", "somebody/model"),
        ("nets.cell_sam_wrapper.CellSamWrapper", "checkpoint", "weights.pth"),
    ],
)
def test_a_network_that_would_load_weights_is_refused(name: str, argument: str, value: str) -> None:
    with pytest.raises(PancsegError, match=f"{argument}={value} would load weights"):
        build({"_target_": f"monai.networks.{name}", argument: value}, nn.Module)


def test_a_default_that_would_load_weights_is_refused_until_it_is_switched_off() -> None:
    node = {"_target_": "monai.networks.nets.EfficientNetBN", "model_name": "efficientnet-b0"}
    with pytest.raises(PancsegError, match=r"pretrained=True .*; give pretrained=false$"):
        build(node, nn.Module)
    assert build({**node, "pretrained": False}, nn.Module)


def test_an_argument_that_only_sounds_like_a_file_is_taken() -> None:
    node = {"_target_": "monai.losses.ds_loss.DeepSupervisionLoss", "loss": None}
    assert build({**node, "weights": [0.5, 0.5]}, nn.Module)


def test_what_a_constructor_raises_becomes_one_line() -> None:
    short = {**UNET, "_target_": "monai.networks.nets.DynUNet", "kernel_size": 3}
    with pytest.raises(PancsegError, match=r"nets\.DynUNet: [^\n]+$"):
        build(short, nn.Module)


def test_only_a_class_is_found() -> None:
    assert find_class("monai.networks.nets.UNet") is not None
    assert find_class("monai.networks.nets") is None
