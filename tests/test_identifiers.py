"""A patient named everywhere a scan can name one is named in nothing that the commands write."""

import contextlib
import gzip
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.datadict import DicomDictionary, keyword_for_tag

from tests.conftest import PHANTOM, SHALLOW, run_command, smoke

MARK, DATE = "Zuversicht", "19231117"  # what is planted as a name, and as a date of birth
TEXTS = {"LO", "SH", "PN", "LT", "ST", "UT", "UC", "AE"}
KEPT = {"Modality", "BodyPartExamined", "PatientPosition", "ImageType"}  # what intake decides by
# where interface and docs say that a path or a patient may stand
MAY = re.compile(r"(^|/)(intake|predictions)\.csv$|(^|/)\.hydra/|_pancreas(_rt)?\.dcm$")


def plant(path: Path, number: int) -> None:
    """Name the patient in every element of text, known or private."""
    one = pydicom.dcmread(path)
    keywords = {keyword_for_tag(tag) for tag, entry in DicomDictionary.items() if entry[0] in TEXTS}
    for keyword in keywords & PERSONAL | {e.keyword for e in one if e.VR in TEXTS} - KEPT:
        value = f"{MARK}{number}"
        setattr(one, keyword, value[:16])
    one.PatientID, one.PatientBirthDate = f"{MARK}ID{number}", DATE
    one.private_block(0x0011, f"{MARK}CREATOR", create=True).add_new(1, "LO", f"{MARK}private")
    one.save_as(path)


PERSONAL = {
    "PatientName", "PatientID", "IssuerOfPatientID", "OtherPatientNames", "PatientBirthName",
    "PatientMotherBirthName", "PatientAddress", "MedicalRecordLocator", "EthnicGroup", "Occupation",
    "AdditionalPatientHistory", "PatientComments", "AccessionNumber", "StudyID", "StudyDescription",
    "SeriesDescription", "ProtocolName", "InstitutionName", "InstitutionAddress", "StationName",
    "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "RequestingPhysician",
    "NameOfPhysiciansReadingStudy", "RequestedProcedureDescription", "ImageComments",
    "DeviceSerialNumber", "PatientTelephoneNumbers",
}  # fmt: skip


def plant_nifti(source: Path, target: Path) -> None:
    """Name the patient in every field of a NIfTI header, in an extension and in its file's name."""
    image = nib.load(source)
    image.header["descrip"] = f"{MARK} description"
    image.header["aux_file"] = f"{MARK}.aux"
    image.header["intent_name"] = f"{MARK}"
    image.header["db_name"] = f"{MARK}"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", f"{MARK} {DATE}".encode()))
    nib.save(image, target)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site whose scans name their patients, with all that the commands make of them."""
    base = tmp_path_factory.mktemp("site")
    scans, out = base / "scans", base / "out"
    assert run_command("phantom", f"out={base / 'plain'}", "patients=4", *PHANTOM) == 0
    for role in ("images", "labels"):
        for number, folder in enumerate(sorted((base / "plain" / role).iterdir())):
            for n, path in enumerate(sorted(folder.iterdir())):
                named = scans / role / f"{MARK}_{number}" / f"{MARK}_{DATE}_{n}.dcm"
                named.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, named)
                plant(named, number)
    nifti = scans / "nifti" / f"{MARK}_9"
    nifti.mkdir(parents=True)
    truth = min((base / "plain" / "truth").glob("*_image.nii.gz"))
    plant_nifti(truth, nifti / "ct.nii.gz")
    source = [f"source.{role}={scans / role}" for role in ("images", "labels")]
    root, run = out / "root", out / "run"
    best = f"checkpoint={run / 'checkpoints' / 'best.ckpt'}"
    assert run_command("prepare", *source, f"data.root={root}", *SHALLOW) == 0
    words = ["split.val=1", "split.test=1"]
    assert run_command("train", *smoke(root, run, *words)) == 0
    assert run_command("evaluate", best, "subset=test") == 0
    for name, given in (("dicom", scans / "images" / f"{MARK}_0"), ("nifti", scans / "nifti")):
        assert run_command("predict", best, f"input={given}", f"output={out / name}") == 0
    assert run_command("report", f"run={run}") == 0
    assert run_command("export", best, f"output={out / 'bundle'}") == 0
    return out


def unpacked(content: bytes) -> Iterator[bytes]:
    """What bytes hold, and what is packed in them: zip, gzip, and the chunks of PNG."""
    yield content
    if content.startswith(b"\x1f\x8b"):
        yield gzip.decompress(content)
    elif content.startswith(b"PK"):
        with zipfile.ZipFile(BytesIO(content)) as archive:
            for entry in archive.infolist():
                yield entry.filename.encode()
                yield archive.read(entry)
    elif content.startswith(b"\x89PNG"):
        for kind in (b"zTXt", b"iTXt"):
            for found in re.finditer(kind, content):
                packed = content[found.end() :].partition(b"\0")[2].lstrip(b"\0\1")
                with contextlib.suppress(zlib.error):
                    yield zlib.decompressobj().decompress(packed)


def spelled(word: str) -> list[bytes]:
    """A word as files spell it."""
    return [word.encode(), word.upper().encode(), word.encode("utf-16-le"), word[::-1].encode()]


def leaks(folder: Path) -> set[str]:
    """Files whose name or content names the patient."""
    found = set()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        words = [one for word in (MARK, DATE) for one in spelled(word)]
        if any(word in name.encode() for word in words):
            found.add(name)
        if path.is_file() and any(
            word in piece for piece in unpacked(path.read_bytes()) for word in words
        ):
            found.add(name)
    return found


@pytest.mark.slow
def test_a_patient_is_named_in_no_file_but_those_that_say_where_scans_lay(site: Path) -> None:
    written = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    for ending in (".ckpt", ".csv", ".json", ".html", ".png", ".nii.gz", ".npy", ".pt2", ".pt"):
        assert [name for name in written if name.endswith(ending)], ending
    assert [name for name in written if "tfevents" in name]
    assert {name for name in leaks(site) if not MAY.search(name)} == {"privacy.key.names.csv"}
    assert {
        path.stat().st_mode & 0o777 for path in site.glob("privacy.key*") if path.suffix != ".lock"
    } == {0o600}


def test_the_search_finds_a_name_wherever_it_is_packed(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    nib.save(image, tmp_path / "plain.nii.gz")
    plant_nifti(tmp_path / "plain.nii.gz", tmp_path / "a.nii.gz")
    with zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", MARK * 9)
    (tmp_path / "c.png").write_bytes(b"\x89PNG" + b"zTXtTitle\0\0" + zlib.compress(MARK.encode()))
    (tmp_path / f"{DATE}.txt").touch()
    assert leaks(tmp_path) == {"a.nii.gz", "b.ckpt", "c.png", f"{DATE}.txt"}


@pytest.mark.slow
def test_paths_and_patients_stand_where_they_are_said_to_stand(site: Path) -> None:
    found = {name for name in leaks(site) if MAY.search(name)}
    assert {"root/intake.csv", "dicom/predictions.csv", "nifti/predictions.csv"} <= found
    assert [name for name in found if name.endswith("_pancreas.dcm")]
