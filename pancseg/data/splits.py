"""Splits of patients into training, validation and test.

Patients are ranked by a seeded hash of their pseudonym, so that the order of files has no
influence. Adding k patients moves at most k others across each border between two subsets.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from pancseg.data.manifest import Case, matches, same_person
from pancseg.errors import PancsegError
from pancseg.files import read_json

SUBSETS = ("train", "val", "test")
Subsets = tuple[set[str], set[str], set[str]]


@dataclass(frozen=True)
class Split:
    """Sorted patients of each subset, and the rule and seed that they follow from."""

    train: list[str]
    val: list[str]
    test: list[str]
    rule: str
    seed: int | None

    @property
    def held_out(self) -> bool:
        """Whether validation and test patients are kept out of training."""
        return self.rule != "same"


def persons_of(cases: Iterable[Case]) -> dict[str, str]:
    """For each patient the name of the person; patients who share a scan are one person."""
    cases = list(cases)
    return same_person(
        [*cases, *(replace(case, study_hash=case.voxel_hash, patient_id_hash="") for case in cases)]
    )


def make_split(
    patients: Iterable[str],
    rule: str = "holdout",
    seed: int = 0,
    val: float = 0.2,
    test: float = 0.2,
    folds: int = 5,
    fold: int = 0,
    path: str | None = None,
    persons: Mapping[str, str] | None = None,
) -> Split:
    """Split labelled patients by a rule of ``conf/split``; PancsegError where it is not possible.

    All names of a person are in one subset, ranked by the name that ``persons`` gives.
    """
    names, persons = sorted(set(patients)), persons or {}
    person_of = {name: persons.get(name, name) for name in names}
    if not names:
        raise PancsegError("no labelled patient to train on; prepare with source.labels")
    if rule == "same":
        return Split(names, names, names, rule, None)
    if rule == "file":
        return read_split(path, person_of)
    if rule not in ("holdout", "kfold"):
        raise PancsegError(f"split.rule={rule}: expected holdout, kfold, same or file")
    hashes = {name: sha256(f"{seed}/{name}".encode()).digest() for name in person_of.values()}
    ranked = sorted(hashes, key=hashes.__getitem__)
    chosen = holdout(ranked, val, test) if rule == "holdout" else kfold(ranked, folds, fold)
    in_train, in_val, in_test = ([n for n in names if person_of[n] in subset] for subset in chosen)
    return Split(in_train, in_val, in_test, rule, seed)


def holdout(ranked: Sequence[str], val: float, test: float) -> Subsets:
    """Training, validation and test patients: the first are test, the next validation.

    Test patients do not depend on ``val``. Of two shares the ends of both subsets are rounded,
    instead of their sizes, which bounds the moves when patients are added.
    """
    for key, size in (("val", val), ("test", test)):
        if size < 0 or (size >= 1 and size != int(size)):
            raise PancsegError(f"split.{key}={size}: expected a share below 1 or a whole number")
    if val < 1 and test < 1 and val + test >= 1:
        raise PancsegError(f"split.val={val} and split.test={test} leave nothing to train on")
    n, n_test = len(ranked), int(test)
    if 0 < test < 1:
        n_test = min(max(1, nearest(test * n)), max(1, n - 2))
    stop = n_test + int(val)
    if 0 < val < 1:
        end = nearest(val * n + (test * n if test < 1 else test))
        stop = max(n_test + 1, min(end, n - 1))
    if stop >= n:
        raise PancsegError(
            f"{n} labelled patients, this split needs at least {stop + 1}; add patients, lower "
            "split.val and split.test (0 is allowed), or use split=same, which holds nobody out"
        )
    return set(ranked[stop:]), set(ranked[n_test:stop]), set(ranked[:n_test])


def nearest(size: float) -> int:
    """The nearest whole number, of a product of decimal fractions."""
    return round(round(size, 6))


def kfold(ranked: Sequence[str], folds: int, fold: int) -> Subsets:
    """Training, validation and test patients of a fold; sizes of folds differ by one at most."""
    if folds < 3 or not 0 <= fold < folds:
        expected = "expected 0 to folds - 1, 3 or more folds"
        raise PancsegError(f"split.fold={fold} of split.folds={folds}: {expected}")
    n = len(ranked)
    if n < folds:
        raise PancsegError(f"{n} labelled patients for {folds} folds; lower split.folds")
    parts = [set(ranked[i * n // folds : (i + 1) * n // folds]) for i in range(folds)]
    val, test = parts[(fold + 1) % folds], parts[fold]
    return set(ranked) - val - test, val, test


def read_split(path: str | None, person_of: Mapping[str, str]) -> Split:
    """Read a split of these patients; those that the file does not name take no part."""
    if path is None or not Path(path).is_file():
        raise PancsegError(f"split.path={path}: split=file needs a JSON file of train, val, test")
    lists = read_json(Path(path), "lists of patients named train, val and test", is_split)
    placed = [(subset, name) for subset in SUBSETS for name in lists[subset]]
    unknown = sorted({name for _, name in placed} - person_of.keys())
    if unknown:
        named = f"{len(unknown)} patients are not in the prepared folder, such as {unknown[0]}"
        raise PancsegError(f"{path}: {named}")
    if not lists["train"]:
        raise PancsegError(f"{path}: no patient to train on")
    first_of: dict[str, tuple[str, str]] = {}  # subset and name by person
    for subset, name in placed:
        earlier, other = first_of.setdefault(person_of[name], (subset, name))
        if earlier != subset:
            same = "" if name == other else f" ({other} is the same person or has the same scan)"
            raise PancsegError(f"{path}: in both {earlier} and {subset}: {name}{same}")
    return Split(sorted(lists["train"]), sorted(lists["val"]), sorted(lists["test"]), "file", None)


def is_split(value: Any) -> bool:
    """Whether JSON holds lists of patients named ``train``, ``val`` and ``test``."""
    return isinstance(value, dict) and all(matches(value.get(key), list[str]) for key in SUBSETS)
