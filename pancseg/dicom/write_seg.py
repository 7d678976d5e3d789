"""Write DICOM SEG with highdicom, and read the headers that a SEG or an RTSTRUCT refers to."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
from highdicom.valuerep import check_person_name
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import empty_value_for_VR
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, generate_uid
from pydicom.valuerep import DA, TM

from pancseg import __version__
from pancseg.dicom.pixels import read_dataset
from pancseg.dicom.series import SliceStack
from pancseg.errors import Refused, parsing, quiet
from pancseg.files import replaced
from pancseg.geometry import oriented_like
from pancseg.structures import Structure, region_mask

# attributes that must be present and may be empty; anonymisers remove them
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
# parsers of the attributes that highdicom parses; they raise for a value that it would refuse
PARSERS: dict[str, Callable[[Any], Any]] = {
    "SpecificCharacterSet": lambda names: [python_encoding[str(n)] for n in np.atleast_1d(names)],
    "PatientName": check_person_name,
    "PatientBirthDate": DA,
    "PatientSex": hd.PatientSexValues,
    "StudyDate": DA,
    "StudyTime": TM,
    "SliceThickness": float,
}


def write_seg(
    path: Path, labels: nib.Nifti1Image, structures: Sequence[Structure], stack: SliceStack
) -> list[str]:
    """Write a label map as a binary DICOM SEG with a segment for each structure.

    Patient and study are those of the series, as DICOM requires.

    Args:
        path: File to write, whole or not at all.
        labels: uint8 on the grid of the series, slice 0 nearest the feet; code ``n`` is structure
            ``n``, counted from 1.
        structures: A structure of several ``values`` is their union.
        stack: Slices of the series.

    Returns:
        Keywords of attributes whose value in the series is invalid; they are empty in the SEG.

    Raises:
        Refused: If the series is resampled, lacks a UID, or has several multi-frame files.
    """
    headers, invalid = read_headers(stack, "seg")
    first, frames = next(iter(headers.values())), frames_of(labels, stack)
    if len(headers) == 1:  # multi-frame, in any order
        pixels = np.zeros((int(first.NumberOfFrames), *frames.shape[1:]), np.uint8)
        pixels[[plane.frame for plane in stack.planes]] = frames
        frames = pixels
    elif len(headers) < len(frames):
        raise Refused("seg_frames", "the series has several multi-frame files; a SEG refers to one")
    with quiet():
        seg = hd.seg.Segmentation(
            source_images=list(headers.values()),
            pixel_array=np.stack([region_mask(frames, s) for s in structures], axis=-1),
            segmentation_type="BINARY",
            segment_descriptions=[describe(n, s) for n, s in enumerate(structures, start=1)],
            content_label="_".join(s.name for s in structures).upper()[:16],
            content_description=f"{title_of(structures)}, not for clinical use",
            specific_character_set=None,  # highdicom refuses an empty value among several
            **new_instance(900),
        )
        seg.ContentCreatorName = ""  # required; highdicom omits an empty one
        return save(path, seg, first, invalid)


def describe(number: int, structure: Structure) -> hd.seg.SegmentDescription:
    """Describe a segment."""
    lesion, organ = codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.AnatomicalStructure
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=title_of([structure]),
        segmented_property_category=lesion if structure.kind == "lesion" else organ,
        segmented_property_type=code_of(structure),
        algorithm_type="AUTOMATIC",
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="pancseg", family=codes.DCM.ArtificialIntelligence, version=__version__
        ),
    )


def code_of(structure: Structure) -> Code:
    """SNOMED CT code of a structure, with its meaning where pydicom knows it, else its name."""
    known = (code for code in codes.SCT.concepts.values() if code.value == structure.code)
    return next(known, Code(structure.code, "SCT", title_of([structure])))


def title_of(structures: Sequence[Structure]) -> str:
    """Names as a title of at most 40 characters.

    >>> title_of([Structure("left_kidney", None, "18639004", "organ", (50, 400), (1,))])
    'Left kidney'
    """
    return ", ".join(s.name.replace("_", " ").capitalize() for s in structures)[:40]


def new_instance(series_number: int) -> dict[str, Any]:
    """Arguments of highdicom for the only instance of a new series."""
    return {
        "series_instance_uid": generate_uid(),
        "series_number": series_number,
        "sop_instance_uid": generate_uid(),
        "instance_number": 1,
        "manufacturer": "pancseg",
        "manufacturer_model_name": "pancseg",
        "software_versions": __version__,
        "device_serial_number": "0",
    }


def read_headers(stack: SliceStack, kind: str) -> tuple[dict[Path, Dataset], list[str]]:
    """Read the header of each file of a series, in the order of its slices, without pixels.

    Attributes that DICOM requires and anonymisers remove are added. Returned too are the keywords
    of the attributes of the first file whose value is invalid; they are emptied.

    Raises:
        Refused: If the series is resampled, lacks a UID, or cannot be read any more; codes begin
            with ``kind``.
    """
    if stack.repairs:
        sentence = f"the series was interpolated, and no {kind.upper()} can refer to it"
        raise Refused(f"{kind}_repaired", sentence)
    headers: dict[Path, Dataset] = {}
    invalid: list[str] = []
    for file in dict.fromkeys(plane.file for plane in stack.planes):
        with parsing(file):
            header = headers[file] = read_dataset(file, stop_before_pixels=True)
            if len(headers) == 1:
                first, invalid = header, empty_invalid(header)
            needed = [f"{level}InstanceUID" for level in ("SOP", "Series", "Study")]
            if missing := [name for name in needed if not header.get(name)]:
                sentence = f"the series has no {', '.join(missing)} to refer to"
                raise Refused(f"{kind}_no_uid", sentence)
            for keyword in MAY_BE_EMPTY:
                header.setdefault(keyword, "")
            if not header.get("SOPClassUID"):
                header.SOPClassUID = CTImageStorage
            if not header.get("FrameOfReferenceUID"):
                sources = [str(header.SeriesInstanceUID), "frame of reference"]
                header.FrameOfReferenceUID = generate_uid(entropy_srcs=sources)
            if "ImageOrientationPatient" in header:  # highdicom wants equal digits
                header["ImageOrientationPatient"] = first["ImageOrientationPatient"]
    if len(headers) > 1 and not first.get("SliceThickness"):  # highdicom wants it
        first.SliceThickness = round(stack.step_mm, 4)
    return headers, invalid


def empty_invalid(header: Dataset) -> list[str]:
    """Empty attributes that pydicom or highdicom cannot parse; return their keywords."""
    invalid = []
    for keyword in header.dir():
        try:
            if value := header[keyword].value:
                PARSERS.get(keyword, bool)(value)
        except Exception:  # damaged values raise nearly any
            vr = dictionary_VR(keyword)
            header.add_new(keyword, vr, empty_value_for_VR(vr))
            invalid.append(keyword)
    return invalid


def frames_of(labels: nib.Nifti1Image, stack: SliceStack) -> NDArray[np.uint8]:
    """Codes as frames ``(slices, rows, columns)``, in the order of the slices of a series."""
    stored = nib.Nifti1Image(np.zeros(stack.shape, np.uint8), stack.affine_at(stack.corner_mm))
    turned = np.asanyarray(oriented_like(labels, stored).dataobj)
    return np.ascontiguousarray(turned.transpose(2, 1, 0).astype(np.uint8))


def save(path: Path, dataset: Dataset, header: Dataset, invalid: list[str]) -> list[str]:
    """Save in the character set of a header; return which of its invalid attributes were copied."""
    names = header.get("SpecificCharacterSet")
    if "SpecificCharacterSet" in invalid:
        names = "ISO_IR 192"  # UTF-8, which holds all that pydicom decoded
    if names:
        dataset.SpecificCharacterSet = names
    with replaced(path) as temporary:
        dataset.save_as(temporary)
    return [keyword for keyword in invalid if keyword in dataset]
