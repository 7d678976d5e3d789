"""A MONAI bundle: weights, and a configuration of MONAI's own transforms.

https://docs.monai.io/en/latest/mb_specification.html
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from pancseg import __version__
from pancseg.data.transforms import AXES
from pancseg.exporting.patch_network import PatchNetwork
from pancseg.files import write_json
from pancseg.models.pretrained import load_tensors


def write_bundle(net: PatchNetwork, folder: Path, figures: dict[str, Any]) -> nn.Module:
    """Write ``configs`` and ``models`` into an empty folder; return the network as written."""
    path = folder / "models" / "model.pt"
    path.parent.mkdir()
    torch.save(net.network.state_dict(), path)
    write_json(folder / "configs" / "inference.json", configuration(net))
    write_json(folder / "configs" / "metadata.json", metadata(net, figures))
    written = ConfigParser(net.definition).get_parsed_content("network_def")
    written.load_state_dict(load_tensors(path))
    return written.eval()


def configuration(net: PatchNetwork) -> dict[str, Any]:
    """``inference.json`` with the values of a network; its transforms are those of training.

    ``CropForegroundd`` keeps columns along the last axis with any value above 0, or all.
    """
    low, high = net.trained.preprocessing.window_hu
    values = {
        **vars(net.trained.preprocessing),
        "labels": AXES,
        "low": low,
        "high": high,
        "patch_size": net.patch_size,
        "overlap": net.trained.hparams["view"]["overlap"],
        "activation": net.activation,
        "threshold": net.postprocess.threshold,
        "structure": net.structure,
    }
    config = filled("inference.json", values)
    if not net.postprocess.largest_component:
        config["postprocessing"]["transforms"].pop(-2)  # KeepLargestConnectedComponentd
    return config | net.definition


def metadata(net: PatchNetwork, figures: dict[str, Any]) -> dict[str, Any]:
    """``metadata.json`` with the values of a network."""
    values = {
        "version": __version__,
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": version("numpy"),
        "task": f"Segmentation of the {net.structure} on abdominal CT",
        "data_source": f"fingerprint {net.trained.fingerprint}",
        "eval_metrics": {"mean_dice": figures["dice"]["mean"]} if figures else {},
        "patch_size": net.patch_size,
        "structure": net.structure,
    }
    return filled("metadata.json", values)


def filled(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """A file of this folder with values in place of ``"<key>"``."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f'"<{key}>"', json.dumps(value))
    config: dict[str, Any] = json.loads(text)
    return config
