"""Where volumes are read from during a training: memory maps, memory, or the GPU."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pancseg.dataset.volume_cache import Source, Volume
from pancseg.parallel import progress

log = logging.getLogger(__name__)
KEEPING = ("disk", "ram", "gpu")
GPU_SHARE = 0.8  # of what a step leaves free; whole cases are validated in the rest


class KeptVolumes:
    """Volumes by number.

    Args:
        sources: In order.
        open_volume: Gives the memory maps of one.
        where: ``disk`` (the system keeps in memory what it can, once for all processes), ``ram``,
            or ``gpu``, where they fit.
        device: That trains.
        step_bytes: What a training step will need on it.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        open_volume: Callable[[Source], Volume],
        where: str,
        device: torch.device,
        step_bytes: int = 0,
    ) -> None:
        self.sources = list(sources)
        self.open_volume = open_volume
        self.step_bytes = step_bytes
        self.device = device if where == "gpu" and self.fit(device) else torch.device("cpu")
        self.loaded = [] if where == "disk" else self.load_all()

    def __len__(self) -> int:
        """How many volumes."""
        return len(self.sources)

    def __getitem__(self, index: int) -> tuple[Any, Any, NDArray[np.int32]]:
        """Image and label, as tensors or memory maps, and the voxels of the label."""
        if self.loaded:
            return self.loaded[index]
        volume = self.open_volume(self.sources[index])
        return volume.image, volume.label, volume.foreground

    @property
    def on_gpu(self) -> bool:
        """Whether they lie on the GPU."""
        return self.device.type == "cuda"

    def load_all(self) -> list[tuple[Tensor, Tensor, NDArray[np.int32]]]:
        """All volumes on the device, with progress."""
        return list(
            progress(map(self.load, self.sources), "reading", "volume", len(self), delay_s=2)
        )

    def load(self, source: Source) -> tuple[Tensor, Tensor, NDArray[np.int32]]:
        """A volume on the device."""
        volume = self.open_volume(source)
        image, label = (
            torch.from_numpy(np.array(array)).to(self.device)
            for array in (volume.image, volume.label)
        )
        return image, label, np.array(volume.foreground)

    def fit(self, device: torch.device) -> bool:
        """Whether all volumes have room on the GPU beside what a step needs."""
        if device.type != "cuda":
            return False
        opened = (self.open_volume(source) for source in self.sources)
        needed = sum(volume.image.nbytes + volume.label.nbytes for volume in opened)
        free, _ = torch.cuda.mem_get_info(device)
        room = max(0.0, (free - self.step_bytes) * GPU_SHARE)
        if needed > room:
            log.warning(
                "hardware.cache=gpu: the volumes take %.1f GB, the GPU has room for %.1f GB beside "
                "a step; they are kept in ram",
                needed / 1e9,
                room / 1e9,
            )
        return needed <= room
