"""Splits of patients, and a sweep over folds that is evaluated together."""

import csv
import json
import shutil
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pancseg.data.splits import SUBSETS, Split, make_split, persons_of
from pancseg.errors import PancsegError
from tests.conftest import Command, run_command, smoke
from tests.tiny_root import case_of

MANY = [f"p{n:03d}" for n in range(200)]
FEW = MANY[:12]


def sizes(split: Split) -> list[int]:
    return [len(getattr(split, subset)) for subset in SUBSETS]


def moves(before: Split, after: Split) -> list[int]:
    """Patients of ``before`` that crossed each border of the ranking test, val, train."""
    borders = [(["test"], ["val", "train"]), (["test", "val"], ["train"])]
    return [
        sum(
            (name in members(before, low)) != (name in members(after, low))
            for name in members(before, low + high)
        )
        for low, high in borders
    ]


def members(split: Split, subsets: list[str]) -> set[str]:
    return {name for subset in subsets for name in getattr(split, subset)}


def test_every_patient_is_in_one_subset_whatever_the_order() -> None:
    split = make_split(FEW[::-1] + FEW)
    assert sorted(split.train + split.val + split.test) == FEW
    assert split == make_split(FEW)


@pytest.mark.parametrize(
    ("patients", "val", "test", "expected"),
    [
        (80, 0.2, 0.2, [48, 16, 16]),
        (10, 0.2, 0.2, [6, 2, 2]),
        (12, 2, 5, [5, 2, 5]),
        (200, 0.1, 0.3, [120, 20, 60]),
        (100, 0, 0.2, [80, 0, 20]),
        (2, 1, 0, [1, 1, 0]),
        (3, 0.2, 0.2, [1, 1, 1]),
        (3, 0.2, 0.6, [1, 1, 1]),
        (4, 1, 0.01, [2, 1, 1]),
    ],
)
def test_subsets_have_the_size_that_was_asked_for(
    patients: int, val: float, test: float, expected: list[int]
) -> None:
    assert sizes(make_split(MANY[:patients], val=val, test=test)) == expected


@pytest.mark.parametrize("seed", range(3))
def test_the_test_subset_is_the_nearest_whole_number_for_any_count_of_patients(seed: int) -> None:
    for n in range(5, 201):
        train, val, test = sizes(make_split(MANY[:n], seed=seed))
        assert test == round(0.2 * n)
        assert abs(val - 0.2 * n) < 1
        assert train + val + test == n


def test_the_test_subset_does_not_depend_on_validation() -> None:
    for n in range(4, 30):
        for test in (0.2, 0.7, 2):
            split = make_split(MANY[:n], val=0, test=test)
            assert make_split(MANY[:n], val=0.25, test=test).test == split.test


@pytest.mark.parametrize("added", [1, 2, 7, 40])
@pytest.mark.parametrize("shares", [(0.2, 0.2), (0.1, 0.3), (0.3, 0.05), (5, 0.2), (0.2, 5)])
def test_as_many_patients_as_were_added_move_across_a_border_at_most(
    added: int, shares: tuple[float, float]
) -> None:
    val, test = shares
    for n in range(12, 120, 5):
        splits = [make_split(MANY[:m], val=val, test=test) for m in (n, n + added)]
        assert max(moves(*splits)) <= added


@pytest.mark.parametrize("added", [1, 2, 7, 40])
def test_as_many_patients_as_were_added_move_from_fold_to_fold_at_most(added: int) -> None:
    for n in range(12, 120, 5):
        before, after = (
            [make_split(MANY[:m], "kfold", fold=fold).test for fold in range(5)]
            for m in (n, n + added)
        )
        for border in range(1, 5):
            old, new = (set(chain(*folds[:border])) for folds in (before, after))
            assert len([name for name in MANY[:n] if (name in old) != (name in new)]) <= added


@pytest.mark.parametrize("folds", [3, 5, 7])
def test_folds_differ_by_one_patient_at_most_and_each_patient_is_tested_once(folds: int) -> None:
    for n in range(max(5, folds), 201):
        splits = [make_split(MANY[:n], "kfold", folds=folds, fold=f) for f in range(folds)]
        assert sorted(name for split in splits for name in split.test) == MANY[:n]
        counts = [len(split.test) for split in splits]
        assert max(counts) - min(counts) <= 1
        for split, following in pairwise([*splits, splits[0]]):
            assert split.val == following.test
            assert sorted(split.train + split.val + split.test) == MANY[:n]


def test_another_seed_gives_another_split_and_0_is_a_seed() -> None:
    assert make_split(MANY, seed=0) != make_split(MANY, seed=1)
    assert make_split(MANY, seed=0).seed == 0


def test_same_holds_nobody_out() -> None:
    split = make_split(FEW, "same")
    assert split.train == split.val == split.test == FEW
    assert not split.held_out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patients": FEW[:2]}, "2 labelled patients, this split needs at least 3"),
        ({"patients": []}, "no labelled patient"),
        ({"test": 12}, "needs at least 14"),
        ({"val": 6, "test": 6}, "needs at least 13"),
        ({"test": -1}, "expected a share below 1 or a whole number"),
        ({"test": 1.5}, "expected a share below 1 or a whole number"),
        ({"val": 0.5, "test": 0.5}, "leave nothing to train on"),
        ({"rule": "kfold", "fold": 5}, "split.fold=5"),
        ({"rule": "kfold", "patients": FEW[:4]}, "of 3 to 4 folds"),
        ({"rule": "random"}, "expected holdout, kfold, same or file"),
        ({"rule": "file", "path": "nowhere.json"}, "needs a JSON file"),
    ],
)
def test_an_impossible_split_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PancsegError, match=message):
        make_split(**{"patients": FEW, **settings})


@pytest.mark.parametrize("rule", ["holdout", "kfold"])
def test_all_names_of_a_person_are_in_one_subset_and_count_once(rule: str) -> None:
    persons = {name: f"p{int(name[1:]) // 2 * 2:03}" for name in MANY[:40]}
    split = make_split(MANY[:40], rule, persons=persons)
    assert sizes(split) == [24, 8, 8]
    assert all(persons[name] in getattr(split, s) for s in SUBSETS for name in getattr(split, s))
    one_pair = make_split(MANY[:40], rule, persons={"p007": "p003"})
    assert max(moves(make_split(MANY[:40], rule), one_pair)) <= 2


def test_patients_of_one_study_patient_id_or_scan_are_one_person() -> None:
    cases = [
        case_of("a", study_hash="S"), case_of("b", study_hash="S"),
        case_of("c", patient_id_hash="P"), case_of("d", patient_id_hash="P"),
        case_of("e"), case_of("f", voxel_hash="pixels e", duplicate_of="e"),
    ]  # fmt: skip
    assert persons_of(cases) == {"a": "a", "b": "a", "c": "c", "d": "c", "e": "e", "f": "e"}


def write_split(folder: Path, **subsets: list[str]) -> str:
    path = folder / "splits.json"
    path.write_text(json.dumps({"train": ["p001"], "val": [], "test": [], **subsets}))
    return str(path)


def test_a_split_is_read_from_the_file_of_a_run(tmp_path: Path) -> None:
    split = make_split(FEW, val=2, test=3)
    path = write_split(tmp_path, **{subset: getattr(split, subset) for subset in SUBSETS})
    again = make_split([*FEW, "added"], "file", path=path)
    assert [getattr(again, s) for s in SUBSETS] == [getattr(split, s) for s in SUBSETS]
    assert again.held_out


@pytest.mark.parametrize(
    ("subsets", "message"),
    [
        ({"val": ["p001"]}, "in both train and val: p001$"),
        ({"test": ["p003"]}, r"in both train and test: p003 \(p001 is the same person"),
        ({"val": ["p002"], "test": ["p004"]}, r"in both val and test: p004 \(p002 is"),
        ({"val": ["q"], "test": ["r"]}, "2 patients are not in the prepared folder, such as q"),
        ({"train": []}, "no patient to train on"),
        ({"train": "p001"}, "lists of patients"),
    ],
)
def test_a_file_that_is_no_split_of_these_persons_is_refused(
    tmp_path: Path, subsets: dict[str, Any], message: str
) -> None:
    persons = {"p003": "p001", "p004": "p002"}
    with pytest.raises(PancsegError, match=message):
        make_split(FEW, "file", path=write_split(tmp_path, **subsets), persons=persons)


@pytest.fixture(scope="module")
def swept(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds of the six phantoms."""
    sweep = tmp_path_factory.mktemp("sweep")
    folds = ["split=kfold", "split.folds=3", "split.fold=0,1,2", f"hydra.sweep.dir={sweep}"]
    assert run_command("train", "-m", *sweep_words(prepared, sweep), *folds) == 0
    return sweep


def sweep_words(prepared: Path, folder: Path) -> list[str]:
    words = smoke(prepared, folder)
    return [word for word in words if not word.startswith(("hydra.run", "split."))]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores" / "test.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_patient_is_scored_once_by_the_fold_that_held_them_out(
    swept: Path, prepared: Path, command: Command
) -> None:
    assert command("evaluate", f"checkpoint={swept}").code == 0
    tested = {
        patient: fold
        for fold in range(3)
        for patient in json.loads((swept / str(fold) / "splits.json").read_text())["test"]
    }
    rows = rows_of(swept)
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert sorted(row["patient"] for row in rows) == sorted(
        {c["patient"] for c in manifest["cases"]}
    )
    assert {row["patient"]: int(row["fold"]) for row in rows} == tested
    figures = json.loads((swept / "scores" / "test.json").read_text())
    assert (figures["n"], figures["held_out"], figures["checkpoints"]) == (6, True, 3)
    page = (swept / "report.html").read_text()
    assert "split.fold=0,1,2" in page
    assert str(prepared) not in page
    together = {row["patient"]: row["dice"] for row in rows}
    assert command("evaluate", f"checkpoint={swept / '1' / 'checkpoints' / 'best.ckpt'}").code == 0
    assert all(together[row["patient"]] == row["dice"] for row in rows_of(swept / "1"))


def test_a_missing_fold_is_reported(swept: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(swept, tmp_path / "sweep")
    shutil.rmtree(tmp_path / "sweep" / "1")
    ended = command("evaluate", f"checkpoint={tmp_path / 'sweep'}")
    assert ended.code == 0
    assert "folds [1] have no run" in ended.out
    assert json.loads((tmp_path / "sweep" / "scores" / "test.json").read_text())["n"] < 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["subset=val"], "subset=val: of 3 checkpoints"),
        ([], "the folder of neither a run nor a sweep"),
    ],
)
def test_what_a_sweep_cannot_score_is_refused(
    swept: Path, tmp_path: Path, command: Command, words: list[str], message: str
) -> None:
    ended = command("evaluate", f"checkpoint={swept if words else tmp_path}", *words)
    assert ended.code == 2
    assert message in ended.err


def test_runs_with_one_test_set_are_scored_as_an_ensemble(
    trained: Path, prepared: Path, tmp_path: Path, command: Command
) -> None:
    seeds = tmp_path / "seeds"
    locked = ["split=file", f"split.path={trained / 'splits.json'}", "seed=0,1"]
    words = [*sweep_words(prepared, seeds), *locked, f"hydra.sweep.dir={seeds}"]
    assert command("train", "-m", *words).code == 0
    assert command("evaluate", f"checkpoint={seeds}").code == 0
    figures = json.loads((seeds / "scores" / "test.json").read_text())
    assert (figures["n"], figures["models_per_patient"], figures["held_out"]) == (2, 2, True)

    from pancseg.inference.checkpoint import open_checkpoints
    from pancseg.inference.predictor import Predictor

    models = open_checkpoints([seeds])
    row = rows_of(seeds)[0]
    image = nib.load(prepared / "cases" / f"{row['case']}_image.nii.gz")
    ensembles = (models[:1], models[1:], models)
    a, b, mean = (
        Predictor(members, precision=figures["arithmetic"]).predict(image, 0.0).probability
        for members in ensembles
    )
    assert not np.array_equal(a, b)
    np.testing.assert_allclose(mean, (a + b) / 2, atol=1e-6)
    mask = nib.load(seeds / "scores" / "test" / f"{row['case']}_prediction.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj) > 0, mean > 0.5)
