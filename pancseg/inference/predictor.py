"""The predictor: one network or an ensemble, applied to whole scans."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain, combinations, combinations_with_replacement, pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from torch import Tensor

from pancseg import geometry
from pancseg.errors import PancsegError
from pancseg.files import json_hash
from pancseg.hardware import cpu_has_bf16, detect, is_out_of_memory
from pancseg.inference import resampling
from pancseg.inference.calibration import file_sha256, mean_calibration, read_calibration
from pancseg.inference.checkpoint import open_checkpoints
from pancseg.inference.nnunet_model import nnunet_input, whole_logits
from pancseg.inference.postprocessing import PostprocessOptions, mean_postprocess, read_postprocess
from pancseg.inference.resampling import Box, NetworkVolume, ScanProbability
from pancseg.inference.trained_model import TrainedModel
from pancseg.models.factory import use_channels_last
from pancseg.models.segmenter import finest, structure_logits
from pancseg.structures import Structure, region_mask, region_masks

log = logging.getLogger(__name__)
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # Lightning's names
AIR_LOGIT = -20.0  # of windows that contain only air: a probability of 2e-9
FAINT = 0.01  # probabilities below it do not count for the confidence


@dataclass(frozen=True)
class Prediction:
    """The mask of a structure in a scan, with the probability that it was made of.

    ``expected_dice`` is the Dice of the mask if the probabilities are right,
    ``2 sum(p in mask) / (sum(p) + voxels of mask)``, or the mean Dice between the masks of an
    ensemble's members where that is lower; 0 without a mask.
    """

    structure: Structure
    mask: NDArray[np.bool_]  # (X, Y, Z), on the image's grid
    codes: NDArray[np.uint8]  # of all structures, likewise
    expected_dice: float
    confidence: float  # the same, calibrated on validation patients
    image: nib.Nifti1Image  # the scan as given
    box: Box  # that ``inside`` covers of the scan with slice 0 nearest the feet
    inside: NDArray[np.float32]  # probability in the box
    affine: geometry.Affine  # of the scan with slice 0 nearest the feet
    shape: tuple[int, ...]  # of the same

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
    """Where a network and the sums over its windows are."""

    device: str
    sum_device: str
    windows: int  # in a batch
    half: torch.dtype | None  # of autocast; None for float32
    name: str = ""  # for the log


def device_fallbacks(device: str, precision: str) -> list[DeviceSettings]:
    """Settings for ``cpu`` or ``cuda:0``, from the fastest to those that need least GPU memory."""
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

    ``device`` is ``cpu`` or ``cuda:0``; ``precision`` is Lightning's name of the arithmetic, sums
    are float32; ``mirror`` averages over images mirrored along the axes that training mirrored.
    PancsegError if a network cannot be applied so.
    """

    def __init__(
        self,
        models: Sequence[TrainedModel],
        *,
        device: str = "cpu",
        precision: str = "32-true",
        mirror: bool = False,
        options: PostprocessOptions | None = None,
    ) -> None:
        self.models = list(models)
        if len({tuple((s.name, s.values) for s in m.structures) for m in self.models}) > 1:
            raise PancsegError("checkpoint: the networks segment different structures")
        self.fallbacks = device_fallbacks(device, precision)
        self.precision = precision
        self.mirrored_axes = [model.mirrored_axes if mirror else () for model in self.models]
        self.structures, override = models[0].structures, (options or PostprocessOptions()).override
        self.postprocess, self.calibration = [], []  # of each structure
        for s in self.structures:
            key = s.name if len(self.structures) > 1 else ""
            chosen = [override(read_postprocess(model.path, key), s.kind) for model in models]
            self.postprocess.append(mean_postprocess(chosen))
            calibrations = [read_calibration(model.path, key) for model in models]
            self.calibration.append(mean_calibration(calibrations))
        for model in self.models:
            if use_channels_last(model.network, torch.device(device).type):
                model.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def identity(self) -> dict[str, Any]:
        """What decides the mask of a scan, as plain values."""
        nnunet = [(m.hparams, vars(m.preprocessing)) for m in self.models if "nnunet" in m.hparams]
        return {
            **({"nnunet_sha256": json_hash(nnunet)} if nnunet else {}),  # plans and orientation
            "checkpoints_sha256": [file_sha256(model.path) for model in self.models],
            "postprocess": [asdict(postprocess) for postprocess in self.postprocess],
            "precision": self.precision,
            "mirrored_axes": [list(axes) for axes in self.mirrored_axes],
        }

    def __call__(self, image: nib.Nifti1Image) -> nib.Nifti1Image:
        """The label map of a CT in HU, axes in any order: uint8, ``n`` for structure ``n``."""
        return nib.Nifti1Image(self.predict(image).codes, image.affine)

    def predict(self, image: nib.Nifti1Image, min_probability: float = FAINT) -> Prediction:
        """The first structure of :meth:`predict_structures`."""
        return self.predict_structures(image, min_probability)[0]

    def predict_structures(
        self, image: nib.Nifti1Image, min_probability: float = FAINT
    ) -> list[Prediction]:
        """Segment a CT in HU, axes in any order.

        The probability is kept in a box that holds all voxels above ``min_probability``.
        """
        turned = geometry.slices_from_feet(image)  # groups are cut along the last axis
        upright = geometry.with_right_angles(turned)
        members = self.segment(upright)
        codes = np.zeros(upright.shape, np.uint8, order="F")
        parts = []
        for n, postprocess in enumerate(self.postprocess):
            own = [ScanProbability(upright.shape, upright.affine, model[n]) for model in members]
            box, inside, agreement = mean_probability(own, postprocess.threshold, min_probability)
            codes[box][postprocess.mask_of(inside)] = n + 1  # a part comes after its whole
            parts.append((box, inside, agreement))
        own_codes = reorient(codes, turned.affine, image)
        masks, predictions = region_masks(own_codes, self.structures), []
        pairs = zip(self.structures, masks, self.calibration, parts, strict=True)
        for structure, mask, calibration, (box, inside, agreement) in pairs:
            mask_inside = region_mask(codes[box], structure)
            voxels = int(np.count_nonzero(mask_inside))
            total = float(inside.sum(where=inside > FAINT, dtype=np.float64))
            in_mask = float(inside.sum(where=mask_inside, dtype=np.float64))
            expected = min(2 * in_mask / (total + voxels) if voxels else 0.0, agreement)
            values = structure, mask, own_codes, expected, calibration.confidence(expected)
            scan = image, box, inside, turned.affine, turned.shape
            predictions.append(Prediction(*values, *scan))
        return predictions

    def segment(self, image: nib.Nifti1Image) -> list[list[list[NetworkVolume]]]:
        """Probability by each network of each structure, on the network's own grid.

        The image has slice 0 nearest the feet, and axes at right angles. Equal inputs are made
        once.
        """
        keys = [(m.preprocessing, m.depth, "nnunet" in m.hparams) for m in self.models]
        members: list[list[list[NetworkVolume]]] = [[[] for _ in self.structures] for _ in keys]
        for key in dict.fromkeys(keys):
            preprocessing, depth, is_nnunet = key
            inputs = (
                resampling.network_inputs(image, preprocessing, depth)
                if not is_nnunet
                else [nnunet_input(image, preprocessing)]
            )
            for n in (n for n in range(len(keys)) if keys[n] == key):
                for volume in inputs:
                    for volumes, values in zip(
                        members[n], self.apply(n, volume.values), strict=True
                    ):
                        volumes.append(replace(volume, values=values, are_logits=is_nnunet))
        return members

    def apply(self, number: int, image: Tensor) -> Tensor:
        """Probability of each structure by a network, ``(K, H, W, D)`` float32 on the CPU.

        Where a GPU's memory runs out, this image is tried again with less of it.
        """
        for settings, following in pairwise(self.fallbacks):
            try:
                return self.mean_over_mirrors(number, image, settings)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            torch.cuda.empty_cache()
            log.warning("the GPU's memory ran out: trying %s", following.name)
        return self.mean_over_mirrors(number, image, self.fallbacks[-1])

    @torch.inference_mode()
    def mean_over_mirrors(self, number: int, image: Tensor, settings: DeviceSettings) -> Tensor:
        """Probability of the mean logit over mirrored images; of nnU-Net the logit itself."""
        model, mirrored = self.models[number], self.mirrored_axes[number]
        total = self.logits(model, image, settings)
        for axes in chain(*(combinations(mirrored, n) for n in range(1, len(mirrored) + 1))):
            back = [axis + 1 for axis in axes]
            total += self.logits(model, image.flip(axes), settings).flip(back)
        mean = total.div_(2 ** len(mirrored))
        return mean if "nnunet" in model.hparams else mean.sigmoid_()

    def logits(self, model: TrainedModel, image: Tensor, settings: DeviceSettings) -> Tensor:
        """Logit of each structure, ``(K, H, W, D)`` float32 on the CPU; windows of air are skipped.

        The image is segmented by sliding windows if it is larger than the network's input.
        """
        network, half = model.network.to(settings.device), settings.half
        sigmoid = bool(model.hparams["loss"].get("sigmoid"))
        nnunet: Any = model.hparams.get("nnunet")
        channels = nnunet["channels"] if nnunet else [s.values for s in self.structures]
        if nnunet:
            batch = image[None, None].to(settings.sum_device)
            with torch.autocast(settings.device.partition(":")[0], half, enabled=half is not None):
                whole = whole_logits(network, batch, nnunet["patch_size"], settings.device)
            return structure_logits(whole, channels, sigmoid)[0].cpu()

        def predictor(windows: Tensor) -> Tensor:  # (N, 1, h, w, d)
            has_body = (windows > 0).flatten(1).any(dim=1)
            shape = (len(windows), len(channels), *windows.shape[2:])
            logits = windows.new_full(shape, AIR_LOGIT)
            if has_body.any():
                with torch.autocast(windows.device.type, half, enabled=half is not None):
                    inside = finest(network(windows[has_body])).float()
                logits[has_body] = structure_logits(inside, channels, sigmoid)
            return logits

        view, batch = model.hparams["view"], image[None, None]
        if view is None or tuple(image.shape) == tuple(view["size"]):
            return predictor(batch.to(settings.device))[0].cpu()
        windows = view["size"], settings.windows, predictor, view["overlap"]
        devices: Any = {"sw_device": settings.device, "device": settings.sum_device}
        logits = sliding_window_inference(batch, *windows, mode="gaussian", **devices)
        return logits[0].cpu()


def mean_probability(
    members: Sequence[ScanProbability], threshold: float, min_probability: float
) -> tuple[Box, NDArray[np.float32], float]:
    """Mean probability of an ensemble in a box, and the mean Dice between its members' masks.

    The box holds all voxels above ``min_probability`` or the threshold.
    """
    lowest = min(threshold, min_probability)
    box = resampling.union([member.box_above(lowest) for member in members])
    inside = np.zeros([part.stop - part.start for part in box], np.float32, order="F")
    pairs = list(combinations_with_replacement(range(len(members)), 2))
    common = np.zeros((len(members), len(members)), np.int64)
    for part in resampling.blocks(box):
        probabilities = [member[part] for member in members]
        masks = [p > threshold for p in probabilities]
        for i, j in pairs if len(members) > 1 else ():
            common[i, j] += np.count_nonzero(masks[i] & masks[j])
        mean = sum(probabilities[1:], start=probabilities[0]) / np.float32(len(members))
        inside[..., part[2].start - box[2].start : part[2].stop - box[2].start] = mean
    return box, inside, mean_pairwise_dice(common)


def reorient(values: NDArray[Any], affine: geometry.Affine, image: nib.Nifti1Image) -> NDArray[Any]:
    """Values on a grid in the order of axes of an image on the same grid, without a copy."""
    return np.asanyarray(geometry.oriented_like(nib.Nifti1Image(values, affine), image).dataobj)


def mean_pairwise_dice(common: NDArray[np.int64]) -> float:
    """Mean Dice between masks, of which ``i`` and ``j`` share ``common[i, j]`` voxels (i <= j).

    Two empty masks have 1, as has a mask alone.

    >>> round(mean_pairwise_dice(np.array([[2, 1], [0, 1]])), 4)
    0.6667
    """
    sizes = common.diagonal()
    pairs = combinations(range(len(sizes)), 2)
    dice = [2 * common[i, j] / both if (both := sizes[i] + sizes[j]) else 1.0 for i, j in pairs]
    return float(np.mean(dice)) if dice else 1.0


def load_segmenter(
    path: str | Path | Sequence[str | Path],
    device: str = "auto",
    precision: str | None = None,
) -> Predictor:
    """Open a trained network, or an ensemble, to call it with images.

    ``mask = load_segmenter("RUN/checkpoints/best.ckpt")(nibabel.load("ct.nii.gz"))``

    Args:
        path: Checkpoint, or folder of a run or sweep, whose networks then form an ensemble; or a
            list of them.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        precision: Lightning's name, such as ``32-true``; None is the fast one here.

    Raises:
        PancsegError: If there is no checkpoint of pancseg, or it cannot be applied so.
    """
    device = check_device(device)
    own = detect().precision
    if device == "cpu":
        own = "bf16-mixed" if cpu_has_bf16() else "32-true"
    return Predictor(open_checkpoints(path), device=device, precision=precision or own)


def check_device(device: str) -> str:
    """The device that ``auto`` stands for here, or the device itself."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise PancsegError(f"device={device}: expected auto, cpu, cuda or a GPU such as cuda:1")
    if device != "cpu" and not torch.cuda.is_available():
        raise PancsegError(f"device={device}: torch finds no GPU; give device=cpu")
    return device
