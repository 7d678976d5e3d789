"""What a run left in its folder, read again for a report; a sweep is read through its runs."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pancseg.config import BEST, changes_result, leaves
from pancseg.errors import PancsegError
from pancseg.files import read_json
from pancseg.scoring.score_file import read_scores

PLACES = (
    "data.root", "data.cache_folder", "split.path", "source.", "privacy.key_file",
    "hydra.run.dir", "hydra.sweep.dir", "ckpt_path", "init_from",
)  # fmt: skip
OF_A_REPETITION = ("seed", "data.root", "split.fold", "split.path")  # in which runs may differ


@dataclass(frozen=True)
class Run:
    """A run, or a sweep whose runs were judged together.

    Attributes:
        folder: Of the run or the sweep.
        parts: Folders of the runs: the run itself, or those of the sweep.
    """

    folder: Path
    parts: list[Path]

    @property
    def summaries(self) -> list[dict[str, Any]]:
        """``summary.json`` of each part that came to its end."""
        paths = [part / "summary.json" for part in self.parts]
        return [read_json(path, "a run's summary") for path in paths if path.is_file()]

    @property
    def name(self) -> str:
        """What was trained, as its configuration names it, or else its folder."""
        names = {summary["name"] for summary in self.summaries}
        return ", ".join(sorted(names)) or self.folder.name

    def figures(self, subset: str) -> dict[str, Any]:
        """``scores/<subset>.json``.

        Raises:
            PancsegError: If the subset was not scored.
        """
        path = self.folder / "scores" / f"{subset}.json"
        if not path.is_file() or not path.with_suffix(".csv").is_file():
            raise PancsegError(
                f"{self.folder}: its {subset} patients are not scored yet; run "
                f"python -m pancseg.evaluate checkpoint={self.checkpoint} subset={subset}"
            )
        figures = read_json(path, "figures that evaluate wrote")
        if "postprocess_origin" not in figures:
            raise PancsegError(
                f"{path}: was written by an earlier version; run python -m pancseg.evaluate "
                f"checkpoint={self.checkpoint} subset={subset} again"
            )
        return figures

    @property
    def checkpoint(self) -> Path:
        """What ``evaluate`` is given."""
        return self.folder if self.is_sweep else self.folder / BEST

    @property
    def is_sweep(self) -> bool:
        """Whether it is a sweep's folder."""
        return self.parts != [self.folder]

    def rows(self, subset: str) -> list[dict[str, Any]]:
        """Rows of ``scores/<subset>.csv``, the lowest Dice first, those without one last."""
        rows = read_scores(self.folder / "scores", subset)
        return sorted(rows, key=lambda row: (row["dice"] is None, row["dice"] or 0.0))

    def views(self, subset: str, cases: Iterable[str]) -> dict[str, Any]:
        """What the report scrolls through of some cases, by case."""
        folder = self.folder / "scores" / subset / "views"
        paths = (folder / f"{case}.json" for case in cases)
        there = (path for path in paths if path.is_file())
        return {path.stem: read_json(path, "a case's view") for path in there}

    def history(self) -> list[dict[str, Any]]:
        """Rows of ``metrics.csv`` of a single run; none of a sweep, or where it is not there."""
        path = self.folder / "metrics.csv"
        if not path.is_file():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [{key: float(text) if text else None for key, text in row.items()} for row in rows]

    def trained_on(self) -> set[str]:
        """Patients whom a part trained on or chose by."""
        dealt = (
            read_json(part / "splits.json", "a split")
            for part in self.parts
            if (part / "splits.json").is_file()
        )
        before = {one for summary in self.summaries for one in summary.get("seen_before", ())}
        return before.union(*(split[name] for split in dealt for name in ("train", "val")))

    def configuration(self) -> dict[str, Any]:
        """What was trained, by dotted key: runs in which it is equal are repetitions."""
        told = leaves(self.composed())
        return {k: v for k, v in told if changes_result(k) and k not in OF_A_REPETITION}

    @property
    def seed(self) -> int | None:
        """Seed of the run."""
        return self.composed().get("seed")

    def composed(self) -> dict[str, Any]:
        """The configuration that ran, unresolved; empty where it is not there."""
        path = self.parts[0] / ".hydra" / "config.yaml"
        if not path.is_file():
            return {}
        return read_yaml(path, dict)

    def command(self) -> str:
        """What to type to train it again, without the places of data, which may name patients."""
        if not self.composed():
            return "the configuration of this run is not in its folder"
        path = self.folder / "multirun.yaml"
        if path.is_file():
            words, start = told_in(read_yaml(path, dict)), "train -m"
        else:
            path, start = self.parts[0] / ".hydra" / "overrides.yaml", "train"
            words = read_yaml(path, list) if path.is_file() else []
        return " ".join([f"python -m pancseg.{start}", *(without_place(str(w)) for w in words)])


def read_yaml(path: Path, kind: type) -> Any:
    """Plain values of a file that Hydra wrote, as they stand there.

    Nothing in it is looked up: ``${oc.env:...}`` would put what this machine knows into a report.

    Args:
        path: The file.
        kind: What it must be: ``dict`` or ``list``.

    Raises:
        PancsegError: If it is no such file, or has parts that stand for others, by which a small
            one could fill any memory.
    """
    try:
        text = path.read_text(encoding="utf-8")
        aliases = [e for e in yaml.parse(text, yaml.SafeLoader) if isinstance(e, yaml.AliasEvent)]
        values = None if aliases else OmegaConf.to_container(OmegaConf.create(text))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError, OSError) as error:
        raise PancsegError(
            f"{path}: is no configuration of Hydra ({type(error).__name__})"
        ) from error
    if not isinstance(values, kind):
        raise PancsegError(f"{path}: is no configuration that Hydra wrote")
    return values


def told_in(sweep: dict[str, Any]) -> list[str]:
    """The overrides of a sweep; none where its configuration does not say.

    >>> told_in({"hydra": {"overrides": {"task": ["seed=1,2"]}}}), told_in({})
    (['seed=1,2'], [])
    """
    for name in ("hydra", "overrides"):
        sweep = sweep.get(name) or {}
    return list(sweep.get("task") or ())


def open_run(folder: Path, key: str = "run") -> Run:
    """Open a run's or a sweep's folder.

    Raises:
        PancsegError: If it is neither.
    """
    if not folder.is_dir():
        raise PancsegError(f"{key}={folder}: there is no such folder")
    if (folder / BEST).is_file() or (folder / "summary.json").is_file():
        return Run(folder, [folder])
    inner = sorted(one for one in folder.iterdir() if (one / BEST).is_file())
    if not inner:
        raise PancsegError(
            f"{key}={folder}: is no folder of a run: there is no {BEST} in it or in folders of it"
        )
    return Run(folder, inner)


def without_place(word: str) -> str:
    """An override, the place it may name left out.

    >>> without_place("data.root=/scans/Miller"), without_place("seed=1")
    ('data.root=...', 'seed=1')
    """
    name, equals, _ = word.lstrip("+~").partition("=")
    return f"{name}{equals}..." if name.startswith(PLACES) else word
