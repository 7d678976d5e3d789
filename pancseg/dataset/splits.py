"""Dealing whole patients to training, validation and test.

A patient's part follows from a seeded hash of the patient alone, so it depends neither on the
order of files nor on who else is there. Only where a part would stay empty, or a number of
patients is asked for instead of a share, do the patients' hashes have to be ranked.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pancseg.errors import PancsegError
from pancseg.files import read_json

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Patients of each part, sorted, with the rule and seed that dealt them."""

    train: list[str]
    val: list[str]
    test: list[str]
    rule: str
    seed: int | None

    @property
    def held_out(self) -> bool:
        """Whether validation and test patients are kept out of training."""
        return self.rule != "same"

    def check(self) -> None:
        """Check that no patient is in two parts.

        Raises:
            PancsegError: Naming those who are; never for ``split=same``, which is made of that.
        """
        if not self.held_out:
            return
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            shared = sorted(set(getattr(self, one)) & set(getattr(self, other)))
            if shared:
                raise PancsegError(
                    f"the split has patients in both {one} and {other}: {', '.join(shared)}; "
                    "every patient belongs to one part"
                )

    def as_dict(self) -> dict[str, Any]:
        """The split as plain values, as it stands in ``splits.json`` and in checkpoints."""
        return asdict(self)


def deal(
    patients: list[str],
    rule: str = "holdout",
    seed: int = 0,
    val: float = 0.2,
    test: float = 0.2,
    folds: int = 5,
    fold: int = 0,
    path: str | None = None,
    same_person: Mapping[str, str] | None = None,
) -> Split:
    """Deal patients to the three parts.

    Args:
        patients: All labelled patients.
        rule: ``holdout``, ``kfold``, ``same`` (everyone everywhere) or ``file``.
        seed: Of the hash.
        val: Share (below 1) or number of patients to choose checkpoints by.
        test: Share (below 1) or number of patients held out.
        folds: Parts of ``kfold``.
        fold: Which fold is test; the next is validation.
        path: JSON file with lists ``train``, ``val`` and ``test``, such as a run's splits.json.
        same_person: For patients who go by several names, the one they are dealt by.

    Raises:
        PancsegError: If there are too few patients, or the settings make no split.
    """
    everyone, names = sorted(set(patients)), same_person or {}
    patients = everyone if rule == "file" else sorted({names.get(p, p) for p in everyone})
    if not patients:
        raise PancsegError("no labelled patient to train on; prepare with source.labels")
    if rule == "same":
        split = Split(patients, patients, patients, rule, None)
    elif rule == "file":
        split = deal_by_file(patients, path)
    elif rule == "kfold":
        split = deal_folds(patients, seed, folds, fold)
    elif rule == "holdout":
        split = deal_holdout(patients, seed, val, test)
    else:
        raise PancsegError(f"split.rule={rule}: expected holdout, kfold, same or file")
    if rule != "file":
        split = with_all_names(split, everyone, names)
    split.check()
    return split


def with_all_names(split: Split, patients: list[str], names: Mapping[str, str]) -> Split:
    """A split of persons as one of all the names that they go by."""
    train, val, test = (
        [patient for patient in patients if names.get(patient, patient) in dealt]
        for dealt in (set(split.train), set(split.val), set(split.test))
    )
    return replace(split, train=train, val=val, test=test)


def deal_holdout(patients: list[str], seed: int, val: float, test: float) -> Split:
    """Deal a test part, then a validation part from the rest.

    The test part does not depend on ``val``. Shares are thresholds on the hash.
    """
    wanted = {"val": val, "test": test}
    for name, size in wanted.items():
        if size < 0 or (size >= 1 and size != int(size)):
            raise PancsegError(f"split.{name}={size}: expected a share below 1 or a whole number")
    if sum(size for size in wanted.values() if size < 1) >= 1:
        raise PancsegError(f"split.val={val} and split.test={test} leave nothing to train on")
    needed = 1 + sum(max(1, int(size)) for size in wanted.values() if size)
    if len(patients) < needed:
        raise PancsegError(
            f"{len(patients)} labelled patients, this split needs at least {needed}; add patients, "
            "lower split.val and split.test (0 is allowed), or use split=same, which holds nobody "
            "out"
        )
    spared = 1 + (max(1, int(val)) if val else 0)
    tested = set(pick(patients, f"{seed}/test", test, spare=spared))
    rest = [patient for patient in patients if patient not in tested]
    share = val / (1 - test) if val < 1 and test < 1 else val
    validated = set(pick(rest, f"{seed}/val", share, spare=1))
    train = [patient for patient in rest if patient not in validated]
    return Split(train, sorted(validated), sorted(tested), "holdout", seed)


def pick(patients: list[str], salt: str, size: float, spare: int) -> list[str]:
    """Pick a share or a number of patients by their hash, at least one and leaving ``spare``."""
    if size == 0:
        return []
    ranked = sorted(patients, key=lambda patient: unit_hash(patient, salt))
    count = sum(unit_hash(patient, salt) < size for patient in ranked) if size < 1 else int(size)
    return ranked[: max(1, min(count, len(ranked) - spare))]


def deal_folds(patients: list[str], seed: int, folds: int, fold: int) -> Split:
    """Deal patients to folds by hash; an empty fold takes one from the largest."""
    if folds < 3 or not 0 <= fold < folds:
        raise PancsegError(
            f"split.fold={fold} of split.folds={folds}: expected 0 to folds - 1, 3 or more folds"
        )
    if len(patients) < folds:
        raise PancsegError(
            f"{len(patients)} labelled patients for {folds} folds; lower split.folds"
        )
    salt = f"{seed}/fold"
    parts: list[list[str]] = [[] for _ in range(folds)]
    for patient in sorted(patients, key=lambda patient: unit_hash(patient, salt)):
        parts[int(unit_hash(patient, salt) * folds)].append(patient)
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    after = (fold + 1) % folds
    train = [p for i, part in enumerate(parts) if i not in (fold, after) for p in part]
    return Split(sorted(train), sorted(parts[after]), sorted(parts[fold]), "kfold", seed)


def deal_by_file(patients: list[str], path: str | None) -> Split:
    """Read a split; patients the file does not name take no part."""
    if path is None or not Path(path).is_file():
        raise PancsegError(
            f"split.path={path}: split=file needs a JSON file with train, val and test"
        )
    lists = read_json(
        Path(path),
        "a split: lists of patients named train, val and test",
        lambda v: isinstance(v, dict) and all(are_names(v.get(part)) for part in PARTS),
    )
    unknown = sorted({p for part in PARTS for p in lists[part]} - set(patients))
    if unknown:
        raise PancsegError(
            f"{path}: {len(unknown)} patients are not in the prepared folder, such as {unknown[0]}"
        )
    if not lists["train"]:
        raise PancsegError(f"{path}: no patient to train on")
    train, val, test = (sorted(lists[part]) for part in PARTS)
    return Split(train, val, test, "file", None)


def are_names(value: Any) -> bool:
    """Whether it is a list of patients."""
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def unit_hash(patient: str, salt: str) -> float:
    """A number in [0, 1) that follows from a patient and a salt alone.

    >>> 0 <= unit_hash("p1", "0/test") < 1 and unit_hash("p1", "a") != unit_hash("p1", "b")
    True
    """
    digest = hashlib.sha256(f"{salt}/{patient}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
