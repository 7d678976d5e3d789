"""The sources of two public data sets, 3D-IRCADb and TCIA Pancreas-CT."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from pancseg.errors import PancsegError
from pancseg.geometry import oriented_like
from pancseg.intake.sources import find_ircadb, find_nih
from pancseg.structures import LabelMap
from tests.source_contents import codes_of, options, patients, skipped
from tests.tiny_dicom import write_series

# 3D-IRCADb

SHAPE = (20, 24, 7)  # columns, rows, slices
AFFINE = np.array([[-3.5, 0, 0, 30], [0, -3, 0, 36], [0, 0, 5, 12], [0, 0, 0, 1]])
PATIENTS = ["3Dircadb1.1", "3Dircadb1.2"]


def hu_of(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(-1000, 1500, SHAPE).astype(np.int16)


def mask_of(n: int, organ: str) -> np.ndarray:
    left = {"pancreas": 3, "liver": 11}[organ] + n
    mask = np.zeros(SHAPE, np.uint8)
    mask[left : left + 5, 6 : 16 + n, 1:6] = 1
    return mask


def anonymous(*, is_mask: bool) -> Callable[[list[Dataset]], None]:
    """A study for each series, no frame of reference; masks of 8 bits, 0 and 255."""

    def damage(slices: list[Dataset]) -> None:
        study = generate_uid()
        for dataset in slices:
            dataset.StudyInstanceUID, dataset.PatientName = study, ""
            del dataset.FrameOfReferenceUID
            if is_mask:
                dataset.BitsAllocated = dataset.BitsStored = 8
                dataset.HighBit, dataset.PixelRepresentation = 7, 0
                dataset.PixelData = dataset.PixelData[::2]
                del dataset.RescaleSlope, dataset.RescaleIntercept

    return damage


def write(folder: Path, pixels: np.ndarray, *, is_mask: bool = False) -> None:
    write_series(
        folder,
        pixels=pixels.T,
        first=(-30.0, -36.0, 12.0),
        gap_mm=5.0,
        pixel_spacing=(3.0, 3.5),
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
        write(patient / "LABELLED_DICOM", mask_of(n, "pancreas"))
        for organ in ("pancreas", "liver"):
            mask = 255 * mask_of(n, organ).astype(int)
            write(patient / "MASKS_DICOM" / organ, mask, is_mask=True)
        (patient / "MESHES_VTK").mkdir()
        (patient / "MESHES_VTK" / "liver.vtk").write_text("# vtk DataFile Version 3.0\n")
    return tmp_path / "3Dircadb1"


@pytest.mark.parametrize("organ", ["pancreas", "liver"])
def test_every_patient_has_its_own_mask_of_the_organ(folder: Path, organ: str) -> None:
    contents = find_ircadb(folder, organ, options())
    assert (patients(contents), contents.skipped, contents.warnings) == (PATIENTS, [], [])
    for n, case in enumerate(contents.cases):
        scan = case.read_image()
        np.testing.assert_array_equal(scan.image.dataobj, hu_of(n))
        np.testing.assert_allclose(scan.image.affine, AFFINE, atol=1e-4)
        np.testing.assert_array_equal(codes_of(case), mask_of(n, organ))


def test_a_patient_without_the_organ_is_refused_and_the_others_are_cases(folder: Path) -> None:
    shutil.rmtree(folder / PATIENTS[0] / "MASKS_DICOM" / "pancreas")
    contents = find_ircadb(folder, "pancreas", options())
    assert patients(contents) == PATIENTS[1:]
    assert skipped(contents) == [("PATIENT_DICOM", "image", "no_label")]
    assert contents.skipped[0].path == folder / PATIENTS[0] / "PATIENT_DICOM"


def test_an_organ_that_nobody_has_is_an_error_that_names_the_others(folder: Path) -> None:
    with pytest.raises(PancsegError, match=r"source.organ=spleen: .* liver, pancreas"):
        find_ircadb(folder, "spleen", options())


def test_packed_archives_are_an_error_that_says_so(folder: Path) -> None:
    for name in PATIENTS:
        shutil.rmtree(folder / name / "PATIENT_DICOM")
        (folder / name / "PATIENT_DICOM.zip").write_bytes(b"PK")
    with pytest.raises(PancsegError, match=r"PATIENT_DICOM\.zip and MASKS_DICOM\.zip unpacked"):
        find_ircadb(folder, "pancreas", options())


@pytest.mark.parametrize("path", ["..", PATIENTS[0], f"{PATIENTS[0]}/PATIENT_DICOM"])
def test_a_folder_too_high_or_too_low_is_an_error(folder: Path, path: str) -> None:
    with pytest.raises(PancsegError, match=r"give the folder of 3Dircadb1\.1"):
        find_ircadb((folder / path).resolve(), "pancreas", options())


# TCIA Pancreas-CT

FIRST, SPACING_MM = (-10.0, -20.0, 30.0), (0.5, 0.8, 2.5)  # as tiny_dicom writes them, LPS
TRUTH = np.random.default_rng(5).integers(0, 2, (3, 4, 5))  # columns, rows, slices of the DICOM


def write_nih(root: Path, number: int = 1, *, patient_id: str | None = None) -> tuple[Path, Path]:
    """A scan whose HU are 100 in the organ and 0 around it, without its label."""
    images, labels = root / "Pancreas-CT", root / "TCIA_pancreas_labels-02-05-2017"
    labels.mkdir(parents=True, exist_ok=True)
    name = f"PANCREAS_{number:04}"
    folder = images / name / "11-24-2015-PANCREAS0001" / "Pancreas-63502"
    write_series(
        folder, pixels=100 * TRUTH.T, patient_id=name if patient_id is None else patient_id
    )
    return images, labels


def write_label(
    labels: Path,
    signs: tuple[int, int, int] = (-1, 1, 1),
    *,
    scale: float | tuple[float, float, float] = 1.0,
    origin: tuple[float, float, float] = (0, 0, 0),
    number: int = 1,
    voxels: np.ndarray = TRUTH[:, ::-1],
) -> None:
    """A label whose rows run against those of the DICOM, as in these files."""
    affine = np.diag([*np.multiply(signs, SPACING_MM) * scale, 1.0])
    affine[:3, 3] = origin
    file = labels / f"label{number:04}.nii.gz"
    nib.save(nib.Nifti1Image(voxels.astype("uint8"), affine), file)


def read_both(images: Path, labels: Path) -> tuple[nib.Nifti1Image, LabelMap, np.ndarray]:
    """Image, label, and the label's voxels with the axes of the image."""
    [case] = pickle.loads(pickle.dumps(find_nih(images, labels, options()).cases))
    scan = case.read_image()
    label = case.read_label(scan)
    return scan.image, label, np.asarray(oriented_like(label.image, scan.image).dataobj)


def test_a_label_without_origin_lands_on_its_scan_voxel_for_voxel(tmp_path: Path) -> None:
    images, labels = write_nih(tmp_path)
    write_label(labels)
    image, label, voxels = read_both(images, labels)
    np.testing.assert_array_equal(voxels, np.asarray(image.dataobj) == 100)
    np.testing.assert_array_equal(voxels, TRUTH)
    np.testing.assert_allclose(label.image.affine, image.affine)
    assert label.flags == ("label_placed_by_axes",)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_label_of_the_opposite_direction_lands_the_opposite_way(
    tmp_path: Path, axis: int
) -> None:
    images, labels = write_nih(tmp_path)
    signs = [-1, 1, 1]
    signs[axis] *= -1
    write_label(labels, (signs[0], signs[1], signs[2]))
    _, label, voxels = read_both(images, labels)
    np.testing.assert_array_equal(voxels, np.flip(TRUTH, axis))
    assert not np.array_equal(voxels, TRUTH)
    assert label.flags == ("label_placed_by_axes",)


def test_a_label_that_lies_on_its_scan_is_not_flagged(tmp_path: Path) -> None:
    images, labels = write_nih(tmp_path)
    right, back, feet = -FIRST[0], -FIRST[1] - 3 * SPACING_MM[1], FIRST[2]
    write_label(labels, origin=(right, back, feet))
    image, label, voxels = read_both(images, labels)
    np.testing.assert_array_equal(voxels, TRUTH)
    np.testing.assert_allclose(oriented_like(label.image, image).affine, image.affine, atol=1e-5)
    assert label.flags == ()


@pytest.mark.parametrize(
    ("scale", "is_placed"), [(1.009, True), (1.02, False), (0.98, False), ((1, 1, 1.02), False)]
)
def test_a_label_of_other_spacing_stays_where_it_is(
    tmp_path: Path, scale: float | tuple[float, float, float], is_placed: bool
) -> None:
    images, labels = write_nih(tmp_path)
    write_label(labels, scale=scale)
    image, label, _ = read_both(images, labels)
    assert (label.flags == ("label_placed_by_axes",)) == is_placed
    assert np.allclose(label.image.affine, image.affine) == is_placed


def test_a_label_of_other_shape_stays_where_it_is(tmp_path: Path) -> None:
    images, labels = write_nih(tmp_path)
    write_label(labels, voxels=TRUTH[:, :3])
    _, label, _ = read_both(images, labels)
    assert (label.image.shape, label.flags) == ((3, 3, 5), ())


@pytest.mark.parametrize("patient_id", ["PANCREAS_0007", ""])
def test_scans_and_labels_match_by_number(tmp_path: Path, patient_id: str) -> None:
    images, labels = write_nih(tmp_path, 7, patient_id=patient_id)
    write_nih(tmp_path, 12)
    write_label(labels, number=7)
    write_label(labels, number=12)
    contents = find_nih(images, labels, options())
    assert [(case.patient, case.label_path) for case in contents.cases] == [
        ("PANCREAS_0007", labels / "label0007.nii.gz"),
        ("PANCREAS_0012", labels / "label0012.nii.gz"),
    ]
    first = contents.cases[0]
    assert first.path == images / "PANCREAS_0007" / "11-24-2015-PANCREAS0001" / "Pancreas-63502"
    assert (len(first.files), bool(first.study_uid)) == (6, True)
    assert contents.skipped == []


def test_scans_and_labels_without_partner_or_with_two_are_refused(tmp_path: Path) -> None:
    for number in (1, 2, 3, 4):
        images, labels = write_nih(tmp_path, number)
    write_series(images / "PANCREAS_0003" / "again", patient_id="PANCREAS_0003")
    write_series(images / "other", patient_id="X")
    write_series(images / "PANCREAS_0001" / "report", modality="SR", patient_id="PANCREAS_0001")
    for number in (1, 3, 4, 5):
        write_label(labels, number=number)
    shutil.copy(labels / "label0004.nii.gz", labels / "label4.nii.gz")
    shutil.copy(labels / "label0004.nii.gz", labels / "average.nii.gz")
    (labels / "README.txt").touch()
    contents = find_nih(images, labels, options())
    assert patients(contents) == ["PANCREAS_0001"]
    assert sorted((kind, code) for _, kind, code in skipped(contents)) == [
        ("image", "ambiguous_label"),
        ("image", "no_label"),
        ("image", "no_label"),
        ("image", "no_label"),
        ("image", "no_number"),
        ("image", "not_ct"),
        ("label", "ambiguous_label"),
        ("label", "ambiguous_label"),
        ("label", "ambiguous_label"),
        ("label", "no_image"),
        ("label", "no_number"),
    ]
    assert skipped(contents, "dropped") == [("README.txt", "other", "empty_file")]


def test_scans_may_stand_alone(tmp_path: Path) -> None:
    images, _ = write_nih(tmp_path)
    [case] = find_nih(images, None, options()).cases
    assert (case.read_label, case.label_path, len(case.files)) == (None, None, 5)
