"""A DICOM file: opened and checked, its slices read from the header, its pixels decoded to HU."""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset, uid
from pydicom.encaps import generate_frames
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import pixel_array

from pancseg.errors import Refused, parsing, quiet

Floats = NDArray[np.float64]
INT16 = np.iinfo(np.int16)
# sequences of an enhanced multi-frame file that hold an attribute (DICOM PS3.3 C.7.6.16)
RESCALE = ("RescaleSlope", "RescaleIntercept", "RescaleType")
MACRO_OF = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    **dict.fromkeys(RESCALE, "PixelValueTransformationSequence"),
    "ReferencedSegmentNumber": "SegmentIdentificationSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
}
# pydicom itself would try GDCM first, which ends the process on some damaged files
DECODERS = {
    **dict.fromkeys(uid.JPEG2000TransferSyntaxes, "pylibjpeg"),
    **dict.fromkeys(uid.JPEGLSTransferSyntaxes, "pyjpegls"),
    **dict.fromkeys(uid.JPEGTransferSyntaxes, "gdcm"),
    uid.JPEGBaseline8Bit: "pillow",
    uid.RLELossless: "pydicom",
}
CONVERT = "convert it with gdcmconv --raw or dcmdjpeg"
LARGEST_SIDE = 8192  # pixels; a header that claims more is damaged
MOST_FRAMES = 100_000  # a SEG of many structures with empty frames has tens of thousands
FARTHEST_MM = 1e6  # from the scanner's isocentre
LARGEST_BYTES = 4 * 2**30  # of decoded pixels in a file
LARGEST_EXCESS = 64 * 2**20  # bytes that a deflated file may hold beside its pixels
DEFLATE_RATIO = 1032  # of the deflate format, at most
FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of JPEG and JPEG-LS


# numbers of a slice: their count, a default, what is expected of them, and whether they fulfil it
NUMBERS: dict[str, tuple[int, float | None, str, Callable[[Floats], Any]]] = {
    "ImagePositionPatient": (3, None, "three coordinates", lambda _: True),
    "ImageOrientationPatient": (
        *(6, None, "two unit vectors at right angles"),  # as far as headers hold digits
        lambda o: abs(o.reshape(2, 3) @ o.reshape(2, 3).T - np.eye(2)).max() < 0.02,
    ),
    "PixelSpacing": (2, None, "two distances above 0", lambda spacing_mm: min(spacing_mm) > 0),
    "RescaleSlope": (1, 1.0, "a number other than 0", lambda slope: slope[0] != 0),
    "RescaleIntercept": (1, 0.0, "a number", lambda _: True),
}


@dataclass(frozen=True)
class SlicePlane:
    """A stored slice."""

    file: Path
    frame: int  # number in the file, from 0
    rows: int
    columns: int
    position_mm: tuple[float, ...]  # centre of the first pixel, LPS
    orientation: tuple[float, ...]  # unit vector along a row, then along a column, LPS
    spacing_mm: tuple[float, ...]  # from row to row, then from column to column
    slope: float  # HU per stored value
    intercept: float  # HU of stored value 0
    frame_of_reference_uid: str
    acquisitions: tuple[str, str] = ("", "")  # number and time, texts, empty if unknown
    is_hu: bool = True  # False where RescaleType of a CT names another unit
    segment_number: int = -1  # of a frame of a SEG that holds one segment


def read_dataset(file: Path, **options: Any) -> Dataset:
    """Read a file with or without preamble by ``pydicom.dcmread``."""
    dataset = pydicom.dcmread(file, force=has_no_preamble(file), **options)
    if dataset.file_meta.get("TransferSyntaxUID") is None:  # pydicom guessed one
        is_implicit, is_little = dataset.original_encoding
        explicit = uid.ExplicitVRLittleEndian if is_little else uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = (
            uid.ImplicitVRLittleEndian if is_implicit else explicit
        )
    return dataset


def has_no_preamble(file: Path) -> bool:
    """Whether a file begins with its data set, as in old archives."""
    with file.open("rb") as opened:
        return opened.read(2) in (b"\x02\x00", b"\x08\x00")  # group 2 or 8, little endian


def check_deflated(file: Path) -> None:
    """Refuse a deflated file, which pydicom inflates as a whole, that is far above its pixels."""
    if file.stat().st_size * DEFLATE_RATIO <= LARGEST_EXCESS or has_no_preamble(file):
        return
    meta = read_file_meta_info(file)
    if meta.get("TransferSyntaxUID") != uid.DeflatedExplicitVRLittleEndian:
        return
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    begin = 144 + meta.FileMetaInformationGroupLength  # after preamble, DICM and that length
    start = inflater.decompress(file.read_bytes()[begin:], LARGEST_EXCESS)
    if packed := inflater.unconsumed_tail:
        header = pydicom.dcmread(BytesIO(start), stop_before_pixels=True, force=True)
        claimed = claimed_bytes(header, file) if header.get("Rows") else 0
        if len(inflater.decompress(packed, claimed + 1)) > claimed:
            raise Refused("too_large", f"{file.name} inflates to 64 MB more than its pixels")


def claimed_bytes(dataset: Dataset, file: Path) -> int:
    """Bytes of decoded pixels that a header claims; refused if there can be no such pixels."""
    rows, columns = size_of(dataset, file)
    frames, bits = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("BitsAllocated") or 0)
    if bits not in (1, 8, 16, 32):
        raise Refused("bad_pixels", f"{file.name} has BitsAllocated {bits}, expected 8, 16 or 32")
    if not 1 <= frames <= MOST_FRAMES:
        raise Refused("bad_frames", f"{file.name}: NumberOfFrames is not 1 to {MOST_FRAMES}")
    claimed = (rows * columns * frames * bits + 7) // 8
    if claimed > LARGEST_BYTES:
        raise Refused("too_large", f"{file.name} claims {claimed / 1e9:.1f} GB of pixels")
    return claimed


def open_dicom(file: Path) -> Dataset:
    """Read a file; refused if its pixels are less than claimed, or nothing decodes them."""
    with parsing(file):
        dataset = read_dataset(file)
        if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
            raise Refused("float_pixels", f"{file.name} has floating point pixels, not integers")
        if dataset.get("PixelData") is None:
            raise Refused("no_pixels", f"{file.name} has no pixel data")
        if int(dataset.get("SamplesPerPixel") or 1) != 1:
            raise Refused("colour", f"{file.name} has several values a pixel, expected one")
        claimed, size = claimed_bytes(dataset, file), len(dataset.PixelData)
        syntax = dataset.file_meta.TransferSyntaxUID
        if syntax not in (*uid.UncompressedTransferSyntaxes, *DECODERS):
            name = syntax if syntax.is_valid else "that is no UID"
            sentence = f"{file.name} has a transfer syntax {name}, which nothing decodes"
            raise Refused("undecodable", f"{sentence}; {CONVERT}")
        if syntax not in DECODERS and size < claimed:  # bytes may follow the pixels (PS3.5 8.1.1)
            sentence = f"{file.name} has {size} bytes of pixels, its header claims {claimed}"
            raise Refused("truncated", sentence)
        return dataset


def planes_of(dataset: Dataset, file: Path) -> list[SlicePlane]:
    """The slices of a file, in stored order; refused if an attribute is missing or out of range.

    Call it within ``parsing``: values of damaged headers raise any error.
    """
    size, modality = size_of(dataset, file), dataset.get("Modality")
    frame_uid = str(dataset.get("FrameOfReferenceUID") or "")
    number, date, time = (
        # not converted: it is only compared, and text that is no number must not refuse a series
        str(getattr(dataset.get_item(f"Acquisition{name}"), "value", None) or "")
        for name in ("Number", "Date", "Time")
    )
    time = date + time if time and modality != "MR" else ""  # MR acquires every other slice first
    planes = []
    for n, levels in enumerate(functional_groups(dataset, file)):
        numbers = [read_numbers(levels, keyword, file) for keyword in NUMBERS]
        position_mm, axes, spacing_mm, (slope,), (intercept,) = numbers
        acquisitions = str(find_value(levels, "FrameAcquisitionNumber", number)), time
        unit = str(find_value(levels, "RescaleType", "")).strip().upper()
        is_hu = modality != "CT" or unit in ("", "HU", "US")  # US: unspecified
        segment = int(find_value(levels, "ReferencedSegmentNumber", -1))
        grid = *size, position_mm, axes, spacing_mm
        values = *grid, slope, intercept, frame_uid, acquisitions, is_hu, segment
        planes.append(SlicePlane(file, n, *values))
    return planes


def functional_groups(dataset: Dataset, file: Path) -> list[list[Dataset]]:
    """For each frame the data sets that describe it: per-frame and shared groups, and the file."""
    count = dataset.get("NumberOfFrames")
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if not frames and (count is None or int(count) == 1):
        return [[dataset]]
    if len(frames) != int(count or 0) or len(frames) > MOST_FRAMES:
        raise Refused(
            "bad_frames", f"{file.name} describes {len(frames)} frames, not NumberOfFrames"
        )
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    return [[frame, *shared, dataset] for frame in frames]


def find_value(levels: list[Dataset], keyword: str, default: Any = None) -> Any:
    """A value from the innermost level where it is not empty."""
    macros = [level.get(MACRO_OF[keyword]) for level in levels[:-1]]
    for item in (*(macro[0] for macro in macros if macro), levels[-1]):
        if item.get(keyword) is not None:
            return item.get(keyword)
    return default


def read_numbers(levels: list[Dataset], keyword: str, file: Path) -> tuple[float, ...]:
    """Numbers of a slice; refused if they are not as expected."""
    count, default, expected, is_usable = NUMBERS[keyword]
    try:
        values = np.atleast_1d(np.array(find_value(levels, keyword, default), dtype=float))
    except (TypeError, ValueError):
        values = np.array([])
    if len(values) == count and (np.abs(values) < FARTHEST_MM).all() and is_usable(values):
        return tuple(values.tolist())
    code = "no_rescale" if keyword.startswith("Rescale") else "no_geometry"
    raise Refused(code, f"{file.name} has no usable {keyword}, expected {expected}")


def size_of(dataset: Dataset, file: Path) -> tuple[int, int]:
    """Rows and columns; refused if they are missing or too large."""
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if not rows or not columns:
        raise Refused("no_geometry", f"{file.name} has no Rows or no Columns")
    if max(rows, columns) > LARGEST_SIDE:
        raise Refused("too_large", f"{file.name} has a side above {LARGEST_SIDE} pixels")
    return int(rows), int(columns)


def decode_frames(dataset: Dataset, planes: list[SlicePlane]) -> Iterator[NDArray[Any]]:
    """Decode the stored values of slices of a file, each ``(rows, columns)``."""
    decoder = DECODERS.get(dataset.file_meta.get("TransferSyntaxUID"), "")
    count = int(dataset.get("NumberOfFrames") or 1)
    for n, plane in enumerate(planes):
        size = plane.rows, plane.columns, 1
        try:
            with quiet():
                if n == 0 and decoder not in ("", "pydicom"):
                    frames = generate_frames(dataset.PixelData, number_of_frames=count)
                    if {codestream_size(frame) for frame in frames} != {size}:
                        raise ValueError("size of a codestream, which decoders allocate unchecked")
                values = pixel_array(dataset, index=plane.frame, decoding_plugin=decoder)
            if values.shape != size[:2]:
                raise ValueError("other shape than the header's")
        except Exception as error:  # decoders raise nearly any
            sentence = f"{plane.file.name} has damaged pixels, or not Rows x Columns of them"
            raise Refused("undecodable", f"{sentence}; export it again, or {CONVERT}") from error
        yield values


def codestream_size(stream: bytes) -> tuple[int, ...]:
    """Rows, columns and components in the header of a JPEG 2000, JPEG or JPEG-LS codestream."""
    if stream[:2] != b"\xff\xd8":  # JPEG 2000: markers SOC and SIZ
        start = stream.index(b"\xff\x4f\xff\x51")
        right, bottom, left, top = struct.unpack_from(">4I", stream, start + 8)
        return bottom - top, right - left, *struct.unpack_from(">H", stream, start + 40)
    at = 2
    while stream[at + 1] not in FRAME_HEADERS:
        at += 2 + int.from_bytes(stream[at + 2 : at + 4])
    return struct.unpack_from(">HHB", stream, at + 5)


class HUVolume:
    """HU ``(columns, rows, slices)`` collected by slice: int16 while lossless, else float32."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.values: NDArray[Any] = np.empty(shape, np.int16, order="F")

    def put(self, k: int, stored: NDArray[Any], slope: float, intercept: float) -> None:
        """Set slice k from stored values ``(rows, columns)``."""
        if stored.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer():
            ends = [int(end) * slope + intercept for end in (stored.min(), stored.max())]
            if min(ends) >= INT16.min and max(ends) <= INT16.max:  # faster than floating point
                scaled = stored if slope == 1 else np.multiply(stored, int(slope), dtype=np.int32)
                self.values[..., k] = np.add(scaled, int(intercept), dtype=np.int32).T
                return
        hu = stored * np.float32(slope) + np.float32(intercept)
        is_int16 = hu.min() >= INT16.min and hu.max() <= INT16.max and (np.rint(hu) == hu).all()
        if not is_int16 and self.values.dtype == np.int16:
            self.values = self.values.astype(np.float32, order="F")
        self.values[..., k] = hu.T
