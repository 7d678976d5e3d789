"""Build networks, losses and optimizers from plain values, and check the patch size they take.

The values may come from a checkpoint of unknown origin: a ``_target_`` is looked up in four
libraries only, and may load no file. Hydra's ``instantiate`` would call any function.
"""

import importlib
import inspect
import logging
import math
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pancseg.errors import PancsegError

log = logging.getLogger(__name__)
Built = TypeVar("Built")
ALLOWED = ("monai.networks", "monai.losses", "torch.optim", "pancseg.models")
DOWNLOADING = {"monai.losses.perceptual"}  # runs torch.hub.load whatever its arguments
# arguments by which classes of MONAI 1.6 download or open a file of weights
LOADS = re.compile(r"pretrained.*|.*url|weights|checkpoint|.*path.*|filename|.*_dir")
STEPS = (1, 2, 4, 8, 16, 32, 64, 128)  # tried as the divisor of a patch size


def build(node: dict[str, Any], kind: type[Built], *args: Any) -> Built:
    """Build an object of class ``kind`` from ``_target_``, keyword and positional arguments.

    Raises:
        PancsegError: If the target is missing or not an allowed class, would load weights, or
            refuses its arguments.
    """
    target = str(node.get("_target_", ""))
    expected = f"expected a {kind.__name__} of {', '.join(ALLOWED)}"
    if target == "???":  # OmegaConf's mandatory value
        raise PancsegError(
            f"_target_ is not given; {expected}, such as "
            "model._target_=monai.networks.nets.AttentionUnet"
        )
    found = find_class(target)
    if found is None or not issubclass(found, kind):
        raise PancsegError(f"_target_={target}: not allowed; {expected}")
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    check_loads_nothing(found, arguments)
    try:
        return found(*args, **arguments)
    except PancsegError:
        raise
    except Exception as error:  # constructors of other libraries raise any kind
        raise PancsegError(f"{target}: {one_line(error)}") from error


def check_loads_nothing(found: type, arguments: dict[str, Any]) -> None:
    """Check that no argument, given or default, makes a class download or open weights.

    Raises:
        PancsegError: Naming the argument and a value that is accepted.
    """
    parameters = inspect.signature(found).parameters.items()
    defaults = {name: p.default for name, p in parameters if p.default is not p.empty}
    for name, value in {**defaults, **arguments}.items():
        # numbers are not files: DeepSupervisionLoss(weights=[1, 0.5])
        if LOADS.fullmatch(name) and (value is True or isinstance(value, (str, dict))):
            raise PancsegError(
                f"{found.__name__}: {name}={value} would load weights from elsewhere, which is not "
                f"allowed; give {name}={'false' if value is True else 'null'}"
            )


def one_line(error: Exception) -> str:
    """The message of an exception without line breaks; its type if it has none.

    >>> one_line(ValueError("no such" + chr(10) + "size")), one_line(KeyError())
    ('no such size', 'KeyError')
    """
    return " ".join(str(error).split()) or type(error).__name__


def find_class(target: str) -> type | None:
    """The class of a dotted name if an allowed library defines it, else None."""
    module, _, name = target.rpartition(".")
    if not is_allowed(module):
        return None
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None
    is_class = isinstance(found, type) and found.__module__ not in DOWNLOADING
    return found if is_class and is_allowed(found.__module__) else None


def is_allowed(module: str) -> bool:
    """Whether a module is an allowed library or inside one.

    >>> is_allowed("monai.networks.nets"), is_allowed("monai.networks_evil"), is_allowed("os")
    (True, False, False)
    """
    return any(module == root or module.startswith(root + ".") for root in ALLOWED)


def build_on_meta(model: dict[str, Any]) -> nn.Module:
    """Build a network with shapes and without values.

    Raises:
        PancsegError: If it cannot be built.
    """
    try:
        with torch.device("meta"):
            return build(model, nn.Module)
    except PancsegError:  # a constructor that reads values
        with torch.random.fork_rng(devices=[]):
            return build(model, nn.Module).to("meta")


def count_parameters(network: nn.Module) -> int:
    """Trainable parameters of a network."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def count_multiply_adds(network: nn.Module, spatial_size: Sequence[int]) -> int:
    """Multiply-adds of convolutions and matrix products for one patch, on the meta device."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.empty(1, 1, *spatial_size, device="meta"))
    return counter.get_total_flops() // 2


def describe_cost(model: dict[str, Any], spatial_size: Sequence[int]) -> str:
    """Parameters of a network, and its multiply-adds for a patch where they can be counted."""
    network = build_on_meta(model)
    parameters = f"{count_parameters(network) / 1e6:.1f} M parameters"
    try:
        multiply_adds = count_multiply_adds(network, spatial_size)
    except Exception as error:  # networks of other libraries raise any kind
        if not needs_values(error):
            raise
        return parameters
    return f"{parameters}, {multiply_adds / 1e9:.0f} G multiply-adds a patch"


def needs_values(error: Exception) -> bool:
    """Whether a network failed only because it reads values, which the meta device lacks.

    >>> needs_values(RuntimeError("Tensor.item() cannot be called on meta tensors"))
    True
    """
    return isinstance(error, NotImplementedError) or "meta tensor" in str(error)


def check_spatial_size(
    model: dict[str, Any], spatial_size: Sequence[int], batch_size: int = 2
) -> None:
    """Check that a network takes patches of a size, voxels, and returns two logits per voxel.

    Raises:
        PancsegError: With the axis and the two nearest sizes that work if sizes must be multiples
            of a number, else with the network's own message.
    """
    size = [int(voxels) for voxels in spatial_size]
    if len(size) != 3:
        raise PancsegError(f"data.spatial_size={size}: expected three sizes, voxels")
    depends_on_size = "img_size" in model  # then the constructor refuses the size
    try:
        network = build_on_meta(model)
    except PancsegError:
        if depends_on_size:
            check_by_trials(model, None, size, batch_size)
        raise
    for axis, (step, least) in enumerate(strides_rule(getattr(network, "strides", ()))):
        check_axis(size, axis, step, least)
    if problem := find_problem(network, size, batch_size):
        check_by_trials(model, None if depends_on_size else network, size, batch_size)
        raise PancsegError(problem)


def find_problem(network: nn.Module, size: Sequence[int], batch_size: int) -> str:
    """Why a network on the meta device cannot be trained on patches of a size; empty if it can."""
    image, name = torch.empty(batch_size, 1, *size, device="meta"), type(network).__name__
    try:
        with torch.no_grad():
            outputs, logits = network.train()(image), network.eval()(image)
    except Exception as error:  # networks of other libraries raise any kind
        if needs_values(error):  # cannot be tried here
            return ""
        return f"data.spatial_size={list(size)}: this network does not take it: {one_line(error)}"
    finest = outputs[0] if isinstance(outputs, (list, tuple)) and outputs else outputs
    if not isinstance(finest, Tensor) or not isinstance(logits, Tensor):
        return (
            f"{name}: expected a tensor of logits in evaluation, and in training a tensor or a "
            "list of tensors from fine to coarse"
        )
    expected = [batch_size, 2, *size]
    for shape in (list(finest.shape), list(logits.shape)):
        if shape != expected:
            images = f"images of shape {list(image.shape)}"
            return f"{name}: gives logits of shape {shape} for {images}; expected {expected}"
    return ""


def strides_rule(strides: Sequence[int | Sequence[int]]) -> list[tuple[int, int]]:
    """Divisor and least size of each axis of a network with strides; empty without.

    The divisor is the product of the strides, so that skip connections fit; the least size is twice
    that, because a bottom level of one voxel has no spatial context.

    >>> strides_rule([2, [2, 2, 1]])
    [(4, 8), (4, 8), (2, 4)]
    """
    by_axis = [[stride] * 3 if isinstance(stride, int) else stride for stride in strides]
    if any(len(stride) != 3 for stride in by_axis):  # a network for two dimensions
        return []
    steps = [math.prod(stride[axis] for stride in by_axis) for axis in range(3)]
    return [(step, 2 * step) for step in steps] if by_axis else []


def check_axis(size: Sequence[int], axis: int, step: int, least: int) -> None:
    """Raise with the two nearest sizes unless an axis is a multiple of ``step`` from ``least``."""
    if size[axis] >= least and size[axis] % step == 0:
        return
    below = max(least, size[axis] // step * step)
    raise PancsegError(
        f"data.spatial_size={list(size)}: axis {axis} is {size[axis]}, but this network takes "
        f"multiples of {step} from {least} on; the nearest that work are {below} and {below + step}"
    )


def check_by_trials(
    model: dict[str, Any], network: nn.Module | None, size: list[int], batch_size: int
) -> None:
    """Find the divisor of each axis by trying sizes, and check the size by it.

    Without ``network``, it is built anew with each size as its ``img_size``.
    """

    def takes(tried: list[int]) -> bool:
        try:
            trial = network or build_on_meta({**model, "img_size": tried})
        except PancsegError:
            return False
        return not find_problem(trial, tried, batch_size)

    whole = [max(128, math.ceil(voxels / 128) * 128) for voxels in size]  # every step divides it
    for axis in range(3) if takes(whole) else ():

        def takes_along(voxels: int, axis: int = axis) -> bool:
            return takes([*whole[:axis], voxels, *whole[axis + 1 :]])

        step = next((step for step in STEPS if takes_along(128 + step)), None)
        if step:
            least = next(n for n in range(step, 129 + step, step) if takes_along(n))
            check_axis(size, axis, step, least)
