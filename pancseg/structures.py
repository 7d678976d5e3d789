"""Structures that are segmented: how a source labels them, and the codes of the stored label map.

Each voxel of a stored label map holds 0 or one code, ``n`` for the n-th structure of the
configuration; where two overlap, the later one wins. A structure that contains another, as
``pancreas: [1, 2]`` contains ``tumour: [2]``, is the union of several codes, its ``values``.
Voxels with the code ``IGNORED``, which nobody labelled, neither train nor count in a score.
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
NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
IGNORED = 255
WHOLE_NUMBER_TOLERANCE = 1e-3  # labels saved through a float with a slope differ by less
MOST_REPORTED = 8  # values in a message
Label = int | str  # value of a label map; number, name or code of a segment or ROI


@dataclass(frozen=True)
class Structure:
    """A structure to segment."""

    name: str  # part of file names, such as ``pancreas``
    labels: tuple[Label, ...] | None  # in the source; None takes every label there is
    code: str  # SNOMED CT
    kind: str  # organ or lesion
    volume_ml: tuple[float, float]  # smallest and largest plausible
    values: tuple[int, ...]  # codes of the stored label map that belong to it

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


@dataclass(frozen=True)
class LabelMap:
    """A label as read."""

    image: nib.Nifti1Image  # uint8 codes of structures, own grid, slice 0 nearest the feet
    unknown_values: tuple[str, ...] = ()  # neither chosen nor declared
    flags: tuple[str, ...] = ()  # of ``intake.csv``


def parse_structures(
    node: Mapping[str, Mapping[str, Any]], labels: Sequence[Label] | None = None
) -> tuple[Structure, ...]:
    """Parse ``conf/structures``; ``labels`` replace those of the only one. PancsegError by key."""
    if not node:
        raise PancsegError("structures: names no structure; give structures=pancreas")
    if len(node) >= IGNORED:
        raise PancsegError(f"structures: names {len(node)}, expected at most {IGNORED - 1}")
    if labels is not None and len(node) > 1:
        keys = " or ".join(f"structures.{name}.labels=" for name in node)
        raise PancsegError(f"labels={list(labels)}: there are {len(node)} structures; give {keys}")
    labels_of = {
        name: entry["labels"] if labels is None else labels for name, entry in node.items()
    }
    texts_of = {name: folded(chosen or ()) for name, chosen in labels_of.items()}
    structures = []
    for number, (name, entry) in enumerate(node.items(), start=1):
        key, chosen, texts = f"structures.{name}", labels_of[name], texts_of[name]
        if not NAME.fullmatch(name):
            raise PancsegError(f"{key}: expected a name of small letters, digits and _")
        if "0" in texts or (not texts and (chosen is not None or len(node) > 1)):
            raise PancsegError(f"{key}.labels: expected a list without 0, such as [1]")
        if entry["kind"] not in KINDS:
            raise PancsegError(f"{key}.kind={entry['kind']}: expected {' or '.join(KINDS)}")
        low, high = map(float, entry["volume_ml"])
        if not 0 <= low < high:
            raise PancsegError(f"{key}.volume_ml={[low, high]}: expected two, the lower first")
        later = list(enumerate(list(node)[number:], start=number + 1))
        if shared := [o for _, o in later if texts_of[o] & texts and not texts_of[o] <= texts]:
            raise PancsegError(
                f"structures.{shared[0]}.labels: share some labels with {key}; "
                "expected all of them or none, and a part after its whole"
            )
        values = number, *(value for value, other in later if texts_of[other] <= texts)
        own = None if chosen is None else tuple(chosen)
        structures.append(
            Structure(name, own, str(entry["code"]), entry["kind"], (low, high), values)
        )
    return tuple(structures)


def folded(labels: Iterable[Label]) -> set[str]:
    """Labels as texts that compare without case."""
    return {str(label).strip().casefold() for label in labels}


def structures_from_manifest(entries: Iterable[Mapping[str, Any]]) -> tuple[Structure, ...]:
    """Read what ``Structure.to_dict`` wrote; TypeError, KeyError or ValueError otherwise."""
    structures = tuple(
        Structure(
            *(str(entry["name"]), None if entry["labels"] is None else tuple(entry["labels"])),
            *(str(entry["code"]), str(entry["kind"])),
            (float(entry["volume_ml"][0]), float(entry["volume_ml"][1])),
            tuple(map(int, entry["values"])),
        )
        for entry in entries
    )
    codes, names = range(1, len(structures) + 1), {s.name for s in structures}
    for s in structures:  # names become parts of paths
        if not NAME.fullmatch(s.name) or s.kind not in KINDS or not {*s.values} <= {*codes}:
            raise ValueError(f"structure {s.name[:40]!r}")
    if not len(names) == len(structures) < IGNORED:
        raise ValueError("structures of one name, or too many")
    return structures


def region_mask(codes: NDArray[Any], structure: Structure) -> NDArray[np.bool_]:
    """Voxels of a structure in a stored label map."""
    mask: NDArray[np.bool_] = codes == structure.values[0]
    for value in structure.values[1:]:  # np.isin takes 60 times as long, and 6 times the memory
        mask |= codes == value
    return mask


def region_masks(
    codes: NDArray[np.uint8], structures: Sequence[Structure]
) -> list[NDArray[np.bool_]]:
    """Masks of structures in a label map; of the only structure a view of it, without a copy."""
    if len(structures) == 1:
        return [codes.view(bool)]
    return [region_mask(codes, structure) for structure in structures]


def count_labelled(codes: NDArray[Any]) -> int:
    """Voxels of any structure in a stored label map."""
    return int(np.count_nonzero(codes)) - int(np.count_nonzero(codes == IGNORED))


def encode_values(
    values: NDArray[Any], structures: Sequence[Structure], declared: Iterable[int] = ()
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Encode the values of a label as structure codes.

    Values within 1e-3 of a whole number are that number. Returned too are values that the source
    has not ``declared``, unless labels were chosen: the user knows the others. Refused if no voxel
    is background, or a chosen label is a name.
    """
    if values.dtype.kind == "f":
        whole = np.rint(values)
        values = np.where(np.abs(values - whole) <= WHOLE_NUMBER_TOLERANCE, whole, values)
    nonzero = values != 0
    if nonzero.all():
        sentence = f"no voxel is 0, values go from {values.min():g} to {values.max():g}"
        raise Refused("no_background", sentence)
    if structures[0].labels is None:
        present, known = np.unique(values[nonzero]), {float(value) for value in declared}
        unknown = [v for v in present if float(v) not in known and (known or len(present) > 1)]
        return nonzero.astype(np.uint8), tuple(f"{v:g}" for v in unknown)[:MOST_REPORTED]
    codes = np.zeros(values.shape, np.uint8)
    for code, structure in enumerate(structures, start=1):
        for label in structure.labels or ():
            try:
                codes[values == float(label)] = code
            except ValueError:
                sentence = f"this label has numbers and no names such as {label!r}; give labels=[1]"
                raise Refused("no_such_structure", sentence) from None
    return codes, ()


def match_names(
    names: Mapping[int, Sequence[str]], structures: Sequence[Structure], kind: str
) -> list[list[int]]:
    """Numbers of the segments or ROIs (``kind``) of each structure, empty where the file lacks it.

    ``names`` gives for each number its name, then its codes. Labels are numbers, names or codes, in
    any case; None takes the only one. Refused if none is there, or several and none was chosen.
    """
    shown = [f"{number} {texts[0]}" for number, texts in names.items()]
    if structures[0].labels is None:
        if len(names) == 1:
            return [list(names)]
        sentence = f"{len(names)} {kind}s; choose by labels=[NAME]; show_names=true lists them"
        raise Refused(f"ambiguous_{kind}", sentence, names=shown)
    texts_of = {number: folded([number, *texts]) for number, texts in names.items()}
    chosen = [folded(structure.labels or ()) for structure in structures]
    matched = [[n for n, texts in texts_of.items() if texts & wanted] for wanted in chosen]
    if not any(matched):
        labels = ", ".join(str(label) for s in structures for label in s.labels or ())
        sentence = f"no {kind} of {len(names)} is named {labels}; show_names=true lists them"
        raise Refused(f"no_such_{kind}", sentence, names=shown)
    return matched
