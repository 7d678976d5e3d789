"""Files of tensors that a stranger may have written: looked at before torch reads them.

With ``weights_only`` torch runs no code of a file, but believes what it says of sizes: a file of a
kilobyte can ask for any memory.
"""

import pickletools
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pancseg.errors import PancsegError

BROKEN = (zipfile.BadZipFile, NotImplementedError, RuntimeError, struct.error, ValueError, EOFError)
# what tensors and plain values are made of; torch itself takes more, such as bytearray(10**12)
NAMED = {
    "collections OrderedDict",
    "collections Counter",
    "collections defaultdict",
    "builtins dict",
    "builtins set",
    "__builtin__ set",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
}
STORAGES = {f"torch {name}Storage" for name in (
    "Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool",
)}  # fmt: skip


def load_tensors(path: Path) -> Any:
    """Read tensors and plain values, on the CPU, within the memory that the file itself takes.

    Raises:
        PancsegError: If it is packed, damaged, or asks for more.
        ValueError: If it is no such file, or its pickle names anything else.
    """
    check_archive(path)
    with warnings.catch_warnings():
        # torch warns of what it then refuses
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        content = torch.load(path, map_location="cpu", weights_only=True)
    check_memory(content, path.stat().st_size)
    return content


def check_archive(path: Path) -> None:
    """Check a zip as torch writes it: nothing packed, nothing twice, no name but of tensors.

    Raises:
        PancsegError: If what is in it is larger than it, or damaged.
        ValueError: If it is none, or its pickle names anything else.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("is no zip archive")
    try:
        with zipfile.ZipFile(path) as archive:
            entries, size = archive.infolist(), path.stat().st_size
            held = sum(entry.file_size for entry in entries)
            if held > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise PancsegError(
                    f"holds {held / 1e9:.3g} GB, packed into {size / 1e9:.3g} GB, which torch.save "
                    "never does; get the file from somebody you trust"
                )
            check_sums(archive)
            for entry in entries:
                if entry.filename.endswith(".pkl"):
                    check_names(archive.read(entry))
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise ValueError(f"is a damaged zip archive ({error})") from error


def check_sums(archive: zipfile.ZipFile) -> None:
    """Check every checksum.

    torch writes them and reads past them: a flipped bit in a weight would go unseen.

    Raises:
        PancsegError: If a part is not what was written.
        OSError: If it cannot be read.
    """
    try:
        damaged = archive.testzip()
    except BROKEN as error:
        damaged = f"its table of contents ({type(error).__name__})"
    if damaged:
        raise PancsegError(
            f"is damaged: {damaged} is not what was written; take another checkpoint of the run or "
            "a copy"
        )


def check_names(pickled: bytes) -> None:
    """Check what a pickle names, without running it.

    Raises:
        ValueError: If that is anything but tensors and plain values.
    """
    for code, name, _ in pickletools.genops(pickled):
        if code.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise ValueError("its pickle names things as torch.save never does")
        if code.name == "GLOBAL" and name not in NAMED | STORAGES:
            raise ValueError(f"its pickle names {name}")


def check_memory(content: Any, size: int) -> None:
    """Check that tensors are no larger than the file they came out of.

    A tensor may claim a storage that is not there, or show one number as many.

    Args:
        content: What was read; it may hold itself.
        size: Of the file, bytes.

    Raises:
        PancsegError: If one is.
    """
    seen: set[int] = set()
    waiting, claimed = [content], {}
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            claimed[storage.data_ptr()] = storage.nbytes()
            if value.numel() * value.element_size() > storage.nbytes():
                raise PancsegError(
                    f"holds a tensor of shape {tuple(value.shape)} that is not there"
                )
        elif isinstance(value, (dict, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value)
            waiting.extend(value.values() if isinstance(value, dict) else ())
    if sum(claimed.values()) > size:
        raise PancsegError(f"has {size} bytes and claims tensors of {sum(claimed.values())}")
