"""Contents of a source in a form that is short enough to compare."""

from pathlib import Path
from typing import Any

import numpy as np

from pancseg.intake.match_labels import CaseSource, SourceContents
from pancseg.intake.volume_files import ReadOptions
from pancseg.structures import Label, LabelMap, parse_structures

ORGAN = {"code": "15776009", "kind": "organ", "volume_ml": [15, 300]}


def options(**labels: list[Label] | None) -> ReadOptions:
    """Options with structures and their labels; by default any label is pancreas."""
    node = labels or {"pancreas": None}
    entries: dict[str, Any] = {name: {**ORGAN, "labels": own} for name, own in node.items()}
    return ReadOptions(parse_structures(entries), processes=0)


def pairs(contents: SourceContents, images: Path, labels: Path) -> list[tuple[str, str]]:
    cases = [case for case in contents.cases if case.label_path]
    paths = [(c.path.relative_to(images), c.label_path.relative_to(labels)) for c in cases]
    return [(image.as_posix(), label.as_posix()) for image, label in paths]


def skipped(contents: SourceContents, status: str = "refused") -> list[tuple[str, str, str]]:
    """Name, kind and reason code of each row of a status, sorted."""
    rows = [row for row in contents.skipped if row.status == status]
    return sorted((row.path.name, row.kind, row.reason.partition(":")[0]) for row in rows)


def patients(contents: SourceContents) -> list[str]:
    return [case.patient for case in contents.cases]


def label_of(case: CaseSource) -> LabelMap:
    return case.read_label(case.read_image())


def codes_of(case: CaseSource) -> np.ndarray:
    return np.asarray(label_of(case).image.dataobj)
