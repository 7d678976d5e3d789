"""Write DICOM RTSTRUCT with pydicom, on highdicom's base class of an instance.

rt-utils would need OpenCV, whose contours run through the centres of pixels.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage
from scipy import ndimage

from pancseg import __version__
from pancseg.dicom.pixels import Floats, SlicePlane
from pancseg.dicom.series import SliceStack
from pancseg.dicom.write_seg import code_of, frames_of, new_instance, read_headers, save, title_of
from pancseg.errors import quiet
from pancseg.structures import Structure, region_mask

DIGITS = 4  # of a mm: far below half a pixel, and no number is longer than DICOM's 16 characters
COLOURS = ([255, 90, 79], [79, 157, 255], [255, 200, 60], [110, 210, 120])
STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # retired, but still required here
# headings of an edge: east, south, west, north; each is a right turn from the one before
EAST, WEST, STEPS = 0, 2, ((1, 0), (0, 1), (-1, 0), (0, -1))  # steps in columns and rows


def write_rtstruct(
    path: Path, labels: nib.Nifti1Image, structures: Sequence[Structure], stack: SliceStack
) -> list[str]:
    """Write a label map as an RT Structure Set with an ROI for each structure.

    Contours run along the borders of pixels, so that filling them by pixel centres gives the mask
    again. An empty mask is an ROI without contours. Arguments and result are those of
    :func:`pancseg.dicom.write_seg.write_seg`.

    Raises:
        Refused: If the series is resampled, or lacks a UID.
    """
    headers, invalid = read_headers(stack, "rtstruct")
    frames = frames_of(labels, stack)
    with quiet():
        dataset = structure_set(headers, structures)
        for roi, structure in zip(dataset.ROIContourSequence, structures, strict=True):
            contours = [
                contour(outline, plane, headers[plane.file])
                for frame, plane in zip(frames, stack.planes, strict=True)
                if (mask := region_mask(frame, structure)).any()
                for outline in trace_borders(mask.T)
            ]
            if contours:
                roi.ContourSequence = contours
        return save(path, dataset, next(iter(headers.values())), invalid)


def structure_set(headers: Mapping[Path, Dataset], structures: Sequence[Structure]) -> hd.SOPClass:
    """Build a structure set that refers to images, without contours."""
    first, now, title = next(iter(headers.values())), datetime.now(), title_of(structures)
    dataset = hd.SOPClass(
        study_instance_uid=first.StudyInstanceUID,
        sop_class_uid=RTStructureSetStorage,
        modality="RTSTRUCT",
        transfer_syntax_uid=ImplicitVRLittleEndian,  # explicit lengths end at 64 kB
        series_description=f"{title}, not for clinical use",
        **new_instance(901),
    )
    dataset.copy_patient_and_study_information(first)
    dataset.OperatorsName = dataset.PositionReferenceIndicator = ""
    dataset.FrameOfReferenceUID = first.FrameOfReferenceUID
    dataset.StructureSetLabel, dataset.StructureSetName = title.upper()[:16], title
    dataset.StructureSetDate, dataset.StructureSetTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    dataset.ApprovalStatus = "UNAPPROVED"
    series = item(
        SeriesInstanceUID=first.SeriesInstanceUID,
        ContourImageSequence=[reference(header) for header in headers.values()],
    )
    study = item(
        ReferencedSOPClassUID=STUDY_CLASS,
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    dataset.ReferencedFrameOfReferenceSequence = [
        item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])
    ]
    numbered = [*enumerate(structures, start=1)]
    dataset.StructureSetROISequence = [
        item(
            ROINumber=number,
            ReferencedFrameOfReferenceUID=first.FrameOfReferenceUID,
            ROIName=title_of([structure]),
            ROIGenerationAlgorithm="AUTOMATIC",
            ROIGenerationDescription=f"pancseg {__version__}",
        )
        for number, structure in numbered
    ]
    dataset.ROIContourSequence = [
        item(ReferencedROINumber=number, ROIDisplayColor=COLOURS[(number - 1) % len(COLOURS)])
        for number, _ in numbered
    ]
    dataset.RTROIObservationsSequence = [
        item(
            ObservationNumber=number,
            ReferencedROINumber=number,
            RTROIIdentificationCodeSequence=[hd.sr.CodedConcept.from_code(code_of(structure))],
            RTROIInterpretedType="ORGAN" if structure.kind == "organ" else "",
            ROIInterpreter="",
        )
        for number, structure in numbered
    ]
    return dataset


def contour(outline: Floats, plane: SlicePlane, header: Dataset) -> Dataset:
    """A contour in space, on its image, of an outline ``(points, 2)`` in columns and rows."""
    axes, spacing_mm = np.reshape(plane.orientation, (2, 3)), plane.spacing_mm[::-1]
    points = plane.position_mm + outline * spacing_mm @ axes
    image = reference(header)
    if "NumberOfFrames" in header:
        image.ReferencedFrameNumber = plane.frame + 1
    return item(
        ContourImageSequence=[image],
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=len(points),
        ContourData=[f"{value:.{DIGITS}f}" for value in points.ravel().tolist()],
    )


def reference(header: Dataset) -> Dataset:
    """A reference to an image."""
    return item(
        ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID
    )


def item(**values: Any) -> Dataset:
    """An item of a sequence."""
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def trace_borders(mask: NDArray[np.bool_]) -> list[Floats]:
    """Trace each component of a mask ``(columns, rows)`` once along the borders of its pixels.

    Pixels that touch at a corner only are separate components. A hole is entered and left along
    the same row of borders (keyhole, DICOM PS3.3 C.8.8.6.3): pixel centres lie half a pixel beside
    every edge, so any filling rule gives the mask again. contourpy cuts corners instead.

    Returns:
        For each component its corners ``(points, 2)``, column and row, pixels from the centre of
        the first one, the component to the right of each edge; the first is not repeated.

    >>> [outline.tolist() for outline in trace_borders(np.array([[False, True]]))]
    [[[0.5, 0.5], [0.5, 1.5], [-0.5, 1.5], [-0.5, 0.5]]]
    """
    inside = np.pad(mask, 1)
    # pixels around each corner of pixels: south-east, south-west, north-west, north-east
    around = inside[1:, 1:], inside[:-1, 1:], inside[:-1, :-1], inside[1:, :-1]
    # [heading, column, row]: an edge leaves the corner, with the mask on its right only
    edges = np.stack([around[heading] & ~around[heading - 1] for heading in range(4)])
    join_holes(edges, inside)
    outlines, is_left = [], edges.copy()
    for heading, column, row in np.argwhere(edges).tolist():
        corners = []
        while is_left[heading, column, row]:
            is_left[heading, column, row] = False
            column, row = column + STEPS[heading][0], row + STEPS[heading][1]
            right_straight_left = ((heading + turn) % 4 for turn in (1, 0, 3))
            following = next(side for side in right_straight_left if edges[side, column, row])
            if following != heading:
                corners.append((column, row))
            heading = following
        if corners:
            outlines.append(np.array(corners) - 0.5)
    return outlines


def join_holes(edges: NDArray[np.bool_], inside: NDArray[np.bool_]) -> None:
    """Add edges from the first corner of each hole westwards to the next border, and back.

    Everything north of a hole and west of its first pixel belongs to the component around it, so
    that border is of the same component, or of a hole that is joined likewise.
    """
    labels, _ = ndimage.label(~inside, np.ones((3, 3)))
    is_border = ~(inside[:-1, :-1] & inside[:-1, 1:])  # seen from the east
    _, firsts = np.unique(labels.T, return_index=True)  # by rows
    for first in firsts[2:]:  # 0 is the mask, 1 the outside
        row, column = divmod(int(first), len(labels))
        end = int(np.flatnonzero(is_border[: column - 1, row - 1])[-1])
        edges[WEST, end + 1 : column, row - 1] = True
        edges[EAST, end : column - 1, row - 1] = True
