"""Pseudonyms of patients: a keyed hash, with one key per site."""

import csv
import hashlib
import hmac
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from pancseg.errors import PancsegError
from pancseg.files import PARTIAL, to_csv

DIGITS = 10  # hexadecimal: two of 10,000 patients have one name with a probability of 1 in 22,000
LOCK_TIMEOUT_S = 30


class Pseudonyms(NamedTuple):
    """Naming of patients at a site."""

    name: Callable[[str], str]  # pseudonym of an identity
    hash: Callable[[str], str]  # keyed hash of any text
    key_id: str  # differs between keys, without revealing them
    table: Path | None = None  # file with the identity of each name; None where IDs are kept


def make_pseudonyms(rule: str, key_file: Path) -> Pseudonyms:
    """Naming by ``pseudonym``, or by ``none``: the PatientID as a safe file name."""
    if rule == "none":
        return Pseudonyms(safe_name, partial(keyed_hash, b""), "none")
    key = read_key(key_file)
    return Pseudonyms(
        lambda text: "p" + keyed_hash(key, text)[:DIGITS],
        partial(keyed_hash, key),
        f"pseudonym-{keyed_hash(key, '')[:8]}",
        key_file.with_name(key_file.name + ".names.csv"),
    )


def store_names(pseudonyms: Pseudonyms, identities: Iterable[str]) -> None:
    """Add patients to the table of names; raise PancsegError if two would have one name."""
    path, new = pseudonyms.table, {(pseudonyms.name(text), text) for text in identities}
    if path is None or new <= read_table(path).items():
        return  # without the lock, which a read-only folder does not allow
    try:
        with FileLock(f"{path}.lock", timeout=LOCK_TIMEOUT_S):
            table = read_table(path)
            for name, identity in new:
                if table.setdefault(name, identity) != identity:
                    raise PancsegError(
                        f"{path}: two patients have one pseudonym, {name}, by chance; "
                        "prepare with another privacy.key_file"
                    )
            write_secret(path, to_csv(["patient", "identity"], sorted(table.items())))
    except Timeout:
        raise PancsegError(f"{path}.lock: held by another process; end it") from None


def read_table(path: Path) -> dict[str, str]:
    """Identity by name; empty without a table."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            return {row["patient"]: row["identity"] for row in csv.DictReader(file)}
    except FileNotFoundError:
        return {}
    except (KeyError, csv.Error):
        raise PancsegError(f"{path}: no table of names; restore a copy or move it away") from None


def keyed_hash(key: bytes, text: str) -> str:
    """Keyed hash, HMAC-SHA256 (RFC 2104), hexadecimal."""
    return hmac.new(key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()


def read_key(path: Path) -> bytes:
    """Read the site's key, or create it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_secret(path, secrets.token_hex(32) + "\n", is_new=True)
    if os.name == "posix" and path.stat().st_mode & 0o077:
        print(f"warning: {path}: other users may read the key; use chmod 600", file=sys.stderr)
    text = path.read_text(errors="replace").strip()
    if not re.fullmatch("([0-9a-fA-F]{2}){16,}", text):
        raise PancsegError(
            f"{path}: expected a key of 64 hexadecimal digits; restore it from a backup, or move "
            "it away to give all patients new names"
        )
    return bytes.fromhex(text)


def write_secret(path: Path, text: str, *, is_new: bool = False) -> None:
    """Write a file that only its owner may read, atomically; a new one replaces no other."""
    temporary = path.with_name(PARTIAL + secrets.token_hex(16))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
        if is_new:
            with suppress(OSError):  # path exists, or the file system has no links, such as exFAT
                os.link(temporary, path)
        if not (is_new and path.exists()):
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
