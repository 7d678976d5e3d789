"""From an image to a mask on its own grid, by one checkpoint or several."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pancseg.data.scan_statistics import scan_statistics
from pancseg.errors import PancsegError
from pancseg.geometry import Affine, oriented_like, slices_from_feet
from pancseg.hardware import cpu_has_bf16, detect
from pancseg.inference.mask_finding import find_mask
from pancseg.inference.members import Member, look_together, open_members, together
from pancseg.inference.own_grid import OwnGrid
from pancseg.inference.postprocess import Postprocess, Wanted, recorded
from pancseg.inference.trust import Trust, kept_trust, mean_trust

PLAIN = Postprocess()


@dataclass(frozen=True)
class Segmented:
    """A mask, how sure the networks are of it, and what they said.

    Attributes:
        mask: ``(X, Y, Z)`` bool, on the image's grid.
        confidence: The Dice to be expected, 0 to 1: what it would be if the probabilities came
            true, or the agreement of several networks where that is lower, as far as validation
            patients taught to believe it.
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
        coarse_to_fine: Whether networks look closely only where they see the organ from afar.
    """

    members: list[Member]
    how: Postprocess
    coarse_to_fine: bool = False

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
        grid = look_together(self.members, turned, self.coarse_to_fine)
        found = find_mask(grid, self.how)
        mask = turned_like(image, found.mask.view(np.uint8), grid.affine)
        confidence = self.trust.confidence(found.raw_confidence)
        return Segmented(mask.view(bool), confidence, grid, image)

    @cached_property
    def trust(self) -> Trust:
        """What validation patients taught of its confidence."""
        return mean_trust([kept_trust(member.checkpoint) for member in self.members])

    def unlike(self, image: nib.Nifti1Image, limit: float) -> dict[str, str]:
        """Flags of an image that is unlike the training scans of one of the networks, and why.

        Args:
            image: HU.
            limit: Standard deviations that are still alike.
        """
        seen = scan_statistics(image)
        profiles = [member.trained.profile for member in self.members]
        found: dict[str, str] = {}
        for profile in filter(None, profiles):
            found |= profile.unlike(seen, limit)
        return found


def turned_like(image: nib.Nifti1Image, values: NDArray[Any], affine: Affine) -> NDArray[Any]:
    """Values on an image's grid in its order of axes, without copying them.

    Args:
        image: Whose axes are wanted.
        values: On the same grid, in another order.
        affine: Of the values, RAS, mm.
    """
    return np.asanyarray(oriented_like(nib.Nifti1Image(values, affine), image).dataobj)


def open_segmenter(
    path: Path | Sequence[Path],
    wanted: Wanted,
    *,
    device: str = "cpu",
    precision: str = "32-true",
    mirrored: bool = False,
    coarse_to_fine: bool = False,
) -> ScanSegmenter:
    """Open a checkpoint, or all of a sweep's folder together.

    Args:
        path: Checkpoint, or folder of runs; or a list of them.
        wanted: How masks are made; what is None is as it was chosen on validation.
        device: ``cpu`` or ``cuda``.
        precision: Lightning's name of their arithmetic.
        mirrored: Whether they are shown mirror images, too.
        coarse_to_fine: Whether they look closely only where they see the organ from afar.

    Raises:
        PancsegError: If there is no checkpoint of pancseg, or one cannot be applied so.
    """
    members = open_members(
        path,
        device=device,
        precision=precision,
        mirrored=mirrored,
    )
    if coarse_to_fine and any(member.trained.depth for member in members):
        raise PancsegError(
            "roi=auto: needs networks that were trained on patches (data=volume); one here was "
            "trained on whole groups; leave roi out"
        )
    chosen = [wanted.over(recorded(member.checkpoint) or PLAIN) for member in members]
    return ScanSegmenter(members, together(chosen), coarse_to_fine)


def load_segmenter(
    path: str | Path | Sequence[str | Path],
    device: str = "cpu",
    roi: str | None = None,
    precision: str | None = None,
) -> ScanSegmenter:
    """Open what was trained, to be called with images.

    ``mask = load_segmenter("RUN/checkpoints/best.ckpt")(nibabel.load("ct.nii.gz"))``

    Args:
        path: Checkpoint, or folder of runs, which then judge together; or a list of them.
        device: ``cpu`` or ``cuda``.
        roi: ``auto`` looks closely only where the organ is seen from afar: much faster on long
            scans.
        precision: Lightning's name of the arithmetic, such as ``32-true``; None is as this machine
            is fast, and as ``pancseg.predict`` computes on it.

    Raises:
        PancsegError: If there is no checkpoint of pancseg, or one cannot be applied so.
    """
    paths = [Path(one) for one in ([path] if isinstance(path, str | Path) else path)]
    on_cpu = "bf16-mixed" if cpu_has_bf16() else "32-true"
    own = on_cpu if device == "cpu" else detect().precision
    return open_segmenter(
        paths,
        Wanted(),
        device=device,
        precision=precision or own,
        coarse_to_fine=is_auto(roi),
    )


def is_auto(roi: str | None) -> bool:
    """Whether the region of interest is to be found.

    Raises:
        PancsegError: If it is neither ``auto`` nor nothing.
    """
    if roi not in (None, "none", "auto"):
        raise PancsegError(f"roi={roi}: expected auto, or null for the whole scan")
    return roi == "auto"
