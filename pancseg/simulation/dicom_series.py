"""Writes a CT or a mask as a DICOM series of single slices."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from pancseg.simulation.noise import stream

SCANNERS = (("Imaginary Imaging", "Phantom One"), ("Sample Systems", "Helix 64"))
DATE, TIME = "20240102", "101500"


@dataclass(frozen=True)
class Storage:
    """How the numbers of a series are stored; HU = stored * slope + intercept."""

    slope: float
    intercept: float
    signed: bool


@dataclass(frozen=True)
class SeriesStyle:
    """What differs between two patients' files.

    Attributes:
        storage: Of the CT.
        mask_value: What the pancreas is in the mask, 1 or 255.
        feet_first: How the patient entered the scanner, CT and mask.
        numbered_from_feet: Whether InstanceNumber 1 is at the feet, CT and mask.
        scanner: Manufacturer and model.
    """

    storage: Storage
    mask_value: int
    feet_first: tuple[bool, bool]
    numbered_from_feet: tuple[bool, bool]
    scanner: tuple[str, str]

    @property
    def step_hu(self) -> int:
        """Step between the whole HU that the CT can hold."""
        return max(1, int(self.storage.slope))


@dataclass(frozen=True)
class Study:
    """Whose pictures these are, and where their voxels lie."""

    patient: str
    seed: int
    index: int
    phase: str
    affine: NDArray[np.float64]

    def uid(self, *purpose: object) -> str:
        """Make an identifier that is the same whenever the same thing is written."""
        place = self.affine.round(4).tolist()
        return generate_uid(entropy_srcs=[self.patient, str(place), *map(str, purpose)])


STORAGES = (
    Storage(1, -1024, False),
    Storage(1, 0, True),
    Storage(0.5, -1024, False),
    Storage(2, -1024, False),
)


def draw_style(rng: np.random.Generator) -> SeriesStyle:
    """Draw how one patient's series are stored."""
    ct_feet, mask_feet, ct_up, mask_up = (bool(coin) for coin in rng.integers(0, 2, 4))
    return SeriesStyle(
        storage=STORAGES[rng.integers(len(STORAGES))],
        mask_value=int(rng.choice([1, 255])),
        feet_first=(ct_feet, mask_feet),
        numbered_from_feet=(ct_up, mask_up),
        scanner=SCANNERS[rng.integers(len(SCANNERS))],
    )


def write_ct(folder: Path, image_hu: NDArray[np.int16], study: Study, style: SeriesStyle) -> None:
    """Write the CT of a patient, ``(columns, rows, slices)`` HU."""
    how = style.storage
    kind = np.int16 if how.signed else np.uint16
    stored = ((image_hu.astype(np.int32) - int(how.intercept)) / how.slope).astype(kind)
    header = _series_header(study, style, "CT", 2, style.feet_first[0])
    header.SeriesDescription = f"Abdomen {study.phase}"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.WindowCenter, header.WindowWidth = 40, 400
    _write_slices(folder, stored, header, how, study, style.numbered_from_feet[0])


def write_mask(folder: Path, label: NDArray[np.uint8], study: Study, style: SeriesStyle) -> None:
    """Write the pancreas of a patient as a series of its own, ``(columns, rows, slices)``."""
    stored = label.astype(np.uint16) * style.mask_value
    header = _series_header(study, style, "MASK", 3, style.feet_first[1])
    header.SeriesDescription = "Pancreas"
    header.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    header.WindowCenter, header.WindowWidth = style.mask_value / 2, style.mask_value
    plain = Storage(1, 0, False)
    _write_slices(folder, stored, header, plain, study, style.numbered_from_feet[1])


def _series_header(
    study: Study, style: SeriesStyle, what: str, number: int, feet_first: bool
) -> Dataset:
    """Everything that the slices of a series share, apart from pixels and place."""
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 100"
    header.SOPClassUID = CTImageStorage
    for name in ("Study", "Series", "Acquisition", "Content", "InstanceCreation"):
        setattr(header, f"{name}Date", DATE)
        setattr(header, f"{name}Time", TIME)
    header.AccessionNumber = f"{study.seed % 10**9}{study.index:04d}"
    header.Modality = "CT"
    header.Manufacturer, header.ManufacturerModelName = style.scanner
    header.InstitutionName = "Simulated Hospital"
    header.ReferringPhysicianName = ""
    header.StudyDescription = "Simulated abdomen"
    header.PatientName = f"Phantom^{study.seed}-{study.index:03d}"
    header.PatientID = study.patient
    header.PatientBirthDate = "19600101"
    header.PatientSex = "O"
    header.PatientAge = "064Y"
    header.BodyPartExamined = "ABDOMEN"
    header.DeviceSerialNumber = "0001"
    header.SoftwareVersions = "1"
    header.PatientPosition = "FFS" if feet_first else "HFS"
    header.StudyInstanceUID = study.uid("study")
    header.SeriesInstanceUID = study.uid("series", what)
    header.StudyID = "1"
    header.SeriesNumber = number
    header.AcquisitionNumber = 1
    header.FrameOfReferenceUID = study.uid("frame of reference")
    header.PositionReferenceIndicator = ""
    header.QualityControlImage = "YES"  # DICOM's word for an image of a phantom
    header.KVP = 120
    header.XRayTubeCurrent = 200
    header.ConvolutionKernel = "STANDARD"
    return header


def _write_slices(
    folder: Path,
    stored: NDArray[np.integer],
    header: Dataset,
    how: Storage,
    study: Study,
    from_feet: bool,
) -> None:
    """Write one file a slice, in random order, under names that say nothing.

    The affine is RAS; DICOM counts x to the left and y to the back, so both change sign.
    """
    columns, rows, slices = stored.shape
    spacing_mm = np.abs(np.diag(study.affine)[:3])
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.Rows, header.Columns = rows, columns
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    header.PixelRepresentation = int(how.signed)
    header.RescaleSlope, header.RescaleIntercept = how.slope, how.intercept
    header.RescaleType = "HU"
    header.PixelSpacing = [float(spacing_mm[1]), float(spacing_mm[0])]
    header.SliceThickness = float(spacing_mm[2])
    header.SpacingBetweenSlices = float(spacing_mm[2])
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    rng = stream(study.seed, study.index, str(header.SeriesInstanceUID))
    names = [rng.bytes(12).hex() + ".dcm" for _ in range(slices)]
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("*.dcm"):  # of another shape: two series would share the folder
        earlier.unlink()
    for place in rng.permutation(slices).tolist():
        x, y, z = (study.affine @ [0, 0, place, 1])[:3].round(4).tolist()
        header.SOPInstanceUID = study.uid(header.SeriesInstanceUID, place)
        header.InstanceNumber = place + 1 if from_feet else slices - place
        header.ImagePositionPatient = [-x, -y, z]
        header.SliceLocation = z
        header.PixelData = np.ascontiguousarray(stored[:, :, place].T).tobytes()
        _save(folder / names[place], header)


def _save(path: Path, header: Dataset) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = header.SOPClassUID
    meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta = meta
    dcmwrite(path, header, enforce_file_format=True)
