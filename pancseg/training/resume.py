"""Resuming a training: from which checkpoint, and whether it is the same training."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from pancseg.config import LAST, flatten, run_path
from pancseg.data.datamodule import CTDataModule
from pancseg.data.splits import SUBSETS
from pancseg.data.transforms import Preprocessing
from pancseg.errors import PancsegError
from pancseg.inference.trained_model import TrainedModel
from pancseg.models.segmenter import Segmenter
from pancseg.signals import has_fixed_folder, is_requeued
from pancseg.training.callbacks import average_decay

log = logging.getLogger(__name__)
# last part of keys that may change: of the machine, of an untrained network, of validation only
FREE_KEYS = ("fused", "use_checkpoint", "prior", "overlap")


def resume_checkpoint(cfg: DictConfig) -> Path | None:
    """The checkpoint to resume from; a job that Slurm runs again resumes by itself."""
    last = Path(run_path(LAST))
    if is_requeued() and not has_fixed_folder():
        advice = "give hydra.run.dir=FOLDER, so that it goes on from its last.ckpt"
        raise PancsegError(f"Slurm runs this job again, in a folder named by the clock; {advice}")
    if last.is_file() and (is_requeued() or cfg.ckpt_path == "last"):
        reason = "started again by Slurm" if is_requeued() else "ckpt_path=last"
        log.info("%s: going on with %s", reason, last)
        return last
    if cfg.ckpt_path == "last":
        log.info("ckpt_path=last: there is none yet, a new training begins")
        return None
    if last.is_file() and not cfg.ckpt_path:
        advice = "give ckpt_path=last to go on with it, or another hydra.run.dir"
        raise PancsegError(f"{last.parent.parent}: holds a training; {advice}")
    if cfg.ckpt_path and cfg.init_from:
        raise PancsegError("init_from: a training that ckpt_path resumes has weights; give one")
    return Path(cfg.ckpt_path) if cfg.ckpt_path else None


def check_resumed(
    cfg: DictConfig, earlier: TrainedModel, segmenter: Segmenter, data: CTDataModule
) -> None:
    """Raise PancsegError unless the configured training continues the one of a checkpoint."""
    data.seen_before.update(earlier.seen_before)
    if any(getattr(earlier.split, subset) != getattr(data.split, subset) for subset in SUBSETS):
        advice = "to go on with its own, give split=file split.path=RUN/splits.json"
        raise PancsegError(f"ckpt_path was trained with another split or other patients; {advice}")
    before = fixed_settings(earlier.hparams, earlier.data, earlier.preprocessing)
    now = fixed_settings(segmenter.hparams, data.hparams, data.preprocessing)
    changed = next((key for key in {**before, **now} if before.get(key) != now.get(key)), None)
    if changed:
        old, new = (str(values.get(changed)).replace(", ", ",") for values in (before, now))
        raise PancsegError(
            f"ckpt_path was trained with {changed}={old}, not {new}; give the same experiment, "
            "hardware and overrides, or begin anew with its weights by init_from"
        )
    if earlier.has_average and not average_decay(cfg):
        advice = "give its ema_decay, or begin anew with the mean by init_from"
        raise PancsegError(f"ckpt_path keeps a running mean of its weights; {advice}")
    check_optimizer_state(earlier.optimizer_states, segmenter)
    limits = {"max_epochs": earlier.epoch, "max_steps": earlier.step}
    spent = [
        f"trainer.{key}={cfg.trainer[key]}, ckpt_path has {done}"
        for key, done in limits.items()
        if 0 < (cfg.trainer[key] or 0) <= done
    ]
    max_time = cfg.trainer.max_time
    if max_time and earlier.training_seconds >= seconds_of(max_time):
        spent.append(f"trainer.max_time={max_time}, ckpt_path has {earlier.training_seconds:.0f} s")
    if spent:
        log.warning("nothing is left to train: %s; give more to go on", ", ".join(spent))
    if (batch_size := earlier.data["batch_size"]) != cfg.data.batch_size:
        changed = f"data.batch_size={cfg.data.batch_size}, ckpt_path was trained with {batch_size}"
        log.warning("%s: batches differ from here on", changed)
    if earlier.fingerprint != data.fingerprint:
        log.warning("the prepared data are not those that ckpt_path was trained on")


def fixed_settings(hparams: Any, data: Any, preprocessing: Preprocessing) -> dict[str, Any]:
    """Settings by dotted key that stay the same for a whole training."""
    size = hparams["view"] and list(hparams["view"]["size"])
    transforms = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(preprocessing).items()}
    parts = {name: hparams[name] for name in ("seed", "model", "loss", "optimizer", "scheduler")}
    parts["model"] = {"light_decoder": False, **hparams["model"]}  # absent in 0.2.0
    parts |= {"sampling": data["sampling"], "data": {**transforms, "spatial_size": size}}
    structures = hparams.get("structures") or {"": [1]}  # a single one before 0.2
    parts |= {"augment": data["augment"] or {}, "structures": [*structures.values()]}
    return {key: value for key, value in flatten(parts) if not key.endswith(FREE_KEYS)}


def check_optimizer_state(states: Any, segmenter: Segmenter) -> None:
    """Check that an optimizer's state fits its parameters: a fused one would write beyond them."""
    parameters = [p for p in segmenter.parameters() if p.requires_grad]

    def fits(name: str, value: Any, parameter: Tensor) -> bool:
        if name == "step" or value is None:  # None: momentum before the first step
            return value is None or value.ndim == 0
        return (value.shape, value.dtype) == (parameter.shape, parameter.dtype)

    try:
        (state,) = states
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        is_right = numbers == list(range(len(parameters))) and all(
            fits(name, value, parameters[number])
            for number, values in state["state"].items()
            for name, value in values.items()
        )
    except (TypeError, ValueError, LookupError, AttributeError):
        is_right = False
    if not is_right:
        advice = "begin with its weights by init_from"
        raise PancsegError(f"ckpt_path holds the state of another optimizer or network; {advice}")


def seconds_of(max_time: str) -> int:
    """Seconds of ``days:hours:minutes:seconds``."""
    days, hours, minutes, seconds = map(int, str(max_time).split(":"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
