"""Pixel data: decoded, checked against what the header claims, turned into HU."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset, uid
from pydicom.pixels import pixel_array

from pancseg.errors import Refused
from pancseg.intake.dicom.planes import MOST_FRAMES, Plane, size_of

CT_RANGE = (np.iinfo(np.int16).min, np.iinfo(np.int16).max)
RAW_STARTS = (b"\x02\x00", b"\x08\x00")  # tags of the first two groups, little endian
DECODERS = {
    **dict.fromkeys((uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless), "pylibjpeg"),
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), "pyjpegls"),
    **dict.fromkeys((uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGExtended12Bit), "gdcm"),
    uid.JPEGBaseline8Bit: "pillow",
}
LARGEST_BYTES = 4 * 2**30  # of decoded pixels in one file: no scan is larger


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom from telling what it thinks of values: it quotes them, names among them."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def parsing(file: Path) -> Iterator[None]:
    """Turn whatever a damaged file raises, now or when a value is asked for, into a refusal.

    Raises:
        Refused: With what it was.
    """
    try:
        with quiet():
            yield
    except Refused:
        raise
    except Exception as error:
        raise Refused("unreadable", f"{file.name}: {brief(error)}") from error


def open_dicom(file: Path) -> Dataset:
    """Read a file with its pixel data, which is checked but not decoded.

    Raises:
        Refused: If it cannot be read, or holds less than its header claims.
    """
    with parsing(file):
        one = pydicom.dcmread(file, force=has_no_preamble(file))
        name_syntax(one)
        check_pixels(one, file)
    return one


def name_syntax(one: Dataset) -> None:
    """Say how a file without a transfer syntax was found to be written: decoders ask for it."""
    if one.file_meta.get("TransferSyntaxUID") is None:
        is_implicit, is_little = one.original_encoding
        explicit = uid.ExplicitVRLittleEndian if is_little else uid.ExplicitVRBigEndian
        one.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if is_implicit else explicit


def has_no_preamble(file: Path) -> bool:
    """Whether a file begins with its data set at once, as old archives hold them."""
    with file.open("rb") as opened:
        return opened.read(2) in RAW_STARTS


def check_pixels(one: Dataset, file: Path) -> None:
    """Check pixel data against the header, before anything is allocated for it.

    Raises:
        Refused: With what is claimed and what is there.
    """
    if "FloatPixelData" in one or "DoubleFloatPixelData" in one:
        raise Refused("float_pixels", f"{file.name} has floating point pixels, expected integers")
    if "PixelData" not in one or one.PixelData is None:
        raise Refused("no_pixels", f"{file.name} has no pixel data")
    if int(one.get("SamplesPerPixel") or 1) != 1:
        raise Refused("colour", f"{file.name} has {one.SamplesPerPixel} values a pixel, expected 1")
    rows, columns = size_of(one, file)
    frames = int(one.get("NumberOfFrames") or 1)
    bits = int(one.get("BitsAllocated") or 0)
    if bits not in (1, 8, 16, 32):
        raise Refused("bad_pixels", f"{file.name} has BitsAllocated {bits}")
    if not 1 <= frames <= MOST_FRAMES:
        raise Refused("bad_frames", f"{file.name} claims {frames} frames")
    expected = (rows * columns * frames * bits + 7) // 8
    if expected > LARGEST_BYTES:
        raise Refused("too_large", f"{file.name} claims {expected / 1e9:.1f} GB of pixels")
    if one.file_meta.TransferSyntaxUID.is_compressed:  # a deflated file is inflated by now
        return
    there = len(one.PixelData)
    told = f"{file.name} has {there} bytes of pixels, its header claims {expected}"
    if there < expected:
        raise Refused("truncated", told)
    if there - expected >= max(columns * bits // 8, 2):  # more than what pads to whole words
        raise Refused("bad_pixels", told)


def frames_of(one: Dataset, planes: list[Plane]) -> Iterator[NDArray[Any]]:
    """Decode the stored values of a file, frame by frame, ``(rows, columns)``.

    Raises:
        Refused: If they cannot be decoded.
    """
    for plane in planes:
        try:
            with quiet():
                values = pixel_array(one, index=plane.frame, decoding_plugin=decoder_of(one))
        except Exception as error:  # decoders raise nearly anything
            raise Refused("undecodable", f"{plane.file.name}: {brief(error)}") from error
        if values.shape != (plane.rows, plane.columns):
            raise Refused(
                "undecodable",
                f"{plane.file.name} decodes to {values.shape}, "
                f"its header says {(plane.rows, plane.columns)}",
            )
        yield values


def decoder_of(one: Dataset) -> str:
    """Name of the decoder of a file's pixels, empty where nothing is compressed.

    Left to itself pydicom tries GDCM first, which ends the whole process at some damaged files.
    """
    return DECODERS.get(one.file_meta.get("TransferSyntaxUID"), "")


def brief(error: Exception) -> str:
    r"""The first sentence of an error, on one line, without a path.

    >>> brief(ValueError("too short: 3 bytes\nmore"))
    'too short: 3 bytes'
    """
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = [line.strip() for line in told.strip().splitlines()]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines[0] += f" {lines[1]}"
    return (lines[0][:200] if lines else "") or type(error).__name__


class Volume:
    """Collects HU slice by slice: int16 while that loses nothing, else float32.

    Args:
        shape: Columns, rows, slices.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.values: NDArray[Any] = np.empty(shape, np.int16, order="F")

    def put(self, k: int, stored: NDArray[Any], slope: float, intercept: float) -> None:
        """Enter stored values ``(rows, columns)`` as HU of slice k.

        Whole numbers stay integers: a detour over floating point costs more than the reading.
        """
        if slope.is_integer() and intercept.is_integer():
            low, high = int(stored.min()), int(stored.max())
            ends = sorted((low * slope + intercept, high * slope + intercept))
            if ends[0] >= CT_RANGE[0] and ends[1] <= CT_RANGE[1]:
                plane = stored.astype(np.int32, copy=False) if slope != 1 else stored
                wide = np.multiply(plane, int(slope), dtype=np.int32) if slope != 1 else plane
                self.values[..., k] = np.add(wide, int(intercept), dtype=np.int32).T
                return
        hu = stored * np.float32(slope) + np.float32(intercept)
        if self.values.dtype == np.int16:
            whole = smallest_type(hu)
            if whole.dtype == np.int16:
                self.values[..., k] = whole.T
                return
            self.values = self.values.astype(np.float32, order="F")
        self.values[..., k] = hu.T


def smallest_type(values: NDArray[Any]) -> NDArray[np.int16] | NDArray[np.float32]:
    """int16 where that loses nothing, else float32.

    >>> smallest_type(np.float32([-1024, 40])).dtype, smallest_type(np.float32([0.5])).dtype
    (dtype('int16'), dtype('float32'))
    """
    if values.dtype == np.int16:
        return values
    low, high = CT_RANGE
    inside = values.min() >= low and values.max() <= high
    if inside and np.array_equal(whole := np.rint(values).astype(np.int16), values):
        return whole
    return values.astype(np.float32)
