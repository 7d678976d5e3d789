"""Hostile scans, manifests, records, caches and run files: nothing runs, leaks or fills memory."""

import ast
import csv
import gzip
import json
import os
import pickle
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from pancseg.data.cache import ARRAYS, VolumeCache, arrays_of
from pancseg.data.manifest import read_manifest
from pancseg.data.splits import make_split
from pancseg.data.transforms import Preprocessing
from pancseg.dicom.labels import read_rtstruct
from pancseg.errors import REASON_LENGTH, PancsegError, Refused
from pancseg.inference.calibration import calibration_path, read_calibration
from pancseg.inference.postprocessing import postprocess_path, read_postprocess
from pancseg.reports.run_folder import open_run
from tests.bounded import within
from tests.conftest import Command, Ended
from tests.test_hostile_checkpoints import Mark
from tests.tiny_dicom import put, write_series
from tests.tiny_labels import (
    LIVER,
    Frame,
    at,
    scan_of,
    structures,
    write_contours,
    write_segmentation,
)
from tests.tiny_root import write_root

PACKAGE = Path(__file__).parents[1] / "pancseg"
DEEP = "[" * 200_000
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "pickle", "cPickle", "dill", "cloudpickle", "shelve",
    "marshal", "joblib", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "np.load", "numpy.load", "np.fromfile", "torch.jit.load", "torch.hub",
    "zipfile.Path", "xml", "tarfile", "shutil.unpack_archive", "jinja2.Template", "ctypes",
    "urllib", "requests", "socket", "http", "ftplib", "smtplib", "OmegaConf.load",
}  # fmt: skip
# where each of these may stand, and with what beside it
KNOWN = {
    "torch.load": {"models/pretrained.py"},
    "import_module": {
        "models/factory.py",
        # names of our own
        "api.py", "cli.py",
    },
    # Slurm's programs and nvidia-smi, with words of our own
    "subprocess.run": {"signals.py", "hardware.py", "doctor.py"},
    # of what the user typed, never of a file's
    "instantiate": {"prepare.py", "training/setup.py", "training/callbacks.py"},
}  # fmt: skip


@cache
def named_in(path: Path) -> set[str]:
    """Dotted names that a file imports or uses."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call):
            names.add(ast.unparse(node.func))
    return names


def is_named(word: str, names: set[str]) -> bool:
    return any(name == word or name.startswith(f"{word}.") for name in names)


@pytest.mark.parametrize("word", sorted(FORBIDDEN))
def test_the_package_uses_nothing_that_runs_or_fetches_the_content_of_a_file(word: str) -> None:
    found = [
        str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py") if is_named(word, named_in(p))
    ]
    assert found == [] or (word == "pickle" and only_an_error(found))


def only_an_error(found: list[str]) -> bool:
    """Whether pickle is named for the error that torch raises, and for nothing else."""
    return all(
        {name for name in named_in(PACKAGE / one) if name.startswith("pickle")}
        <= {"pickle", "pickle.UnpicklingError"}
        for one in found
    )


@pytest.mark.parametrize("word", KNOWN)
def test_functions_that_could_run_a_file_are_used_in_known_modules(word: str) -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for name in named_in(path)
        if name == word or (name.endswith(f".{word}") and "." not in word)
    }
    assert found == KNOWN[word]


def test_torch_loads_weights_only_and_numpy_no_objects() -> None:
    calls = [
        node
        for path in [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("benchmarks/*.py")]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    loads = [node for node in calls if ast.unparse(node.func) == "torch.load"]
    assert loads
    for node in loads:
        assert "weights_only=True" in ast.unparse(node)
    assert not [node for node in calls if "allow_pickle=True" in ast.unparse(node)]


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    copied = tmp_path / "site" / "root"
    shutil.copytree(prepared, copied, ignore=shutil.ignore_patterns("cache"))
    return copied


def edit(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads((root / "manifest.json").read_text())
    change(value)
    (root / "manifest.json").write_text(json.dumps(value))


ENTRIES: list[tuple[str, str, Any]] = [
    ("cases", "name", "a\\..\\b"),
    ("cases", "name", "a\nb"),
    ("cases", "name", ""),
    ("cases", "name", "x" * 5000),
    ("cases", "image", None),
    ("cases", "label", "C:\\secret.nii.gz"),
    ("cases", "shape", [10**30, 1, 1]),
    ("cases", "spacing_mm", [float("nan"), 1, 1]),
    ("groups", "group", "../../escaped"),
    ("groups", "label", "//host/share/secret.nii.gz"),
    ("groups", "first_slice", 10**30),
]


@pytest.mark.parametrize(("kind", "key", "value"), ENTRIES)
def test_a_manifest_cannot_name_files_outside_its_folder_or_hold_impossible_numbers(
    kind: str, key: str, value: Any, root: Path
) -> None:
    edit(root, lambda manifest: manifest[kind][0].__setitem__(key, value))
    with pytest.raises(
        PancsegError, match=r"manifest\.json: not a manifest as this version writes it [^\n]+$"
    ):
        read_manifest(root)


@pytest.mark.parametrize("name", ["prepare", "train", "evaluate"])
def test_each_command_ends_with_one_line_where_a_manifest_leads_elsewhere(
    name: str, root: Path, dicom: Path, trained: Path, tmp_path: Path, command: Command
) -> None:
    edit(root, lambda manifest: manifest["cases"][0].__setitem__("name", "../../../escaped"))
    before = {path for path in tmp_path.rglob("*") if "run" not in path.parts}
    words = {
        "prepare": [
            f"source.images={dicom / 'images'}", f"source.labels={dicom / 'labels'}",
            "privacy=none", "data.depth=32", "data.tail=shift",
        ],
        "train": ["experiment=smoke", "data.depth=32", f"hydra.run.dir={tmp_path / 'run'}"],
        "evaluate": [f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}"],
    }  # fmt: skip
    ended = command(name, *words[name], f"data.root={root}")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "cases[0].name is '../../../escaped'" in ended.err
    after = {path for path in tmp_path.rglob("*") if "run" not in path.parts}
    assert {path.name for path in after - before} <= {".lock"}


@pytest.mark.parametrize("damage", ["outside", "deep"])
def test_a_record_of_a_shard_that_was_edited_is_not_used(
    damage: str, tmp_path: Path, command: Command
) -> None:
    write_series(tmp_path / "scans")
    victim = tmp_path / "victim.nii.gz"
    victim.write_bytes(b"untouched")

    def run(root: str, *more: str) -> Ended:
        return prepare(command, tmp_path / "scans", tmp_path / "site" / root, *more)

    assert run("plain").code == run("root", "shard=0/1").code == 0
    [record] = (tmp_path / "site" / "root" / ".records").glob("*.json")
    value = json.loads(record.read_text())
    value["case"]["image"] = "../../victim.nii.gz"
    record.write_text(json.dumps(value) if damage == "outside" else DEEP)
    assert run("root").code == 0
    assert victim.read_bytes() == b"untouched"
    plain, edited = (read_manifest(tmp_path / "site" / root) for root in ("plain", "root"))
    assert edited.cases == plain.cases


def test_json_that_is_too_deep_or_a_pickle_is_refused_wherever_json_is_read(
    root: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.touch()
    readers: list[tuple[Path, Callable[[], object]]] = [
        (root / "manifest.json", lambda: read_manifest(root)),
        (postprocess_path(checkpoint), lambda: read_postprocess(checkpoint)),
        (calibration_path(checkpoint), lambda: read_calibration(checkpoint)),
        (
            tmp_path / "split.json",
            lambda: make_split(["p"], "file", path=str(tmp_path / "split.json")),
        ),
    ]
    for path, read in readers:
        for content in (DEEP.encode(), pickle.dumps(Mark(tmp_path / "hacked")), b"\x00\xff", b"3"):
            path.write_bytes(content)
            with pytest.raises(PancsegError, match=r"^[^\n]*" + path.name):
                read()
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("form", ["pickle", "objects", "archive"])
def test_a_volume_in_the_cache_that_is_not_an_array_is_not_opened(
    form: str, tmp_path: Path
) -> None:
    cases = write_root(tmp_path / "root", "a").cases
    preprocessing = Preprocessing("RAS", (8.0, 8.0, 8.0), (-200.0, 200.0), (16, 16, 16))
    volumes = VolumeCache(tmp_path / "root", tmp_path / ("f" * 16), preprocessing, cases)
    volumes.fill()
    assert volumes.is_complete(cases[0])
    mark = Mark(tmp_path / "hacked")
    for name in ARRAYS:
        path = volumes.folder / arrays_of(cases[0])[name]
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        if form == "pickle":
            path.write_bytes(pickle.dumps(mark))
        elif form == "objects":
            np.save(path, np.array([mark], dtype=object), allow_pickle=True)
        else:
            with path.open("wb") as file:
                np.savez(file, np.zeros(3))
        os.utime(path, ns=times)
    assert not volumes.is_complete(cases[0])
    assert not (tmp_path / "hacked").exists()


def test_the_configuration_of_a_run_resolves_no_environment_variable_and_fills_no_memory(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / ".hydra" / "overrides.yaml").write_text("- seed=${oc.env:SECRET_TOKEN}\n")
    assert "hush" not in open_run(run).command()
    task = "hydra: {overrides: {task: ['seed=${oc.env:SECRET_TOKEN}']}}"
    (run / "multirun.yaml").write_text(task)
    assert open_run(run).command().endswith(" seed=${oc.env:SECRET_TOKEN}")
    config = run / ".hydra" / "config.yaml"
    config.write_text("a: ${oc.env:SECRET_TOKEN}\n")
    assert open_run(run).composed() == {"a": "${oc.env:SECRET_TOKEN}"}
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
    )
    for content in (bomb, "!!python/object/apply:os.system ['touch hacked']", "[" * 500, "- 1"):
        config.write_text(content)
        with within(500), pytest.raises(PancsegError, match=r"config\.yaml: [^\n]+$"):
            open_run(run).composed()
    assert not Path("hacked").exists()


# scans


def prepare(command: Command, images: Path, root: Path, *more: str) -> Ended:
    """Prepare a folder of images, by default without labels, under pseudonyms."""
    words = [f"source.images={images}", f"data.root={root}", "data.depth=null"]
    labels = [] if any(word.startswith("source.labels") for word in more) else ["null"]
    return command("prepare", *words, *(f"source.labels={word}" for word in labels), *more)


def rows_of(root: Path) -> list[dict[str, str]]:
    """The table, read with the limit that Python has for a field."""
    with (root / "intake.csv").open(newline="") as table:
        return list(csv.DictReader(table))


def long_text(keyword: str) -> Callable[[Path], object]:
    """Writes a series with a value of 200,000 letters; only implicit VR has room for it."""

    def implicit(slices: list[Dataset]) -> None:
        put(**{keyword: "A" * 200_000})(slices)
        for dataset in slices:
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian

    return lambda folder: write_series(folder / "images" / "long", damage=implicit)


def many_segments(folder: Path) -> None:
    """Write a scan, and its SEG of 1,000 segments with 240,000 letters, none of which is chosen."""
    write_series(folder / "images" / "long")
    segments = dict.fromkeys(range(1, 1001), ("Liver " * 40, *LIVER[1:]))
    pixels = np.ones((4, 3), np.uint8)
    write_segmentation(folder / "images" / "seg.dcm", [Frame(pixels, at(1))], segments=segments)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize(
    ("make", "code"),
    [
        (long_text("PatientID"), ""),
        (long_text("SeriesInstanceUID"), ""),
        (long_text("StudyInstanceUID"), ""),
        (long_text("Manufacturer"), ""),
        (long_text("Modality"), "not_ct"),
        (long_text("ImageType"), ""),
        (many_segments, "ambiguous_segment"),
    ],
)
def test_long_texts_stop_neither_later_runs_nor_other_folders_with_the_same_key(
    tmp_path: Path, command: Command, make: Callable[[Path], object], code: str
) -> None:
    images, more = tmp_path / "images", []
    make(tmp_path)
    if (images / "seg.dcm").exists():
        more = [f"source.labels={images}"]
    else:
        write_series(images / "good", patient_id="GOOD")
    for root in ("a", "a", "b"):
        ended = prepare(command, images, tmp_path / "site" / root, *more)
        assert ended.code == bool(code), ended.err
        rows = rows_of(tmp_path / "site" / root)
        assert max(len(value) for row in rows for value in row.values()) <= REASON_LENGTH
        reasons = {row["reason"].partition(":")[0] for row in rows if row["status"] == "refused"}
        assert code in reasons or not (code or reasons)
        write_series(images / f"later {root}", patient_id="LATER", first=(0, 0, 900))


@contextmanager
def within_seconds(seconds: float) -> Iterator[None]:
    """Raise TimeoutError where the body takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes")
@pytest.mark.parametrize(
    ("source", "name", "pattern"),
    [
        ("dicom", "good/pipe.dcm", ""),
        ("dicom", "pipe.dcm", "*"),
        ("nifti", "pipe.nii.gz", ""),
        ("nifti", "pipe.nii.gz", "*.nii.gz"),
    ],
)
def test_a_pipe_among_the_files_is_a_row_and_is_never_opened(
    tmp_path: Path, command: Command, source: str, name: str, pattern: str
) -> None:
    write_series(tmp_path / "images" / "good")
    nib.save(nib.Nifti1Image(np.eye(4)[None], np.eye(4)), tmp_path / "images" / "good.nii.gz")
    os.mkfifo(tmp_path / "images" / name)  # opening it would wait for a writer
    with within_seconds(30):
        images = tmp_path / "images" / pattern
        ended = prepare(command, images, tmp_path / "root", f"source={source}")
    assert ended.code == 1, ended.err
    [row] = [row for row in rows_of(tmp_path / "root") if row["path"].endswith(name)]
    assert (row["status"], row["reason"].partition(":")[0]) == ("refused", "not_a_file")


def rewrite(folder: Path, change: Callable[[Dataset], None]) -> None:
    """Change each file of a series."""
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path, enforce_file_format=True)


def claim_20_000_pixels(dataset: Dataset) -> None:
    """Compress, and change the size of image and tile in the codestream."""
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    stream = bytearray(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    for start in (8, 12, 24, 28):
        stream[start : start + 4] = (20_000).to_bytes(4)
    dataset.PixelData = encapsulate([bytes(stream)])


def add_400_mb(dataset: Dataset) -> None:
    """Add private data that pack to nearly nothing."""
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.add_new(0x00091010, "OB", bytes(400_000_000))


@pytest.mark.parametrize(
    ("change", "code"), [(claim_20_000_pixels, "undecodable"), (add_400_mb, "too_large")]
)
def test_small_dicom_files_that_claim_much_are_refused_within_little_memory(
    tmp_path: Path, command: Command, change: Callable[[Dataset], None], code: str
) -> None:
    count = 1 if code == "too_large" else 3
    write_series(tmp_path / "images" / "bad", size=(32, 32), count=count)
    rewrite(tmp_path / "images" / "bad", change)
    write_series(tmp_path / "images" / "good", patient_id="GOOD")
    with within(300):
        ended = prepare(command, tmp_path / "images", tmp_path / "root")
    assert ended.code == 1, ended.err
    rows = rows_of(tmp_path / "root")
    assert {row["reason"].partition(":")[0] for row in rows} == {code, ""}
    assert [Path(row["path"]).name for row in rows if row["status"] == "kept"] == ["good"]


def test_a_small_nifti_that_claims_much_takes_at_most_ten_times_its_voxels(
    tmp_path: Path, command: Command
) -> None:
    """uint8 becomes int16 and codes; numpy.isin and argwhere of the label alone take more."""
    shape = (512, 512, 200)
    claimed_mb = np.prod(shape) / 2**20
    header = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.eye(4)).header
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    for role in ("images", "labels"):
        (tmp_path / role).mkdir()
        voxels = bytes(1) + b"\1" * (np.prod(shape) - 1)
        content = gzip.compress(header.binaryblock + bytes(4) + voxels)
        (tmp_path / role / "p7.nii.gz").write_bytes(content)
        assert len(content) < 100_000
    source = ["source=nifti", f"source.labels={tmp_path / 'labels'}"]
    with within(int(10 * claimed_mb)):
        ended = prepare(command, tmp_path / "images", tmp_path / "root", *source)
    assert ended.code == 0, ended.err


def test_the_work_of_reading_an_rtstruct_grows_with_its_rois_and_not_faster(
    tmp_path: Path,
) -> None:
    stack = scan_of(tmp_path / "scan").stack
    assert stack is not None

    def calls(count: int) -> int:
        """Function calls that reading an RTSTRUCT of so many ROIs takes."""
        names = [f"R{n}" for n in range(count)]
        contour = [at(1, *corner) for corner in ((0, 0), (0, 3), (2, 3), (2, 0))]
        codes = dict.fromkeys(names, ("15776009", "Pancreas"))
        file = tmp_path / f"{count}.dcm"
        write_contours(file, {key: [contour] for key in names}, codes=codes)
        counted = [0]
        sys.setprofile(lambda *_: counted.__setitem__(0, counted[0] + 1))
        try:
            with pytest.raises(Refused, match="no_such_roi"):
                read_rtstruct(file, stack, structures(["spleen"]))
            read_rtstruct(file, stack, structures(["R7"]))
        finally:
            sys.setprofile(None)
        return counted[0]

    assert calls(800) < 2.2 * calls(400)
