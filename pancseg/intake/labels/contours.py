"""RTSTRUCT: contours of the chosen ROIs, filled on the slices they were drawn on."""

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset

from pancseg.errors import Refused
from pancseg.intake.dicom.pixels import parsing
from pancseg.intake.dicom.planes import FARTHEST_MM, Plane
from pancseg.intake.dicom.stack import Stack
from pancseg.intake.found import Mask, Reading, Scan
from pancseg.intake.labels.foreground import chosen_structures

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
OUTSIDE = 2.0  # pixels that an outline may reach beyond the outermost centres
OFF_SLICE = 0.25  # of the step; planning systems round, and some shift by half a pixel
DIGITS = 6  # of a pixel: points meant for a pixel's centre must not waver beside it
EDGES_AT_ONCE = 512  # bounds the memory a drawing can ask for
Floats = NDArray[np.float64]


def read_contours(file: Path, reading: Reading, scan: Scan) -> Mask:
    """Read an RTSTRUCT onto its image; an ROI without contours is an empty mask.

    Raises:
        Refused: If the file is damaged, the choice is unclear or a contour is on no slice.
    """
    if scan.stack is None:
        raise Refused(
            "label_needs_dicom",
            f"{file.name} is an RTSTRUCT and is drawn on the slices of a DICOM series, but this "
            "image is none; give the series, or convert the label to NIfTI",
        )
    with parsing(file):
        rois = chosen_contours(pydicom.dcmread(file), reading, file)
    mask = np.zeros(scan.stack.shape, np.uint8, order="F")
    drawn: set[int] = set()
    for contours in rois:
        outlines: dict[int, dict[bytes, Floats]] = {}
        for points in contours:
            k = slice_of(points, scan.stack, file)
            edges = edges_of(points, scan.stack.planes[k], file)
            outlines.setdefault(k, {})[edges.tobytes()] = edges  # copies of a contour count once
        for k, once in outlines.items():
            mask[..., k] |= filled(np.concatenate(list(once.values())), mask.shape[:2])
        drawn |= outlines.keys()
    gaps = bool(drawn) and len(drawn) <= max(drawn) - min(drawn)
    image = scan.stack.to_image(mask, linear=False, fill=0)
    return Mask(image, flags=("contour_gaps",) if gaps else ())


def chosen_contours(one: Dataset, reading: Reading, file: Path) -> list[list[Floats]]:
    """Closed contours of each chosen ROI, each ``(points, 3)``, LPS mm.

    Raises:
        Refused: If the choice is unclear or a contour is not made of points.
    """
    if not one.get("StructureSetROISequence"):
        raise Refused("no_rois", f"{file.name} lists no ROIs, expected an RTSTRUCT with some")
    structures = {int(roi.ROINumber): words_of(roi, one) for roi in one.StructureSetROISequence}
    chosen, _ = chosen_structures(structures, reading.choice, "roi")
    rois: dict[int, list[Floats]] = {number: [] for number in chosen}
    for roi in one.get("ROIContourSequence") or []:
        contours = rois.get(int(roi.ReferencedROINumber))
        if contours is None:
            continue
        for contour in roi.get("ContourSequence") or []:
            if contour.get("ContourGeometricType") in CLOSED:
                points = points_of(contour, file)
                if len(points) > 2:
                    contours.append(points)
    return list(rois.values())


def words_of(roi: Dataset, one: Dataset) -> tuple[str, ...]:
    """What an ROI goes by: its name, then codes and meanings that its observations give it."""
    codes = [
        code
        for observed in one.get("RTROIObservationsSequence") or []
        if observed.get("ReferencedROINumber") == roi.ROINumber
        for code in observed.get("RTROIIdentificationCodeSequence") or []
    ]
    words = [code.get(keyword) for code in codes for keyword in ("CodeValue", "CodeMeaning")]
    return str(roi.get("ROIName") or ""), *(str(word) for word in words if word)


def points_of(contour: Dataset, file: Path) -> Floats:
    """Points of a contour, ``(points, 3)``, LPS mm.

    From the bytes of the file: pydicom makes an object of each number, which takes seconds, and
    warns of each that has more digits than DICOM allows, which planning systems write.

    Raises:
        Refused: If they are no points in space.
    """
    raw = contour.get_item("ContourData")
    words = bytes(raw.value).split(b"\\") if raw is not None and raw.value else []
    values = np.array(words, dtype=float)
    if len(values) % 3 or not (np.abs(values) < FARTHEST_MM).all():  # NaN is not less
        raise Refused(
            "bad_contour",
            f"{file.name} has a contour of {len(values)} numbers, expected three for each point, "
            f"all finite and below {FARTHEST_MM:g} mm",
        )
    return values.reshape(-1, 3)


def slice_of(points: Floats, stack: Stack, file: Path) -> int:
    """The slice that a contour lies on.

    Raises:
        Refused: If it lies on none, or is not parallel to the slices.
    """
    heights = (points - stack.planes[0].position_mm) @ stack.normal
    k = int(np.abs(stack.offsets_mm - heights.mean()).argmin())
    off_mm = float(np.abs(heights - stack.offsets_mm[k]).max())
    limit_mm = OFF_SLICE * stack.step_mm
    if off_mm <= limit_mm:
        return k
    span_mm = float(np.ptp(heights))
    tilted = f" and leans over {span_mm:.2f} mm" if span_mm > limit_mm else ""
    raise Refused(
        "contour_off_slice",
        f"{file.name} has a contour {off_mm:.2f} mm from the nearest slice{tilted}, expected "
        f"at most {limit_mm:.2f} mm; give the series it was drawn on",
    )


def edges_of(points: Floats, plane: Plane, file: Path) -> Floats:
    """Edges of a contour that cross rows, in an order that only depends on its shape.

    Returns:
        ``(edges, 4)``: column and row of the upper end, then of the lower end, pixels.

    Raises:
        Refused: If it reaches beyond the image: it was drawn on another one.
    """
    axes = np.reshape(plane.orientation, (2, 3))
    pixels = (points - plane.position_mm) @ axes.T / np.array(plane.spacing_mm[::-1])
    last = np.array([plane.columns, plane.rows]) - 1
    outside = float(np.max([-pixels, pixels - last]))
    if outside > OUTSIDE:
        raise Refused(
            "label_off_grid",
            f"{file.name} has a contour that reaches {outside:.1f} pixels beyond the image; give "
            "the series it was drawn on",
        )
    pixels = np.round(pixels, DIGITS) + 0.0  # no negative zero: copies are compared as bytes
    edges = np.hstack([pixels, np.roll(pixels, -1, axis=0)])
    upwards = edges[:, 1] > edges[:, 3]
    edges[upwards] = edges[upwards][:, [2, 3, 0, 1]]
    edges = edges[edges[:, 1] < edges[:, 3]]
    return edges[np.lexsort(edges.T)]


def filled(edges: Floats, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Fill outlines by the even-odd rule: 1 where a pixel's centre lies inside.

    An own scanline, as PIL and OpenCV fill the pixels of the outline too. A centre on an outline
    belongs to the side of larger columns and rows, so neighbours share no pixel and leave none.

    Args:
        edges: ``(edges, 4)``, downwards, pixels; of all outlines of one slice.
        shape: Columns, rows; what lies outside is cut off.

    >>> square = np.array([[1.0, 0.0, 1.0, 2.0], [3.0, 0.0, 3.0, 2.0]])
    >>> filled(square, (5, 3)).T.tolist()
    [[0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    """
    columns, rows = shape
    crossings = np.zeros((columns + 1, rows), np.uint8)  # wraps at 256, which stays even
    for start in range(0, len(edges), EDGES_AT_ONCE):
        some = edges[start : start + EDGES_AT_ONCE]
        ends = np.ceil(some[:, [1, 3]]).clip(0, rows).astype(int)
        lengths = ends[:, 1] - ends[:, 0]
        before = np.cumsum(lengths) - lengths
        row = np.arange(lengths.sum()) + np.repeat(ends[:, 0] - before, lengths)
        column, top, last_column, bottom = np.repeat(some, lengths, axis=0).T
        crossed = column + (row - top) * (last_column - column) / (bottom - top)
        first = np.ceil(np.round(crossed, DIGITS)).clip(0, columns).astype(int)
        np.add.at(crossings, (first, row), 1)
    inside: NDArray[np.uint8] = np.bitwise_xor.accumulate(crossings[:-1] & 1, axis=0)
    return inside
