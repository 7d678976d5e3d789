"""Masks as DICOM SEG that refer to the series they were found in; written by highdicom."""

from pathlib import Path

import highdicom as hd
import nibabel as nib
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from pancseg import __version__
from pancseg.dicom.slices import SliceStack
from pancseg.errors import Refused, quiet
from pancseg.files import replaced
from pancseg.output.dicom_sources import frames_of, sources_of

SERIES_NUMBER = 900


def write_seg(path: Path, mask: nib.Nifti1Image, lying: SliceStack) -> None:
    """Write a mask as a binary DICOM SEG of one segment, the pancreas (SNOMED 15776009).

    The patient and the study are those of the series, as DICOM requires.

    Args:
        path: File to write, whole or not at all.
        mask: On the grid of the series, slice 0 nearest the feet, as it was read.
        lying: Where the slices of the series lie.

    Raises:
        Refused: If the series was put on another grid, lacks what a SEG refers to, or has its
            frames in another order than stored.
    """
    sources = sources_of(lying, "seg")
    if not in_stored_order(lying, list(sources)):
        raise Refused("seg_frames", "frames of multi-frame files lie in another order than stored")
    for source in sources.values():
        if not source.get("SliceThickness") and "NumberOfFrames" not in source:
            source.SliceThickness = round(lying.step_mm, 4)  # highdicom asks for one
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
            source_images=list(sources.values()),
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
        written.ContentCreatorName = ""  # DICOM wants it there; highdicom leaves out an empty one
        with replaced(path) as temporary:
            written.save_as(temporary)


def in_stored_order(lying: SliceStack, files: list[Path]) -> bool:
    """Whether each plane is a file, or all are frames of one in its own order."""
    if len(files) == len(lying.planes):
        return True
    return len(files) == 1 and [plane.frame for plane in lying.planes] == list(
        range(len(lying.planes))
    )
