"""Content of NIfTI files: what a header claims, checked before voxels are read and unpacked."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from pancseg.errors import Refused
from pancseg.geometry import Affine
from pancseg.intake.dicom.pixels import LARGEST_BYTES, brief
from pancseg.intake.dicom.planes import FARTHEST_MM, LARGEST_RESCALE

GZIP_MAGIC, GZIP = b"\x1f\x8b", 31  # window bits that make zlib check a member's checksum
MOST_PACKED = 1032  # bytes that deflate can make of one
PIECE = 2**16  # bytes read at once: even a gzip bomb makes no more than 64 MiB of them
LONGEST_TAIL = 2**24  # bytes after the voxels; more is another file than its header says
LARGEST_COSINE = 0.01  # between two axes: half a degree
MM_OF_UNIT = {1: 1000.0, 3: 0.001}  # NIfTI's metre and micrometre; 2 is mm, 0 says nothing
QUIET = logging.Logger("nifti", logging.CRITICAL + 1)  # what matters is refused


@dataclass(frozen=True)
class Claim:
    """What a header says of its voxels.

    Attributes:
        offset: Of the first voxel in the file, bytes.
        shape: Three axes.
        dtype: As stored, in the file's byte order.
        slope: Of stored to real value.
        intercept: Real value of stored 0.
        affine: RAS, mm.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    slope: float
    intercept: float
    affine: Affine

    @property
    def size(self) -> int:
        """Bytes of all voxels."""
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length  # Python's whole numbers: a hostile shape must not wrap around
        return size

    @property
    def is_plain(self) -> bool:
        """Whether stored values are the real ones."""
        return (self.slope, self.intercept) == (1, 0)


def load(path: Path) -> tuple[NDArray[Any], Claim]:
    """Read a file that holds one volume with a place in space.

    Nothing is allocated before the header was checked against the size of the file, and a zipped
    file is read to its end, for the checksum stands there. Floats come with slope and intercept
    applied, and a claim without them.

    Raises:
        Refused: If any of that fails.
    """
    try:
        with path.open("rb") as file:
            is_zipped = file.read(2) == GZIP_MAGIC
            file.seek(0)
            pieces = unzipped(file) if is_zipped else iter(lambda: file.read(PIECE), b"")
            head = b""
            while len(head) < nib.Nifti2Header.sizeof_hdr and (piece := next(pieces, b"")):
                head += piece
            claim = claim_of(head, path.name)
            check_size(claim, path, is_zipped)
            values = fill(claim, chain([head], pieces), path.name)
    except (Refused, MemoryError):
        raise
    except EOFError:
        raise Refused(
            "truncated", f"{path.name} breaks off: its zipped content has no end"
        ) from None
    except Exception as error:  # nibabel and zlib raise nearly anything
        raise Refused("unreadable", f"{path.name}: {brief(error)}") from error
    return real(values, claim, path.name)


def unzipped(file: BinaryIO) -> Iterator[bytes]:
    """Content of a gzip file piece by piece; checksums are verified.

    Members follow each other, as parallel packers write them; what is none is padding.

    Raises:
        EOFError: If a member has no end.
    """
    packed = file.read(PIECE)
    while packed.startswith(GZIP_MAGIC):
        member = isal_zlib.decompressobj(wbits=GZIP)
        while not member.eof:
            if not packed:
                raise EOFError("zipped content has no end")
            yield member.decompress(packed)
            packed = member.unused_data if member.eof else file.read(PIECE)
        if len(packed) < len(GZIP_MAGIC):
            packed += file.read(PIECE)


def claim_of(head: bytes, name: str) -> Claim:
    """What a header claims.

    Raises:
        Refused: If that is not one volume of numbers with a place in space.
    """
    kind = nib.Nifti2Header if nib.Nifti2Header.may_contain_header(head) else nib.Nifti1Header
    header = kind(head[: kind.sizeof_hdr], check=False)
    header.check_fix(logger=QUIET)
    if header["magic"].item() != kind.single_magic:
        raise Refused("unreadable", f"{name} is no NIfTI file that holds header and voxels")
    dtype, shape = header.get_data_dtype(), tuple(map(int, header.get_data_shape()))
    if dtype.kind not in "iuf" or not 1 <= dtype.itemsize <= 8:
        kind_of = header.get_value_label("datatype")
        raise Refused("not_a_volume", f"{name} holds {kind_of} voxels, expected whole or real ones")
    volume = shape
    while len(volume) > 3 and volume[-1] == 1:
        volume = volume[:-1]
    if len(volume) != 3 or min(volume) < 1:
        raise Refused("not_a_volume", f"{name} has shape {shape}, expected three axes")
    slope, intercept = header.get_slope_inter()
    if max(abs(slope or 0), abs(intercept or 0)) > LARGEST_RESCALE:
        raise Refused("bad_rescale", f"{name} has slope {slope:g} and intercept {intercept:g}")
    affine = affine_of(header, name)
    offset = header.get_data_offset()
    if offset < kind.single_vox_offset:
        raise Refused("unreadable", f"{name} has its voxels at byte {offset}, within its header")
    return Claim(offset, volume, dtype, slope or 1.0, intercept or 0.0, affine)


def affine_of(header: nib.Nifti1Header, name: str) -> Affine:
    """Affine in mm: the sform, else the qform.

    Raises:
        Refused: If there is none that can be used.
    """
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        raise Refused("no_affine", f"{name} has neither sform nor qform: its place is unknown")
    affine = np.array(header.get_best_affine(), dtype=float)
    affine[:3] *= MM_OF_UNIT.get(int(header["xyzt_units"]) % 8, 1.0)
    check_affine(affine, name)
    return affine


def check_affine(affine: Affine, name: str) -> None:
    """Check that an affine can be inverted and that its axes are at right angles.

    Raises:
        Refused: With what is wrong.
    """
    if not np.abs(affine).max() <= FARTHEST_MM or abs(np.linalg.det(affine)) < 1e-9:
        raise Refused("bad_affine", f"{name} has an affine that places no volume")
    axes = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    between = np.abs(axes.T @ axes - np.eye(3)).max()
    if between > LARGEST_COSINE:
        lean = 90 - np.degrees(np.arccos(min(between, 1)))
        raise Refused("bad_affine", f"{name} has axes {lean:.1f} degrees off right angles")


def check_size(claim: Claim, path: Path, is_zipped: bool) -> None:
    """Check that a file can hold what its header claims.

    Raises:
        Refused: With what is claimed and what is there.
    """
    claimed = claim.offset + claim.size
    if claimed > LARGEST_BYTES:
        raise Refused("too_large", f"{path.name} claims {claimed / 1e9:.1f} GB")
    there = path.stat().st_size
    if claimed > there * (MOST_PACKED if is_zipped else 1):
        packed = " zipped" if is_zipped else ""
        raise Refused(
            "truncated", f"{path.name} has {there}{packed} bytes, its header claims {claimed}"
        )


def fill(claim: Claim, pieces: Iterable[bytes], name: str) -> NDArray[Any]:
    """Stored values, in this machine's byte order, from the pieces of a file.

    Raises:
        Refused: If there are too few or far too many.
    """
    raw = np.empty(claim.size, np.uint8)
    position = -claim.offset
    try:
        for piece in pieces:
            at = max(position, 0)
            part = np.frombuffer(piece, np.uint8)[max(-position, 0) :][: max(claim.size - at, 0)]
            raw[at : at + len(part)] = part
            position += len(piece)
            if position > claim.size + LONGEST_TAIL:
                raise Refused(
                    "unreadable", f"{name} goes on after the {claim.size} bytes that it claims"
                )
    except EOFError:
        raise cut_off(position, claim, name) from None
    if position < claim.size:
        raise cut_off(position, claim, name)
    values = raw.view(claim.dtype)
    if not claim.dtype.isnative:
        values = values.byteswap(inplace=True).view(claim.dtype.newbyteorder())
    return values.reshape(claim.shape, order="F")


def cut_off(position: int, claim: Claim, name: str) -> Refused:
    """The refusal of a file that ends too early."""
    there = min(max(position, 0), claim.size)
    end = "" if there < claim.size else " and no checksum"
    return Refused(
        "truncated",
        f"{name} breaks off: {there} bytes of voxels{end}, its header claims {claim.size}",
    )


def real(values: NDArray[Any], claim: Claim, name: str) -> tuple[NDArray[Any], Claim]:
    """Apply slope and intercept to floats, in place; integers are left as stored.

    Raises:
        Refused: If some are not finite.
    """
    if values.dtype.kind != "f":
        return values, claim
    with np.errstate(all="ignore"):  # what overflows is infinite, and refused
        if not claim.is_plain:
            values *= claim.slope
            values += claim.intercept
        # NaN is the extreme of any; float32 is what HU are kept in
        is_finite = np.isfinite(np.array([values.min(), values.max()], np.float32)).all()
    if not is_finite:
        raise Refused("not_finite", f"{name} holds NaN or infinite values")
    return values, replace(claim, slope=1.0, intercept=0.0)
