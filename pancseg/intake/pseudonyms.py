"""Pseudonyms of patients: a keyed hash, with one key per site."""

import csv
import hashlib
import hmac
import io
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from pancseg.errors import PancsegError
from pancseg.files import PARTIAL

TABLE_SUFFIX = ".names.csv"
COLUMNS = ["patient", "identity"]
DIGITS = 10  # hexadecimal: the probability of a collision among 10,000 patients is 1 in 22,000
LOCK_TIMEOUT_S = 30


@dataclass(frozen=True)
class Names:
    """Naming of patients at a site.

    Attributes:
        of: Name of an identity.
        hash: Keyed hash of any text.
        rule: Differs between keys, without revealing them.
        table: File with the identity behind each name; None where names are identities.
    """

    of: Callable[[str], str]
    hash: Callable[[str], str]
    rule: str
    table: Path | None = None


def make_names(rule: str, key_file: Path) -> Names:
    """Naming by a rule.

    Args:
        rule: ``pseudonym``, or ``none`` for the PatientID as a safe file name.
        key_file: The site's key, created if missing; only its owner may read it.
    """
    if rule == "none":
        return Names(safe_name, partial(digest, b""), "none")
    key = read_key(key_file)
    return Names(
        lambda identity: "p" + digest(key, identity)[:DIGITS],
        partial(digest, key),
        "pseudonym-" + digest(key, "")[:8],
        key_file.with_name(key_file.name + TABLE_SUFFIX),
    )


def remember(names: Names, identities: Iterable[str]) -> None:
    """Add patients to the table of names; only its owner may read it, and it only grows.

    Raises:
        PancsegError: If two patients have one name, or the table cannot be read or locked.
    """
    if names.table is None:
        return
    new = {(names.of(identity), identity) for identity in identities}
    if new <= read_table(names.table).items():
        return  # without the lock, which a read-only folder does not allow
    with locked(names.table):
        table = read_table(names.table)
        for name, identity in new:
            if table.setdefault(name, identity) != identity:
                raise PancsegError(
                    f"{names.table}: two patients have one pseudonym, {name}, by chance; prepare "
                    "with another privacy.key_file"
                )
        text = io.StringIO()
        writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([COLUMNS, *sorted(table.items())])
        write_secret(names.table, text.getvalue())


def read_table(path: Path) -> dict[str, str]:
    """Identity by name, empty without a table."""
    if not path.is_file():
        return {}
    limit = csv.field_size_limit(2**31 - 1)  # an identity may be a long path
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            return {row["patient"]: row["identity"] for row in csv.DictReader(file)}
    except (KeyError, csv.Error):
        raise PancsegError(
            f"{path}: expected CSV with the columns {' and '.join(COLUMNS)}; restore a copy, or "
            "move it away: names follow from the key alone"
        ) from None
    finally:
        csv.field_size_limit(limit)


def digest(key: bytes, text: str) -> str:
    """Keyed hash, HMAC-SHA256 (RFC 2104), hexadecimal."""
    return hmac.new(key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()


def read_key(path: Path) -> bytes:
    """Read the site's key, or create it.

    Raises:
        PancsegError: If the file holds no key, or cannot be locked.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            if not path.exists():
                write_secret(path, secrets.token_hex(32) + "\n", is_new=True)
    if os.name == "posix" and path.stat().st_mode & 0o077:
        print(f"warning: {path}: other users may read the key; use chmod 600", file=sys.stderr)
    try:
        key = bytes.fromhex(path.read_text().strip())
    except ValueError:
        key = b""
    if len(key) < 16:
        raise PancsegError(
            f"{path}: expected a key of 64 hexadecimal digits; restore it from a backup, or move "
            "it away to give all patients new names"
        )
    return key


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file.

    Raises:
        PancsegError: If another process holds it for too long.
    """
    try:
        with FileLock(f"{path}.lock", timeout=LOCK_TIMEOUT_S):
            yield
    except Timeout:
        raise PancsegError(
            f"{path}.lock: another process has held it for {LOCK_TIMEOUT_S} s; end that process"
        ) from None


def write_secret(path: Path, text: str, *, is_new: bool = False) -> None:
    """Write a file that only its owner may read, atomically; a new one replaces no other."""
    temporary = path.with_name(f"{PARTIAL}{secrets.token_hex(16)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
        if is_new:
            try:
                os.link(temporary, path)
                return
            except FileExistsError:
                return  # of a machine that does not share the lock
            except OSError:
                pass  # a file system without hard links
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
