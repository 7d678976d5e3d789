"""Dealing patients: whole, stable, disjoint."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pancseg.dataset.splits import PARTS, Split, deal
from pancseg.errors import PancsegError

MANY = [f"p{n:03d}" for n in range(200)]
FEW = MANY[:12]


def part_of(split: Split) -> dict[str, str]:
    return {patient: part for part in PARTS for patient in getattr(split, part)}


def test_every_patient_is_dealt_to_one_part() -> None:
    split = deal(FEW, "holdout", val=0.2, test=0.2)
    assert sorted(split.train + split.val + split.test) == FEW


def test_the_order_of_patients_does_not_matter() -> None:
    assert deal(FEW[::-1] + FEW) == deal(FEW)


@pytest.mark.parametrize("rule", ["holdout", "kfold"])
def test_patients_added_later_move_no_one(rule: str) -> None:
    before, after = part_of(deal(MANY[:100], rule)), part_of(deal(MANY, rule))
    assert {patient: after[patient] for patient in before} == before


def test_shares_come_out_about_as_asked() -> None:
    split = deal(MANY, val=0.1, test=0.3)
    assert len(split.test) == pytest.approx(60, abs=20)
    assert len(split.val) == pytest.approx(20, abs=12)


def test_numbers_come_out_exactly() -> None:
    split = deal(FEW, val=2, test=5)
    assert (len(split.train), len(split.val), len(split.test)) == (5, 2, 5)


def test_the_test_part_does_not_depend_on_validation() -> None:
    assert deal(FEW, val=0, test=3).test == deal(FEW, val=4, test=3).test


def test_another_seed_deals_otherwise_and_seed_0_is_a_seed() -> None:
    assert deal(MANY, seed=0) != deal(MANY, seed=1)
    assert deal(MANY, seed=0).seed == 0


@pytest.mark.parametrize("names", [["a", "b", "c"], ["x1", "x2", "x3"], ["p", "q", "r"]])
def test_holdout_works_from_three_patients_on(names: list[str]) -> None:
    split = deal(names)
    assert [len(getattr(split, part)) for part in PARTS] == [1, 1, 1]


def test_no_test_patients_is_allowed() -> None:
    split = deal(FEW[:2], val=1, test=0)
    assert (len(split.train), len(split.val), len(split.test)) == (1, 1, 0)


@pytest.mark.parametrize("count", [5, 8, 15, 100])
def test_over_all_folds_each_patient_is_test_once_and_validation_once(count: int) -> None:
    splits = [deal(MANY[:count], "kfold", folds=5, fold=fold) for fold in range(5)]
    assert sorted(patient for split in splits for patient in split.test) == MANY[:count]
    for fold in range(5):
        assert splits[fold].val == splits[(fold + 1) % 5].test
        assert splits[fold].train


def test_same_puts_everyone_everywhere_and_says_that_nothing_is_held_out() -> None:
    split = deal(FEW, "same")
    assert split.train == split.val == split.test == FEW
    assert not split.held_out


def test_a_runs_split_can_be_dealt_again_from_its_file(tmp_path: Path) -> None:
    split = deal(FEW, val=2, test=3)
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(split.as_dict()))
    again = deal(FEW, "file", path=str(path))
    assert part_of(again) == part_of(split)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"patients": FEW[:2]}, "2 labelled patients, this split needs at least 3"),
        ({"patients": []}, "no labelled patient"),
        ({"test": 12}, "needs at least 14"),
        ({"test": -1}, "expected a share below 1 or a whole number"),
        ({"test": 1.5}, "expected a share below 1 or a whole number"),
        ({"val": 0.5, "test": 0.5}, "leave nothing to train on"),
        ({"rule": "kfold", "fold": 5}, "split.fold=5"),
        ({"rule": "kfold", "patients": FEW[:4]}, "4 labelled patients for 5 folds"),
        ({"rule": "random"}, "expected holdout, kfold, same or file"),
        ({"rule": "file", "path": "nowhere.json"}, "needs a JSON file"),
    ],
)
def test_a_split_that_cannot_be_dealt_says_what_to_do(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(PancsegError, match=says):
        deal(**{"patients": FEW, **settings})


def test_a_patient_in_two_parts_is_caught(tmp_path: Path) -> None:
    split = deal(FEW)
    with pytest.raises(PancsegError, match=f"both train and test: {split.train[0]}"):
        replace(split, test=[*split.test, split.train[0]]).check()
    path = tmp_path / "leak.json"
    path.write_text(json.dumps({"train": ["p001", "p002"], "val": ["p002"], "test": []}))
    with pytest.raises(PancsegError, match="both train and val: p002"):
        deal(FEW, "file", path=str(path))


@pytest.mark.parametrize("rule", ["holdout", "kfold"])
def test_a_patient_who_goes_by_two_names_is_dealt_once(rule: str) -> None:
    patients = [f"p{n:02}" for n in range(40)]
    names = {patient: f"p{int(patient[1:]) // 2 * 2:02}" for patient in patients}
    split = deal(patients, rule, same_person=names)
    for part in (split.train, split.val, split.test):
        assert part
        for patient in part:
            assert names[patient] in part
    assert sorted(split.train + split.val + split.test) == patients


def test_names_of_others_do_not_move_those_who_go_by_one() -> None:
    patients = [f"p{n:02}" for n in range(40)]
    alone = deal(patients)
    together = deal(patients, same_person={"p07": "p03"})
    for part in ("train", "val", "test"):
        moved = set(getattr(alone, part)) ^ set(getattr(together, part))
        assert moved <= {"p07"}
