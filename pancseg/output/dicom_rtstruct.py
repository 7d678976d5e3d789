"""Masks as DICOM RTSTRUCT, outlines on the images of the series they were found in.

By pydicom, on highdicom's base of an instance: neither writes structure sets, and rt-utils, which
does, brings OpenCV, whose outlines run through the centres of pixels.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from pancseg import __version__
from pancseg.dicom.slices import SlicePlane, SliceStack
from pancseg.errors import quiet
from pancseg.files import replaced
from pancseg.output.dicom_sources import frames_of, sources_of
from pancseg.output.pixel_borders import Floats, pixel_borders

SERIES_NUMBER = 901
NUMBER = 1  # of the only ROI
DIGITS = 4  # of a mm: far below half a pixel, and no number is longer than DICOM's 16 characters
COLOUR = [255, 90, 79]
STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # the retired one that DICOM still asks for here


def write_rtstruct(path: Path, mask: nib.Nifti1Image, lying: SliceStack) -> None:
    """Write a mask as an RT Structure Set of one ROI, the pancreas (SNOMED 15776009).

    Contours run along the borders of pixels, so centres decide, and the mask is theirs again
    where they are filled. No mask is an ROI without contours. The patient and the study are those
    of the series, as DICOM requires.

    Args:
        path: File to write, whole or not at all.
        mask: On the grid of the series, slice 0 nearest the feet, as it was read.
        lying: Where the slices of the series lie.

    Raises:
        Refused: If the series was put on another grid, or lacks what contours refer to.
    """
    sources = sources_of(lying, "rtstruct")
    contours = [
        contour(outline, plane, sources[plane.file])
        for frame, plane in zip(frames_of(mask, lying), lying.planes, strict=True)
        for outline in (pixel_borders(frame.T > 0) if frame.any() else [])
    ]
    with quiet():
        written = structure_set(sources)
        if contours:
            written.ROIContourSequence[0].ContourSequence = contours
        with replaced(path) as temporary:
            written.save_as(temporary)


def structure_set(sources: Mapping[Path, Dataset]) -> hd.SOPClass:
    """A structure set of one ROI that refers to images, without contours."""
    first, now = next(iter(sources.values())), datetime.now()
    one = hd.SOPClass(
        study_instance_uid=first.StudyInstanceUID,
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        sop_class_uid=RTStructureSetStorage,
        instance_number=1,
        modality="RTSTRUCT",
        manufacturer="pancseg",
        transfer_syntax_uid=ImplicitVRLittleEndian,  # explicit lengths end at 64 kB
        series_description="Pancreas, not for clinical use",
        manufacturer_model_name="pancseg",
        software_versions=__version__,
        device_serial_number="0",
        specific_character_set=first.get("SpecificCharacterSet"),
    )
    one.copy_patient_and_study_information(first)
    one.OperatorsName = ""
    one.FrameOfReferenceUID, one.PositionReferenceIndicator = first.FrameOfReferenceUID, ""
    one.StructureSetLabel, one.StructureSetName = "PANCREAS", "Pancreas"
    one.StructureSetDescription = "Pancreas, found automatically, not for clinical use"
    one.StructureSetDate, one.StructureSetTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    one.ApprovalStatus = "UNAPPROVED"
    one.ReferencedFrameOfReferenceSequence = [frame_of_reference(sources)]
    one.StructureSetROISequence = [
        item(
            ROINumber=NUMBER,
            ReferencedFrameOfReferenceUID=first.FrameOfReferenceUID,
            ROIName="Pancreas",
            ROIGenerationAlgorithm="AUTOMATIC",
            ROIGenerationDescription=f"pancseg {__version__}",
        )
    ]
    one.ROIContourSequence = [item(ReferencedROINumber=NUMBER, ROIDisplayColor=COLOUR)]
    one.RTROIObservationsSequence = [
        item(
            ObservationNumber=1,
            ReferencedROINumber=NUMBER,
            RTROIIdentificationCodeSequence=[hd.sr.CodedConcept.from_code(codes.SCT.Pancreas)],
            RTROIInterpretedType="ORGAN",
            ROIInterpreter="",
        )
    ]
    return one


def frame_of_reference(sources: Mapping[Path, Dataset]) -> Dataset:
    """Every image of the series, in its study, in its frame of reference."""
    first = next(iter(sources.values()))
    series = item(
        SeriesInstanceUID=first.SeriesInstanceUID,
        ContourImageSequence=[reference(source) for source in sources.values()],
    )
    study = item(
        ReferencedSOPClassUID=STUDY_CLASS,
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    return item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])


def contour(outline: Floats, plane: SlicePlane, source: Dataset) -> Dataset:
    """An outline, ``(points, 2)`` column and row, as points in space on the image it lies on."""
    row, column = np.reshape(plane.orientation, (2, 3))
    rows_mm, columns_mm = plane.spacing_mm
    points = plane.position_mm + outline @ np.stack([columns_mm * row, rows_mm * column])
    image = reference(source)
    if "NumberOfFrames" in source:
        image.ReferencedFrameNumber = plane.frame + 1
    return item(
        ContourImageSequence=[image],
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=len(points),
        ContourData=[f"{value:.{DIGITS}f}" for value in points.ravel().tolist()],
    )


def reference(source: Dataset) -> Dataset:
    """That it is this image."""
    return item(
        ReferencedSOPClassUID=source.SOPClassUID, ReferencedSOPInstanceUID=source.SOPInstanceUID
    )


def item(**values: Any) -> Dataset:
    """An item of a sequence."""
    one = Dataset()
    for keyword, value in values.items():
        setattr(one, keyword, value)
    return one
