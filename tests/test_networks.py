"""Networks: every choice trains with every loss, patches that fit, planning, deep supervision."""

import copy
import functools
import re
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from pancseg.configuration import conf_folder, register_resolvers
from pancseg.errors import PancsegError
from pancseg.learning import memory_advice, network_cost, network_sizes
from pancseg.learning.building import build
from pancseg.learning.deep_supervision import deep_supervision_loss
from pancseg.learning.network_sizes import check_spatial_size
from pancseg.learning.resunet import ResUNet, plan_levels

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
IO = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
UNET = {
    "_target_": "monai.networks.nets.UNet", **IO, "channels": [16, 32, 64, 128, 256],
    "strides": [2, 2, 2, 2], "num_res_units": 2, "norm": "batch",
}  # fmt: skip
LOSS = {"_target_": "monai.losses.DiceCELoss", "to_onehot_y": True, "softmax": True}
SMALL = {
    "unet": ["model.channels=[4,4,4]", "model.strides=[2,2]"],
    "resunet": ["model.width=4", "model.max_levels=3", "model.deep_supervision=2"],
    "segresnet": ["model.init_filters=8", "model.blocks_down=[1,1]", "model.blocks_up=[1]"],
    "monai": [
        "model._target_=monai.networks.nets.AttentionUnet",
        "+model.channels=[4,4]",
        "+model.strides=[2]",
    ],
}
# the commands of docs/models.md, made small
SMALLER = {
    "AttentionUnet": (["model.channels=[4,4,4]", "model.strides=[2,2]"], [16, 16, 16]),
    "MedNeXt": (["model.init_filters=4", "model.kernel_size=3"], [32, 16, 16]),
    "SwinUNETR": (["model.feature_size=12", "+model.depths=[1,1,1,1]"], [64, 32, 32]),
}


def options(group: str) -> list[str]:
    return [path.stem for path in sorted((conf_folder() / group).iterdir())]


@functools.cache
def part_of(part: str, *words: str) -> dict[str, Any]:
    """A part of the configuration, composed as a user's command line."""
    register_resolvers()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        node = OmegaConf.to_container(hydra.compose("train", list(words))[part], resolve=True)
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def model_of(*words: str, size: tuple[int, int, int] = (16, 16, 16)) -> dict[str, Any]:
    """A network for patches of a size."""
    return part_of("model", f"data.spatial_size=[{','.join(map(str, size))}]", *words)


def step(model: dict[str, Any], loss: nn.Module, size: list[int]) -> None:
    """One forward and backward pass: the loss is a number, and weights have gradients."""
    torch.manual_seed(0)
    network = build(model, nn.Module).train()
    label = torch.zeros(2, 1, *size)
    label[..., : size[2] // 2] = 1
    value = deep_supervision_loss(loss, network(torch.rand(2, 1, *size)), label)
    value.backward()
    assert torch.isfinite(value)
    gradients = [one.grad for one in network.parameters() if one.grad is not None]
    assert any(one.abs().max() > 0 for one in gradients)


@pytest.mark.parametrize("loss", options("loss"))
@pytest.mark.parametrize("name", options("model"))
def test_every_network_takes_a_step_with_every_loss(name: str, loss: str) -> None:
    built = build(part_of("loss", f"loss={loss}"), nn.Module)
    step(model_of(f"model={name}", *SMALL.get(name, [])), built, [16, 16, 16])


def commands() -> dict[str, list[str]]:
    """Network by class name: the words of its command line in docs/models.md."""
    lines = re.findall(r"^    .*(model=monai .+)$", PAGE.read_text(), flags=re.MULTILINE)
    return {line.split()[1].rpartition(".")[2]: line.split() for line in lines}


@pytest.mark.parametrize("name", commands())
def test_the_command_lines_of_the_page_train(name: str) -> None:
    small, size = SMALLER[name]
    step(model_of(*commands()[name], *small), build(LOSS, nn.Module), size)


# sizes


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


@pytest.mark.parametrize(
    ("model", "size", "says"),
    [
        ({"_target_": "monai.networks.nets.SegResNet", **IO}, [64, 64, 90],
         "axis 2 is 90, .*multiples of 8 from 8 on; .* 88 and 96$"),
        ({"_target_": "monai.networks.nets.MedNeXt", **IO, "init_filters": 4}, [64, 90, 64],
         "axis 1 is 90, .*multiples of 16 from 16 on; .* 80 and 96$"),
        ({"_target_": "monai.networks.nets.UNETR", "in_channels": 1, "out_channels": 2,
          "img_size": [60, 64, 64]}, [60, 64, 64],
         "axis 0 is 60, .*multiples of 16 from 16 on; .* 48 and 64$"),
    ],
)  # fmt: skip
def test_the_rule_of_a_network_without_strides_is_found_by_trying(
    model: dict[str, Any], size: list[int], says: str
) -> None:
    with pytest.raises(PancsegError, match=says):
        check_spatial_size(model, size)


def test_a_planned_network_takes_the_neighbours_that_it_is_said_to_take() -> None:
    def planned(size: int) -> None:
        check_spatial_size(model_of("model=resunet", size=(64, 64, size)), [64, 64, size])

    with pytest.raises(PancsegError, match=r"axis 2 is 90, .* 80 and 96$"):
        planned(90)
    planned(80)
    planned(96)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"out_channels": 3}, r"gives logits of shape \[2, 3, 32, .*; expected \[2, 2, 32"),
        ({"in_channels": 4}, "this network does not take it: .*channel"),
        ({"channels": [16]}, "nets.UNet: "),
    ],
)
def test_a_network_that_does_not_give_two_logits_a_voxel_is_refused(
    change: dict[str, Any], says: str
) -> None:
    with pytest.raises(PancsegError, match=says):
        check_spatial_size({**UNET, **change}, [32, 32, 32])


class LooksAtValues(nn.Conv3d):
    """Cannot be tried without values."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) * image.max().item()


def test_a_network_that_looks_at_values_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    network = LooksAtValues(1, 2, 1, device="meta")
    for room in (network_sizes, network_cost):
        monkeypatch.setattr(room, "build_on_meta", lambda model: network)
    check_spatial_size({}, [32, 32, 32])
    assert memory_advice.tell_cost({}, [32, 32, 32], 1, "cpu") is None


def test_a_network_with_several_outputs_in_evaluation_is_refused() -> None:
    node = {"_target_": "monai.networks.nets.BasicUNetPlusPlus", **IO, "features": [4] * 6}
    with pytest.raises(PancsegError, match="several outputs in evaluation"):
        check_spatial_size(node, [32, 32, 32])


def test_checking_a_size_leaves_the_random_numbers_alone() -> None:
    node = {"_target_": "monai.networks.nets.DiNTS"}  # is built with values before it is refused
    before = torch.get_rng_state()
    check_spatial_size(UNET, [32, 32, 32])
    with pytest.raises(PancsegError):
        check_spatial_size(node, [32, 32, 32])
    assert torch.equal(before, torch.get_rng_state())


# the planned network


def test_levels_are_those_that_nnunet_published_for_the_pancreas() -> None:
    # Isensee et al. 2021, supplement: MSD Pancreas, patch 40 x 224 x 224, 2.5 x 0.8 x 0.8 mm
    strides, kernels = plan_levels([40, 224, 224], [2.5, 0.8, 0.8])
    assert strides == [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)]
    assert kernels == [(1, 3, 3)] + [(3, 3, 3)] * 5


def test_a_kernel_that_became_wide_stays_wide() -> None:
    _, kernels = plan_levels([128, 128, 16], [1.5, 1.5, 1.0])
    assert set(kernels) == {(3, 3, 3)}


def test_levels_end_where_they_are_told_to() -> None:
    strides, kernels = plan_levels([128, 128, 128], [1.0, 1.0, 1.0], max_levels=3)
    assert strides == [(1, 1, 1), (2, 2, 2), (2, 2, 2)]
    assert len(kernels) == 3


def tiny_resunet(**changes: Any) -> ResUNet:
    torch.manual_seed(0)
    return ResUNet([32, 32, 16], [1.5, 1.5, 1.0], width=4, **changes)


def test_training_gives_each_head_at_its_own_resolution_and_evaluation_one_answer() -> None:
    network, image = tiny_resunet(), torch.rand(1, 1, 32, 32, 16)
    heads = network.train()(image)
    assert [tuple(one.shape[2:]) for one in heads] == [(32, 32, 16), (16, 16, 8), (8, 8, 4)]
    answer = network.eval()(image)
    assert isinstance(answer, Tensor)
    torch.testing.assert_close(answer, heads[0])
    assert isinstance(tiny_resunet(deep_supervision=0).train()(image), Tensor)


def test_an_untrained_planned_network_sees_little_foreground_at_every_resolution() -> None:
    image = torch.rand(1, 1, 32, 32, 16)
    for prior, least, most in ((0.01, 0.002, 0.08), (0.5, 0.3, 0.7)):
        for logits in tiny_resunet(prior=prior).train()(image):
            assert least < logits.softmax(dim=1)[:, 1].mean() < most


def test_every_weight_of_the_planned_network_learns_and_has_one_name() -> None:
    network = tiny_resunet()
    label = (torch.rand(1, 1, 32, 32, 16) > 0.5).float()
    logits = network.train()(torch.rand(1, 1, 32, 32, 16))
    deep_supervision_loss(build(LOSS, nn.Module), logits, label).backward()
    assert [name for name, one in network.named_parameters() if one.grad is None] == []
    state = network.state_dict()
    assert len({one.data_ptr() for one in state.values()}) == len(state)
    assert copy.deepcopy(network).train()(torch.rand(1, 1, 32, 32, 16))


def test_what_is_computed_again_in_the_backward_pass_teaches_the_same() -> None:
    image, label = torch.rand(2, 1, 32, 32, 16), (torch.rand(2, 1, 32, 32, 16) > 0.5).float()
    taught = []
    for again in (False, True):
        network = tiny_resunet(use_checkpoint=again, dropout=0.2).train()
        torch.manual_seed(1)
        deep_supervision_loss(build(LOSS, nn.Module), network(image), label).backward()
        taught.append([one.grad for one in network.parameters()])
    for kept, computed in zip(*taught, strict=True):
        torch.testing.assert_close(computed, kept)


def test_channels_last_gives_the_same_answer() -> None:
    network, image = tiny_resunet().eval(), torch.rand(2, 1, 32, 32, 16)
    before = network(image)
    last = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    after = last(image.to(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_a_network_that_must_know_the_patch_is_given_it_as_the_page_says() -> None:
    word = re.findall(r"`'(\+model\.img_size=.+)'`", PAGE.read_text())[0]
    unetr = ["model=monai", "model._target_=monai.networks.nets.UNETR", word]
    check_spatial_size(model_of(*unetr, size=(32, 32, 48)), [32, 32, 48])


def test_numbers_that_make_no_network_are_refused() -> None:
    node = {"_target_": "pancseg.learning.resunet.ResUNet", "spacing_mm": [1, 1, 1]}
    with pytest.raises(PancsegError, match=r"a patch of \[8, 8, 8\] .* expected 3 or more"):
        build({**node, "spatial_size": [8, 8, 8]}, nn.Module)
    with pytest.raises(PancsegError, match=r"prior=1\.0: expected between 0 and 1"):
        build({**node, "spatial_size": [16, 16, 16], "prior": 1.0}, nn.Module)
    with pytest.raises(PancsegError, match="width=0, deep_supervision=2: expected"):
        build({**node, "spatial_size": [16, 16, 16], "width": 0}, nn.Module)


# deep supervision


class MeanOfLogits(nn.Module):
    """A loss whose value is known by hand."""

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        assert logits.shape[2:] == label.shape[2:]
        return logits.mean()


class LabelAlongAxis(nn.Module):
    """Keeps what label each head was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[float]] = []

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        self.seen.append(label[0, 0, :, 0, 0].tolist())
        return logits.mean()


def test_heads_weigh_one_half_quarter_over_their_sum() -> None:
    logits = [torch.full((1, 2, n, n, n), value) for n, value in ((8, 7.0), (4, 14.0), (2, 28.0))]
    value = deep_supervision_loss(MeanOfLogits(), logits, torch.zeros(1, 1, 8, 8, 8))
    assert value.item() == pytest.approx((4 * 7 + 2 * 14 + 1 * 28) / 7)


def test_one_tensor_has_its_plain_loss() -> None:
    value = deep_supervision_loss(
        MeanOfLogits(), torch.full((1, 2, 4, 4, 4), 3.0), torch.zeros(1, 1, 4, 4, 4)
    )
    assert value.item() == 3.0


def test_a_coarse_label_is_taken_at_the_middle_of_its_voxels() -> None:
    label = torch.arange(8.0).reshape(1, 1, 8, 1, 1).expand(1, 1, 8, 8, 8)
    loss = LabelAlongAxis()
    deep_supervision_loss(loss, [torch.zeros(1, 2, n, n, n) for n in (8, 2)], label)
    assert loss.seen == [list(range(8)), [2, 6]]  # of 0..3 and 4..7; plain nearest takes 0 and 4
