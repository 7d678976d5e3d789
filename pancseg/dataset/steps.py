"""Which samples a step takes: numbers that count from the beginning of the training.

Nothing here has a state, so a training that goes on from a checkpoint, or is shared by several
processes, sees what it would have seen.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import Sampler


class Steps(Sampler[list[int]]):
    """Numbers of the samples of each batch, from wherever the training is.

    Args:
        per_epoch: Samples of an epoch, of all processes together; the last batch may be smaller.
        batch_size: Samples that a process takes at a time.
        position: Batches done in all, and of the present epoch.
        rank: Which process this is.
        processes: How many share a batch.
    """

    def __init__(
        self,
        per_epoch: int,
        batch_size: int,
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.per_epoch = per_epoch
        self.batch_size = batch_size
        self.position = position
        self.rank, self.processes = rank, processes

    @property
    def together(self) -> int:
        """Samples of a batch of all processes."""
        return self.batch_size * self.processes

    def __getstate__(self) -> dict[str, Any]:
        """What workers need: where the training is, only this process knows."""
        return {**vars(self), "position": None}

    def __len__(self) -> int:
        """Batches of an epoch; one of a single sample, or not for all processes, is left out."""
        whole, rest = divmod(self.per_epoch, self.together)
        kept = rest > 1 or (rest == 1 and self.together == 1)
        return max(whole + (kept and self.processes == 1), 1)

    def __iter__(self) -> Iterator[list[int]]:
        """From the present position to the end of the epoch."""
        done, of_epoch = self.position()
        for batch in range(done, done - of_epoch + len(self)):
            first = batch * self.together
            left = self.per_epoch - batch % len(self) * self.together
            mine = range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
            yield [first + i for i in mine if i < left]
