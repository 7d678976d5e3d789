"""Masks as DICOM SEG that refer to the series they were found in; written by highdicom."""

from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, generate_uid

from pancseg import __version__
from pancseg.affine import oriented_like
from pancseg.atomic import replaced
from pancseg.errors import Refused
from pancseg.intake.dicom.pixels import open_dicom, quiet
from pancseg.intake.dicom.stack import Stack

NEEDED = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
# what DICOM wants to be there, be it empty; anonymisers drop it
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
SERIES_NUMBER = 900


def write_seg(path: Path, mask: nib.Nifti1Image, lying: Stack) -> None:
    """Write a mask as a binary DICOM SEG of one segment, the pancreas (SNOMED 15776009).

    The patient and the study are those of the series, as DICOM requires.

    Args:
        path: File to write, whole or not at all.
        mask: On the grid of the series, slice 0 nearest the feet, as it was read.
        lying: Where the slices of the series lie.

    Raises:
        Refused: If the series was put on another grid, or lacks what a SEG refers to.
    """
    if lying.repairs:
        raise Refused("seg_repaired", "the series was interpolated, and a SEG cannot refer to it")
    sources = sources_of(lying)
    segment = SegmentDescription(
        segment_number=1,
        segment_label="Pancreas",
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.Pancreas,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="pancseg", family=codes.DCM.ArtificialIntelligence, version=__version__
        ),
    )
    with quiet():
        written = hd.seg.Segmentation(
            source_images=sources,
            pixel_array=frames_of(mask, lying),
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[segment],
            series_instance_uid=generate_uid(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="pancseg",
            manufacturer_model_name="pancseg",
            software_versions=__version__,
            device_serial_number="0",
            content_label="PANCREAS",
            content_description="Pancreas, found automatically, not for clinical use",
        )
        with replaced(path) as temporary:
            written.save_as(temporary)


def frames_of(mask: nib.Nifti1Image, lying: Stack) -> NDArray[np.uint8]:
    """The mask as stored frames ``(slices, rows, columns)``, in the order of the planes."""
    stored = nib.Nifti1Image(np.zeros(lying.shape, np.uint8), lying.affine_at(lying.corner_mm))
    turned = np.asanyarray(oriented_like(mask, stored).dataobj)
    return np.ascontiguousarray(turned.transpose(2, 1, 0).astype(np.uint8))


def sources_of(lying: Stack) -> list[Dataset]:
    """Headers of the images that the frames refer to, in the order of the planes.

    A multi-frame file is one image; its frames have to be in its own order.

    Raises:
        Refused: If one lacks a UID, or frames of one file lie in another order than stored.
    """
    files = list(dict.fromkeys(plane.file for plane in lying.planes))
    if len(files) != len(lying.planes) and (
        len(files) > 1 or [plane.frame for plane in lying.planes] != list(range(lying.shape[2]))
    ):
        raise Refused("seg_frames", "frames of multi-frame files lie in another order than stored")
    with quiet():
        return [completed(open_dicom(file)) for file in files]


def completed(source: Dataset) -> Dataset:
    """A header with what DICOM requires and anonymisers emptied or dropped.

    Raises:
        Refused: If nothing could refer to it.
    """
    absent = [name for name in NEEDED if not source.get(name)]
    if absent:
        raise Refused("seg_no_uid", f"the series has no {', '.join(absent)} to refer to")
    for name in MAY_BE_EMPTY:
        if name not in source:
            setattr(source, name, "")
    if not source.get("SOPClassUID"):
        source.SOPClassUID = CTImageStorage
    if not source.get("FrameOfReferenceUID"):
        told = [str(source.SeriesInstanceUID), "frame of reference"]
        source.FrameOfReferenceUID = generate_uid(entropy_srcs=told)
    return source
