"""Everything that is looked at, in the order in which it is told."""

from importlib import import_module
from pathlib import Path

from pancseg.checkup.findings import BROKEN, Finding

CHECKS = {
    "versions": "software",
    "system": "hardware",
    "cores": "hardware",
    "memory": "hardware",
    "gpu": "gpu",
    "speed": "hardware",
    "disk": "storage",
    "sharing": "storage",
    "decoders": "decoders",
    "extras": "software",
}
"""What is looked at, and the room that does."""


def examine(root: Path, runs: Path) -> list[Finding]:
    """Look at everything; what breaks while it is looked at is broken, and the rest is told.

    Args:
        root: Folder that will hold prepared data.
        runs: Folder that will hold runs.
    """
    given = {"disk": (root, runs), "sharing": (root,)}
    return [looked(name, room, given.get(name, ())) for name, room in CHECKS.items()]


def looked(name: str, room: str, given: tuple[Path, ...]) -> Finding:
    """A finding, whatever happens; rooms are imported here, as theirs may be what is broken."""
    try:
        finding: Finding = getattr(import_module(f"pancseg.checkup.{room}"), name)(*given)
        return finding
    except Exception as error:  # a broken installation raises what it likes
        told = " ".join(str(error).split())[:200]
        return Finding(name, BROKEN, f"{type(error).__name__}: {told}")
