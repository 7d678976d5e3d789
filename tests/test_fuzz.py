"""Fuzz: readers of mutated DICOM files return or refuse, soon and within bounds.

``make fuzz`` runs it, outside the default suite; the seed makes a run repeatable.
"""

import contextlib
import resource
import time
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from pydicom import uid

from pancseg.dicom.series import Repair
from pancseg.errors import Refused
from pancseg.intake.sources import find_dicom
from tests.source_contents import options
from tests.tiny_dicom import write_series
from tests.tiny_labels import Frame, at, write_contours, write_segmentation

pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore")]
SEED, EXAMPLES, SECONDS, KILOBYTES = 20261123, 5000, 10.0, 2 * 2**20  # examples of each form
OPTIONS = replace(options(), repair=Repair(gaps=True, tilt=True))
COMPRESSED = uid.JPEG2000Lossless, uid.JPEGLSLossless
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


def write(folder, form):
    """A series, and a label of it; the file that is to be damaged."""
    path = min(write_series(folder / "images", pixels=PIXELS).iterdir())
    if form in COMPRESSED:
        dataset = pydicom.dcmread(path)
        dataset.compress(form, generate_instance_uid=False)
        dataset.save_as(path)
    labels = folder / "labels"
    labels.mkdir()
    if form == "rt.dcm":
        square = [at(1, 5, 5), at(1, 40, 5), at(1, 40, 40), at(1, 5, 40)]
        return write_contours(labels / form, {"A": [square]})
    seg = write_segmentation(labels / "seg.dcm", [Frame(PIXELS[k] > 0, at(k)) for k in range(4)])
    return seg if form == "seg.dcm" else path


@pytest.mark.parametrize("form", ["", *COMPRESSED, "seg.dcm", "rt.dcm"])
def test_a_damaged_file_is_read_or_refused(tmp_path, form):
    victim, random, count = write(tmp_path, form), np.random.default_rng(SEED), 0
    content = victim.read_bytes()
    for _ in range(EXAMPLES):
        victim.write_bytes(mutated(content, random))  # left there after a crash
        begun = time.monotonic()
        found = find_dicom(tmp_path / "images", tmp_path / "labels", "CT", OPTIONS)
        with contextlib.suppress(Refused):  # any other error fails
            for case in found.cases:
                values = case.read_label(case.read_image()).image.dataobj
                assert set(np.unique(values)) <= {0, 1}
                count += 1
        assert time.monotonic() - begun < SECONDS
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < KILOBYTES
    assert count > 0
