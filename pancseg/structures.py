"""Structures that are segmented: how a source labels them, and the codes of the stored label map.

A stored label map is exclusive: each voxel holds 0 or one code. Structure ``n`` of the
configuration, counted from 1, has code ``n``; where two overlap, the later one wins. A structure
that contains another, as ``pancreas: [1, 2]`` contains ``tumour: [2]``, is the union of several
codes, its ``values``.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pancseg.errors import PancsegError, Refused

KINDS = ("organ", "lesion")
WHOLE_NUMBER_TOLERANCE = 1e-3  # labels saved through a float with a slope differ by less
MOST_REPORTED = 8  # values in a message
Label = int | str
"""A value of a label map, a number, name or code of a segment or ROI."""


@dataclass(frozen=True)
class Structure:
    """A structure to segment.

    Attributes:
        name: Part of file names, such as ``pancreas``.
        labels: What the source calls it; None takes every label there is.
        code: SNOMED CT.
        kind: ``organ`` or ``lesion``.
        volume_ml: Smallest and largest plausible volume.
        values: Codes of the stored label map that belong to it.
    """

    name: str
    labels: tuple[Label, ...] | None
    code: str
    kind: str
    volume_ml: tuple[float, float]
    values: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


@dataclass(frozen=True)
class LabelMap:
    """A label as read.

    Attributes:
        image: uint8 codes of structures, on the label's own grid, slice 0 nearest the feet.
        unknown_values: Values that are neither chosen nor declared.
        flags: Flags of ``intake.csv``.
    """

    image: nib.Nifti1Image
    unknown_values: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


def parse_structures(
    node: Mapping[str, Mapping[str, Any]], labels: Sequence[Label] | None = None
) -> tuple[Structure, ...]:
    """Structures of a configuration.

    Args:
        node: ``conf/structures``: ``labels``, ``code``, ``kind`` and ``volume_ml`` by name.
        labels: Replace the labels of the only structure.

    Raises:
        PancsegError: Naming the key that cannot be used.

    >>> organ = {"code": "15776009", "kind": "organ", "volume_ml": [15, 300]}
    >>> node = {"pancreas": {**organ, "labels": [1, 2]}, "tumour": {**organ, "labels": [2]}}
    >>> [structure.values for structure in parse_structures(node)]
    [(1, 2), (2,)]
    """
    if not node:
        raise PancsegError("structures: names no structure; give structures=pancreas")
    if labels is not None and len(node) > 1:
        keys = " or ".join(f"structures.{name}.labels=" for name in node)
        raise PancsegError(f"labels={list(labels)}: there are {len(node)} structures; give {keys}")
    given = {
        name: (labels if labels is not None else entry["labels"]) for name, entry in node.items()
    }
    words = {name: None if w is None else tuple(w) for name, w in given.items()}
    for name, entry in node.items():
        key = f"structures.{name}"
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name):
            raise PancsegError(f"{key}: expected a name of small letters, digits and _")
        chosen = words[name]
        if chosen == () or (chosen is None and len(node) > 1) or "0" in map(str, chosen or ()):
            raise PancsegError(f"{key}.labels: expected a list without 0, such as [1]")
        if entry["kind"] not in KINDS:
            raise PancsegError(f"{key}.kind={entry['kind']}: expected {' or '.join(KINDS)}")
        low, high = entry["volume_ml"]
        if not 0 <= low < high:
            raise PancsegError(f"{key}.volume_ml={[low, high]}: expected two, the lower first")
    names = list(node)
    structures = []
    for i, name in enumerate(names):
        values = [i + 1]
        for j, other in enumerate(names[i + 1 :], start=i + 1):
            own, inner = (
                {str(w).strip().casefold() for w in words[n] or ()} for n in (name, other)
            )
            if inner <= own:
                values.append(j + 1)
            elif inner & own:
                raise PancsegError(
                    f"structures.{other}.labels: share some labels with structures.{name}; "
                    f"expected all of them or none, and a part after its whole"
                )
        entry = node[name]
        low, high = map(float, entry["volume_ml"])
        structures.append(
            Structure(
                *(name, words[name], str(entry["code"]), entry["kind"]), (low, high), tuple(values)
            )
        )
    return tuple(structures)


def structures_from_manifest(entries: Iterable[Mapping[str, Any]]) -> tuple[Structure, ...]:
    """Structures as :meth:`Structure.to_dict` wrote them.

    Raises:
        TypeError, KeyError, ValueError: If they are not.
    """
    return tuple(
        Structure(
            str(entry["name"]),
            None if entry["labels"] is None else tuple(entry["labels"]),
            str(entry["code"]),
            str(entry["kind"]),
            (float(entry["volume_ml"][0]), float(entry["volume_ml"][1])),
            tuple(int(value) for value in entry["values"]),
        )
        for entry in entries
    )


def region_mask(codes: NDArray[Any], structure: Structure) -> NDArray[np.bool_]:
    """Voxels of a structure in a stored label map.

    >>> tumour = Structure("tumour", (2,), "", "lesion", (0, 9), (2,))
    >>> region_mask(np.array([0, 1, 2]), tumour).tolist()
    [False, False, True]
    """
    mask: NDArray[np.bool_] = codes == structure.values[0]
    for value in structure.values[1:]:  # np.isin takes 60 times as long, and 6 times the memory
        mask |= codes == value
    return mask


def encode_values(
    values: NDArray[Any], structures: Sequence[Structure], declared: Iterable[int] = ()
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Encode the values of a label as structure codes.

    Values within 1e-3 of a whole number are that number.

    Args:
        values: A label, any shape and type.
        structures: With labels that are values; names are refused.
        declared: Values that the source declares, chosen or not.

    Returns:
        Codes, and the values that are neither chosen nor declared. None of them where labels were
        chosen: the user knows the others.

    Raises:
        Refused: If no voxel is background, or a label is a name.

    >>> organ = Structure("pancreas", (1, 2), "", "organ", (15, 300), (1,))
    >>> codes, unknown_values = encode_values(np.array([0, 1, 2, 7]), [organ])
    >>> codes.tolist(), unknown_values
    ([0, 1, 1, 0], ())
    """
    if values.dtype.kind == "f":
        whole = np.rint(values)
        near = np.abs(values - whole) <= WHOLE_NUMBER_TOLERANCE
        values = np.where(near, whole, values)
    nonzero = values != 0
    if nonzero.all():
        raise Refused(
            "no_background", f"no voxel is 0, values go from {values.min():g} to {values.max():g}"
        )
    if structures[0].labels is None:
        found = np.unique(values[nonzero])
        known = {float(value) for value in declared}
        several = len(found) > 1 and not known
        rest = found if several else [v for v in found if known and float(v) not in known]
        return nonzero.astype(np.uint8), tuple(f"{value:g}" for value in rest)[:MOST_REPORTED]
    codes = np.zeros(values.shape, np.uint8)
    for code, structure in enumerate(structures, start=1):
        for label in structure.labels or ():
            codes[values == as_number(label)] = code
    return codes, ()


def as_number(label: Label) -> float:
    """A chosen label as a number.

    Raises:
        Refused: If it is a name.
    """
    try:
        return float(label)
    except ValueError:
        raise Refused(
            "no_such_structure",
            f"labels names {label!r}, but this label holds numbers without names; give its values, "
            "such as labels=[1]",
        ) from None


def match_names(
    names: Mapping[int, Sequence[str]], structures: Sequence[Structure], kind: str
) -> list[list[int]]:
    """Numbers of the segments or ROIs that belong to each structure.

    Args:
        names: For each number its name, then its codes.
        structures: Labels are numbers, names or codes, in any case; None takes the only one.
        kind: ``segment`` or ``roi``, for messages.

    Returns:
        One list a structure; it is empty where the file lacks that structure.

    Raises:
        Refused: If none is found, or there are several and no labels were chosen.

    >>> organ = Structure("pancreas", (15776009,), "", "organ", (15, 300), (1,))
    >>> match_names({1: ("Liver",), 2: ("Pancreas", "15776009")}, [organ], "segment")
    [[2]]
    """
    shown = [f"{number} {words[0]}" for number, words in names.items()]
    if structures[0].labels is None:
        if len(names) == 1:
            return [list(names)]
        raise Refused(
            f"ambiguous_{kind}",
            f"{len(names)} {kind}s; choose by labels=[NAME]; show_names=true lists them",
            names=shown,
        )
    found = []
    for structure in structures:
        wanted = {str(label).strip().casefold() for label in structure.labels or ()}
        found.append(
            [
                number
                for number, words in names.items()
                if wanted & {str(number), *(word.strip().casefold() for word in words)}
            ]
        )
    if not any(found):
        chosen = ", ".join(str(label) for s in structures for label in s.labels or ())
        raise Refused(
            f"no_such_{kind}",
            f"no {kind} of {len(names)} is named {chosen}; show_names=true lists them",
            names=shown,
        )
    return found
