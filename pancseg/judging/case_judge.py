"""Predicting, writing, scoring and drawing one whole case."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pancseg.data.manifest import Case
from pancseg.errors import Incomplete, brief, lacks_room
from pancseg.files import write_json, write_nifti
from pancseg.geometry import bounding_box, spacing_of
from pancseg.inference.mask_finding import find_mask
from pancseg.inference.members import Member, look_together, together
from pancseg.inference.postprocess import Postprocess
from pancseg.output.case_view import make_view
from pancseg.output.outlines import draw_case
from pancseg.scoring.case_scores import Scores, score_case
from pancseg.scoring.score_file import FAILED
from pancseg.scoring.soft_scores import Calibration, calibration_of, recipe_metric

log = logging.getLogger(__name__)
SOFT = ("dice_plain", "recipe_metric", "expected_dice")  # measured on probabilities
AROUND_MM = 20.0  # of both masks: where probabilities are held against what is drawn
PLAIN = Postprocess()


@dataclass(frozen=True)
class CaseJudge:
    """Judges cases of a prepared folder one by one.

    Attributes:
        root: Prepared folder.
        folder: Where masks, pictures and views are written.
        tolerances_mm: Of the normalised surface Dice.
        note: Said in every picture: whether the case was held out, or is a phantom.
    """

    root: Path
    folder: Path
    tolerances_mm: Sequence[float]
    note: str

    def judge(
        self, case: Case, judging: Sequence[Member], chosen: Sequence[Postprocess]
    ) -> tuple[dict[str, Any], Calibration | None]:
        """A row of the scores table, and the calibration; a case that fails has a row, too.

        Files of an earlier scoring stay until new ones replace them: its table tells of them.

        Args:
            case: With a label.
            judging: Networks whose mean probability counts.
            chosen: How each of them makes a mask.

        Raises:
            Incomplete: If nothing more can be written.
        """
        named = {"patient": case.patient, "case": case.name}
        fold = {"fold": judging[0].fold} if len(judging) == 1 else {"fold": None}
        files = (self.mask_of(case), self.picture_of(case), self.view_of(case))
        try:
            scores, soft, calibration = self.measure(case, judging, together(chosen))
        except Exception as error:  # one bad case never stops a batch
            if lacks_room(error):
                raise Incomplete(
                    f"{self.folder}: cannot be written ({error.strerror}); make room and run the "
                    "same command again: it writes the table when all cases are scored"
                ) from error
            for old in files:
                old.unlink(missing_ok=True)  # of an earlier scoring
            log.debug("%s", case.name, exc_info=True)
            told = brief(error).replace(str(self.root), "...")  # no place of data in a report
            reason = f"{FAILED}: {type(error).__name__}: {told}"
            scores = Scores.nothing(self.tolerances_mm, reason)
            soft, calibration = dict.fromkeys(SOFT), None
        row = {**named, **scores.as_row()}
        status = row.pop("status")
        return {**row, **soft, **fold, "status": status}, calibration

    def measure(
        self, case: Case, judging: Sequence[Member], how: Postprocess
    ) -> tuple[Scores, dict[str, float | None], Calibration | None]:
        """Predict, write and score a case."""
        image, reference = read_case(case, self.root)
        looked = look_together(judging, image)
        found = find_mask(looked, how)
        prediction = found.mask
        mask = nib.Nifti1Image(prediction.view(np.uint8), image.affine)
        write_nifti(self.mask_of(case), mask)
        scores = score_case(prediction, reference, image.affine, self.tolerances_mm)
        self.draw(case, image, prediction, reference, scores)
        if not reference.any():
            return scores, dict.fromkeys(SOFT), None
        plain = prediction if how == PLAIN else find_mask(looked, PLAIN).mask
        dice_plain = 2 * int((plain & reference).sum()) / (int(plain.sum()) + int(reference.sum()))
        probability = looked.probability()
        soft: dict[str, float | None] = {
            "dice_plain": dice_plain,
            "recipe_metric": recipe_metric(probability, reference),
            "expected_dice": found.raw_confidence,
        }
        box = bounding_box(prediction | reference, AROUND_MM, spacing_of(image.affine))
        return scores, soft, calibration_of(probability, reference, box)

    def draw(
        self,
        case: Case,
        image: nib.Nifti1Image,
        prediction: NDArray[np.bool_],
        reference: NDArray[np.bool_],
        scores: Scores,
    ) -> None:
        """Write the picture of a case, and what the report scrolls through."""
        dice = "no reference" if scores.dice is None else f"Dice {scores.dice:.3f}"
        title = f"{case.name} ({self.note}): {dice}"
        draw_case(self.picture_of(case), image, prediction, reference, title)
        write_json(self.view_of(case), make_view(image, prediction, reference))

    def mask_of(self, case: Case) -> Path:
        """Where a case's mask is written."""
        return self.folder / f"{case.name}_prediction.nii.gz"

    def picture_of(self, case: Case) -> Path:
        """Where a case's picture is written."""
        return self.folder / f"{case.name}.png"

    def view_of(self, case: Case) -> Path:
        """Where a case's slices for the report are written."""
        return self.folder / "views" / f"{case.name}.json"


def read_case(case: Case, root: Path) -> tuple[nib.Nifti1Image, NDArray[np.bool_]]:
    """Image and drawn mask of a case, in memory: they are used several times."""
    label = nib.Nifti1Image.from_filename(root / str(case.label))
    reference: NDArray[np.bool_] = np.asanyarray(label.dataobj) > 0
    image = nib.Nifti1Image.from_filename(root / case.image)
    hu = np.asanyarray(image.dataobj)
    return nib.Nifti1Image(hu, image.affine, image.header), reference
