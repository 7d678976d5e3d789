"""Networks: the allow-list, patch sizes, cost, bfloat16, the planned network, Dice per patient."""

import copy

import pytest
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet, SegResNet, UNet
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pancseg.config import conf_folder
from pancseg.errors import PancsegError
from pancseg.models import factory
from pancseg.models.factory import build
from pancseg.models.losses import deep_supervision_loss
from pancseg.models.metrics import PatientDice, batch_dice, count_voxels
from pancseg.models.network_checks import check_spatial_size, count_multiply_adds
from pancseg.models.resunet import ResUNet, plan_levels
from tests.conftest import compose

IO = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
NETS = "monai.networks.nets"
UNET = {"_target_": f"{NETS}.UNet", **IO, "channels": [16, 32, 64, 128, 256]}
UNET |= {"strides": [2, 2, 2, 2], "num_res_units": 2, "norm": "batch"}
UNETR = {"_target_": f"{NETS}.UNETR", "in_channels": 1, "out_channels": 2, "hidden_size": 48}
UNETR |= {"num_heads": 4, "img_size": [60, 64, 64]}
RESUNET = {"_target_": "pancseg.models.resunet.ResUNet", "spacing_mm": [1] * 3}
RESUNET |= {"spatial_size": [16] * 3}
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


def model_of(*words, size):
    return part_of("model", f"data.spatial_size=[{','.join(map(str, size))}]", *words)


@pytest.mark.parametrize("name", options("model"))
def test_every_network_takes_a_step(name):
    model = model_of(f"model={name}", *SMALL.get(name, []), size=(16, 16, 16))
    network = build(model, nn.Module).train()
    value = loss_of(network, torch.rand(2, 1, 16, 16, 16))
    value.backward()
    assert torch.isfinite(value)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_a_default_that_loads_weights_is_refused_and_numbers_named_weights_are_not():
    loading = {"_target_": f"{NETS}.EfficientNetBN", "model_name": "efficientnet-b0"}
    with pytest.raises(PancsegError, match=r"pretrained=True .*; give pretrained=false$"):
        build(loading, nn.Module)
    heads = {"_target_": "monai.losses.ds_loss.DeepSupervisionLoss", "loss": None}
    assert build({**heads, "weights": [0.5, 0.5]}, nn.Module)


# cost and patch sizes


def test_the_cost_of_a_convolution_is_that_by_hand():
    conv = {"_target_": "monai.networks.blocks.Convolution", **IO, "kernel_size": 3}
    network = factory.build_on_meta({**conv, "conv_only": True})
    assert factory.count_parameters(network) == 27 * 2 + 2
    assert count_multiply_adds(network, [8, 8, 8]) == 27 * 2 * 8**3
    recipe = factory.build_on_meta(UNET)
    assert factory.count_parameters(recipe) == 4_808_917


ODD = {**UNET, "strides": [[2, 2, 1], [2, 2, 1], 2, 2]}
LISTS = {"_target_": f"{NETS}.BasicUNetPlusPlus", **IO, "features": [4] * 6}
REFUSED = [
    ({"_target_": f"{NETS}.SegResNet", **IO}, [64, 64, 90],
     "axis 2 is 90, .*multiples of 8 from 8 on; .* 88 and 96$"),
    (UNETR, [60, 64, 64], "axis 0 is 60, .*multiples of 16 from 16 on; .* 48 and 64$"),
    ({**UNET, "out_channels": 3}, [32] * 3, r"logits of shape \[2, 3, 32, .*\[2, 2, 32"),
    ({**UNET, "in_channels": 4}, [32] * 3, "this network does not take it: .*channel"),
    (LISTS, [32] * 3, "gives logits in a list"),
    (UNET, [128, 128], "expected three sizes"),
    ({**RESUNET, "spatial_size": [8] * 3}, [8] * 3, r"a patch of \[8, 8, 8\] .* expected 3"),
    ({**RESUNET, "prior": 1.0, "width": 0}, [16] * 3, r"width=0, .* prior=1\.0: expected"),
    (UNET, [64, 64, 90], "axis 2 is 90, .* 80 and 96$"),
    (UNET, [1, 64, 64], "axis 0 is 1, .* 32 and 48$"),
    (ODD, [32, 32, 10], "axis 2.* 8 and 12$"),
    ({**UNET, "chanels": [1]}, [32] * 3, r"nets\.UNet: .*chanels"),
    ({"_target_": "???"}, [32] * 3, r"^_target_=\?\?\?: give one, .*a Module .*$"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "size", "message"), REFUSED)
def test_a_size_or_network_that_does_not_work_is_refused(model, size, message):
    before = torch.get_rng_state()
    with pytest.raises(PancsegError, match=message):
        check_spatial_size(model, size)
    assert torch.equal(before, torch.get_rng_state())


# devices


def gradient(conv, image, bf16):
    conv.zero_grad()
    for power in range(4, 20):  # leaves NaN in freed memory
        del [torch.full((2**power,), torch.nan) for _ in range(6)][:]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        conv(image).float().square().mean().backward()
    return conv.weight.grad.clone()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4, 1), (1, 1, 1)])
def test_a_bf16_gradient_over_short_axes_is_near_that_in_float32(shape, stride):
    torch.manual_seed(0)
    conv = nn.Conv3d(16, 16, 3, stride=stride, padding=1)
    image = torch.randn(2, 16, *shape).to(torch.bfloat16).float()
    exact = gradient(conv, image, bf16=False)
    factory.fix_short_axes(conv)
    for _ in range(3):
        error = gradient(conv, image, bf16=True) - exact
        assert error.abs().max() < 0.05 * exact.abs().max()


def test_only_short_axes_leave_bf16_and_a_copy_of_the_network_has_its_own_weights():
    conv = factory.ShortAxisConv3d(1, 2, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.zeros(1, 1, 3, 3, 3)).dtype == torch.bfloat16
        assert conv(torch.zeros(1, 1, 3, 3, 2)).dtype == torch.float32
    network, image = UNet(3, 1, 2, (4, 8), (2,)), torch.randn(1, 1, 4, 4, 4)
    names, before = list(network.state_dict()), network(image)
    factory.fix_short_axes(network)
    assert list(network.state_dict()) == names and torch.equal(network(image), before)
    other = copy.deepcopy(network)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert not other(image).any() and torch.equal(network(image), before)


def test_channels_last_is_for_cpus_and_for_networks_without_instance_norm():
    resunet = build(model_of("model=resunet", *SMALL["resunet"], size=(16, 16, 16)), nn.Module)
    networks = UNet(3, 1, 2, (4, 8), (2,), norm="batch"), resunet, SegResNet(init_filters=8)
    for device, expected in (("cpu", [True] * 3), ("cuda", [True, False, False])):
        assert [factory.use_channels_last(network, device) for network in networks] == expected


# Dice per patient


def dice_of(*samples):
    """The metric after samples of prediction, label and patient."""
    dice = PatientDice()
    for prediction, label, patient in samples:
        masks = torch.tensor([[[prediction]], [[label]]])
        dice.update(count_voxels(*masks), torch.tensor([patient]))
    return dice


def test_dice_sums_voxels_over_a_patients_volumes_and_leaves_out_those_without_label():
    empty, first = [0, 0, 0, 0], [1, 0, 0, 0]
    dice = dice_of(
        ([1, 1, 0, 0], [1, 1, 1, 1], 7),  # 2 in common, of 2 and 4
        (first, empty, 7),  # 0 in common, of 1 and 0
        (first, first, 9),
        (first, empty, 2),
    )
    assert dice.per_patient()[0].tolist() == pytest.approx([4 / 7, 1])
    assert dice.compute().item() == pytest.approx((4 / 7 + 1) / 2)
    assert dice_of((empty, [1, 1, 0, 0], 1)).compute() == 0
    assert torch.isnan(dice_of((empty, empty, 2)).compute())
    assert batch_dice(torch.zeros(2, 1, 3)) == 1
    assert batch_dice(torch.tensor([[[1, 2, 1]]])) == 2 / 3


# the planned network

SIZE, SPACING_MM = (32, 32, 16), (1.5, 1.5, 1.0)


def tiny_resunet(**changes):
    torch.manual_seed(0)
    return ResUNet(SIZE, SPACING_MM, width=4, **{"deep_supervision": 0, **changes})


def loss_of(network, image):
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    return deep_supervision_loss(loss, network.train()(image), (image > 0.5).float())


def test_levels_are_those_that_nnunet_published_for_the_pancreas():
    # Isensee et al. 2021, supplement: MSD Pancreas, patch 40 x 224 x 224, 2.5 x 0.8 x 0.8 mm
    strides, kernels = plan_levels([40, 224, 224], [2.5, 0.8, 0.8])
    assert strides == [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)]
    assert kernels == [(1, 3, 3)] + [(3, 3, 3)] * 5
    assert len(plan_levels([128, 128, 128], [1.0, 1.0, 1.0], max_levels=3)[0]) == 3


def test_training_returns_each_head_and_every_weight_has_a_gradient_and_one_name():
    network, image = tiny_resunet(deep_supervision=2), torch.rand(1, 1, *SIZE)
    heads = network.train()(image)
    assert [tuple(head.shape[2:]) for head in heads] == [SIZE, (16, 16, 8), (8, 8, 4)]
    torch.testing.assert_close(network.eval()(image), heads[0])
    assert isinstance(tiny_resunet().train()(image), Tensor)
    loss_of(network, image).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    state = network.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert copy.deepcopy(network).train()(image)


@pytest.mark.parametrize("full_resolution", [True, False])
@pytest.mark.parametrize(("prior", "least", "most"), [(0.01, 0.002, 0.08), (0.5, 0.3, 0.7)])
def test_an_untrained_network_predicts_its_prior(prior, least, most, full_resolution):
    network = tiny_resunet(prior=prior, deep_supervision=2, full_resolution=full_resolution)
    heads = network.train()(torch.rand(1, 1, *SIZE))
    assert heads[0].shape == (1, 2, *SIZE)
    assert network.filters[0] == (4 if full_resolution else 8)
    assert all(least < logits.softmax(dim=1)[:, 1].mean() < most for logits in heads)


def test_gradient_checkpointing_gives_the_same_gradients():
    image, gradients = torch.rand(2, 1, *SIZE), []
    for use_checkpoint in (False, True):
        network = tiny_resunet(use_checkpoint=use_checkpoint, dropout=0.2)
        torch.manual_seed(1)
        loss_of(network, image).backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_it_computes_as_dynunet_without_clones():
    network, image = tiny_resunet(), torch.rand(2, 1, *SIZE)
    strides, kernels = plan_levels(SIZE, SPACING_MM)
    filters = [4 * 2**level for level in range(len(strides))]
    expected = DynUNet(3, 1, 2, kernels, strides, strides[1:], filters=filters, res_block=True)
    assert not network.load_state_dict(expected.state_dict(), strict=False).missing_keys
    for model, is_copied in ((network, False), (expected, True)):  # MONAI's works in place
        loss = loss_of(model, image)
        with Operations() as operations:
            loss.backward()
        assert ("clone" in operations.names) is is_copied
    gradients = {name: p.grad for name, p in expected.named_parameters()}
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)
    logits = network.eval()(image)
    torch.testing.assert_close(logits, expected.eval()(image), atol=1e-5, rtol=1e-5)
    last = network.to(memory_format=torch.channels_last_3d)
    after = last(image.to(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(after, logits, atol=1e-4, rtol=1e-4)
