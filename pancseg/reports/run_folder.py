"""Files of a run, read for reports. The run may be a stranger's: links are not followed."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pancseg.config import BEST, SPLITS, SUMMARY
from pancseg.errors import PancsegError, printable
from pancseg.files import read_json
from pancseg.metrics.tables import read_scores
from pancseg.reports.tables import worst_first

EXTERNAL = "external"  # name of the scores of masks of other tools
PATH_KEYS = (
    "data.root", "data.cache_folder", "split.path", "source.", "privacy.key_file",
    "hydra.run.dir", "hydra.sweep.dir", "ckpt_path", "init_from",
)  # fmt: skip
FIGURES = {"n", "held_out", "phantoms", "geometry", "dice", "hd95_mm", "calibration", "flags"}


@dataclass(frozen=True)
class Run:
    """A run, a sweep whose runs were scored together, or scores of masks of other tools."""

    folder: Path
    run_folders: list[Path]  # the run itself, those of the sweep, or none

    @property
    def is_sweep(self) -> bool:
        """Whether it is a sweep."""
        return self.run_folders not in ([], [self.folder])

    @property
    def summaries(self) -> list[dict[str, Any]]:
        """``summary.json`` of each run that has ended."""
        return self.read_all(SUMMARY, "a run's summary")

    @property
    def name(self) -> str:
        """Name in the configuration, or else of the folder."""
        names = sorted({str(summary["name"]) for summary in self.summaries})
        return printable(", ".join(names) or self.folder.absolute().name)

    def has(self, path: Path) -> bool:
        """Whether a path is a file inside the folder."""
        return is_inside(path, self.folder)

    def read_all(self, name: str, description: str) -> list[dict[str, Any]]:
        """JSON of each run that has the file."""
        paths = [run / name for run in self.run_folders]
        return [read_json(path, description) for path in paths if self.has(path)]

    def figures(self, subset: str) -> dict[str, Any]:
        """``scores/<subset>.json``; of masks of other tools ``scores/external.json``."""
        path = self.folder / "scores" / f"{subset if self.run_folders else EXTERNAL}.json"
        if not self.has(path) or not self.has(path.with_suffix(".csv")):
            checkpoint = self.folder if self.is_sweep else self.folder / BEST
            raise PancsegError(
                f"{self.folder}: has no scores of {subset}; run "
                f"python -m pancseg.evaluate checkpoint={checkpoint} subset={subset}"
            )
        description = "figures that evaluate wrote"
        return read_json(path, description, lambda v: isinstance(v, dict) and v.keys() >= FIGURES)

    def rows(self, subset: str) -> list[dict[str, Any]]:
        """Rows of ``scores/<subset>.csv``, the lowest Dice first, those without Dice last."""
        name = subset if self.run_folders else EXTERNAL
        return worst_first(read_scores(self.folder / "scores", name))

    def views(self, subset: str, cases: Iterable[str], ending: str = "") -> dict[str, Any]:
        """Slices for the report of those cases that have any, by case: ``<case><ending>.json``."""
        folder = self.folder / "scores" / subset / "views"
        paths = {case: folder / f"{case}{ending}.json" for case in cases}
        inside = {case: p for case, p in paths.items() if is_inside(p, folder) and self.has(p)}
        return {case: read_json(path, "slices of a case") for case, path in inside.items()}

    def history(self) -> list[dict[str, Any]]:
        """Rows of ``metrics.csv`` of a single run; none for a sweep."""
        path = self.folder / "metrics.csv"
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if self.has(path) else []
            rows = csv.DictReader(lines)
            return [{key: float(text) if text else None for key, text in r.items()} for r in rows]
        except (ValueError, TypeError, csv.Error) as error:
            raise PancsegError(f"{path}: cannot be read as metrics of epochs ({error})") from error

    def trained_on(self) -> set[str]:
        """Patients who were trained on, or used to choose a checkpoint, in any run."""
        splits = self.read_all(SPLITS, "a split")
        lists = [split[subset] for split in splits for subset in ("train", "val")]
        return set().union(*lists, *(s.get("seen_before", ()) for s in self.summaries))

    def composed(self) -> dict[str, Any]:
        """The configuration of the first run, unresolved; empty without a file."""
        path = self.run_folders[0] / ".hydra" / "config.yaml" if self.run_folders else None
        return read_yaml(path, dict) if path and self.has(path) else {}

    def command(self) -> str:
        """Command line of the training, without paths of data, which may name patients."""
        if not self.composed():
            return "the configuration of this run is not in its folder"
        path, start = self.run_folders[0] / ".hydra" / "overrides.yaml", "train"
        overrides = read_yaml(path, list) if self.has(path) else []
        if self.has(path := self.folder / "multirun.yaml"):
            hydra, start = read_yaml(path, dict).get("hydra") or {}, "train -m"
            overrides = (hydra.get("overrides") or {}).get("task") or []
        texts = [without_path(str(o)) for o in overrides if not str(o).startswith("trial=")]
        return " ".join([f"python -m pancseg.{start}", *texts])


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is a file below a folder, without links or ``..`` on the way."""
    is_below = path.is_file() and path.is_relative_to(folder)
    return is_below and path.resolve() == folder.resolve() / path.relative_to(folder)


def open_run(folder: Path, key: str = "run") -> Run:
    """Open the folder of a run, a sweep or ``evaluate predictions=``, or refuse the option."""
    if not folder.is_dir():
        raise PancsegError(f"{key}={folder}: there is no such folder")
    if (folder / BEST).is_file() or (folder / SUMMARY).is_file():
        return Run(folder, [folder])
    jobs = [run for run in folder.iterdir() if (run / BEST).is_file()]
    run_folders = sorted(jobs, key=lambda run: (len(run.name) * run.name.isdecimal(), run.name))
    if not run_folders and not (folder / "scores" / f"{EXTERNAL}.json").is_file():
        raise PancsegError(
            f"{key}={folder}: is not the folder of a run; it holds neither {BEST} nor "
            f"scores/{EXTERNAL}.json"
        )
    return Run(folder, run_folders)


def read_yaml(path: Path, kind: type) -> Any:
    """The ``dict`` or ``list`` in a file that Hydra wrote.

    Interpolations are not resolved: ``${oc.env:...}`` would put secrets of this machine in a page.
    Aliases, which can expand to fill the memory, are refused.
    """
    try:
        text = path.read_text(encoding="utf-8")
        aliases = [e for e in yaml.parse(text, yaml.SafeLoader) if isinstance(e, yaml.AliasEvent)]
        values = None if aliases else OmegaConf.to_container(OmegaConf.create(text))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError, OSError) as error:
        name = type(error).__name__
        raise PancsegError(f"{path}: cannot be read as a file of Hydra ({name})") from error
    if not isinstance(values, kind):
        raise PancsegError(f"{path}: cannot be read as a file of Hydra (no {kind.__name__})")
    return values


def without_path(override: str) -> str:
    """An override without the path that it may hold.

    >>> without_path("data.root=/scans/Miller"), without_path("seed=1")
    ('data.root=...', 'seed=1')
    """
    name, equals, _ = override.lstrip("+~").partition("=")
    return f"{name}{equals}..." if name.startswith(PATH_KEYS) else override
