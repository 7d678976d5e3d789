"""Files of a stranger beside checkpoints: through each door one line, and nothing is run."""

import ast
import json
import pickle
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pancseg.dataset.manifest import read_manifest
from pancseg.dataset.splits import deal
from pancseg.dataset.volume_cache import ARRAYS, Source, VolumeCache, path_of
from pancseg.errors import PancsegError
from pancseg.inference.postprocess import recorded, side_file
from pancseg.inference.trust import kept_trust, trust_file
from pancseg.output.run_files import open_run
from pancseg.preparing.unfinished import read_record
from tests.bounded import within
from tests.conftest import Command
from tests.test_hostile_checkpoints import Mark

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
    "torch.load": {"inference/archive.py"},
    "import_module": {
        "learning/building.py",
        # names of our own
        "api.py", "command.py", "hydra_names.py", "checkup/examination.py", "checkup/software.py",
    },
    # Slurm's programs and nvidia-smi, with words of our own
    "subprocess.run": {"launching.py", "requeue.py", "checkup/gpu.py"},
    # of what the user typed, never of a file's
    "instantiate": {"prepare.py", "training/assembly.py"},
    "torch.export.load": {"exporting/whole_scan.py"},  # in a bundle, which is a program
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
def test_nothing_in_the_source_runs_or_fetches_what_a_file_holds(word: str) -> None:
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
def test_what_could_run_a_file_stands_in_one_place(word: str) -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for name in named_in(path)
        if name == word or (name.endswith(f".{word}") and "." not in word)
    }
    assert found == KNOWN[word]


def test_torch_is_told_to_load_weights_alone_and_numpy_no_objects() -> None:
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
    ("cases", "case", "../../escaped"),
    ("cases", "case", "/escaped"),
    ("cases", "case", ".."),
    ("cases", "case", "a\\..\\b"),
    ("cases", "case", "a\nb"),
    ("cases", "case", ""),
    ("cases", "case", 7),
    ("cases", "case", "x" * 5000),
    ("cases", "patient", "../x"),
    ("cases", "image", "../../../secret.nii.gz"),
    ("cases", "image", "/secret.nii.gz"),
    ("cases", "image", "cases/../../secret.nii.gz"),
    ("cases", "image", None),
    ("cases", "label", "C:\\secret.nii.gz"),
    ("cases", "label", 3),
    ("cases", "sha256", None),
    ("cases", "shape", [10**30, 1, 1]),
    ("cases", "shape", [1, 1]),
    ("cases", "shape", "abc"),
    ("cases", "spacing_mm", [0, 1, 1]),
    ("cases", "spacing_mm", [float("nan"), 1, 1]),
    ("groups", "group", "../../escaped"),
    ("groups", "image", "../secret.nii.gz"),
    ("groups", "label", "//host/share/secret.nii.gz"),
    ("groups", "case", "nobody"),
]


@pytest.mark.parametrize(("kind", "key", "value"), ENTRIES)
def test_a_manifest_names_nothing_outside_its_folder(
    kind: str, key: str, value: Any, root: Path
) -> None:
    edit(root, lambda manifest: manifest[kind][0].__setitem__(key, value))
    with pytest.raises(
        PancsegError, match=r"manifest\.json: not a manifest as this version writes it [^\n]+$"
    ):
        read_manifest(root)


@pytest.mark.parametrize("name", ["prepare", "train", "evaluate"])
def test_a_manifest_that_leads_elsewhere_ends_each_command_with_one_line(
    name: str, root: Path, dicom: Path, trained: Path, tmp_path: Path, command: Command
) -> None:
    edit(root, lambda manifest: manifest["cases"][0].__setitem__("case", "../../../escaped"))
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
    assert "case is '../../../escaped', which is no name" in ended.err
    after = {path for path in tmp_path.rglob("*") if "run" not in path.parts}
    assert {path.name for path in after - before} <= {".lock"}


def test_a_record_of_an_unfinished_preparation_names_nothing_outside(tmp_path: Path) -> None:
    case = {
        "case": "../../escaped", "patient": "p", "image": "cases/p_image.nii.gz", "label": None,
        "shape": [1, 1, 1], "spacing_mm": [1, 1, 1], "label_voxels": None, "origin": "o",
        "source": "s", "sha256": "", "phantom": False,
    }  # fmt: skip
    (tmp_path / ".unfinished").mkdir()
    record = tmp_path / ".unfinished" / "o.json"
    for name, is_taken in (("p", True), ("../../escaped", False)):
        told = {"case": {**case, "case": name}, "groups": [], "rows": [], "name": "p", "source": ""}
        record.write_text(json.dumps(told))
        assert (read_record(tmp_path, "o", {}) is not None) == is_taken
    record.write_text(DEEP)
    assert read_record(tmp_path, "o", {}) is None


def test_json_that_is_too_deep_is_refused_through_every_door(root: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.touch()
    doors: list[tuple[Path, Callable[[], object]]] = [
        (root / "manifest.json", lambda: read_manifest(root)),
        (side_file(checkpoint), lambda: recorded(checkpoint)),
        (trust_file(checkpoint), lambda: kept_trust(checkpoint)),
        (tmp_path / "split.json", lambda: deal(["p"], "file", path=str(tmp_path / "split.json"))),
    ]
    for path, read in doors:
        for content in (DEEP.encode(), pickle.dumps(Mark(tmp_path / "hacked")), b"\x00\xff", b"3"):
            path.write_bytes(content)
            with pytest.raises(PancsegError, match=r"^[^\n]*" + path.name):
                read()
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("lists", [[{}], [["p1"]], [3], "p1", [None]])
def test_a_split_of_anything_but_names_is_refused(lists: Any, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["p1"], "val": [], "test": lists}))
    with pytest.raises(PancsegError, match=r"split\.json: is JSON, but not a split"):
        deal(["p1"], "file", path=str(path))


@pytest.mark.parametrize("form", ["pickle", "objects", "archive"])
def test_a_volume_in_the_cache_that_is_no_array_is_made_anew(form: str, tmp_path: Path) -> None:
    source = Source("n", "p", tmp_path / "i", tmp_path / "l", "key", 1)
    for path in (source.image, source.label):
        path.touch()
    mark = Mark(tmp_path / "hacked")
    for name in ARRAYS:
        path = path_of(tmp_path, source, name)
        if form == "pickle":
            path.write_bytes(pickle.dumps(mark))
        elif form == "objects":
            np.save(path, np.array([mark], dtype=object), allow_pickle=True)
        else:
            with path.open("wb") as file:
                np.savez(file, np.zeros(3))
    assert not VolumeCache(tmp_path, None).is_whole(source)  # type: ignore[arg-type]
    assert not (tmp_path / "hacked").exists()


def test_a_runs_configuration_looks_nothing_up_and_fills_no_memory(
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
