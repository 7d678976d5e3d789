"""Splits of patients into training, validation and test.

Patients are ranked by a seeded hash of their pseudonym, so that the order of files has no
influence. Adding k patients moves at most k others across each border between two subsets.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pancseg.data.manifest import Case, matches, same_person
from pancseg.errors import PancsegError
from pancseg.files import read_json

SUBSETS = ("train", "val", "test")


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
    return same_person(cases, by_scan=True)


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
    names = sorted(set(patients))
    person_of = {name: (persons or {}).get(name, name) for name in names}
    if not names:
        raise PancsegError("no labelled patient to train on; prepare with source.labels")
    if rule == "same":
        return Split(names, names, names, rule, None)
    if rule == "file":
        return read_split(path, person_of)
    hashes = {name: sha256(f"{seed}/{name}".encode()).digest() for name in person_of.values()}
    ranked = sorted(hashes, key=hashes.__getitem__)
    if rule == "holdout":
        parts = holdout(ranked, val, test)
    elif rule == "kfold":
        parts = kfold(ranked, folds, fold)
    else:
        raise PancsegError(f"split.rule={rule}: expected holdout, kfold, same or file")
    in_test, in_val = ({name for name in names if person_of[name] in part} for part in parts)
    return Split(sorted({*names} - in_val - in_test), sorted(in_val), sorted(in_test), rule, seed)


def holdout(ranked: Sequence[str], val: float, test: float) -> tuple[set[str], set[str]]:
    """Test patients, who do not depend on ``val``, and validation patients, next in the ranking.

    Shares are rounded to borders, not to sizes: test ends at ``test * n``, and validation at
    ``(test + val) * n``, so that adding k patients moves at most k others across each border.
    """
    for key, size in (("val", val), ("test", test)):
        if size < 0 or (size >= 1 and size != int(size)):
            raise PancsegError(f"split.{key}={size}: expected a share below 1 or a whole number")
    if val < 1 and test < 1 and val + test >= 1:
        raise PancsegError(f"split.val={val} and split.test={test} leave nothing to train on")
    n, n_test = len(ranked), int(test)
    if 0 < test < 1:  # the inner round mends 0.7 * 45 = 31.499999999999996
        n_test = min(max(1, round(round(test * n, 6))), max(1, n - 2))
    stop = n_test + int(val)
    if 0 < val < 1:
        end = round(round(val * n + (test * n if test < 1 else test), 6))
        stop = max(n_test + 1, min(end, n - 1))
    if stop >= n:
        raise PancsegError(
            f"{n} labelled patients, this split needs at least {stop + 1}; add patients, lower "
            "split.val and split.test (0 is allowed), or use split=same, which holds nobody out"
        )
    return set(ranked[:n_test]), set(ranked[n_test:stop])


def kfold(ranked: Sequence[str], folds: int, fold: int) -> tuple[set[str], set[str]]:
    """Test and validation patients of a fold; sizes of folds differ by one at most."""
    n = len(ranked)
    if not (3 <= folds <= n and 0 <= fold < folds):
        raise PancsegError(
            f"split.fold={fold} of split.folds={folds}: expected 0 to folds - 1 of 3 to {n} folds, "
            f"for {n} labelled patients"
        )
    parts = [set(ranked[i * n // folds : (i + 1) * n // folds]) for i in range(folds)]
    return parts[fold], parts[(fold + 1) % folds]


def read_split(path: str | None, person_of: Mapping[str, str]) -> Split:
    """Read a split of these patients; those that the file does not name take no part."""
    if path is None or not Path(path).is_file():
        raise PancsegError(f"split.path={path}: split=file needs a JSON file of train, val, test")
    lists = read_json(
        Path(path),
        "lists of patients named train, val and test",
        lambda v: isinstance(v, dict) and all(matches(v.get(key), list[str]) for key in SUBSETS),
    )
    listed = [(subset, name) for subset in SUBSETS for name in lists[subset]]
    if unknown := sorted({name for _, name in listed} - person_of.keys()):
        sentence = f"{len(unknown)} patients are not in the prepared folder, such as {unknown[0]}"
        raise PancsegError(f"{path}: {sentence}")
    if not lists["train"]:
        raise PancsegError(f"{path}: no patient to train on")
    first_of: dict[str, tuple[str, str]] = {}  # subset and name by person
    for subset, name in listed:
        earlier, other = first_of.setdefault(person_of[name], (subset, name))
        if earlier != subset:
            same = "" if name == other else f" ({other} is the same person or has the same scan)"
            raise PancsegError(f"{path}: in both {earlier} and {subset}: {name}{same}")
    train, val, test = (sorted(set(lists[subset])) for subset in SUBSETS)
    return Split(train, val, test, "file", None)
