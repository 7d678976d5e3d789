"""Fuzz: readers of mutated files of every form return or refuse, soon and within bounds.

`make fuzz` runs it, outside the default suite; the seed makes a run repeatable.
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

from pancseg.dicom.labels import read_rtstruct, read_segmentation
from pancseg.dicom.series import (
    Repair,
    Scan,
    find_series,
    read_mask_series,
    read_series,
    series_extent,
)
from pancseg.errors import Refused
from pancseg.intake.volume_files import ReadOptions, is_volume_file, read_label_file, read_scan_file
from pancseg.structures import LabelMap
from tests.tiny_dicom import write_series
from tests.tiny_labels import (
    Frame,
    at,
    structures,
    write_contours,
    write_nrrd,
    write_segmentation,
)

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


def read_scan(folder: Path) -> Scan:
    """The scan in a folder, read as ``prepare`` reads it."""
    files = sorted(folder.iterdir())
    if any(is_volume_file(file) for file in files):
        return read_scan_file(files[0])
    series, _ = find_series(folder, files)
    for other in series[1:]:
        series_extent(other.files)
    if not series or series[0].problem:
        raise Refused("skipped", "by its header")
    scan = read_series(series[0].files, Repair(gaps=True, tilt=True))
    assert scan.image.ndim == 3
    return scan


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


def check(folder: Path, victim: Path, edits: list, early: bool, cut: float) -> None:  # type: ignore[type-arg]
    """Mutate a file, read the folder, restore the file."""
    content = victim.read_bytes()
    changed = mutated(content, edits, early, cut)
    (folder / "last_input").write_bytes(changed)  # to be read after a crash
    victim.write_bytes(changed)
    begun = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scan = read_scan(folder / "images")
            for file in sorted((folder / "labels").glob("*")):
                values = np.asanyarray(read_label(file, scan).image.dataobj)
                assert set(np.unique(values)) <= {0, 1}
            ANSWERS["read"] += 1
    except Refused as refused:  # any other error fails
        ANSWERS[refused.code] += 1
    finally:
        victim.write_bytes(content)
    assert time.monotonic() - begun < SECONDS
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert kilobytes * (1 if sys.platform == "darwin" else 1024) < BYTES


def with_series(folder: Path, syntax: str | None = None) -> Path:
    write_series(folder / "images", pixels=PIXELS)
    victim = sorted((folder / "images").iterdir())[1]
    if syntax:
        dataset = pydicom.dcmread(victim)
        if syntax == DeflatedExplicitVRLittleEndian:
            dataset.file_meta.TransferSyntaxUID = syntax
        else:
            dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(victim)
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


def test_a_damaged_file_is_read_or_refused(victim: tuple[Path, Path]) -> None:
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
