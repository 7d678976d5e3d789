"""Disks: room, locks that hold, and the memory that processes share."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pancseg.checkup.findings import BROKEN, OK, SLOW, Finding

GB_A_SCAN = 0.4  # prepared, cut and cached: 300 slices of 512 x 512
SMALL_GB = 20.0  # room for some fifty scans
SHARED = Path("/dev/shm")
LITTLE_SHARED_GB = 1.0  # Docker gives 0.064 unless told otherwise


def disk(root: Path, runs: Path) -> Finding:
    """Free room where data and runs will lie, and whether one may write there."""
    facts: dict[str, Any] = {}
    words, status = [], OK
    for key, folder in (("data.root", root), ("runs", runs)):
        there = nearest(folder)
        free_gb = shutil.disk_usage(there).free / 1e9
        facts[key] = {"free_bytes": round(free_gb * 1e9), "writable": is_writable(there)}
        words.append(f"{free_gb:.0f} GB free for {key}={folder}")
        if not facts[key]["writable"]:
            status = BROKEN
            words[-1] += ", but it cannot be written: give another folder"
        elif free_gb < SMALL_GB and status is not BROKEN:
            status = SLOW
            words[-1] += f", room for about {int(free_gb / GB_A_SCAN)} scans: give another disk"
    facts["cache_bytes"] = cache_bytes(root)
    words.append(f"caches of preprocessed volumes: {facts['cache_bytes'] / 1e9:.1f} GB")
    return Finding("disk", status, "; ".join(words), facts)


def cache_bytes(root: Path) -> int:
    """Size of the caches of preprocessed volumes in a prepared folder, or in those below it."""
    volumes = (file for folder in (".", "*") for file in root.glob(f"{folder}/cache/*/*.npy"))
    return sum(file.stat().st_size for file in volumes)


def sharing(root: Path) -> Finding:
    """File locks where data will lie, and memory that processes share."""
    facts: dict[str, Any] = {"locks": locks_hold(nearest(root)), "shared_bytes": None}
    if not facts["locks"]:
        advice = "two commands on one folder would spoil it: run one at a time, or use a local disk"
        return Finding("sharing", BROKEN, f"file locks do not hold here; {advice}", facts)
    if not SHARED.is_dir():
        return Finding("sharing", OK, "file locks hold", facts)
    facts["shared_bytes"] = shutil.disk_usage(SHARED).total
    shared_gb = facts["shared_bytes"] / 1e9
    words = f"file locks hold; shared memory {shared_gb:.1f} GB"
    if shared_gb < LITTLE_SHARED_GB:
        advice = "docker run --shm-size=8g, or hardware.num_workers=0"
        return Finding("sharing", SLOW, f"{words}, too little for workers: {advice}", facts)
    return Finding("sharing", OK, words, facts)


def nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that is there: nothing is made just to look."""
    folder = folder.expanduser().absolute()
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def is_writable(folder: Path) -> bool:
    """Whether a file can be made in a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def locks_hold(folder: Path) -> bool:
    """Whether a lock keeps a second one out, which some network disks only pretend."""
    try:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            path = Path(place) / "lock"
            with FileLock(path):
                try:
                    FileLock(path, timeout=0).acquire()
                except Timeout:
                    return True
                return False
    except (OSError, NotImplementedError):
        return not is_writable(folder)  # then the disk's line tells it
