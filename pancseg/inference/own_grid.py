"""From the network's grid back to the scan's own, block by block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pancseg.geometry import Affine, bounding_box
from pancseg.inference.parallel_grids import Along, interpolate, lie_on, reached

BLOCK_VOXELS = 8_000_000  # held as floats at a time
Box = tuple[slice, ...]


@dataclass(frozen=True)
class Piece:
    """What a network says of some slices of a scan.

    Attributes:
        probability: ``(H, W, D)`` float32 on the network's grid.
        affine: Of that grid, RAS, mm.
        start: First slice of the scan that it is about.
        stop: The one after the last.
    """

    probability: Tensor
    affine: Affine
    start: int
    stop: int


@dataclass(frozen=True)
class OwnGrid:
    """Probabilities on a scan's own grid, computed where they are asked for.

    Attributes:
        shape: Of the scan.
        affine: Of the scan, RAS, mm.
        looks: The pieces of each network; where pieces overlap, their mean counts.
    """

    shape: tuple[int, ...]
    affine: Affine
    looks: Sequence[Sequence[Piece]]

    def probability(self) -> NDArray[np.float32]:
        """The mean over networks at every voxel: 4 bytes each."""
        found = np.zeros(self.shape, np.float32, order="F")
        for box in self.blocks(tuple(slice(0, size) for size in self.shape)):
            found[box] = self.mean(box)
        return found

    def mean(self, box: Box) -> NDArray[np.float32]:
        """The mean over networks in a box."""
        each = self.each(box)
        total = next(each)
        for one in each:
            total += one
        if len(self.looks) > 1:
            total /= len(self.looks)
        return total

    def each(self, box: Box) -> Iterator[NDArray[np.float32]]:
        """The probability by each network in a box of the scan."""
        for pieces in self.looks:
            yield self.by_one(pieces, box)

    def by_one(self, pieces: Sequence[Piece], box: Box) -> NDArray[np.float32]:
        """The probability by one network in a box; 0 where none of its pieces is about it."""
        sizes = [part.stop - part.start for part in box]
        found = np.zeros(sizes, np.float32, order="F")
        times = np.zeros(sizes[2], np.float32)
        for piece in pieces:
            start, stop = max(box[2].start, piece.start), min(box[2].stop, piece.stop)
            if start < stop:
                here = slice(start - box[2].start, stop - box[2].start)
                found[..., here] += self.by_piece(piece, (*box[:2], slice(start, stop)))
                times[here] += 1
        if times.max(initial=0) > 1:
            found /= np.maximum(times, 1)
        return found

    def by_piece(self, piece: Piece, box: Box) -> NDArray[np.float32]:
        """The probability by one piece in a box.

        What of a voxel's weights falls outside of the network's field is left out; voxels with
        more than half outside get 0.
        """
        places = [place.part(part) for place, part in zip(self.places(piece), box, strict=True)]
        found = interpolate(piece.probability, places)
        x, y, z = (place.inside for place in places)
        if min(one.min() for one in (x, y, z)) < 1:
            found *= (x[:, None, None] * y[:, None] * z) > 0.5
        return found.numpy()

    def places(self, piece: Piece) -> Sequence[Along]:
        """Where the scan's grid lies on a piece's."""
        return lie_on(self.affine, self.shape, piece.affine, piece.probability.shape)

    def box_above(self, level: float) -> Box:
        """A box outside of which no network's probability is above a level; may be empty."""
        boxes = [self.piece_above(piece, level) for pieces in self.looks for piece in pieces]
        return union([box for box in boxes if all(part.start < part.stop for part in box)])

    def piece_above(self, piece: Piece, level: float) -> Box:
        """The same of one piece."""
        above = (piece.probability > level).numpy()
        if not above.any():
            return (slice(0, 0),) * 3
        x, y, z = reached(self.places(piece), bounding_box(above))
        return x, y, slice(max(z.start, piece.start), min(z.stop, piece.stop))

    def blocks(self, box: Box) -> Iterator[Box]:
        """A box in parts of some slices each."""
        x, y, z = box
        planes = max(1, BLOCK_VOXELS // max(1, (x.stop - x.start) * (y.stop - y.start)))
        for start in range(z.start, z.stop, planes):
            yield x, y, slice(start, min(start + planes, z.stop))


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all; an empty one for none.

    >>> union([(slice(0, 2),), (slice(5, 6),)])
    (slice(0, 6, None),)
    """
    if not boxes:
        return (slice(0, 0),) * 3
    return tuple(
        slice(min(part.start for part in parts), max(part.stop for part in parts))
        for parts in zip(*boxes, strict=True)
    )
