"""Names of patients, wherever a scan holds them, stand in no output of the commands."""

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
from pydicom import Dataset
from pydicom.datadict import DicomDictionary, keyword_for_tag

from tests.conftest import PHANTOM, SHALLOW, Command, run_command, smoke
from tests.tiny_dicom import write_series
from tests.tiny_labels import Frame, at, write_contours, write_nrrd, write_segmentation

MARK, DATE = "Zuversicht", "19231117"  # used as a name, and as a date of birth
TEXTS = {"LO", "SH", "PN", "LT", "ST", "UT", "UC", "AE"}
KEPT = {"Modality", "BodyPartExamined", "PatientPosition", "ImageType"}  # intake needs them
# where docs say that a path or a patient may stand
MAY = re.compile(r"(^|/)(intake|predictions)\.csv$|(^|/)\.hydra/|_pancreas(_rt)?\.dcm$")


def plant(path: Path, number: int) -> None:
    """Name the patient in every element of text, known or private."""
    dataset = pydicom.dcmread(path)
    keywords = {keyword_for_tag(tag) for tag, entry in DicomDictionary.items() if entry[0] in TEXTS}
    for keyword in keywords & PERSONAL | {e.keyword for e in dataset if e.VR in TEXTS} - KEPT:
        value = f"{MARK}{number}"
        setattr(dataset, keyword, value[:16])
    dataset.PatientID, dataset.PatientBirthDate = f"{MARK}ID{number}", DATE
    dataset.private_block(0x0011, f"{MARK}CREATOR", create=True).add_new(1, "LO", f"{MARK}private")
    dataset.save_as(path)


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
    """Output of the commands for scans that name their patients."""
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
    words = ["split.val=1", "split.test=1", "sampling=patches", "sampling.steps_per_epoch=2"]
    assert run_command("train", *smoke(root, run, *words)) == 0
    assert run_command("evaluate", best, "subset=test") == 0
    for name, given in (("dicom", scans / "images" / f"{MARK}_0"), ("nifti", scans / "nifti")):
        assert run_command("predict", best, f"input={given}", f"output={out / name}") == 0
    assert run_command("report", f"run={run}") == 0
    assert run_command("export", best, f"output={out / 'bundle'}") == 0
    return out


def unpacked(content: bytes) -> Iterator[bytes]:
    """Bytes, and the content that is packed in them: zip, gzip, and chunks of PNG."""
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
    """A word in the encodings of files."""
    return [word.encode(), word.upper().encode(), word.encode("utf-16-le"), word[::-1].encode()]


def leaks(folder: Path) -> set[str]:
    """Files whose name or content names the patient."""
    found = set()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        words = [code for word in (MARK, DATE) for code in spelled(word)]
        if any(word in name.encode() for word in words):
            found.add(name)
        if path.is_file() and any(
            word in piece for piece in unpacked(path.read_bytes()) for word in words
        ):
            found.add(name)
    return found


@pytest.mark.slow
def test_patients_are_named_only_in_the_tables_of_paths_and_in_dicom_output(site: Path) -> None:
    written = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    for ending in (".ckpt", ".csv", ".json", ".html", ".png", ".nii.gz", ".npy", ".pt"):
        assert [name for name in written if name.endswith(ending)], ending
    assert [name for name in written if "tfevents" in name]
    assert {name for name in leaks(site) if not MAY.search(name)} == {"privacy.key.names.csv"}
    assert {
        path.stat().st_mode & 0o777 for path in site.glob("privacy.key*") if path.suffix != ".lock"
    } == {0o600}


def test_the_search_finds_names_in_compressed_content_and_file_names(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    nib.save(image, tmp_path / "plain.nii.gz")
    plant_nifti(tmp_path / "plain.nii.gz", tmp_path / "a.nii.gz")
    with zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", MARK * 9)
    (tmp_path / "c.png").write_bytes(b"\x89PNG" + b"zTXtTitle\0\0" + zlib.compress(MARK.encode()))
    (tmp_path / f"{DATE}.txt").touch()
    assert leaks(tmp_path) == {"a.nii.gz", "b.ckpt", "c.png", f"{DATE}.txt"}


@pytest.mark.slow
def test_tables_and_dicom_output_name_paths_and_patients(site: Path) -> None:
    found = {name for name in leaks(site) if MAY.search(name)}
    assert {"root/intake.csv", "dicom/predictions.csv", "nifti/predictions.csv"} <= found
    assert [name for name in found if name.endswith("_pancreas.dcm")]


# header fields shifted by a faulty export: names where other values are expected

SHIFTED = {
    "Modality": "CS", "ImageType": "CS", "SOPClassUID": "UI", "SeriesInstanceUID": "UI",
    "StudyInstanceUID": "UI", "FrameOfReferenceUID": "UI", "Manufacturer": "LO",
    "ContrastBolusAgent": "LO", "QualityControlImage": "CS", "ImagePositionPatient": "DS",
    "ImageOrientationPatient": "DS", "PixelSpacing": "DS", "RescaleSlope": "DS",
    "RescaleIntercept": "DS", "RescaleType": "LO", "AcquisitionNumber": "IS",
    "AcquisitionDate": "DA", "AcquisitionTime": "TM", "NumberOfFrames": "IS", "Rows": "LO",
    "BitsAllocated": "LO", "SamplesPerPixel": "LO", "SpecificCharacterSet": "CS",
    "PhotometricInterpretation": "CS", "PixelRepresentation": "LO",
}  # fmt: skip


def write_shifted(folder: Path) -> None:
    """For each attribute a series that has a name there, in all slices or in the third."""
    for number, (keyword, vr) in enumerate(SHIFTED.items()):
        for which in (slice(None), slice(2, 3)):

            def change(
                slices: list[Dataset], keyword: str = keyword, vr: str = vr, which: slice = which
            ) -> None:
                for dataset in slices[which]:
                    dataset.add_new(keyword, vr, "")
                    dataset[keyword]._value = MARK  # past the checks of pydicom
                    dataset["PixelData"].VR = "OW"  # else pydicom derives it from BitsAllocated

            path = folder / "images" / f"{number:02}-{which.start}"
            write_series(path, patient_id=f"{MARK}{number}{which.start}", damage=change)


def write_named_labels(folder: Path) -> None:
    """Labels whose structures are named after a patient, each with its series."""
    pixels = np.eye(4, 3, dtype=np.uint8)
    square = [at(1, *corner) for corner in ((0, 0), (0, 3), (2, 3), (2, 0))]
    for name in ("seg", "rtstruct", "nrrd"):
        write_series(folder / "images" / name, patient_id="" if name == "nrrd" else name)
    (folder / "labels").mkdir()

    def change(dataset: Dataset) -> None:
        dataset.PatientID = "seg" if dataset.Modality == "SEG" else "rtstruct"

    segments = {n: (f"{MARK} {n}", str(n), MARK) for n in (1, 2)}
    frames = [Frame(pixels, at(1))]
    write_segmentation(folder / "labels" / "seg.dcm", frames, segments=segments, damage=change)
    rois = {f"{MARK} {n}": [square] for n in (1, 2)}
    write_contours(folder / "labels" / "rtstruct.dcm", rois, damage=change)
    names = {f"Segment{n}_{key}": value for n in (0, 1) for key, value in
             {"Name": f"{MARK} {n}", "LabelValue": n + 1, "Layer": 0}.items()}  # fmt: skip
    values = np.zeros((3, 4, 5), np.uint8)
    values[1, 1, 1:3] = 1, 2
    write_nrrd(folder / "labels" / "nrrd.seg.nrrd", values, **names)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("labelled", [False, True])
def test_no_text_of_a_header_is_quoted_in_table_records_or_console(
    tmp_path: Path, command: Command, labelled: bool
) -> None:
    (write_named_labels if labelled else write_shifted)(tmp_path / "in")
    images, labels = (tmp_path / "in" / role for role in ("images", "labels"))
    source = [f"source.images={images}", f"source.labels={labels if labelled else 'null'}"]
    root = tmp_path / "site" / "root"
    words = [*source, f"data.root={root}", "data.depth=null", "labels=[spleen]"]
    for shard in (["shard=0/1"], []):
        ended = command("prepare", *words, *shard)
        assert ended.code == 1, ended.err
        assert MARK.casefold() not in (ended.out + ended.err).casefold()
        assert leaks(root) == set()
    reasons = [line for line in (root / "intake.csv").read_text().splitlines() if "refused" in line]
    assert len(reasons) > (2 if labelled else 20)
    named = command("prepare", *words, "show_names=true")
    assert (f"1 {MARK} 1" in named.out) == labelled  # asked for, and on the console alone
    assert leaks(root) == set()
