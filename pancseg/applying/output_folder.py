"""The folder that masks are written to: one checkpoint's, one batch at a time, no half files."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pancseg.applying.scan_segmenter import ScanSegmenter
from pancseg.atomic import PARTIAL, check_writable, read_json, write_json
from pancseg.errors import PancsegError
from pancseg.inference.postprocess import sha256_of

ABOUT = "predictions.json"
LOCK = ".predicting.lock"


@contextmanager
def output_folder(folder: Path, segmenter: ScanSegmenter) -> Iterator[Path]:
    """Hold a folder for one batch, and note whose masks it holds.

    What a killed batch left half written is removed.

    Raises:
        PancsegError: If it holds masks of another checkpoint, cannot be written, or another batch
            writes to it.
    """
    about, path = how_made(segmenter), folder / ABOUT
    if path.is_file() and about != read_json(path, lambda v: isinstance(v, dict), "a note"):
        raise PancsegError(
            f"output={folder}: holds masks of another checkpoint or another way to make them; "
            "give another folder"
        )
    check_writable(folder, "output")
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise PancsegError(
            f"output={folder}: another pancseg.predict is writing to it; wait for its end, or give "
            "another folder"
        ) from error
    try:
        for half in folder.glob(f"{PARTIAL}*"):
            half.unlink()
        write_json(path, about)
        yield folder
    finally:
        lock.release()


def how_made(segmenter: ScanSegmenter) -> dict[str, Any]:
    """What decides a mask: another one may not lie in the same folder."""
    return {
        "checkpoints_sha256": [sha256_of(member.checkpoint) for member in segmenter.members],
        "postprocess": asdict(segmenter.how),
        "precision": [member.precision for member in segmenter.members],
        "mirrored": [list(member.mirrored) for member in segmenter.members],
        "confidence": asdict(segmenter.trust),
        "roi": "auto" if segmenter.coarse_to_fine else None,
    }
