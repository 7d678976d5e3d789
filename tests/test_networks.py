"""Networks: the allow-list, patch sizes, cost, the planned network, Dice per patient."""

import math

import pytest
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet, UNet
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pancseg.config import conf_folder
from pancseg.errors import PancsegError
from pancseg.models import factory
from pancseg.models.factory import build
from pancseg.models.losses import deep_supervision_loss
from pancseg.models.metrics import PatientDice
from pancseg.models.network_checks import check_spatial_size, count_multiply_adds
from pancseg.models.resunet import ResUNet, plan_levels
from tests.conftest import compose

IO = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
NETS = "monai.networks.nets"
UNET = {"_target_": f"{NETS}.UNet", **IO, "channels": [16, 32, 64, 128, 256]}
UNET |= {"strides": [2, 2, 2, 2], "num_res_units": 2, "norm": "batch"}
SMALL = {
    "unet": ["model.channels=[4,4,4]", "model.strides=[2,2]"],
    "resunet": ["model.width=4", "model.max_levels=3", "model.deep_supervision=2"],
    "segresnet": ["model.init_filters=8", "model.blocks_down=[1,1]", "model.blocks_up=[1]"],
    "monai": [f"model._target_={NETS}.SegResNet", "+model.init_filters=8"],
}


class Operations(TorchDispatchMode):
    """Names of the operations that run while it is on."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args, kwargs=None):
        out = function(*args, **(kwargs or {}))
        is_float = isinstance(out, Tensor) and out.is_floating_point()
        if is_float or "cumsum" not in function.name():  # of integers it is deterministic
            self.names.append(function.name().removeprefix("aten::"))
        return out

    def starting_with(self, *starts):
        return [name for name in self.names if name.startswith(starts)]


def options(group):
    """Choices of a group but those that need ``init_from``."""
    names = [path.stem for path in sorted((conf_folder() / group).iterdir())]
    return [name for name in names if name not in ("pretrained", "finetune")]


def part_of(part, *words):
    return OmegaConf.to_container(compose("train", *words)[part], resolve=True)


@pytest.mark.parametrize("name", options("model"))
def test_every_network_takes_a_step(name):
    words = [f"model={name}", "data.spatial_size=[16,16,16]", *SMALL.get(name, [])]
    network = build(part_of("model", *words), nn.Module).train()
    value = loss_of(network, torch.rand(2, 1, 16, 16, 16))
    value.backward()
    assert torch.isfinite(value)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_a_default_that_loads_weights_is_refused():
    loading = {"_target_": f"{NETS}.EfficientNetBN", "model_name": "efficientnet-b0"}
    with pytest.raises(PancsegError, match=r"pretrained=True .*; give pretrained=false$"):
        build(loading, nn.Module)


def test_the_cost_of_a_convolution_is_that_by_hand():
    conv = {"_target_": "monai.networks.blocks.Convolution", **IO, "kernel_size": 3}
    network = factory.build_on_meta({**conv, "conv_only": True})
    assert factory.count_parameters(network) == 27 * 2 + 2
    assert count_multiply_adds(network, [8, 8, 8]) == 27 * 2 * 8**3
    recipe = factory.build_on_meta(UNET)
    assert factory.count_parameters(recipe) == 4_808_917


REFUSED = [
    ({"_target_": f"{NETS}.SegResNet", **IO}, [64, 64, 90],
     "axis 2 is 90, .*multiples of 8 from 8 on; .* 88 and 96$"),
    (UNET, [64, 64, 90], "axis 2 is 90, .* 80 and 96$"),
    ({**UNET, "out_channels": 3}, [32] * 3, r"logits of shape \[2, 3, 32, .*\[2, 2, 32"),
    ({**UNET, "chanels": [1]}, [32] * 3, r"nets\.UNet: .*chanels"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "size", "message"), REFUSED)
def test_a_size_or_network_that_does_not_work_is_refused(model, size, message):
    with pytest.raises(PancsegError, match=message):
        check_spatial_size(model, size)


def test_only_convolutions_over_short_axes_leave_bf16():
    network = UNet(3, 1, 2, (4, 8), (2,))
    names = list(network.state_dict())
    factory.use_cpu_layers(network)
    assert list(network.state_dict()) == names
    conv = next(module for module in network.modules() if isinstance(module, nn.Conv3d))
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.zeros(1, 1, 3, 3, 3)).dtype == torch.bfloat16
        assert conv(torch.zeros(1, 1, 3, 3, 2)).dtype == torch.float32


def test_instance_norm_on_a_cpu_keeps_the_channels_last_format():
    network = nn.Sequential(nn.InstanceNorm3d(3, affine=True))
    features = torch.rand(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)
    expected = network(features)
    factory.use_cpu_layers(network)
    assert network(features).is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(network(features), expected)


def test_dice_sums_voxels_over_a_patients_volumes_and_leaves_out_those_without_label():
    voxels = torch.tensor([[[2, 2, 4]], [[0, 1, 0]], [[1, 1, 1]], [[0, 1, 0]]])
    dice = PatientDice()  # of voxels in common, predicted and labelled
    dice.update(voxels, torch.tensor([7, 7, 9, 2]))
    assert dice.per_patient()[0].tolist() == pytest.approx([4 / 7, 1])
    assert dice.compute().item() == pytest.approx((4 / 7 + 1) / 2)
    for patient, expected in (([0, 0, 2], 0.0), ([0, 0, 0], math.nan)):
        dice = PatientDice()
        dice.update(torch.tensor([[patient]]), torch.tensor([1]))
        assert dice.compute().item() == pytest.approx(expected, nan_ok=True)


# the planned network

SIZE, SPACING_MM = (32, 32, 16), (1.5, 1.5, 1.0)


def tiny_resunet(**changes):
    torch.manual_seed(0)
    return ResUNet(SIZE, SPACING_MM, width=4, **changes)


def loss_of(network, image):
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    return deep_supervision_loss(loss, network.train()(image), (image > 0.5).float())


def test_levels_are_those_that_nnunet_published_for_the_pancreas():
    # Isensee et al. 2021, supplement: MSD Pancreas, patch 40 x 224 x 224, 2.5 x 0.8 x 0.8 mm
    strides, kernels = plan_levels([40, 224, 224], [2.5, 0.8, 0.8])
    assert strides == [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)]
    assert kernels == [(1, 3, 3)] + [(3, 3, 3)] * 5


@pytest.mark.parametrize("light", [False, True])
def test_training_returns_each_head_and_every_weight_has_a_gradient(light):
    network = tiny_resunet(deep_supervision=2, light_decoder=light)
    image = torch.rand(1, 1, *SIZE)
    decoder = [m.out_channels for m in network.upsamples.modules() if type(m) is nn.Conv3d]
    assert decoder == ([16, 8, 4] if light else [16, 16, 8, 8, 4, 4])
    heads = network.train()(image)
    assert [tuple(head.shape[2:]) for head in heads] == [SIZE, (16, 16, 8), (8, 8, 4)]
    torch.testing.assert_close(network.eval()(image), heads[0])
    loss_of(network, image).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("full_resolution", [True, False])
def test_an_untrained_network_predicts_its_prior(full_resolution):
    network = tiny_resunet(prior=0.01, deep_supervision=2, full_resolution=full_resolution)
    heads = network.train()(torch.rand(1, 1, *SIZE))
    assert heads[0].shape == (1, 2, *SIZE)
    assert network.filters[0] == (4 if full_resolution else 8)
    assert all(0.002 < logits.softmax(dim=1)[:, 1].mean() < 0.08 for logits in heads)


def test_logits_and_gradients_are_those_of_dynunet():
    network, image = tiny_resunet(), torch.rand(2, 1, *SIZE)
    strides, kernels = plan_levels(SIZE, SPACING_MM)
    filters = [4 * 2**level for level in range(len(strides))]
    expected = DynUNet(3, 1, 2, kernels, strides, strides[1:], filters=filters, res_block=True)
    assert not network.load_state_dict(expected.state_dict(), strict=False).missing_keys
    for model in (network, expected):
        loss_of(model, image).backward()
    gradients = {name: p.grad for name, p in expected.named_parameters()}
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)
    logits = expected.eval()(image)
    torch.testing.assert_close(network.eval()(image), logits, atol=1e-5, rtol=1e-5)
