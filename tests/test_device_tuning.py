"""Layers: bfloat16 convolutions over short axes, memory formats."""

import copy

import pytest
import torch
from monai.networks.nets import SegResNet, UNet
from torch import nn

from pancseg.models.factory import ShortAxisConv3d, fix_short_axes, use_channels_last
from tests.test_resunet import tiny_resunet


def leave_nan_in_freed_memory() -> None:
    for power in range(4, 20):
        del [torch.full((2**power,), torch.nan) for _ in range(6)][:]


def gradient(conv: nn.Conv3d, image: torch.Tensor, bf16: bool) -> torch.Tensor:
    conv.zero_grad()
    leave_nan_in_freed_memory()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        conv(image).float().square().mean().backward()
    assert conv.weight.grad is not None
    return conv.weight.grad.clone()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "shape", [(2, 4, 4), (2, 2, 2), (4, 4, 1), (4, 1, 4), (1, 1, 1), (4, 4, 4)]
)
def test_a_gradient_in_bf16_is_near_that_in_float32(
    shape: tuple[int, int, int], stride: int
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(16, 16, 3, stride=stride, padding=1)
    image = torch.randn(2, 16, *shape).to(torch.bfloat16).float()
    exact = gradient(conv, image, bf16=False)
    fix_short_axes(conv)
    for _ in range(3):
        found = gradient(conv, image, bf16=True)
        assert (found - exact).abs().max() < 0.05 * exact.abs().max()


def test_only_short_axes_leave_bf16() -> None:
    conv = ShortAxisConv3d(1, 2, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.zeros(1, 1, 3, 3, 3)).dtype == torch.bfloat16
        assert conv(torch.zeros(1, 1, 3, 3, 2)).dtype == torch.float32


def test_a_fixed_network_and_its_copy_keep_names_and_their_own_weights() -> None:
    network = UNet(3, 1, 2, (4, 8), (2,))
    names = list(network.state_dict())
    image = torch.randn(1, 1, 4, 4, 4)
    before = network(image)
    fix_short_axes(network)
    assert list(network.state_dict()) == names
    assert torch.equal(network(image), before)
    other = copy.deepcopy(network)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert not other(image).any()
    assert torch.equal(network(image), before)


def test_channels_last_is_for_cpus_and_for_networks_without_instance_norm() -> None:
    batch_norm = UNet(3, 1, 2, (4, 8), (2,), norm="batch")
    instance_norm, group_norm = tiny_resunet(), SegResNet(init_filters=8, blocks_down=(1, 1))
    for network in (batch_norm, instance_norm, group_norm):
        assert use_channels_last(network, "cpu")
    assert use_channels_last(batch_norm, "cuda")
    assert not use_channels_last(instance_norm, "cuda")
    assert not use_channels_last(group_norm, "cuda")
