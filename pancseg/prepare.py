"""``python -m pancseg.prepare``: folders of DICOM, NIfTI or NRRD become a prepared folder."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from pancseg.cli import command
from pancseg.errors import Incomplete, PancsegError, printable

if TYPE_CHECKING:
    from pancseg.intake.convert import Preparation, PrepareSettings, Result
    from pancseg.intake.match_labels import SourceContents
    from pancseg.intake.pseudonyms import Pseudonyms
    from pancseg.intake.volume_files import ReadOptions

MAX_REFUSALS = 20  # on the console; intake.csv holds all
OUTPUT_FOLDERS = ("cases", "groups", "pictures")
Paths = dict[str, Path | None]  # of a source, by key
PATH_KEYS = ("images", "labels", "folder")  # keys of a source that are paths


def prepare(cfg: DictConfig) -> None:
    """Prepare ``cfg.data.root``; Incomplete if some input was refused."""
    if count := len(fill_prepared_folder(cfg)):
        raise Incomplete(f"{count} refused, the rest is done; see {cfg.data.root}/intake.csv")


def fill_prepared_folder(cfg: DictConfig) -> list[str]:
    """Fill ``cfg.data.root`` from ``cfg.source``; return a line for each refused input."""
    from hydra.utils import instantiate

    from pancseg.intake.convert import Preparation
    from pancseg.intake.pseudonyms import make_pseudonyms, store_names
    from pancseg.parallel import Shard

    settings, options = read_settings(cfg)
    shard = None if cfg.get("shard") is None else Shard.parse(cfg.shard)
    root, paths = settings.root, source_paths(cfg.source)
    check_root(root, paths)
    contents = instantiate(cfg.source, **paths, _partial_=True)(options=options)
    for warning in [*contents.warnings, *check_contents(contents, paths)]:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    key_file = Path(cfg.privacy.key_file or root.parent / "privacy.key")
    pseudonyms = make_pseudonyms(cfg.privacy.names, key_file)
    kept = manifest_settings(cfg, paths, pseudonyms, settings)
    preparation = Preparation(settings, kept, pseudonyms)
    store_names(pseudonyms, [case.patient for case in contents.cases])
    results = preparation.run(contents, options.processes, shard)
    if shard is None:
        lines, problems = summarise(preparation, results)
    else:
        problems = [f"{r.rows[0].path}: {r.rows[0].reason}" for r in results if r.case is None]
        summary = f"shard {cfg.shard}: {len(results)} cases, refused {len(problems)}"
        lines = [f"{summary}; when all shards are done, run the same command without shard"]
    shown = [f"refused {problem}" for problem in problems[:MAX_REFUSALS]]
    if len(problems) > MAX_REFUSALS:
        shown.append(f"and {len(problems) - MAX_REFUSALS} more, see intake.csv")
    if repairs := sorted({key for result in results for key in result.repairs}):
        keys = " ".join(f"repair.{key}=resample" for key in repairs)
        shown.append(f"{keys}, with another data.root, resamples such series")
    lines[1:1] = shown
    named = [result for result in results if cfg.show_names and result.structure_names]
    lines += [f"{result.rows[-1].path}: {', '.join(result.structure_names)}" for result in named]
    for line in lines:  # to the console alone: paths of input files stand in no log
        print(printable(line))
    return problems


def read_settings(cfg: DictConfig) -> tuple["PrepareSettings", "ReadOptions"]:
    """The prepared folder, how its cases are cut and checked, and how scans are read."""
    from pancseg.dicom.series import Repair
    from pancseg.intake.checks import Checks
    from pancseg.intake.convert import GroupSettings, PrepareSettings
    from pancseg.intake.volume_files import ReadOptions
    from pancseg.parallel import cores
    from pancseg.structures import parse_structures

    if cfg.labels is not None and not (OmegaConf.is_list(cfg.labels) and cfg.labels):
        raise PancsegError(f"labels={cfg.labels}: expected null or a list, such as labels=[1,2]")
    labels = None if cfg.labels is None else list(cfg.labels)
    node: Any = OmegaConf.to_container(cfg.structures, resolve=True)
    thresholds: Any = OmegaConf.to_container(cfg.checks, resolve=True)
    structures, checks = parse_structures(node, labels), Checks(**thresholds)
    if checks.volume_ml is not None and len(structures) > 1:
        keys = " or ".join(f"structures.{s.name}.volume_ml=" for s in structures)
        raise PancsegError(f"checks.volume_ml: there are {len(structures)} structures; give {keys}")
    for key, rule in cfg.repair.items():
        if rule not in ("refuse", "resample"):
            raise PancsegError(f"repair.{key}={rule}: expected refuse or resample")
    repair = Repair(**{key: rule == "resample" for key, rule in cfg.repair.items()})
    processes = cores() if cfg.processes is None else cfg.processes
    if not isinstance(processes, int) or processes < 0:
        raise PancsegError(f"processes={processes}: expected null, 0 or a number of processes")
    groups = GroupSettings(cfg.data.depth, cfg.data.tail, cfg.data.keep_empty)
    settings = PrepareSettings(Path(cfg.data.root), groups, checks, structures)
    return settings, ReadOptions(structures, repair, processes)


def source_paths(source: DictConfig) -> Paths:
    """Absolute paths and patterns of a source, None for ``labels=null``; PancsegError without."""
    from pancseg.intake.sources import expand_pattern, is_pattern

    paths: Paths = {}
    keys = set(source.keys())  # "in" on the node itself is false for a value not given yet
    for key in (key for key in PATH_KEYS if key in keys):
        value = "" if OmegaConf.is_missing(source, key) else source[key]
        if value is None and key == "labels":
            paths[key] = None
            continue
        if not value:
            extra = ", or source.labels=null to convert images alone" * (key == "labels")
            raise PancsegError(f"source.{key} is not given; give a folder{extra}")
        path = Path(value).expanduser().absolute()
        # one spelling of a path, so that a case is recognised again
        paths[key] = path if is_pattern(path) else path.resolve()
        if not (expand_pattern(path) if is_pattern(path) else path.exists()):
            raise PancsegError(f"source.{key}={value}: no such file or folder")
    return paths


def check_root(root: Path, paths: Paths) -> None:
    """Check that a folder is a prepared one, or free to become one, and no source lies in it."""
    from pancseg.data.manifest import has_manifest

    for source in paths.values():
        if source and source.resolve().is_relative_to(root.resolve()):
            raise PancsegError(f"{source}: lies in data.root={root}; give another data.root")
    filled = [name for name in OUTPUT_FOLDERS if any((root / name).glob("*"))]
    if filled and not has_manifest(root):
        raise PancsegError(
            f"{root}: holds {filled[0]}/ but no manifest.json, so it is not a prepared folder; "
            "give another data.root"
        )


def check_contents(contents: "SourceContents", paths: Paths) -> list[str]:
    """A warning where no image has a label; PancsegError where there is no image at all."""
    from pancseg.intake.match_labels import UNMATCHED

    if contents.cases:
        return []
    refused = [skipped for skipped in contents.skipped if skipped.status == "refused"]
    reason = next((skipped.reason for skipped in refused if skipped.kind == "image"), None)
    images = f"source.images={paths['images']}" if "images" in paths else str(paths["folder"])
    if reason is None:
        detail = f" ({refused[0].path}: {refused[0].reason})" if refused else ""
        raise PancsegError(f"{images}: holds no image that this source reads{detail}")
    if not paths.get("labels") or not reason.startswith(UNMATCHED):
        return []
    return [
        f"source.labels={paths['labels']}: no label there belongs to an image ({reason}); labels "
        "need a reference to the images, their PatientID and geometry, or their relative paths, as "
        "images/p7 and labels/p7"
    ]


def manifest_settings(
    cfg: DictConfig, paths: Paths, pseudonyms: "Pseudonyms", settings: "PrepareSettings"
) -> dict[str, Any]:
    """Settings that the manifest keeps; paths only as hashes, because they may name patients."""
    kept: dict[str, Any] = {**vars(settings.groups), "names": pseudonyms.key_id}
    kept["source"] = cfg.source._target_.rpartition(".")[2]
    for key in sorted(str(key) for key in cfg.source if key != "_target_"):
        path = paths.get(key)
        kept[f"source.{key}"] = pseudonyms.hash(str(path)) if path else cfg.source[key]
    for structure in settings.structures:
        labels = structure.labels and list(structure.labels)
        kept[f"structures.{structure.name}.labels"] = labels
    return kept | {f"repair.{key}": rule for key, rule in cfg.repair.items()}


def summarise(preparation: "Preparation", results: list["Result"]) -> tuple[list[str], list[str]]:
    """Summary of a prepared folder and advice; and a line for each refused image, label or file."""
    from pancseg.intake.checks import FLAGS, INFO_FLAGS
    from pancseg.intake.match_labels import IMAGE_REFUSED

    rows, cases, cut = preparation.rows.values(), preparation.cases, preparation.settings.groups
    images = [row for row in rows if row.kind == "image"]
    refused = [row for row in rows if row.status == "refused"]
    problems = sorted(f"{r.path}: {r.reason}" for r in refused if r.reason != IMAGE_REFUSED)
    problems += preparation.problems
    total = len(cases) + sum(row.kind == "image" for row in refused)
    added = sum(result.input_hash in cases for result in results)
    unlabelled = sum(case.label is None for case in cases.values())
    flags = [{f.partition(":")[0] for f in row.flags.split()} for row in images if row.case]
    flagged = sum(bool(names.difference(INFO_FLAGS)) for names in flags)
    groups = "no groups"
    if cut.depth is not None:
        count = sum(map(len, preparation.groups.values()))
        empty = sum(int(row.groups_empty or 0) for row in images)
        tails = sum(int(row.groups_tail or 0) for row in images)
        groups = (
            f"{count} groups of {cut.depth} ({empty} empty groups "
            f"{'kept' if cut.keep_empty else 'dropped'}, {tails} incomplete groups left out)"
        )
    lines = [
        f"{preparation.root}: kept {len(cases)} of {total} cases ({added} new, {unlabelled} "
        f"unlabelled, {flagged} flagged), {groups}; refused {len(problems)}{':' * bool(problems)}"
    ]
    for flag in FLAGS:
        if flag not in INFO_FLAGS and (count := sum(flag in names for names in flags)):
            lines.append(f"flagged {flag}, {count} case{'s' * (count != 1)}: {FLAGS[flag]}")
    lines += [*preparation.corrections, f"look at {preparation.root / 'intake.png'}"]
    return lines, problems


main = command(prepare)

if __name__ == "__main__":
    main()
