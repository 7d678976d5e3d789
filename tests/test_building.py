"""Building from plain values, and what is refused."""

import pytest
import torch
from torch import nn

from pancseg.errors import PancsegError
from pancseg.learning.building import build, check_spatial_size, count_parameters

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
        "os.system", "builtins.eval", "torch.load", "subprocess.Popen", "pancseg.atomic.os.system",
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


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        (90, "80 and 96"),
        (100, "96 and 112"),
        (65, "64 and 80"),
        (16, "32 and 48"),
        (1, "32 and 48"),
    ],
)
def test_a_size_the_network_cannot_take_names_axis_and_neighbours(
    axis: int, size: int, nearest: str
) -> None:
    spatial_size = [64, 64, 64]
    spatial_size[axis] = size
    with pytest.raises(PancsegError, match=f"axis {axis} is {size}, .* {nearest}$"):
        check_spatial_size(UNET, spatial_size)


@pytest.mark.parametrize("size", [32, 64, 80, 96, 128])
def test_the_network_takes_every_size_that_is_let_through(size: int) -> None:
    check_spatial_size(UNET, [32, 32, size])
    small = build({**UNET, "channels": [2, 2, 2, 2, 2], "num_res_units": 0}, nn.Module)
    assert small(torch.zeros(1, 1, 32, 32, size)).shape == (1, 2, 32, 32, size)


def test_strides_that_differ_by_axis_are_counted_by_axis() -> None:
    flat = {**UNET, "strides": [[2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]]}
    check_spatial_size(flat, [32, 32, 12])
    with pytest.raises(PancsegError, match=r"axis 2 is 10, .* 8 and 12$"):
        check_spatial_size(flat, [32, 32, 10])
