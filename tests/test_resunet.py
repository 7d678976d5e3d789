"""The planned network: its levels, heads, gradients and memory."""

import copy
from typing import Any

import pytest
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pancseg.errors import PancsegError
from pancseg.models.factory import build
from pancseg.models.losses import deep_supervision_loss
from pancseg.models.resunet import ResUNet, plan_levels

SIZE, SPACING_MM = (32, 32, 16), (1.5, 1.5, 1.0)


def tiny_resunet(**changes: Any) -> ResUNet:
    torch.manual_seed(0)
    return ResUNet(SIZE, SPACING_MM, width=4, **{"deep_supervision": 0, **changes})


def monai_network() -> DynUNet:
    """MONAI's network of the same shape, whose blocks work in place."""
    strides, kernels = plan_levels(SIZE, SPACING_MM)
    filters = [4 * 2**level for level in range(len(strides))]
    torch.manual_seed(0)
    return DynUNet(3, 1, 2, kernels, strides, strides[1:], filters=filters, res_block=True)


def loss_of(network: nn.Module, image: Tensor) -> Tensor:
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    return deep_supervision_loss(loss, network.train()(image), (image > 0.5).float())


def test_levels_are_those_that_nnunet_published_for_the_pancreas() -> None:
    # Isensee et al. 2021, supplement: MSD Pancreas, patch 40 x 224 x 224, 2.5 x 0.8 x 0.8 mm
    strides, kernels = plan_levels([40, 224, 224], [2.5, 0.8, 0.8])
    assert strides == [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)]
    assert kernels == [(1, 3, 3)] + [(3, 3, 3)] * 5
    assert len(plan_levels([128, 128, 128], [1.0, 1.0, 1.0], max_levels=3)[0]) == 3


def test_training_returns_each_head_at_its_resolution_and_evaluation_one_tensor() -> None:
    network, image = tiny_resunet(deep_supervision=2), torch.rand(1, 1, *SIZE)
    heads = network.train()(image)
    assert [tuple(head.shape[2:]) for head in heads] == [SIZE, (16, 16, 8), (8, 8, 4)]
    torch.testing.assert_close(network.eval()(image), heads[0])
    assert isinstance(tiny_resunet().train()(image), Tensor)


@pytest.mark.parametrize(("prior", "least", "most"), [(0.01, 0.002, 0.08), (0.5, 0.3, 0.7)])
def test_an_untrained_network_has_the_foreground_probability_of_its_prior(
    prior: float, least: float, most: float
) -> None:
    heads = tiny_resunet(prior=prior, deep_supervision=2).train()(torch.rand(1, 1, *SIZE))
    assert all(least < logits.softmax(dim=1)[:, 1].mean() < most for logits in heads)


def test_every_weight_has_a_gradient_and_one_name() -> None:
    network = tiny_resunet(deep_supervision=2)
    loss_of(network, torch.rand(1, 1, *SIZE)).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    state = network.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert copy.deepcopy(network).train()(torch.rand(1, 1, *SIZE))


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    image, gradients = torch.rand(2, 1, *SIZE), []
    for use_checkpoint in (False, True):
        network = tiny_resunet(use_checkpoint=use_checkpoint, dropout=0.2)
        torch.manual_seed(1)
        loss_of(network, image).backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


class Clones(TorchDispatchMode):
    """Counts ``clone`` while it is on."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten.clone.default
        return function(*args, **(kwargs or {}))


def clones_and_bytes(network: nn.Module, image: Tensor) -> tuple[int, int]:
    """Clones in the backward pass, and the size of the tensors that are kept for it."""
    tensors: dict[int, Tensor] = {}  # alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        return tensors.setdefault(tensor.untyped_storage().data_ptr(), tensor)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network.train()(image)
    loss = loss_of(network, image)
    with Clones() as clones:
        loss.backward()
    return clones.count, sum(t.untyped_storage().nbytes() for t in tensors.values())


def test_it_computes_as_dynunet_without_clones_in_no_more_memory() -> None:
    network, expected, image = tiny_resunet(), monai_network(), torch.rand(2, 1, *SIZE)
    assert not network.load_state_dict(expected.state_dict(), strict=False).missing_keys
    (clones, saved), (monai_clones, monai_saved) = (
        clones_and_bytes(model, image) for model in (network, expected)
    )
    assert clones == 0 < monai_clones and saved <= 1.01 * monai_saved
    gradients = {name: p.grad for name, p in expected.named_parameters()}
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)
    logits = network.eval()(image)
    torch.testing.assert_close(logits, expected.eval()(image), atol=1e-5, rtol=1e-5)
    last = network.to(memory_format=torch.channels_last_3d)
    after = last(image.to(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(after, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spatial_size": [8, 8, 8]}, r"a patch of \[8, 8, 8\] .* expected 3 or more"),
        ({"prior": 1.0}, r"prior=1\.0: expected"),
        ({"width": 0}, "width=0, .*: expected"),
    ],
)
def test_invalid_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    node = {"_target_": "pancseg.models.resunet.ResUNet", "spacing_mm": [1, 1, 1]}
    with pytest.raises(PancsegError, match=message):
        build({**node, "spatial_size": [16, 16, 16], **change}, nn.Module)
