"""Learning rates over a training, by torch's schedulers of ``conf/scheduler``."""

from pathlib import Path

import pytest

from tests.conftest import Command, run_command, smoke
from tests.test_run_control import PATCHES, curves


@pytest.mark.parametrize(
    ("choice", "factors"),
    [
        # after 4, 8 and 12 steps
        ("constant", [1.0, 1.0, 1.0]),
        ("warmup", [5 / 20, 9 / 20, 13 / 20]),
        ("cosine", [0.75, 0.25, 0.0]),  # (1 + cos(pi step / 12)) / 2
        ("poly", [(8 / 12) ** 0.9, (4 / 12) ** 0.9, 0.0]),
    ],
)
def test_the_rate_follows_the_scheduler_to_the_last_step(
    prepared: Path, tmp_path: Path, choice: str, factors: list[float]
) -> None:
    words = [*PATCHES, f"scheduler={choice}", "optimizer=sgd", "optimizer.lr=0.01"]
    assert run_command("train", *smoke(prepared, tmp_path, *words, "trainer.max_epochs=3")) == 0
    rates = [float(row["lr"]) / 0.01 for row in curves(tmp_path)]
    assert rates == pytest.approx(factors, abs=1e-6)


def test_a_training_without_an_end_has_no_rate_that_falls_to_it(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    endless = ["scheduler=cosine", "trainer.max_epochs=-1", "trainer.max_steps=-1"]
    ended = command("train", *smoke(prepared, tmp_path / "run", *endless))
    assert ended.code == 2
    assert "scheduler.T_max: give it, trainer.max_epochs or trainer.max_steps" in ended.err
    given = [*endless, "scheduler.T_max=10", "trainer.max_time=00:00:00:01"]
    assert command("train", *smoke(prepared, tmp_path / "given", *given)).code == 0


def test_any_other_scheduler_of_torch_is_named_by_its_target(
    prepared: Path, tmp_path: Path
) -> None:
    words = [*PATCHES, "scheduler._target_=torch.optim.lr_scheduler.StepLR", "~scheduler.factor"]
    words += ["~scheduler.total_iters", "+scheduler.step_size=4", "+scheduler.gamma=0.5"]
    run = smoke(prepared, tmp_path, *words, "optimizer.lr=0.01", "trainer.max_epochs=2")
    assert run_command("train", *run) == 0
    assert [float(row["lr"]) for row in curves(tmp_path)] == pytest.approx([0.005, 0.0025])
