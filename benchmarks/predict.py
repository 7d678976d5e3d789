"""What a new scan costs: pancseg beside MONAI's plain pipeline with the same network.

    python benchmarks/predict.py --checkpoint RUN/checkpoints/best.ckpt --image CT --label MASK \
        --work FOLDER --slices 100,400,1000

The image, with its mask, is brought to 512 x 512 x N voxels: what is missing in length is filled
by its last slices, each with noise of its own. Each arm is a process of its own, from its start to
the written mask, one after the other: the plain pipeline of MONAI's tutorials (Compose,
SlidingWindowInferer, Invertd, SaveImage), nnU-Net's predictor where nnunetv2 can be imported,
``pancseg.predict`` (which also checks, measures and draws); all
with the same network, voxels, windows and overlap.
"""

import argparse
import csv
import datetime
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from dice_over_time import machine
from scipy import ndimage

ACROSS = 512  # columns and rows
STEP_MM = {100: 3.0}  # from slice to slice; 1 mm for other lengths
NOISE_HU = 12.0
OTHERS = {"MONAI plain": "--plain", "nnU-Net's predictor": "--nnunet"}
ARMS = ("MONAI plain", "nnU-Net's predictor", "pancseg")
SECONDS = 1800  # that an arm may take


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Attributes:
        seconds: Wall-clock, imports and all.
        scan_s: Of it, from reading the scan to the last file: what each further scan takes.
        peak_mb: The most memory it held.
        dice: Of its mask.
    """

    seconds: float
    scan_s: float
    peak_mb: float
    dice: float


def make_scan(image: Path, label: Path, slices: int, folder: Path) -> tuple[Path, Path]:
    """An image and its mask at 512 x 512 x ``slices`` voxels."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"scan_{slices}.nii.gz", folder / f"scan_{slices}_truth.nii.gz"
    step_mm = STEP_MM.get(slices, 1.0)
    rng = np.random.default_rng(slices)
    for path, source, order in zip(paths, (image, label), (1, 0), strict=True):
        small = nib.as_closest_canonical(nib.load(source))
        spacing_mm = small.header.get_zooms()
        zoom = [ACROSS / small.shape[0], ACROSS / small.shape[1], spacing_mm[2] / step_mm]
        values = ndimage.zoom(np.asarray(small.dataobj, np.float32), zoom, order=order)
        missing = slices - values.shape[2]
        if missing < 0:  # cut evenly at both ends
            values = values[..., -missing // 2 : -missing // 2 + slices]
        mode = {"mode": "edge"} if order else {"mode": "constant"}
        below, above = max(0, missing) * 2 // 3, max(0, missing) - max(0, missing) * 2 // 3
        values = np.pad(values, ((0, 0), (0, 0), (below, above)), **mode)
        if order:
            for k in range(values.shape[2]):
                values[..., k] += rng.normal(0, NOISE_HU, values.shape[:2])
        affine = np.diag([spacing_mm[0] / zoom[0], spacing_mm[1] / zoom[1], step_mm, 1.0])
        kind = np.int16 if order else np.uint8
        nib.save(nib.Nifti1Image(np.rint(values).astype(kind), affine), path)
    return paths


def run_plain(checkpoint: Path, scan: Path, output: Path) -> None:
    """MONAI's pipeline as its tutorials write it."""
    import torch
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import (
        AsDiscreted,
        Compose,
        CropForegroundd,
        EnsureChannelFirstd,
        EnsureTyped,
        Invertd,
        LoadImaged,
        Orientationd,
        SaveImaged,
        ScaleIntensityRanged,
        Spacingd,
    )

    from pancseg.inference.checkpoint import open_checkpoint

    trained = open_checkpoint(checkpoint)
    numbers, view = trained.preprocessing, trained.hparams["view"]
    network = trained.network
    before = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes=numbers.orientation, labels=None),
            Spacingd("image", pixdim=numbers.spacing_mm, mode="bilinear"),
            ScaleIntensityRanged("image", *numbers.window_hu, b_min=0.0, b_max=1.0, clip=True),
            CropForegroundd("image", source_key="image", allow_smaller=True),
            EnsureTyped("image"),
        ]
    )
    after = Compose(
        [
            Invertd("pred", transform=before, orig_keys="image", nearest_interp=False),
            AsDiscreted("pred", argmax=True),
            SaveImaged("pred", output_dir=output, output_postfix="plain", separate_folder=False),
        ]
    )
    windows = SlidingWindowInferer(view["size"], 4, view["overlap"], mode="gaussian")
    began = time.perf_counter()
    with torch.no_grad():
        item = before({"image": str(scan)})
        item["pred"] = windows(item["image"][None], network)[0]
        after(item)
    print(f"scan_s {time.perf_counter() - began:.2f}")


def run_nnunet(checkpoint: Path, scan: Path, output: Path) -> None:
    """nnU-Net's predictor with the same network, voxels and overlap, and no mirroring.

    Its own reading, resampling (third order, as it has by default), sliding window and export;
    normalisation and axes are set so that the network is given what it was trained on.
    """
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from pancseg.inference.checkpoint import open_checkpoint

    trained = open_checkpoint(checkpoint)
    view = trained.hparams["view"]
    spacing_mm = [float(mm) for mm in trained.preprocessing.spacing_mm]
    low, high = trained.preprocessing.window_hu
    data = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "same", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": list(view["size"]), "median_image_size_in_voxels": [128, 160, 160],
        "spacing": spacing_mm, "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False], "batch_dice": True,
        "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": data,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**data, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**data, "order": 1},
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
    }  # fmt: skip
    numbers = {"mean": low, "std": high - low, "percentile_00_5": low, "percentile_99_5": high}
    plans = {
        "dataset_name": "Dataset001_Same", "plans_name": "same",
        "original_median_spacing_after_transp": spacing_mm,
        "original_median_shape_after_transp": [128, 160, 160],
        "image_reader_writer": "SimpleITKIO", "transpose_forward": [2, 1, 0],
        "transpose_backward": [2, 1, 0], "experiment_planner_used": "same",
        "label_manager": "LabelManager", "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {"0": numbers},
    }  # fmt: skip
    labels = {"background": 0, "pancreas": 1}
    described = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    network = trained.network
    manager = PlansManager(plans)
    predictor = nnUNetPredictor(
        tile_step_size=1 - view["overlap"],
        use_mirroring=False,
        device=torch.device("cpu"),
        perform_everything_on_device=False,
    )
    predictor.manual_initialization(
        network, manager, manager.get_configuration("3d_fullres"), [network.state_dict()],
        described, "same", None,
    )  # fmt: skip
    began = time.perf_counter()
    target = str(output / "scan")
    predictor.predict_from_files_sequential([[str(scan)]], [target])
    print(f"scan_s {time.perf_counter() - began:.2f}")


def cost_of(words: Sequence[str], mask_of: Path, truth: Path) -> Cost:
    """Run a process to its end and measure it.

    Args:
        words: Its command line.
        mask_of: Folder in which it leaves one NIfTI mask.
        truth: What the mask is held against.
    """
    began = time.perf_counter()
    log = mask_of / "log.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}; see {log}")
    mask = next(path for path in mask_of.glob("*.nii.gz") if "_probability" not in path.name)
    dice = apart(dice_of, mask, truth)
    table = mask_of / "predictions.csv"
    if table.is_file():
        scan_s = float(next(csv.DictReader(table.read_text().splitlines()))["seconds"])
    else:
        scan_s = float(log.read_text().rpartition("scan_s ")[2])
    return Cost(seconds, scan_s, usage.ru_maxrss / 1024, dice)


def dice_of(mask: Path, truth: Path) -> float:
    """Dice of two files."""
    found = np.asarray(nib.load(mask).dataobj).squeeze() > 0
    drawn = np.asarray(nib.load(truth).dataobj) > 0
    both = np.count_nonzero(found) + np.count_nonzero(drawn)
    return 2 * np.count_nonzero(found & drawn) / both


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """Work in a process of its own: what this one ever held counts as its children's peak."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def words_of(arm: str, checkpoint: Path, scan: Path, output: Path) -> list[str]:
    """The command line of an arm."""
    if arm in OTHERS:
        me = [sys.executable, __file__, OTHERS[arm], "--work", str(output)]
        return [*me, "--checkpoint", str(checkpoint), "--image", str(scan)]
    words = [f"checkpoint={checkpoint}", f"input={scan}", f"output={output}"]
    return [sys.executable, "-m", "pancseg.predict", *words]


def measure(asked: argparse.Namespace, slices: int) -> dict[str, Cost]:
    """All arms on a scan of one length."""
    folder = asked.work / "scans"
    scan, truth = apart(make_scan, asked.image, asked.label, slices, folder)
    costs = {}
    arms = [arm for arm in ARMS if "nnU-Net" not in arm or find_spec("nnunetv2")]
    for number, arm in enumerate(arms):
        output = asked.work / f"{slices}_{number}"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        costs[arm] = cost_of(words_of(arm, asked.checkpoint, scan, output), output, truth)
        print(f"{slices} slices, {arm}: {costs[arm]}", file=sys.stderr, flush=True)
    return costs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--checkpoint", "--image", "--work"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--label", type=Path)
    parser.add_argument("--slices", default="100,400,1000")
    parser.add_argument("--plain", action="store_true", help="run the plain pipeline, and stop")
    parser.add_argument("--nnunet", action="store_true", help="run nnU-Net's, and stop")
    asked = parser.parse_args()
    for wanted, run in ((asked.plain, run_plain), (asked.nnunet, run_nnunet)):
        if wanted:
            run(asked.checkpoint, asked.image, asked.work)
            return
    print(f"{machine()}, {datetime.date.today()}; whole processes, one run each\n")
    print(
        "| voxels | arm | process s | times as fast | scan s | times as fast | peak MB "
        "| share of plain's | Dice |\n|--|--|--|--|--|--|--|--|--|"
    )
    for slices in map(int, asked.slices.split(",")):
        costs = measure(asked, slices)
        plain = costs[ARMS[0]]
        for arm, cost in costs.items():
            print(
                f"| {ACROSS} x {ACROSS} x {slices} | {arm} | {cost.seconds:.1f} "
                f"| {plain.seconds / cost.seconds:.1f} | {cost.scan_s:.1f} "
                f"| {plain.scan_s / cost.scan_s:.1f} | {cost.peak_mb:.0f} "
                f"| {cost.peak_mb / plain.peak_mb:.2f} | {cost.dice:.3f} |"
            )


if __name__ == "__main__":
    main()
