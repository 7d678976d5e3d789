"""``python -m pancseg.prepare``: folders of DICOM or NIfTI become a prepared folder."""

import sys
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from pancseg.command import command
from pancseg.errors import Incomplete


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

    from pancseg.dataset.groups import Cutting, check_cut
    from pancseg.intake.checks.flags import Checks
    from pancseg.intake.pseudonyms import make_names, remember
    from pancseg.parallel import follow
    from pancseg.preparing import source_request as request
    from pancseg.preparing.closing_lines import closing_lines
    from pancseg.preparing.filling import fill
    from pancseg.preparing.preparation import Preparation
    from pancseg.preparing.preparation_checks import check_root
    from pancseg.preparing.shared_root import shared_root

    check_cut(cfg.data.depth, cfg.data.tail)
    checks = Checks(**OmegaConf.to_container(cfg.checks))  # type: ignore[arg-type]
    reading, root, paths = (
        request.reading_of(cfg),
        Path(cfg.data.root),
        request.paths_of(cfg.source),
    )
    check_root(root, [path for path in paths.values() if path])
    found = instantiate(cfg.source, **paths, _partial_=True)(reading=reading)
    for warning in [*found.warnings, *request.nothing_found(found, paths)]:
        print(f"warning: {warning}", file=sys.stderr)
    names = make_names(cfg.privacy.names, Path(cfg.privacy.key_file or root.parent / "privacy.key"))
    remember(names, [candidate.patient for candidate in found.candidates])
    cutting = Cutting(cfg.data.depth, cfg.data.tail, cfg.data.keep_empty)
    settings = {**vars(cutting), **request.settings_of(cfg, paths, names)}
    open_root = partial(Preparation, root, cutting, checks, settings, names)
    with shared_root(root, open_root, found) as shared:
        follow(fill(shared, reading.processes), "preparing", "scan")
    for line in closing_lines(shared.preparation):
        print(line)  # to the console alone: paths of input files stand in no log
    return shared.preparation.problems


main = command(prepare)

if __name__ == "__main__":
    main()
