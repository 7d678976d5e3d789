"""The learning rate over a training: a factor for each optimiser step.

The end may be a number of steps or a time.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from pancseg.errors import PancsegError

Kind = Literal["constant", "cosine", "poly"]


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes from the first optimiser step to the last.

    Attributes:
        kind: ``constant``, ``cosine`` (half a cosine down to 0; Loshchilov and Hutter 2017) or
            ``poly`` (``(1 - share done) ** power``, as nnU-Net's; Chen and others 2017).
        warmup_steps: Steps in which the rate rises linearly to its full value.
        power: Of ``poly``.

    Raises:
        PancsegError: If there is no such schedule.
    """

    kind: str = "constant"
    warmup_steps: int = 0
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise PancsegError(
                f"schedule.kind={self.kind}: expected one of {', '.join(get_args(Kind))}"
            )
        if self.warmup_steps < 0:
            raise PancsegError(f"schedule.warmup_steps={self.warmup_steps}: expected 0 or more")

    @property
    def needs_an_end(self) -> bool:
        """Whether the factor depends on when the training ends."""
        return self.kind != "constant"

    def factor(self, step: int, share: float) -> float:
        """Factor of the learning rate.

        Args:
            step: Optimiser steps done.
            share: Of the whole training that is done, 0 to 1.

        >>> [round(Schedule("poly", power=1).factor(step, step / 4), 2) for step in range(5)]
        [1.0, 0.75, 0.5, 0.25, 0.0]
        >>> [Schedule(warmup_steps=4).factor(step, 0.0) for step in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
        """
        rising = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        left = min(max(1.0 - share, 0.0), 1.0)
        if self.kind == "constant":
            return rising
        falling = left**self.power if self.kind == "poly" else 0.5 - 0.5 * math.cos(math.pi * left)
        return rising * falling
