"""``python -m pancseg.prepare``: folders of DICOM or NIfTI become a prepared folder."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from pancseg.command import command
from pancseg.errors import Incomplete, PancsegError

if TYPE_CHECKING:
    from pancseg.dataset.preparation import Preparation
    from pancseg.intake.found import Found, Reading
    from pancseg.intake.pseudonyms import Names

PLACES = ("images", "labels", "folder")  # keys of a source that are paths
MOST_TOLD = 20  # refusals on the console; intake.csv holds all


def prepare(cfg: DictConfig) -> None:
    """Prepare what the configuration names.

    Raises:
        PancsegError: If nothing can be done.
        Incomplete: If some input was refused.
    """
    problems = prepare_root(cfg)
    if problems:
        raise Incomplete(
            f"{len(problems)} refused, the rest is done; see {cfg.data.root}/intake.csv"
        )


def prepare_root(cfg: DictConfig) -> list[str]:
    """Fill ``cfg.data.root`` from ``cfg.source`` and return what was refused."""
    from hydra.utils import instantiate

    from pancseg.dataset.filling import fill, lock
    from pancseg.dataset.groups import Cutting, check_cut
    from pancseg.dataset.preparation import Preparation
    from pancseg.dataset.preparation_checks import check_root
    from pancseg.intake.checks.flags import Checks
    from pancseg.intake.pseudonyms import make_names, remember
    from pancseg.progress import follow

    check_cut(cfg.data.depth, cfg.data.tail)
    checks = Checks(**OmegaConf.to_container(cfg.checks))  # type: ignore[arg-type]
    reading, root = reading_of(cfg), Path(cfg.data.root)
    keys = set(cfg.source.keys())  # "in" on the node itself is false for what is not given yet
    paths = {name: existing(cfg.source, name) for name in PLACES if name in keys}
    check_root(root, [path for path in paths.values() if path])
    found = instantiate(cfg.source, **paths, _partial_=True)(reading=reading)
    for warning in [*found.warnings, *nothing_found(found, paths)]:
        print(f"warning: {warning}", file=sys.stderr)
    names = make_names(cfg.privacy.names, Path(cfg.privacy.key_file or root.parent / "privacy.key"))
    remember(names, [candidate.patient for candidate in found.candidates])
    cutting = Cutting(cfg.data.depth, cfg.data.tail, cfg.data.keep_empty)
    settings = {**vars(cutting), **source_settings(cfg.source, paths, names)}
    settings |= {"labels": plain(cfg.labels), "names": names.rule}
    settings |= {f"repair.{what}": rule for what, rule in cfg.repair.items()}
    with lock(root):
        preparation = Preparation(root, cutting, checks, settings, names)
        follow(fill(preparation, found, reading.processes), "preparing", "scan")
    for line in summary(preparation, found):
        print(line)  # to the console alone: paths of input files stand in no log
    return preparation.problems


def reading_of(cfg: DictConfig) -> "Reading":
    """How scans are read.

    Raises:
        PancsegError: If a rule is unknown.
    """
    from pancseg.intake.dicom.stack import Repair
    from pancseg.intake.found import Reading
    from pancseg.processes import cores

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
    from pancseg.intake.layouts.places import is_pattern, places_of

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


def nothing_found(found: "Found", paths: dict[str, Path | None]) -> list[str]:
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


def source_settings(
    source: DictConfig, paths: dict[str, Path | None], names: "Names"
) -> dict[str, Any]:
    """What the manifest keeps of a source: its paths only as hashes, for they may name patients."""
    settings = {"source": str(source._target_).rpartition(".")[2]}
    for key in sorted(str(key) for key in source if key != "_target_"):
        path = paths.get(key)
        settings[f"source.{key}"] = names.hash(str(path)) if path else source[key]
    return settings


def summary(preparation: "Preparation", found: "Found") -> Iterable[str]:
    """Closing lines: what was kept, what was refused and why."""
    from pancseg.dataset.contact_sheet import FACTS

    manifest, refused = preparation.manifest, preparation.problems
    counts = [row for row in preparation.rows.values() if row.kind == "image"]
    empty = sum(int(row.groups_empty or 0) for row in counts)
    tails = sum(int(row.groups_tail or 0) for row in counts)
    looked_at = len(manifest.cases) + sum(row.status == "refused" for row in counts)
    unlabelled = sum(case.label is None for case in manifest.cases)
    raised = [set(str(row.flags).split()).difference(FACTS) for row in counts if row.case]
    flagged = sum(map(bool, raised))
    cutting = preparation.cutting
    dropped = "kept" if cutting.keep_empty else "dropped"
    groups = (
        "no groups"
        if cutting.depth is None
        else f"{len(manifest.groups)} groups of {cutting.depth} ({empty} empty groups {dropped}, "
        f"{tails} incomplete groups left out)"
    )
    yield (
        f"{preparation.root}: kept {len(manifest.cases)} of {looked_at} cases "
        f"({preparation.added} new, {unlabelled} unlabelled, {flagged} flagged), {groups}; "
        f"refused {len(refused)}" + (":" if refused else "")
    )
    for line in refused[:MOST_TOLD]:
        yield f"refused {line}"
    if len(refused) > MOST_TOLD:
        yield f"and {len(refused) - MOST_TOLD} more, see intake.csv"
    codes = {line.partition(": ")[2].partition(":")[0] for line in refused}
    if codes & {"missing_slice", "uneven_gaps", "gantry_tilt"}:
        yield (
            "repair.gaps=resample and repair.tilt=resample put such series on a regular grid, with "
            "another data.root"
        )
    yield from told_flags(raised)
    yield f"look at {preparation.root / 'intake.png'}"


def told_flags(raised: list[set[str]]) -> Iterable[str]:
    """For each flag that occurred, on how many cases, what it means and what to do."""
    from pancseg.intake.checks.flags import FLAGS

    for flag, meaning in FLAGS.items():
        if count := sum(flag in flags for flags in raised):
            yield f"flagged {flag}, {count} case{'s' * (count != 1)}: {meaning}"


main = command(prepare)

if __name__ == "__main__":
    main()
