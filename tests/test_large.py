"""Twice as many patients are twice the work: counted, not timed."""

import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count, product
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.format import open_memmap

from pancseg.dataset import volume_cache
from pancseg.dataset.chosen_data import ChosenData, deal_patients
from pancseg.dataset.groups import Cutting
from pancseg.dataset.intake_table import Row, Rows
from pancseg.dataset.kept_volumes import KeptVolumes
from pancseg.dataset.manifest import Case, Group, Manifest, read_manifest
from pancseg.dataset.sampling import WholeVolumes
from pancseg.dataset.splits import PARTS, deal
from pancseg.dataset.steps import Steps
from pancseg.dataset.transforms import Preprocessing
from pancseg.dataset.volume_cache import ARRAYS, Source, Volume, VolumeCache, path_of
from pancseg.dataset.whole_root import same_person
from pancseg.intake.checks.flags import Checks
from pancseg.intake.dicom.finding import doubted
from pancseg.intake.dicom.headers import Header, Series
from pancseg.intake.found import Found, Reading
from pancseg.intake.layouts import unlabelled
from pancseg.intake.layouts.dicom import take
from pancseg.intake.layouts.ties import Entry, tie
from pancseg.intake.pseudonyms import make_names
from pancseg.output import run_report
from pancseg.preparing.conversion import Outcome
from pancseg.preparing.preparation import Preparation
from pancseg.scoring import statistics

LINEAR = 2.3  # times the work for twice as many; the square gives 4
NUMBERS = Preprocessing("RAS", (4.0, 4.0, 4.0), (-200.0, 200.0), (32, 32, 32))


def lines_run(work: Callable[[], object]) -> int:
    """How many lines of Python a piece of work takes, wherever they stand."""
    count = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def check_linear(work: Callable[[int], object], patients: int, few: int = 4) -> None:
    """Twice the patients take twice the lines; what only happens once is taken off."""
    work(few)  # imports and caches
    once, half, whole = (lines_run(lambda n=n: work(n)) for n in (few, patients, 2 * patients))  # type: ignore[misc]
    assert (whole - once) / (half - once) < LINEAR, (once, half, whole)


def case_of(n: int) -> Case:
    """A case with a study and a PatientID of its own."""
    name = f"p{n:06}"
    files = (f"cases/{name}_image.nii.gz", f"cases/{name}_label.nii.gz")
    hashes = {what: f"{what}{n}" for what in ("origin", "source", "sha256", "pixels", "study")}
    return Case(
        name, name, *files, [8, 8, 32], [4.0, 4.0, 4.0], 9, phantom=True, person=name, **hashes
    )


def groups_of(case: Case) -> list[Group]:
    """Its four groups."""
    names = [f"{case.case}_{start:04}" for start in range(0, 32, 8)]
    return [
        Group(name, case.case, case.patient, 8 * k, f"groups/{name}_i", f"groups/{name}_l", 2)
        for k, name in enumerate(names)
    ]


def rows_of(case: Case) -> list[Row]:
    """Its rows of the table."""
    kinds = ("image", "label")
    return [Row(case.patient, case.case, f"/{kind}/{case.case}", kind, "kept") for kind in kinds]


def filled(root: Path, patients: int) -> Preparation:
    """A preparation that entered so many cases, half of them twice, and took some out."""
    cutting, names = Cutting(8, "drop", False), make_names("none", root)
    there = Preparation(root, cutting, Checks(), {"depth": 8}, names)
    for case in map(case_of, [*range(patients), *range(0, patients, 2)]):
        there.enter(Outcome(case.origin, case.case, "", rows_of(case), case, groups_of(case)))
    for n in range(0, patients, 5):
        there.forget(case_of(n))
    there.look_across()
    for n in range(1, patients, 5):
        there.refuse_late(case_of(n), "because")
    return there


def manifest_of(patients: int) -> Manifest:
    cases = [case_of(n) for n in range(patients)]
    groups = [group for case in cases for group in groups_of(case)]
    return Manifest({"depth": 8}, complete=True, cases=cases, groups=groups)


def tied(patients: int) -> Found:
    """As many images, masks drawn on them, and damaged files beside each."""

    def series(n: int, kind: str) -> Series:
        files = (Path(f"/{kind}/p{n}/1.dcm"), Path(f"/{kind}/p{n}/2.dcm"))
        told = (f"{kind}{n}", f"P{n}", "CT", f"study{n}", f"frame{n}")
        return Series(Path(f"p{n}"), *told, "image", False, files)

    images, masks = ([series(n, kind) for n in range(patients)] for kind in ("images", "labels"))
    damaged = [
        Header(Path(f"/images/p{n}/3.dcm"), problem="damaged") for n in range(0, patients, 2)
    ]
    images = doubted(images, damaged)
    scans, labels = (
        [Entry(one, Path(f"/{kind}"), one.folder.as_posix()) for one in many]
        for kind, many in (("images", images), ("labels", masks))
    )
    found = Found()
    take(found, scans, tie(labels, scans), True, Reading())
    return found


def walked(root: Path, patients: int) -> None:
    """From cases that were entered to files, dealt patients and sources, and DICOM tied."""
    there = filled(root, patients)
    there.save_state(complete=True)
    manifest = read_manifest(root)
    for rule in ("holdout", "kfold"):
        split = deal_patients(root, manifest, {"rule": rule}, False)
        chosen = ChosenData(root, manifest, split, NUMBERS, (32, 32, 32))
        assert sum(map(len, map(chosen.sources, PARTS))) == len(manifest.groups)
    tied(patients)
    for path in root.iterdir():
        path.unlink()


def test_entering_and_forgetting_a_case_does_not_look_at_all_others(tmp_path: Path) -> None:
    check_linear(lambda n: filled(tmp_path, n), 40)
    there = filled(tmp_path, 20)
    assert sorted(there.cases) == sorted(f"origin{n}" for n in range(20) if n % 5 > 1)
    refused = {row.path for row in there.rows.values() if row.status == "refused"}
    assert refused == {f"/{kind}/p{n:06}" for n in range(1, 20, 5) for kind in ("image", "label")}
    assert not [row for row in there.rows.values() if row.case in ("p000000", "p000005")]


def test_rows_of_a_case_are_found_again_after_any_change() -> None:
    rows = Rows(rows_of(case_of(1)) + rows_of(case_of(2)))
    rows.enter(Row("p", "other", "/image/p000001", "image", "kept"))  # in place of one of the first
    assert [row.kind for row in rows.take_out("p000001")] == ["label"]
    assert [row.path for row in rows.take_out("other")] == ["/image/p000001"]
    assert rows.take_out("nobody") == []
    assert [row.case for row in rows.values()] == ["p000002", "p000002"]
    del rows["/image/p000002", "image"]
    assert len(rows.take_out("p000002")) == 1 and not rows


def test_persons_are_told_apart_without_looking_at_all_for_each() -> None:
    check_linear(lambda n: same_person([case_of(one) for one in range(n)]), 60)


class Compared(str):
    """A name that counts how often it is compared."""

    count = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Compared.count += 1
        return str.__eq__(self, other)


@pytest.fixture
def _from_nothing() -> Iterator[None]:
    Compared.count = 0
    yield
    Compared.count = 0


@pytest.mark.usefixtures("_from_nothing")
@pytest.mark.parametrize("rule", ["holdout", "kfold"])
def test_dealing_compares_no_patient_with_all_others(rule: str) -> None:
    deal([Compared(n) for n in range(300)], rule)
    assert Compared.count < 5 * 300


def test_names_of_scans_are_not_searched_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlabelled, "name_of", lambda one, base: str(one % 7))
    check_linear(lambda n: unlabelled.names_of(list(range(n)), Path()), 300)  # type: ignore[arg-type]


def test_every_scan_has_a_name_of_its_own_also_where_a_file_is_called_as_anothers_second(
    tmp_path: Path,
) -> None:
    for name in ("a-2.nii.gz", "a.nii", "a.nii.gz", "A.nii"):
        (tmp_path / name).touch()
    found = unlabelled.find_scans(tmp_path, "CT", Reading()).candidates
    names = unlabelled.names_of(found, tmp_path)
    assert {file.path.name: name for file, name in zip(found, names, strict=True)} == {
        "A.nii": "A", "a-2.nii.gz": "a-2", "a.nii": "a-3", "a.nii.gz": "a-4",
    }  # fmt: skip


def test_labels_beside_scans_are_left_out_without_a_search_for_each(tmp_path: Path) -> None:
    def scans(count: int) -> None:
        folder = tmp_path / str(count)
        folder.mkdir(exist_ok=True)
        for n, end in product(range(count), ("", "_label")):
            (folder / f"p{n:04}{end}.nii").touch()
        found = unlabelled.find_scans(folder, "CT", Reading())
        assert len(found.candidates) == count

    check_linear(scans, 30)


def test_labels_are_tied_to_thousands_of_images_without_a_look_at_each() -> None:
    check_linear(tied, 40)
    found = tied(9)
    assert [str(one.path) for one in found.candidates] == [f"/images/p{n}" for n in (1, 3, 5, 7)]


def test_the_order_of_an_epoch_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    default_rng = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda s: drawn.append(s) or default_rng(s))  # type: ignore[func-returns-value]
    array = np.zeros((2, 2, 2), np.float16)
    volume = Volume(array, array.astype(np.uint8), np.zeros((0, 3), np.int32))
    sources = [Source(str(n), str(n), Path(), Path(), "", 8) for n in range(20)]
    kept = KeptVolumes(sources, lambda one: volume, "disk", torch.device("cpu"))
    samples = WholeVolumes(kept, Steps(20, 2), seed=5)
    names = [samples[n]["name"] for n in range(40)]
    assert drawn == [(5, 0), (5, 1)]
    assert [sorted(part) for part in (names[:20], names[20:])] == [sorted(map(str, range(20)))] * 2
    assert samples[0]["name"] == names[0]  # an earlier epoch's, asked for again


def cache_of(tmp_path: Path, volumes: int, missing: int = 0) -> tuple[VolumeCache, list[Source]]:
    """A cache that holds so many volumes, but for the last ones."""
    image = tmp_path / "scan"
    image.touch()
    sources = [Source(str(n), "p", image, image, str(n), 8) for n in range(volumes)]
    cache = VolumeCache(tmp_path / "cache", NUMBERS)
    cache.folder.mkdir()
    for source, name in product(sources[: volumes - missing], ARRAYS):
        np.save(path := path_of(cache.folder, source, name), np.zeros(3))
        shutil.copystat(image, path)
    return cache, sources


def test_each_volume_of_a_cache_is_looked_at_once_also_where_one_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, sources = cache_of(tmp_path, 12, missing=1)
    opened, load = [], volume_cache.open_memmap
    monkeypatch.setattr(
        volume_cache,
        "open_memmap",
        lambda path, **more: opened.append(path) or load(path, **more),  # type: ignore[func-returns-value]
    )
    made: list[list[Source]] = []
    monkeypatch.setattr(cache, "make", lambda missing, processes: made.append(missing))
    cache.fill(sources * 2)  # as with split=same, where validation is training
    assert len(opened) == len(ARRAYS) * 11 + 2  # the missing one again, once nobody else makes it
    assert made == [sources[-1:]]


def test_a_header_that_python_lost_count_of_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NumPy's reading of headers by ``ast`` ends now and then in several threads at once."""
    np.save(tmp_path / "a.npy", np.arange(3))
    tried = []

    def read(path: Path, mode: Any) -> Any:
        tried.append(path)
        if len(tried) < 3:
            raise SystemError("AST constructor recursion depth mismatch")
        return open_memmap(path, mode=mode)

    monkeypatch.setattr(volume_cache, "open_memmap", read)
    assert volume_cache.opened(tmp_path / "a.npy").tolist() == [0, 1, 2]
    assert len(tried) == 3
    tried[:] = []
    monkeypatch.setattr(volume_cache, "TRIES", 2)
    with pytest.raises(SystemError):
        volume_cache.opened(tmp_path / "a.npy")


def test_two_volumes_are_looked_at_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that wait for each other's turn take ten times as long as one thread alone."""
    cache, sources = cache_of(tmp_path, 4)
    calls, both = count(), threading.Barrier(2, timeout=10)

    def read(path: Path, mode: Any) -> Any:
        if next(calls) < 2:
            both.wait()  # until another thread reads, too
        return open_memmap(path, mode=mode)

    monkeypatch.setattr(volume_cache, "open_memmap", read)
    assert cache.lacking(sources) == []
    assert next(calls) == len(sources) * len(ARRAYS)


def test_sources_are_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = manifest_of(10)
    split = deal_patients(tmp_path, manifest, {"rule": "holdout"}, False)
    chosen = ChosenData(tmp_path, manifest, split, NUMBERS, (32, 32, 32))
    once = [len(chosen.sources(part)) for part in PARTS]
    monkeypatch.setattr("pancseg.dataset.chosen_data.Source", None)
    assert [len(chosen.sources(part)) for part in PARTS] == once
    assert {part: numbers["groups"] for part, numbers in chosen.counts().items()} == dict(
        zip(PARTS, once, strict=True)
    )


def test_the_manifest_has_a_line_an_entry_and_comes_back(tmp_path: Path) -> None:
    manifest = manifest_of(5)
    manifest.write(tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    assert sum("origin" in line for line in text.splitlines()) == 5
    assert len(text.splitlines()) == 1 + 3 + 7 + 22 + 1  # braces, head, cases, groups
    assert list(json.loads(text)) == ["schema", "settings", "complete", "cases", "groups"]
    assert read_manifest(tmp_path) == manifest
    Manifest({}).write(tmp_path)
    assert read_manifest(tmp_path) == Manifest({})


def test_intervals_of_many_patients_draw_a_million_values_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches: list[int] = []

    def bootstrap(data: Any, *words: Any, batch: int, **more: Any) -> SimpleNamespace:
        batches.append(batch * len(data[0]))
        return SimpleNamespace(confidence_interval=SimpleNamespace(low=0.0, high=1.0))

    values = np.random.default_rng(0).normal(size=20_000)
    plain = statistics.interval(values[:50])
    monkeypatch.setattr(statistics, "AT_ONCE", 5000)
    assert statistics.interval(values[:50]) == plain  # however many at a time
    monkeypatch.undo()
    monkeypatch.setattr(statistics, "bootstrap", bootstrap)
    statistics.interval(values)
    assert batches == [statistics.AT_ONCE]


def test_a_page_of_many_cases_holds_slices_of_the_worst_and_says_so() -> None:
    assert run_report.views_said(100, 1000) == "Of the 100 cases with the lowest Dice."
    assert run_report.views_said(100, run_report.MOST_VIEWED) == ""


@pytest.mark.slow
def test_five_thousand_patients_are_twice_the_work_of_half_of_them(tmp_path: Path) -> None:
    check_linear(lambda n: walked(tmp_path, n), 2500, few=20)
