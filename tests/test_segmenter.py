"""The Lightning module: its metric, the recipe's metric and its checkpoints."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import nn
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


class Always(nn.Module):
    """Logits that are sure of background everywhere."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.full_like(image, 20.0), torch.full_like(image, -20.0)], dim=1)


def test_the_recipes_metric_reads_half_for_an_empty_prediction_and_dice_reads_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    segmenter = Segmenter(NET, LOSS, {})
    segmenter.network = Always()
    logged: dict[str, Any] = {}
    monkeypatch.setattr(segmenter, "log_dict", lambda values, **_: logged.update(values))
    label = torch.zeros(1, 1, 16, 16, 16)
    label[..., :4, :4, :4] = 1
    batch = {"image": torch.zeros_like(label), "label": label, "patient": torch.tensor([1])}
    segmenter.validation_step(batch, 0)
    assert float(logged["val/recipe_metric"].compute()) == pytest.approx(0.5, abs=0.01)
    assert float(logged["val/dice"].compute()) == 0


@pytest.mark.parametrize(("sigmoid", "expected"), [(True, 0.7311), (False, 0.0180)])
def test_a_voxel_is_decided_by_the_rule_that_the_loss_teaches(
    sigmoid: bool, expected: float
) -> None:
    loss = {**LOSS, "sigmoid": sigmoid, "softmax": not sigmoid}
    logits = torch.tensor([5.0, 1.0]).reshape(1, 2, 1, 1, 1)  # background, pancreas
    segmenter = Segmenter(NET, loss, {})
    assert segmenter.probability_of(logits).item() == pytest.approx(expected, abs=1e-4)
    assert segmenter.mask_of(logits).item() == (expected > 0.5)
    both = torch.randn(2, 2, 4, 4, 4)
    assert torch.equal(segmenter.mask_of(both), segmenter.probability_of(both) > 0.5)


def test_the_optimiser_takes_the_recipes_numbers() -> None:
    adam = {"_target_": "torch.optim.Adam", "lr": 1e-5, "weight_decay": 1e-5, "amsgrad": True}
    optimizer = Segmenter(NET, LOSS, adam).configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["amsgrad"]) == (1e-5, 1e-5, True)


def test_a_checkpoint_loads_from_its_path_alone(trained: Path) -> None:
    path = trained / "checkpoints" / "best.ckpt"
    segmenter = Segmenter.load_from_checkpoint(path, weights_only=True)
    assert segmenter(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 2, 32, 32, 32)


def test_a_checkpoint_that_names_a_function_is_refused_and_nothing_runs(
    trained: Path, tmp_path: Path
) -> None:
    content = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    content["hyper_parameters"]["model"] = {
        "_target_": "os.system", "command": f"touch {tmp_path / 'hacked'}",
    }  # fmt: skip
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(PancsegError, match=r"_target_=os\.system: not allowed"):
        open_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "hacked").exists()


class Bomb:
    """Runs a command where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"hyper_parameters": Bomb(tmp_path / "hacked")}, tmp_path / "bad.ckpt")
    with pytest.raises(PancsegError, match="no checkpoint that pancseg"):
        open_checkpoint(tmp_path / "bad.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Bomb(tmp_path / "hacked")))
    with pytest.raises(PancsegError, match="no checkpoint that pancseg"):
        open_checkpoint(tmp_path / "plain.ckpt")
    assert not (tmp_path / "hacked").exists()


class HostReads(TorchDispatchMode):
    """Counts operations for which a GPU is waited for."""

    READS = ("_local_scalar_dense", "nonzero", "_unique", "equal", "is_nonzero", "item")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name.partition("::")[2]
        if name.startswith(self.READS):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def trainer_at(step: int, rank: int = 0) -> Any:
    """Stands in for Lightning's trainer."""
    return SimpleNamespace(global_step=step, global_rank=rank, world_size=1, log_every_n_steps=10)


@pytest.mark.parametrize(("step", "reads"), [(1, 0), (9, 0), (10, 1)])
def test_a_step_reads_from_the_device_only_where_it_is_logged(
    monkeypatch: pytest.MonkeyPatch, step: int, reads: int
) -> None:
    segmenter = Segmenter(NET, LOSS, {"_target_": "torch.optim.SGD", "lr": 0.1})
    monkeypatch.setattr(segmenter, "log_dict", lambda *_, **__: None)
    trainer: Any = SimpleNamespace(
        global_step=step, log_every_n_steps=10, global_rank=0, world_size=1
    )
    segmenter._trainer = trainer
    label = (torch.rand(2, 1, 16, 16, 16) > 0.9).float()
    batch = {
        "image": torch.rand_like(label), "label": label, "patient": torch.tensor([1, 2]),
        "name": ["a", "b"], "step": step, "batch_index": 0,
    }  # fmt: skip
    optimizer = torch.optim.SGD(segmenter.network.parameters(), 0.1)
    averages = [p.detach().clone() for p in segmenter.parameters()]
    with HostReads() as host:
        segmenter.training_step(batch, 0).backward()
        optimizer.step()
        update_average(averages, [*segmenter.parameters()], 0.9, step)
    assert len(host.found) == reads, host.found


def test_dropout_of_processes_that_train_together_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    segmenter = Segmenter(NET, LOSS, {})
    monkeypatch.setattr(segmenter, "log_metrics", lambda *_: None)
    image = torch.zeros(1, 1, 16, 16, 16)
    for rank in (0, 1):
        trainer: Any = SimpleNamespace(
            global_step=1, log_every_n_steps=10, global_rank=rank, world_size=1
        )
        segmenter._trainer = trainer
        segmenter.training_step({"image": image, "label": image, "step": 1, "name": ["a"]}, 0)
    assert len(set(seeds)) == 2


def test_where_memory_runs_out_windows_are_summed_on_the_cpu_before_it_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    segmenter = Segmenter(NET, LOSS, {}, view={"size": [16, 16, 16], "overlap": 0.25}).eval()
    image, calls = torch.rand(1, 1, 24, 16, 16), []
    with torch.no_grad():
        expected = segmenter(image)

    def full(*args: Any, device: torch.device | None, **options: Any) -> Any:
        calls.append(device)
        if device is None:
            raise RuntimeError("CUDNN_STATUS_ALLOC_FAILED")
        return sliding_window_inference(*args, device=device, **options)

    monkeypatch.setattr(segmenter_module, "sliding_window_inference", full)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(segmenter(image), expected)
    assert calls == [None, torch.device("cpu"), torch.device("cpu")]
    monkeypatch.setattr(segmenter.network, "forward", lambda image: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        segmenter(image)


def test_a_loss_that_is_not_finite_in_one_process_ends_all_of_them() -> None:
    segmenter = Segmenter(NET, LOSS, {})
    trainer = trainer_at(10)
    trainer.world_size, answers = 2, []
    trainer.strategy = SimpleNamespace(
        reduce_boolean_decision=lambda is_finite: answers.append(is_finite)
    )  # another process says no
    segmenter._trainer = trainer
    with pytest.raises(Incomplete, match="the loss is"):
        segmenter.check_finite(torch.tensor(0.5), "step 10: the loss", ["a"])
    assert answers == [True]
