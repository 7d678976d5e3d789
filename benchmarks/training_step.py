"""What does each speed measure change? Seconds a training step, memory and waiting, on and off.

    python benchmarks/training_step.py --prepared PREPARED --work FOLDER --experiment strong

Each setting is ``pancseg.train`` in a process of its own; rounds alternate between off and on. A
step is from the end of the one before (or the begin of the epoch) to its own end, the batch's
arrival included; waiting is the part until the batch is there. The clock is the host's and waits
for no GPU, which would forbid the overlap it should show; training itself looks at the loss of each
step, so that the host cannot run ahead. The first steps warm up and are told apart, since compiling
happens there. What is not measured is at its plain value, the first of each row of MEASURES; to
measure something else, add a row. One training before all fills the cache and is not counted.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dice_over_time import machine

from pancseg.files import write_json, write_text
from pancseg.parallel import cores

FIGURES = ("step_s", "waiting", "first_s", "peak_mb", "worker_mb", "gpu_mb")


@dataclass(frozen=True)
class Measure:
    """Something that may make a step faster.

    Attributes:
        name: In the table.
        off: The override of ``pancseg.train`` without it.
        on: With it.
        needs_gpu: Whether it is left out where there is none.
    """

    name: str
    off: str
    on: str
    needs_gpu: bool = False


MEASURES = [
    Measure("channels last", "hardware.channels_last=false", "hardware.channels_last=true"),
    Measure("bf16", "hardware.precision=32-true", "hardware.precision=bf16-mixed"),
    Measure("autotuning", "hardware.benchmark=false", "hardware.benchmark=true", True),
    Measure("compiled", "hardware.compile=false", "hardware.compile=true"),
    Measure("fused optimiser", "hardware.fused=false", "hardware.fused=true"),
    Measure("pinned memory", "hardware.pin_memory=false", "hardware.pin_memory=true", True),
    Measure("workers", "hardware.num_workers=0", f"hardware.num_workers={min(8, cores())}"),
    Measure("cache in RAM", "hardware.cache=disk", "hardware.cache=ram"),
    Measure("cache on the GPU", "hardware.cache=disk", "hardware.cache=gpu", True),
]
ALL = "everything the hardware file says"


def step_clock(path: str, warmup: int) -> Any:
    """A Lightning callback that writes the times of the steps to a file when training ends."""
    from pytorch_lightning.callbacks import LambdaCallback

    steps: list[tuple[float, float]] = []  # waiting and whole step, seconds
    mark = {"begin": 0.0, "arrived": 0.0}

    def begin(*_: Any) -> None:
        mark["begin"] = time.perf_counter()

    def arrived(*_: Any) -> None:
        mark["arrived"] = time.perf_counter()

    def done(*_: Any) -> None:
        import torch

        if torch.cuda.is_available():  # a step ends when the GPU has done it
            event = torch.cuda.Event()
            event.record()
            event.synchronize()
        end = time.perf_counter()
        steps.append((mark["arrived"] - mark["begin"], end - mark["begin"]))
        mark["begin"] = end

    def write(*_: Any) -> None:
        write_json(Path(path), {**figures_of(steps, warmup), **memory()})

    return LambdaCallback(
        on_train_epoch_start=begin,
        on_train_batch_start=arrived,
        on_train_batch_end=done,
        on_train_end=write,  # while the workers are there
    )


def figures_of(steps: Sequence[tuple[float, float]], warmup: int) -> dict[str, float]:
    """Median step, share of waiting, and the first step, from (waiting, step) in seconds.

    >>> figures_of([(1.0, 9.0), (0.5, 1.0), (0.0, 1.0), (0.1, 4.0)], warmup=1)
    {'step_s': 1.0, 'waiting': 0.1, 'first_s': 9.0}
    """
    waiting, whole = zip(*steps[warmup:], strict=True)
    return {
        "step_s": statistics.median(whole),
        "waiting": round(sum(waiting) / sum(whole), 4),
        "first_s": steps[0][1],
    }


def memory() -> dict[str, float]:
    """Peaks of this process, of its largest worker and of the GPU, MB."""
    import torch

    workers = [peak_mb(one.pid) for one in multiprocessing.active_children()]
    gpu = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else 0.0
    return {"peak_mb": peak_mb("self"), "worker_mb": max(workers, default=0.0), "gpu_mb": gpu}


def peak_mb(process: object) -> float:
    """Largest resident memory of a running process, MB; Linux tells it, 0 elsewhere."""
    status = Path(f"/proc/{process}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(found[0]) * 1024 / 1e6 if found else 0.0


def train_here(overrides: Sequence[str], out: str, warmup: int) -> None:
    """Train in this process, with the clock among the callbacks."""
    import hydra
    from omegaconf import open_dict

    from pancseg.config import conf_folder, register_resolvers
    from pancseg.train import train

    register_resolvers()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = hydra.compose("train", list(overrides))
    with open_dict(cfg):
        clock = {"_target_": "__main__.step_clock", "path": out, "warmup": warmup}
        cfg.callbacks.clock = clock
    train(cfg)


def measured(overrides: Sequence[str], work: Path, warmup: int) -> dict[str, float] | str:
    """Figures of one training in a process of its own, or the line that says why there are none."""
    out, log = work / "step.json", work / "last_run.txt"
    out.unlink(missing_ok=True)
    words = [sys.executable, str(Path(__file__).resolve()), "--child", str(out)]
    words += ["--warmup", str(warmup), "--", *overrides]
    with log.open("w") as said:
        subprocess.run(words, stdout=said, stderr=subprocess.STDOUT, cwd=work, env={**os.environ})
    if not out.exists():
        lines = (log.read_text().strip() or "no output").splitlines()
        return " ".join(lines[-2:])[:200].replace("|", "/")
    return json.loads(out.read_text())


def plain_values() -> list[str]:
    """Every measure off, each key once."""
    return list(dict.fromkeys(measure.off for measure in MEASURES))


def settings(names: Sequence[str], has_gpu: bool) -> dict[tuple[str, str], list[str]]:
    """Overrides of each measure, off and on; and the hardware file as it is beside all off."""
    found: dict[tuple[str, str], list[str]] = {}
    for measure in MEASURES:
        if measure.name in names and (has_gpu or not measure.needs_gpu):
            found[measure.name, "off"] = [*plain_values(), measure.off]
            found[measure.name, "on"] = [*plain_values(), measure.on]
    if ALL in names:
        found[ALL, "off"], found[ALL, "on"] = plain_values(), []
    return found


def medians(runs: Sequence[dict[str, float] | str]) -> dict[str, float] | str:
    """Median of each figure over the rounds; the first complaint where a round has none."""
    complaints = [run for run in runs if isinstance(run, str)]
    if complaints:
        return complaints[0]
    return {name: statistics.median(run[name] for run in runs) for name in FIGURES}  # type: ignore[index]


def table(results: dict[tuple[str, str], dict[str, float] | str]) -> str:
    """Markdown, off and on of each measure, and how many times faster on is."""
    lines = ["| measure | | s a step | times as fast | waiting | first step s | peak MB |"]
    lines[0] += " worker MB | GPU MB |"
    lines.append("|--|--|--|--|--|--|--|--|--|")
    for (name, state), figures in results.items():
        if isinstance(figures, str):
            lines.append(f"| {name} | {state} | did not run: {figures} | | | | | | |")
            continue
        base = results[name, "off"]
        ratio = f"{base['step_s'] / figures['step_s']:.2f}" if isinstance(base, dict) else ""
        step, first = f"{figures['step_s']:.3g}", f"{figures['first_s']:.3g}"
        waiting = f"{figures['waiting']:.0%}"
        sizes = " | ".join(f"{figures[key]:.0f}" for key in FIGURES[3:])
        lines.append(f"| {name} | {state} | {step} | {ratio} | {waiting} | {first} | {sizes} |")
    return "\n".join(lines) + "\n"


def report(chosen: argparse.Namespace) -> None:
    """Measure, and write ``training_step.json`` and ``training_step.md``."""
    import torch

    work = chosen.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    common = [f"experiment={chosen.experiment}", f"data.root='{chosen.prepared.resolve()}'"]
    common += ["split=same", "trainer.limit_val_batches=0"]
    common += [f"trainer.max_steps={chosen.warmup + chosen.steps}", "trainer.max_epochs=-1"]
    wanted = settings(
        chosen.measures or [m.name for m in MEASURES] + [ALL], has_gpu=torch.cuda.is_available()
    )
    trial = measured([*common, *plain_values(), *chosen.overrides], work, chosen.warmup)
    if isinstance(trial, str):  # it also fills the cache, so that no setting pays for it
        raise SystemExit(f"the training with every measure off did not run: {trial}")
    runs: dict[tuple[str, str], list[dict[str, float] | str]] = {key: [] for key in wanted}
    for number in range(chosen.rounds):
        for key in list(wanted)[:: 1 if number % 2 == 0 else -1]:
            overrides = [*common, *wanted[key], *chosen.overrides]
            runs[key].append(measured(overrides, work, chosen.warmup))
            print(number + 1, *key, runs[key][-1], flush=True)
    results = {key: medians(values) for key, values in runs.items()}
    command = f"`python benchmarks/training_step.py {shlex.join(sys.argv[1:])}`"
    told = f"{command}, {machine()}, {datetime.date.today()}. Median of {chosen.steps} steps, "
    told += f"then of {chosen.rounds} rounds; MB are peaks of the process and its largest worker."
    rows = [{"measure": k[0], "state": k[1], "result": value} for k, value in results.items()]
    write_json(work / "training_step.json", {"about": told, "results": rows})
    write_text(work / "training_step.md", f"{told}\n\n{table(results)}")
    print((work / "training_step.md").read_text())


def main() -> None:
    """Measure, or be one of the trainings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prepared", type=Path, help="prepared folder")
    parser.add_argument("--work", type=Path, help="where to write")
    parser.add_argument("--experiment", default="recipe64")
    parser.add_argument("--steps", type=int, default=20, help="measured, after the warm-up")
    parser.add_argument("--warmup", type=int, default=5, help="steps")
    parser.add_argument("--rounds", type=int, default=3)
    names = [*(measure.name for measure in MEASURES), ALL]
    parser.add_argument("--measures", nargs="+", choices=names, help="all of them by default")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="of pancseg.train, after --")
    chosen = parser.parse_args()
    if chosen.child:
        train_here(chosen.overrides, chosen.child, chosen.warmup)
    elif chosen.prepared and chosen.work:
        report(chosen)
    else:
        parser.error("--prepared and --work are needed")


if __name__ == "__main__":
    main()
