"""Masks of ``predict`` in three formats and four geometries, as other software reads them."""

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from pancseg.dicom.labels import read_rtstruct, read_segmentation
from pancseg.dicom.series import Repair, Scan, read_series
from pancseg.inference.predictor import load_segmenter
from tests.conftest import SHALLOW, Command, run_command
from tests.other_software import (
    LPS_TO_RAS,
    rtstruct_by_matplotlib,
    seg_by_simpleitk,
    voxels_of,
)
from tests.tiny_dicom import AXIAL, write_series
from tests.tiny_labels import structures

SIDE_MM = 8.0
DENSE_HU = 100  # bone: a network of two epochs finds that rather than a pancreas
OBLIQUE = (0.936293, 0.275096, -0.218351, -0.289629, 0.956425, -0.036957)
FEET_FIRST = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # on the back
Where = tuple[str, tuple[float, ...], tuple[float, float]]
GEOMETRIES: dict[str, Where] = {  # phantom, rows and columns, pixel spacing
    "axial": ("phantom-3-000", AXIAL, (SIDE_MM, SIDE_MM)),
    "oblique": ("phantom-3-000", OBLIQUE, (SIDE_MM, SIDE_MM)),
    "feet_first": ("phantom-3-004", FEET_FIRST, (SIDE_MM, SIDE_MM)),
    "non_square": ("phantom-3-004", AXIAL, (7.0, 9.0)),
}


@dataclass(frozen=True)
class Predicted:
    """Output of a command for four series.

    Attributes:
        scans: Folder of ``images/<geometry>`` and ``labels/<geometry>``.
        out: Folder of masks.
        rows: Of the table, by geometry.
        threshold: Word of the command line.
    """

    scans: Path
    out: Path
    rows: dict[str, dict[str, str]]
    threshold: str

    def file(self, name: str, end: str) -> Path:
        return self.out / f"{self.rows[name]['case']}{end}"

    def scan(self, name: str) -> Scan:
        return read_series(tuple((self.scans / "images" / name).iterdir()), Repair())

    def mask(self, name: str) -> nib.Nifti1Image:
        return nib.load(self.file(name, "_pancreas.nii.gz"))


def stored(dicom: Path, name: str) -> np.ndarray:
    """HU of a phantom, ``(slices, rows, columns)``, as a scanner stores them; no two are equal."""
    image = nib.load(dicom / "truth" / f"{GEOMETRIES[name][0]}_image.nii.gz")
    values = np.asarray(image.dataobj).T + list(GEOMETRIES).index(name)
    return values[::-1, :, ::-1] if name == "feet_first" else values


def affine_of(name: str) -> np.ndarray:
    """From column, row and slice to RAS mm by DICOM PS3.3 C.7.6.2.1.1, as ``write_series`` does."""
    _, orientation, spacing = GEOMETRIES[name]
    row, column = np.reshape(orientation, (2, 3))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * spacing[1], column * spacing[0]
    affine[:3, 2], affine[:3, 3] = np.cross(row, column) * SIDE_MM, (-10, -20, 30)
    return LPS_TO_RAS @ affine


def write_pair(folder: Path, dicom: Path, name: str) -> None:
    """Write a phantom in a geometry, with its dense voxels as label."""
    phantom, orientation, spacing = GEOMETRIES[name]
    frame, study = generate_uid(), generate_uid()

    def share_uids(slices: list[Dataset]) -> None:
        for dataset in slices:
            dataset.FrameOfReferenceUID, dataset.StudyInstanceUID = frame, study
            if name == "oblique":
                dataset.SpecificCharacterSet = ""  # as anonymisers leave it
            else:  # which they drop, too
                dataset.SliceThickness = SIDE_MM

    hu = stored(dicom, name)
    for kind, values in (("images", hu), ("labels", hu > DENSE_HU)):
        write_series(
            folder / kind / name,
            pixels=values,
            gap_mm=SIDE_MM,
            orientation=orientation,
            pixel_spacing=spacing,
            patient_id=phantom,
            damage=share_uids,
        )


@pytest.fixture(scope="module")
def predicted(trained: Path, dicom: Path, tmp_path_factory: pytest.TempPathFactory) -> Predicted:
    """Four series by the command, at a threshold that makes about 1 % of a scan a mask."""
    scans, out = tmp_path_factory.mktemp("scans"), tmp_path_factory.mktemp("masks")
    for name in GEOMETRIES:
        write_pair(scans, dicom, name)
    best = trained / "checkpoints" / "best.ckpt"
    image = nib.load(dicom / "truth" / "phantom-3-000_image.nii.gz")
    level = np.quantile(load_segmenter(best).predict(image, 0.0).probability, 0.99)
    threshold = f"postprocess.threshold={level:.6f}"
    words = [f"checkpoint={best}", f"input={scans / 'images'}", f"output={out}", threshold]
    assert run_command("predict", *words, "rtstruct=true") == 0
    rows = csv.DictReader((out / "predictions.csv").read_text().splitlines())
    return Predicted(scans, out, {Path(row["path"]).name: row for row in rows}, threshold)


@pytest.fixture(params=GEOMETRIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def truth(predicted: Predicted, name: str) -> nib.Nifti1Image:
    """The grid as it is known beforehand, with the mask that the NIfTI file has there."""
    grid = nib.Nifti1Image(np.zeros((48, 48, 40)), affine_of(name))
    mask = voxels_of(predicted.mask(name), grid)
    assert 100 < mask.sum() < 20_000
    return nib.Nifti1Image(mask.astype(np.uint8), grid.affine)


def test_seg_and_rtstruct_hold_the_mask_of_the_nifti_file(
    predicted: Predicted, name: str, truth: nib.Nifti1Image
) -> None:
    assert predicted.rows[name]["reason"] == ""
    seg, rtstruct = (predicted.file(name, f"_pancreas{end}.dcm") for end in ("", "_rtstruct"))
    stack, images = predicted.scan(name).stack, predicted.scans / "images" / name
    assert stack is not None
    chosen = structures(["15776009"])
    for found in (
        seg_by_simpleitk(seg, truth),
        rtstruct_by_matplotlib(rtstruct, images, truth),
        voxels_of(read_segmentation(seg, stack, chosen).image, truth),
        voxels_of(read_rtstruct(rtstruct, stack, chosen).image, truth),
    ):
        np.testing.assert_array_equal(found, np.asarray(truth.dataobj) > 0)


def test_faults_of_a_header_cost_no_mask_and_are_named_without_their_values(
    trained: Path, dicom: Path, tmp_path: Path, command: Command
) -> None:
    for name, keyword, value in (
        ("phantom-3-000", "StudyInstanceUID", ""),
        ("phantom-3-001", "PatientBirthDate", "11/12/1950"),
    ):
        shutil.copytree(dicom / "images" / name, tmp_path / "in" / name)
        for file in (tmp_path / "in" / name).iterdir():
            header = pydicom.dcmread(file)
            vr = header[keyword].VR
            header.add(DataElement(keyword, vr, value, validation_mode=pydicom.config.IGNORE))
            header.save_as(file)
    best, out = trained / "checkpoints" / "best.ckpt", tmp_path / "out"
    words = [f"checkpoint={best}", f"input={tmp_path / 'in'}", f"output={out}"]

    def files_of(*more: str) -> tuple[dict[str, str], dict[str, list[str]], dict[str, bytes]]:
        """Reasons, flags of files that are missing, and DICOM files, each by case."""
        ended = command("predict", *words, *more)
        assert ended.code == 0
        table = (out / "predictions.csv").read_text()
        assert "11/12/1950" not in table + ended.out + ended.err
        rows = list(csv.DictReader(table.splitlines()))
        flags = {row["case"]: [f for f in row["flags"].split() if f[:3] == "no_"] for row in rows}
        dicom_files = {file.name: file.read_bytes() for file in out.glob("*.dcm")}
        return {row["case"]: row["reason"] for row in rows}, flags, dicom_files

    missing = "the series has no StudyInstanceUID to refer to"
    empty = "invalid and left empty: PatientBirthDate"
    reasons, flags, files = files_of()
    (first, second) = reasons
    assert reasons == {first: f"seg_no_uid: {missing}", second: f"seg: {empty}"}
    assert flags == {first: ["no_seg"], second: []}
    assert list(files) == [f"{second}_pancreas.dcm"]  # rtstruct was not asked for
    reasons, flags, files = files_of("rtstruct=true")
    assert reasons == {
        first: f"seg_no_uid: {missing}; rtstruct_no_uid: {missing}",
        second: f"seg: {empty}; rtstruct: {empty}",
    }
    assert flags == {first: ["no_seg", "no_rtstruct"], second: []}
    assert sorted(files) == [f"{second}_pancreas.dcm", f"{second}_pancreas_rtstruct.dcm"]
    assert files_of("rtstruct=true") == (reasons, flags, files)  # done: UIDs would be new ones


def test_evaluate_computes_the_dice_of_the_mask_in_the_rtstruct(
    predicted: Predicted, trained: Path, dicom: Path, tmp_path: Path
) -> None:
    root, run = tmp_path / "prepared", tmp_path / "run"
    source = [f"source.{kind}={predicted.scans / kind}" for kind in ("images", "labels")]
    words = [f"data.root={root}", "privacy=none", *SHALLOW]
    assert run_command("prepare", *source, *words) == 0
    shutil.copytree(trained, run)
    best = run / "checkpoints" / "best.ckpt"
    where = [f"checkpoint={best}", f"data.root={root}", predicted.threshold]
    assert run_command("evaluate", *where) == 0
    with (root / "intake.csv").open(newline="") as table:
        cases = {
            Path(row["path"]).name: row["case"]
            for row in csv.DictReader(table)
            if row["kind"] == "image"
        }
    with (run / "scores" / "external_prepared.csv").open(newline="") as table:
        scored = {row["case"]: float(row["dice"]) for row in csv.DictReader(table)}
    assert len(scored) == len(GEOMETRIES)
    for name in GEOMETRIES:
        drawn = (stored(dicom, name) > DENSE_HU).T
        grid = nib.Nifti1Image(drawn.astype(np.uint8), affine_of(name))
        file = predicted.file(name, "_pancreas_rtstruct.dcm")
        found = rtstruct_by_matplotlib(file, predicted.scans / "images" / name, grid)
        dice = 2 * (found & drawn).sum() / (found.sum() + drawn.sum())
        assert 0.01 < dice < 0.9
        assert scored[cases[name]] == pytest.approx(dice, abs=1e-6)
