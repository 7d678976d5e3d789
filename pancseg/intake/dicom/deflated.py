"""Deflated DICOM, which pydicom inflates whole before it looks at anything."""

import zlib
from pathlib import Path

from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

LARGEST_INFLATED = 2**30  # bytes; a scan of 2000 slices in one file
MOST_DEFLATED = 1032  # times smaller than what it holds, by deflate's format
PIECE = 2**20  # bytes
BEFORE_META = 144  # bytes: preamble, DICM, and the element that holds the length of the meta group


def inflates_too_far(path: Path) -> bool:
    """Whether a file is deflated and holds more than any scan; a file of a MB can hold a GB.

    Counted piece by piece, and only where the file is large enough to hold that much.

    Args:
        path: A DICOM file with preamble.
    """
    if path.stat().st_size * MOST_DEFLATED <= LARGEST_INFLATED:
        return False
    try:
        meta = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return False
        return inflated_size(path, BEFORE_META + meta.FileMetaInformationGroupLength) is None
    except Exception:  # a damaged header raises nearly anything, and so does reading it
        return False


def inflated_size(path: Path, start: int) -> int | None:
    """Bytes that a raw deflate stream in a file holds, or None above the largest."""
    unpacker, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(start)
        packed = file.read(PIECE)
        while packed and not unpacker.eof:
            size += len(unpacker.decompress(packed, PIECE))
            if size > LARGEST_INFLATED:
                return None
            packed = unpacker.unconsumed_tail or file.read(PIECE)
    return size
