"""The Lightning module and its losses: metrics, host reads, memory, determinism."""

from types import SimpleNamespace

import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.losses import FocalLoss
from torch import nn
from torch.nn import functional as F  # noqa: N812

from pancseg.models import segmenter as segmenter_module
from pancseg.models.factory import build
from pancseg.models.losses import DiceCELoss, DiceFocalLoss, deep_supervision_loss
from pancseg.models.segmenter import Segmenter
from pancseg.training.callbacks import update_average
from tests.test_networks import SMALL, Operations, options, part_of

LOSS = {"_target_": "monai.losses.DiceLoss", "to_onehot_y": True, "sigmoid": True}
LOSS |= {"squared_pred": True}
NET = {"_target_": "monai.networks.nets.UNet", "spatial_dims": 3, "in_channels": 1}
NET |= {"out_channels": 2, "channels": [2, 2], "strides": [2], "norm": "instance"}


def segmenter_at(step, model=NET, loss=LOSS):
    """A segmenter with a substitute for Lightning's trainer; it logs nothing."""
    segmenter, strategy = Segmenter(model, loss, {}), SimpleNamespace(reduce_boolean_decision=bool)
    segmenter._trainer = SimpleNamespace(
        global_step=step, global_rank=0, log_every_n_steps=10, strategy=strategy
    )
    segmenter.log_dict = lambda *_, **__: None
    return segmenter


def batch_of(label):
    own = {"image": torch.rand_like(label), "patient": torch.arange(len(label))}
    return {**own, "label": label, "name": ["a", "b"], "batch_number": 1}


def test_the_recipes_metric_reads_half_for_an_empty_prediction_and_dice_reads_0():
    segmenter, logged = segmenter_at(1), {}
    empty = torch.tensor([20.0, -20.0]).reshape(1, 2, 1, 1, 1).expand(1, 2, 16, 16, 16)
    segmenter.network.forward = lambda image: empty
    segmenter.log_dict = lambda values, **_: logged.update(values)
    label = torch.zeros(1, 1, 16, 16, 16)
    label[..., :4, :4, :4] = 1
    segmenter.validation_step(batch_of(label), 0)
    assert float(logged["val/recipe_metric"].compute()) == pytest.approx(0.5, abs=0.01)
    assert float(logged["val/dice"].compute()) == 0


READS = ("_local_scalar_dense", "nonzero", "_unique", "equal", "is_nonzero", "item")


@pytest.mark.parametrize(("step", "reads"), [(9, 0), (10, 1)])
def test_a_step_reads_from_the_device_only_where_it_is_logged(step, reads):
    segmenter = segmenter_at(step)
    batch = batch_of((torch.rand(2, 1, 16, 16, 16) > 0.9).float())
    optimizer = torch.optim.SGD(segmenter.network.parameters(), 0.1)
    averages = [p.detach().clone() for p in segmenter.parameters()]
    with Operations() as operations:
        segmenter.training_step(batch, 0).backward()
        optimizer.step()
        update_average(averages, [*segmenter.parameters()], 0.9, step)
    assert len(operations.starting_with(*READS)) == reads, operations.names


def test_the_average_of_the_weights_is_that_by_hand():
    average, count = torch.zeros(1), torch.tensor([0])
    for steps, weight in enumerate((0.0, 1.0)):  # the second share is 1 - 2 / 11
        update_average([average, count], [torch.tensor([weight]), torch.tensor([7])], 0.9, steps)
    assert average.item() == pytest.approx(9 / 11) and count.item() == 7


def test_windows_are_summed_on_the_cpu_after_memory_ran_out(monkeypatch):
    segmenter = Segmenter(NET, LOSS, {}, view={"size": [16, 16, 16], "overlap": 0.25}).eval()
    image = torch.rand(1, 1, 24, 16, 16)
    expected = segmenter(image)

    def full(*args, device, **options):
        if device is None:
            raise RuntimeError("CUDNN_STATUS_ALLOC_FAILED")
        return sliding_window_inference(*args, device=device, **options)

    monkeypatch.setattr(segmenter_module, "sliding_window_inference", full)
    torch.testing.assert_close(segmenter(image), expected)
    assert segmenter.sum_device == torch.device("cpu")


SHARES, VOXELS = (0.9, 0.1), 100  # of foreground, in two groups of voxels
# operations that raise on CUDA under torch.use_deterministic_algorithms
NOT_DETERMINISTIC = ("nll_loss", "histc", "cumsum", "upsample_trilinear3d_backward")


def minimise(loss):
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


@pytest.mark.parametrize("name", options("loss"))
def test_every_loss_teaches_the_rule_by_which_voxels_are_decided(name):
    node = part_of("loss", f"loss={name}")
    segmenter, logits = Segmenter(NET, node, {}), minimise(build(node, nn.Module))
    assert segmenter.mask_of(logits).flatten().tolist() == [True, False]


def test_cross_entropy_and_focal_loss_are_those_of_torch_and_monai():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 2, 4, 4, 4), (torch.rand(2, 1, 4, 4, 4) > 0.7).float()
    expected = F.cross_entropy(logits, label[:, 0].long())
    torch.testing.assert_close(DiceCELoss().voxel_loss(logits, label), expected)
    binary = FocalLoss(gamma=2.0)(logits[:, 1:] - logits[:, :1], label)
    torch.testing.assert_close(DiceFocalLoss(gamma=2.0).voxel_loss(logits, label), binary)


@pytest.mark.parametrize("name", options("experiment"))
def test_a_training_step_is_deterministic_on_cuda(name):
    words = [f"experiment={name}", "data.spatial_size=[32,32,32]", "data.spacing_mm=[1.5,1.5,1.5]"]
    model = part_of("model", *words)
    if model["_target_"].endswith("ResUNet"):
        model = part_of("model", *words, *SMALL["resunet"])
    segmenter = segmenter_at(10, model, part_of("loss", *words))
    with Operations() as operations:
        batch = batch_of((torch.rand(2, 1, 32, 32, 32) > 0.9).float())
        segmenter.training_step(batch, 0).backward()
        segmenter.dice["train_dice"].compute()
    assert "convolution_backward" in operations.names
    assert operations.starting_with(*NOT_DETERMINISTIC) == []


def test_heads_are_weighted_one_half_quarter_in_float32_on_labels_of_their_size():
    heads = [torch.full((1, 2, n, n, n), value) for n, value in ((8, 7.0), (4, 14.0), (2, 28.0))]
    label, calls = torch.arange(8.0).reshape(1, 1, 8, 1, 1).expand(1, 1, 8, 8, 8), []

    def mean_of_logits(logits, label):
        assert (logits.shape[2:], logits.dtype) == (label.shape[2:], torch.float32)
        calls.append(label[0, 0, :, 0, 0].tolist())
        return logits.mean()

    value = deep_supervision_loss(mean_of_logits, [head.bfloat16() for head in heads], label)
    assert value.item() == pytest.approx((4 * 7 + 2 * 14 + 1 * 28) / 7)
    # in the middle of 0..3 and 4..7; nearest takes 0 and 4
    assert calls[::2] == [list(range(8)), [2, 6]]
