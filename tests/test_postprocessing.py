"""Threshold and components: given, chosen on validation patients, and kept beside a checkpoint."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pancseg.errors import PancsegError
from pancseg.inference import calibration as cal
from pancseg.inference import postprocessing as post
from pancseg.inference.calibration import Calibration
from pancseg.inference.postprocessing import DEFAULT, Postprocess, PostprocessOptions, choose

ORGAN = np.zeros((20, 20, 20), bool)
ORGAN[2:8, 2:8, 2:8] = True
FIELD = np.where(ORGAN, 0.4, 0).astype(np.float32)  # and a smaller false alarm at 0.9
FIELD[15:17, 15:17, 15:17] = 0.9


def test_threshold_and_largest_component_make_the_mask() -> None:
    assert Postprocess().mask_of(FIELD).sum() == 8
    assert Postprocess(0.3).mask_of(FIELD).sum() == 216 + 8
    np.testing.assert_array_equal(Postprocess(0.3, True).mask_of(FIELD), ORGAN)
    assert not Postprocess(0.95, True).mask_of(FIELD).any()


def test_the_candidate_of_the_highest_mean_dice_nearest_to_the_default_is_chosen() -> None:
    candidates = PostprocessOptions("auto", "auto").candidates(DEFAULT)
    assert len(candidates) == 34
    assert choose(candidates, [("p", FIELD, ORGAN)]) == (Postprocess(0.35, True), 1)
    dice = dict(zip(candidates, post.dice_of_each(candidates, FIELD, ORGAN), strict=True))
    assert dice[Postprocess(0.35, True)] == 1
    assert dice[Postprocess(0.35, False)] == pytest.approx(2 * 216 / (224 + 216))
    assert dice[Postprocess(0.5, False)] == 0
    assert choose(candidates, [("p", ORGAN.astype(np.float32), ORGAN)])[0] == DEFAULT


def test_patients_count_once_and_empty_references_do_not() -> None:
    """Three cases of a are best at 0.5, one of b at 0.35: each patient has one vote."""
    high = ("a", np.where(ORGAN, 0.6, 0.4).astype(np.float32), ORGAN)
    low = ("b", np.where(ORGAN, 0.4, 0.0).astype(np.float32), ORGAN)
    empty = ("c", FIELD, np.zeros_like(ORGAN))
    # at 0.5: a 1, b 0; at 0.35: a 2 * 216 / (8000 + 216) = 0.053, b 1
    candidates = [Postprocess(0.5), Postprocess(0.35)]
    assert choose(candidates, [high, high, high, low, empty]) == (Postprocess(0.35), 2)


def test_given_values_override_the_recorded_choice() -> None:
    recorded = Postprocess(0.45, True)
    assert PostprocessOptions().override(recorded) == recorded
    assert PostprocessOptions(threshold=0.6).override(recorded) == Postprocess(0.6, True)
    assert {c.largest_component for c in PostprocessOptions("auto").candidates(recorded)} == {True}
    for given in ((1.5, None), ("best", None), (True, None), (None, "yes")):
        with pytest.raises(PancsegError, match="expected"):
            PostprocessOptions(*given)  # type: ignore[arg-type]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "best.ckpt").write_bytes(b"weights")
    return tmp_path / "best.ckpt"


def test_a_sidecar_holds_for_the_weights_that_it_was_written_for(checkpoint: Path) -> None:
    post.write_postprocess(checkpoint, Postprocess(0.35, True), chosen_on="val", n=3)
    cal.write_calibration(checkpoint, Calibration(0.9, 3, 0.7))
    assert post.read_postprocess(checkpoint) == Postprocess(0.35, True)
    assert cal.read_calibration(checkpoint) == Calibration(0.9, 3, 0.7)
    assert json.loads(post.postprocess_path(checkpoint).read_text())["chosen_on"] == "val"
    checkpoint.write_bytes(b"other weights")
    assert (post.read_postprocess(checkpoint), cal.read_calibration(checkpoint)) == (
        None,
        Calibration(),
    )


@pytest.mark.parametrize("number", ["NaN", "2", "1" + "0" * 60, "true", '"0.5"', "null"])
def test_a_corrupt_sidecar_is_one_line(checkpoint: Path, number: str) -> None:
    contents: Any = {
        post.postprocess_path(checkpoint): (
            '"largest_component": true, "threshold"',
            post.read_postprocess,
        ),
        cal.calibration_path(checkpoint): ('"scale": 1.0, "n": 1, "lowest"', cal.read_calibration),
    }
    for path, (content, read) in contents.items():
        path.write_text(f'{{"checkpoint_sha256": "a", {content}: {number}}}')
        with pytest.raises(PancsegError, match=path.name):
            read(checkpoint)
