"""DICOM SEG: the chosen segments, put onto the slices of the image they were drawn on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from pancseg.errors import Refused
from pancseg.intake.dicom.pixels import frames_of, open_dicom, parsing
from pancseg.intake.dicom.planes import Plane, levels_of, look_up, planes_of
from pancseg.intake.dicom.stack import Stack
from pancseg.intake.found import Mask, Reading, Scan
from pancseg.intake.labels.foreground import chosen_structures

TOLERANCE = 0.1  # of a pixel within a slice, of a step between slices


@dataclass(frozen=True)
class Segments:
    """What a SEG says about itself.

    Attributes:
        structures: For each segment number its label, then code and meaning of its type.
        frames: Where each frame lies, and whose it is; None where a frame holds all segments.
        threshold: From which stored value on a pixel belongs to the frame's segment; None where
            stored values are segment numbers.
    """

    structures: dict[int, tuple[str, ...]]
    frames: Sequence[tuple[Plane, int | None]]
    threshold: float | None


@dataclass(frozen=True)
class Place:
    """Where a frame lies on an image's stack.

    Attributes:
        k: The slice nearest to it.
        off_mm: How far from that slice, along the normal.
        start: Column and row of the image where the frame begins, once it is turned.
        swapped: Whether its rows run along the image's columns.
        flipped: Whether it runs against the image's columns, and against its rows.
    """

    k: int
    off_mm: float
    start: tuple[int, int]
    swapped: bool
    flipped: tuple[bool, bool]


def read_segmentation(file: Path, reading: Reading, scan: Scan) -> Mask:
    """Read a DICOM SEG onto its image; slices without a frame are background.

    Raises:
        Refused: If the file is damaged, the choice is unclear or pixels do not coincide.
    """
    if scan.stack is None:
        raise Refused(
            "label_needs_dicom",
            f"{file.name} is a DICOM SEG and is put onto the slices of a DICOM series, but this "
            "image is none; give the series, or convert the label to NIfTI",
        )
    with parsing(file):
        one = open_dicom(file)
        segments = segments_of(one, file)
    chosen, _ = chosen_structures(segments.structures, reading.choice, "segment")
    planes = [plane for plane, number in segments.frames if number is None or number in chosen]
    places = [place_on(scan.stack, plane) for plane in planes]  # refuse before anything is decoded
    mask = np.zeros(scan.stack.shape, np.uint8, order="F")
    for place, stored in zip(places, stored_in(one, planes), strict=True):
        if segments.threshold is None:
            put(mask, np.isin(stored, chosen), place, scan.stack, file)
        else:
            put(mask, stored >= segments.threshold, place, scan.stack, file)
    return Mask(scan.stack.to_image(mask, linear=False, fill=0))


def segments_of(one: Dataset, file: Path) -> Segments:
    """The segments of a file and where its frames lie.

    Raises:
        Refused: If it is no SEG or does not say whose its frames are.
    """
    kind, listed = one.get("SegmentationType"), one.get("SegmentSequence")
    largest = one.get("MaximumFractionalValue") if kind == "FRACTIONAL" else 2
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP") or not listed or not largest:
        raise Refused(
            "bad_segments",
            f"{file.name} has SegmentationType {kind} and {len(listed or [])} segments, expected "
            "segments that are BINARY, LABELMAP, or FRACTIONAL with a MaximumFractionalValue",
        )
    structures = {int(segment.SegmentNumber): words_of(segment) for segment in listed}
    planes = planes_of(one, file)
    if kind == "LABELMAP":
        structures.pop(int(one.get("PixelPaddingValue") or 0), None)  # the background has a number
        return Segments(structures, [(plane, None) for plane in planes], None)
    levels = levels_of(one, file)
    numbers = [look_up(level, "ReferencedSegmentNumber") for level in levels]
    if None in numbers:
        raise Refused("bad_segments", f"{file.name} has frames that name no segment")
    frames = zip(planes, map(int, numbers), strict=True)
    return Segments(structures, list(frames), float(largest) / 2)


def words_of(segment: Dataset) -> tuple[str, ...]:
    """What a segment goes by: its label, then codes and meanings of its type.

    >>> segment = Dataset(); segment.SegmentLabel = "Organ"
    >>> segment.SegmentedPropertyTypeCodeSequence = [Dataset()]
    >>> segment.SegmentedPropertyTypeCodeSequence[0].CodeValue = "15776009"
    >>> words_of(segment)
    ('Organ', '15776009')
    """
    codes = segment.get("SegmentedPropertyTypeCodeSequence") or []
    words = [code.get(keyword) for code in codes for keyword in ("CodeValue", "CodeMeaning")]
    return str(segment.get("SegmentLabel") or ""), *(str(word) for word in words if word)


def place_on(stack: Stack, plane: Plane) -> Place:
    """Find the pixels of an image that a frame's pixels coincide with.

    How far the frame is from a slice is left to the caller: empty frames may lie anywhere.

    Raises:
        Refused: If rows, columns, spacing or pixel centres do not coincide.
    """
    corner = np.array(plane.position_mm)
    height = (corner - stack.planes[0].position_mm) @ stack.normal
    k = int(np.abs(stack.offsets_mm - height).argmin())
    there = stack.planes[k]
    turn, backwards = turn_of(plane, there)
    axes, spacing_mm = axes_of(there)
    pixel = axes @ (corner - there.position_mm) / spacing_mm
    first = np.rint(pixel)
    if np.abs(pixel - first).max() > TOLERANCE:
        shift_mm = np.linalg.norm((pixel - first) * spacing_mm)
        raise off_grid(plane, f"lies {shift_mm:.3f} mm beside the image's pixel centres")
    size = np.array([plane.columns, plane.rows])[turn]
    start = (first - np.where(backwards, size - 1, 0)).astype(int)
    off_mm = abs(float(stack.offsets_mm[k] - height))
    return Place(k, off_mm, (start[0], start[1]), bool(turn[0]), (backwards[0], backwards[1]))


def turn_of(plane: Plane, there: Plane) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Which of a frame's axes runs along each of a slice's, and whether it runs backwards.

    Columns count before rows. Angles and spacings may differ as long as no pixel of the frame
    moves further than the tolerance.

    Raises:
        Refused: If rows and columns are at an angle to the slice's, or pixels have another size.
    """
    own, own_mm = axes_of(plane)
    axes, spacing_mm = axes_of(there)
    cosines = own @ axes.T  # [frame's axis, slice's axis]
    along = np.abs(cosines).argmax(axis=1)
    steps = np.array([plane.columns, plane.rows]) - 1
    lean = np.arccos(np.abs(cosines).max(axis=1).clip(0, 1))
    if (lean * own_mm * steps).max() > TOLERANCE * spacing_mm.min():
        degrees = np.degrees(lean.max())
        raise off_grid(plane, f"is turned by {degrees:.2f} degrees against the image")
    expected_mm = spacing_mm[along]
    if (np.abs(own_mm - expected_mm) * steps > TOLERANCE * expected_mm).any():
        found, wanted = (" x ".join(f"{mm:.4f}" for mm in pair) for pair in (own_mm, expected_mm))
        raise off_grid(plane, f"has pixels of {found} mm, those of the image are {wanted} mm")
    turn = np.argsort(along)
    return turn, cosines[turn, [0, 1]] < 0


def stored_in(one: Dataset, planes: list[Plane]) -> Iterator[NDArray[Any]]:
    """Stored values of frames, ``(rows, columns)``.

    Packed bits are unpacked here: of a frame that begins within a byte pydicom 3.0 reads one byte
    too few.

    Raises:
        Refused: If they cannot be decoded.
    """
    syntax = one.file_meta.get("TransferSyntaxUID")
    native = syntax and syntax.is_little_endian and not syntax.is_compressed
    if one.BitsAllocated != 1 or not native:
        yield from frames_of(one, planes)
        return
    packed = np.frombuffer(one.PixelData, np.uint8)  # open_dicom has checked that it holds all
    for plane in planes:
        first, within = divmod(plane.frame * plane.rows * plane.columns, 8)
        end = within + plane.rows * plane.columns
        bits = np.unpackbits(packed[first : first + (end + 7) // 8], bitorder="little")
        yield bits[within:end].reshape(plane.rows, plane.columns)


def axes_of(plane: Plane) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors from column to column and from row to row, LPS, and the distances, mm."""
    axes = np.reshape(plane.orientation, (2, 3))
    return axes / np.linalg.norm(axes, axis=1, keepdims=True), np.array(plane.spacing_mm[::-1])


def put(
    mask: NDArray[np.uint8], frame: NDArray[Any], place: Place, stack: Stack, file: Path
) -> None:
    """Enter the foreground of a frame, unless there is none.

    Args:
        mask: ``(columns, rows, slices)`` of the image, changed in place.
        frame: ``(rows, columns)``, whether a pixel is foreground.
        place: Where it lies.
        stack: The image's.
        file: For messages.

    Raises:
        Refused: If foreground lies on no slice or beside the image.
    """
    foreground = int(np.count_nonzero(frame))
    if not foreground:
        return
    if place.off_mm > TOLERANCE * stack.step_mm:
        raise Refused(
            "label_off_grid",
            f"{file.name} has a frame {place.off_mm:.2f} mm from the nearest slice of the image, "
            f"slices are {stack.step_mm:.2f} mm apart; give the series it was drawn on",
        )
    turned = frame if place.swapped else frame.T
    turned = turned[tuple(slice(None, None, -1 if back else 1) for back in place.flipped)]
    low = np.maximum(place.start, 0)
    high = np.maximum(np.minimum(np.add(place.start, turned.shape), mask.shape[:2]), low)
    (left, top), (right, bottom) = low - place.start, high - place.start
    inside = turned[left:right, top:bottom]
    outside = foreground - int(np.count_nonzero(inside))
    if outside:
        raise Refused(
            "label_off_grid",
            f"{file.name} has {outside} pixels of foreground beside the image on one slice, "
            "expected none; give the series it was drawn on",
        )
    mask[low[0] : high[0], low[1] : high[1], place.k] |= inside


def off_grid(plane: Plane, found: str) -> Refused:
    """A frame whose pixels are not the image's."""
    return Refused(
        "label_off_grid",
        f"{plane.file.name} {found}; give the series it was drawn on, or resample the label",
    )
