"""A whole batch, sample by sample, each with its own stream of random numbers."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pancseg.errors import PancsegError
from pancseg.learning.augmentation.draws import draw
from pancseg.learning.augmentation.intensity import changed
from pancseg.learning.augmentation.numbers import Augmentation
from pancseg.learning.augmentation.spatial import matrix_of, moved

STEP_STRIDE = 1_000_003  # a prime: seeds of neighbouring steps differ between runs
TRIED, ENOUGH = 256, 0.95  # draws, and the share of them whose patch lies wholly in the box
ELASTIC_REACH = 0.5  # of the largest shift of a control point; 2.5 standard deviations


def step_seed(seed: int, step: int) -> int:
    """Seed of everything random in a training step."""
    return seed * STEP_STRIDE + step


class Augmenter:
    """Changes batches at random, on their own device.

    Args:
        numbers: How often and how much.
        spacing_mm: Voxel size of the batches.
        window_hu: What 0 and 1 are in their images.
        size: Voxels of a patch.

    Raises:
        PancsegError: If spacing, window or size are impossible.

    Attributes:
        box: Voxels to crop around a patch, so that turned corners are rarely filled with air.
    """

    def __init__(
        self,
        numbers: Augmentation,
        *,
        spacing_mm: Sequence[float],
        window_hu: Sequence[float],
        size: Sequence[int],
    ) -> None:
        if len(spacing_mm) != 3 or min(spacing_mm) <= 0:
            raise PancsegError(f"spacing_mm={list(spacing_mm)}: expected three above 0")
        if len(window_hu) != 2 or window_hu[0] >= window_hu[1]:
            raise PancsegError(f"window_hu={list(window_hu)}: expected two, the lower first")
        if len(size) != 3 or min(size) < 1:
            raise PancsegError(f"spatial_size={list(size)}: expected three above 0, voxels")
        self.numbers = numbers
        self.spacing_mm = tuple(float(step) for step in spacing_mm)
        self.window_hu = tuple(float(end) for end in window_hu)
        self.size = tuple(int(count) for count in size)
        self.box = self._find_box()

    def __call__(
        self, image: Tensor, label: Tensor, seed: int, *, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Change a batch.

        Args:
            image: ``(B, 1, *box)`` float, 0..1.
            label: ``(B, 1, *box)`` of any type, integer values.
            seed: Of the whole batch; the same one gives the same changes.
            first: Place of the first sample in the whole batch, where processes share it.

        Returns:
            Image ``(B, 1, *size)`` float32 and label ``(B, 1, *size)`` of its type, on the same
            device; the centre of the box is the centre of both. The global random state is not
            touched.

        Raises:
            PancsegError: If the shapes are not as above.
        """
        for name, tensor in (("image", image), ("label", label)):
            if tensor.shape != (len(image), 1, *self.box) or not len(image):
                raise PancsegError(
                    f"{name} of shape {tuple(tensor.shape)}: expected {(len(image), 1, *self.box)}"
                )
        images, labels = [], []
        pairs = zip(image.float().split(1), label.split(1), strict=True)
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            for i, (scan, mask) in enumerate(pairs):
                change = draw(self.numbers, seed, first + i)
                scan, mask = moved(scan, mask, change, self.spacing_mm, self.size)
                images.append(changed(scan, change, self.spacing_mm, self.window_hu))
                labels.append(mask)
            return torch.cat(images), torch.cat(labels)

    @property
    def margin(self) -> tuple[int, int, int]:
        """Voxels of the box beside a patch, both sides together."""
        x, y, z = (box - size for box, size in zip(self.box, self.size, strict=True))
        return x, y, z

    def _find_box(self) -> tuple[int, int, int]:
        """As large as nearly all drawn changes need, up to ``margin_share`` more than the patch.

        The margin is the same on both sides, so that the middle of the box is whole voxels.
        """
        half_mm = np.multiply(self.size, self.spacing_mm) / 2
        needed = half_mm
        if self.numbers.bends:
            elastic = self.numbers.elastic_mm[1] * (self.numbers.elastic_probability > 0)
            corners = np.stack(np.meshgrid(*3 * [(-1, 1)]), axis=-1).reshape(-1, 3)
            corners = corners * (half_mm + ELASTIC_REACH * elastic)
            certain = self.numbers.always()
            matrices = [matrix_of(draw(certain, 0, i)) for i in range(TRIED)]
            reached = np.abs(np.linalg.inv(matrices) @ corners.T).max(axis=2)
            needed = np.maximum(half_mm, np.quantile(reached, ENOUGH, axis=0))
        margins = np.ceil((needed - half_mm) / self.spacing_mm - 1e-9)
        most = np.floor(np.multiply(self.size, self.numbers.margin_share) / 2)
        first, second, third = (
            count + 2 * int(margin)
            for count, margin in zip(self.size, np.minimum(margins, most), strict=True)
        )
        return first, second, third
