"""``python -m pancseg.report``: the page of a run or a sweep, or a comparison of runs."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from pancseg.cli import command
from pancseg.errors import PancsegError

log = logging.getLogger(__name__)


def report(cfg: DictConfig) -> None:
    """Write the report of ``run`` or of ``sweep``, or compare ``runs``."""
    if sum(value is not None for value in (cfg.run, cfg.runs, cfg.sweep)) != 1:
        raise PancsegError("give run=RUN, or sweep=SWEEP, or runs=[RUN_A,RUN_B,...]")
    if cfg.by is not None and cfg.run is None:
        raise PancsegError(f"by={cfg.by}: needs run=RUN")
    if cfg.sweep is not None:
        from pancseg.reports.sweep_report import report_sweep

        path = report_sweep(Path(cfg.sweep))
    elif cfg.run is not None:
        from pancseg.reports.run_folder import open_run
        from pancseg.reports.run_report import write_run_report
        from pancseg.reports.tables import by_structure, print_table, subgroup_table

        run = open_run(Path(cfg.run))
        path = write_run_report(run, cfg.subset, cfg.by)
        if cfg.by is not None:
            parts = by_structure(run.rows(cfg.subset), run.figures(cfg.subset))
            for structure, rows, _ in parts:
                print_table(subgroup_table(rows, cfg.by, structure))
    else:
        from pancseg.reports.comparison import report_comparison

        output = Path(cfg.output)
        path = report_comparison(list(cfg.runs), cfg.subset, list(cfg.measures), output)
    log.info("%s", path)


main = command(report)

if __name__ == "__main__":
    main()
