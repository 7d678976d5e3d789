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

from tests.conftest import PHANTOM, SHALLOW, run_command, smoke
from tests.tiny_dicom import put, write_series
from tests.tiny_labels import Frame, at, write_contours, write_nrrd, write_segmentation

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


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Output of the commands for scans that name their patients."""
    base = tmp_path_factory.mktemp("site")
    scans, out = base / "scans", base / "out"
    assert run_command("phantom", f"out={base / 'plain'}", "patients=4", *PHANTOM) == 0
    for role in ("images", "labels"):
        for number, folder in enumerate(sorted((base / "plain" / role).iterdir())):
            named = scans / role / f"{MARK}_{number}"
            shutil.copytree(folder, named)
            for n, path in enumerate(sorted(named.iterdir())):
                plant(path.rename(named / f"{MARK}_{DATE}_{n}.dcm"), number)
    nifti = scans / "nifti" / f"{MARK}_9"
    nifti.mkdir(parents=True)
    image = nib.load(min((base / "plain" / "truth").glob("*_image.nii.gz")))
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = MARK
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", f"{MARK} {DATE}".encode()))
    nib.save(image, nifti / "ct.nii.gz")
    assert "nifti/Zuversicht_9/ct.nii.gz" in leaks(scans)
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
def test_patients_are_named_only_in_the_tables_of_paths_and_in_dicom_output(site):
    written = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    for ending in (".ckpt", ".csv", ".json", ".html", ".png", ".nii.gz", ".npy", ".pt"):
        assert [name for name in written if name.endswith(ending)], ending
    assert [name for name in written if "tfevents" in name]
    found = leaks(site)
    assert {name for name in found if not MAY.search(name)} == {"privacy.key.names.csv"}
    assert {"root/intake.csv", "dicom/predictions.csv", "nifti/predictions.csv"} <= found
    assert [name for name in found if name.endswith("_pancreas.dcm")]


# header fields shifted by a faulty export: names where other values are expected

SHIFTED = {
    "CS": "Modality ImageType QualityControlImage SpecificCharacterSet PhotometricInterpretation",
    "UI": "SOPClassUID SeriesInstanceUID StudyInstanceUID FrameOfReferenceUID",
    "LO": "Manufacturer ContrastBolusAgent RescaleType Rows BitsAllocated SamplesPerPixel "
          "PixelRepresentation",
    "DS": "ImagePositionPatient ImageOrientationPatient PixelSpacing RescaleSlope RescaleIntercept",
    "IS": "AcquisitionNumber NumberOfFrames", "DA": "AcquisitionDate", "TM": "AcquisitionTime",
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


def write_named_labels(folder):
    """Labels whose structures are named after a patient, each with its series."""
    labels, square = folder / "labels", [at(1, *corner) for corner in ((0, 0), (0, 3), (2, 3))]
    labels.mkdir(parents=True)
    for name in ("seg", "rtstruct", "nrrd"):
        write_series(folder / "images" / name, patient_id="" if name == "nrrd" else name)
    segments = {n: (f"{MARK} {n}", str(n), MARK) for n in (1, 2)}
    of_seg, of_rois = put(PatientID="seg"), put(PatientID="rtstruct")
    frames = [Frame(np.eye(4, 3, dtype=np.uint8), at(1))]
    write_segmentation(
        labels / "seg.dcm", frames, segments=segments, damage=lambda seg: of_seg([seg])
    )
    rois = {f"{MARK} {n}": [square] for n in (1, 2)}
    write_contours(labels / "rtstruct.dcm", rois, damage=lambda rtstruct: of_rois([rtstruct]))
    names = {f"Segment{n}_Name": f"{MARK} {n}" for n in (0, 1)} | {"Segment1_LabelValue": 2}
    values = np.eye(3, 4, dtype=np.uint8)[..., None] * [0, 1, 2]
    write_nrrd(labels / "nrrd.seg.nrrd", values, **names)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("is_labelled", [False, True])
def test_no_text_of_a_header_is_quoted(tmp_path, command, is_labelled):
    (write_named_labels if is_labelled else write_shifted)(tmp_path / "in")
    labels = tmp_path / "in" / "labels" if is_labelled else "null"
    root = tmp_path / "site" / "root"
    words = [f"source.images={tmp_path / 'in' / 'images'}", f"source.labels={labels}"]
    words += [f"data.root={root}", "data.depth=null", "labels=[spleen]"]
    for shard in (["shard=0/1"], []):
        ended = command("prepare", *words, *shard)
        assert ended.code == 1, ended.err
        assert MARK.casefold() not in (ended.out + ended.err).casefold()
        assert leaks(root) == set()
    assert (root / "intake.csv").read_text().count("refused") > (2 if is_labelled else 20)
    named = command("prepare", *words, "show_names=true")
    assert (f"1 {MARK} 1" in named.out) == is_labelled  # asked for, and on the console alone
    assert leaks(root) == set()
