"""Fuzz: readers of mutated files of every form return or refuse, soon and within bounds.

``make fuzz`` runs it, outside the default suite; the seed makes a run repeatable.
"""

import resource
import sys
import time
from collections import Counter
from dataclasses import replace

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom import uid

from pancseg.dicom.series import Repair
from pancseg.errors import Refused
from pancseg.intake.sources import find_dicom, find_nifti_pairs
from tests.source_contents import options
from tests.tiny_dicom import write_series
from tests.tiny_labels import Frame, at, write_contours, write_nrrd, write_segmentation

pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore")]
SEED, EXAMPLES, SECONDS, BYTES = 20261123, 2500, 10.0, 2 * 2**30  # examples of each form
OPTIONS = replace(options(), repair=Repair(gaps=True, tilt=True))
PIXELS = np.random.default_rng(0).integers(-1000, 1000, (4, 64, 64))


def mutated(content, random):
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


def write_dicom(folder, syntax):
    files = sorted(write_series(folder / "images", pixels=PIXELS).iterdir())
    dataset = pydicom.dcmread(files[1])
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        dataset.file_meta.TransferSyntaxUID = syntax
    elif syntax:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(files[1])
    return files[1]


def write_label(folder, name):
    write_dicom(folder, "")
    file = folder / "labels" / name
    file.parent.mkdir()
    if name.endswith("nrrd"):
        slicer = {"Segment0_Name": "Pancreas", "Segment0_LabelValue": 1, "Segment0_Layer": 0}
        return write_nrrd(file, (PIXELS.transpose(2, 1, 0) > 0).astype(np.uint8), **slicer)
    if name == "seg.dcm":
        return write_segmentation(file, [Frame(PIXELS[k] > 0, at(k)) for k in range(4)])
    square = [at(1, 5, 5), at(1, 40, 5), at(1, 40, 40), at(1, 5, 40)]
    return write_contours(file, {"Pancreas": [square, [at(2, 1, 1), at(2, 9, 1), at(2, 9, 9)]]})


def write_nifti(folder, ending):
    for role, values in (("labels", PIXELS > 0), ("images", PIXELS)):
        (folder / role).mkdir()
        image, file = values[:, :16, :16].astype(np.int16), folder / role / f"p1{ending}"
        nib.save(nib.Nifti1Image(image, np.eye(4)), file)
    return file


SYNTAXES = ["", uid.DeflatedExplicitVRLittleEndian, uid.RLELossless, uid.JPEG2000Lossless]
FORMS = [(write_dicom, syntax) for syntax in [*SYNTAXES, uid.JPEGLSLossless]]
FORMS += [(write_label, name) for name in ("seg.dcm", "rt.dcm", "p1.seg.nrrd")]
FORMS += [(write_nifti, ending) for ending in (".nii", ".nii.gz")]


@pytest.mark.parametrize(("write", "form"), FORMS)
def test_a_damaged_file_is_read_or_refused(tmp_path, write, form):
    victim, answers, random = write(tmp_path, form), Counter(), np.random.default_rng(SEED)
    content, labels = victim.read_bytes(), tmp_path / "labels"
    labels = labels if labels.is_dir() else None
    find, words = (find_nifti_pairs, None) if write == write_nifti else (find_dicom, "CT")
    for _ in range(EXAMPLES):
        victim.write_bytes(mutated(content, random))  # left there after a crash
        begun = time.monotonic()
        source = find(tmp_path / "images", labels, words, OPTIONS)
        answers.update(row.reason.partition(":")[0] for row in source.skipped)
        try:
            for case in source.cases:
                scan = case.read_image()
                assert scan.image.ndim == 3
                values = case.read_label(scan).image.dataobj if case.read_label else [0]
                assert set(np.unique(values)) <= {0, 1}
                answers["read"] += 1
        except Refused as refused:  # any other error fails
            answers[refused.code] += 1
        assert time.monotonic() - begun < SECONDS
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert kilobytes * (1 if sys.platform == "darwin" else 1024) < BYTES
    print(f"\n{victim.name}: seed {SEED}, {dict(answers)}")
