"""Gradients of bfloat16 convolutions on images shorter than their kernel."""

import copy

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from pancseg.learning.short_axes import CarefulConv3d, convolve_carefully


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
def test_a_kernels_gradient_in_bf16_is_near_the_one_in_full_precision(
    shape: tuple[int, int, int], stride: int
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(16, 16, 3, stride=stride, padding=1)
    image = torch.randn(2, 16, *shape).to(torch.bfloat16).float()
    exact = gradient(conv, image, bf16=False)
    convolve_carefully(conv)
    for _ in range(3):
        found = gradient(conv, image, bf16=True)
        assert (found - exact).abs().max() < 0.05 * exact.abs().max()


def test_only_short_images_leave_bf16() -> None:
    conv = CarefulConv3d(1, 2, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.zeros(1, 1, 3, 3, 3)).dtype == torch.bfloat16
        assert conv(torch.zeros(1, 1, 3, 3, 2)).dtype == torch.float32


def test_a_careful_network_and_its_copy_keep_names_and_each_its_own_weights() -> None:
    network = UNet(3, 1, 2, (4, 8), (2,))
    names = list(network.state_dict())
    image = torch.randn(1, 1, 4, 4, 4)
    before = network(image)
    convolve_carefully(network)
    assert list(network.state_dict()) == names
    assert torch.equal(network(image), before)
    other = copy.deepcopy(network)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert not other(image).any()
    assert torch.equal(network(image), before)
