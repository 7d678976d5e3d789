"""From an image to a mask on its own grid, by one checkpoint or several."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pancseg.affine import oriented_like, slices_from_feet
from pancseg.inference.members import Member, mean_probability, open_members, together
from pancseg.inference.postprocess import Postprocess, Wanted, recorded

PLAIN = Postprocess()


@dataclass(frozen=True)
class Segmented:
    """A mask with the probability it was made of, both on the image's grid.

    Attributes:
        mask: ``(X, Y, Z)`` bool.
        probability: Of the same shape, 0 to 1.
    """

    mask: NDArray[np.bool_]
    probability: NDArray[np.float32]

    @property
    def confidence(self) -> float:
        """The Dice that the mask would have if the probabilities came true; 0 for no mask.

        Expected overlap over expected sizes: ``2 sum(p in mask) / (sum(p) + voxels of mask)``.
        It is not calibrated on patients: compare cases by it, quote it for none.
        """
        if not self.mask.any():
            return 0.0
        inside = float(self.probability[self.mask].sum(dtype=np.float64))
        total = float(self.probability.sum(dtype=np.float64))
        return 2 * inside / (total + int(self.mask.sum()))


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
        return nib.Nifti1Image(found.mask.astype(np.uint8), image.affine)

    def segment(self, image: nib.Nifti1Image) -> Segmented:
        """The mask of an image, and the probability."""
        turned = slices_from_feet(image)  # groups are cut along the last axis
        probability = mean_probability(self.members, turned)
        back = oriented_like(nib.Nifti1Image(probability, turned.affine), image)
        own = np.asanyarray(back.dataobj)
        return Segmented(self.how.mask_of(own), own)


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
