"""Files beside a checkpoint: what was chosen or learnt for its weights, and for no others."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pancseg.files import read_json, write_json

OF = "checkpoint_sha256"


def keep(path: Path, checkpoint: Path, found: dict[str, Any], about: dict[str, Any]) -> None:
    """Write what was found for a checkpoint, and what it was found on."""
    write_json(path, {**found, OF: sha256_of(checkpoint), **about})


def kept(
    path: Path, checkpoint: Path, check: Callable[[dict[str, Any]], bool], what: str
) -> dict[str, Any] | None:
    """What stands beside a checkpoint; None if nothing does, or only for earlier weights.

    Args:
        path: Of the file.
        checkpoint: Beside which it stands.
        check: Whether it has what is needed of it.
        what: Is expected there, in words.

    Raises:
        PancsegError: If the file is no such thing.
    """
    if not path.is_file():
        return None
    content = read_json(
        path, what, lambda v: isinstance(v, dict) and isinstance(v.get(OF), str) and check(v)
    )
    return content if content[OF] == sha256_of(checkpoint) else None


def sha256_of(path: Path) -> str:
    """Hash of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
