"""Simulates one patient from seed to files."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pancseg.simulation.anatomy import Anatomy
from pancseg.simulation.dicom_series import SeriesStyle, Study, draw_style, write_ct, write_mask
from pancseg.simulation.lattice import Grid
from pancseg.simulation.noise import stream
from pancseg.simulation.scanner import draw_scanner, quantised, scan
from pancseg.simulation.tissue import Tissue

MARGIN_MM = 8.0
WANDER_MM = 40.0


@dataclass(frozen=True)
class Phantom:
    """A simulated patient on the grid of one scan.

    Attributes:
        patient: Name of the folder and PatientID, ``phantom-<seed>-<index>``.
        seed: Of the whole group of patients.
        index: Of this patient in it.
        image_hu: ``(columns, rows, slices)`` int16 CT, slice 0 nearest the feet.
        label: ``(columns, rows, slices)`` uint8, 1 in the pancreas.
        tissue: ``(columns, rows, slices)`` uint8 of ``Tissue`` values.
        affine: ``(4, 4)`` voxel to RAS mm.
        phase: Contrast phase.
        noise_hu: Standard deviation of the noise that was added.
        style: How its DICOM series are stored.
    """

    patient: str
    seed: int
    index: int
    image_hu: NDArray[np.int16]
    label: NDArray[np.uint8]
    tissue: NDArray[np.uint8]
    affine: NDArray[np.float64]
    phase: str
    noise_hu: float
    style: SeriesStyle


def simulate_patient(
    seed: int,
    index: int,
    shape: tuple[int, int, int] = (256, 256, 180),
    spacing_mm: tuple[float, float, float] = (1.5, 1.5, 2.0),
) -> Phantom:
    """Simulate one patient; the same seed and index give the same anatomy on every grid.

    Args:
        seed: Of the whole group.
        index: Of the patient, 0 or more.
        shape: Columns, rows, slices.
        spacing_mm: Between columns, rows, slices.
    """
    anatomy = Anatomy(seed, index)
    grid = place_scan(anatomy, shape, spacing_mm, stream(seed, index, "scan place"))
    tissue = anatomy.sample(grid)
    scanner = draw_scanner(stream(seed, index, "scanner"))
    style = draw_style(stream(seed, index, "dicom style"))
    hu = scan(tissue, grid, scanner, stream(seed, index, "noise"))
    return Phantom(
        patient=f"phantom-{seed}-{index:03d}",
        seed=seed,
        index=index,
        image_hu=quantised(hu, style.step_hu).T,
        label=(tissue == Tissue.PANCREAS).astype(np.uint8).T,
        tissue=tissue.T,
        affine=grid.affine,
        phase=scanner.phase,
        noise_hu=scanner.noise_hu,
        style=style,
    )


def place_scan(
    anatomy: Anatomy,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    rng: np.random.Generator,
) -> Grid:
    """Centre the scan on the body, and on the pancreas in height.

    A scan that is long enough wanders up or down by as much as keeps the pancreas inside.
    """
    low, high = anatomy.pancreas_reach_mm()
    length = (shape[2] - 1) * spacing_mm[2]
    spare = max(0.0, (length - (high - low)) / 2 - MARGIN_MM)
    shift = rng.uniform(-1, 1, 3) * [10, 10, min(WANDER_MM, spare)]
    centre = np.array([*anatomy.body.centre_mm[:2], (low + high) / 2]) + shift
    half = (np.array(shape) - 1) * spacing_mm / 2 * [1, 1, -1]
    x, y, z = np.round(centre + half, 3).tolist()
    return Grid(shape, spacing_mm, (x, y, z))


def write_patient(phantom: Phantom, out: Path) -> None:
    """Write CT and mask as DICOM, and the truth as NIfTI.

    Args:
        phantom: What to write.
        out: Root of ``images/``, ``labels/`` and ``truth/``.
    """
    study = Study(phantom.patient, phantom.seed, phantom.index, phantom.phase, phantom.affine)
    write_ct(out / "images" / phantom.patient, phantom.image_hu, study, phantom.style)
    write_mask(out / "labels" / phantom.patient, phantom.label, study, phantom.style)
    truth = out / "truth"
    truth.mkdir(parents=True, exist_ok=True)
    for name, data in (("image", phantom.image_hu), ("label", phantom.label)):
        picture = nib.Nifti1Image(data, phantom.affine)
        picture.set_sform(phantom.affine, code=1)
        picture.set_qform(phantom.affine, code=1)
        picture.header.set_xyzt_units("mm")
        nib.save(picture, truth / f"{phantom.patient}_{name}.nii.gz")
