"""What a network says of a whole case, group by group or by sliding window."""

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pancseg.data.transforms import Preprocessing
from pancseg.geometry import AIR_HU, covering_starts, cut_group, with_right_angles
from pancseg.inference.network_view import group_view, whole_view
from pancseg.inference.own_grid import OwnGrid, Piece
from pancseg.inference.windows import Windows


class WholeCase:
    """Looks at cases as training saw them: through the same transforms, in groups or windows.

    Args:
        windows: Ask the network.
        preprocessing: The transforms' numbers it was trained with.
        depth: Slices of a group; None where training saw patches of whole cases.
    """

    def __init__(self, windows: Windows, preprocessing: Preprocessing, depth: int | None) -> None:
        self.windows = windows
        self.preprocessing = preprocessing
        self.depth = depth

    def look(self, image: nib.Nifti1Image) -> list[Piece]:
        """What the network says, on its own grid.

        Groups cover every slice; one case of patches is one piece.

        Args:
            image: HU, slice 0 nearest the feet, axes at right angles.
        """
        slices = image.shape[2]
        if self.depth is None:
            view = whole_view(image, self.preprocessing)
            return [Piece(self.windows.probability(view.image), view.affine, 0, slices)]
        pieces = []
        for start in covering_starts(slices, self.depth):
            group = cut_group(image, start, self.depth, fill=AIR_HU)
            view = group_view(group, self.preprocessing)
            stop = min(start + self.depth, slices)
            found = self.windows.probability(view.image)
            pieces.append(Piece(found, view.affine, start, stop))
        return pieces

    def probability(self, image: nib.Nifti1Image) -> NDArray[np.float32]:
        """Probability of pancreas at every voxel of a case, on its own grid."""
        upright = with_right_angles(image)
        return OwnGrid(upright.shape, upright.affine, [self.look(upright)]).probability()
