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
    names: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        names[case.study].add(case.patient)
    for case in cases:
        if case.study and len(names[case.study]) > 1:
            flags[case.case].append("two_names")
    if len(cases) >= FEWEST_FOR_OUTLIERS:
        spacing_mm = np.array([case.spacing_mm for case in cases])
        away = np.abs(np.log(spacing_mm / np.median(spacing_mm, axis=0))).max(axis=1)
        for case, distance in zip(cases, away, strict=True):
            if distance > np.log(spacing_factor):
                flags[case.case].append("spacing_outlier")
    return flags
