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
    from pancseg.parallel import Shard
    from pancseg.structures import Structure

MOST_LINES = 20  # refusals on the console; intake.csv holds all
OUTPUT_FOLDERS = ("cases", "groups", "pictures")
PATH_KEYS = ("images", "labels", "folder")  # keys of a source that are paths


def prepare(cfg: DictConfig) -> None:
    """Prepare ``cfg.data.root``.

    Raises:
        PancsegError: If nothing can be done.
        Incomplete: If some input was refused.
    """
    problems = fill_prepared_folder(cfg)
    if problems:
        raise Incomplete(
            f"{len(problems)} refused, the rest is done; see {cfg.data.root}/intake.csv"
        )


def fill_prepared_folder(cfg: DictConfig) -> list[str]:
    """Fill ``cfg.data.root`` from ``cfg.source``, or one shard of it.

    Returns:
        A line for each image, label or file that was refused.

    Raises:
        PancsegError: If nothing can be done.
    """
    from hydra.utils import instantiate

    from pancseg.intake.convert import Preparation
    from pancseg.intake.pseudonyms import make_pseudonyms, store_names
    from pancseg.parallel import Shard

    settings = prepare_settings(cfg)
    options = read_options(cfg, settings.structures)
    shard = None if cfg.get("shard") is None else Shard.parse(cfg.shard)
    root, paths = settings.root, source_paths(cfg.source)
    check_root(root, [path for path in paths.values() if path])
    contents = instantiate(cfg.source, **paths, _partial_=True)(options=options)
    for warning in [*contents.warnings, *nothing_found(contents, paths)]:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    key_file = Path(cfg.privacy.key_file or root.parent / "privacy.key")
    pseudonyms = make_pseudonyms(cfg.privacy.names, key_file)
    kept = manifest_settings(cfg, paths, pseudonyms, settings)
    preparation = Preparation(settings, kept, pseudonyms)
    store_names(pseudonyms, [case.patient for case in contents.cases])
    results = preparation.run(contents, options.processes, shard)
    summary, problems, advice = (
        summarise_shard(shard, results) if shard else summarise(preparation, results)
    )
    print_outcome(summary, problems, advice, results, cfg.show_names)
    return problems


def prepare_settings(cfg: DictConfig) -> "PrepareSettings":
    """The prepared folder, and how its cases are cut and checked.

    Raises:
        PancsegError: If a value cannot be used.
    """
    from pancseg.intake.checks import Checks
    from pancseg.intake.convert import GroupSettings, PrepareSettings
    from pancseg.structures import parse_structures

    groups = GroupSettings(cfg.data.depth, cfg.data.tail, cfg.data.keep_empty)
    checks = Checks(**to_plain(cfg.checks))
    structures = parse_structures(to_plain(cfg.structures), label_choice(cfg))
    if checks.volume_ml is not None and len(structures) > 1:
        keys = " or ".join(f"structures.{s.name}.volume_ml=" for s in structures)
        raise PancsegError(f"checks.volume_ml: there are {len(structures)} structures; give {keys}")
    return PrepareSettings(Path(cfg.data.root), groups, checks, structures)


def label_choice(cfg: DictConfig) -> list[int | str] | None:
    """``labels=``, which replaces the labels of the only structure.

    Raises:
        PancsegError: If it is no list.
    """
    labels = to_plain(cfg.labels)
    if labels is not None and not (isinstance(labels, list) and labels):
        raise PancsegError(f"labels={labels}: expected null or a list, such as labels=[1,2]")
    return labels


def read_options(cfg: DictConfig, structures: tuple["Structure", ...]) -> "ReadOptions":
    """How scans are read.

    Raises:
        PancsegError: If a value cannot be used.
    """
    from pancseg.dicom.series import Repair
    from pancseg.intake.volume_files import ReadOptions
    from pancseg.parallel import cores

    for key, rule in cfg.repair.items():
        if rule not in ("refuse", "resample"):
            raise PancsegError(f"repair.{key}={rule}: expected refuse or resample")
    processes = cores() if cfg.processes is None else cfg.processes
    if not isinstance(processes, int) or processes < 0:
        raise PancsegError(f"processes={processes}: expected null, 0 or a number of processes")
    repair = Repair(**{key: rule == "resample" for key, rule in cfg.repair.items()})
    return ReadOptions(structures, repair, processes)


def to_plain(value: Any) -> Any:
    """A value of the configuration without OmegaConf's types."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def source_paths(source: DictConfig) -> dict[str, Path | None]:
    """Paths of a source, checked; None for ``labels=null``.

    Raises:
        PancsegError: If a path is not given, or does not exist.
    """
    keys = set(source.keys())  # "in" on the node itself is false for a value not given yet
    return {key: existing_path(source, key) for key in PATH_KEYS if key in keys}


def existing_path(source: DictConfig, key: str) -> Path | None:
    """A path or pattern of a source.

    Raises:
        PancsegError: If it is not given, or nothing matches it.
    """
    from pancseg.intake.sources import expand_pattern, is_pattern

    if OmegaConf.is_missing(source, key):
        extra = ", or source.labels=null to convert images alone" if key == "labels" else ""
        raise PancsegError(f"source.{key} is not given; give a folder{extra}")
    if source[key] is None and key == "labels":
        return None
    if not source[key]:
        raise PancsegError(f"source.{key} is empty; give a folder")
    path = Path(source[key]).expanduser()
    if is_pattern(path):
        if not expand_pattern(path.absolute()):
            raise PancsegError(f"source.{key}={path}: no file or folder matches this pattern")
        return path.absolute()
    if not path.exists():
        raise PancsegError(f"source.{key}={path}: no such file or folder")
    return path.resolve()  # one spelling, so that a case is recognised again


def check_root(root: Path, sources: list[Path]) -> None:
    """Check that a folder is a prepared one, or free to become one, and no source lies in it."""
    from pancseg.data.manifest import has_manifest

    for source in sources:
        if source.resolve().is_relative_to(root.resolve()):
            raise PancsegError(f"{source}: lies in data.root={root}; give another data.root")
    folders = [name for name in OUTPUT_FOLDERS if (root / name).is_dir()]
    filled = [name for name in folders if any((root / name).iterdir())]
    if filled and not has_manifest(root):
        raise PancsegError(
            f"{root}: holds {filled[0]}/ but no manifest.json, so it is not a prepared folder; "
            "give another data.root"
        )


def nothing_found(contents: "SourceContents", paths: dict[str, Path | None]) -> list[str]:
    """A warning where every image was refused before it was read.

    Raises:
        PancsegError: If there is no image at all.
    """
    if contents.cases:
        return []
    key = "images" if "images" in paths else "folder"
    refused = [skipped for skipped in contents.skipped if skipped.status == "refused"]
    first = next((skipped for skipped in refused if skipped.kind == "image"), None)
    if first is None:
        detail = f" ({refused[0].path}: {refused[0].reason})" if refused else ""
        raise PancsegError(
            f"source.{key}={paths[key]}: holds no image that this source reads{detail}"
        )
    unmatched = ("no_label", "ambiguous_label", "other_patient")
    if not paths.get("labels") or not first.reason.startswith(unmatched):
        return []
    return [
        f"source.labels={paths['labels']}: no label there belongs to an image of {paths[key]} "
        f"({first.reason}); labels need a reference to the images, their PatientID and geometry, "
        "or their relative paths, as images/p7 and labels/p7"
    ]


def manifest_settings(
    cfg: DictConfig,
    paths: dict[str, Path | None],
    pseudonyms: "Pseudonyms",
    settings: "PrepareSettings",
) -> dict[str, Any]:
    """Settings that the manifest keeps; paths only as hashes, because they may name patients."""
    source, structures = cfg.source, settings.structures
    kept: dict[str, Any] = vars(settings.groups) | {"source": source._target_.rpartition(".")[2]}
    for key in sorted(str(key) for key in source if key != "_target_"):
        path = paths.get(key)
        kept[f"source.{key}"] = pseudonyms.hash(str(path)) if path else source[key]
    labels = {s.name: s.labels and list(s.labels) for s in structures}
    if len(structures) == 1:
        kept |= {"labels": labels[structures[0].name], "structure": structures[0].name}
    else:
        kept |= {f"structures.{name}.labels": own for name, own in labels.items()}
    return kept | {"names": pseudonyms.key_id, **{f"repair.{k}": v for k, v in cfg.repair.items()}}


def summarise(
    preparation: "Preparation", results: list["Result"]
) -> tuple[str, list[str], list[str]]:
    """Summary of a prepared folder, a line for each refused image, label or file, and advice."""
    from pancseg.intake.checks import FLAGS, INFO_FLAGS
    from pancseg.intake.match_labels import IMAGE_REFUSED

    rows, cases, cut = preparation.rows.values(), preparation.cases, preparation.settings.groups
    images = [row for row in rows if row.kind == "image"]
    refused = [row for row in rows if row.status == "refused"]
    reasons = sorted(f"{r.path}: {r.reason}" for r in refused if r.reason != IMAGE_REFUSED)
    problems = [*reasons, *preparation.problems]
    flags = [{f.partition(":")[0] for f in row.flags.split()} for row in images if row.case]
    added = sum(result.input_hash in cases for result in results)
    unlabelled = sum(case.label is None for case in cases.values())
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
    summary = (
        f"{preparation.root}: kept {len(cases)} of "
        f"{len(cases) + sum(row.kind == 'image' for row in refused)} cases "
        f"({added} new, {unlabelled} unlabelled, {flagged} flagged), "
        f"{groups}; refused {len(problems)}{':' * bool(problems)}"
    )
    counts = {flag: sum(flag in names for names in flags) for flag in FLAGS}
    advice = [
        f"flagged {flag}, {count} case{'s' * (count != 1)}: {FLAGS[flag]}"
        for flag, count in counts.items()
        if count and flag not in INFO_FLAGS
    ]
    advice += [*preparation.corrections, f"look at {preparation.root / 'intake.png'}"]
    return summary, problems, advice


def summarise_shard(shard: "Shard", results: list["Result"]) -> tuple[str, list[str], list[str]]:
    """As :func:`summarise`, of a shard."""
    problems = [f"{r.rows[0].path}: {r.rows[0].reason}" for r in results if r.case is None]
    summary = (
        f"shard {shard.index}/{shard.count}: {len(results)} cases, refused {len(problems)}; when "
        "all shards are done, run the same command without shard"
    )
    return summary, problems, []


def print_outcome(
    summary: str,
    problems: list[str],
    advice: list[str],
    results: list["Result"],
    show_names: bool,
) -> None:
    """Print the summary, the first problems, and options that make more scans usable.

    To the console alone: paths of input files stand in no log.
    """
    lines = [summary, *(f"refused {problem}" for problem in problems[:MOST_LINES])]
    if len(problems) > MOST_LINES:
        lines.append(f"and {len(problems) - MOST_LINES} more, see intake.csv")
    if repairs := sorted({key for result in results for key in result.repairs}):
        options = " ".join(f"repair.{key}=resample" for key in repairs)
        lines.append(f"{options}, with another data.root, resamples such series")
    lines += advice
    for result in results if show_names else ():
        if result.structure_names:
            lines.append(f"{result.rows[-1].path}: {', '.join(result.structure_names)}")
    for line in lines:
        print(printable(line))


main = command(prepare)

if __name__ == "__main__":
    main()
