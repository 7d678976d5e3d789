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
    from pancseg.intake.pseudonyms import Names
    from pancseg.intake.sources import Found


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

    from pancseg.dataset.groups import check_cut
    from pancseg.dataset.preparation import Cutting, Preparation, fill, lock
    from pancseg.intake.pseudonyms import make_names
    from pancseg.progress import track

    check_cut(cfg.data.depth, cfg.data.tail)
    root = Path(cfg.data.root)
    paths = {name: existing(cfg.source, name) for name in ("images", "labels")}
    found = instantiate(cfg.source, **paths)
    check_found(found, paths)
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    key_file = Path(cfg.privacy.key_file or root.parent / "privacy.key")
    names = make_names(cfg.privacy.names, key_file)
    cutting = Cutting(cfg.data.depth, cfg.data.tail, cfg.data.keep_empty)
    settings = {**vars(cutting), **source_settings(cfg.source, paths, names), "names": names.rule}
    with lock(root):
        preparation = Preparation(root, cutting, settings, names)
        fill(preparation, found, track(found.candidates, "preparing", "scan"))
    for line in summary(preparation, found, root):
        print(line)  # to the console alone: paths of input files stand in no log
    return refusals(preparation, found)


def existing(source: DictConfig, name: str) -> Path | None:
    """A path of the source, checked.

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
    if not path.exists():
        raise PancsegError(f"source.{name}={path}: there is no such file or folder")
    return path.resolve()  # one spelling, so that a case is known again


def check_found(found: "Found", paths: dict[str, Path | None]) -> None:
    """Check that a source holds at least one candidate.

    Raises:
        PancsegError: If it holds none, or no label fits any image.
    """
    if found.candidates:
        return
    images, labels = paths["images"], paths["labels"]
    if any(stray.kind == "image" for stray in found.strays):
        first = next(stray.reason for stray in found.strays if stray.kind == "image")
        raise PancsegError(
            f"source.labels={labels}: no label there belongs to an image of {images} ({first}); "
            "labels need the images' relative paths, as images/p7 and labels/p7"
        )
    raise PancsegError(f"source.images={images}: holds no image that this source reads")


def source_settings(
    source: DictConfig, paths: dict[str, Path | None], names: "Names"
) -> dict[str, Any]:
    """What the manifest keeps of a source: its paths only as hashes, for they may name patients."""
    settings = {"source": str(source._target_).rpartition(".")[2]}
    for key in sorted(str(key) for key in source if key != "_target_"):
        path = paths.get(key)
        settings[f"source.{key}"] = names.hash(str(path)) if path else source[key]
    return settings


def refusals(preparation: "Preparation", found: "Found") -> list[str]:
    """Each refused series or file of this run with its reason."""
    strays = [
        f"{stray.path}: {stray.reason}" for stray in found.strays if stray.status == "refused"
    ]
    return preparation.problems + strays


def summary(preparation: "Preparation", found: "Found", root: Path) -> Iterable[str]:
    """Closing lines: what was kept, what was refused and why."""
    manifest = preparation.manifest
    refused = refusals(preparation, found)
    unlabelled = sum(case.label is None for case in manifest.cases)
    counts = [row for row in preparation.rows.values() if row.kind == "image"]
    empty = sum(int(row.groups_empty or 0) for row in counts)
    tails = sum(int(row.groups_tail or 0) for row in counts)
    dropped = "kept" if preparation.cutting.keep_empty else "dropped"
    yield (
        f"{root}: {len(manifest.cases)} cases ({preparation.added} new, {unlabelled} unlabelled), "
        f"{len(manifest.groups)} groups of {preparation.cutting.depth}; {empty} empty groups "
        f"{dropped}, {tails} incomplete groups left out; refused {len(refused)}"
    )
    for line in refused[:20]:
        yield f"refused {line}"
    if len(refused) > 20:
        yield f"and {len(refused) - 20} more, see intake.csv"


main = command(prepare)

if __name__ == "__main__":
    main()
