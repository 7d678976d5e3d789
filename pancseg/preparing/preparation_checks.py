"""What must hold before a folder is filled and before it is extended."""

import shutil
from pathlib import Path
from typing import Any

from pancseg.dataset.manifest import has_manifest
from pancseg.errors import PancsegError
from pancseg.intake.found import Candidate

BYTES_OUT_PER_BYTE_IN = 2.5  # whole cases and groups, gzipped, against raw DICOM


def check_settings(root: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Check that a folder is extended with the settings it was made with.

    Raises:
        PancsegError: Naming each setting that differs.
    """
    differing = [
        f"{key} (there {old.get(key)}, now {new.get(key)})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if differing:
        raise PancsegError(
            f"{root} was prepared with other settings: {', '.join(differing)}; give another "
            "data.root, or the settings it was prepared with"
        )


def check_root(root: Path, sources: list[Path]) -> None:
    """Check that a folder is a prepared one, or free to become one, and no source lies in it.

    Raises:
        PancsegError: With what is there.
    """
    for source in sources:
        if source.resolve().is_relative_to(root.resolve()):
            raise PancsegError(f"{source}: lies in data.root={root}; give another data.root")
    folders = [name for name in ("cases", "groups", "pictures") if (root / name).is_dir()]
    filled = [name for name in folders if any((root / name).iterdir())]
    if filled and not has_manifest(root):  # asked last: another preparation may have just begun
        raise PancsegError(
            f"{root}: holds {filled[0]}/ but no manifest.json, so that pancseg did not fill it; "
            "give another data.root"
        )


def check_disk(root: Path, candidates: list[Candidate]) -> None:
    """Check that the disk holds what will be written.

    Raises:
        PancsegError: With what is needed and what is free.
    """
    files = [file for one in candidates for file in one.files]
    bytes_in = sum(file.stat().st_size for file in files if file.exists())
    needed_gb, free_gb = bytes_in * BYTES_OUT_PER_BYTE_IN / 1e9, shutil.disk_usage(root).free / 1e9
    if needed_gb > free_gb:
        raise PancsegError(
            f"{root}: needs about {needed_gb:.1f} GB, {free_gb:.1f} GB are free; free some or give "
            "another data.root"
        )
