"""From an image to a mask on its own grid, by one checkpoint or several."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pancseg.affine import Affine, oriented_like, slices_from_feet
from pancseg.inference.mask_finding import find_mask
from pancseg.inference.members import Member, look_together, open_members, together
from pancseg.inference.own_grid import OwnGrid
from pancseg.inference.postprocess import Postprocess, Wanted, recorded

PLAIN = Postprocess()


@dataclass(frozen=True)
class Segmented:
    """A mask, how sure the networks are of it, and what they said.

    Attributes:
        mask: ``(X, Y, Z)`` bool, on the image's grid.
        confidence: The Dice that the mask would have if the probabilities came true, or the
            agreement of several networks where that is lower, 0 to 1.
        grid: Probabilities on the image's grid, slice 0 nearest the feet.
        image: What was segmented.
    """

    mask: NDArray[np.bool_]
    confidence: float
    grid: OwnGrid
    image: nib.Nifti1Image

    @property
    def probability(self) -> NDArray[np.float32]:
        """Of the mask's shape, 0 to 1; 4 bytes a voxel, computed anew each time."""
        return turned_like(self.image, self.grid.probability(), self.grid.affine)


@dataclass(frozen=True)
class ScanSegmenter:
    """Applies trained networks to images.

    Attributes:
        members: Whose mean probability counts.
        how: Makes the mask.
    """

    members: list[Member]
    how: Postprocess

    def __call__(self, image: nib.Nifti1Image) -> nib.Nifti1Image:
        """The mask of an image, uint8, 0 and 1, on its grid and in its order of axes.

        Args:
            image: CT, HU, three axes in any order.
        """
        found = self.segment(image)
        return nib.Nifti1Image(found.mask.view(np.uint8), image.affine)

    def segment(self, image: nib.Nifti1Image) -> Segmented:
        """The mask of an image, and what it was made of."""
        turned = slices_from_feet(image)  # groups are cut along the last axis
        grid = look_together(self.members, turned)
        found = find_mask(grid, self.how)
        mask = turned_like(image, found.mask.view(np.uint8), grid.affine)
        return Segmented(mask.view(bool), found.raw_confidence, grid, image)


def turned_like(image: nib.Nifti1Image, values: NDArray[Any], affine: Affine) -> NDArray[Any]:
    """Values on an image's grid in its order of axes, without copying them.

    Args:
        image: Whose axes are wanted.
        values: On the same grid, in another order.
        affine: Of the values, RAS, mm.
    """
    return np.asanyarray(oriented_like(nib.Nifti1Image(values, affine), image).dataobj)


def open_segmenter(
    path: Path, wanted: Wanted, *, device: str = "cpu", channels_last: bool = False
) -> ScanSegmenter:
    """Open a checkpoint, or all of a sweep's folder together.

    Args:
        path: Checkpoint, or folder of runs.
        wanted: How masks are made; what is None is as it was chosen on validation.
        device: ``cpu`` or ``cuda``.
        channels_last: Whether networks are arranged so.

    Raises:
        PancsegError: If there is no checkpoint of pancseg.
    """
    members = open_members(path, device=device, channels_last=channels_last)
    chosen = [wanted.over(recorded(member.checkpoint) or PLAIN) for member in members]
    return ScanSegmenter(members, together(chosen))


def load_segmenter(path: str | Path, device: str = "cpu") -> ScanSegmenter:
    """Open what was trained, to be called with images.

    ``mask = load_segmenter("RUN/checkpoints/best.ckpt")(nibabel.load("ct.nii.gz"))``

    Args:
        path: Checkpoint, or folder of runs, which then judge together.
        device: ``cpu`` or ``cuda``.

    Raises:
        PancsegError: If there is no checkpoint of pancseg.
    """
    return open_segmenter(Path(path), Wanted(), device=device)
