"""The folder that masks are written to: one checkpoint's, shared by workers at one batch."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pancseg.applying.scan_segmenter import ScanSegmenter
from pancseg.applying.shared_batch import SharedBatch
from pancseg.errors import PancsegError
from pancseg.files import PARTIAL, check_writable, read_json, write_json
from pancseg.inference.beside import sha256_of
from pancseg.sharing import FOLDER, Crew

ABOUT = "predictions.json"
LOCK = ".predicting.lock"


@contextmanager
def output_folder(folder: Path, segmenter: ScanSegmenter, batch: SharedBatch) -> Iterator[Crew]:
    """Be one of the workers at a folder, and note whose masks it holds.

    What killed workers left half written is removed when no other one is alive.

    Args:
        folder: Where.
        segmenter: Makes the masks.
        batch: What is to be done; all workers have the same.

    Raises:
        PancsegError: If it holds masks of another checkpoint, cannot be written, or others write
            another batch to it.
    """
    about, word = how_made(segmenter), batch.word
    check_about(folder, about)
    check_writable(folder, "output")
    crew = Crew(folder, LOCK)
    with crew.lock:
        check_about(folder, about)  # another one may have begun since
        others = crew.others()
        if any(other != word for other in others):
            raise PancsegError(
                f"output={folder}: another pancseg.predict is writing to it, with other scans or "
                "options; wait for its end, or give another folder"
            )
        if not others:
            remove_halves(folder)
        write_json(folder / ABOUT, about)
        batch.begin(alone=not others)
        crew.join(word)
    try:
        yield crew
    except BaseException:
        with suppress(OSError):  # there may be no room
            leave(crew, batch)
        raise
    leave(crew, batch)


def leave(crew: Crew, batch: SharedBatch) -> None:
    """Leave; the last one removes what nobody needs any more."""
    with crew.lock:
        if crew.leave():
            remove_halves(crew.folder)
            batch.end()
        crew.tidy()


def check_about(folder: Path, about: dict[str, Any]) -> None:
    """Check that a folder holds no masks that were made in another way.

    Raises:
        PancsegError: If it does.
    """
    path = folder / ABOUT
    if path.is_file() and about != read_json(path, "a note"):
        raise PancsegError(
            f"output={folder}: holds masks of another checkpoint or another way to make them; "
            "give another folder"
        )


def remove_halves(folder: Path) -> None:
    """Remove what dead workers left half written; only where no other one is alive."""
    for place in (folder, folder / FOLDER):
        for half in place.glob(f"{PARTIAL}*"):
            half.unlink(missing_ok=True)


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
