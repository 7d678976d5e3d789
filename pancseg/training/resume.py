"""Whether a training can go on from a checkpoint."""

from dataclasses import asdict
from typing import Any

from pancseg.data.splits import SUBSETS, Split
from pancseg.data.transforms import Preprocessing
from pancseg.errors import PancsegError
from pancseg.inference.checkpoint import TrainedModel
from pancseg.models.segmenter import Segmenter

# of the machine, of an untrained network, or of validation only
IGNORED = {"fused", "use_checkpoint", "prior", "overlap"}


def check_resumable(
    earlier: TrainedModel,
    segmenter: Segmenter,
    data: dict[str, Any],
    preprocessing: Preprocessing,
    split: Split,
    ema_decay: float,
) -> None:
    """Check that the configured training equals the one of a checkpoint.

    Args:
        earlier: The checkpoint.
        segmenter: As configured.
        data: Arguments of the data module.
        preprocessing: Of the deterministic transforms.
        split: Patients of the subsets.
        ema_decay: Of a running mean of the weights; 0 for none.

    Raises:
        PancsegError: If patients, network, samples, loss or optimizer differ, or the checkpoint
            holds a mean of the weights and none is configured.
    """
    if any(getattr(earlier.split, subset) != getattr(split, subset) for subset in SUBSETS):
        raise PancsegError(
            "ckpt_path was trained with another split or other patients; to go on with its own, "
            "give split=file split.path=RUN/splits.json"
        )
    before, now = asdict(earlier.preprocessing), asdict(preprocessing)
    if (before["spatial_size"] is None) != (now["spatial_size"] is None):
        kind = "patches" if before["spatial_size"] is None else "whole"
        raise PancsegError(f"ckpt_path was trained with sampling={kind}; give the same")
    own, configured = earlier.hparams, segmenter.hparams
    sizes = ({"spatial_size": h["view"] and h["view"]["size"]} for h in (own, configured))
    changed = (
        difference("model", own["model"], configured["model"])
        or difference("data", before, now)
        or difference("data", *sizes)
        or difference("sampling", earlier.data["sampling"], data["sampling"])
        or difference("", {"seed": own["seed"]}, {"seed": configured["seed"]})
    )
    if changed:
        raise PancsegError(
            f"ckpt_path was trained with {changed}; give it, or the same experiment, hardware and "
            "overrides as before"
        )
    parts = [(part, own[part], configured[part]) for part in ("optimizer", "loss", "scheduler")]
    parts.append(("augment", earlier.data["augment"], data["augment"]))
    changed = next(filter(None, (difference(*part) for part in parts)), "")
    if changed:
        raise PancsegError(
            f"ckpt_path goes on with its own {changed}; give the same, or begin anew with its "
            "weights by init_from"
        )
    if earlier.has_average and not ema_decay:
        raise PancsegError(
            "ckpt_path keeps a running mean of its weights; give the ema_decay of its experiment "
            "or overrides, or begin anew with the mean by init_from"
        )


def difference(group: str, before: dict[str, Any] | None, now: dict[str, Any] | None) -> str:
    """The first value that differs, as an override; empty if none does.

    >>> difference("model", {"width": 8, "dropout": 0.0}, {"width": 32, "dropout": 0.0})
    'model.width=8, not 32'
    >>> difference("data", {"window_hu": (-200.0, 200.0)}, {"window_hu": (-100.0, 200.0)})
    'data.window_hu=[-200.0,200.0], not [-100.0,200.0]'
    """

    def shown(values: dict[str, Any]) -> str:
        value = values.get(key)
        text = str(list(value)) if isinstance(value, (list, tuple)) else str(value)
        return text.replace(", ", ",")

    before, now = before or {}, now or {}
    for key in sorted((set(before) | set(now)) - IGNORED):
        if before.get(key) != now.get(key):
            name = f"{group}.{key}" if group else key
            return f"{name}={shown(before)}, not {shown(now)}"
    return ""
