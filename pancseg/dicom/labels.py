"""Read DICOM SEG and RTSTRUCT as label maps on the grid of their image."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from pancseg.dicom.pixels import (
    FARTHEST_MM,
    Floats,
    SlicePlane,
    decode_frames,
    open_dicom,
    planes_of,
    read_dataset,
)
from pancseg.dicom.series import GRID_TOLERANCE, SliceStack
from pancseg.errors import Refused, parsing
from pancseg.structures import LabelMap, Structure, match_names

OUTSIDE_PIXELS = 2.0  # that a contour may reach beyond the outermost pixel centres
OFF_SLICE_STEPS = 0.25  # planning systems round positions, and some shift by half a pixel
ON_CENTRE_PIXELS = 0.02  # coordinates are often rounded to 0.01 mm
DIGITS = 6  # of pixel coordinates
EDGES_AT_ONCE = 512  # bounds the memory that filling takes
Indices = NDArray[np.intp]


def read_segmentation(file: Path, stack: SliceStack, structures: Sequence[Structure]) -> LabelMap:
    """Read a SEG; slices without a frame are background.

    Refused if it is damaged, holds no chosen segment, or its pixels are not those of the image.
    """
    dataset = open_dicom(file)
    with parsing(file):
        names, frames, threshold = segments_of(dataset, file)
    is_labelmap = dataset.SegmentationType == "LABELMAP"  # stored values are segment numbers
    matched = match_names(names, structures, "segment")
    code_of = {number: code for code, numbers in enumerate(matched, 1) for number in numbers}
    frames = [frame for frame in frames if is_labelmap or frame.segment_number in code_of]
    placements = [place_frame(frame, stack) for frame in frames]  # refuse before decoding
    codes = np.zeros(stack.shape, np.uint8, order="F")
    decoded = stored_values(dataset, frames)
    for frame, placement, values in zip(frames, placements, decoded, strict=True):
        k, distance_mm, first, steps = placement
        for number in code_of if is_labelmap else (frame.segment_number,):
            rows, columns = np.nonzero(values == number if is_labelmap else values >= threshold)
            pixels = first + np.stack([columns, rows], axis=1) @ steps
            if len(pixels) and distance_mm > GRID_TOLERANCE * stack.step_mm:
                distances = f"{distance_mm:.2f} mm from the nearest slice, slices"
                raise off_grid(file, f"has a frame {distances} are {stack.step_mm:.2f} mm apart")
            if outside := ((pixels < 0) | (pixels >= stack.shape[:2])).any(axis=1).sum():
                raise off_grid(file, f"has {outside} pixels of foreground beside the image")
            index = *pixels.T, k
            codes[index] = np.maximum(codes[index], code_of[number])
    return LabelMap(stack.to_image(codes, linear=False, fill=0))


def segments_of(
    dataset: Dataset, file: Path
) -> tuple[dict[int, tuple[str, ...]], list[SlicePlane], float]:
    """Names of each segment number, the frames, and the least value of foreground."""
    format_, segments = dataset.get("SegmentationType"), dataset.get("SegmentSequence")
    largest = {"BINARY": 2, "LABELMAP": 2, "FRACTIONAL": dataset.get("MaximumFractionalValue")}
    if not largest.get(format_) or not segments:
        expected = "a SegmentSequence and BINARY, LABELMAP or FRACTIONAL as SegmentationType"
        raise Refused("bad_segments", f"{file.name} is not a SEG, expected {expected}")
    names = {}
    for segment in segments:
        codes = names_of_codes(segment.get("SegmentedPropertyTypeCodeSequence") or [])
        names[int(segment.SegmentNumber)] = (str(segment.get("SegmentLabel") or ""), *codes)
    frames = planes_of(dataset, file)
    if format_ == "LABELMAP":
        names.pop(int(dataset.get("PixelPaddingValue") or 0), None)  # the background has a number
    elif any(frame.segment_number < 0 for frame in frames):
        raise Refused("bad_segments", f"{file.name} has frames without ReferencedSegmentNumber")
    return names, frames, float(largest[format_]) / 2


def names_of_codes(codes: Iterable[Dataset]) -> list[str]:
    """Values and meanings of coded concepts."""
    names = [code.get(keyword) for code in codes for keyword in ("CodeValue", "CodeMeaning")]
    return [str(name) for name in names if name]


def place_frame(plane: SlicePlane, stack: SliceStack) -> tuple[int, float, Indices, Indices]:
    """Find the pixels of an image that coincide with those of a frame, or refuse it.

    No pixel may move further than the tolerance. Returned are the nearest slice and its distance,
    mm, unchecked, since empty frames may lie anywhere; column and row of the image at the first
    pixel, and their change with each column, and with each row, of the frame.
    """
    height_mm = float((np.array(plane.position_mm) - stack.corner_mm) @ stack.normal)
    k = int(np.abs(stack.offsets_mm - height_mm).argmin())
    (axes, spacing_mm), (frame_axes, frame_mm) = axes_of(stack.planes[k]), axes_of(plane)
    cosines = frame_axes @ axes.T  # [axis of the frame, axis of the slice]
    image_mm = spacing_mm[np.abs(cosines).argmax(axis=1)]
    last = np.array([plane.columns, plane.rows]) - 1
    angles = np.arccos(np.abs(cosines).max(axis=1).clip(0, 1))
    pixel = axes @ (np.array(plane.position_mm) - stack.planes[k].position_mm) / spacing_mm
    first = np.rint(pixel)
    moved = angles * frame_mm / spacing_mm.min(), np.abs(frame_mm / image_mm - 1)
    if np.max([*np.multiply(moved, last), abs(pixel - first)]) > GRID_TOLERANCE:
        degrees, shift_mm = np.degrees(angles.max()), np.linalg.norm((pixel - first) * spacing_mm)
        size, expected = (" x ".join(f"{v:.4f}" for v in mm) for mm in (frame_mm, image_mm))
        placement = (
            f"is turned by {degrees:.2f} degrees, lies {shift_mm:.3f} mm beside pixel centres"
        )
        raise off_grid(plane.file, f"{placement}, has pixels of {size} mm, expected {expected} mm")
    distance_mm = abs(float(stack.offsets_mm[k]) - height_mm)
    return k, distance_mm, first.astype(int), np.rint(cosines).astype(int)


def off_grid(file: Path, problem: str) -> Refused:
    """The error of a label that is not on the grid of its image."""
    return Refused("label_off_grid", f"{file.name} {problem}; give the series it was drawn on")


def axes_of(plane: SlicePlane) -> tuple[Floats, Floats]:
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


def read_rtstruct(file: Path, stack: SliceStack, structures: Sequence[Structure]) -> LabelMap:
    """Read an RTSTRUCT; an ROI without contours is an empty mask.

    Refused if it is damaged, holds no chosen ROI, or a contour lies on no slice.
    """
    with parsing(file):
        dataset = read_dataset(file)
        names = roi_names(dataset)
    if not names:
        raise Refused("no_rois", f"{file.name} has no StructureSetROISequence with ROIs")
    matched = match_names(names, structures, "roi")
    code_of = {number: code for code, numbers in enumerate(matched, 1) for number in numbers}
    with parsing(file):
        contours, is_assumed = closed_contours(dataset, code_of, file)
    codes = np.zeros(stack.shape, np.uint8, order="F")
    slices: set[int] = set()
    for number, code in code_of.items():
        outlines: dict[int, list[Floats]] = defaultdict(list)
        for points in contours[number]:
            k, pixels = to_slice(points, stack, file)
            outlines[k].append(pixels)
        for k, on_slice in outlines.items():
            np.maximum(codes[..., k], code * fill(on_slice, codes.shape[:2]), out=codes[..., k])
        slices |= outlines.keys()
    flags = ["contour_gaps"] * (bool(slices) and len(slices) <= max(slices) - min(slices))
    flags += ["contour_type_assumed"] * is_assumed
    return LabelMap(stack.to_image(codes, linear=False, fill=0), flags=tuple(flags))


def roi_names(dataset: Dataset) -> dict[int, tuple[str, ...]]:
    """For each ROI number its name, then codes and meanings of its observations."""
    codes: dict[int, list[str]] = defaultdict(list)
    for observation in dataset.get("RTROIObservationsSequence") or []:
        identification = observation.get("RTROIIdentificationCodeSequence") or []
        codes[int(observation.ReferencedROINumber)] += names_of_codes(identification)
    rois = dataset.get("StructureSetROISequence") or []
    names = {int(roi.ROINumber): str(roi.get("ROIName") or "") for roi in rois}
    return {number: (name, *codes[number]) for number, name in names.items()}


def closed_contours(
    dataset: Dataset, numbers: Iterable[int], file: Path
) -> tuple[dict[int, list[Floats]], bool]:
    """Closed contours of ROIs, ``(points, 3)``, LPS mm, and whether a missing type was assumed.

    Numbers are parsed from bytes: pydicom makes an object of each, which takes seconds, and warns
    of those with more digits than DICOM allows, which planning systems write.
    """
    contours: dict[int, list[Floats]] = {number: [] for number in numbers}
    is_assumed = False
    for roi in dataset.get("ROIContourSequence") or []:
        number = int(roi.ReferencedROINumber)
        for contour in (roi.get("ContourSequence") or []) if number in contours else ():
            type_, data = contour.get("ContourGeometricType"), contour.get_item("ContourData")
            is_closed = not type_ or type_ in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
            if not is_closed or data is None or not data.value:
                continue
            values = np.array(bytes(data.value).split(b"\\"), dtype=float)
            if len(values) % 3 or not (np.abs(values) < FARTHEST_MM).all():  # False for NaN
                expected = f"expected three a point, finite and below {FARTHEST_MM:g} mm"
                raise Refused("bad_contour", f"{file.name}: {len(values)} numbers, {expected}")
            contours[number].append(values.reshape(-1, 3))
            is_assumed |= not type_
    return contours, is_assumed


def to_slice(points: Floats, stack: SliceStack, file: Path) -> tuple[int, Floats]:
    """The slice that a contour lies on, if it does, and column and row of each point, pixels."""
    heights_mm = (points - stack.corner_mm) @ stack.normal
    k = int(np.abs(stack.offsets_mm - heights_mm.mean()).argmin())
    distance_mm = float(np.abs(heights_mm - stack.offsets_mm[k]).max())
    limit_mm = OFF_SLICE_STEPS * stack.step_mm
    if distance_mm > limit_mm:
        distances = f"{distance_mm:.2f} mm from the nearest slice, expected at most {limit_mm:.2f}"
        advice = f"mm; it spans {np.ptp(heights_mm):.2f} mm; give the series it was drawn on"
        raise Refused("contour_off_slice", f"{file.name} has a contour {distances} {advice}")
    plane = stack.planes[k]
    axes = np.reshape(plane.orientation, (2, 3))
    pixels = (points - plane.position_mm) @ axes.T / np.array(plane.spacing_mm[::-1])
    outside = float(np.max([-pixels, pixels - [plane.columns - 1, plane.rows - 1]]))
    if outside > OUTSIDE_PIXELS:
        raise off_grid(file, f"has a contour that reaches {outside:.1f} pixels beyond the image")
    return k, pixels


def fill(contours: Iterable[Floats], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Fill closed contours of one slice by the even-odd rule: 1 where a pixel centre is inside.

    Contours are column and row of each point, ``(points, 2)``; copies count once. Where all points
    of a contour are pixel centres, as traced by OpenCV, the pixels on it belong to the mask;
    otherwise a centre on it belongs to the side of larger columns and rows, so that neighbours
    share no pixel.

    >>> fill([np.array([[1, 0], [3, 0], [3, 1], [1, 1]])], (5, 3)).T.tolist()
    [[0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    """
    crossings = np.zeros((shape[0] + 1, shape[1]), np.uint8)  # wraps at 256, which is even
    on_contour = np.zeros(shape, np.uint8)
    seen: set[tuple[bytes, int]] = set()
    for contour in contours:
        centres = np.rint(contour)
        is_traced = bool((np.abs(contour - centres) <= ON_CENTRE_PIXELS).all())
        points = (centres if is_traced else np.round(contour, DIGITS)) + 0.0  # no negative zero
        edges = np.hstack([points, np.roll(points, -1, axis=0)])
        turn = int(np.sign(edges[:, 0] @ edges[:, 3] - edges[:, 1] @ edges[:, 2]))
        upwards = edges[:, 1] > edges[:, 3]
        edges[upwards] = edges[upwards][:, [2, 3, 0, 1]]
        edges = edges[np.lexsort(edges.T)]
        # a traced hole may run along the same pixels as its border, in the other direction
        key = (edges[edges[:, 1] < edges[:, 3]].tobytes(), turn * is_traced)
        for start in range(0, len(edges), EDGES_AT_ONCE):
            if is_traced:
                mark_pixels(on_contour, edges[start : start + EDGES_AT_ONCE])
            if key not in seen:
                count_crossings(crossings, edges[start : start + EDGES_AT_ONCE])
        seen.add(key)
    return np.bitwise_xor.accumulate(crossings[:-1] & 1, axis=0) | on_contour


def mark_pixels(on_contour: NDArray[np.uint8], edges: Floats) -> None:
    """Set pixels to 1 whose centres lie on edges ``(edges, 4)`` between pixel centres."""
    moves = edges[:, 2:] - edges[:, :2]
    counts = np.maximum(np.gcd(*np.abs(moves.T).astype(int)), 1)
    edge, step = np.nonzero(np.arange(counts.max() + 1) <= counts[:, None])
    pixels = (edges[edge, :2] + step[:, None] * (moves // counts[:, None])[edge]).astype(int)
    inside = ((pixels >= 0) & (pixels < on_contour.shape)).all(axis=1)
    on_contour[tuple(pixels[inside].T)] = 1


def count_crossings(crossings: NDArray[np.uint8], edges: Floats) -> None:
    """Count where edges ``(edges, 4)`` cross rows, at the first column that is not before."""
    rows = np.arange(crossings.shape[1])
    edge, row = np.nonzero((edges[:, [1]] <= rows) & (rows < edges[:, [3]]))
    column, top, last_column, bottom = edges[edge].T
    crossed = column + (row - top) * (last_column - column) / (bottom - top)
    first = np.ceil(np.round(crossed, DIGITS)).clip(0, len(crossings) - 1).astype(int)
    np.add.at(crossings, (first, row), 1)
