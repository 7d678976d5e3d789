"""A MONAI bundle: weights, and a configuration of MONAI's own transforms.

https://docs.monai.io/en/latest/mb_specification.html
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from pancseg import __version__
from pancseg.data.transforms import AXES
from pancseg.exporting.patch_network import PatchNetwork
from pancseg.files import read_json, write_json
from pancseg.models.pretrained import load_tensors

# columns along the last axis with any value above 0; all columns without any
BODY = "$lambda x: (x > 0).any(-1, keepdim=True).expand_as(x) | ~(x > 0).any()"


def write_bundle(net: PatchNetwork, folder: Path, figures: dict[str, Any]) -> nn.Module:
    """Write ``configs`` and ``models`` into an empty folder; return the network as written."""
    path = folder / "models" / "model.pt"
    path.parent.mkdir()
    torch.save(net.network.state_dict(), path)
    inference = read_json(Path(__file__).with_name("inference.json"), "a configuration")
    inference |= net.definition | processing(net)
    write_json(folder / "configs" / "inference.json", inference)
    write_json(folder / "configs" / "metadata.json", metadata(net, figures))
    written = ConfigParser(net.definition).get_parsed_content("network_def")
    written.load_state_dict(load_tensors(path))
    return written.eval()


def processing(net: PatchNetwork) -> dict[str, Any]:
    """Components of MONAI from a scan's file to a mask's, as ``data/transforms.py`` has them."""
    numbers = net.trained.preprocessing
    low, high = numbers.window_hu
    scale = {"a_min": low, "a_max": high, "b_min": 0.0, "b_max": 1.0, "clip": True}
    crop = {"source_key": "image", "select_fn": BODY, "allow_smaller": True}
    inverse = {"orig_keys": "image", "transform": "@preprocessing", "nearest_interp": False}
    save = {"output_dir": "@output_dir", "output_postfix": net.structure, "output_dtype": "uint8"}
    largest = [("KeepLargestConnectedComponentd", {"applied_labels": 1})]
    to_image = [
        ("LoadImaged", {"reader": "NibabelReader", "image_only": True}),
        ("EnsureChannelFirstd", {}),
        ("Orientationd", {"axcodes": numbers.orientation, "labels": AXES}),
        ("Spacingd", {"pixdim": numbers.spacing_mm, "mode": "bilinear"}),
        ("ScaleIntensityRanged", scale),
        ("CropForegroundd", crop),
    ]
    to_mask = [
        ("Activationsd", {net.activation: True}),
        ("Lambdad", {"func": "$lambda p: p[1:]"}),  # the channel of the structure
        ("Invertd", inverse),
        ("AsDiscreted", {"threshold": net.postprocess.threshold}),
        *(largest if net.postprocess.largest_component else []),
        ("SaveImaged", {**save, "resample": False, "separate_folder": False}),
    ]
    windows = {"overlap": net.trained.hparams["view"]["overlap"], "mode": "gaussian"}
    windows |= {"roi_size": net.patch_size, "sw_batch_size": 2}
    return {
        "preprocessing": compose("image", to_image),
        "inferer": {"_target_": "SlidingWindowInferer", **windows},
        "postprocessing": compose("pred", to_mask),
    }


def compose(key: str, transforms: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Dictionary transforms of one key, in the words of bundles."""
    nodes = [{"_target_": name, "keys": key, **arguments} for name, arguments in transforms]
    return {"_target_": "Compose", "transforms": nodes}


def metadata(net: PatchNetwork, figures: dict[str, Any]) -> dict[str, Any]:
    """``configs/metadata.json``."""
    name, size = net.structure, net.patch_size
    tensor = {"type": "image", "modality": "CT", "spatial_shape": size, "dtype": "float32"}
    image = {"format": "hounsfield", "num_channels": 1, "value_range": [0, 1]}
    pred = {"format": "segmentation", "num_channels": 2, "value_range": []}
    channels = {"0": "background", "1": name}
    return {
        **read_json(Path(__file__).with_name("metadata.json"), "metadata"),
        "version": __version__,
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": version("numpy"),
        "task": f"Segmentation of the {name} on abdominal CT",
        "data_source": f"fingerprint {net.trained.fingerprint}",
        "eval_metrics": {"mean_dice": figures["dice"]["mean"]} if figures else {},
        "network_data_format": {
            "inputs": {"image": tensor | image | {"channel_def": {"0": "CT"}}},
            "outputs": {"pred": tensor | pred | {"channel_def": channels}},
        },
    }
