"""The predictor: one network or an ensemble, applied to whole scans."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from pancseg.data.transforms import Preprocessing
from pancseg.errors import PancsegError
from pancseg.geometry import (
    Affine,
    bounding_box,
    oriented_like,
    slices_from_feet,
    spacing_of,
    with_right_angles,
)
from pancseg.hardware import cpu_has_bf16, detect, is_out_of_memory
from pancseg.inference.calibration import (
    Calibration,
    file_sha256,
    mean_calibration,
    read_calibration,
)
from pancseg.inference.checkpoint import TrainedModel, open_checkpoints
from pancseg.inference.postprocessing import (
    DEFAULT,
    PostprocessOptions,
    mean_postprocess,
    read_postprocess,
)
from pancseg.inference.resampling import (
    Box,
    NetworkVolume,
    ScanProbability,
    blocks,
    dependent_box,
    network_inputs,
    union,
)
from pancseg.models.device_tuning import use_channels_last
from pancseg.models.segmenter import finest, foreground_logit

log = logging.getLogger(__name__)
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # Lightning's names
AIR_LOGIT = -20.0  # of windows that contain only air: a probability of 2e-9
FAINT = 0.01  # probabilities below it do not count for the confidence
COARSE_MM = 4.0  # spacing at which roi=auto looks for the organ
REGION_PROBABILITY = 0.3  # of the organ there
REGION_MARGIN_MM = 25.0


@dataclass(frozen=True)
class Prediction:
    """The mask of a scan, with the probability that it was made of.

    Attributes:
        mask: ``(X, Y, Z)`` bool, on the image's grid.
        expected_dice: Dice of the mask if the probabilities are right,
            ``2 sum(p in mask) / (sum(p) + voxels of mask)``, or the mean Dice between the masks of
            an ensemble's members where that is lower; 0 without a mask.
        confidence: The same, calibrated on validation patients.
        image: What was segmented.
        box: Part of the scan, slice 0 nearest the feet, that ``inside`` covers.
        inside: Probability in the box.
        affine: Of the scan, slice 0 nearest the feet.
        shape: Of the scan, slice 0 nearest the feet.
    """

    mask: NDArray[np.bool_]
    expected_dice: float
    confidence: float
    image: nib.Nifti1Image
    box: Box
    inside: NDArray[np.float32]
    affine: Affine
    shape: tuple[int, ...]

    @cached_property
    def probability(self) -> NDArray[np.float32]:
        """Probability on the image's grid; 0 outside the box."""
        full = self.inside
        if full.shape != self.shape:
            full = np.zeros(self.shape, np.float32, order="F")
            full[self.box] = self.inside
        return reorient(full, self.affine, self.image)


@dataclass(frozen=True)
class DeviceSettings:
    """Where a network and the sums over its windows are.

    Attributes:
        device: Of the network.
        sum_device: Of the sums over the whole image.
        windows: In a batch.
        half: Type of autocast; None for float32.
        name: For the log.
    """

    device: str
    sum_device: str
    windows: int
    half: torch.dtype | None
    name: str = ""


def device_fallbacks(device: str, precision: str) -> list[DeviceSettings]:
    """Settings from the fastest to the one that needs least memory of the GPU.

    Args:
        device: ``cpu`` or ``cuda:0``.
        precision: Lightning's name.
    """
    half = HALF.get(precision)
    if device == "cpu":
        # no CPU is faster with float16
        return [DeviceSettings("cpu", "cpu", 2, half if half == torch.bfloat16 else None)]
    cpu_half = torch.bfloat16 if half == torch.bfloat16 and cpu_has_bf16() else None
    return [
        DeviceSettings(device, device, 4, half),
        DeviceSettings(device, "cpu", 1, half, "window by window, with sums in main memory"),
        DeviceSettings("cpu", "cpu", 2, cpu_half, "on the CPU"),
    ]


class Predictor:
    """Segments scans by the mean probability of one or several networks.

    Args:
        models: The networks.
        device: ``cpu`` or ``cuda:0``.
        precision: Lightning's name of the arithmetic; sums are float32.
        mirror: Whether to average over mirrored images, along the axes that training mirrored.
        roi: Whether to segment only around the organ, found at 4 mm first.
        options: How masks are made.

    Raises:
        PancsegError: If a network was not trained for ``mirror`` or ``roi``.
    """

    def __init__(
        self,
        models: Sequence[TrainedModel],
        *,
        device: str = "cpu",
        precision: str = "32-true",
        mirror: bool = False,
        roi: bool = False,
        options: PostprocessOptions | None = None,
    ) -> None:
        self.models = list(models)
        if len({structures_of(model) for model in self.models}) > 1:
            raise PancsegError("checkpoint: the networks segment different structures")
        self.fallbacks = device_fallbacks(device, precision)
        self.precision = precision
        self.mirrored_axes = [model.mirrored_axes if mirror else () for model in self.models]
        if roi and any(model.depth for model in self.models):
            raise PancsegError(
                "roi=auto: needs networks that were trained on patches (data=volume), and this one "
                "was trained on groups; leave roi out"
            )
        self.roi = roi
        options = options or PostprocessOptions()
        self.postprocess = mean_postprocess(
            [options.override(read_postprocess(m.path) or DEFAULT) for m in self.models]
        )
        for model in self.models:
            if use_channels_last(model.network, torch.device(device).type):
                model.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    @cached_property
    def calibration(self) -> Calibration:
        """Of the confidence."""
        return mean_calibration([read_calibration(model.path) for model in self.models])

    def identity(self) -> dict[str, Any]:
        """What decides the mask of a scan, as plain values."""
        return {
            "checkpoints_sha256": [file_sha256(model.path) for model in self.models],
            "postprocess": asdict(self.postprocess),
            "precision": self.precision,
            "mirrored_axes": [list(axes) for axes in self.mirrored_axes],
            "roi": self.roi,
        }

    def __call__(self, image: nib.Nifti1Image) -> nib.Nifti1Image:
        """The mask of a CT in HU, axes in any order: uint8, 0 and 1, on its grid."""
        mask = self.predict(image).mask
        return nib.Nifti1Image(mask.view(np.uint8), image.affine)

    def predict(self, image: nib.Nifti1Image, min_probability: float = FAINT) -> Prediction:
        """Segment a CT.

        Args:
            image: HU, three axes in any order.
            min_probability: The probability is kept in a box that holds all voxels above it.
        """
        turned = slices_from_feet(image)  # groups are cut along the last axis
        upright = with_right_angles(turned)
        members = [
            ScanProbability(upright.shape, upright.affine, volumes)
            for volumes in self.network_volumes(upright)
        ]
        threshold = self.postprocess.threshold
        boxes = [member.box_above(min(threshold, min_probability)) for member in members]
        box = union([found for found in boxes if is_filled(found)])
        inside = np.zeros([part.stop - part.start for part in box], np.float32, order="F")
        overlap = MaskOverlap(len(members))
        for part in blocks(box):
            each = [member[part] for member in members]
            overlap.add([p > threshold for p in each])
            mean = sum(each[1:], start=each[0]) / np.float32(len(each)) if each[1:] else each[0]
            inside[..., part[2].start - box[2].start : part[2].stop - box[2].start] = mean
        mask = np.zeros(upright.shape, bool, order="F")
        found = mask[box] = self.postprocess.mask_of(inside)
        voxels = int(np.count_nonzero(found))
        total = float(inside.sum(where=inside > FAINT, dtype=np.float64))
        in_mask = float(inside.sum(where=found, dtype=np.float64))
        expected = 2 * in_mask / (total + voxels) if voxels else 0.0
        expected = min(expected, overlap.mean_dice())
        return Prediction(
            reorient(mask.view(np.uint8), turned.affine, image).view(bool),
            expected,
            self.calibration.confidence(expected),
            image,
            box,
            inside,
            turned.affine,
            turned.shape,
        )

    def network_volumes(self, image: nib.Nifti1Image) -> list[list[NetworkVolume]]:
        """Probability by each network, on its own grid.

        Args:
            image: HU, slice 0 nearest the feet, axes at right angles.
        """
        box = self.find_region(image) if self.roi else None
        if box is not None:
            found = [
                [replace(v, start=v.start + box[2].start, stop=v.stop + box[2].start) for v in each]
                for each in self.segment(image.slicer[box])
            ]
            if not any(reaches_side(v, image, box) for each in found for v in each):
                return found
        return self.segment(image)

    def segment(self, image: nib.Nifti1Image) -> list[list[NetworkVolume]]:
        """Probability by each network; those with equal preprocessing share its result."""
        found: dict[int, list[NetworkVolume]] = {}
        numbered = sorted(enumerate(self.models), key=lambda item: repr(preprocessing_of(item[1])))
        for (preprocessing, depth), members in groupby(numbered, lambda m: preprocessing_of(m[1])):
            inputs = network_inputs(image, preprocessing, depth)
            for number, _ in members:
                found[number] = [replace(v, values=self.apply(number, v.values)) for v in inputs]
        return [found[number] for number in range(len(self.models))]

    def apply(self, number: int, image: Tensor) -> Tensor:
        """Probability by a network, ``(H, W, D)`` float32 on the CPU.

        Where a GPU's memory runs out, this image is tried again with less of it.
        """
        for settings in self.fallbacks:
            try:
                return self.mean_over_mirrors(number, image, settings)
            except RuntimeError as error:
                if not is_out_of_memory(error) or settings is self.fallbacks[-1]:
                    raise
            torch.cuda.empty_cache()
            following = self.fallbacks[self.fallbacks.index(settings) + 1]
            log.warning("the GPU's memory ran out: trying %s", following.name)
        raise AssertionError("the last settings return or raise")

    @torch.inference_mode()
    def mean_over_mirrors(self, number: int, image: Tensor, settings: DeviceSettings) -> Tensor:
        """Probability of the mean logit over mirrored images."""
        model, mirrored = self.models[number], self.mirrored_axes[number]
        total = self.logit(model, image, settings)
        for axes in subsets(mirrored):
            total += self.logit(model, image.flip(axes), settings).flip(axes)
        return total.div_(2 ** len(mirrored)).sigmoid_()

    def logit(self, model: TrainedModel, image: Tensor, settings: DeviceSettings) -> Tensor:
        """Logit of the foreground, ``(H, W, D)`` float32 on the CPU, by sliding windows."""
        network = model.network.to(settings.device)
        sigmoid = bool(model.hparams["loss"].get("sigmoid"))
        predictor = partial(window_logit, network, sigmoid, settings.half)
        view, batch = model.hparams["view"], image[None, None]
        if view is None or tuple(image.shape) == tuple(view["size"]):
            return predictor(batch.to(settings.device))[0, 0].cpu()
        found = sliding_window_inference(
            batch,
            roi_size=view["size"],
            sw_batch_size=settings.windows,
            predictor=predictor,
            overlap=view["overlap"],
            mode="gaussian",
            sw_device=settings.device,
            device=settings.sum_device,
        )
        return found[0, 0].cpu()  # type: ignore[call-overload]

    def find_region(self, image: nib.Nifti1Image) -> Box | None:
        """The box around the organ, found at 4 mm by the first network; None if nothing is."""
        model = self.models[0]
        spacing_mm = tuple(max(COARSE_MM, mm) for mm in model.preprocessing.spacing_mm)
        (coarse,) = network_inputs(image, replace(model.preprocessing, spacing_mm=spacing_mm), None)
        probability = self.apply(0, coarse.values)
        labels, count = ndimage.label((probability > REGION_PROBABILITY).numpy())
        if not count:
            return None
        sums = ndimage.sum_labels(probability.numpy(), labels, range(1, count + 1))
        organ = bounding_box(labels == np.argmax(sums) + 1, REGION_MARGIN_MM, spacing_mm)
        # as large as a window, so that the network sees as much as in training
        window_mm = np.array(model.hparams["view"]["size"]) * model.preprocessing.spacing_mm
        least = np.ceil(window_mm / spacing_mm).astype(int)
        box = tuple(map(widen, organ, least.tolist(), probability.shape))
        grid = ScanProbability(image.shape, image.affine, [coarse])
        return dependent_box(grid.axes(coarse), box)


def structures_of(model: TrainedModel) -> tuple[str, ...]:
    """Names of the structures that a network segments."""
    return tuple(structure.name for structure in model.structures)


def preprocessing_of(model: TrainedModel) -> tuple[Preprocessing, int | None]:
    """What decides the input of a network."""
    return model.preprocessing, model.depth


def window_logit(
    network: nn.Module, sigmoid: bool, half: torch.dtype | None, windows: Tensor
) -> Tensor:
    """Logit of the foreground in windows ``(N, 1, h, w, d)``; those with only air are skipped."""
    has_body = (windows > 0).flatten(1).any(dim=1)
    logit = torch.full_like(windows, AIR_LOGIT)
    if has_body.any():
        with torch.autocast(windows.device.type, half, enabled=half is not None):
            logits = finest(network(windows[has_body])).float()
        logit[has_body] = foreground_logit(logits, sigmoid)
    return logit


def subsets(axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All subsets of axes but the empty one."""
    for count in range(1, len(axes) + 1):
        yield from combinations(axes, count)


def is_filled(box: Box) -> bool:
    """Whether a box holds a voxel."""
    return all(part.start < part.stop for part in box)


def widen(part: slice, least: int, size: int) -> slice:
    """An interval of at least ``least`` voxels around another, within ``size``.

    >>> widen(slice(4, 6), 6, 20), widen(slice(0, 2), 6, 4)
    (slice(2, 8, None), slice(0, 4, None))
    """
    missing = max(0, least - (part.stop - part.start))
    start = max(0, min(part.start - missing // 2, size - least))
    return slice(start, min(size, max(part.stop, start + least)))


def reaches_side(volume: NetworkVolume, image: nib.Nifti1Image, box: Box) -> bool:
    """Whether the organ in a box comes near a side of it that is not one of the scan's."""
    above = (volume.values > REGION_PROBABILITY).numpy()
    if not above.any():
        return True
    grid = ScanProbability(image.shape, image.affine, [volume])
    organ = dependent_box(grid.axes(volume), bounding_box(above))
    near = [math.ceil(COARSE_MM / mm) for mm in spacing_of(image.affine)]
    return any(
        (part.start > 0 and found.start - part.start < voxels)
        or (part.stop < size and part.stop - found.stop < voxels)
        for part, found, voxels, size in zip(box, organ, near, image.shape, strict=True)
    )


def reorient(values: NDArray[np.generic], affine: Affine, image: nib.Nifti1Image) -> NDArray:
    """Values on a grid in the order of axes of an image on the same grid, without a copy."""
    return np.asanyarray(oriented_like(nib.Nifti1Image(values, affine), image).dataobj)


class MaskOverlap:
    """Mean Dice between the masks of an ensemble's members, counted block by block.

    >>> overlap = MaskOverlap(2)
    >>> overlap.add([np.array([True, True, False]), np.array([True, False, False])])
    >>> round(overlap.mean_dice(), 4)
    0.6667
    """

    def __init__(self, members: int) -> None:
        self.pairs = list(combinations(range(members), 2))
        self.sizes = np.zeros(members, np.int64)
        self.common = np.zeros(len(self.pairs), np.int64)

    def add(self, masks: Sequence[NDArray[np.bool_]]) -> None:
        """Count a block of each member's mask."""
        if self.pairs:
            self.sizes += [np.count_nonzero(mask) for mask in masks]
            self.common += [np.count_nonzero(masks[i] & masks[j]) for i, j in self.pairs]

    def mean_dice(self) -> float:
        """Mean over pairs; 1 for two empty masks, and without a pair."""
        if not self.pairs:
            return 1.0
        both = np.array([self.sizes[i] + self.sizes[j] for i, j in self.pairs])
        return float(np.where(both > 0, 2 * self.common / np.maximum(both, 1), 1.0).mean())


def load_segmenter(
    path: str | Path | Sequence[str | Path],
    device: str = "auto",
    roi: str | None = None,
    precision: str | None = None,
) -> Predictor:
    """Open a trained network, or an ensemble, to call it with images.

    ``mask = load_segmenter("RUN/checkpoints/best.ckpt")(nibabel.load("ct.nii.gz"))``

    Args:
        path: Checkpoint, or folder of a run or sweep, whose networks then form an ensemble; or a
            list of them.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        roi: ``auto`` segments only around the organ, which is much faster on long scans.
        precision: Lightning's name, such as ``32-true``; None is the fast one here.

    Raises:
        PancsegError: If there is no checkpoint of pancseg, or it cannot be applied so.
    """
    paths = [Path(p) for p in ([path] if isinstance(path, str | Path) else path)]
    device = check_device(device)
    own = detect().precision
    if device == "cpu":
        own = "bf16-mixed" if cpu_has_bf16() else "32-true"
    models = open_checkpoints(paths)
    return Predictor(models, device=device, precision=precision or own, roi=is_auto(roi))


def check_device(device: str) -> str:
    """The device that ``auto`` stands for here, or the device itself.

    Raises:
        PancsegError: If it is not here, or neither a CPU nor a GPU of NVIDIA or AMD.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise PancsegError(f"device={device}: expected auto, cpu, cuda or a GPU such as cuda:1")
    if device != "cpu" and not torch.cuda.is_available():
        raise PancsegError(f"device={device}: torch finds no GPU; give device=cpu")
    return device


def is_auto(roi: str | None) -> bool:
    """Whether ``roi`` is ``auto``.

    Raises:
        PancsegError: If it is neither ``auto`` nor null.
    """
    if roi not in (None, "none", "auto"):
        raise PancsegError(f"roi={roi}: expected auto, or null for the whole scan")
    return roi == "auto"
