"""Building networks, losses and optimisers from plain values, and only those.

The values may come out of a checkpoint that somebody else wrote, so a ``_target_`` is looked up
in four libraries and nowhere else, and may load no file. Hydra's ``instantiate`` would call any
function it names.
"""

import importlib
import inspect
import re
from typing import Any, TypeVar

from torch import nn

from pancseg.errors import PancsegError

Built = TypeVar("Built")
ALLOWED = ("monai.networks", "monai.losses", "torch.optim", "pancseg.learning")
FETCHING = {"monai.losses.perceptual"}  # asks torch.hub for a program, whatever it is given
# arguments by which classes of MONAI 1.6 download or open a file of weights
LOADS = re.compile(r"pretrained.*|.*url|weights|checkpoint|.*path.*|filename|.*_dir")


def build(node: dict[str, Any], kind: type[Built], *first: Any) -> Built:
    """Build what a node describes.

    Args:
        node: ``_target_`` and keyword arguments, all plain values.
        kind: What it must be.
        first: Positional arguments that come before.

    Raises:
        PancsegError: If the target is not given, is not a class of an allowed library, would load
            weights, or cannot be built of these arguments.
    """
    target = str(node.get("_target_", ""))
    if target == "???":  # how OmegaConf writes a value that must be given
        raise PancsegError(
            f"_target_ is not given; expected a {kind.__name__} of {', '.join(ALLOWED)}, such as "
            "model._target_=monai.networks.nets.AttentionUnet"
        )
    found = find_class(target)
    if found is None or not issubclass(found, kind):
        raise PancsegError(
            f"_target_={target}: not allowed; expected a {kind.__name__} of {', '.join(ALLOWED)}"
        )
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    check_loads_nothing(found, arguments)
    try:
        return found(*first, **arguments)
    except PancsegError:
        raise
    except Exception as error:  # a constructor of another library raises what it likes
        raise PancsegError(f"{target}: {one_line(error)}") from error


def check_loads_nothing(found: type, arguments: dict[str, Any]) -> None:
    """Check that no argument, given or by default, makes a class download or open weights.

    Raises:
        PancsegError: Naming the argument and the value that is taken.
    """
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(found).parameters.items()
        if parameter.default is not parameter.empty
    }
    for name, value in {**defaults, **arguments}.items():
        # numbers are no file: DeepSupervisionLoss(weights=[1, 0.5])
        if LOADS.fullmatch(name) and (value is True or isinstance(value, (str, dict))):
            raise PancsegError(
                f"{found.__name__}: {name}={value} would load weights from elsewhere, which is not "
                f"allowed; give {name}={'false' if value is True else 'null'}"
            )


def one_line(error: Exception) -> str:
    """What an error says, on one line.

    >>> one_line(ValueError("no such" + chr(10) + "size")), one_line(KeyError())
    ('no such size', 'KeyError')
    """
    return " ".join(str(error).split()) or type(error).__name__


def find_class(target: str) -> type | None:
    """The class of that dotted name, if it is defined in an allowed library, else None.

    Not where making one would fetch a program.
    """
    module, _, name = target.rpartition(".")
    if not is_allowed(module):
        return None
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None
    if not isinstance(found, type) or found.__module__ in FETCHING:
        return None
    return found if is_allowed(found.__module__) else None


def is_allowed(module: str) -> bool:
    """Whether a module is one of the allowed libraries or inside one.

    >>> is_allowed("monai.networks.nets"), is_allowed("monai.networks_evil"), is_allowed("os")
    (True, False, False)
    """
    return any(module == root or module.startswith(root + ".") for root in ALLOWED)


def count_parameters(network: nn.Module) -> int:
    """Trainable parameters of a network."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
