"""Work grows in proportion to the number of patients: steps of Python are counted, not seconds."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from pancseg.data.manifest import Case, Group, Row
from pancseg.data.splits import Split, make_split, persons_of
from pancseg.inference.find_scans import case_names, find_scans
from pancseg.intake.checks import Checks
from pancseg.intake.convert import GroupSettings, Preparation, PrepareSettings, Result
from pancseg.intake.pseudonyms import make_pseudonyms
from tests.tiny_root import STRUCTURES, case_of

LARGEST_RATIO = 1.05  # of the work a patient, among many and among few


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


def case(n: int, **fields: Any) -> Case:
    """A case with its own study and PatientID."""
    hashes = {"study_hash": f"study{n}", "patient_id_hash": f"person{n}", "input_hash": f"hash{n}"}
    return case_of(f"p{n:06}", **hashes, **fields)


def merge(root: Path, patients: int) -> Preparation:
    """Merge patients; then a half of them again, every fifth of which has become a duplicate."""
    checks = Checks(refuse=["duplicate_pixels"])
    settings = PrepareSettings(root, GroupSettings(8, "shift", False), checks, STRUCTURES)
    merged = Preparation(settings, {"depth": 8}, make_pseudonyms("none", root))
    for step in (1, 2):
        results = []
        for n in range(0, patients, step):
            own = case(n, voxel_hash=f"pixels {1 if n % 10 == 0 and step == 2 else n}")
            names = own.patient, own.name
            rows = [Row(*names, f"/{kind}/{n}", kind, "kept") for kind in ("image", "label")]
            group = Group(f"{own.name}_0000", own.name, own.patient, 0, "i", "l", 2, "sha", "sha")
            groups = [replace(group, name=f"{own.name}_{start:04}") for start in (0, 8, 16)]
            results.append(Result(own.input_hash, rows, own, groups))
        jobs: Any = [SimpleNamespace(input_hash=result.input_hash) for result in results]
        merged.merge(jobs, results)
    for path in root.iterdir():
        path.unlink()
    return merged


@pytest.fixture(autouse=True)
def _without_contact_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pancseg.intake.convert.draw_contact_sheet", lambda *_: None)


def test_merging_results_of_which_some_are_refused_is_linear(tmp_path):
    check_linear(lambda n: merge(tmp_path, n), 60, few=20)
    merged = merge(tmp_path, 20)
    assert sorted(merged.cases) == sorted(f"hash{n}" for n in range(20) if n % 10)
    refused = {row.path for row in merged.rows.values() if row.status == "refused"}
    assert refused == {f"/{kind}/{n}" for n in (0, 10) for kind in ("image", "label")}


def test_naming_scans_is_linear_and_gives_no_name_twice(tmp_path):
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


def test_finding_persons_and_splitting_is_linear():
    check_linear(split_all, 60, few=10)
