"""Sending jobs to Slurm: what is lost is told, and what is missing."""

import dataclasses
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from pancseg import launching
from pancseg.command import guarded
from pancseg.configuration import conf_folder
from tests.conftest import Command
from tests.test_conf import composed

ROOT = Path(__file__).parent.parent
SLURM = conf_folder() / "hydra" / "launcher" / "slurm.yaml"
SWEEP = ["-m", "hydra/launcher=slurm", "hydra.sweep.dir=sweep", "seed=0,1"]


def test_its_file_has_the_keys_of_the_plugin_it_is_built_on() -> None:
    config = pytest.importorskip("hydra_plugins.hydra_submitit_launcher.config")
    keys = {field.name for field in dataclasses.fields(config.SlurmQueueConf)}
    assert {str(key) for key in OmegaConf.load(SLURM)} == keys


def test_without_the_package_or_without_slurm_it_is_told_in_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    ended = command("train", *SWEEP)
    assert ended.code == 2
    assert ended.err.startswith("pancseg.train: hydra/launcher=slurm: Could not detect ")
    assert ended.err.count("\n") == 1
    plugin = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
    monkeypatch.setitem(sys.modules, plugin, None)
    ended = command("train", *SWEEP)
    assert ended.code == 2
    assert "is not installed; pip install 'pancseg[slurm]'" in ended.err
    assert ended.err.count("\n") == 1


def sent(folder: Path, name: str, result: Any) -> SimpleNamespace:
    """A job as submitit knows it."""
    pickle = folder / f"{name}.pkl"
    if result is not None:
        pickle.touch()
    paths = SimpleNamespace(result_pickle=pickle, stderr=folder / f"{name}.err")
    task = SimpleNamespace(_get_outcome_and_result=lambda: result)
    return SimpleNamespace(job_id=name, paths=paths, task=lambda number: task)


def test_a_job_that_is_lost_or_failed_leaves_the_results_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done = JobReturn(status=JobStatus.COMPLETED, _return_value=0.5)
    jobs = {
        4: sent(tmp_path, "7_0", ("success", done)),
        5: sent(tmp_path, "7_1", ("error", "Traceback\nMemoryError: no room\n")),
        6: sent(tmp_path, "7_2", None),
    }
    answers = iter([None, {"7_2"}, set(), {"7_2"}, set(), set()])  # requeued once, then gone
    monkeypatch.setattr(launching, "in_queue", lambda jobs: next(answers))
    monkeypatch.setattr(launching, "LOOK_S", 0)
    monkeypatch.setattr(launching, "ASK_S", -1)
    found = launching.collect(jobs, [["a=1"], ["a=2"], ["a=3"]])
    assert found[0].return_value == 0.5
    assert [one.status for one in found[1:]] == [JobStatus.FAILED] * 2
    assert found[2].overrides == ["a=3"]
    assert next(answers, "none left") == "none left"
    told = capfd.readouterr().err.splitlines()
    assert told[0] == f"job 5 failed: MemoryError: no room; see {tmp_path / '7_1.err'}"
    assert told[1].startswith("job 6 failed: it ended without a result: cancelled, or out of")


def add_one(cfg: Any) -> int:
    return int(cfg) + 1


def test_a_job_crosses_to_another_process_by_the_name_of_its_command() -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    job = guarded(add_one, "train", [])
    sent = cloudpickle.dumps(launching.SlurmJob(job.anew, None, None))  # type: ignore[arg-type, attr-defined]
    assert b"add_one" not in sent
    there = cloudpickle.loads(sent).anew()
    assert there.__module__ == "pancseg.train"
    assert there.__wrapped__.__name__ == "train"


def test_the_commands_of_the_page_on_slurm_compose() -> None:
    page = (ROOT / "docs" / "slurm.md").read_text().replace("\\\n", " ")
    found = re.findall(r"^(?: {4}|srun )python -m pancseg\.(\w+) (.*)$", page, flags=re.MULTILINE)
    assert len(found) == 7
    for name, line in found:
        words = [word for word in shlex.split(line) if word != "-m"]
        first = []
        for one in OverridesParser.create().parse_overrides(words):
            value = next(one.sweep_string_iterator()) if one.is_sweep_override() else None
            first.append(f"{one.key_or_group}={value}" if value else str(one.input_line))
        assert composed(name, *first)
