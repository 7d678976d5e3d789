"""From what networks say to a mask on the scan's own grid, and how sure they are of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pancseg.inference.own_grid import Box, OwnGrid
from pancseg.inference.postprocess import Postprocess

FAINT = 0.01  # probabilities below it do not count for the confidence


@dataclass(frozen=True)
class FoundMask:
    """A mask, and what speaks for it.

    Attributes:
        mask: ``(X, Y, Z)`` bool, first axis fastest in memory.
        expected_dice: The Dice that the mask would have if the probabilities came true,
            ``2 sum(p in mask) / (sum(p) + voxels of mask)``; 0 for no mask.
        agreement: Mean Dice of the masks of each two networks; None for a single one.
    """

    mask: NDArray[np.bool_]
    expected_dice: float
    agreement: float | None

    @property
    def raw_confidence(self) -> float:
        """The lower of both: several networks that contradict each other are not to be trusted."""
        if self.agreement is None:
            return self.expected_dice
        return min(self.expected_dice, self.agreement)


def find_mask(grid: OwnGrid, how: Postprocess) -> FoundMask:
    """Make the mask of a scan.

    Only the box is computed outside of which no network is sure of anything, and of it some
    slices at a time.

    Args:
        grid: What networks say.
        how: Threshold and components.
    """
    above = np.zeros(grid.shape, bool, order="F")
    box = grid.box_above(min(how.threshold, FAINT))
    inside = total = 0.0
    votes = Votes(len(grid.looks))
    for part in grid.blocks(box):
        each = list(grid.each(part))
        votes.count([one > how.threshold for one in each])
        mean = sum(each[1:], start=each[0]) / np.float32(len(each)) if len(each) > 1 else each[0]
        above[part] = mean > how.threshold
        inside += float(mean.sum(where=above[part], dtype=np.float64))
        total += float(mean.sum(where=mean > FAINT, dtype=np.float64))
    mask = how.finished(above)
    if mask is not above:
        inside = sum_inside(grid, mask, box)
    voxels = int(np.count_nonzero(mask))
    expected = 2 * inside / (total + voxels) if voxels else 0.0
    return FoundMask(mask, expected, votes.agreement())


def sum_inside(grid: OwnGrid, mask: NDArray[np.bool_], box: Box) -> float:
    """Sum of the probability over a mask that lies in a box."""
    return sum(
        float(grid.mean(part).sum(where=mask[part], dtype=np.float64)) for part in grid.blocks(box)
    )


class Votes:
    """Counts, block by block, how far the masks of several networks overlap.

    >>> votes = Votes(2)
    >>> votes.count([np.array([True, True, False]), np.array([True, False, False])])
    >>> votes.agreement()
    0.6666666666666666
    """

    def __init__(self, networks: int) -> None:
        self.pairs = list(combinations(range(networks), 2))
        self.sizes = np.zeros(networks, np.int64)
        self.common = np.zeros(len(self.pairs), np.int64)

    def count(self, masks: Sequence[NDArray[np.bool_]]) -> None:
        """Take up the same block by each network."""
        if self.pairs:
            self.sizes += [np.count_nonzero(mask) for mask in masks]
            self.common += [np.count_nonzero(masks[i] & masks[j]) for i, j in self.pairs]

    def agreement(self) -> float | None:
        """Mean Dice over pairs; of two empty masks 1; None where there is no pair."""
        if not self.pairs:
            return None
        both = np.array([self.sizes[i] + self.sizes[j] for i, j in self.pairs])
        dice = np.where(both > 0, 2 * self.common / np.maximum(both, 1), 1.0)
        return float(dice.mean())
