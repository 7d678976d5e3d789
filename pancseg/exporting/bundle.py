"""A MONAI bundle: weights, program, and the configuration that ``monai.bundle run`` executes."""

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pancseg import __version__
from pancseg.exporting import whole_scan
from pancseg.exporting.exportable import Exportable
from pancseg.exporting.processing import transforms_of
from pancseg.exporting.program import check_same, program_of, quiet
from pancseg.files import write_json
from pancseg.models.segmenter import WINDOWS

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
SCRIPT = "scripts.whole_scan"
NEEDED = ("nibabel", "scipy")  # beside MONAI, torch and numpy


def write_bundle(net: Exportable, folder: Path, tolerance: float, scores: dict[str, Any]) -> float:
    """Fill a folder with everything but the model card.

    ``models/model.pt2`` is torch.export's: TorchScript (``model.ts``) is deprecated in torch 2.13.
    ``models/model.pt`` is the same weights by name, for those who train on.

    Args:
        net: What is exported.
        folder: Empty.
        tolerance: Largest difference of a logit between the bundle and the original.
        scores: Figures of ``scores/test.json``; empty where there are none.

    Returns:
        The largest difference that was found.

    Raises:
        PancsegError: If it is larger, or the network cannot be exported.
    """
    for name in ("configs", "models", "scripts", "docs"):
        (folder / name).mkdir()
    path = folder / "models" / "model.pt2"
    with quiet():
        torch.export.save(program_of(net.network, net.window), path)
    torch.save(net.network.state_dict(), path.with_suffix(".pt"))
    shutil.copyfile(whole_scan.__file__, folder / "scripts" / "whole_scan.py")
    (folder / "scripts" / "__init__.py").touch()
    write_json(folder / "configs" / "inference.json", inference(net))
    write_json(folder / "configs" / "metadata.json", metadata(net, scores))
    with quiet():
        return check_same(net.network, whole_scan.load_network(str(path)), net.window, tolerance)


def inference(net: Exportable) -> dict[str, Any]:
    """``configs/inference.json``; ``dataset_dir`` and ``output_dir`` are given when it is run."""
    inside_body = {"_target_": f"{SCRIPT}.inside_body", "_mode_": "callable"}
    return {
        "bundle_root": {"_target_": f"{SCRIPT}.bundle_root"},
        "dataset_dir": None,
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": f"{SCRIPT}.load_network",
            "path": "$@bundle_root + '/models/model.pt2'",
            "device": "@device",
        },
        "preprocessing": {
            "_target_": "monai.transforms.Compose",
            "transforms": transforms_of(net.trained.preprocessing, inside_body),
        },
        "inferer": {
            "_target_": "monai.inferers.SlidingWindowInferer",
            "roi_size": net.window,
            "sw_batch_size": WINDOWS,
            "overlap": net.overlap,
            "mode": "gaussian",
        },
        "predict": {
            "_target_": f"{SCRIPT}.WholeScan",
            "network": "@network_def",
            "inferer": "@inferer",
            "preprocessing": "@preprocessing",
            "activation": net.activation,
            "depth": net.trained.depth,
            "device": "@device",
        },
        "postprocessing": {
            "_target_": f"{SCRIPT}.MaskOf",
            "threshold": net.how.threshold,
            "largest_component": net.how.largest_component,
        },
        "dataset": {"_target_": f"{SCRIPT}.find_scans", "folder": "@dataset_dir"},
        "evaluator": {
            "_target_": f"{SCRIPT}.Evaluator",
            "dataset": "@dataset",
            "predict": "@predict",
            "postprocessing": "@postprocessing",
            "output_dir": "@output_dir",
        },
        "run": ["$@evaluator.run()"],
    }


def metadata(net: Exportable, scores: dict[str, Any]) -> dict[str, Any]:
    """``configs/metadata.json``, with the keys of MONAI's specification of bundles."""
    patients = len(net.trained.split.train)
    return {
        "schema": SCHEMA,
        "version": __version__,
        "changelog": {__version__: "exported by pancseg"},
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in NEEDED},
        "name": "Pancreas on CT",
        "task": "Segmentation of the pancreas on abdominal CT",
        "description": f"Trained by pancseg {__version__} on {patients} patients; docs/README.md "
        "has the model card",
        "authors": "not stated",
        "copyright": "not stated",
        "data_source": f"fingerprint {net.trained.fingerprint}",
        "data_type": "CT as NIfTI, Hounsfield units",
        "image_classes": "one channel, CT in Hounsfield units, windowed to 0..1",
        "label_classes": "one channel, 1 is pancreas, 0 is everything else",
        "pred_classes": "two channels of logits, 0 is background, 1 is pancreas",
        "eval_metrics": {"mean_dice": scores["dice"]["mean"]} if scores else {},
        "intended_use": "research; not for clinical use",
        "references": [],
        "network": net.model,
        "network_data_format": {
            "inputs": {"image": tensor(net, 1, "magnitude", [0, 1], ["CT"])},
            "outputs": {"pred": tensor(net, 2, "segmentation", [], ["background", "pancreas"])},
        },
    }


def tensor(
    net: Exportable, channels: int, kind: str, values: list[float], named: list[str]
) -> dict[str, Any]:
    """What a tensor is, as MONAI's metadata says it.

    Args:
        net: Whose.
        channels: How many.
        kind: One of MONAI's words.
        values: Smallest and largest; empty where there is no such range.
        named: The channels.
    """
    return {
        "type": "image",
        "format": kind,
        "modality": "CT",
        "num_channels": channels,
        "spatial_shape": net.window,
        "dtype": "float32",
        "value_range": values,
        "is_patch_data": net.trained.preprocessing.spatial_size is None,
        "channel_def": {str(number): name for number, name in enumerate(named)},
    }
