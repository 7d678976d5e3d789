"""Real scans and patient positions through the command, against SimpleITK's reading."""

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from nibabel import orientations

from tests.conftest import Command, Ended
from tests.tiny_dicom import write_series

Volume = nib.Nifti1Image
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Prepared:
    """A prepared folder and the output of the command."""

    root: Path
    ended: Ended

    def rows(self, kind: str = "image") -> list[dict[str, str]]:
        with (self.root / "intake.csv").open(newline="") as table:
            return [row for row in csv.DictReader(table) if row["kind"] == kind]

    def row(self) -> dict[str, str]:
        (row,) = self.rows()
        return row

    def volume(self, role: str = "image") -> Volume:
        return volume_of(self.root / "cases" / f"{self.row()['case']}_{role}.nii.gz")


def volume_of(file: Path) -> Volume:
    image: Volume = nib.load(file)
    return image


def prepare(command: Command, root: Path, *arguments: str) -> Prepared:
    settings = [f"data.root={root}", "data.depth=4", "privacy=none", "processes=0"]
    return Prepared(root, command("prepare", *settings, *arguments))


def sources(images: Path, labels: Path | None = None) -> list[str]:
    return [f"source.images={images}", f"source.labels={labels or 'null'}"]


def read_with_simpleitk(path: Path) -> Volume:
    """A folder of DICOM read by GDCM, or a file, alone in its folder or not."""
    files = list(path.glob("*"))
    path = files[0] if len(files) == 1 else path
    if path.is_dir():
        reader = SimpleITK.ImageSeriesReader()
        (uid,) = reader.GetGDCMSeriesIDs(str(path))
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path), uid))
        image = reader.Execute()
    else:
        image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Volume(SimpleITK.GetArrayFromImage(image).T.astype(np.float64), LPS_TO_RAS @ affine)


def assert_same(ours: Volume, theirs: Volume) -> None:
    """Voxel for voxel, in value and position."""
    ours, theirs = nib.as_closest_canonical(ours), nib.as_closest_canonical(theirs)
    np.testing.assert_array_equal(ours.dataobj, theirs.dataobj)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)


READABLE = {  # with their flags
    "abdomen/ct_dicom": "",
    "abdomen/ct.nii.gz": "",
    "abdomen/mr.nii.gz": "hu_not_applied",
    "series/torchio": "hu_not_applied",  # made from an MR
    "seg/ct": "",
}


def layout_of(path: Path) -> str:
    return f"source={'dicom' if path.is_dir() else 'nifti'}"


@pytest.mark.parametrize("name", READABLE)
def test_a_real_scan_becomes_what_simpleitk_reads(
    name: str, shared_data: Path, tmp_path: Path, command: Command
) -> None:
    path = shared_data / name
    done = prepare(command, tmp_path / "r", layout_of(path), *sources(path))
    assert done.ended.code == 0, done.ended.err
    assert done.row()["flags"].split() == [*READABLE[name].split(), "unlabelled"]
    assert done.volume().get_data_dtype() == np.int16
    assert_same(done.volume(), read_with_simpleitk(path))


def test_single_frames_and_a_multi_frame_file_of_a_mask_are_the_same_mask(
    shared_data: Path, tmp_path: Path, command: Command
) -> None:
    """Published as CT, although it is a mask: as an image it is refused, as a label it is read."""
    folder = shared_data / "seg" / "single_and_multiframe"
    for images, labels in (("image", "multiframe"), ("multiframe", "image")):
        done = prepare(command, tmp_path / images, *sources(folder / images, folder / labels))
        assert done.ended.code == 0, done.ended.err
        expected = read_with_simpleitk(folder / "image")
        assert_same(done.volume("label"), expected)
        assert_same(done.volume(), expected)
    done = prepare(command, tmp_path / "r", *sources(folder / "multiframe"))
    assert done.row()["reason"].startswith("looks_like_mask: ")


FAULTS, HEADS = "series/dicom2nifti", "orientations"
BROKEN = {
    f"{FAULTS}/gantry_tilt": "gantry_tilt",
    f"{FAULTS}/missing_slice": "missing_slice",
    f"{FAULTS}/one_position": "same_position",
    f"{FAULTS}/too_few": "too_few_slices",
    f"{HEADS}/no_affine.nii.gz": "no_affine",
    f"{HEADS}/shear.nii.gz": "bad_affine",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_real_scan_is_refused_with_its_reason_beside_a_good_one(
    name: str, shared_data: Path, tmp_path: Path, command: Command
) -> None:
    bad, good = tmp_path / "images" / Path(name).name, shared_data / "seg" / "ct"
    if (shared_data / name).is_dir():
        shutil.copytree(shared_data / name, bad)
        shutil.copytree(good, tmp_path / "images" / "good")
        more = ["source.modality=any"]
    else:
        bad.parent.mkdir()
        shutil.copy(shared_data / name, bad)
        good = shared_data / "orientations" / "RAS.nii.gz"
        shutil.copy(good, bad.parent / "good.nii.gz")
        more = []
    done = prepare(command, tmp_path / "r", layout_of(bad), *sources(bad.parent), *more)
    assert done.ended.code == 1
    assert "Traceback" not in done.ended.err
    rows = {Path(row["path"]).name.partition(".")[0]: row for row in done.rows()}
    assert rows.pop("good")["status"] == "kept"
    (row,) = rows.values()
    assert row["status"] == "refused"
    assert row["reason"].partition(":")[0] == BROKEN[name]
    (case,) = (done.root / "cases").iterdir()
    assert_same(volume_of(case), read_with_simpleitk(good))


def test_a_head_in_twelve_axis_orders_is_the_same_image(
    shared_data: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "heads").mkdir()
    heads = [
        file
        for file in sorted((shared_data / "orientations").glob("*.nii.gz"))
        if file.name not in ("no_affine.nii.gz", "shear.nii.gz")
    ]
    for head in heads:
        shutil.copy(head, tmp_path / "heads" / head.name)
    done = prepare(command, tmp_path / "r", "source=nifti", *sources(tmp_path / "heads"))
    assert done.ended.code == 0
    cases = sorted((done.root / "cases").iterdir())
    assert len(cases) == 12
    upright = read_with_simpleitk(shared_data / "orientations" / "RAS.nii.gz")
    for case in cases:
        assert nib.aff2axcodes(volume_of(case).affine)[2] == "S"
        assert_same(volume_of(case), upright)


def test_a_real_pancreas_is_kept_with_its_voxels_and_volume(
    shared_data: Path, tmp_path: Path, command: Command
) -> None:
    folder = shared_data / "abdomen"
    paths = sources(folder / "ct.nii.gz", folder / "pancreas.nii.gz")
    done = prepare(command, tmp_path / "r", "source=nifti", *paths)
    assert done.ended.code == 0, done.ended.err
    row = done.row()
    assert (row["label_voxels"], row["label_ml"]) == ("818", "22.086")
    assert row["flags"] == "label_pieces"  # a model made it
    assert_same(done.volume("label"), read_with_simpleitk(folder / "pancreas.nii.gz"))
    assert_same(done.volume(), read_with_simpleitk(folder / "ct.nii.gz"))


@pytest.mark.parametrize("given", ["by_path", "alone"])
def test_an_organ_of_a_nifti_label_lies_on_its_scanners_series(
    given: str, shared_data: Path, tmp_path: Path, command: Command
) -> None:
    series = shared_data / "abdomen" / "ct_dicom"
    organs = shared_data / "abdomen" / "ct_dicom_organs.nii.gz"
    paths = sources(series, organs)
    if given == "by_path":
        shutil.copytree(series, tmp_path / "images" / "p7")
        (tmp_path / "labels").mkdir()
        shutil.copy(organs, tmp_path / "labels" / "p7.nii.gz")
        paths = sources(tmp_path / "images", tmp_path / "labels")
    done = prepare(command, tmp_path / "r", *paths, "labels=[7]")
    assert done.ended.code == 0, done.ended.err
    assert done.row()["label_voxels"] == "1327"
    truth = read_with_simpleitk(organs)
    pancreas = (np.asarray(truth.dataobj) == 7).astype(np.uint8)
    assert_same(done.volume("label"), Volume(pancreas, truth.affine))
    hu, mask = np.asarray(done.volume().dataobj), np.asarray(done.volume("label").dataobj)
    assert 0 < np.median(hu[mask == 1]) < 200  # with or without contrast


def test_a_published_seg_lies_on_its_series(
    shared_data: Path, tmp_path: Path, command: Command
) -> None:
    folder = shared_data / "seg"
    paths = sources(folder / "ct", folder / "liver.dcm")
    done = prepare(command, tmp_path / "r", *paths, "labels=[Liver]", "data.depth=3")
    assert done.ended.code == 0, done.ended.err
    truth = read_with_simpleitk(folder / "liver_seg.nrrd")
    assert int(done.row()["label_voxels"]) == np.count_nonzero(truth.dataobj) > 0
    assert_same(done.volume("label"), truth)
    assert_same(done.volume(), read_with_simpleitk(folder / "ct"))


POSITIONS = {  # ImageOrientationPatient of axial slices: head or feet first
    "HFS": (1, 0, 0, 0, 1, 0),  # supine
    "HFP": (-1, 0, 0, 0, -1, 0),  # prone
    "FFS": (-1, 0, 0, 0, 1, 0),
    "FFP": (1, 0, 0, 0, -1, 0),
    "HFDR": (0, 1, 0, -1, 0, 0),  # on the right side
    "HFDL": (0, -1, 0, 1, 0, 0),  # on the left side
}


@pytest.fixture
def patient(dicom: Path) -> Volume:
    """A part of a phantom whose axes all differ in length and spacing, RAS."""
    whole = nib.as_closest_canonical(volume_of(sorted((dicom / "truth").glob("*_image.nii.gz"))[0]))
    part = np.asarray(whole.dataobj)[8:38, 10:36, 12:24].astype(np.int16)
    affine = np.array([[2.5, 0, 0, -40], [0, 3.5, 0, -30], [0, 0, 5, 100], [0, 0, 0, 1]])
    return Volume(part, affine)


def write_position(folder: Path, patient: Volume, orientation: tuple[float, ...]) -> Path:
    """Store a volume as a scanner does with the patient in this position."""
    row, column = np.reshape(orientation, (2, 3))
    axes = np.column_stack([row, column, np.cross(row, column)])  # LPS, in columns
    wanted = LPS_TO_RAS.copy()
    wanted[:3, :3] = LPS_TO_RAS[:3, :3] @ axes
    turn = orientations.ornt_transform(
        orientations.io_orientation(patient.affine), orientations.io_orientation(wanted)
    )
    stored = patient.as_reoriented(turn)
    corner = LPS_TO_RAS @ stored.affine[:, 3]
    columns_mm, rows_mm, gap_mm = nib.affines.voxel_sizes(stored.affine)
    return write_series(
        folder,
        pixels=np.asarray(stored.dataobj).T + 1024,
        first=corner[:3],
        gap_mm=gap_mm,
        orientation=orientation,
        pixel_spacing=(rows_mm, columns_mm),
        intercept=-1024.0,
        patient_id=folder.name,
    )


def test_a_patient_in_six_positions_is_the_same_volume(
    patient: Volume, tmp_path: Path, command: Command
) -> None:
    for name, orientation in POSITIONS.items():
        write_position(tmp_path / "images" / name, patient, orientation)
    done = prepare(command, tmp_path / "r", *sources(tmp_path / "images"))
    assert done.ended.code == 0, done.ended.err
    for name in POSITIONS:
        case = volume_of(done.root / "cases" / f"{name}_image.nii.gz")
        assert nib.aff2axcodes(case.affine)[2] == "S"
        assert_same(case, patient)
        assert_same(case, read_with_simpleitk(tmp_path / "images" / name))
