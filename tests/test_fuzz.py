"""Fuzz: readers of mutated files of every form return or refuse, soon and within bounds.

``make fuzz`` runs it, outside the default suite; the seed makes a run repeatable.
"""

import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom import uid

from pancseg.dicom.labels import read_rtstruct, read_segmentation
from pancseg.dicom.series import Repair, Scan, find_series, read_mask_series, read_series
from pancseg.errors import Refused
from pancseg.intake.volume_files import ReadOptions, is_volume_file, read_label_file, read_scan_file
from pancseg.structures import LabelMap
from tests.tiny_dicom import write_series
from tests.tiny_labels import Frame, at, structures, write_contours, write_nrrd, write_segmentation

pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore")]
SEED, EXAMPLES = 20261123, 2500  # examples of each of the forms below
SECONDS, BYTES = 10.0, 2 * 2**30
PIXELS = np.random.default_rng(0).integers(-1000, 1000, (4, 64, 64))


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """A file with up to six places changed, removed, doubled or zeroed, one in five cut off."""
    data = bytearray(content)
    end = random.choice([1500, len(data)])  # half of all edits go to the first kilobytes
    for _ in range(random.integers(1, 7)):
        start, value = int(random.integers(max(1, min(end, len(data))))), random.bytes(4)
        part = slice(start, start + value[0] % 40)
        edits = [value[:1], value, b"", 2 * data[part], bytes(value[0] % 40)]
        n = int(random.integers(len(edits)))
        data[slice(start, start + len(edits[n])) if n < 2 else part] = edits[n]
    return bytes(data[: random.integers(len(data) + 1)] if random.random() < 0.2 else data)


def read_scan(folder: Path) -> Scan:
    """The scan in a folder, read as ``prepare`` reads it."""
    files = sorted(folder.iterdir())
    if is_volume_file(files[0]):
        return read_scan_file(files[0])
    series, _ = find_series(folder, files)
    if not series or series[0].problem:
        raise Refused("skipped", "by its header")
    return read_series(series[0].files, Repair(gaps=True, tilt=True))


def read_label(file: Path, scan: Scan) -> LabelMap:
    """The label in a file."""
    if is_volume_file(file):
        return read_label_file(file, ReadOptions(structures()), scan)
    series, _ = find_series(file.parent, [file])
    if not series or scan.stack is None:
        raise Refused("skipped", "by its header")
    if series[0].format == "image":
        return read_mask_series((file,), Repair(), structures())
    read = read_segmentation if series[0].format == "seg" else read_rtstruct
    return read(file, scan.stack, structures())


def with_series(folder: Path, syntax: str = "") -> Path:
    files = sorted(write_series(folder / "images", pixels=PIXELS).iterdir())
    dataset = pydicom.dcmread(files[1])
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        dataset.file_meta.TransferSyntaxUID = syntax
    elif syntax:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(files[1])
    return files[1]


def with_label(folder: Path, name: str) -> Path:
    with_series(folder)
    file = folder / "labels" / name
    file.parent.mkdir()
    if name.endswith("nrrd"):
        slicer = {"Segment0_Name": "Pancreas", "Segment0_LabelValue": 1, "Segment0_Layer": 0}
        return write_nrrd(file, (PIXELS.transpose(2, 1, 0) > 0).astype(np.uint8), **slicer)
    if name == "seg.dcm":
        return write_segmentation(file, [Frame(PIXELS[k] > 0, at(k)) for k in range(4)])
    square = [at(1, 5, 5), at(1, 40, 5), at(1, 40, 40), at(1, 5, 40)]
    triangle = [at(2, 1, 1), at(2, 9, 1), at(2, 9, 9)]
    return write_contours(file, {"Pancreas": [square, triangle]})


def with_nifti(folder: Path, ending: str) -> Path:
    for role, values in (("images", PIXELS), ("labels", PIXELS > 0)):
        (folder / role).mkdir()
        image = nib.Nifti1Image(values[:, :16, :16].astype(np.int16), np.eye(4))
        nib.save(image, folder / role / f"p1{ending}")
    return folder / "images" / f"p1{ending}"


SYNTAXES = ["", uid.DeflatedExplicitVRLittleEndian, uid.RLELossless, uid.JPEG2000Lossless]
FORMS: list[tuple[Callable[[Path, str], Path], str]] = [
    *((with_series, syntax) for syntax in [*SYNTAXES, uid.JPEGLSLossless]),
    *((with_label, name) for name in ("seg.dcm", "rt.dcm", "p1.seg.nrrd")),
    *((with_nifti, ending) for ending in (".nii", ".nii.gz")),
]


@pytest.mark.parametrize(("write", "form"), FORMS)
def test_a_damaged_file_is_read_or_refused(tmp_path, write, form):
    victim, answers, random = write(tmp_path, form), Counter(), np.random.default_rng(SEED)
    content = victim.read_bytes()
    for _ in range(EXAMPLES):
        victim.write_bytes(mutated(content, random))  # left there after a crash
        begun = time.monotonic()
        try:
            scan = read_scan(tmp_path / "images")
            assert scan.image.ndim == 3
            for file in sorted((tmp_path / "labels").glob("*")):
                values = np.asanyarray(read_label(file, scan).image.dataobj)
                assert set(np.unique(values)) <= {0, 1}
            answers["read"] += 1
        except Refused as refused:  # any other error fails
            answers[refused.code] += 1
        assert time.monotonic() - begun < SECONDS
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert kilobytes * (1 if sys.platform == "darwin" else 1024) < BYTES
    print(f"\n{victim.name}: seed {SEED}, {dict(answers)}")
