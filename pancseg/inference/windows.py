"""Asking a network window by window, within the memory that there is."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

from pancseg.hardware import cpu_has_bf16, is_out_of_memory
from pancseg.models.segmenter import Segmenter

log = logging.getLogger(__name__)
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # as Lightning names them
AIR = -20.0  # evidence where a window holds nothing but air: a probability of 2e-9


@dataclass(frozen=True)
class Way:
    """How windows are read.

    Attributes:
        windows: At once.
        sums: Device that holds the sums over the whole image.
        network: Device that computes.
        half: What it multiplies in, where that is not float32.
        words: For the log, where this way was not the first choice.
    """

    windows: int
    sums: str
    network: str
    half: torch.dtype | None = None
    words: str = ""


def ways_for(device: str, half: torch.dtype | None) -> list[Way]:
    """From the fastest to the one that needs least memory of the GPU.

    Args:
        device: ``cpu`` or ``cuda``.
        half: What the network multiplies in on it, where that is not float32.
    """
    on_cpu = half if half == torch.bfloat16 else None  # no CPU is faster with float16
    if device == "cpu":
        return [Way(2, "cpu", "cpu", on_cpu)]
    if not cpu_has_bf16():
        on_cpu = None  # that was asked of the GPU: without units it takes 40 times as long
    return [
        Way(4, device, device, half),
        Way(1, "cpu", device, half, "windows one by one, sums in main memory"),
        Way(2, "cpu", "cpu", on_cpu, "on the CPU"),
    ]


class Windows:
    """Reads images with a network.

    Args:
        segmenter: The trained network, in evaluation mode.
        device: Where it computes: ``cpu`` or ``cuda``.
        mirrored: Axes along which the image is mirrored, too; the mean over all combinations
            counts.
        precision: Lightning's name of the arithmetic of the network; sums are float32.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        device: str,
        mirrored: Sequence[int] = (),
        precision: str = "32-true",
    ) -> None:
        self.segmenter = segmenter
        self.mirrored = tuple(mirrored)
        self.ways = ways_for(device, HALF.get(precision))

    def probability(self, image: Tensor) -> Tensor:
        """Probability of pancreas, ``(H, W, D)`` float32 on the CPU, of an image of that size.

        Where a GPU's memory runs out, less of it is asked for, from then on.
        """
        while True:
            try:
                return self.read(image, self.ways[0])
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(self.ways) == 1:
                    raise
            del self.ways[0]
            torch.cuda.empty_cache()
            log.warning("the GPU's memory ran out; going on %s", self.ways[0].words)

    @torch.inference_mode()
    def read(self, image: Tensor, way: Way) -> Tensor:
        """The mean over mirror images, in one way."""
        self.segmenter.to(way.network)
        total: Tensor | None = None
        for axes in self.mirror_axes():
            turned = image.flip(axes) if axes else image
            evidence = self.evidence(turned[None, None], way)[0, 0].flip(axes)
            total = evidence if total is None else total.add_(evidence)
        assert total is not None
        return total.div_(2 ** len(self.mirrored)).sigmoid_()

    def mirror_axes(self) -> Iterator[tuple[int, ...]]:
        """Each combination of the axes, none first."""
        for count in range(len(self.mirrored) + 1):
            yield from combinations(self.mirrored, count)

    def evidence(self, image: Tensor, way: Way) -> Tensor:
        """Logit of pancreas, ``(1, 1, H, W, D)`` float32 on the CPU.

        Windows are weighted by a Gaussian, so that their borders, which saw least, count least.
        """
        view = self.segmenter.hparams["view"]
        ask = partial(evidence_unless_air, self.segmenter, way.half)
        if view is None or tuple(image.shape[2:]) == tuple(view["size"]):
            return ask(image.to(way.network)).cpu()
        found = sliding_window_inference(
            image,
            roi_size=view["size"],
            sw_batch_size=way.windows,
            predictor=ask,
            overlap=view["overlap"],
            mode="gaussian",
            sw_device=way.network,
            device=way.sums,
        )
        return found.cpu()  # type: ignore[union-attr]


def evidence_unless_air(segmenter: Segmenter, half: torch.dtype | None, windows: Tensor) -> Tensor:
    """Evidence in windows ``(N, 1, h, w, d)``; the network is not asked about nothing but air."""
    busy = (windows > 0).flatten(1).any(dim=1)
    with torch.autocast(windows.device.type, half, enabled=half is not None):
        if busy.all():
            return segmenter.window_foreground_logit(windows)
        evidence = torch.full_like(windows, AIR)
        if busy.any():
            evidence[busy] = segmenter.window_foreground_logit(windows[busy])
    return evidence
