"""``python -m pancseg.report``: the page of a run or a sweep, or runs compared."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from pancseg.cli import command
from pancseg.errors import PancsegError

log = logging.getLogger(__name__)


def report(cfg: DictConfig) -> None:
    """Write the report of ``run`` or of ``sweep``, or compare ``runs``.

    Raises:
        PancsegError: If folders are no scored runs, or were scored on other patients.
    """
    if sum(one is not None for one in (cfg.run, cfg.runs, cfg.sweep)) != 1:
        raise PancsegError(
            "give run=RUN, or sweep=SWEEP, or runs=[RUN_A,RUN_B,...] to compare them"
        )
    if cfg.sweep is not None:
        from pancseg.reports.sweep_report import report_sweep

        log.info("%s", report_sweep(Path(cfg.sweep)))
        return
    if cfg.run is not None:
        from pancseg.output.run_files import open_run
        from pancseg.output.run_report import write_run_report

        log.info("%s", write_run_report(open_run(Path(cfg.run)), cfg.subset))
        return
    from pancseg.judging.run_comparison import compare_runs
    from pancseg.output.comparison_report import print_comparison, write_comparison

    told = compare_runs(list(cfg.runs), cfg.subset, list(cfg.measures))
    for words in told["warnings"]:
        log.warning(words)
    print_comparison(told)
    log.info("%s", write_comparison(Path(cfg.output), told))


main = command(report)

if __name__ == "__main__":
    main()
