"""A network as ONNX, with its pre- and postprocessing as JSON."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from pancseg.errors import PancsegError, brief
from pancseg.exporting.bundle import configuration
from pancseg.exporting.patch_network import PatchNetwork
from pancseg.files import write_json


def write_onnx(net: PatchNetwork, folder: Path) -> Callable[[Tensor], Tensor]:
    """Write ``model.onnx`` and ``processing.json`` into an empty folder; return the network."""
    from onnxruntime import InferenceSession

    path = folder / "model.onnx"
    try:
        exported = export_program(net)
    except Exception as error:  # networks of other libraries raise any kind
        raise PancsegError(
            f"format=onnx: torch cannot export {type(net.network).__name__} "
            f"({type(error).__name__}: {brief(error)}); give format=bundle"
        ) from error
    exported.save(path, external_data=False)  # one file, at most 2 GB
    sections, config = ("preprocessing", "inferer", "postprocessing"), configuration(net)
    write_json(folder / "processing.json", {name: config[name] for name in sections})
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])


def export_program(net: PatchNetwork) -> Any:
    """The network for any number of windows, without stack traces, which hold paths."""
    example = torch.zeros(2, 1, *net.patch_size)  # torch takes a size of 1 for a constant
    names: Any = {"input_names": ["image"], "output_names": ["logits"]}
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # torch's exporters log and warn on every call
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            shapes = ({0: Dim("batch")},)
            program = torch.export.export(net.network, (example,), dynamic_shapes=shapes)
            exported: Any = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    finally:
        logging.disable(before)
    exported.rename_axes({str(exported.model.graph.inputs[0].shape[0]): "batch"})
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()
    return exported
