"""Build networks, losses and optimizers from plain values.

The values may come from a checkpoint of unknown origin: a ``_target_`` is looked up in four
libraries only, and may load no file. Hydra's ``instantiate`` would call any function.
"""

import importlib
import inspect
import re
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pancseg.errors import PancsegError

Built = TypeVar("Built")
ALLOWED = ("monai.networks", "monai.losses", "torch.optim", "pancseg.models")
DOWNLOADING = {"monai.losses.perceptual"}  # runs torch.hub.load whatever its arguments
# arguments by which classes of MONAI 1.6 download or open a file of weights
LOADS = re.compile(r"pretrained.*|.*url|weights|checkpoint|.*path.*|filename|.*_dir")


def build(node: dict[str, Any], base: type[Built], *args: Any) -> Built:
    """Build an instance of ``base`` from ``_target_``, keyword and positional arguments.

    Raises:
        PancsegError: If the target is not an allowed class, would load weights, or refuses its
            arguments.
    """
    target = str(node.get("_target_", ""))
    built_class = find_class(target)
    if built_class is None or not issubclass(built_class, base):
        reason = "not allowed"
        if target == "???":  # OmegaConf's mandatory value
            reason = "give one, such as model._target_=monai.networks.nets.AttentionUnet"
        expected = f"expected a {base.__name__} of {', '.join(ALLOWED)}"
        raise PancsegError(f"_target_={target}: {reason}; {expected}")
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    check_loads_nothing(built_class, arguments)
    try:
        return built_class(*args, **arguments)
    except Exception as error:  # constructors of other libraries raise any class
        raise PancsegError(f"{target}: {one_line(error)}") from error


def check_loads_nothing(built_class: type, arguments: dict[str, Any]) -> None:
    """Raise PancsegError if an argument, given or default, would download or open weights."""
    parameters = inspect.signature(built_class).parameters.items()
    defaults = {name: p.default for name, p in parameters if p.default is not p.empty}
    for name, value in {**defaults, **arguments}.items():
        # numbers are not files: DeepSupervisionLoss(weights=[1, 0.5])
        if LOADS.fullmatch(name) and (value is True or isinstance(value, str | dict)):
            raise PancsegError(
                f"{built_class.__name__}: {name}={value} would load weights from elsewhere, which "
                f"is not allowed; give {name}={'false' if value is True else 'null'}"
            )


def one_line(error: Exception) -> str:
    """The message of an exception without line breaks; its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def find_class(target: str) -> type | None:
    """The class of a dotted name if an allowed library defines it, else None."""
    module, _, name = target.rpartition(".")
    if not is_allowed(module):
        return None
    try:
        value = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None
    is_class = isinstance(value, type) and value.__module__ not in DOWNLOADING
    return value if is_class and is_allowed(value.__module__) else None


def is_allowed(module: str) -> bool:
    """Whether a module is an allowed library or inside one.

    >>> is_allowed("monai.networks.nets"), is_allowed("monai.networks_evil"), is_allowed("os")
    (True, False, False)
    """
    return any(module == root or module.startswith(root + ".") for root in ALLOWED)


def build_on_meta(model: dict[str, Any]) -> nn.Module:
    """Build a network with shapes and without values."""
    try:
        with torch.device("meta"):
            return build(model, nn.Module)
    except PancsegError:  # a constructor that reads values
        with torch.random.fork_rng(devices=[]):
            return build(model, nn.Module).to("meta")


def count_parameters(network: nn.Module) -> int:
    """Trainable parameters of a network."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


class ShortAxisConv3d(nn.Conv3d):
    """A ``Conv3d`` that leaves bfloat16 autocast where an axis is shorter than the kernel, on CPUs.

    oneDNN's bfloat16 gradient of such a convolution reads uninitialised memory (torch 2.13; a
    3 x 3 x 3 kernel over 2 x 4 x 4 voxels). The bottom levels of a network on a small patch have
    such axes, and are so small that float32 costs nothing.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Convolve ``(B, C, H, W, D)``."""
        is_short = any(n < k for n, k in zip(image.shape[2:], self.kernel_size, strict=True))
        if is_short and image.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(image.float())
        return super().forward(image)


class ChannelsLastInstanceNorm3d(nn.InstanceNorm3d):
    """An ``InstanceNorm3d`` that keeps the channels-last format, on CPUs.

    PyTorch's copies such features to the contiguous format, and the next convolution copies them
    back. Instance norm is batch norm of each sample, which PyTorch computes in either format.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Output of the shape of ``features``, ``(B, C, H, W, D)``."""
        is_copied = features.device.type == "cpu" and not features.is_contiguous()
        if self.track_running_stats or not is_copied:
            return super().forward(features)
        options: Any = None, None, self.weight, self.bias, True, 0.0, self.eps
        return torch.cat([F.batch_norm(sample, *options) for sample in features.split(1)])


def use_cpu_layers(network: nn.Module) -> None:
    """Turn plain convolutions and instance norms of a network into those above, in place."""
    classes = {nn.Conv3d: ShortAxisConv3d, nn.InstanceNorm3d: ChannelsLastInstanceNorm3d}
    for module in network.modules():
        module.__class__ = classes.get(type(module), module.__class__)


def use_channels_last(network: nn.Module, device_type: str) -> bool:
    """Whether a network trains faster as ``channels_last_3d`` on ``cpu`` or ``cuda``."""
    # CPU seconds of a step on two patches of 64 x 64 x 48 and one core (AMD EPYC, AVX2, float32):
    # model=unet 0.52 contiguous, 0.50 channels-last; model=resunet of width 8 1.58 and 1.23
    if device_type == "cpu":
        return True
    # on CUDA these norms copy a channels-last tensor to the contiguous format and back
    copying = (nn.InstanceNorm3d, nn.GroupNorm)
    return not any(isinstance(module, copying) for module in network.modules())
