"""Masks read by software that shares no code with pancseg, on a known grid."""

import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from matplotlib.path import Path as Polygon

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def on_grid(truth: nib.Nifti1Image, positions_ras: np.ndarray) -> np.ndarray:
    """The voxels of a grid at these positions, RAS mm; each position has to be a voxel's centre."""
    mask = np.zeros(truth.shape[:3], bool)
    index = nib.affines.apply_affine(
        np.linalg.inv(truth.affine), np.reshape(positions_ras, (-1, 3))
    )
    nearest = np.rint(index).astype(int)
    np.testing.assert_allclose(index, nearest, atol=0.01)
    mask[tuple(nearest.T)] = True
    assert mask.sum() == len(nearest)
    return mask


def voxels_of(image: nib.Nifti1Image, truth: nib.Nifti1Image) -> np.ndarray:
    """Where an image is not 0, on a grid that may have other axes and more slices."""
    voxels = np.argwhere(np.asanyarray(image.dataobj))
    return on_grid(truth, nib.affines.apply_affine(image.affine, voxels))


def run(*words: object) -> str:
    """Output of a program, which has to succeed."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def installed(program: str, package: str) -> str:
    """The path of a program; the test is skipped where there is none."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"no {program} here (apt-get install {package})")
    return path


def errors_of(file: Path) -> list[str]:
    """Errors that dciodvfy, David Clunie's validator, finds in a file."""
    done = subprocess.run([installed("dciodvfy", "dicom3tools"), file], capture_output=True)
    output = (done.stdout + done.stderr).decode(errors="replace").splitlines()
    assert output  # it names at least the kind of object
    return [line for line in output if line.startswith("Error")]


def seg_by_simpleitk(file: Path, truth: nib.Nifti1Image, segment: int = 1) -> np.ndarray:
    """Frames of a segment of a SEG decoded by GDCM, each at the position in its header."""
    frames = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))) > 0
    header = pydicom.dcmread(file, stop_before_pixels=True)
    shared = header.SharedFunctionalGroupsSequence[0]
    row, column = np.reshape(
        shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)
    ).astype(float)
    rows_mm, columns_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    positions = []
    for frame, own in zip(frames, header.PerFrameFunctionalGroupsSequence, strict=True):
        identified = own if "SegmentIdentificationSequence" in own else shared
        if identified.SegmentIdentificationSequence[0].ReferencedSegmentNumber != segment:
            continue
        corner = np.array(own.PlanePositionSequence[0].ImagePositionPatient, float)
        for i, j in np.argwhere(frame):
            positions.append(corner + j * columns_mm * row + i * rows_mm * column)
    return on_grid(truth, np.reshape(positions, (-1, 3)) * [-1, -1, 1])


def seg_by_dcmqi(file: Path, truth: nib.Nifti1Image, folder: Path, segment: int = 1) -> np.ndarray:
    """A segment of a SEG as dcmqi, on DCMTK, turns it into NIfTI."""
    dcmqi = pytest.importorskip("dcmqi", reason="dcmqi has no wheel for this machine")
    program = Path(dcmqi.__file__).parent / "bin" / "segimage2itkimage"
    where = ["--outputDirectory", folder, "--prefix", "dcmqi", "--outputType", "nii"]
    output = run(program, "--inputDICOM", file, *where).splitlines()
    assert [line for line in output if line.startswith(("W:", "E:"))] == []
    return voxels_of(nib.load(folder / f"dcmqi-{segment}.nii.gz"), truth)


def rtstruct_by_matplotlib(
    file: Path, series: Path, truth: nib.Nifti1Image, roi: int = 1
) -> np.ndarray:
    """Contours of an ROI put by SimpleITK onto the series as it reads it, then filled."""
    reader = SimpleITK.ImageSeriesReader()
    (uid,) = reader.GetGDCMSeriesIDs(str(series))
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series), uid))
    image = reader.Execute()
    columns, rows, _ = image.GetSize()
    centres = np.stack(np.indices((columns, rows)), axis=-1).reshape(-1, 2)
    positions = []
    for contour in pydicom.dcmread(file).ROIContourSequence[roi - 1].get("ContourSequence", []):
        points = np.reshape(contour.ContourData, (-1, 3)).astype(float)
        put = image.TransformPhysicalPointToContinuousIndex
        pixels = np.array([put(point.tolist()) for point in points])
        (k,) = set(np.rint(pixels[:, 2]).astype(int).tolist())
        np.testing.assert_allclose(pixels[:, 2], k, atol=0.01)
        inside = Polygon(pixels[:, :2]).contains_points(centres)
        for i, j in centres[inside].tolist():
            positions.append(image.TransformIndexToPhysicalPoint((i, j, int(k))))
    return on_grid(truth, np.reshape(positions, (-1, 3)) * [-1, -1, 1])


def rtstruct_by_plastimatch(
    file: Path, series: Path, truth: nib.Nifti1Image, folder: Path, name: str = "Pancreas"
) -> np.ndarray:
    """An ROI as plastimatch fills it on its series."""
    program = installed("plastimatch", "plastimatch")
    where = ["--output-prefix", folder / "plastimatch", "--prefix-format", "nii.gz"]
    run(program, "convert", "--input", file, "--referenced-ct", series, *where)
    return voxels_of(nib.load(folder / "plastimatch" / f"{name}.nii.gz"), truth)
