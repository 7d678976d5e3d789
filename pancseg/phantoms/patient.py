"""A phantom from its seed to its files: CT and mask as DICOM, the reference as NIfTI."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from pancseg.phantoms.anatomy import Abdomen, Anatomy
from pancseg.phantoms.scanner import Tissue, draw_scanner, scan
from pancseg.phantoms.shapes import Size, Spacing

# slope, intercept, whether stored numbers are signed
CT_STORAGES = (1, -1024, False), (1, 0, True), (0.5, -1024, False), (2, -1024, False)
SCANNERS = ("Imaginary Imaging", "Phantom One"), ("Sample Systems", "Helix 64")


class SeriesStyle:
    """How a patient's series are stored; pairs are for CT and mask."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.feet_first, self.numbered_from_feet = rng.integers(0, 2, (2, 2)).tolist()
        self.storage = CT_STORAGES[rng.integers(len(CT_STORAGES))], (1, 0, False)
        self.mask_value = int(rng.choice([1, 255]))
        self.scanner = SCANNERS[rng.integers(len(SCANNERS))]


@dataclass(frozen=True)
class Phantom:
    """A simulated patient on the grid of a scan; arrays are ``(columns, rows, slices)``, RAS."""

    seed: int
    index: int
    image_hu: NDArray[np.int16]  # slice 0 nearest the feet
    label: NDArray[np.uint8]  # 1 in the pancreas, 2 in its lesion
    tissue: NDArray[np.uint8]  # values of Tissue
    affine: NDArray[np.float64]  # (4, 4), voxel to mm
    phase: str
    noise_hu: float  # standard deviation
    style: SeriesStyle
    lesions: bool = False  # of the group

    @property
    def patient(self) -> str:
        """Folder and PatientID."""
        return f"phantom-{self.seed}-{self.index:03d}"

    def uid(self, *purpose: object) -> str:
        """DICOM UID, the same whenever the same phantom is written."""
        affine = str(self.affine.round(4).tolist())
        group = ["lesions"] * self.lesions
        return generate_uid(entropy_srcs=[self.patient, affine, *group, *map(str, purpose)])


def simulate_patient(
    seed: int,
    index: int,
    shape: Size = (256, 256, 180),
    spacing_mm: Spacing = (1.5, 1.5, 2.0),
    lesions: bool = False,
) -> Phantom:
    """Simulate a patient on a grid of columns, rows and slices; the anatomy depends on neither.

    With ``lesions`` two of three patients in a row have a lesion.
    """
    anatomy = Anatomy(seed, index, lesions)
    grid = anatomy.place_scan(shape, spacing_mm)
    abdomen = Abdomen(anatomy, grid)
    tissue = abdomen.paint(abdomen.layers())
    scanner = draw_scanner(anatomy.stream("scanner"))
    style = SeriesStyle(anatomy.stream("dicom style"))
    if lesions:
        style.mask_value = 1  # a mask holds the values of the label
    hu = scan(tissue, grid, scanner, anatomy.stream("noise"))
    np.clip(hu, -1024, 3071, out=hu)  # 12 bits
    step_hu = max(1, int(style.storage[0][0]))
    image_hu = (np.rint(hu / step_hu) * step_hu).astype(np.int16).T
    label = (tissue == Tissue.PANCREAS).astype(np.uint8).T
    label[tissue.T == Tissue.LESION] = 2
    return Phantom(
        *(seed, index, image_hu, label, tissue.T, grid.affine),
        *(scanner.phase, scanner.noise_hu, style, lesions),
    )


def write_phantom(
    out: Path, seed: int, shape: Size, spacing_mm: Spacing, lesions: bool, index: int
) -> None:
    """Simulate and write a patient."""
    write_patient(simulate_patient(seed, index, shape, spacing_mm, lesions), out)


def write_patient(phantom: Phantom, out: Path) -> None:
    """Write ``images/`` and ``labels/`` as DICOM and ``truth/`` as NIfTI below ``out``."""
    write_series(phantom, out / "images" / phantom.patient, mask=False)
    write_series(phantom, out / "labels" / phantom.patient, mask=True)
    (out / "truth").mkdir(parents=True, exist_ok=True)
    for name, data in (("image", phantom.image_hu), ("label", phantom.label)):
        image = nib.Nifti1Image(data, phantom.affine)
        image.set_sform(phantom.affine, code=1)
        image.set_qform(phantom.affine, code=1)
        image.header.set_xyzt_units("mm")
        nib.save(image, out / "truth" / f"{phantom.patient}_{name}.nii.gz")


def write_series(phantom: Phantom, folder: Path, *, mask: bool) -> None:
    """Write CT or mask as one file a slice, in random order and under random names."""
    style, slices = phantom.style, phantom.label.shape[2]
    slope, intercept, signed = style.storage[mask]
    hu = phantom.label.astype(np.int32) * style.mask_value if mask else phantom.image_hu
    header = series_header(phantom, mask)
    rng = np.random.default_rng([phantom.seed, phantom.index, mask])
    names = [rng.bytes(12).hex() + ".dcm" for _ in range(slices)]
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("*.dcm"):  # of another shape: two series would share the folder
        earlier.unlink()
    for k in rng.permutation(slices).tolist():
        x, y, z = (phantom.affine @ [0, 0, k, 1])[:3].round(4).tolist()
        header.SOPInstanceUID = phantom.uid(header.SeriesInstanceUID, k)
        header.InstanceNumber = k + 1 if style.numbered_from_feet[mask] else slices - k
        header.ImagePositionPatient, header.SliceLocation = [-x, -y, z], z  # LPS
        stored = (hu[:, :, k].T.astype(np.int32) - intercept) / slope
        header.PixelData = stored.astype(np.int16 if signed else np.uint16).tobytes()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dcmwrite(folder / names[k], header, enforce_file_format=True)


def series_header(phantom: Phantom, mask: bool) -> Dataset:
    """Attributes that all slices of CT or mask share."""
    style, header = phantom.style, Dataset()
    header.SpecificCharacterSet = "ISO_IR 100"
    header.SOPClassUID, header.Modality = CTImageStorage, "CT"
    header.StudyDate, header.StudyTime = "20240102", "101500"
    header.AccessionNumber = f"{phantom.seed % 10**9}{phantom.index:04d}"
    header.Manufacturer, header.ManufacturerModelName = style.scanner
    header.PatientName = f"Phantom^{phantom.seed}-{phantom.index:03d}"
    header.PatientID, header.PatientBirthDate = phantom.patient, "19600101"
    header.PatientSex, header.BodyPartExamined = "O", "ABDOMEN"
    header.ReferringPhysicianName = header.PositionReferenceIndicator = ""
    header.QualityControlImage = "YES"  # an image of a phantom
    header.PatientPosition = "FFS" if style.feet_first[mask] else "HFS"
    header.StudyID, header.SeriesNumber, header.AcquisitionNumber = "1", 2 + mask, 1
    header.SeriesDescription = "Pancreas" if mask else f"Abdomen {phantom.phase}"
    header.ImageType = [*(("DERIVED", "SECONDARY") if mask else ("ORIGINAL", "PRIMARY")), "AXIAL"]
    header.StudyInstanceUID = phantom.uid("study")
    header.SeriesInstanceUID = phantom.uid("series", "MASK" if mask else "CT")
    header.FrameOfReferenceUID = phantom.uid("frame of reference")
    width = style.mask_value * max(1, phantom.label.max().item()) if mask else 400
    header.WindowCenter, header.WindowWidth = width / 2 if mask else 40, width
    header.KVP, header.SamplesPerPixel, header.PhotometricInterpretation = 120, 1, "MONOCHROME2"
    header.Columns, header.Rows = phantom.label.shape[:2]
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    slope, intercept, signed = style.storage[mask]
    header.PixelRepresentation = int(signed)
    header.RescaleSlope, header.RescaleIntercept, header.RescaleType = slope, intercept, "HU"
    x_mm, y_mm, z_mm = np.abs(np.diag(phantom.affine)[:3]).tolist()
    header.PixelSpacing, header.ImageOrientationPatient = [y_mm, x_mm], [1, 0, 0, 0, 1, 0]
    header.SliceThickness = header.SpacingBetweenSlices = z_mm
    return header
