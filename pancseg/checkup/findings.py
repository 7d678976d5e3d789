"""What was found, as lines to read and as JSON to paste where everybody reads it."""

import getpass
import json
import platform
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OK, SLOW, BROKEN = "ok", "slow", "BROKEN"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        status: ``ok``; ``slow``, where it works and could be better; ``BROKEN``.
        words: What was found, and what to do where it is not ok.
        facts: The same as plain values.
    """

    name: str
    status: str
    words: str
    facts: dict[str, Any] = field(default_factory=dict)


def as_lines(findings: Iterable[Finding]) -> list[str]:
    """One line a finding.

    >>> as_lines([Finding("disk", "ok", "90 GB free")])
    ['ok      disk        90 GB free']
    """
    return [private(f"{one.status:7} {one.name:11} {one.words}") for one in findings]


def as_json(findings: Iterable[Finding]) -> str:
    """All findings, in the order of the lines; ASCII, so that no terminal spoils it."""
    found = {"pancseg_doctor": 1, "findings": [asdict(one) for one in findings]}
    return json.dumps(without_names(found), indent=1)


def without_names(value: Any) -> Any:
    """Plain values in which no string names a user or a machine."""
    if isinstance(value, dict):
        return {key: without_names(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_names(one) for one in value]
    return private(value) if isinstance(value, str) else value


def private(text: str) -> str:
    """A text in which the home folder is ``~``, and no part of a path is a user or a machine.

    >>> private(f"{Path.home() / 'scans'}: full")
    '~/scans: full'
    """
    text = text.replace(str(Path.home()), "~") if len(str(Path.home())) > 1 else text
    for name, instead in ((user(), "<user>"), (platform.node(), "<host>")):
        if name:
            text = re.sub(rf"(?<=[/\\@]){re.escape(name)}(?=[/\\:.\s]|$)", instead, text)
    return text


def user() -> str:
    """Who runs this; empty where the system does not know, as in some containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
