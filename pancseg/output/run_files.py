"""What a run left in its folder, read again for a report; a sweep is read through its runs."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pancseg.atomic import read_json
from pancseg.configuration import BEST
from pancseg.errors import PancsegError
from pancseg.scoring.score_file import read_scores

PLACES = (
    "data.root", "data.cache_folder", "split.path", "source.", "privacy.key_file",
    "hydra.run.dir", "hydra.sweep.dir", "ckpt_path", "init_from",
)  # fmt: skip
NOT_OF_A_CONFIGURATION = ("seed", "ckpt_path", "preview", "save_every_s", "privacy", "intake")


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
        return [read_json(path, is_table, "a run's summary") for path in paths if path.is_file()]

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
        figures = read_json(path, is_table, "figures that evaluate wrote")
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

    def views(self, subset: str) -> dict[str, Any]:
        """What the report scrolls through, by case."""
        paths = (self.folder / "scores" / subset / "views").glob("*.json")
        return {path.stem: read_json(path, is_table, "a case's view") for path in paths}

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
            read_json(part / "splits.json", is_table, "a split")
            for part in self.parts
            if (part / "splits.json").is_file()
        )
        before = {one for summary in self.summaries for one in summary.get("seen_before", ())}
        return before.union(*(split[name] for split in dealt for name in ("train", "val")))

    def configuration(self) -> dict[str, Any]:
        """What was trained, without seed and places: runs in which it is equal are repetitions."""
        values = self.composed()
        return {key: v for key, v in values.items() if key not in NOT_OF_A_CONFIGURATION} | {
            "data": {k: v for k, v in values.get("data", {}).items() if "root" not in k},
            "split": {
                k: v for k, v in values.get("split", {}).items() if k not in ("fold", "path")
            },
            "trainer": {k: v for k, v in values.get("trainer", {}).items() if k != "logger"},
        }

    @property
    def seed(self) -> int | None:
        """Seed of the run."""
        return self.composed().get("seed")

    def composed(self) -> dict[str, Any]:
        """The configuration that ran, unresolved; empty where it is not there."""
        path = self.parts[0] / ".hydra" / "config.yaml"
        if not path.is_file():
            return {}
        values: Any = OmegaConf.to_container(OmegaConf.load(path))
        return dict(values)

    def command(self) -> str:
        """What to type to train it again, without the places of data, which may name patients."""
        if not self.composed():
            return "the configuration of this run is not in its folder"
        path = self.folder / "multirun.yaml"
        if path.is_file():
            words, start = list(OmegaConf.load(path).hydra.overrides.task), "train -m"
        else:
            path, start = self.parts[0] / ".hydra" / "overrides.yaml", "train"
            words = list(OmegaConf.load(path)) if path.is_file() else []
        return " ".join([f"python -m pancseg.{start}", *(without_place(str(w)) for w in words)])


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


def is_table(value: Any) -> bool:
    """Whether a value read from JSON is a table."""
    return isinstance(value, dict)
