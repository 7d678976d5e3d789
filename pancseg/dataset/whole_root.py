"""Checks across all cases of a root, old and new: copies, one study under two names, outliers."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from pancseg.dataset.manifest import Case

ROOT_FLAGS = ("duplicate_pixels", "two_names", "spacing_outlier")
FEWEST_FOR_OUTLIERS = 5  # cases; a median of fewer says little


def copies_of(cases: Iterable[Case]) -> dict[str, str]:
    """Cases with the very pixels of another one, each with the first of them.

    Args:
        cases: In the order in which the first is kept.
    """
    first: dict[str, str] = {}
    copies = {}
    for case in cases:
        original = first.setdefault(case.pixels or case.case, case.case)
        if original != case.case:
            copies[case.case] = original
    return copies


def root_flags(
    cases: list[Case], copies: dict[str, str], spacing_factor: float
) -> dict[str, list[str]]:
    """Flags of each case that only the other cases tell.

    Args:
        cases: All cases of the root.
        copies: From :func:`copies_of`.
        spacing_factor: A spacing this many times the root's median, or a part of it, is told.
    """
    flags: dict[str, list[str]] = defaultdict(list)
    for name in {*copies, *copies.values()}:
        flags[name].append("duplicate_pixels")
    names = same_person(cases)
    shared = {name for patient, name in names.items() if patient != name}
    for case in cases:
        if names[case.patient] in shared:
            flags[case.case].append("two_names")
    if len(cases) >= FEWEST_FOR_OUTLIERS:
        spacing_mm = np.array([case.spacing_mm for case in cases])
        away = np.abs(np.log(spacing_mm / np.median(spacing_mm, axis=0))).max(axis=1)
        for case, distance in zip(cases, away, strict=True):
            if distance > np.log(spacing_factor):
                flags[case.case].append("spacing_outlier")
    return flags


def same_person(cases: list[Case]) -> dict[str, str]:
    """For each patient one name of the same person: of all who share a study or a PatientID.

    A study or PatientID that all patients share is an anonymiser's, and tells nothing.

    >>> from types import SimpleNamespace as Of
    >>> of_study = {"a": "1", "b": "1", "c": "2"}
    >>> nobody = {"person": "", "settled": False}
    >>> same_person([Of(patient=p, study=s, **nobody) for p, s in of_study.items()])
    {'a': 'a', 'b': 'a', 'c': 'c'}
    """
    settled = {case.patient for case in cases if case.settled}
    first = {patient: patient for patient in sorted({case.patient for case in cases})}

    def name_of(patient: str) -> str:
        path = []
        while first[patient] != patient:
            path.append(patient)
            patient = first[patient]
        for one in path:  # the next one who asks has a short way
            first[one] = patient
        return patient

    for what in ("study", "person"):
        groups: dict[str, set[str]] = defaultdict(set)
        for case in cases:
            groups[getattr(case, what)].add(case.patient)
        for value, patients in groups.items():
            if not value or (len(patients) == len(first) > 2):
                continue
            names = {name_of(patient) for patient in patients}
            one = min(names, key=lambda name: (name not in settled, name))  # who was there stays
            first.update(dict.fromkeys(names, one))
    return {patient: name_of(patient) for patient in list(first)}
