"""Scans and masks read by software that shares no code with pancseg, on a known grid."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from matplotlib.path import Path as Polygon

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_with_simpleitk(path: Path) -> SimpleITK.Image:
    """A folder of DICOM, sorted by GDCM, or a file, alone in its folder or not."""
    files = list(path.glob("*"))
    path = files[0] if len(files) == 1 else path
    if not path.is_dir():
        return SimpleITK.ReadImage(str(path))
    reader = SimpleITK.ImageSeriesReader()
    (uid,) = reader.GetGDCMSeriesIDs(str(path))
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path), uid))
    return reader.Execute()


def by_simpleitk(path: Path) -> nib.Nifti1Image:
    image = read_with_simpleitk(path)
    axes = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine = LPS_TO_RAS @ nib.affines.from_matvec(axes, image.GetOrigin())
    values = SimpleITK.GetArrayFromImage(image).T
    return nib.Nifti1Image(values, affine, dtype=values.dtype)


def assert_same(ours: nib.Nifti1Image, theirs: nib.Nifti1Image) -> None:
    """Voxel for voxel, in value and position, whichever way the axes run."""
    ours, theirs = nib.as_closest_canonical(ours), nib.as_closest_canonical(theirs)
    np.testing.assert_array_equal(ours.dataobj, theirs.dataobj)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)


def on_grid(truth: nib.Nifti1Image, positions_ras: np.ndarray) -> np.ndarray:
    """The voxels of a grid at these positions, RAS mm; each position has to be a voxel's centre."""
    mask = np.zeros(truth.shape[:3], bool)
    positions = np.reshape(positions_ras, (-1, 3))
    index = nib.affines.apply_affine(np.linalg.inv(truth.affine), positions)
    nearest = np.rint(index).astype(int)
    np.testing.assert_allclose(index, nearest, atol=0.01)
    mask[tuple(nearest.T)] = True
    assert mask.sum() == len(nearest)
    return mask


def voxels_of(image: nib.Nifti1Image, truth: nib.Nifti1Image) -> np.ndarray:
    """Where an image is not 0, on a grid that may have other axes and more slices."""
    voxels = np.argwhere(np.asanyarray(image.dataobj))
    return on_grid(truth, nib.affines.apply_affine(image.affine, voxels))


def run(program: str, package: str, *arguments: object) -> list[str]:
    """Lines that a program prints; the test is skipped where it is not installed."""
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here (apt-get install {package})")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True)
    assert done.returncode == 0 or program == "dciodvfy", done.stderr
    return (done.stdout + done.stderr).decode(errors="replace").splitlines()


def errors_of(file: Path) -> list[str]:
    """Errors that dciodvfy, David Clunie's validator, finds in a file."""
    output = run("dciodvfy", "dicom3tools", file)
    assert output  # it names at least the kind of object
    return [line for line in output if line.startswith("Error")]


def seg_by_simpleitk(file: Path, truth: nib.Nifti1Image, segment: int = 1) -> np.ndarray:
    """Frames of a segment of a SEG decoded by GDCM, each at the position in its header."""
    frames = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))) > 0
    header = pydicom.dcmread(file, stop_before_pixels=True)
    shared = header.SharedFunctionalGroupsSequence[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    row, column = np.reshape(orientation, (2, 3)).astype(float)
    rows_mm, columns_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    positions = []
    for frame, own in zip(frames, header.PerFrameFunctionalGroupsSequence, strict=True):
        identified = own if "SegmentIdentificationSequence" in own else shared
        if identified.SegmentIdentificationSequence[0].ReferencedSegmentNumber == segment:
            corner = np.array(own.PlanePositionSequence[0].ImagePositionPatient, float)
            ij = np.argwhere(frame)
            positions.append(corner + ij @ [rows_mm * column, columns_mm * row])
    return on_grid(truth, np.concatenate([np.zeros((0, 3)), *positions]) * [-1, -1, 1])


def seg_by_dcmqi(file: Path, truth: nib.Nifti1Image, folder: Path, segment: int = 1) -> np.ndarray:
    """A segment of a SEG as dcmqi, on DCMTK, turns it into NIfTI."""
    dcmqi = pytest.importorskip("dcmqi", reason="dcmqi has no wheel for this machine")
    program = str(Path(dcmqi.__file__).parent / "bin" / "segimage2itkimage")
    where = ["--outputDirectory", folder, "--prefix", "dcmqi", "--outputType", "nii"]
    output = run(program, "dcmqi", "--inputDICOM", file, *where)
    assert [line for line in output if line.startswith(("W:", "E:"))] == []
    return voxels_of(nib.load(folder / f"dcmqi-{segment}.nii.gz"), truth)


def rtstruct_by_matplotlib(file: Path, series: Path, truth: nib.Nifti1Image, roi: int = 1) -> Any:
    """Contours of an ROI put by SimpleITK onto the series as it reads it, then filled."""
    image = read_with_simpleitk(series)
    centres = np.stack(np.indices(image.GetSize()[:2]), axis=-1).reshape(-1, 2)
    positions = []
    for contour in pydicom.dcmread(file).ROIContourSequence[roi - 1].get("ContourSequence", []):
        points = np.reshape(contour.ContourData, (-1, 3)).astype(float).tolist()
        pixels = np.array(list(map(image.TransformPhysicalPointToContinuousIndex, points)))
        k = int(np.rint(pixels[0, 2]))
        np.testing.assert_allclose(pixels[:, 2], k, atol=0.01)
        inside = centres[Polygon(pixels[:, :2]).contains_points(centres)].tolist()
        positions += [image.TransformIndexToPhysicalPoint((i, j, k)) for i, j in inside]
    return on_grid(truth, np.reshape(positions, (-1, 3)) * [-1, -1, 1])


def rtstruct_by_plastimatch(file: Path, series: Path, truth: Any, folder: Path, name: str) -> Any:
    """An ROI as plastimatch fills it on its series."""
    where = ["--output-prefix", folder / "plastimatch", "--prefix-format", "nii.gz"]
    run("plastimatch", "plastimatch", "convert", "--input", file, "--referenced-ct", series, *where)
    return voxels_of(nib.load(folder / "plastimatch" / f"{name}.nii.gz"), truth)
