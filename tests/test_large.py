"""Work grows in proportion to the number of patients: steps of Python are counted, not seconds."""

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from pancseg.data.manifest import Case, Group, Row
from pancseg.data.splits import Split, make_split, persons_of
from pancseg.inference.find_scans import case_names, find_scans
from pancseg.intake.checks import Checks
from pancseg.intake.convert import GroupSettings, Preparation, PrepareSettings, Result
from pancseg.intake.match_labels import SourceContents, SourceItem, add_cases, match_labels
from pancseg.intake.pseudonyms import make_pseudonyms
from pancseg.intake.volume_files import ReadOptions
from tests.tiny_root import STRUCTURES, case_of

LARGEST_RATIO = 1.05  # of the work a patient, among many and among few
OPTIONS = ReadOptions(STRUCTURES, processes=0)
SCAN: dict[str, Any] = {"patient": "P7", "files": (), "flags": (), "label_path": None}
SCAN |= dict.fromkeys(("input_key", "study_uid", "uid", "patient_id"), "")


def steps_run(work: Callable[[], object]) -> int:
    """Number of instructions of Python that are run; lines would not count comprehensions."""
    steps = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        nonlocal steps
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        steps += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return steps


def check_linear(work: Callable[[int], object], patients: int, few: int = 4) -> None:
    """An additional patient is the same number of steps, however many there are."""
    work(few)  # imports and caches
    once, half, whole = (steps_run(lambda n=n: work(n)) for n in (few, patients, 2 * patients))  # type: ignore[misc]
    ratio = (whole - half) / patients / ((half - once) / (patients - few))
    assert ratio < LARGEST_RATIO, (once, half, whole)


def case(n: int) -> Case:
    """A case with its own study and PatientID."""
    return case_of(
        f"p{n:06}", study_hash=f"study{n}", patient_id_hash=f"person{n}", input_hash=f"identity{n}"
    )


def groups_of(case: Case) -> list[Group]:
    """Four groups of a case."""
    names = {start: f"{case.name}_{start:04}" for start in (0, 8, 16, 24)}
    return [
        Group(name, case.name, case.patient, start, f"{name}_i", f"{name}_l", 2, "sha256", "sha256")
        for start, name in names.items()
    ]


def result(n: int, is_duplicate: bool) -> Result:
    """Result of a conversion; a duplicate has the voxels of case 1."""
    own = replace(case(n), voxel_hash=case(1 if is_duplicate else n).voxel_hash)
    rows = [Row(own.patient, own.name, f"/{kind}/{n}", kind, "kept") for kind in ("image", "label")]
    return Result(own.input_hash, rows, own, groups_of(own))


def merge(root: Path, patients: int) -> Preparation:
    """Merge patients; then a half of them again, every fifth of which has become a duplicate."""
    checks = Checks(refuse=["duplicate_pixels"])
    settings = PrepareSettings(root, GroupSettings(8, "shift", False), checks, STRUCTURES)
    preparation = Preparation(settings, {"depth": 8}, make_pseudonyms("none", root))
    for step in (1, 2):
        results = [result(n, n % 10 == 0 and step == 2) for n in range(0, patients, step)]
        jobs: Any = [SimpleNamespace(input_hash=each.input_hash) for each in results]
        preparation.merge(jobs, results)
    for path in root.iterdir():
        path.unlink()
    return preparation


@pytest.fixture(autouse=True)
def _without_contact_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pancseg.intake.convert.draw_contact_sheet", lambda *_: None)


def test_merging_results_of_which_some_are_refused_is_linear(tmp_path: Path) -> None:
    check_linear(lambda n: merge(tmp_path, n), 200, few=20)
    preparation = merge(tmp_path, 20)
    assert sorted(preparation.cases) == sorted(f"identity{n}" for n in range(20) if n % 10)
    refused = {row.path for row in preparation.rows.values() if row.status == "refused"}
    assert refused == {f"/{kind}/{n}" for n in (0, 10) for kind in ("image", "label")}


def test_naming_the_scans_of_a_single_patient_is_linear(tmp_path: Path) -> None:
    settings = PrepareSettings(tmp_path, GroupSettings(8, "shift", False), Checks(), STRUCTURES)

    def plan(scans: int) -> list[str]:
        preparation = Preparation(settings, {"depth": 8}, make_pseudonyms("none", tmp_path))
        cases: Any = [SimpleNamespace(**SCAN, path=Path(f"/{n}")) for n in range(scans)]
        return [job.name for job in preparation.plan(SourceContents(cases), set())]

    assert plan(3) == ["P7", "P7-2", "P7-3"]
    check_linear(plan, 30)


def match(patients: int) -> SourceContents:
    """Match labels with images of the same relative path; every second image has a problem."""

    def series(n: int, kind: str) -> SourceItem:
        folder = Path(f"/{kind}/p{n}")
        problem = "unreadable: damaged" if kind == "images" and n % 2 == 0 else ""
        fields: dict[str, Any] = {"uid": f"{kind}{n}", "patient_id": f"P{n}", "problem": problem}
        fields |= {"folder": folder, "path": folder, "files": (folder / "1.dcm",)}
        fields |= {"key": folder.name, "names_patient": False, "study_uid": f"study{n}"}
        return SourceItem(format="image", **fields)

    contents = SourceContents()
    images, masks = ([series(n, kind) for n in range(patients)] for kind in ("images", "labels"))
    add_cases(contents, images, match_labels(masks, images), OPTIONS)
    return contents


def test_matching_labels_with_images_is_linear() -> None:
    check_linear(match, 40)
    assert [str(case.path) for case in match(8).cases] == [f"/images/p{n}" for n in (1, 3, 5, 7)]


def test_finding_scans_beside_their_labels_is_linear(tmp_path: Path) -> None:
    def find(count: int) -> None:
        folder = tmp_path / str(count)
        folder.mkdir(exist_ok=True)
        for n, end in product(range(count), ("", "_label")):
            (folder / f"p{n:04}{end}.nii").touch()
        assert len(find_scans(folder, "CT", 0).cases) == count

    check_linear(find, 30)


def test_naming_scans_is_linear_and_gives_no_name_twice(tmp_path: Path) -> None:
    for name in ("a-2.nii.gz", "a.nii", "a.nii.gz", "A.nii"):
        (tmp_path / name).touch()
    scans = find_scans(tmp_path, "CT", 0).cases
    names = dict(zip((scan.path.name for scan in scans), case_names(scans, tmp_path), strict=True))
    assert names == {"A.nii": "A", "a-2.nii.gz": "a-2", "a.nii": "a-3", "a.nii.gz": "a-4"}
    check_linear(lambda n: case_names(n * scans, tmp_path), 100)


def split_all(patients: int) -> list[Split]:
    cases = [case(n) for n in range(patients)]
    names, persons = [each.patient for each in cases], persons_of(cases)
    return [make_split(names, rule, persons=persons) for rule in ("holdout", "kfold")]


def test_finding_persons_and_splitting_is_linear() -> None:
    check_linear(split_all, 60, few=10)


class CountingName(str):
    """A name that counts comparisons."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        CountingName.compared += 1
        return str.__eq__(self, other)


@pytest.mark.parametrize("rule", ["holdout", "kfold"])
def test_splitting_compares_no_patient_with_all_others(rule: str) -> None:
    CountingName.compared = 0
    make_split([CountingName(n) for n in range(300)], rule)
    assert CountingName.compared < 10 * 300


@pytest.mark.slow
def test_two_thousand_patients_are_twice_the_work_of_half_of_them(tmp_path: Path) -> None:
    check_linear(lambda n: (merge(tmp_path, n), match(n), split_all(n)), 1000, few=20)
