"""Parts of a training, built from its configuration, and the checks before it starts."""

import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from tqdm.contrib.logging import logging_redirect_tqdm

from pancseg import hardware
from pancseg.config import LAST, is_sweep_job, run_path
from pancseg.data.datamodule import CTDataModule, is_first_process
from pancseg.data.transforms import Plan
from pancseg.errors import PancsegError
from pancseg.models.factory import build_on_meta
from pancseg.models.known_weights import TARGET as ADAPTED
from pancseg.models.network_checks import check_spatial_size, count_multiply_adds
from pancseg.models.pretrained import load_pretrained, network_arguments, open_weights
from pancseg.models.segmenter import Segmenter
from pancseg.reports.pictures import SAMPLE_COLUMNS, SAMPLE_ROWS, draw_samples
from pancseg.signals import has_fixed_folder
from pancseg.structures import IGNORED
from pancseg.training.resume import seconds_of

log = logging.getLogger(__name__)
SHELLS = ("bash", "interactive")  # names of Slurm's jobs whose tasks Lightning starts by itself
IGNORED_WARNINGS = (
    ".*LeafSpec",  # Lightning 2.6 uses a name that torch 2.13 renames
    "Checkpoint directory .* exists and is not empty",  # a resumed run goes on in its own folder
    ".*your dataloader is not resumable",  # after max_steps within an epoch the next one begins
    "The `srun` command is available",  # Slurm is installed, but did not start this process
    "The number of training batches .* is smaller than the logging interval",  # epochs are logged
    "(?s)Grad strides do not match bucket view strides",  # of a first layer with one channel
)


def check_start(cfg: DictConfig) -> None:
    """Check, before anything is read, that a training can start here and its processes agree."""
    hardware.check_accelerator(cfg.hardware.accelerator)
    max_time, nodes, devices = cfg.trainer.max_time, cfg.trainer.num_nodes, cfg.trainer.devices
    tasks = int(os.environ.get("SLURM_NTASKS") or 1)
    is_srun = "SLURM_PROCID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in SHELLS
    needed = nodes * int(devices) if str(devices).isdigit() else tasks
    started = max(int(os.environ.get("WORLD_SIZE") or 1), tasks)
    is_shared = nodes != 1 or devices not in (1, "1", [0])
    is_group = started > 1 and is_shared and "SUBMITIT_EXECUTOR" not in os.environ
    anew = f"{started} processes of torchrun or Slurm would each"
    is_named = cfg.ckpt_path not in (None, "last") or has_fixed_folder()
    problem = ""
    if max_time is not None and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(max_time)):
        expected = "days:hours:minutes:seconds; ten minutes are trainer.max_time=00:00:10:00"
        problem = f"trainer.max_time={max_time}: expected {expected}"
    elif is_group and is_sweep_job():
        problem = f"{anew} begin the sweep anew; start it once, with hydra/launcher=submitit_slurm"
    elif is_group and not is_named:
        problem = f"{anew} name the run's folder by its own clock; give hydra.run.dir=FOLDER"
    elif is_srun and tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        problem = f"Slurm started {tasks} tasks; give srun --ntasks-per-node, not --ntasks"
    elif is_srun and needed != tasks:
        given = f"trainer.num_nodes={nodes} and trainer.devices={devices} are {needed} processes"
        advice = f"give srun --nodes={nodes} --ntasks-per-node={devices}"
        problem = f"{given}, Slurm started {tasks} tasks; {advice}"
    if problem:
        raise PancsegError(problem)


def set_up_process(seed: int) -> None:
    """Set seeds, arithmetic, and which messages are shown."""
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in ("pytorch_lightning", "lightning_fabric"):  # pancseg says the same by itself
        logging.getLogger(name).setLevel(logging.WARNING)
    if not is_first_process():
        logging.getLogger("pancseg").setLevel(logging.WARNING)
    if advice := hardware.detect().advice:
        log.warning(advice)
    torch.set_float32_matmul_precision("high")
    pl.seed_everything(seed, verbose=False)


def build_data(cfg: DictConfig, prepare: Callable[[], object] | None) -> CTDataModule:
    """The data module, with its volumes preprocessed; ``prepare`` fills an unprepared root."""
    parts = {name: to_plain(cfg[name]) for name in ("split", "sampling", "augment")}
    parts |= {"seed": cfg.seed, "prepare": prepare, "_convert_": "all"}
    data: CTDataModule = instantiate(cfg.data, **parts)
    if not (cfg.data.spatial_size and cfg.data.spacing_mm):  # else it is checked before any work
        data.prepare_data()
    size, batch_size = data.plan.spatial_size, cfg.data.batch_size
    check_spatial_size(model_arguments(cfg, data.plan), size, batch_size)
    data.prepare_data()
    if (count := len(data.structures)) > 1:
        check_spatial_size(model_arguments(cfg, data.plan, count), size, batch_size, count + 1)
    data.setup("fit")
    return data


def model_arguments(cfg: DictConfig, plan: Plan, structures: int = 1) -> dict[str, Any]:
    """``_target_`` and arguments of the network; those taken from ``data`` are the planned ones."""
    planned: Any = OmegaConf.merge(cfg, {"data": asdict(plan)})
    model = dict(to_plain(planned.model))
    if model.get("_target_") == ADAPTED:
        source = cfg.init_from or (run_path(LAST) if cfg.ckpt_path == "last" else cfg.ckpt_path)
        images = cfg.data.orientation, cfg.data.window_hu
        model = network_arguments(Path(source) if source else None, model, *images)
    return model | ({"out_channels": structures + 1} if "out_channels" in model else {})


def build_segmenter(cfg: DictConfig, data: CTDataModule, is_resumed: bool = False) -> Segmenter:
    """The network with loss, optimizer and scheduler; with initial weights unless resumed."""
    parts = {name: to_plain(cfg[name]) for name in ("loss", "optimizer", "scheduler")}
    if cfg.trainer.gradient_clip_val and "mixed" in str(cfg.trainer.precision):
        parts["optimizer"]["fused"] = False  # Lightning clips no gradients that it would scale
    windows = {"size": list(data.plan.spatial_size), "overlap": data.sampling.overlap}
    model = model_arguments(cfg, data.plan, len(data.structures))
    parts |= {"structures": data.structures, "has_ignored": data.has_ignored}
    segmenter = Segmenter(model, **parts, view=windows, seed=cfg.seed)
    if cfg.init_from and not is_resumed:
        weights = open_weights(Path(cfg.init_from))
        log.info(load_pretrained(segmenter.network, weights))
        if weights.record:
            log.info("init_from: %s", weights.record)
            images = cfg.data.orientation, data.plan.spacing_mm, cfg.data.window_hu
            if settings := weights.record.differences(*images):
                log.warning("init_from: for voxels and window of these weights give %s", settings)
        data.seen_before.update(weights.seen or ())
        if weights.seen is None:
            log.warning("init_from lists no training patients: held_out cannot account for them")
        elif known := weights.seen.intersection(data.split.test):
            log.warning("init_from was trained on %s of the test patients here", len(known))
    device_type = "cpu" if cfg.hardware.accelerator == "cpu" else "cuda"
    if device_type == "cpu":
        hardware.keep_freed_memory()
    compile_mode = cfg.hardware.compile_mode if is_compiled(cfg, data) else None
    segmenter.prepare_for(device_type, cfg.hardware.channels_last, compile_mode)
    return segmenter


def is_compiled(cfg: DictConfig, data: CTDataModule) -> bool:
    """Whether the network is compiled: as configured, else for long trainings on a GPU."""
    trainer = cfg.trainer
    if cfg.hardware.compile is not None:
        return cfg.hardware.compile
    if cfg.hardware.accelerator == "cpu" or trainer.fast_dev_run or not hardware.can_compile():
        return False
    network = build_on_meta(model_arguments(cfg, data.plan))
    multiply_adds = count_multiply_adds(network, data.plan.spatial_size) * cfg.data.batch_size
    # the backward pass costs twice the forward pass
    step_s = max(hardware.STEP_S, 6 * multiply_adds / hardware.FLOP_PER_S)
    limits = [step_s * trainer.max_steps] if trainer.max_steps > 0 else []
    if (trainer.max_epochs or 0) > 0:
        limits.append(step_s * data.batches_per_epoch() * trainer.max_epochs)
    if trainer.max_time:
        limits.append(seconds_of(trainer.max_time))
    is_long = min(limits, default=math.inf) >= hardware.COMPILE_FROM_S
    if is_long:
        log.info("the network is compiled at its first step, which takes minutes")
    return is_long


def monitored_metric(data: CTDataModule) -> str | None:
    """``val/dice``, ``val/loss`` where no validation patient has a reference; None without any."""
    entries = data.entries("val")
    if not entries or any(entry.label_voxels for entry in entries):
        return "val/dice" if entries else None
    log.warning("no validation patient has a labelled voxel: the best checkpoint is by val/loss")
    return "val/loss"


def build_trainer(cfg: DictConfig, callbacks: list[pl.Callback], is_validated: bool) -> pl.Trainer:
    """Lightning's trainer with callbacks and loggers."""
    loggers = [instantiate(node, _convert_="all") for node in cfg.logger.values() if node]
    options: dict[str, Any] = {"callbacks": callbacks, "logger": loggers, "_convert_": "all"}
    options |= {} if is_validated else {"limit_val_batches": 0}
    options |= {"benchmark": False} if cfg.deterministic else {}  # which is not deterministic
    # without these Lightning would add its own
    options["enable_checkpointing"] = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    options["enable_progress_bar"] = any(isinstance(c, ProgressBar) for c in callbacks)
    return instantiate(cfg.trainer, **options)


@contextmanager
def fit_errors(trainer: pl.Trainer, data: CTDataModule) -> Iterator[None]:
    """Raise PancsegError with advice if memory runs out, and Ctrl-C where Lightning exits."""
    try:
        with logging_redirect_tqdm():
            yield
    except SystemExit as ended:
        raise (ended.__context__ or KeyboardInterrupt()) from None
    except Exception as error:
        if not hardware.is_out_of_memory(error):
            raise
        size, n = list(data.plan.spatial_size), data.hparams["batch_size"]
        given = f"memory ran out with data.batch_size={n} and data.spatial_size={size}"
        raise PancsegError(f"{given}; give less of either, or hardware.cache=ram") from error
    finally:  # stopped in a validation, Lightning ends the workers of that loader alone
        trainer.fit_loop.teardown()


def draw_preview(path: Path, data: CTDataModule, title: str) -> None:
    """Draw the first samples of the training as the network gets them, in a PNG file."""
    samples: list[Any] = []
    for batch in data.train_dataloader():
        batch = data.augment_batch(batch)
        samples += zip(batch["image"], batch["label"], batch["name"], strict=True)
        if len(samples) >= SAMPLE_COLUMNS * SAMPLE_ROWS:
            break
    *volumes, names = zip(*samples, strict=True)
    images, labels = ([volume[0].cpu().numpy() for volume in each] for each in volumes)
    labels = [np.where(label == IGNORED, 0, label) for label in labels]
    draw_samples(path, images, labels, names, title, spacing_mm=batch["spacing_mm"][0])


def to_plain(node: Any) -> Any:
    """Plain values: only these may cross into a checkpoint."""
    return OmegaConf.to_container(node, resolve=True)
