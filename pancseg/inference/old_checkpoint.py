"""Opening a checkpoint that somebody else may have written."""

import inspect
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from pancseg.data.scan_statistics import TrainingProfile
from pancseg.data.splits import SUBSETS, Split
from pancseg.data.transforms import Preprocessing
from pancseg.errors import PancsegError
from pancseg.inference.archive import load_tensors
from pancseg.inference.checkpoint_content import check_content, check_network_fits
from pancseg.models.segmenter import Segmenter

# of the machine, of an untrained network, or of validation only
FREE = {"fused", "use_checkpoint", "prior", "overlap"}


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds.

    Attributes:
        segmenter: The network with its best or last weights, in evaluation mode.
        data: Arguments of the data module, ``root`` absolute.
        preprocessing: Numbers of the deterministic transforms.
        split: Who was dealt where.
        epoch: Epochs that were complete.
        fingerprint: Of the data it was trained on.
        seen_before: Patients whom the weights it began with were trained on or chosen by.
        profile: What the training scans looked like; None where nothing tells it.
        averaged: Whether its weights are a running mean, beside which it keeps the current ones.
    """

    segmenter: Segmenter
    data: dict[str, Any]
    preprocessing: Preprocessing
    split: Split
    epoch: int
    fingerprint: str
    averaged: bool
    step: int = 0  # optimizer steps
    optimizer_states: Any = None  # as Lightning stores them
    trained_s: float = 0.0  # seconds that count towards trainer.max_time
    seen_before: frozenset[str] = frozenset()
    profile: TrainingProfile | None = None

    @property
    def seen(self) -> frozenset[str]:
        """Patients whom its weights may know: trained on or chosen by, now or before."""
        return self.seen_before | {*self.split.train, *self.split.val}

    @property
    def depth(self) -> int | None:
        """Slices of the groups it was trained on; None for patches of whole cases."""
        return None if self.preprocessing.spatial_size is None else self.data["depth"]


def open_checkpoint(path: Path, key: str = "checkpoint") -> Trained:
    """Load a checkpoint; nothing in it is executed.

    Args:
        path: The file.
        key: What the path was given as, for messages.

    Raises:
        PancsegError: If it is no checkpoint of pancseg.
    """
    if not path.is_file():
        raise PancsegError(f"{key}={path}: there is no such file")
    try:
        content = load_tensors(path)
        check_content(content)
        data = dict(content["datamodule_hyper_parameters"])
        state = content["CTDataModule"]
        split = Split(**state["split"])
        numbers = ("orientation", "spacing_mm", "window_hu", "spatial_size")
        preprocessing = Preprocessing(*(plain(data[name]) for name in numbers))
        if data["sampling"]["kind"] == "patches":
            preprocessing = replace(preprocessing, spatial_size=None)
        segmenter = rebuilt(content)
        profile = TrainingProfile(**state["profile"]) if "profile" in state else None
        return Trained(
            segmenter.eval(),
            data,
            preprocessing,
            split,
            int(content["epoch"]) + 1,
            state["fingerprint"],
            "current_model_state" in content,
            int(content["global_step"]),
            content.get("optimizer_states"),
            trained_seconds(content),
            frozenset(state.get("seen_before", ())),
            profile,
        )
    except PancsegError as error:
        raise PancsegError(f"{key}={path}: {error}") from error
    except (
        UnpicklingError,
        RuntimeError,
        LookupError,
        TypeError,
        EOFError,
        ValueError,
        AttributeError,
    ) as error:
        raise PancsegError(
            f"{key}={path}: is no checkpoint that pancseg.train wrote "
            f"({type(error).__name__}); give RUN/checkpoints/best.ckpt"
        ) from error


def trained_seconds(content: dict[str, Any]) -> float:
    """Seconds of training that Lightning's timer has counted; 0 without ``trainer.max_time``."""
    states = content.get("callbacks") or {}
    return float(states.get("Timer", {}).get("time_elapsed", {}).get("train", 0.0))


def rebuilt(content: dict[str, Any]) -> Segmenter:
    """The network with its weights.

    By hand: Lightning's ``load_from_checkpoint`` calls what the file names as ``_instantiator``.

    Raises:
        PancsegError: If it cannot be built of what the file says.
        RuntimeError: If the weights are of another network.
    """
    stored = content["hyper_parameters"]
    check_network_fits(stored["model"], content["state_dict"])
    known = inspect.signature(Segmenter).parameters
    segmenter = Segmenter(**{name: value for name, value in stored.items() if name in known})
    segmenter.load_state_dict(content["state_dict"])
    return segmenter


def check_resumable(
    trained: Trained,
    segmenter: Segmenter,
    data: dict[str, Any],
    preprocessing: Preprocessing,
    split: Split,
    ema_decay: float,
) -> None:
    """Check that a run can go on from a checkpoint with what is configured now.

    Args:
        trained: The checkpoint.
        segmenter: As it is configured now.
        data: Arguments of the data module now.
        preprocessing: Numbers of the deterministic transforms now.
        split: Who is dealt where now.
        ema_decay: Of a running mean of the weights now; 0 keeps none.

    Raises:
        PancsegError: If it would go on with other patients, another network, samples, loss or
            optimiser, or with a mean of weights as if they were the last.
    """
    if any(getattr(trained.split, part) != getattr(split, part) for part in SUBSETS):
        raise PancsegError(
            "ckpt_path was trained with another split or other patients; to go on with its own, "
            "give split=file split.path=RUN/splits.json"
        )
    own, here = trained.segmenter.hparams, segmenter.hparams
    before, now = asdict(trained.preprocessing), asdict(preprocessing)
    if (before["spatial_size"] is None) != (now["spatial_size"] is None):
        kind = "patches" if before["spatial_size"] is None else "whole"
        raise PancsegError(f"ckpt_path was trained with sampling={kind}; give the same")
    sizes = ({"spatial_size": one["view"] and one["view"]["size"]} for one in (own, here))
    changed = (
        difference("model", own["model"], here["model"])
        or difference("data", before, now)
        or difference("data", *sizes)
        or difference("sampling", trained.data["sampling"], data["sampling"])
        or difference("", {"seed": own["seed"]}, {"seed": here["seed"]})
    )
    if changed:
        raise PancsegError(
            f"ckpt_path was trained with {changed}; give it, or the same experiment, hardware and "
            "overrides as before"
        )
    parts = [(part, own[part], here[part]) for part in ("optimizer", "loss", "scheduler")]
    parts.append(("augment", trained.data["augment"], data["augment"]))
    changed = next(filter(None, (difference(*part) for part in parts)), "")
    if changed:
        raise PancsegError(
            f"ckpt_path goes on with its own {changed}; give the same, or begin anew with its "
            "weights by init_from"
        )
    if trained.averaged and not ema_decay:
        raise PancsegError(
            "ckpt_path keeps a running mean of its weights; give the ema_decay of its experiment "
            "or overrides, or begin anew with the mean by init_from"
        )


def difference(group: str, before: dict[str, Any] | None, now: dict[str, Any] | None) -> str:
    """The first number that was another one, as it is given; empty where none was.

    >>> difference("model", {"width": 8, "dropout": 0.0}, {"width": 32, "dropout": 0.0})
    'model.width=8, not 32'
    >>> difference("data", {"window_hu": (-200.0, 200.0)}, {"window_hu": (-100.0, 200.0)})
    'data.window_hu=[-200.0,200.0], not [-100.0,200.0]'
    """

    def given(values: dict[str, Any]) -> str:
        value = values.get(key)
        text = str(list(value)) if isinstance(value, (list, tuple)) else str(value)
        return text.replace(", ", ",")

    before, now = before or {}, now or {}
    for key in sorted((set(before) | set(now)) - FREE):
        if before.get(key) != now.get(key):
            name = f"{group}.{key}" if group else key
            return f"{name}={given(before)}, not {given(now)}"
    return ""


def plain(value: Any) -> Any:
    """Lists as tuples."""
    return tuple(value) if isinstance(value, list) else value
