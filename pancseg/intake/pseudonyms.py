"""Names for patients that tell nothing: a keyed hash, one key per site."""

import csv
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock

from pancseg.errors import PancsegError
from pancseg.files import to_csv

Namer = Callable[[str], str]
TABLE_ENDING = ".names.csv"
LENGTH = 10  # hexadecimal digits: a collision among 10,000 patients has odds of 1 in 22,000


@dataclass(frozen=True)
class Names:
    """How a site names its patients.

    Attributes:
        of: From identity to name.
        hash: From any text, such as a path, to a word that gives nothing away.
        rule: A word that tells keys apart without giving them away.
        table: Where the identities of names are kept for those who may look; None where names
            are identities.
    """

    of: Namer
    hash: Namer
    rule: str
    table: Path | None = None


def make_names(rule: str, key_file: Path) -> Names:
    """Choose how patients are named.

    Args:
        rule: ``pseudonym`` (keyed hash) or ``none`` (the PatientID, made safe as a file name).
        key_file: The site's key; made on first use, readable by its owner alone.
    """
    if rule == "none":
        return Names(safe_name, partial(digest, b""), "none")
    key = read_key(key_file)
    return Names(
        lambda identity: "p" + digest(key, identity)[:LENGTH],
        partial(digest, key),
        "pseudonym-" + digest(key, "")[:8],
        key_file.with_name(key_file.name + TABLE_ENDING),
    )


def remember(names: Names, identities: Iterable[str]) -> None:
    """Add patients to the table of names, which only its owner can read; none is ever taken out."""
    if names.table is None:
        return
    with FileLock(f"{names.table}.lock"):
        known = {}
        if names.table.is_file():
            with names.table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
                known = {row["patient"]: row["identity"] for row in csv.DictReader(file)}
        table = dict(known)
        for identity in identities:
            other = table.setdefault(names.of(identity), identity)
            if other != identity:
                raise PancsegError(
                    f"{names.table}: two patients have one pseudonym, {names.of(identity)}, by "
                    "chance; prepare with another privacy.key_file"
                )
        if table != known:
            write_secret(names.table, to_csv(("patient", "identity"), sorted(table.items())))


def digest(key: bytes, text: str) -> str:
    """Keyed hash, HMAC-SHA256 (RFC 2104), hexadecimal."""
    return hmac.new(key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()


def read_key(path: Path) -> bytes:
    """Read the site's key, making it first if there is none.

    Raises:
        PancsegError: If the file holds no key.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with FileLock(f"{path}.lock"):
            if not path.exists():
                make_key(path)
    try:
        key = bytes.fromhex(path.read_text().strip())
    except ValueError:
        key = b""
    if len(key) < 16:
        raise PancsegError(
            f"{path}: holds no key (64 hexadecimal digits expected); restore it from a backup, or "
            "move it away to give all patients new names"
        )
    return key


def make_key(path: Path) -> None:
    """Write a new key."""
    write_secret(path, secrets.token_hex(32) + "\n")


def write_secret(path: Path, text: str) -> None:
    """Write a file for its owner alone, under a temporary name first: no one reads half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(text)
    temporary.replace(path)


def safe_name(identity: str) -> str:
    """A PatientID as part of a file name; changed ones end in a hash, so that none collide.

    >>> safe_name("P-07"), safe_name("../../x")
    ('P-07', 'x-9cdf6a50')
    """
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", identity).strip("-.")[:40]
    if safe and safe == identity and not re.search(r"-[0-9a-f]{8}$", safe):
        return safe
    whole = identity.encode("utf-8", "surrogateescape")
    return f"{safe}-{hashlib.sha256(whole).hexdigest()[:8]}".strip("-")
