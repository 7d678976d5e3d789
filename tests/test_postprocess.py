"""Masks from probabilities: threshold and components, given, chosen and remembered."""

import json
from pathlib import Path

import numpy as np
import pytest

from pancseg.errors import PancsegError
from pancseg.inference.postprocess import Postprocess, Wanted, record, recorded, side_file
from pancseg.judging.choosing import choose


def field() -> np.ndarray:
    """An organ at 0.4, a smaller false alarm at 0.9 far from it, nothing elsewhere."""
    p = np.zeros((20, 20, 20), np.float32)
    p[2:8, 2:8, 2:8] = 0.4
    p[15:17, 15:17, 15:17] = 0.9
    return p


def organ() -> np.ndarray:
    drawn = np.zeros((20, 20, 20), bool)
    drawn[2:8, 2:8, 2:8] = True
    return drawn


def test_a_threshold_and_the_largest_component_make_the_mask() -> None:
    assert Postprocess().mask_of(field()).sum() == 8
    assert Postprocess(0.3).mask_of(field()).sum() == 216 + 8
    np.testing.assert_array_equal(Postprocess(0.3, True).mask_of(field()), organ())
    assert not Postprocess(0.95, True).mask_of(field()).any()


def test_what_validation_does_best_with_is_chosen() -> None:
    chosen, seen = choose(Wanted("auto", "auto"), Postprocess(), [("p", field(), organ())])
    assert chosen == Postprocess(0.35, True)  # of those that find all of it, the nearest to 0.5
    assert seen["n"] == 1
    table = {(row["threshold"], row["largest_component"]): row["dice"] for row in seen["dice"]}
    assert len(table) == 34
    assert table[0.35, True] == 1
    assert table[0.35, False] == pytest.approx(2 * 216 / (224 + 216))
    assert table[0.5, False] == 0


def test_a_choice_counts_patients_and_leaves_out_empty_references() -> None:
    good = ("a", np.where(organ(), 0.6, 0.0).astype(np.float32), organ())
    cases = [good, good, good, ("b", field(), organ()), ("c", field(), np.zeros_like(organ()))]
    _, seen = choose(Wanted("auto", False), Postprocess(), cases)
    at_half = next(row["dice"] for row in seen["dice"] if row["threshold"] == 0.5)
    assert seen["n"] == 2
    assert at_half == pytest.approx((1 + 0) / 2)


def test_where_nothing_is_better_the_plain_way_stays() -> None:
    sure = organ().astype(np.float32)
    assert choose(Wanted("auto", "auto"), Postprocess(), [("p", sure, organ())])[0] == Postprocess()


def test_a_choice_is_remembered_for_these_weights_alone(tmp_path: Path) -> None:
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    assert recorded(checkpoint) is None
    record(checkpoint, Postprocess(0.35, True), {"chosen_on": "val"})
    assert recorded(checkpoint) == Postprocess(0.35, True)
    assert Wanted(threshold=0.6).over(Postprocess(0.35, True)) == Postprocess(0.6, True)
    checkpoint.write_bytes(b"other weights")
    assert recorded(checkpoint) is None


@pytest.mark.parametrize("content", ["[]", "{", '{"threshold": 2, "largest_component": true}'])
def test_a_damaged_choice_is_told(tmp_path: Path, content: str) -> None:
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    side_file(checkpoint).write_text(content)
    with pytest.raises(PancsegError, match=r"best\.postprocess\.json"):
        recorded(checkpoint)


@pytest.mark.parametrize(
    ("given", "word"),
    [({"threshold": 1.5}, "threshold=1.5"), ({"threshold": "best"}, "threshold=best"),
     ({"threshold": True}, "threshold=True"), ({"largest_component": "yes"}, "component=yes")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(given: dict[str, object], word: str) -> None:
    with pytest.raises(PancsegError, match=word):
        Wanted(**given)  # type: ignore[arg-type]


def test_the_side_file_says_on_whom_it_was_chosen(tmp_path: Path) -> None:
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    record(checkpoint, Postprocess(), {"chosen_on": "val", "n": 3})
    content = json.loads(side_file(checkpoint).read_text())
    assert (content["chosen_on"], content["n"], content["threshold"]) == ("val", 3, 0.5)


def test_what_was_kept_stays_beside_what_is_chosen_and_numbers_are_not_kept() -> None:
    kept = Postprocess(0.45, True)
    chosen, seen = choose(Wanted("auto", None), kept, [("p", field(), organ())])
    assert chosen == Postprocess(0.35, True)
    assert {row["largest_component"] for row in seen["dice"]} == {True}
    given = Wanted(0.3, "auto")
    chosen, _ = choose(given, kept, [("p", field(), organ())])
    assert chosen == Postprocess(0.3, True)
    assert given.chosen_alone(chosen, Postprocess(0.45, False)) == Postprocess(0.45, True)
