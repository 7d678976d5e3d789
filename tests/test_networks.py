"""Networks: the allow-list, every choice with every loss, patch sizes, cost."""

import functools
import re
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from pancseg.config import conf_folder, register_resolvers
from pancseg.errors import PancsegError
from pancseg.models import network_checks
from pancseg.models.factory import build, build_on_meta, count_parameters, find_class
from pancseg.models.losses import deep_supervision_loss
from pancseg.models.network_checks import check_spatial_size, count_multiply_adds, describe_cost

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
IO = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
UNET = {
    "_target_": "monai.networks.nets.UNet", **IO, "channels": [16, 32, 64, 128, 256],
    "strides": [2, 2, 2, 2], "num_res_units": 2, "norm": "batch",
}  # fmt: skip
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
def compose_cached(*words: str) -> Any:
    register_resolvers()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return hydra.compose("train", list(words))


def compose(*words: str) -> dict[str, Any]:
    """The parts of a training's configuration that build a step, for a command line."""
    cfg = compose_cached(*words)
    parts = ("model", "loss", "optimizer", "augment")
    return {part: OmegaConf.to_container(cfg[part], resolve=True) for part in parts}


def part_of(part: str, *words: str) -> dict[str, Any]:
    node = OmegaConf.to_container(compose_cached(*words)[part], resolve=True)
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def model_of(*words: str, size: tuple[int, int, int] = (16, 16, 16)) -> dict[str, Any]:
    """A network for patches of a size."""
    return part_of("model", f"data.spatial_size=[{','.join(map(str, size))}]", *words)


def step(model: dict[str, Any], loss: dict[str, Any], size: list[int]) -> None:
    """One forward and backward pass: the loss is finite, and weights have gradients."""
    torch.manual_seed(0)
    network = build(model, nn.Module).train()
    label = torch.zeros(2, 1, *size)
    label[..., : size[2] // 2] = 1
    value = deep_supervision_loss(build(loss, nn.Module), network(torch.rand(2, 1, *size)), label)
    value.backward()
    assert torch.isfinite(value)
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert any(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("loss", options("loss"))
@pytest.mark.parametrize("name", options("model"))
def test_every_network_takes_a_step_with_every_loss(name: str, loss: str) -> None:
    model = model_of(f"model={name}", *SMALL.get(name, []))
    step(model, part_of("loss", f"loss={loss}"), [16, 16, 16])


def commands() -> dict[str, list[str]]:
    """Network by class name: the words of its command line in docs/models.md."""
    lines = re.findall(r"^    .*(model=monai .+)$", PAGE.read_text(), flags=re.MULTILINE)
    return {line.split()[1].rpartition(".")[2]: line.split() for line in lines}


@pytest.mark.parametrize("name", commands())
def test_the_command_lines_of_the_page_train(name: str) -> None:
    small, size = SMALLER[name]
    step(model_of(*commands()[name], *small), part_of("loss", "loss=dice_ce"), size)


# building


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "builtins.eval", "torch.load", "subprocess.Popen", "pancseg.files.os.system",
        "pancseg.cli.run", "monai.networks.nets.unet.torch.load", "torch.optim", "",
        "monai.networks.nets.NoSuchNet", "monai.networks.nowhere.Net", "torch.nn.Linear",
        "monai.networks_evil.Net", "pancseg.errors.PancsegError",
    ],
)  # fmt: skip
def test_only_classes_of_the_allowed_libraries_are_built(target: str) -> None:
    with pytest.raises(PancsegError, match=r"not allowed; expected a Module of monai\.networks"):
        build({"_target_": target, "command": "false"}, nn.Module)
    assert find_class("monai.networks.nets.UNet") is not None


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


def test_numbers_named_weights_are_accepted() -> None:
    node = {"_target_": "monai.losses.ds_loss.DeepSupervisionLoss", "loss": None}
    assert build({**node, "weights": [0.5, 0.5]}, nn.Module)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({**UNET, "chanels": [1]}, r"nets\.UNet: .*chanels"),
        ({**UNET, "_target_": "monai.networks.nets.DynUNet"}, r"nets\.DynUNet: [^\n]+$"),
        ({"_target_": "???"}, r"^_target_=\?\?\?: give one, .* expected a Module .*$"),
    ],
)
def test_an_error_of_a_constructor_is_one_line(node: dict[str, Any], message: str) -> None:
    with pytest.raises(PancsegError, match=message):
        build(node, nn.Module)


# cost


def test_the_cost_of_a_convolution_is_that_by_hand() -> None:
    conv = {
        "_target_": "monai.networks.blocks.Convolution", "spatial_dims": 3, "in_channels": 1,
        "out_channels": 2, "kernel_size": 3, "conv_only": True,
    }  # fmt: skip
    network = build_on_meta(conv)
    assert count_parameters(network) == 27 * 2 + 2
    assert count_multiply_adds(network, [8, 8, 8]) == 27 * 2 * 8**3
    assert count_parameters(build_on_meta(UNET)) == 4_808_917  # the recipe's network


def rows() -> list[list[str]]:
    """Cells of the page's table, the words of the choice first."""
    lines = re.findall(r"^\| `model=.*\|$", PAGE.read_text(), flags=re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_the_table_of_the_page_has_cost_and_patch_sizes(row: list[str]) -> None:
    words, size = row[0].strip("`").split(), (128, 128, 64)
    parameters, multiply_adds = row[-2:]
    expected = f"{parameters} parameters, {multiply_adds} multiply-adds a patch"
    assert describe_cost(model_of(*words, size=size), size) == expected
    rules = re.findall(r"(\d+) from (\d+)", row[2])
    assert rules

    def check(voxels: int) -> None:
        patch = (128, 128, voxels)
        check_spatial_size(model_of(*words, size=patch), patch)

    for divisor, least in ((int(divisor), int(least)) for divisor, least in rules):
        check(least)
        check(least + divisor)
        with pytest.raises(PancsegError, match=f"axis 2 is .* multiples of {divisor} from"):
            check(least + divisor // 2)


def test_the_page_names_every_choice() -> None:
    assert set(re.findall(r"model=([a-z]+)", PAGE.read_text())) == set(options("model"))


# patch sizes


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("size", "nearest"),
    [(90, "80 and 96"), (65, "64 and 80"), (16, "32 and 48"), (1, "32 and 48")],
)
def test_a_size_the_network_cannot_take_names_axis_and_neighbours(
    axis: int, size: int, nearest: str
) -> None:
    spatial_size = [64, 64, 64]
    spatial_size[axis] = size
    with pytest.raises(PancsegError, match=f"axis {axis} is {size}, .* {nearest}$"):
        check_spatial_size(UNET, spatial_size)


@pytest.mark.parametrize("size", [32, 80, 128])
def test_the_network_takes_every_size_that_is_accepted(size: int) -> None:
    check_spatial_size(UNET, [32, 32, size])
    small = build({**UNET, "channels": [2, 2, 2, 2, 2], "num_res_units": 0}, nn.Module)
    assert small(torch.zeros(1, 1, 32, 32, size)).shape == (1, 2, 32, 32, size)


def test_strides_that_differ_by_axis_are_counted_by_axis() -> None:
    flat = {**UNET, "strides": [[2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]]}
    check_spatial_size(flat, [32, 32, 12])
    with pytest.raises(PancsegError, match=r"axis 2 is 10, .* 8 and 12$"):
        check_spatial_size(flat, [32, 32, 10])


@pytest.mark.parametrize(
    ("model", "size", "message"),
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
    model: dict[str, Any], size: list[int], message: str
) -> None:
    with pytest.raises(PancsegError, match=message):
        check_spatial_size(model, size)


def test_a_planned_network_takes_the_neighbours_that_are_named() -> None:
    def check(size: int) -> None:
        check_spatial_size(model_of("model=resunet", size=(64, 64, size)), [64, 64, size])

    with pytest.raises(PancsegError, match=r"axis 2 is 90, .* 80 and 96$"):
        check(90)
    check(80)
    check(96)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out_channels": 3}, r"gives logits of shape \[2, 3, 32, .*; expected \[2, 2, 32"),
        ({"in_channels": 4}, "this network does not take it: .*channel"),
        ({"channels": [16]}, "nets.UNet: "),
        ({"_target_": "monai.networks.nets.BasicUNetPlusPlus", "features": [4] * 6},
         "expected a tensor of logits in evaluation"),
    ],
)  # fmt: skip
def test_a_network_that_does_not_return_two_logits_a_voxel_is_refused(
    change: dict[str, Any], message: str
) -> None:
    node = {**(IO if "features" in change else UNET), **change}
    with pytest.raises(PancsegError, match=message):
        check_spatial_size(node, [32, 32, 32])


class ReadsValues(nn.Conv3d):
    """A network that cannot be tried on the meta device."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) * image.max().item()


def test_a_network_that_reads_values_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ReadsValues(1, 2, 1, device="meta")
    monkeypatch.setattr(network_checks, "build_on_meta", lambda model: network)
    check_spatial_size({}, [32, 32, 32])
    assert describe_cost({}, [32, 32, 32]) == "0.0 M parameters"


def test_checking_a_size_leaves_the_random_state_unchanged() -> None:
    node = {"_target_": "monai.networks.nets.DiNTS"}  # is built with values before it is refused
    before = torch.get_rng_state()
    check_spatial_size(UNET, [32, 32, 32])
    with pytest.raises(PancsegError):
        check_spatial_size(node, [32, 32, 32])
    assert torch.equal(before, torch.get_rng_state())


def test_a_network_that_must_know_the_patch_is_given_it_as_the_page_says() -> None:
    word = re.findall(r"`'(\+model\.img_size=.+)'`", PAGE.read_text())[0]
    unetr = ["model=monai", "model._target_=monai.networks.nets.UNETR", word]
    check_spatial_size(model_of(*unetr, size=(32, 32, 48)), [32, 32, 48])
