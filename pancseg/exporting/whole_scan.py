"""Masks of whole CT scans by an exported network.

This file is copied into every MONAI bundle that is exported, as ``scripts/whole_scan.py``, and
``configs/inference.json`` puts its parts together. So it needs MONAI, nibabel, scipy and torch, and
imports nothing of the package that it was written in: what it does is said there a second time, and
the tests hold both to the same voxels.
"""

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from nibabel import orientations
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

AIR_LOGIT = -20.0  # of pancreas, beside 0 of background
AIR_HU = -1024  # fills up a group that is longer than the scan
TOUCHING = np.ones((3, 3, 3), bool)  # voxels that share a corner are of one component
ENDINGS = (".nii.gz", ".nii")
MASK = "_pancreas.nii.gz"


def bundle_root() -> str:
    """The folder of the bundle."""
    return str(Path(__file__).resolve().parent.parent)


def inside_body(image: Tensor) -> Tensor:
    """Columns of voxels along the last axis that hold anything above 0; all where there is none.

    >>> inside_body(torch.tensor([[0.0, 0.5], [0.0, 0.0]])).tolist()
    [[True, True], [False, False]]
    """
    body = (image > 0).any(dim=-1, keepdim=True).expand_as(image)
    return body if body.any() else torch.ones_like(body)


class ExportedNetwork(nn.Module):
    """An exported program as a module; it computes as in evaluation, whatever it is told.

    Args:
        program: Its module.
    """

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``(B, 2, H, W, D)`` of windows ``(B, 1, H, W, D)``."""
        return self.program(image)

    def train(self, mode: bool = True) -> "ExportedNetwork":
        """Nothing: exported programs know no modes, and torch raises where one is asked for."""
        return self


def load_network(path: str, device: torch.device | str = "cpu") -> ExportedNetwork:
    """Load ``models/model.pt2`` to a device."""
    program = move_to_device_pass(torch.export.load(path), torch.device(device))
    return ExportedNetwork(program.module())


def find_scans(folder: str | None) -> list[dict[str, Path]]:
    """NIfTI files of a folder, at any depth, or the one file that is given; no masks of ours.

    Returns:
        ``image``: the file, and ``name``: its path inside the folder, without the ending.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If two would have one mask.
    """
    place = Path(str(folder))
    files = [place] if place.is_file() else sorted(place.rglob("*.nii*"))
    base = place.parent if place.is_file() else place
    found = []
    for file in files:
        ending = next((one for one in ENDINGS if file.name.endswith(one)), "")
        if ending and not file.name.endswith(MASK):
            inside = file.relative_to(base)
            found.append({"image": file, "name": inside.with_name(file.name[: -len(ending)])})
    if folder is None or not found:
        raise FileNotFoundError(f"dataset_dir={folder}: holds no .nii or .nii.gz; give another")
    if len({item["name"] for item in found}) < len(found):
        raise ValueError(f"dataset_dir={folder}: has .nii and .nii.gz of one name; keep one")
    return found


class WholeScan:
    """Predicts the probability of pancreas at every voxel of a scan, on its own grid.

    Args:
        network: Gives logits of windows.
        inferer: MONAI's, which puts windows together; asked where a scan is no single window.
        preprocessing: Transforms of ``{"image": MetaTensor (1, X, Y, Z)}``.
        activation: ``sigmoid`` of the pancreas channel alone, or ``softmax`` over both channels.
        depth: Slices of the groups that a scan is cut into; None for whole scans.
        device: Where the network computes.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        inferer: Callable[..., Any],
        preprocessing: Callable[[dict[str, Any]], dict[str, Any]],
        activation: str,
        depth: int | None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.network = network
        self.inferer = inferer
        self.preprocessing = preprocessing
        self.activation = activation
        self.depth = depth
        self.device = device

    def __call__(self, image: nib.Nifti1Image) -> NDArray[np.float32]:
        """Probability ``(X, Y, Z)`` of an image, in its order of axes."""
        turned = with_right_angles(slices_from_feet(image))
        probability = self.of_groups(turned)
        back = orientations.ornt_transform(
            orientations.io_orientation(turned.affine), orientations.io_orientation(image.affine)
        )
        own = nib.Nifti1Image(probability, turned.affine).as_reoriented(back)
        return np.asanyarray(own.dataobj)

    def of_groups(self, image: nib.Nifti1Image) -> NDArray[np.float32]:
        """Probability group by group; where two overlap, their mean counts."""
        if self.depth is None:
            return self.of_group(image)
        slices = image.shape[2]
        total = np.zeros(image.shape, np.float32)
        times = np.zeros(slices, np.float32)
        for start in group_starts(slices, self.depth):
            stop = min(start + self.depth, slices)
            group = cut_group(image, start, self.depth)
            total[..., start:stop] += self.of_group(group)[..., : stop - start]
            times[start:stop] += 1
        return total / times

    @torch.inference_mode()
    def of_group(self, group: nib.Nifti1Image) -> NDArray[np.float32]:
        """Probability on the grid of one group, or of a whole scan."""
        values = torch.as_tensor(np.asanyarray(group.dataobj).astype(np.float32))[None]
        grid = torch.as_tensor(group.affine)
        seen = self.preprocessing({"image": MetaTensor(values, affine=grid)})["image"]
        batch = seen.as_tensor()[None].to(self.device)
        one_window = tuple(batch.shape[2:]) == tuple(getattr(self.inferer, "roi_size", ()))
        logits = self.ask(batch) if one_window else self.inferer(batch, self.ask)
        probability = self.activated(logits.float())[0].cpu()
        return resample(probability, seen.affine, grid, group.shape)

    def ask(self, windows: Tensor) -> Tensor:
        """Logits of windows; the network is not asked about windows of nothing but air."""
        busy = (windows > 0).flatten(1).any(dim=1)
        logits = windows.new_zeros(len(windows), 2, *windows.shape[2:])
        logits[:, 1] = AIR_LOGIT
        if busy.any():
            logits[busy] = self.network(windows[busy]).float()
        return logits

    def activated(self, logits: Tensor) -> Tensor:
        """Probability of pancreas ``(B, 1, H, W, D)``, by the rule that the loss taught."""
        if self.activation == "sigmoid":
            return logits[:, 1:].sigmoid()
        return logits.softmax(dim=1)[:, 1:]


def slices_from_feet(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Turn the array so that its last axis runs from feet to head; the other two stay.

    >>> turned = slices_from_feet(nib.Nifti1Image(np.zeros((4, 2, 3)), np.diag([1, 1, -1, 1.0])))
    >>> nib.aff2axcodes(turned.affine), turned.shape
    (('R', 'A', 'S'), (4, 2, 3))
    """
    own = orientations.io_orientation(image.affine)
    last = int(np.flatnonzero(own[:, 0] == 2)[0])
    order = [axis for axis in range(3) if axis != last] + [last]
    turn = np.array([[order.index(axis), 1.0] for axis in range(3)])
    turn[last, 1] = own[last, 1]
    return image.as_reoriented(turn)


def with_right_angles(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The same voxels, their axes turned until they are at right angles, if they lean."""
    sizes = nib.affines.voxel_sizes(image.affine)
    u, _, v = np.linalg.svd(image.affine[:3, :3] / sizes)
    affine = image.affine.copy()
    affine[:3, :3] = u @ v * sizes
    return nib.Nifti1Image(np.asanyarray(image.dataobj), affine)


def group_starts(slices: int, depth: int) -> list[int]:
    """Where groups begin: one after the other, the last moved back until it is whole.

    >>> group_starts(150, 64), group_starts(128, 64), group_starts(20, 64)
    ([0, 64, 86], [0, 64], [0])
    """
    starts = list(range(0, slices - depth + 1, depth))
    return starts if starts and slices % depth == 0 else [*starts, max(slices - depth, 0)]


def cut_group(image: nib.Nifti1Image, start: int, depth: int) -> nib.Nifti1Image:
    """Cut ``depth`` slices; those past the end of the scan hold air."""
    group = image.slicer[:, :, start : start + depth]
    missing = depth - group.shape[2]
    if missing <= 0:
        return group
    values = np.asanyarray(group.dataobj)
    padded = np.pad(values, ((0, 0), (0, 0), (0, missing)), constant_values=AIR_HU)
    return nib.Nifti1Image(padded, group.affine)


def resample(
    probability: Tensor, affine: Tensor, to_affine: Tensor, to_shape: Sequence[int]
) -> NDArray[np.float32]:
    """Bring ``(1, H, W, D)`` to another grid in one linear interpolation.

    Ones are resampled beside it: what of a voxel's weights falls outside the network's field is
    divided out, and voxels with more than half outside get 0.
    """
    pair = torch.cat([probability, torch.ones_like(probability)])
    moved = SpatialResample(mode="bilinear", padding_mode="zeros")(
        MetaTensor(pair, affine=affine), dst_affine=to_affine, spatial_size=to_shape
    )
    value, weight = moved.float().numpy()
    return np.where(weight > 0.5, value / np.maximum(weight, 0.5), 0).astype(np.float32)


class MaskOf:
    """Makes a mask of a probability.

    Args:
        threshold: Voxels above it are pancreas.
        largest_component: Whether only the largest piece is kept; voxels that share a corner are
            of one piece.
    """

    def __init__(self, threshold: float, largest_component: bool) -> None:
        self.threshold = threshold
        self.largest_component = largest_component

    def __call__(self, probability: NDArray[np.float32]) -> NDArray[np.bool_]:
        """The mask.

        >>> p = np.array([[[0.9, 0.1, 0.6, 0.8]]])
        >>> MaskOf(0.5, True)(p).astype(int).tolist()
        [[[0, 0, 1, 1]]]
        """
        mask: NDArray[np.bool_] = probability > self.threshold
        if not (self.largest_component and mask.any()):
            return mask
        labels, _ = ndimage.label(mask, TOUCHING)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        return np.equal(labels, sizes.argmax())


class Evaluator:
    """Writes the mask of every scan.

    Args:
        dataset: Items as :func:`find_scans` gives them.
        predict: From an image to the probability on its grid.
        postprocessing: From a probability to a mask.
        output_dir: Where masks are written, named and in folders as the scans are.
    """

    def __init__(
        self,
        dataset: Sequence[dict[str, Path]],
        predict: Callable[[nib.Nifti1Image], NDArray[np.float32]],
        postprocessing: Callable[[NDArray[np.float32]], NDArray[np.bool_]],
        output_dir: str,
    ) -> None:
        self.dataset = dataset
        self.predict = predict
        self.postprocessing = postprocessing
        self.output_dir = output_dir

    def run(self) -> None:
        """Segment them one after the other; a bad scan stops no other.

        Raises:
            RuntimeError: If one could not be segmented; the others are.
        """
        failed = 0
        for item in self.dataset:
            name = item["name"]
            target = Path(str(self.output_dir)) / name.with_name(f"{name.name}{MASK}")
            try:
                said = self.segment(item["image"], target)
            except Exception as error:  # files of others are broken in many ways
                failed, said = failed + 1, f"failed: {type(error).__name__}: {error}"
            print(f"{name}  {said}", flush=True)
        if failed:
            raise RuntimeError(f"{failed} of {len(self.dataset)} scans failed; see above")

    def segment(self, scan: Path, target: Path) -> str:
        """Write the mask of a scan, uint8, on its own grid; whole or not at all.

        Returns:
            The volume in words.
        """
        image: Any = nib.load(scan)
        if len(image.shape) != 3:
            raise ValueError(f"has {len(image.shape)} axes; expected 3")
        mask = self.postprocessing(self.predict(image)).astype(np.uint8)
        stored = nib.Nifti1Image(mask, image.affine)
        stored.header.set_xyzt_units("mm")
        stored.set_sform(image.affine, code="scanner")
        stored.set_qform(image.affine, code="scanner")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".partial-{secrets.token_hex(6)}-{target.name}")
        try:
            nib.save(stored, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        ml = int(mask.sum()) * abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000
        return f"{ml:.1f} ml"
