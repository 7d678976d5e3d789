"""A made copy of 3D-IRCADb's layout: scans and masks of one organ, tied by path alone."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from tests.conftest import Command, Ended
from tests.tiny_dicom import write_series

SHAPE = (20, 24, 7)  # columns, rows, slices
FIRST, SPACING, GAP_MM = (-30.0, -36.0, 12.0), (3.0, 3.5), 5.0
AFFINE = np.array([[-3.5, 0, 0, 30], [0, -3, 0, 36], [0, 0, 5, 12], [0, 0, 0, 1]])
PATIENTS = ("3Dircadb1.1", "3Dircadb1.2")


def hu_of(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(-1000, 1500, SHAPE).astype(np.int16)


def organ_of(n: int, organ: str) -> np.ndarray:
    left = {"pancreas": 3, "liver": 11}[organ] + n
    mask = np.zeros(SHAPE, np.uint8)
    mask[left : left + 5, 6 : 16 + n, 1:6] = 1
    return mask


def anonymous(*, is_mask: bool) -> Callable[[list[Dataset]], None]:
    """As these files are: one study a series, no frame of reference; masks of 8 bits, 0 and 255."""

    def damage(slices: list[Dataset]) -> None:
        study = generate_uid()
        for one in slices:
            one.StudyInstanceUID, one.PatientName = study, ""
            del one.FrameOfReferenceUID
            if is_mask:
                one.BitsAllocated = one.BitsStored = 8
                one.HighBit, one.PixelRepresentation = 7, 0
                one.PixelData = one.PixelData[::2]
                del one.RescaleSlope, one.RescaleIntercept

    return damage


def write(folder: Path, pixels: np.ndarray, *, is_mask: bool = False) -> None:
    write_series(
        folder,
        pixels=pixels.T,
        first=FIRST,
        gap_mm=GAP_MM,
        pixel_spacing=SPACING,
        patient_id="",
        names=[f"image_{n}" for n in range(SHAPE[2])],
        damage=anonymous(is_mask=is_mask),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two patients with a pancreas and a liver each."""
    for n, name in enumerate(PATIENTS):
        patient = tmp_path / "3Dircadb1" / name
        write(patient / "PATIENT_DICOM", hu_of(n))
        labelled = np.zeros(SHAPE, np.int16)
        for number, organ in enumerate(("pancreas", "liver"), start=1):
            mask = organ_of(n, organ)
            labelled[mask == 1] = number
            write(patient / "MASKS_DICOM" / organ, 255 * mask.astype(int), is_mask=True)
        write(patient / "LABELLED_DICOM", labelled)
        (patient / "MESHES_VTK").mkdir()
        (patient / "MESHES_VTK" / "liver.vtk").write_text("# vtk DataFile Version 3.0\n")
    return tmp_path / "3Dircadb1"


def prepare(command: Command, folder: Path, *arguments: str) -> Ended:
    where = [f"source.folder={folder}", "data.root=r", "data.depth=4"]
    settings = ["privacy=none", "processes=0", "checks.volume_ml=[1, 300]"]
    return command("prepare", "source=ircadb", *where, *settings, *arguments)


def rows_of(kind: str = "image") -> list[dict[str, str]]:
    with Path("r/intake.csv").open(newline="") as table:
        return [row for row in csv.DictReader(table) if row["kind"] == kind]


def assert_holds(case: str, role: str, truth: np.ndarray) -> None:
    image = nib.load(Path("r") / "cases" / f"{case}_{role}.nii.gz")
    np.testing.assert_array_equal(image.dataobj, truth)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)


def test_every_patient_has_its_own_pancreas(folder: Path, command: Command) -> None:
    ended = prepare(command, folder)
    assert ended.code == 0, ended.err
    assert [row["patient"] for row in rows_of()] == list(PATIENTS)
    for n, name in enumerate(PATIENTS):
        assert_holds(name, "image", hu_of(n))
        assert_holds(name, "label", organ_of(n, "pancreas"))
    assert len(rows_of("label")) == 2
    assert "two_names" not in {flag for row in rows_of() for flag in row["flags"].split()}


def test_another_organ_can_be_chosen(folder: Path, command: Command) -> None:
    ended = prepare(command, folder, "source.organ=liver")
    assert ended.code == 0, ended.err
    for n, name in enumerate(PATIENTS):
        assert_holds(name, "label", organ_of(n, "liver"))


def test_a_patient_without_the_organ_is_refused_and_the_rest_is_done(
    folder: Path, command: Command
) -> None:
    shutil.rmtree(folder / PATIENTS[0] / "MASKS_DICOM" / "pancreas")
    ended = prepare(command, folder)
    assert ended.code == 1
    assert "1 refused, the rest is done" in ended.err
    without, whole = rows_of()
    assert (without["status"], without["reason"]) == (
        "refused",
        "no_label: no label belongs to this series",
    )
    assert without["path"] == str(folder / PATIENTS[0] / "PATIENT_DICOM")
    assert whole["status"] == "kept"
    assert_holds(PATIENTS[1], "image", hu_of(1))
    assert_holds(PATIENTS[1], "label", organ_of(1, "pancreas"))


def test_a_mask_that_lacks_a_slice_is_refused_and_the_rest_is_done(
    folder: Path, command: Command
) -> None:
    (folder / PATIENTS[0] / "MASKS_DICOM" / "pancreas" / "image_3").unlink()
    assert prepare(command, folder).code == 1
    bad, good = rows_of()
    assert (bad["status"], good["status"]) == ("refused", "kept")
    assert bad["reason"].startswith("missing_slice: ")


def told(ended: Ended, sentence: str) -> bool:
    """Whether the command could not start, told in one line."""
    lines = ended.err.splitlines()
    return ended.code == 2 and len(lines) == 1 and sentence in lines[0]


def test_an_organ_that_nobody_has_is_told_by_its_name(folder: Path, command: Command) -> None:
    assert told(prepare(command, folder, "source.organ=spleen"), "spleen")


def test_packed_archives_are_told(folder: Path, command: Command) -> None:
    for name in PATIENTS:
        shutil.rmtree(folder / name / "PATIENT_DICOM")
        (folder / name / "PATIENT_DICOM.zip").write_bytes(b"PK")
    assert told(prepare(command, folder), "unpack PATIENT_DICOM.zip and MASKS_DICOM.zip")


@pytest.mark.parametrize("place", ["..", PATIENTS[0], f"{PATIENTS[0]}/PATIENT_DICOM"])
def test_a_folder_too_high_or_too_low_is_told(folder: Path, command: Command, place: str) -> None:
    ended = prepare(command, (folder / place).resolve())
    assert told(ended, "give the folder that holds 3Dircadb1.1, 3Dircadb1.2"), ended.err
