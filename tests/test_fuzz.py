"""Fuzz: mutated files of every form; whatever is in them, there is an answer, soon and in bounds.

`make fuzz` runs it, outside the default suite; the seed below makes a run repeatable.
"""

import resource
import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from pancseg.errors import Refused
from pancseg.intake.found import Candidate, Found, Reading
from pancseg.intake.layouts.dicom import find_dicom
from pancseg.intake.layouts.nifti import find_nifti_pairs
from tests.tiny_dicom import write_series
from tests.tiny_labels import Frame, at, write_contours, write_nrrd, write_segmentation

pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore")]
SEED, EXAMPLES = 20261123, 2500  # examples of each of the forms below
SECONDS, BYTES = 10.0, 2 * 2**30
PIXELS = np.random.default_rng(0).integers(-1000, 1000, (4, 64, 64))

ANSWERS: Counter[str] = Counter()

EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),  # where in the file
        st.sampled_from(["flip", "set", "number", "drop", "double", "zero"]),
        st.integers(0, 2**32 - 1),
    ),
    min_size=1,
    max_size=6,
)
HEADER_FIRST = st.booleans()  # half of all edits go to the first kilobytes


def mutated(content: bytes, edits: list[tuple[float, str, int]], early: bool, cut: float) -> bytes:
    """A file with some bytes changed, removed, doubled or cut off."""
    data = bytearray(content)
    for where, how, value in edits:
        at = int(where * (min(len(data), 1500) if early else len(data)))
        if how == "flip":
            data[at] ^= 1 << (value % 8)
        elif how == "set":
            data[at] = value % 256
        elif how == "number":
            data[at : at + 4] = value.to_bytes(4, "little")
        elif how == "drop":
            del data[at : at + value % 40]
        elif how == "double":
            data[at:at] = data[at : at + value % 40]
        else:
            data[at : at + value % 40] = bytes(value % 40)
        data = data or bytearray(b"\0")
    return bytes(data[: max(1, int(cut * len(data)))]) if cut < 0.9 else bytes(data)


def read_all(found: Found) -> None:
    """Read every candidate as prepare does; what it would call unreadable is an answer too."""
    for one in found.candidates:
        try:
            read(one)
        except (Refused, Exception) as told:
            code = told.code if isinstance(told, Refused) else type(told).__name__
            ANSWERS[code] += 1
            if code in ("MemoryError", "AssertionError"):
                raise


def read(candidate: Candidate) -> None:
    scan = candidate.read_image()
    assert scan.image.ndim == 3
    if candidate.read_label:
        mask = candidate.read_label(scan)
        assert set(np.unique(np.asanyarray(mask.image.dataobj))) <= {0, 1}


def check(folder: Path, victim: Path, edits: list, early: bool, cut: float) -> None:  # type: ignore[type-arg]
    """Mutate one file, read the folder, put the file back."""
    content = victim.read_bytes()
    changed = mutated(content, edits, early, cut)
    (folder / "last_input").write_bytes(changed)  # what to look at after a crash
    victim.write_bytes(changed)
    begun = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read_all(find(folder))
    finally:
        victim.write_bytes(content)
    assert time.monotonic() - begun < SECONDS
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert kilobytes * (1 if sys.platform == "darwin" else 1024) < BYTES


def find(folder: Path) -> Found:
    images, labels = folder / "images", folder / "labels"
    if (images / "p1.nii.gz").exists() or (images / "p1.nii").exists():
        return find_nifti_pairs(images, labels, None, Reading())
    return find_dicom(images, labels if labels.exists() else None, "CT", Reading(choice=None))


def with_series(folder: Path, syntax: str | None = None) -> Path:
    write_series(folder / "images" / "p1", pixels=PIXELS)
    victim = sorted((folder / "images" / "p1").iterdir())[1]
    if syntax:
        one = pydicom.dcmread(victim)
        if syntax == DeflatedExplicitVRLittleEndian:
            one.file_meta.TransferSyntaxUID = syntax
        else:
            one.compress(syntax, generate_instance_uid=False)
        one.save_as(victim)
    return victim


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
    return write_contours(
        file, {"Pancreas": [square, [at(2, *p) for p in ((1, 1), (9, 1), (9, 9))]]}
    )


def with_nifti(folder: Path, ending: str) -> Path:
    for role, values in (("images", PIXELS), ("labels", PIXELS > 0)):
        (folder / role).mkdir()
        nib.save(
            nib.Nifti1Image(values[:, :16, :16].astype(np.int16), np.eye(4)),
            folder / role / f"p1{ending}",
        )
    return folder / "images" / f"p1{ending}"


FORMS: dict[str, Callable[[Path], Path]] = {
    "ct": with_series,
    "ct_deflated": lambda folder: with_series(folder, DeflatedExplicitVRLittleEndian),
    "ct_rle": lambda folder: with_series(folder, RLELossless),
    "ct_jpeg2000": lambda folder: with_series(folder, JPEG2000Lossless),
    "ct_jpegls": lambda folder: with_series(folder, JPEGLSLossless),
    "seg": lambda folder: with_label(folder, "seg.dcm"),
    "rtstruct": lambda folder: with_label(folder, "rt.dcm"),
    "nrrd": lambda folder: with_label(folder, "p1.seg.nrrd"),
    "nifti": lambda folder: with_nifti(folder, ".nii"),
    "nifti_gz": lambda folder: with_nifti(folder, ".nii.gz"),
}


@pytest.fixture(params=FORMS)
def victim(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    folder = tmp_path / "fuzz"
    folder.mkdir()
    yield folder, FORMS[request.param](folder)
    shutil.rmtree(folder)


def test_whatever_a_file_holds_there_is_an_answer(victim: tuple[Path, Path]) -> None:
    folder, file = victim
    count = 0

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(EDITS, HEADER_FIRST, st.floats(0, 4))
    def every(edits: list[tuple[float, str, int]], early: bool, cut: float) -> None:
        nonlocal count
        count += 1
        check(folder, file, edits, early, cut)

    begun = time.monotonic()
    every()
    print(f"\n{dict(ANSWERS)}")
    ANSWERS.clear()
    print(f"{file.name}: {count} inputs, {time.monotonic() - begun:.0f} s, seed {SEED}")
    assert count >= EXAMPLES
