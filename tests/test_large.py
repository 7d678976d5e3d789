"""Work grows in proportion to the number of patients: steps of Python are counted, not seconds."""

import sys
from types import SimpleNamespace

from pancseg.data.manifest import Group, Row
from pancseg.data.splits import make_split, persons_of
from pancseg.intake.checks import Checks
from pancseg.intake.convert import GroupSettings, Preparation, PrepareSettings, Result
from pancseg.intake.pseudonyms import make_pseudonyms
from tests.tiny_root import STRUCTURES, case_of

LARGEST_RATIO = 1.05  # of the work a patient, among many and among few


def steps_run(work):
    """Number of instructions of Python that are run; lines would not count comprehensions."""
    steps = 0

    def trace(frame, event, arg):
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


def check_linear(work, patients, few=4):
    work(few)  # imports and caches
    once, half, whole = (steps_run(lambda n=n: work(n)) for n in (few, patients, 2 * patients))
    ratio = (whole - half) / patients / ((half - once) / (patients - few))
    assert ratio < LARGEST_RATIO, (once, half, whole)


def case(n, **fields):
    hashes = {"study_hash": f"study{n}", "patient_id_hash": f"person{n}", "input_hash": f"hash{n}"}
    return case_of(f"p{n:06}", **hashes, **fields)


def merge(root, patients):
    """Merge patients; then every second of them again, of which a fifth are duplicates now."""
    checks = Checks(refuse=["duplicate_pixels"])
    settings = PrepareSettings(root, GroupSettings(8, "shift", False), checks, STRUCTURES)
    merged = Preparation(settings, {"depth": 8}, make_pseudonyms("none", root))
    for step in (1, 2):
        results = []
        for n in range(0, patients, step):
            own = case(n, voxel_hash=f"pixels {1 if n % 10 == 0 and step == 2 else n}")
            rows = [Row(own.patient, own.name, f"/image/{n}", "image", "kept")]
            group = Group(f"{own.name}_0000", own.name, own.patient, 0, "i", "l", 2, "sha", "sha")
            results.append(Result(own.input_hash, rows, own, [group]))
        jobs = [SimpleNamespace(input_hash=result.input_hash) for result in results]
        merged.merge(jobs, results)
    assert len(merged.cases) == patients - patients // 10
    for path in root.iterdir():
        path.unlink()


def test_merging_and_splitting_are_linear(tmp_path, monkeypatch):
    monkeypatch.setattr("pancseg.intake.convert.draw_contact_sheet", lambda *_: None)
    check_linear(lambda n: merge(tmp_path, n), 60, few=20)

    def split_all(patients):
        cases = [case(n) for n in range(patients)]
        for rule in ("holdout", "kfold"):
            make_split([each.patient for each in cases], rule, persons=persons_of(cases))

    check_linear(split_all, 60, few=10)
