"""The Lightning module: decisions, metrics, host reads, memory and seeds of a step."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pancseg.errors import Incomplete, PancsegError
from pancseg.inference.checkpoint import open_checkpoint
from pancseg.models import segmenter as segmenter_module
from pancseg.models.segmenter import Segmenter
from pancseg.training.callbacks import update_average

LOSS = {
    "_target_": "monai.losses.DiceLoss", "to_onehot_y": True, "sigmoid": True, "squared_pred": True,
}  # fmt: skip
NET = {
    "_target_": "monai.networks.nets.UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2,
    "channels": [2, 2], "strides": [2], "norm": "instance",
}  # fmt: skip


def segmenter_at(step: int, rank: int = 0, reduce: Any = bool) -> Any:
    """A segmenter with a substitute for Lightning's trainer; it logs nothing."""
    segmenter: Any = Segmenter(NET, LOSS, {})
    strategy = SimpleNamespace(reduce_boolean_decision=reduce)
    segmenter._trainer = SimpleNamespace(
        global_step=step, global_rank=rank, log_every_n_steps=10, strategy=strategy
    )
    segmenter.log_dict = lambda *_, **__: None
    return segmenter


def batch_of(label: Tensor, image: Tensor | None = None) -> dict[str, Any]:
    patients = torch.arange(len(label))
    image = torch.rand_like(label) if image is None else image
    return {"image": image, "label": label, "patient": patients, "name": ["a", "b"], "step": 1}


def test_the_recipes_metric_reads_half_for_an_empty_prediction_and_dice_reads_0() -> None:
    segmenter, logged = segmenter_at(1), {}

    class Background(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.cat([torch.full_like(image, 20.0), torch.full_like(image, -20.0)], dim=1)

    segmenter.network, segmenter.log_dict = Background(), lambda values, **_: logged.update(values)
    label = torch.zeros(1, 1, 16, 16, 16)
    label[..., :4, :4, :4] = 1
    segmenter.validation_step(batch_of(label), 0)
    assert float(logged["val/recipe_metric"].compute()) == pytest.approx(0.5, abs=0.01)
    assert float(logged["val/dice"].compute()) == 0


@pytest.mark.parametrize(("sigmoid", "expected"), [(True, 0.7311), (False, 0.0180)])
def test_a_voxel_is_decided_by_the_rule_of_the_loss(sigmoid: bool, expected: float) -> None:
    segmenter = Segmenter(NET, {**LOSS, "sigmoid": sigmoid, "softmax": not sigmoid}, {})
    logits = torch.tensor([5.0, 1.0]).reshape(1, 2, 1, 1, 1)  # background, pancreas
    assert segmenter.probability_of(logits).item() == pytest.approx(expected, abs=1e-4)
    assert segmenter.mask_of(logits).item() == (expected > 0.5)


def test_a_checkpoint_loads_from_its_path_alone(trained: Path) -> None:
    path = trained / "checkpoints" / "best.ckpt"
    segmenter = Segmenter.load_from_checkpoint(path, weights_only=True)
    assert segmenter(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 2, 32, 32, 32)


class Bomb:
    """Creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_neither_a_pickle_nor_a_function_in_a_checkpoint_is_run(
    trained: Path, tmp_path: Path
) -> None:
    hacked, bad = tmp_path / "hacked", tmp_path / "bad.ckpt"
    content = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    command = {"_target_": "os.system", "command": f"touch {hacked}"}
    content["hyper_parameters"]["model"] = command
    torch.save(content, bad)
    with pytest.raises(PancsegError, match=r"_target_=os\.system: not allowed"):
        open_checkpoint(bad)
    for save in (torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))):
        save(Bomb(hacked), bad)
        with pytest.raises(PancsegError, match="no checkpoint that pancseg"):
            open_checkpoint(bad)
    assert not hacked.exists()


class HostReads(TorchDispatchMode):
    """Operations for which a GPU is waited for."""

    READS = ("_local_scalar_dense", "nonzero", "_unique", "equal", "is_nonzero", "item")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        name = function._schema.name.partition("::")[2]
        self.names += [name] if name.startswith(self.READS) else []
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("step", "reads"), [(1, 0), (9, 0), (10, 1)])
def test_a_step_reads_from_the_device_only_where_it_is_logged(step: int, reads: int) -> None:
    segmenter = segmenter_at(step)
    batch = batch_of((torch.rand(2, 1, 16, 16, 16) > 0.9).float())
    optimizer = torch.optim.SGD(segmenter.network.parameters(), 0.1)
    averages = [p.detach().clone() for p in segmenter.parameters()]
    with HostReads() as host:
        segmenter.training_step(batch, 0).backward()
        optimizer.step()
        update_average(averages, [*segmenter.parameters()], 0.9, step)
    assert len(host.names) == reads, host.names


def test_the_average_of_the_weights_is_that_by_hand() -> None:
    average, count = torch.zeros(1), torch.tensor([0])
    for steps, weight in enumerate((0.0, 1.0)):  # the second share is 1 - 2 / 11
        update_average([average, count], [torch.tensor([weight]), torch.tensor([7])], 0.9, steps)
    assert average.item() == pytest.approx(9 / 11) and count.item() == 7


def test_dropout_of_processes_that_train_together_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    for rank in (0, 1):
        segmenter_at(1, rank).training_step(batch_of(torch.zeros(1, 1, 16, 16, 16)), 0)
    assert len(set(seeds)) == 2


def test_where_memory_runs_out_windows_are_summed_on_the_cpu_before_it_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    segmenter = Segmenter(NET, LOSS, {}, view={"size": [16, 16, 16], "overlap": 0.25}).eval()
    image, devices = torch.rand(1, 1, 24, 16, 16), []
    expected = segmenter(image)

    def full(*args: Any, device: torch.device | None, **options: Any) -> Any:
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


def test_a_loss_that_is_not_finite_in_one_process_ends_all_of_them() -> None:
    segmenter = segmenter_at(10, reduce=lambda is_finite: False)  # another process says no
    with pytest.raises(Incomplete, match=r"the loss is 0\.5 on a; begin with the last whole epoch"):
        segmenter.check_finite(torch.tensor(0.5), "step 10: the loss", ["a"])
