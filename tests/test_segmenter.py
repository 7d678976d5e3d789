"""The Lightning module and its losses: decisions, metrics, host reads, memory, determinism."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.losses import FocalLoss
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pancseg.errors import Incomplete
from pancseg.models import segmenter as segmenter_module
from pancseg.models.augmentation import Augmentation, Augmenter
from pancseg.models.factory import build
from pancseg.models.losses import DiceCELoss, DiceFocalLoss, deep_supervision_loss
from pancseg.models.metrics import PatientDice, count_voxels
from pancseg.models.segmenter import Segmenter
from pancseg.training.callbacks import update_average
from tests.test_networks import SMALL, Operations, options, part_of

LOSS = {"_target_": "monai.losses.DiceLoss", "to_onehot_y": True, "sigmoid": True}
LOSS |= {"squared_pred": True}
NET = {"_target_": "monai.networks.nets.UNet", "spatial_dims": 3, "in_channels": 1}
NET |= {"out_channels": 2, "channels": [2, 2], "strides": [2], "norm": "instance"}


def segmenter_at(step, rank=0, reduce=bool):
    """A segmenter with a substitute for Lightning's trainer; it logs nothing."""
    segmenter, strategy = Segmenter(NET, LOSS, {}), SimpleNamespace(reduce_boolean_decision=reduce)
    segmenter._trainer = SimpleNamespace(
        global_step=step, global_rank=rank, log_every_n_steps=10, strategy=strategy
    )
    segmenter.log_dict = lambda *_, **__: None
    return segmenter


def batch_of(label):
    image, patients = torch.rand_like(label), torch.arange(len(label))
    return {"image": image, "label": label, "patient": patients, "name": ["a", "b"], "step": 1}


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


@pytest.mark.parametrize(("sigmoid", "expected"), [(True, 0.7311), (False, 0.0180)])
def test_a_voxel_is_decided_by_the_rule_of_the_loss(sigmoid, expected):
    segmenter = Segmenter(NET, {**LOSS, "sigmoid": sigmoid, "softmax": not sigmoid}, {})
    logits = torch.tensor([5.0, 1.0]).reshape(1, 2, 1, 1, 1)  # background, pancreas
    assert segmenter.probability_of(logits).item() == pytest.approx(expected, abs=1e-4)
    assert segmenter.mask_of(logits).item() == (expected > 0.5)


def test_a_checkpoint_loads_from_its_path_alone(trained):
    path = trained / "checkpoints" / "best.ckpt"
    segmenter = Segmenter.load_from_checkpoint(path, weights_only=True)
    assert segmenter(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 2, 32, 32, 32)


READS = ("_local_scalar_dense", "nonzero", "_unique", "equal", "is_nonzero", "item")


@pytest.mark.parametrize(("step", "reads"), [(1, 0), (9, 0), (10, 1)])
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


def test_dropout_of_processes_that_train_together_differs(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    for rank in (0, 1):
        segmenter_at(1, rank).training_step(batch_of(torch.zeros(1, 1, 16, 16, 16)), 0)
    assert len(set(seeds)) == 2


def test_out_of_memory_windows_are_summed_on_the_cpu_before_an_error(monkeypatch):
    segmenter = Segmenter(NET, LOSS, {}, view={"size": [16, 16, 16], "overlap": 0.25}).eval()
    image, devices = torch.rand(1, 1, 24, 16, 16), []
    expected = segmenter(image)

    def full(*args, device, **options):
        devices.append(device)
        if device is None:
            raise RuntimeError("CUDNN_STATUS_ALLOC_FAILED")
        return sliding_window_inference(*args, device=device, **options)

    monkeypatch.setattr(segmenter_module, "sliding_window_inference", full)
    for _ in range(2):
        torch.testing.assert_close(segmenter(image), expected)
    assert devices == [None, torch.device("cpu"), torch.device("cpu")]
    monkeypatch.setattr(segmenter.network, "forward", lambda image: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        segmenter(image)


def test_a_loss_that_is_not_finite_in_one_process_ends_all_of_them():
    segmenter = segmenter_at(10, reduce=lambda is_finite: False)  # another process says no
    with pytest.raises(Incomplete, match=r"the loss is 0\.5 on a; begin with the last whole epoch"):
        segmenter.check_finite(torch.tensor(0.5), "step 10: the loss", ["a"])


# losses

SHARES, VOXELS = (0.9, 0.1), 100  # of foreground, in two groups of voxels
# operations that raise on CUDA under torch.use_deterministic_algorithms
NOT_DETERMINISTIC = ("nll_loss", "histc", "cumsum", "upsample_trilinear3d_backward")
NOT_DETERMINISTIC += ("grid_sampler_3d_backward",)


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


def best_on_a_grid(gamma):
    """Probabilities that minimise Dice plus focal loss as they are written in the papers."""
    steps = np.linspace(0.005, 0.995, 199)
    p, q = np.stack(np.meshgrid(steps, steps, indexing="ij")), np.reshape(SHARES, (2, 1, 1))
    dice = 1 - 2 * (q * p).sum(0) / (q + p).sum(0)
    focal = -q * (1 - p) ** gamma * np.log(p) - (1 - q) * p**gamma * np.log(1 - p)
    i, j = np.unravel_index((dice + focal.mean(0)).argmin(), dice.shape)
    return [steps[i], steps[j]]


@pytest.mark.parametrize("name", options("loss"))
def test_every_loss_teaches_the_rule_by_which_voxels_are_decided(name):
    node = part_of("loss", f"loss={name}")
    segmenter, logits = Segmenter(NET, node, {}), minimise(build(node, nn.Module))
    assert segmenter.mask_of(logits).flatten().tolist() == [True, False]
    gammas = {"dice_ce": 0.0, "dice_focal": 2.0}
    if name in gammas:
        probability = segmenter.probability_of(logits).flatten().tolist()
        assert probability == pytest.approx(best_on_a_grid(gammas[name]), abs=0.01)


def test_cross_entropy_and_focal_loss_are_those_of_torch_and_monai():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 2, 4, 4, 4), (torch.rand(2, 1, 4, 4, 4) > 0.7).float()
    expected = F.cross_entropy(logits, label[:, 0].long())
    torch.testing.assert_close(DiceCELoss().voxel_loss(logits, label), expected)
    binary = FocalLoss(gamma=2.0)(logits[:, 1:] - logits[:, :1], label)
    torch.testing.assert_close(DiceFocalLoss(gamma=2.0).voxel_loss(logits, label), binary)


@pytest.mark.parametrize(
    "words",
    [f"experiment={name}" for name in options("experiment")]
    + [f"experiment=smoke loss={name}" for name in options("loss")],
)
def test_a_training_step_is_deterministic_on_cuda(words):
    words = [*words.split(), "data.spatial_size=[32,32,32]", "data.spacing_mm=[1.5,1.5,1.5]"]
    model = part_of("model", *words)
    if model["_target_"].endswith("ResUNet"):
        model = part_of("model", *words, *SMALL["resunet"])
    network, loss = build(model, nn.Module), build(part_of("loss", *words), nn.Module)
    optimizer = build(part_of("optimizer", *words), torch.optim.Optimizer, network.parameters())
    chances = {f"{change}_probability": 1.0 for change in ("rotation", "elastic", "blur", "noise")}
    changes = Augmentation(**{**part_of("augment", *words), **chances})
    augmenter = Augmenter(changes, spacing_mm=(1.5,) * 3, window_hu=(-200, 200), size=(32,) * 3)
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
    assert deep_supervision_loss(mean_of_logits, heads[0].bfloat16(), label).item() == 7
