"""Scores of pairs of masks that can be worked out on paper, beside those of libraries.

    python benchmarks/metrics_by_hand.py > docs/metrics_by_hand.md

Pairs and values by hand are those of ``tests/hand_made.py``, which the tests hold pancseg to.
MONAI's and torchmetrics' functions have their defaults, except for dimensions, voxel size, 95 %,
tolerances, and MONAI's surface Dice also with ``use_subvoxels``.
"""

import math
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai import metrics as monai_metrics
from torchmetrics import classification, segmentation

from pancseg.metrics.case_scores import score_case

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.hand_made import AFFINE, PAIRS, SPACING_MM, TOLERANCES_MM, Pair

MEASURES = [
    "dice", "nsd_1mm", "nsd_2mm", "nsd_3mm", "hd95_mm", "assd_mm", "precision", "recall",
    "volume_error_ml", "volume_error_percent", "components", "centroid_mm",
]  # fmt: skip
Value = float | None
WHO_IS_RIGHT = """
## Who is right

- **A missed organ.** MONAI's distances are infinite or no number, and its means leave them out:
  the more organs are missed, the better they get. Here a missed organ has the scan's diagonal,
  the largest distance there is, and no mean leaves it out. Its precision is undefined (nothing
  was predicted); here it is 0, so that a mean cannot rise by missing.
- **An empty reference.** MONAI counts surface Dice and precision as 0, torchmetrics Dice,
  precision and recall: a mean over them mixes false alarms with bad outlines. Here such a case
  has no score and is named apart, with its predicted volume.
- **MONAI's default surface Dice** counts surface voxels, whatever their size: the flat ends of an
  organ in thick slices weigh too much. Here surfaces are weighed by area, as by DeepMind's
  `surface-distance`; MONAI agrees with `use_subvoxels=True`.
- **torchmetrics' defaults** count background as a class, which is nearly always right: a missed
  organ reads 0.5, and an organ found by half 0.83. With `include_background=False,
  average="macro"` it agrees.
- Everywhere else all three agree to four digits."""


def monai_scores(prediction: torch.Tensor, reference: torch.Tensor) -> dict[str, Any]:
    """MONAI's scores of a pair."""
    options: Any = {"include_background": True, "spacing": list(SPACING_MM)}
    nsd = {
        f"nsd_{t:g}mm{kind}": monai_metrics.compute_surface_dice(
            prediction, reference, [t], use_subvoxels=not kind, **options
        )
        for t in TOLERANCES_MM
        for kind in ("", ", defaults")
    }
    counts = monai_metrics.get_confusion_matrix(prediction, reference)[0]
    rates = (
        monai_metrics.compute_confusion_matrix_metric(name, counts)
        for name in ("precision", "recall")
    )
    precision, recall = rates
    return {
        "dice": monai_metrics.compute_dice(prediction, reference),
        **nsd,
        "hd95_mm": monai_metrics.compute_hausdorff_distance(
            prediction, reference, percentile=95, **options
        ),
        "assd_mm": monai_metrics.compute_average_surface_distance(
            prediction, reference, symmetric=True, **options
        ),
        "precision": precision,
        "recall": recall,
    }


def torchmetrics_scores(prediction: torch.Tensor, reference: torch.Tensor) -> dict[str, Any]:
    """Scores of a pair by torchmetrics, which has no percentile and no surface Dice."""
    masks = prediction[:, 0].long(), reference[:, 0].long()

    def dice(**options: Any) -> torch.Tensor:
        return segmentation.DiceScore(num_classes=2, input_format="index", **options)(*masks)

    return {
        "dice": dice(include_background=False, average="macro"),
        "dice, defaults": dice(),
        "precision": classification.BinaryPrecision()(*masks),
        "recall": classification.BinaryRecall()(*masks),
    }


def numbers(measure: Callable[..., dict[str, Any]], pair: Pair) -> dict[str, Value]:
    """Scores of a library, None where it gives no number."""
    masks = (
        torch.as_tensor(mask[None, None].astype(np.float32))
        for mask in (pair.prediction, pair.reference)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {name: float(value) for name, value in measure(*masks).items()}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def text(value: Value) -> str:
    """A cell."""
    return "none" if value is None else f"{value:.4g}"


def is_close(a: Value, b: Value) -> bool:
    """Whether two values are equal to four digits, or both None."""
    return a is b if a is None or b is None else math.isclose(a, b, abs_tol=1e-4)


def main() -> None:
    """Print the page."""
    print("# Metrics by hand\n")
    print("Written by `python benchmarks/metrics_by_hand.py` with", end=" ")
    print(", ".join(f"{name} {version(name)}" for name in ("monai", "torchmetrics", "torch")) + ".")
    print('Voxels of 0.8 x 0.8 x 2.5 mm in a scan of 20 x 20 x 20 ("the whole scan": 4 x 4 x 4).\n')
    print("## By hand, and by pancseg\n")
    print("| pair | " + " | ".join(MEASURES) + " |")
    print("|--" * (len(MEASURES) + 1) + "|")
    differing, wrong = [], 0
    for pair in PAIRS:
        ours = score_case(pair.prediction, pair.reference, AFFINE, TOLERANCES_MM)
        cells = []
        for name in MEASURES:
            by_hand = pair.scores.get(name)
            same = is_close(by_hand, ours[name])
            wrong += not same
            cells.append(text(by_hand) if same else f"{text(by_hand)}, pancseg {text(ours[name])}")
        print(f"| {pair.name} | " + " | ".join(cells) + " |")
        for library, measure in (("MONAI", monai_scores), ("torchmetrics", torchmetrics_scores)):
            for name, value in numbers(measure, pair).items():
                by_hand = pair.scores.get(name.partition(",")[0])
                if not is_close(by_hand, value):
                    differing.append((pair.name, name, by_hand, library, value))
    print(f"\n{wrong} of {len(PAIRS) * len(MEASURES)} values differ from those by hand.\n")
    print("## Where a library differs\n")
    print("| pair | measure | by hand and pancseg | library | its value |\n|--|--|--|--|--|")
    for name, measure, by_hand, library, value in differing:
        print(f"| {name} | {measure} | {text(by_hand)} | {library} | {text(value)} |")
    print(WHO_IS_RIGHT)


if __name__ == "__main__":
    main()
