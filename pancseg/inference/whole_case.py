"""Predicting a whole case on the scan's own grid, group by group or by sliding window."""

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, SpatialResample
from numpy.typing import NDArray

from pancseg.dataset.groups import AIR_HU, covering_starts, cut_group
from pancseg.dataset.transforms import Preprocessing, deterministic
from pancseg.learning.segmenter import Segmenter


class WholeCase:
    """Predicts cases as training saw them: through the same transforms, in groups or windows.

    Args:
        segmenter: The trained network, on its device, in evaluation mode.
        preprocessing: The transforms' numbers it was trained with.
        depth: Slices of a group; None where training saw patches of whole cases.
    """

    def __init__(
        self, segmenter: Segmenter, preprocessing: Preprocessing, depth: int | None
    ) -> None:
        self.segmenter = segmenter
        self.depth = depth
        self.transform = Compose(deterministic(preprocessing, keys=("image",), load=False))

    def probability(self, image: nib.Nifti1Image) -> NDArray[np.float32]:
        """Probability of pancreas at every voxel of a case, on its own grid.

        Groups cover every slice; where two overlap, their mean counts.
        """
        if self.depth is None:
            return self.of_group(image)
        slices = image.shape[2]
        total = np.zeros(image.shape, np.float32)
        times = np.zeros(slices, np.float32)
        for start in covering_starts(slices, self.depth):
            group = cut_group(image, start, self.depth, fill=AIR_HU)
            stop = min(start + self.depth, slices)
            total[..., start:stop] += self.of_group(group)[..., : stop - start]
            times[start:stop] += 1
        return total / times

    @torch.inference_mode()
    def of_group(self, group: nib.Nifti1Image) -> NDArray[np.float32]:
        """Probability on the grid of one group, or of a whole case."""
        values = torch.as_tensor(np.asanyarray(group.dataobj).astype(np.float32))[None]
        own_grid = torch.as_tensor(group.affine)
        item = self.transform({"image": MetaTensor(values, affine=own_grid)})
        network_image = item["image"]
        batch = network_image.as_tensor()[None].to(self.segmenter.device)
        probability = self.segmenter.probability(batch)[0].cpu()
        return resample(probability, network_image.affine, own_grid, group.shape)


def resample(
    probability: torch.Tensor,
    affine: torch.Tensor,
    to_affine: torch.Tensor,
    to_shape: tuple[int, ...],
) -> NDArray[np.float32]:
    """Bring a probability from the network's grid to another in one linear interpolation.

    Ones are resampled beside it: what of a voxel's weights falls outside the network's field
    is divided out, and voxels with more than half outside get 0. Inverting resize, crop and
    spacing one by one would interpolate three times.

    Args:
        probability: ``(1, H, W, D)``.
        affine: Of that grid.
        to_affine: Of the grid wanted.
        to_shape: Size wanted.
    """
    pair = torch.cat([probability, torch.ones_like(probability)])
    moved = SpatialResample(mode="bilinear", padding_mode="zeros")(
        MetaTensor(pair, affine=affine), dst_affine=to_affine, spatial_size=to_shape
    )
    value, weight = moved.float().numpy()
    return np.where(weight > 0.5, value / np.maximum(weight, 0.5), 0).astype(np.float32)
