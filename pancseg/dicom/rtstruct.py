"""Read DICOM RTSTRUCT as label maps: contours are filled on the slices of their image."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from pancseg.dicom.pixels import FARTHEST_MM, Floats, read_dataset
from pancseg.dicom.segmentation import names_of_codes, off_grid
from pancseg.dicom.series import SliceStack
from pancseg.errors import Refused, parsing
from pancseg.structures import LabelMap, Structure, match_names

OUTSIDE_PIXELS = 2.0  # that a contour may reach beyond the outermost pixel centres
OFF_SLICE_STEPS = 0.25  # planning systems round positions, and some shift by half a pixel
ON_CENTRE_PIXELS = 0.02  # coordinates are often rounded to 0.01 mm
DIGITS = 6  # of pixel coordinates
EDGES_AT_ONCE = 512  # bounds the memory that filling takes


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
        if number not in contours:
            continue
        for contour in roi.get("ContourSequence") or []:
            kind, data = contour.get("ContourGeometricType"), contour.get_item("ContourData")
            is_closed = not kind or kind in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
            if not is_closed or data is None or not data.value:
                continue
            values = np.array(bytes(data.value).split(b"\\"), dtype=float)
            if len(values) % 3 or not (np.abs(values) < FARTHEST_MM).all():  # False for NaN
                expected = f"three a point, all finite and below {FARTHEST_MM:g} mm"
                sentence = (
                    f"{file.name} has a contour of {len(values)} numbers, expected {expected}"
                )
                raise Refused("bad_contour", sentence)
            contours[number].append(values.reshape(-1, 3))
            is_assumed |= not kind
    return contours, is_assumed


def to_slice(points: Floats, stack: SliceStack, file: Path) -> tuple[int, Floats]:
    """The slice that a contour lies on, if it does, and column and row of each point, pixels."""
    heights_mm = (points - stack.corner_mm) @ stack.normal
    k = int(np.abs(stack.offsets_mm - heights_mm.mean()).argmin())
    distance_mm = float(np.abs(heights_mm - stack.offsets_mm[k]).max())
    limit_mm = OFF_SLICE_STEPS * stack.step_mm
    if distance_mm > limit_mm:
        place = f"{distance_mm:.2f} mm from the nearest slice, expected at most {limit_mm:.2f} mm"
        hint = f"it spans {np.ptp(heights_mm):.2f} mm; give the series it was drawn on"
        raise Refused("contour_off_slice", f"{file.name} has a contour {place}; {hint}")
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

    >>> fill([np.array([[1, 0], [3, 0], [3, 1.5], [1, 1.5]])], (5, 3)).T.tolist()
    [[0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
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
        parts = range(0, len(edges), EDGES_AT_ONCE)
        for start in parts if is_traced else ():
            mark_pixels(on_contour, edges[start : start + EDGES_AT_ONCE])
        upwards = edges[:, 1] > edges[:, 3]
        edges[upwards] = edges[upwards][:, [2, 3, 0, 1]]
        edges = edges[np.lexsort(edges.T)]
        # a traced hole may run along the same pixels as its border, in the other direction
        key = (edges[edges[:, 1] < edges[:, 3]].tobytes(), turn * is_traced)
        for start in parts if key not in seen else ():
            count_crossings(crossings, edges[start : start + EDGES_AT_ONCE])
        seen.add(key)
    return np.bitwise_xor.accumulate(crossings[:-1] & 1, axis=0) | on_contour


def mark_pixels(on_contour: NDArray[np.uint8], edges: Floats) -> None:
    """Set pixels to 1 whose centres lie on edges ``(edges, 4)`` between pixel centres."""
    moves = edges[:, 2:] - edges[:, :2]
    counts = np.maximum(np.gcd(*np.abs(moves.T).astype(int)), 1)
    edge, step = np.nonzero(np.arange(counts.max()) < counts[:, None])
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
