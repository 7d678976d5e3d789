"""How far an expected Dice is to be believed, learnt on validation patients."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pancseg.inference.beside import keep, kept


@dataclass(frozen=True)
class Trust:
    """What an expected Dice is multiplied by.

    Attributes:
        scale: Over 1 where the network is too modest, below 1 where it is too sure.
        n: Validation patients that say so; 0 for none.
        least: The least confidence that one of them had.
    """

    scale: float = 1.0
    n: int = 0
    least: float = 0.0

    def confidence(self, expected_dice: float) -> float:
        """The Dice to be expected, 0 to 1.

        >>> Trust(0.5, 9).confidence(0.8), Trust(2.0, 9).confidence(0.8)
        (0.4, 1.0)
        """
        return min(1.0, expected_dice * self.scale)


def learn_trust(expected: Sequence[float], reached: Sequence[float]) -> Trust:
    """The factor by which expected Dice comes nearest to the Dice that was reached.

    Least squares of a line through the origin: one number can be learnt from a few patients,
    and no mask is always expected to have 0.

    Args:
        expected: Of each patient.
        reached: Of each patient.

    >>> learn_trust([0.9, 0.8], [0.45, 0.4])
    Trust(scale=0.5, n=2, least=0.4)
    """
    e, d = np.array(expected, np.float64), np.array(reached, np.float64)
    squares = float(e @ e)
    if not squares:
        return Trust()
    trust = Trust(round(float(e @ d) / squares, 4), len(e))
    return replace(trust, least=round(trust.confidence(float(e.min())), 4))


def trust_file(checkpoint: Path) -> Path:
    """Where it stands: ``best.confidence.json`` beside the checkpoint."""
    return checkpoint.with_suffix(".confidence.json")


def keep_trust(checkpoint: Path, trust: Trust, about: dict[str, Any]) -> None:
    """Write it beside its checkpoint, with what it was learnt on."""
    keep(trust_file(checkpoint), checkpoint, asdict(trust), about)


def kept_trust(checkpoint: Path) -> Trust:
    """What was learnt for a checkpoint; a factor of 1 if nothing was, or for earlier weights.

    Raises:
        PancsegError: If the file beside it is no such thing.
    """
    path = trust_file(checkpoint)
    content = kept(path, checkpoint, is_trust, "what a confidence is multiplied by")
    if content is None:
        return Trust()
    return Trust(float(content["scale"]), int(content["n"]), float(content["least"]))


def is_trust(content: dict[str, Any]) -> bool:
    """Whether a side file has what is needed of it."""
    return (
        isinstance(content.get("scale"), int | float)
        and 0 <= content["scale"] < 100
        and isinstance(content.get("n"), int)
        and isinstance(content.get("least"), int | float)
    )


def mean_trust(each: Sequence[Trust]) -> Trust:
    """Of several networks: the mean factor, the patients of all, the mean of the least.

    >>> mean_trust([Trust(0.9, 3, 0.8), Trust(1.1, 4, 0.7)])
    Trust(scale=1.0, n=7, least=0.75)
    """
    scale, least = (float(np.mean([getattr(one, n) for one in each])) for n in ("scale", "least"))
    return Trust(round(scale, 4), sum(one.n for one in each), round(least, 4))
