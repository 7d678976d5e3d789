"""``python -m pancseg.train``: a prepared folder becomes a trained network."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from pancseg.command import command, is_sweep_job
from pancseg.configuration import LAST, run_path

log = logging.getLogger(__name__)
SPLITS = "splits.json"


def train(cfg: DictConfig) -> float | None:
    """Train what the configuration describes; a job of a sweep that was done is not done again.

    Returns:
        ``val/dice`` of the best checkpoint, for a sweeper; None without validation.

    Raises:
        PancsegError: If it cannot start, or another training is at work in the folder.
        KeyboardInterrupt: After Ctrl-C, with the last checkpoint saved.
    """
    if not is_sweep_job():
        return train_alone(cfg)
    from pancseg.sweeping.job import do_once

    return do_once(cfg, train_alone)


def train_alone(cfg: DictConfig) -> float | None:
    """Train, with the run's folder held against other trainings."""
    from pancseg.training.process import is_first
    from pancseg.training.run_lock import held_run

    with held_run(Path(run_path()), is_first() and not cfg.trainer.fast_dev_run):
        return train_one(cfg)


def train_one(cfg: DictConfig) -> float | None:
    """Train once.

    Returns:
        ``val/dice`` of the best checkpoint, for a sweeper; None without validation.

    Raises:
        PancsegError: If it cannot start.
        KeyboardInterrupt: After Ctrl-C, with the last checkpoint saved.
    """
    from pancseg.inference.checkpoint import open_checkpoint
    from pancseg.prepare import fill_prepared_folder
    from pancseg.training.assembly import make_segmenter, set_up_data
    from pancseg.training.preview import draw_preview
    from pancseg.training.process import set_up_process
    from pancseg.training.resuming import checkpoint_to_go_on_with
    from pancseg.training.start_checks import check_start

    check_start(cfg)
    set_up_process(cfg.seed)
    checkpoint = checkpoint_to_go_on_with(cfg)
    earlier = open_checkpoint(checkpoint, "ckpt_path") if checkpoint else None
    data = set_up_data(cfg, partial(fill_prepared_folder, cfg) if cfg.get("source") else None)
    segmenter = make_segmenter(cfg, data)
    if cfg.preview:
        path = Path(run_path("preview.png"))
        draw_preview(path, data, f"{cfg.name}: samples as the network sees them")
        log.info("%s", path)
        return None
    return fit_and_tell(cfg, data, segmenter, checkpoint, earlier)


def fit_and_tell(
    cfg: DictConfig, data: Any, segmenter: Any, checkpoint: Path | None, earlier: Any
) -> float | None:
    """Train what was put together, and write down what came of it.

    Args:
        cfg: Of the training.
        data: The data module, set up.
        segmenter: What learns.
        checkpoint: To go on from.
        earlier: What it holds.
    """
    from pancseg.files import write_json
    from pancseg.tracking.going_on import give_a_best
    from pancseg.tracking.summary import describe_run, log_hyperparameters
    from pancseg.training.assembly import fit, make_trainer, watch_training
    from pancseg.training.resuming import check_earlier

    trainer = make_trainer(cfg)
    if earlier:
        check_earlier(earlier, segmenter, data, cfg.ema_decay)
    splits = Path(run_path(SPLITS))
    keeps = trainer.is_global_zero and not trainer.fast_dev_run
    if keeps and not (earlier and splits.exists()):
        write_json(splits, data.split.as_dict())
    report = watch_training(cfg, trainer, data)
    fit(trainer, segmenter, data, checkpoint)
    if trainer.fast_dev_run:
        return None
    summary = describe_run(cfg, trainer, segmenter, data, report.rows)
    if keeps:
        give_a_best(Path(run_path(LAST)))
        write_json(Path(run_path("summary.json")), summary)
        log_hyperparameters(trainer, cfg, data.plan, summary)
        log.info("%s", run_path())
    return summary["best_dice"]


def know_searches() -> None:
    """Make ``hydra/sweeper=optuna`` known to Hydra: any experiment may name it."""
    from pancseg.sweeping.optuna_sweeper import register

    register()


main = command(train, know_searches)

if __name__ == "__main__":
    main()
