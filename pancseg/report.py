"""``python -m pancseg.report``: the page of a run, or runs compared."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from pancseg.command import command
from pancseg.errors import PancsegError

log = logging.getLogger(__name__)


def report(cfg: DictConfig) -> None:
    """Write the report of ``run``, or compare ``runs``.

    Raises:
        PancsegError: If folders are no scored runs, or were scored on other patients.
    """
    if (cfg.run is None) == (cfg.runs is None):
        raise PancsegError("give run=RUN, or runs=[RUN_A,RUN_B,...] to compare them")
    if cfg.run is not None:
        from pancseg.output.run_files import open_run
        from pancseg.output.run_report import write_run_report

        log.info("%s", write_run_report(open_run(Path(cfg.run)), cfg.subset))
        return
    compare_runs(cfg)


def compare_runs(cfg: DictConfig) -> None:
    """Compare runs, patients paired."""
    from pancseg.judging.run_comparison import (
        check_same_patients,
        compare_all,
        configurations,
        read_scored,
        warnings_of,
    )
    from pancseg.output.comparison_report import print_comparison, write_comparison
    from pancseg.output.run_files import open_run

    measures = list(cfg.measures)
    if len(cfg.runs) < 2 or not measures:
        raise PancsegError(
            f"runs={list(cfg.runs)}: two or more are compared, by one measure or more"
        )
    runs = [read_scored(open_run(Path(one), "runs"), cfg.subset, measures) for one in cfg.runs]
    check_same_patients(runs)
    found = configurations(runs)
    told = {
        "subset": cfg.subset,
        "phantoms": any(one.figures["phantoms"] for one in runs),
        "measures": measures,
        "patients": runs[0].patients,
        "configurations": [
            {**one.as_dict(measures), "values": {m: one.values(m) for m in measures}}
            for one in found
        ],
        "comparisons": [one.as_dict() for one in compare_all(found, measures)],
        "warnings": warnings_of(runs),
    }
    for words in told["warnings"]:
        log.warning(words)
    print_comparison(told)
    log.info("%s", write_comparison(Path(cfg.output), told))


main = command(report)

if __name__ == "__main__":
    main()
