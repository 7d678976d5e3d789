"""Learning rates: known at each step, the same after a stop, told where they cannot be."""

import csv
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Timer

from pancseg.errors import PancsegError
from pancseg.learning.schedule import Schedule
from tests.conftest import Command, run_command, smoke


@pytest.mark.parametrize("kind", ["cosine", "poly"])
def test_the_rate_falls_from_full_to_nothing_and_never_rises_after_warm_up(kind: str) -> None:
    rates = [
        Schedule(kind, warmup_steps=10, power=0.9).factor(step, step / 100) for step in range(101)
    ]
    assert rates[9] > 0.9
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0, abs=1e-12)


def test_half_way_a_cosine_is_half_and_poly_is_its_power() -> None:
    assert Schedule("cosine").factor(50, 0.5) == pytest.approx(0.5)
    assert Schedule("poly", power=0.9).factor(50, 0.5) == pytest.approx(0.5**0.9)


def test_torchs_own_cosine_is_the_same() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(21):
        assert Schedule("cosine").factor(step, step / 20) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-7
        )
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("values", [{"kind": "linear"}, {"warmup_steps": -1}])
def test_a_schedule_that_is_none_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(PancsegError, match=r"schedule\."):
        Schedule(**values)  # type: ignore[arg-type]


def rates(run: Path) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row["lr"]) for row in csv.DictReader(file)]


def test_a_stopped_training_goes_on_at_the_rate_it_would_have_had(
    prepared: Path, tmp_path: Path
) -> None:
    poly = ["schedule=poly", "schedule.warmup_steps=1", "optimizer=sgd", "seed=3"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run_command("train", *smoke(prepared, whole, *poly, "trainer.max_epochs=4")) == 0
    assert run_command("train", *smoke(prepared, halves, *poly, "trainer.max_epochs=2")) == 0
    last = halves / "checkpoints" / "last.ckpt"
    assert (
        run_command(
            "train", *smoke(prepared, halves, *poly, "trainer.max_epochs=4", f"ckpt_path={last}")
        )
        == 0
    )
    assert rates(whole) == sorted(rates(whole), reverse=True)
    assert rates(halves)[2:] == pytest.approx(rates(whole)[2:])


def test_a_training_without_an_end_has_no_rate_that_falls_to_it(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    endless = ["schedule=cosine", "trainer.max_epochs=-1", "trainer.max_steps=-1"]
    ended = command("train", *smoke(prepared, tmp_path / "run", *endless))
    assert ended.code == 2
    assert "schedule=cosine: needs to know the end" in ended.err


def test_under_max_time_the_rate_follows_the_share_of_the_time(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr(Timer, "time_elapsed", lambda self, stage=None: float(next(clock)))
    monkeypatch.setattr(
        Timer, "time_remaining", lambda self, stage=None: 400.0 - self.time_elapsed()
    )
    timed = ["schedule=cosine", "schedule.warmup_steps=0", "trainer.max_time='00:00:06:40'"]
    run = tmp_path / "run"
    assert run_command("train", *smoke(prepared, run, *timed, "trainer.max_epochs=100")) == 0
    found = rates(run)
    assert found == sorted(found, reverse=True)
    assert len(found) < 20
    assert found[-1] < 0.3 * found[0]
