"""``python -m pancseg.prepare``: folders of DICOM, NIfTI or NRRD become a prepared folder."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from pancseg.cli import command
from pancseg.errors import Incomplete, PancsegError, printable

if TYPE_CHECKING:
    from pancseg.intake.pseudonyms import Pseudonyms
    from pancseg.intake.types import ReadOptions, SourceContents
    from pancseg.structures import Structure

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

    from pancseg.data.groups import GroupSettings
    from pancseg.intake.checks import Checks
    from pancseg.intake.convert import PrepareSettings
    from pancseg.intake.preparation import Preparation, Shard
    from pancseg.intake.pseudonyms import make_pseudonyms, store_names
    from pancseg.structures import parse_structures

    groups = GroupSettings(cfg.data.depth, cfg.data.tail, cfg.data.keep_empty)
    checks = Checks(**to_plain(cfg.checks))
    structures = parse_structures(to_plain(cfg.structures), label_choice(cfg))
    if checks.volume_ml is not None and len(structures) > 1:
        keys = " or ".join(f"structures.{s.name}.volume_ml=" for s in structures)
        raise PancsegError(f"checks.volume_ml: there are {len(structures)} structures; give {keys}")
    options = read_options(cfg, structures)
    shard = None if cfg.get("shard") is None else Shard.parse(cfg.shard)
    root, paths = Path(cfg.data.root), source_paths(cfg.source)
    check_root(root, [path for path in paths.values() if path])
    contents = instantiate(cfg.source, **paths, _partial_=True)(options=options)
    for warning in [*contents.warnings, *nothing_found(contents, paths)]:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    key_file = Path(cfg.privacy.key_file or root.parent / "privacy.key")
    pseudonyms = make_pseudonyms(cfg.privacy.names, key_file)
    settings = {**vars(groups), **source_settings(cfg, paths, pseudonyms, structures)}
    preparation = Preparation(
        PrepareSettings(root, groups, checks, structures), settings, pseudonyms
    )
    store_names(pseudonyms, [case.patient for case in contents.cases])
    outcome = preparation.run(contents, options.processes, shard)
    # to the console alone: paths of input files stand in no log
    for line in [*outcome.lines, *(outcome.names if cfg.show_names else ())]:
        print(printable(line))
    return outcome.problems


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
    from pancseg.dicom.slices import Repair
    from pancseg.intake.types import ReadOptions
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
    from pancseg.intake.locate import expand_pattern, is_pattern

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


def source_settings(
    cfg: DictConfig,
    paths: dict[str, Path | None],
    pseudonyms: "Pseudonyms",
    structures: tuple["Structure", ...],
) -> dict[str, Any]:
    """Settings that the manifest keeps; paths only as hashes, because they may name patients."""
    source = cfg.source
    settings: dict[str, Any] = {"source": str(source._target_).rpartition(".")[2]}
    for key in sorted(str(key) for key in source if key != "_target_"):
        path = paths.get(key)
        settings[f"source.{key}"] = pseudonyms.hash(str(path)) if path else source[key]
    if len(structures) == 1:
        settings |= {"labels": as_list(structures[0].labels), "structure": structures[0].name}
    else:
        settings |= {f"structures.{s.name}.labels": as_list(s.labels) for s in structures}
    return settings | {
        "names": pseudonyms.key_id,
        **{f"repair.{k}": v for k, v in cfg.repair.items()},
    }


def as_list(labels: tuple[int | str, ...] | None) -> list[int | str] | None:
    """Labels as JSON holds them."""
    return None if labels is None else list(labels)


main = command(prepare)

if __name__ == "__main__":
    main()
