"""A network as a program of torch's: no class of Python is needed to run it."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pancseg.errors import PancsegError

CHATTER = {
    "torch.onnx._internal.exporter._registration": logging.ERROR,  # that torchvision is not there
    "onnxscript": logging.WARNING,  # each node that is simplified
    "onnx_ir": logging.WARNING,
}
EXAMPLES = 2  # windows: of one alone torch concludes that there is never another number


def program_of(network: nn.Module, window: Sequence[int]) -> ExportedProgram:
    """What a network computes of any number of windows, as a graph with its weights.

    Args:
        network: From ``(B, 1, H, W, D)`` to logits ``(B, 2, H, W, D)``, in evaluation mode, on a
            CPU.
        window: ``H, W, D``.

    Raises:
        PancsegError: If torch cannot follow it.
    """
    example = torch.zeros(EXAMPLES, 1, *window)
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(network, (example,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # whatever a network of any library makes of being traced
        told = str(error).strip().partition("\n")[0]
        raise PancsegError(
            f"{type(network).__name__}: torch cannot export it ({type(error).__name__}: {told})"
        ) from error
    program.example_inputs = None  # they would be stored, as large as two windows
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files and folders of this machine
    return program


@contextmanager
def quiet() -> Iterator[None]:
    """Leave unsaid what exporting says each time and nobody can change."""
    loggers = {logging.getLogger(name): level for name, level in CHATTER.items()}
    before = {logger: logger.level for logger in loggers}
    for logger, level in loggers.items():
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            # torch 2.13 copies a graph by a name that it renames
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
            yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)


@torch.no_grad()
def check_same(
    network: nn.Module,
    exported: Callable[[Tensor], Tensor],
    window: Sequence[int],
    tolerance: float,
) -> float:
    """Run what was written once on a random window, beside the network that it was made of.

    Args:
        network: The original.
        exported: From ``(1, 1, H, W, D)`` to logits ``(1, 2, H, W, D)``.
        window: ``H, W, D``.
        tolerance: Largest difference of a logit.

    Returns:
        The largest difference.

    Raises:
        PancsegError: If it is above the tolerance, or no number.
    """
    image = torch.rand(1, 1, *window, generator=torch.Generator().manual_seed(0))
    difference = float((exported(image) - network(image)).abs().max())
    if not difference <= tolerance:
        raise PancsegError(
            "on a random window the exported network differs from the original by "
            f"{difference:.3g} in a logit, expected at most {tolerance:g}; nothing was written"
        )
    return difference
