"""A network as ONNX, with what has to be done before and after it as JSON."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from pancseg.errors import PancsegError
from pancseg.exporting.exportable import Exportable
from pancseg.exporting.processing import describe_processing
from pancseg.exporting.program import check_same, program_of, quiet
from pancseg.files import write_json

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_installed() -> None:
    """Check that what writes and runs ONNX is there, before any work is done.

    Raises:
        PancsegError: If it is not.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise PancsegError(
            f"format=onnx: needs {', '.join(missing)}, not installed; pip install pancseg[export]"
        )


def write_onnx(net: Exportable, folder: Path, tolerance: float) -> float:
    """Fill a folder with ``model.onnx`` and ``processing.json``.

    Args:
        net: What is exported.
        folder: Empty.
        tolerance: Largest difference of a logit between onnxruntime and the original.

    Returns:
        The largest difference that was found.

    Raises:
        PancsegError: If it is larger, or the network cannot be exported.
    """
    path = folder / "model.onnx"
    program = program_of(net.network, net.window)
    try:
        with quiet():
            exported = torch.onnx.export(
                program, dynamo=True, input_names=["image"], output_names=["logits"], verbose=False
            )
    except torch.onnx.OnnxExporterError as error:
        name, told = net.model["_target_"], str(error).strip().partition("\n")[0]
        raise PancsegError(f"{name}: torch writes no ONNX of it ({told})") from error
    assert exported is not None  # as for every dynamo=True
    shape = exported.model.graph.inputs[0].shape
    assert shape is not None
    exported.rename_axes({str(shape[0]): "batch"})
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # says where in which file of this machine each step stands
    exported.save(path, external_data=False)  # one file; ONNX takes 2 GB
    write_json(folder / "processing.json", describe_processing(net))
    return check_same(net.network, OnnxNetwork(path), net.window, tolerance)


class OnnxNetwork:
    """An ONNX file as a function, computed on the CPU.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        from onnxruntime import InferenceSession

        self.session = InferenceSession(path, providers=["CPUExecutionProvider"])

    def __call__(self, image: Tensor) -> Tensor:
        """Logits ``(B, 2, H, W, D)`` of windows ``(B, 1, H, W, D)``."""
        return torch.from_numpy(self.session.run(["logits"], {"image": image.numpy()})[0])
