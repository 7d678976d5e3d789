"""Splits of patients, and a sweep over folds that is evaluated together."""

import json
from itertools import pairwise

import pandas as pd
import pytest

from pancseg.data.splits import SUBSETS, make_split, persons_of
from pancseg.errors import PancsegError
from tests.conftest import smoke
from tests.tiny_root import case_of

MANY = [f"p{n:03d}" for n in range(200)]
FEW = MANY[:12]


def sizes(split):
    return [len(getattr(split, subset)) for subset in SUBSETS]


def test_every_patient_is_in_one_subset_whatever_the_order_and_the_seed_decides():
    split = make_split(FEW[::-1] + FEW)
    assert sorted(split.train + split.val + split.test) == FEW
    assert split == make_split(FEW)
    assert make_split(MANY, seed=0).test != make_split(MANY, seed=1).test
    same = make_split(FEW, "same")
    assert (same.train, same.val, same.test, same.held_out) == (FEW, FEW, FEW, False)


SIZES = [
    (80, 0.2, 0.2, [48, 16, 16]), (12, 2, 5, [5, 2, 5]), (100, 0, 0.2, [80, 0, 20]),
    (3, 0.2, 0.6, [1, 1, 1]),
]  # fmt: skip


def test_sizes_are_as_asked_for_and_the_test_subset_does_not_depend_on_validation():
    for patients, val, test, expected in SIZES:
        assert sizes(make_split(MANY[:patients], val=val, test=test)) == expected
    for n in range(5, 201):
        assert make_split(MANY[:n], val=0).test == make_split(MANY[:n], val=0.25).test


@pytest.mark.parametrize("added", [1, 7])
@pytest.mark.parametrize("shares", [(0.2, 0.2), (0.3, 0.05), (5, 0.2)])
def test_at_most_as_many_patients_cross_a_border_as_were_added(added, shares):
    val, test = shares
    for n in range(12, 120, 5):
        before, after = (make_split(MANY[:m], val=val, test=test) for m in (n, n + added))
        known = {*MANY[:n]}
        assert len({*before.test} ^ ({*after.test} & known)) <= added
        assert len({*before.train} ^ ({*after.train} & known)) <= added


def test_folds_differ_by_one_patient_at_most_and_each_patient_is_tested_once():
    for n in range(7, 201, 3):
        splits = [make_split(MANY[:n], "kfold", folds=7, fold=fold) for fold in range(7)]
        assert sorted(name for split in splits for name in split.test) == MANY[:n]
        counts = [len(split.test) for split in splits]
        assert max(counts) - min(counts) <= 1
        for split, following in pairwise([*splits, splits[0]]):
            assert split.val == following.test
            assert sorted(split.train + split.val + split.test) == MANY[:n]


IMPOSSIBLE = [
    ({"patients": FEW[:2]}, "2 labelled patients, this split needs at least 3"),
    ({"test": 1.5}, "expected a share below 1 or a whole number"),
    ({"rule": "kfold", "patients": FEW[:4]}, "for 4 labelled patients"),
    ({"rule": "file", "path": "nowhere.json"}, "needs a JSON file"),
]


@pytest.mark.parametrize(("settings", "message"), IMPOSSIBLE)
def test_an_impossible_split_is_refused(settings, message):
    with pytest.raises(PancsegError, match=message):
        make_split(**{"patients": FEW, **settings})


def test_all_names_of_a_person_are_in_one_subset_and_count_once():
    persons = {name: f"p{int(name[1:]) // 2 * 2:03}" for name in MANY[:40]}
    for split in (make_split(MANY[:40], rule, persons=persons) for rule in ("holdout", "kfold")):
        assert sizes(split) == [24, 8, 8]
        subsets = [getattr(split, subset) for subset in SUBSETS]
        assert all(persons[name] in subset for subset in subsets for name in subset)
    cases = [case_of("c", patient_id_hash="P"), case_of("d", patient_id_hash="P")]
    cases += [case_of("e"), case_of("f", voxel_hash="pixels e", duplicate_of="e")]
    assert persons_of(cases) == {"c": "c", "d": "c", "e": "e", "f": "e"}
    shared = [case_of(f"{name}-2", patient=name, voxel_hash="shared") for name in "abc"]
    assert persons_of([case_of(name) for name in "abc"] + shared) == dict.fromkeys("abc", "a")


FILES = [
    ({"val": ["p001"]}, "in both train and val: p001$"),
    ({"test": ["p003"]}, r"in both train and test: p003 \(p001 is the same person"),
    ({"val": ["q"], "test": ["r"]}, "2 patients are not in the prepared folder, such as q"),
]


def test_a_split_is_read_from_the_file_of_a_run_and_refused_for_other_persons(tmp_path):
    split, path = make_split(FEW, val=2, test=3), tmp_path / "splits.json"
    path.write_text(json.dumps(vars(split)))
    again = make_split([*FEW, "added"], "file", path=str(path))
    assert [getattr(again, s) for s in SUBSETS] == [getattr(split, s) for s in SUBSETS]
    path.write_text('{"train": ["p001", "p000", "p001"], "val": [], "test": []}')
    assert make_split(FEW, "file", path=str(path)).train == ["p000", "p001"]
    for subsets, message in FILES:
        path.write_text(json.dumps({"train": ["p001"], "val": [], "test": [], **subsets}))
        with pytest.raises(PancsegError, match=message):
            make_split(FEW, "file", path=str(path), persons={"p003": "p001"})


@pytest.mark.slow
def test_each_patient_is_scored_once_by_the_fold_that_held_them_out(prepared, tmp_path, command):
    sweep = tmp_path / "sweep"
    words = [w for w in smoke(prepared, sweep) if not w.startswith(("hydra.run", "split."))]
    folds = [f"hydra.sweep.dir={sweep}", "split=kfold", "split.folds=3", "split.fold=0,1,2"]
    assert command("train", "-m", *words, *folds).code == 0
    assert command("evaluate", f"checkpoint={sweep}").code == 0
    figures = json.loads((sweep / "scores" / "test.json").read_text())
    assert (figures["n"], figures["held_out"], figures["checkpoints"]) == (6, True, 3)
    rows = pd.read_csv(sweep / "scores" / "test.csv", index_col="patient")
    for fold in (0, 1, 2):
        tested = json.loads((sweep / str(fold) / "splits.json").read_text())["test"]
        assert rows.fold[tested].tolist() == [fold] * 2
    assert command("evaluate", f"checkpoint={sweep / '1' / 'checkpoints' / 'best.ckpt'}").code == 0
    own = pd.read_csv(sweep / "1" / "scores" / "test.csv", index_col="patient")
    assert own.dice.equals(rows.dice[own.index])
