"""``python -m pancseg.train``: train a network on a prepared folder."""

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from pancseg.cli import command
from pancseg.config import BEST, LAST, SPLITS, SUMMARY, is_sweep_job, locked_run, run_path
from pancseg.training.sweeps import register_sweeper, train_job

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float | None:
    """Train, in a folder that no other training uses; skip a job of a sweep that is done.

    Returns ``val/dice`` of the best checkpoint for a sweeper, or None without validation.
    """
    from pancseg.data.datamodule import is_first_process

    with locked_run(Path(run_path()), is_first_process() and not cfg.trainer.fast_dev_run):
        return train_job(cfg, train_run) if is_sweep_job() else train_run(cfg)


def train_run(cfg: DictConfig) -> float | None:
    """Build data, network and trainer, and fit; or draw a preview."""
    from pancseg.inference.checkpoint import open_checkpoint
    from pancseg.prepare import fill_prepared_folder
    from pancseg.training import resume, setup

    setup.check_start(cfg)
    setup.set_up_process(cfg.seed)
    checkpoint = resume.resume_checkpoint(cfg)
    earlier = open_checkpoint(checkpoint, "ckpt_path") if checkpoint else None
    data = setup.build_data(cfg, partial(fill_prepared_folder, cfg) if cfg.get("source") else None)
    segmenter = setup.build_segmenter(cfg, data, is_resumed=checkpoint is not None)
    if cfg.preview:
        title = f"{cfg.name}: samples as the network gets them"
        setup.draw_preview(Path(run_path("preview.png")), data, title)
        log.info("%s", run_path("preview.png"))
        return None
    if checkpoint and earlier:
        resume.check_resumed(cfg, earlier, segmenter, data)
    return fit(cfg, data, segmenter, checkpoint)


def fit(cfg: DictConfig, data: Any, segmenter: Any, checkpoint: Path | None) -> float | None:
    """Fit, and write ``splits.json`` before and ``summary.json`` after it."""
    from pancseg.files import write_json
    from pancseg.models.network_checks import describe_cost
    from pancseg.training import callbacks, setup, summary
    from pancseg.training.checkpoints import copy_checkpoint

    monitor = setup.monitored_metric(data)
    built = callbacks.build_callbacks(cfg, monitor)
    trainer = setup.build_trainer(cfg, built, is_validated=monitor is not None)
    is_writing = trainer.is_global_zero and not cfg.trainer.fast_dev_run
    splits, best = Path(run_path(SPLITS)), Path(run_path(BEST))
    if is_writing and checkpoint:
        copy_checkpoint(checkpoint.with_name(best.name), best)
    if is_writing and not (checkpoint and splits.exists()):
        write_json(splits, asdict(data.split))
    report = next(callback for callback in built if isinstance(callback, callbacks.EpochReport))
    report.title = summary.title_of(cfg.name, data)
    log.info(report.title)
    model = setup.model_arguments(cfg, data.plan, len(data.structures))
    cost = describe_cost(model, data.plan.spatial_size)
    log.info("network  %s", cost)
    with setup.fit_errors(trainer, data):
        trainer.fit(segmenter, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if cfg.trainer.fast_dev_run:
        return None
    result = summary.describe_run(cfg, trainer, segmenter, data, report)
    if is_writing:
        if copy_checkpoint(Path(run_path(LAST)), best):
            log.info("nothing was validated: best.ckpt is the last")
        write_json(Path(run_path(SUMMARY)), result)
        summary.log_hyperparameters(trainer, cfg, data.plan, result)
        log.info("%s", run_path())
    return result["best_dice"]


main = command(train, register_sweeper)

if __name__ == "__main__":
    main()
