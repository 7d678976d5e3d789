"""Threshold and components: given, chosen on validation patients, and kept beside a checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest

from pancseg.errors import PancsegError
from pancseg.inference.calibration import (
    Calibration,
    calibration_path,
    read_calibration,
    write_calibration,
)
from pancseg.inference.postprocessing import (
    DEFAULT,
    Postprocess,
    PostprocessOptions,
    choose,
    dice_of_each,
    postprocess_path,
    read_postprocess,
    write_postprocess,
)

AUTO = PostprocessOptions("auto", "auto")


def field() -> np.ndarray:
    """An organ at 0.4, a smaller false alarm at 0.9 far from it, nothing elsewhere."""
    p = np.zeros((20, 20, 20), np.float32)
    p[2:8, 2:8, 2:8] = 0.4
    p[15:17, 15:17, 15:17] = 0.9
    return p


def organ() -> np.ndarray:
    reference = np.zeros((20, 20, 20), bool)
    reference[2:8, 2:8, 2:8] = True
    return reference


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "best.ckpt"
    path.write_bytes(b"weights")
    return path


def test_threshold_and_largest_component_make_the_mask() -> None:
    assert Postprocess().mask_of(field()).sum() == 8
    assert Postprocess(0.3).mask_of(field()).sum() == 216 + 8
    np.testing.assert_array_equal(Postprocess(0.3, True).mask_of(field()), organ())
    assert not Postprocess(0.95, True).mask_of(field()).any()


def test_the_candidate_of_the_highest_mean_dice_nearest_to_the_default_is_chosen() -> None:
    candidates = AUTO.candidates(DEFAULT)
    assert len(candidates) == 34
    chosen, n = choose(candidates, [("p", field(), organ())])
    assert (chosen, n) == (Postprocess(0.35, True), 1)
    dice = dict(zip(candidates, dice_of_each(candidates, field(), organ()), strict=True))
    assert dice[Postprocess(0.35, True)] == 1
    assert dice[Postprocess(0.35, False)] == pytest.approx(2 * 216 / (224 + 216))
    assert dice[Postprocess(0.5, False)] == 0
    perfect = organ().astype(np.float32)
    assert choose(candidates, [("p", perfect, organ())])[0] == DEFAULT


def test_patients_count_once_and_empty_references_do_not() -> None:
    """Three cases of a are best at 0.5, one of b at 0.35: each patient has one vote."""
    high = ("a", np.where(organ(), 0.6, 0.4).astype(np.float32), organ())
    low = ("b", np.where(organ(), 0.4, 0.0).astype(np.float32), organ())
    empty = ("c", field(), np.zeros_like(organ()))
    candidates = [Postprocess(0.5), Postprocess(0.35)]
    chosen, n = choose(candidates, [high, high, high, low, empty])
    # at 0.5: a 1, b 0; at 0.35: a 2 * 216 / (8000 + 216) = 0.053, b 1
    assert (chosen, n) == (Postprocess(0.35), 2)


def test_given_values_override_the_recorded_choice() -> None:
    recorded = Postprocess(0.45, True)
    assert PostprocessOptions().override(recorded) == recorded
    assert PostprocessOptions(threshold=0.6).override(recorded) == Postprocess(0.6, True)
    assert {c.largest_component for c in PostprocessOptions("auto").candidates(recorded)} == {True}
    assert {c.threshold for c in PostprocessOptions(0.3, "auto").candidates(recorded)} == {0.3}


@pytest.mark.parametrize(
    ("given", "word"),
    [({"threshold": 1.5}, "threshold=1.5"), ({"threshold": "best"}, "threshold=best"),
     ({"threshold": True}, "threshold=True"), ({"largest_component": "yes"}, "component=yes")],
)  # fmt: skip
def test_options_out_of_range_are_refused(given: dict[str, object], word: str) -> None:
    with pytest.raises(PancsegError, match=word):
        PostprocessOptions(**given)  # type: ignore[arg-type]


def test_a_sidecar_holds_for_the_weights_that_it_was_written_for(checkpoint: Path) -> None:
    assert read_postprocess(checkpoint) is None
    assert read_calibration(checkpoint) == Calibration()
    write_postprocess(checkpoint, Postprocess(0.35, True), chosen_on="val", n=3)
    write_calibration(checkpoint, Calibration(0.9, 3, 0.7))
    assert read_postprocess(checkpoint) == Postprocess(0.35, True)
    assert read_calibration(checkpoint) == Calibration(0.9, 3, 0.7)
    content = json.loads(postprocess_path(checkpoint).read_text())
    assert (content["chosen_on"], content["n"]) == ("val", 3)
    checkpoint.write_bytes(b"other weights")
    assert read_postprocess(checkpoint) is None
    assert read_calibration(checkpoint) == Calibration()


NUMBERS = ["NaN", "2", "1" + "0" * 60, "true", '"0.5"', "null"]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_corrupt_sidecar_is_one_line(checkpoint: Path, number: str) -> None:
    hashed = '"checkpoint_sha256": "a"'
    for path, content, read in (
        (postprocess_path(checkpoint), '"largest_component": true, "threshold"', read_postprocess),
        (calibration_path(checkpoint), '"scale": 1.0, "n": 1, "lowest"', read_calibration),
    ):
        path.write_text(f"{{{hashed}, {content}: {number}}}")
        with pytest.raises(PancsegError, match=path.name):
            read(checkpoint)  # type: ignore[operator]
