"""What a preparation is asked for: checked, and in plain values."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pancseg.errors import PancsegError
from pancseg.intake.dicom.stack import Repair
from pancseg.intake.found import Found, Reading
from pancseg.intake.layouts.places import is_pattern, places_of
from pancseg.intake.pseudonyms import Names
from pancseg.parallel import cores

PLACES = ("images", "labels", "folder")  # keys of a source that are paths


def paths_of(source: DictConfig) -> dict[str, Path | None]:
    """The paths of a source, checked; None for labels that there are to be none of.

    Raises:
        PancsegError: If one is missing or not there.
    """
    keys = set(source.keys())  # "in" on the node itself is false for what is not given yet
    return {name: existing(source, name) for name in PLACES if name in keys}


def reading_of(cfg: DictConfig) -> Reading:
    """How scans are read.

    Raises:
        PancsegError: If a rule is unknown.
    """
    for what, rule in cfg.repair.items():
        if rule not in ("refuse", "resample"):
            raise PancsegError(f"repair.{what}={rule}: expected refuse or resample")
    choice = plain(cfg.labels)
    if not (choice is None or (isinstance(choice, list) and choice)):
        raise PancsegError(f"labels={choice}: expected null or a list, such as labels=[1,2]")
    repair = Repair(**{what: rule == "resample" for what, rule in cfg.repair.items()})
    processes = cores() if cfg.processes is None else cfg.processes
    if not isinstance(processes, int) or processes < 0:
        raise PancsegError(f"processes={processes}: expected null, 0 or a number of processes")
    return Reading(None if choice is None else tuple(choice), repair, processes)


def plain(value: Any) -> Any:
    """A value of the configuration without Hydra's own types."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def existing(source: DictConfig, name: str) -> Path | None:
    """A path or pattern of the source, checked.

    Raises:
        PancsegError: If it is missing or not there.
    """
    if OmegaConf.is_missing(source, name):
        extra = ", or source.labels=null to convert images alone" if name == "labels" else ""
        raise PancsegError(f"source.{name} is not given; give a folder{extra}")
    if source[name] is None and name == "labels":
        return None
    if not source[name]:
        raise PancsegError(f"source.{name} is empty; give a folder")
    path = Path(source[name]).expanduser()
    if is_pattern(path):
        if not places_of(path.absolute()):
            raise PancsegError(f"source.{name}={path}: no file or folder fits this pattern")
        return path.absolute()
    if not path.exists():
        raise PancsegError(f"source.{name}={path}: there is no such file or folder")
    return path.resolve()  # one spelling, so that a case is known again


def nothing_found(found: Found, paths: dict[str, Path | None]) -> list[str]:
    """A warning where everything was refused before it was read.

    Raises:
        PancsegError: If there is nothing at all that a table could tell of.
    """
    if found.candidates:
        return []
    key = "images" if "images" in paths else "folder"
    refused = [stray for stray in found.strays if stray.status == "refused"]
    first = next((stray for stray in refused if stray.kind == "image"), None)
    if first is None:
        told = f" ({refused[0].path}: {refused[0].reason})" if refused else ""
        raise PancsegError(
            f"source.{key}={paths[key]}: holds no image that this source reads{told}"
        )
    untied = ("no_label", "ambiguous", "other_patient")
    if not paths.get("labels") or not first.reason.startswith(untied):
        return []
    return [
        f"source.labels={paths['labels']}: no label there belongs to an image of {paths[key]} "
        f"({first.reason}); labels need a reference to the images, their PatientID and geometry, "
        "or their relative paths, as images/p7 and labels/p7"
    ]


def settings_of(cfg: DictConfig, paths: dict[str, Path | None], names: Names) -> dict[str, Any]:
    """What the manifest keeps of it: paths only as hashes, for they may name patients."""
    source = cfg.source
    settings = {"source": str(source._target_).rpartition(".")[2]}
    for key in sorted(str(key) for key in source if key != "_target_"):
        path = paths.get(key)
        settings[f"source.{key}"] = names.hash(str(path)) if path else source[key]
    settings |= {"labels": plain(cfg.labels), "names": names.rule}
    return settings | {f"repair.{what}": rule for what, rule in cfg.repair.items()}
