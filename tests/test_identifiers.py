"""Names of patients, wherever a scan holds them, stand in no output of the commands."""

import gzip
import re
import shutil
import zipfile
from itertools import product

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.datadict import DicomDictionary, keyword_for_tag

from tests.conftest import run_command
from tests.test_no_network import run_all
from tests.tiny_dicom import write_series
from tests.tiny_labels import Frame, at, write_segmentation

MARK, DATE = "Zuversicht", "19231117"  # used as a name, and as a date of birth
TEXTS = {"LO", "SH", "PN", "LT", "ST", "UT", "UC", "AE"}
KEPT = {"Modality", "BodyPartExamined", "PatientPosition", "ImageType"}  # intake needs them
PERSONAL = re.compile("Patient|Physician|Name|Institution|Address|Accession|Study|Series|Comment")
# where docs say that a path or a patient may stand
MAY = re.compile(r"(^|/)(intake|predictions)\.csv$|(^|/)\.hydra/|_pancreas(_rt)?\.dcm$")


def plant(path, number):
    """Name the patient in every personal element of text, known or private."""
    dataset = pydicom.dcmread(path)
    public = [tag for tag, entry in DicomDictionary.items() if entry[0] in TEXTS and tag >> 16 > 2]
    texts = {keyword_for_tag(tag) for tag in public}
    personal = {keyword for keyword in texts if PERSONAL.search(keyword)}
    for keyword in personal | {e.keyword for e in dataset if e.VR in TEXTS} - KEPT:
        setattr(dataset, keyword, f"{MARK}{number}"[:16])
    dataset.PatientID, dataset.PatientBirthDate = f"{MARK}ID{number}", DATE
    dataset.private_block(0x0011, f"{MARK}CREATOR", create=True).add_new(1, "LO", f"{MARK}private")
    dataset.save_as(path)


def contents_of(path):
    """Name and bytes of a file, and the content that is packed in them."""
    yield path.name.encode()
    content = path.read_bytes() if path.is_file() else b""
    yield content
    if content.startswith(b"\x1f\x8b"):
        yield gzip.decompress(content)
    elif content.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                yield entry.filename.encode() + archive.read(entry)


def leaks(folder):
    """Files whose name or content names the patient, in any encoding of files."""
    texts = (MARK, MARK.upper(), DATE)
    words = [text.encode(code) for text in texts for code in ("utf-8", "utf-16-le")]
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if any(word in content for content in contents_of(path) for word in words)
    }


@pytest.mark.slow
def test_patients_are_named_only_in_the_tables_of_paths_and_in_dicom_output(tmp_path, dicom):
    scans, out = tmp_path / "scans", tmp_path / "out"
    for role in ("images", "labels"):
        for number, folder in enumerate(sorted((dicom / role).iterdir())):
            named = scans / role / f"{MARK}_{number}"
            shutil.copytree(folder, named)
            for n, path in enumerate(sorted(named.iterdir())):
                plant(path.rename(named / f"{MARK}_{DATE}_{n}.dcm"), number)
    image = nib.load(min((dicom / "truth").glob("*_image.nii.gz")))
    image.header["descrip"] = MARK
    nib.save(image, scans / "ct.nii.gz")
    assert "ct.nii.gz" in leaks(scans)
    run_all(scans, out)
    best = f"checkpoint={out / 'run' / 'checkpoints' / 'best.ckpt'}"
    nifti = [f"input={scans / 'ct.nii.gz'}", f"output={out / 'nifti'}"]
    assert run_command("predict", best, *nifti) == 0
    written = {path.suffix for path in out.rglob("*")}
    assert written >= {".ckpt", ".csv", ".json", ".html", ".png", ".gz", ".npy", ".pt"}
    found = leaks(out)
    assert {name for name in found if not MAY.search(name)} == {"privacy.key.names.csv"}
    assert {"root/intake.csv", "masks/predictions.csv"} <= found
    assert [name for name in found if name.endswith("_pancreas.dcm")]


# header fields shifted by a faulty export: names where other values are expected
SHIFTED = {
    "CS": "Modality ImageType PhotometricInterpretation SpecificCharacterSet",
    "UI": "SOPClassUID SeriesInstanceUID FrameOfReferenceUID",
    "LO": "Manufacturer ContrastBolusAgent RescaleType Rows BitsAllocated",
    "DS": "ImagePositionPatient ImageOrientationPatient PixelSpacing RescaleSlope",
    "IS": "AcquisitionNumber NumberOfFrames", "DA": "AcquisitionDate",
}  # fmt: skip


def write_shifted(folder):
    """For each attribute a series that has a name there, in all slices or in the third."""
    pairs = [(vr, keyword) for vr, keywords in SHIFTED.items() for keyword in keywords.split()]
    for number, ((vr, keyword), which) in enumerate(product(pairs, (slice(None), slice(2, 3)))):

        def change(slices, keyword=keyword, vr=vr, which=which):
            for dataset in slices[which]:
                dataset.add_new(keyword, vr, "")
                dataset[keyword]._value = MARK  # past the checks of pydicom
                dataset["PixelData"].VR = "OW"  # else pydicom derives it from BitsAllocated

        path = folder / "images" / f"{number:02}"
        write_series(path, patient_id=f"{MARK}{number}", damage=change)


def write_named_segments(folder):
    """A SEG whose segments are named after a patient, and its series."""
    write_series(folder / "images")
    (folder / "labels").mkdir()
    segments = {n: (f"{MARK} {n}", str(n), MARK) for n in (1, 2)}
    frames = [Frame(np.eye(4, 3, dtype=np.uint8), at(1))]
    write_segmentation(folder / "labels" / "seg.dcm", frames, segments=segments)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("write", [write_shifted, write_named_segments])
def test_no_text_of_a_header_is_quoted(tmp_path, command, write):
    write(tmp_path / "in")
    is_labelled = (tmp_path / "in" / "labels").is_dir()
    root = tmp_path / "site" / "root"
    words = [f"source.images={tmp_path / 'in' / 'images'}", f"data.root={root}", "data.depth=null"]
    words += [f"source.labels={tmp_path / 'in' / 'labels' if is_labelled else 'null'}"]
    ended = command("prepare", *words, "labels=[spleen]")
    assert ended.code == 1, ended.err
    assert MARK.casefold() not in (ended.out + ended.err).casefold()
    assert leaks(root) == set()
    assert (root / "intake.csv").read_text().count("refused") >= (1 if is_labelled else 20)
    named = command("prepare", *words, "labels=[spleen]", "show_names=true")
    assert (f"1 {MARK} 1" in named.out) == is_labelled  # asked for, and on the console alone
    assert leaks(root) == set()
