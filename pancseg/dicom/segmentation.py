"""Read DICOM SEG as label maps on the grid of their image."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from pancseg.dicom.pixels import SlicePlane, decode_frames, open_dicom, planes_of
from pancseg.dicom.series import GRID_TOLERANCE, SliceStack
from pancseg.errors import Refused, parsing
from pancseg.structures import LabelMap, Structure, match_names


class FramePlacement(NamedTuple):
    """Pixels of an image that coincide with the pixels of a frame."""

    k: int  # nearest slice
    distance_mm: float  # from that slice, along the normal
    first: NDArray[np.intp]  # column and row of the image at the first pixel of the frame
    steps: NDArray[np.intp]  # change of column and row with each column, and each row, of the frame


def read_segmentation(file: Path, stack: SliceStack, structures: Sequence[Structure]) -> LabelMap:
    """Read a SEG; slices without a frame are background.

    Refused if it is damaged, holds no chosen segment, or its pixels are not those of the image.
    """
    dataset = open_dicom(file)
    with parsing(file):
        names, frames = segments_of(dataset, file)
        is_fractional = dataset.SegmentationType == "FRACTIONAL"
        threshold = float(dataset.MaximumFractionalValue) / 2 if is_fractional else 1
    is_labelmap = dataset.SegmentationType == "LABELMAP"  # stored values are segment numbers
    matched = match_names(names, structures, "segment")
    code_of = {number: code for code, numbers in enumerate(matched, 1) for number in numbers}
    frames = [frame for frame in frames if is_labelmap or frame.segment_number in code_of]
    placements = [place_frame(frame, stack) for frame in frames]  # refuse before decoding
    codes = np.zeros(stack.shape, np.uint8, order="F")
    decoded = stored_values(dataset, frames)
    for frame, placement, values in zip(frames, placements, decoded, strict=True):
        for number in code_of if is_labelmap else (frame.segment_number,):
            mask = values == number if is_labelmap else values >= threshold
            at = image_pixels(mask, placement, stack, file)
            codes[at] = np.maximum(codes[at], code_of[number])
    return LabelMap(stack.to_image(codes, linear=False, fill=0))


def segments_of(
    dataset: Dataset, file: Path
) -> tuple[dict[int, tuple[str, ...]], list[SlicePlane]]:
    """Names of each segment number, and the frames."""
    kind, listed = dataset.get("SegmentationType"), dataset.get("SegmentSequence")
    largest = {"BINARY": 1, "LABELMAP": 1, "FRACTIONAL": dataset.get("MaximumFractionalValue")}
    if not largest.get(kind) or not listed:
        expected = "a SegmentSequence and BINARY, LABELMAP or FRACTIONAL as SegmentationType"
        raise Refused("bad_segments", f"{file.name} is not a SEG, expected {expected}")
    names = {
        int(segment.SegmentNumber): (
            str(segment.get("SegmentLabel") or ""),
            *names_of_codes(segment.get("SegmentedPropertyTypeCodeSequence") or []),
        )
        for segment in listed
    }
    frames = planes_of(dataset, file)
    if kind == "LABELMAP":
        names.pop(int(dataset.get("PixelPaddingValue") or 0), None)  # the background has a number
    elif any(frame.segment_number < 0 for frame in frames):
        raise Refused("bad_segments", f"{file.name} has frames without ReferencedSegmentNumber")
    return names, frames


def names_of_codes(codes: Iterable[Dataset]) -> list[str]:
    """Values and meanings of coded concepts."""
    names = [code.get(keyword) for code in codes for keyword in ("CodeValue", "CodeMeaning")]
    return [str(name) for name in names if name]


def place_frame(plane: SlicePlane, stack: SliceStack) -> FramePlacement:
    """Find the pixels of an image that coincide with those of a frame, or refuse it.

    Angles and spacings may differ as long as no pixel moves further than the tolerance. The
    distance from the slice is not checked: empty frames may lie anywhere.
    """
    height_mm = (np.array(plane.position_mm) - stack.corner_mm) @ stack.normal
    k = int(np.abs(stack.offsets_mm - height_mm).argmin())
    (axes, spacing_mm), (frame_axes, frame_mm) = axes_of(stack.planes[k]), axes_of(plane)
    cosines = frame_axes @ axes.T  # [axis of the frame, axis of the slice]
    expected_mm = spacing_mm[np.abs(cosines).argmax(axis=1)]
    steps = np.array([plane.columns, plane.rows]) - 1
    angles = np.arccos(np.abs(cosines).max(axis=1).clip(0, 1))
    pixel = axes @ (np.array(plane.position_mm) - stack.planes[k].position_mm) / spacing_mm
    first = np.rint(pixel)
    if (angles * frame_mm * steps).max() > GRID_TOLERANCE * spacing_mm.min():
        turn = np.degrees(angles.max())
        raise off_grid(plane.file, f"is turned by {turn:.2f} degrees against the image")
    if (np.abs(frame_mm - expected_mm) * steps > GRID_TOLERANCE * expected_mm).any():
        size, expected = (" x ".join(f"{v:.4f}" for v in mm) for mm in (frame_mm, expected_mm))
        raise off_grid(plane.file, f"has pixels of {size} mm, the image of {expected} mm")
    if np.abs(pixel - first).max() > GRID_TOLERANCE:
        shift_mm = np.linalg.norm((pixel - first) * spacing_mm)
        raise off_grid(plane.file, f"lies {shift_mm:.3f} mm beside the image's pixel centres")
    distance_mm = abs(float(stack.offsets_mm[k] - height_mm))
    return FramePlacement(k, distance_mm, first.astype(int), np.rint(cosines).astype(int))


def off_grid(file: Path, what: str) -> Refused:
    """The error of a label that is not on the grid of its image."""
    return Refused("label_off_grid", f"{file.name} {what}; give the series it was drawn on")


def axes_of(plane: SlicePlane) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors from column to column and from row to row, LPS, and the distances, mm."""
    axes = np.reshape(plane.orientation, (2, 3))
    return axes / np.linalg.norm(axes, axis=1, keepdims=True), np.array(plane.spacing_mm[::-1])


def stored_values(dataset: Dataset, planes: list[SlicePlane]) -> Iterator[NDArray[Any]]:
    """Stored values of frames, ``(rows, columns)``.

    pydicom 3.0 reads one byte too few of a frame of packed bits that begins within a byte.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if dataset.BitsAllocated != 1 or syntax.is_compressed or not syntax.is_little_endian:
        yield from decode_frames(dataset, planes)
        return
    packed = np.frombuffer(dataset.PixelData, np.uint8)  # open_dicom has checked its length
    for plane in planes:
        first, offset = divmod(plane.frame * plane.rows * plane.columns, 8)
        end = offset + plane.rows * plane.columns
        bits = np.unpackbits(packed[first : first + (end + 7) // 8], bitorder="little")
        yield bits[offset:end].reshape(plane.rows, plane.columns)


def image_pixels(
    mask: NDArray[np.bool_], placement: FramePlacement, stack: SliceStack, file: Path
) -> tuple[Any, ...]:
    """Index into the image of the foreground of a frame ``(rows, columns)``, or refuse it."""
    rows, columns = np.nonzero(mask)
    pixels = placement.first + np.stack([columns, rows], axis=1) @ placement.steps
    if len(rows) and placement.distance_mm > GRID_TOLERANCE * stack.step_mm:
        what = f"has a frame {placement.distance_mm:.2f} mm from the nearest slice, slices are"
        raise off_grid(file, f"{what} {stack.step_mm:.2f} mm apart")
    if outside := ((pixels < 0) | (pixels >= stack.shape[:2])).any(axis=1).sum():
        raise off_grid(file, f"has {outside} pixels of foreground beside the image on a slice")
    return *pixels.T, placement.k
