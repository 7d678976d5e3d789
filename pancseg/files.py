"""Atomic writing of text, CSV, JSON and NIfTI: no reader meets a part of a file."""

import csv
import hashlib
import io
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pancseg.errors import PancsegError

if TYPE_CHECKING:  # heavy imports come late: every command imports this module
    import nibabel as nib

    from pancseg.geometry import Affine

Row = TypeVar("Row")  # dataclass with a field for each column
PARTIAL = ".partial-"
GZIP_LEVEL = 2  # ISA-L: as small as zlib's level 1, in a sixth of its time
GZIP_WBITS = 31  # window bits of a gzip stream without name and time
CHUNK_BYTES = 4 * 2**20


@contextmanager
def replaced(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the body succeeds.

    The temporary name keeps the suffix, because writers choose their format by it. With ``folder``
    it is that of a new folder, and ``path`` may exist if it is empty.

    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with replaced(target) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> target.read_text(), [file.name for file in target.parent.iterdir()]
    ('whole', ['a.txt'])
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{PARTIAL}{secrets.token_hex(6)}-{path.name}")
    try:
        if folder:
            temporary.mkdir()
        yield temporary
        if folder and path.is_dir():
            path.rmdir()  # it is empty; Windows does not rename to an existing folder
        rename(temporary, path)
    finally:
        if folder:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def check_writable(folder: Path, key: str) -> None:
    """Check that a folder can be written before work begins; ``PancsegError`` if it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PancsegError(f"{key}={folder}: cannot be written ({error.strerror})") from error


def rename(temporary: Path, path: Path) -> None:
    """Rename; retry for a second where another program has the target open, as on Windows."""
    for _ in range(10):
        with suppress(PermissionError):
            temporary.replace(path)
            return
        time.sleep(0.1)
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; file names that are not UTF-8 keep their bytes."""
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def to_csv(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV text; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(header)
    for row in map(tuple, rows):  # Python 3.11 does not quote a carriage return by itself
        (quoted if any("\r" in str(cell) for cell in row) else writer).writerow(row)
    return text.getvalue()


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write CSV atomically."""
    write_text(path, to_csv(header, rows))


def read_csv(path: Path, kind: type[Row]) -> list[Row]:
    """Rows of a table as a dataclass of texts; none without a file of exactly its columns."""
    columns = [column.name for column in fields(kind)]  # type: ignore[arg-type]
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        return [kind(**row) for row in reader] if reader.fieldnames == columns else []


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def json_hash(value: Any) -> str:
    """SHA-256 of plain values, hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_json(
    path: Path, description: str, check: Callable[[Any], bool] = lambda v: isinstance(v, dict)
) -> Any:
    """Read JSON, with or without a byte order mark; ``check`` says whether it is as described.

    Raises:
        PancsegError: If the file is not JSON, or not what ``description`` says.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8").removeprefix("\ufeff"))
    except RecursionError:
        raise PancsegError(f"{path}: cannot be read as {description} (too deeply nested)") from None
    except (ValueError, OSError) as error:
        raise PancsegError(f"{path}: cannot be read as {description} ({error})") from error
    if not check(value):
        raise PancsegError(f"{path}: is JSON, but not {description}")
    return value


def write_nifti(path: Path, image: "nib.Nifti1Image", qform: "Affine | None" = None) -> str:
    """Write ``.nii.gz`` atomically, with a new header: no text, affine as scanner coordinates.

    Return the SHA-256 of the unpacked file, hexadecimal. Compare content by it: ISA-L, which is
    much faster than nibabel's zlib, does not always pack equal content into equal bytes.
    """
    import nibabel as nib
    import numpy as np
    from isal import isal_zlib

    values = np.asanyarray(image.dataobj)
    header = nib.Nifti1Image(values, image.affine).header
    header.set_xyzt_units("mm")
    header.set_qform(image.affine if qform is None else qform, code=1)
    header.set_sform(image.affine, code=1)
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    header.set_slope_inter(1, 0)
    voxels = np.ascontiguousarray(values.T).data.cast("B")  # NIfTI: first axis fastest
    starts = range(0, len(voxels), CHUNK_BYTES)
    chunks = (voxels[start : start + CHUNK_BYTES] for start in starts)  # without a second copy
    digest, packer = hashlib.sha256(), isal_zlib.compressobj(GZIP_LEVEL, wbits=GZIP_WBITS)
    with replaced(path) as temporary, temporary.open("wb") as file:
        for chunk in (header.binaryblock + bytes(4), *chunks):
            digest.update(chunk)
            file.write(packer.compress(chunk))
        file.write(packer.flush())
    return digest.hexdigest()


def unpacked_sha256(path: Path) -> str:
    """SHA-256 of an unpacked ``.gz`` file, as of :func:`write_nifti`; ``EOFError`` if truncated."""
    from isal import igzip

    digest = hashlib.sha256()
    with igzip.open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def is_of_a_run(checkpoint: str | None) -> bool:
    """Whether a checkpoint is there and lies where a run puts its own."""
    path = Path(checkpoint or "")
    return path.parent.name == "checkpoints" and path.is_file()
