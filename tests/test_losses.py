"""Losses: the probability they teach, deterministic operations on CUDA, deep supervision."""

from typing import Any

import numpy as np
import pytest
import torch
from monai.losses import FocalLoss
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from pancseg.models.augmentation import Augmentation, Augmenter
from pancseg.models.factory import build
from pancseg.models.losses import DiceCELoss, DiceFocalLoss, deep_supervision_loss
from pancseg.models.metrics import PatientDice, count_voxels
from pancseg.models.segmenter import Segmenter
from tests.test_networks import SMALL, options, part_of

SHARES, VOXELS = (0.9, 0.1), 100  # of foreground, in two groups of voxels
MONAI_DICE_FOCAL = {
    "_target_": "monai.losses.DiceFocalLoss", "include_background": False, "to_onehot_y": True,
    "softmax": True, "batch": True, "gamma": 2.0,
}  # fmt: skip
# operations that raise on CUDA under torch.use_deterministic_algorithms
NOT_DETERMINISTIC = (
    "nll_loss", "histc", "cumsum", "upsample_trilinear3d_backward", "grid_sampler_3d_backward",
)  # fmt: skip


def minimise(loss: Any) -> Tensor:
    """Logits ``(1, 2, 2, 1, 1)`` that minimise a loss where each group has its share."""
    logits = torch.zeros(1, 2, 2, 1, 1, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    rows = [(torch.arange(VOXELS) < share * VOXELS).float() for share in SHARES]
    label = torch.stack(rows)[None, None, :, None]
    for _ in range(400):
        optimizer.zero_grad()
        loss(logits.expand(-1, -1, -1, -1, VOXELS), label).backward()
        optimizer.step()
    return logits.detach()


def taught(node: dict[str, Any]) -> tuple[list[float], list[bool]]:
    """Probability and decision of each group by the segmenter's rule."""
    net = {"_target_": "monai.networks.nets.BasicUNet", "features": [2] * 6, "out_channels": 2}
    segmenter, logits = Segmenter(net, node, {}), minimise(build(node, nn.Module))
    return (
        segmenter.probability_of(logits).flatten().tolist(),
        segmenter.mask_of(logits).flatten().tolist(),
    )


def best_on_a_grid(gamma: float) -> list[float]:
    """Probabilities that minimise Dice plus focal loss as they are written in the papers."""
    steps = np.linspace(0.005, 0.995, 199)
    p, q = np.stack(np.meshgrid(steps, steps, indexing="ij")), np.reshape(SHARES, (2, 1, 1))
    dice = 1 - 2 * (q * p).sum(0) / (q + p).sum(0)
    focal = -q * (1 - p) ** gamma * np.log(p) - (1 - q) * p**gamma * np.log(1 - p)
    i, j = np.unravel_index((dice + focal.mean(0)).argmin(), dice.shape)
    return [steps[i], steps[j]]


@pytest.mark.parametrize("name", options("loss"))
def test_every_loss_teaches_the_rule_by_which_voxels_are_decided(name: str) -> None:
    probability, mask = taught(part_of("loss", f"loss={name}"))
    assert mask == [True, False]
    gammas = {"dice_ce": 0.0, "dice_focal": 2.0}
    if name in gammas:
        assert probability == pytest.approx(best_on_a_grid(gammas[name]), abs=0.01)


def test_dice_focal_of_monai_does_not_teach_this_rule() -> None:
    errors = np.subtract(taught(MONAI_DICE_FOCAL)[0], best_on_a_grid(2.0))
    assert np.abs(errors).max() > 0.03


def test_cross_entropy_and_focal_loss_are_those_of_torch_and_monai() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(2, 2, 4, 4, 4), (torch.rand(2, 1, 4, 4, 4) > 0.7).float()
    expected = F.cross_entropy(logits, label[:, 0].long())
    torch.testing.assert_close(DiceCELoss().voxel_loss(logits, label), expected)
    binary = FocalLoss(gamma=2.0)(logits[:, 1:] - logits[:, :1], label)
    torch.testing.assert_close(DiceFocalLoss(gamma=2.0).voxel_loss(logits, label), binary)


class Operations(TorchDispatchMode):
    """Operations that run while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        is_float = isinstance(out, Tensor) and out.is_floating_point()
        if is_float or "cumsum" not in function.name():
            self.names.add(function.name().removeprefix("aten::"))
        return out

    @property
    def not_deterministic(self) -> set[str]:
        return {name for name in self.names if name.startswith(NOT_DETERMINISTIC)}


@pytest.mark.parametrize(
    "words",
    [[f"experiment={name}"] for name in options("experiment")]
    + [["experiment=smoke", f"loss={name}"] for name in options("loss")],
    ids=" ".join,
)
def test_a_training_step_is_deterministic_on_cuda(words: list[str]) -> None:
    words = [*words, "data.spatial_size=[32,32,32]", "data.spacing_mm=[1.5,1.5,1.5]"]
    model = part_of("model", *words)
    if model["_target_"].endswith("ResUNet"):
        model = part_of("model", *words, *SMALL["resunet"])
    network, loss = build(model, nn.Module), build(part_of("loss", *words), nn.Module)
    optimizer = build(part_of("optimizer", *words), torch.optim.Optimizer, network.parameters())
    augment = part_of("augment", *words)
    chances = {f"{change}_probability": 1.0 for change in ("rotation", "elastic", "blur", "noise")}
    changes = Augmentation(**{**augment, **chances})
    view = {"spacing_mm": (1.5,) * 3, "window_hu": (-200, 200)}
    augmenter = Augmenter(changes, size=(32,) * 3, **view)
    image, dice = torch.rand(2, 1, *augmenter.box), PatientDice()
    with Operations() as operations:
        image, label = augmenter(image, (image > 0.9).float(), 0)
        logits = network.train()(image)
        deep_supervision_loss(loss, logits, label).backward()
        optimizer.step()
        finest = logits if isinstance(logits, Tensor) else logits[0]
        dice.update(count_voxels(finest[:, 1:] > 0, label), torch.tensor([1, 2]))
        dice.compute()
    assert "convolution_backward" in operations.names
    assert operations.not_deterministic == set()


def test_an_operation_that_is_not_deterministic_is_found() -> None:
    node = {"_target_": "monai.losses.DiceCELoss", "to_onehot_y": True, "softmax": True}
    logits = torch.zeros(1, 2, 4, 4, 4, requires_grad=True)
    with Operations() as operations:
        build(node, nn.Module)(logits, torch.zeros(1, 1, 4, 4, 4)).backward()
    assert any(name.startswith("nll_loss") for name in operations.not_deterministic)


class MeanOfLogits(nn.Module):
    """A loss with a known value, which stores label and type of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[list[float], torch.dtype]] = []

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        assert logits.shape[2:] == label.shape[2:]
        self.calls.append((label[0, 0, :, 0, 0].tolist(), logits.dtype))
        return logits.mean()


def test_heads_are_weighted_one_half_quarter_in_float32_on_labels_of_their_size() -> None:
    heads = [torch.full((1, 2, n, n, n), value) for n, value in ((8, 7.0), (4, 14.0), (2, 28.0))]
    label, loss = torch.arange(8.0).reshape(1, 1, 8, 1, 1).expand(1, 1, 8, 8, 8), MeanOfLogits()
    value = deep_supervision_loss(loss, [head.bfloat16() for head in heads], label)
    assert value.item() == pytest.approx((4 * 7 + 2 * 14 + 1 * 28) / 7)
    assert {dtype for _, dtype in loss.calls} == {torch.float32}
    # in the middle of 0..3 and 4..7; nearest takes 0 and 4
    assert [labels for labels, _ in loss.calls][::2] == [list(range(8)), [2, 6]]
    assert deep_supervision_loss(loss, heads[0].bfloat16(), label).item() == 7
