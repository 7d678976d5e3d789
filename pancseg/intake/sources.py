"""Layouts of input: which image and which label make a case, and what else lies there.

A layout is one function from paths to ``Found``, one file in ``conf/source``.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import nibabel as nib

from pancseg.errors import PancsegError, Refused
from pancseg.intake.nifti import find_nifti, read_nifti_ct, read_nifti_mask, stem_of
from pancseg.intake.series import Series, find_series, read_ct, read_mask

Reader = Callable[[], nib.Nifti1Image]


@dataclass(frozen=True)
class Candidate:
    """An image that may become a case.

    Attributes:
        path: The image's folder or file.
        patient: Who it is, before the pseudonym.
        files: Everything that is read for it, to notice changes and to count bytes.
        read_image: Gives the image, HU.
        read_label: Gives the mask, or None where there is none.
        label_path: The label's folder or file.
    """

    path: Path
    patient: str
    files: tuple[Path, ...]
    read_image: Reader
    read_label: Reader | None = None
    label_path: Path | None = None


@dataclass(frozen=True)
class Stray:
    """A file or series that belongs to no case: its row in the table."""

    path: Path
    kind: str
    status: str
    reason: str
    slices: int | None = None


@dataclass
class Found:
    """What a source holds."""

    candidates: list[Candidate] = field(default_factory=list)
    strays: list[Stray] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def find_dicom(images: Path, labels: Path | None) -> Found:
    """CT series, tied to mask series that lie in the folder of the same relative path.

    The patient is the PatientID, or the folder where an anonymiser emptied it. A folder with
    several series on either side is refused: which belong together would be a guess.
    """
    found = Found()
    image_series, foreign = find_series(images)
    label_series, foreign_labels = find_series(labels) if labels else ([], [])
    for path in foreign + foreign_labels:
        found.strays.append(Stray(path, "other", "dropped", "not_dicom: not a DICOM file"))
    masks = by_folder(label_series)
    for folder, members in by_folder(image_series).items():
        partners = masks.pop(folder, [])
        for series in members:
            path = images / folder if len(members) == 1 else series.files[0]
            try:
                mask = tie(len(members), partners) if labels else None
            except Refused as refused:
                found.strays.append(
                    Stray(path, "image", "refused", str(refused), len(series.files))
                )
                continue
            found.candidates.append(
                Candidate(
                    path=path,
                    patient=series.patient_id
                    or folder.as_posix().strip(".")
                    or images.resolve().name,
                    files=series.files + (mask.files if mask else ()),
                    read_image=partial(read_ct, series),
                    read_label=partial(read_mask, mask) if mask else None,
                    label_path=labels / folder if labels and mask else None,
                )
            )
    for folder, orphans in masks.items():
        reason = f"no_image: no image series in the folder {folder.as_posix()} of the images"
        for orphan in orphans:
            found.strays.append(
                Stray((labels or images) / folder, "label", "refused", reason, len(orphan.files))
            )
    return found


def find_nifti_pairs(images: Path, labels: Path | None, patient: str | None = None) -> Found:
    """NIfTI images, tied to labels of the same relative path and stem.

    Args:
        images: A folder, or one file.
        labels: A folder, or one file, or None.
        patient: Regular expression with a group named ``patient``, searched in the relative path
            without its ending; the stem where it is None.
    """
    found = Found()
    label_files = dict(keyed(labels)) if labels else {}
    one_pair = images.is_file() and labels is not None and labels.is_file()
    if one_pair:
        label_files = {stem_of(images): labels}  # type: ignore[dict-item]
    check_unique([key for key, _ in keyed(images)], images)
    identities = []
    for key, path in keyed(images):
        label = label_files.pop(key, None)
        if labels and label is None:
            reason = f"no_label: no label file named {key} under the labels"
            found.strays.append(Stray(path, "image", "refused", reason))
            continue
        identities.append(key)
        found.candidates.append(
            Candidate(
                path=path,
                patient=patient_of(key, patient),
                files=(path, label) if label else (path,),
                read_image=partial(read_nifti_ct, path),
                read_label=partial(read_nifti_mask, label) if label else None,
                label_path=label,
            )
        )
    for key, path in label_files.items():
        reason = f"no_image: no image file named {key} under the images"
        found.strays.append(Stray(path, "label", "refused", reason))
    if patient is None and (pieces := pieces_of_one_patient(identities)):
        found.warnings.append(pieces)
    return found


def by_folder(series: Iterable[Series]) -> dict[Path, list[Series]]:
    """Series by the folder they lie in."""
    folders: dict[Path, list[Series]] = {}
    for one in series:
        folders.setdefault(one.folder, []).append(one)
    return folders


def tie(images: int, masks: list[Series]) -> Series:
    """The mask series of a folder.

    Raises:
        Refused: If there is none, or if the choice would be a guess.
    """
    if not masks:
        raise Refused("no_label", "no mask series in the same folder of the labels")
    if images > 1 or len(masks) > 1:
        raise Refused(
            "ambiguous_label",
            f"{images} image series and {len(masks)} mask series share one folder, expected one "
            "of each",
        )
    return masks[0]


def keyed(root: Path) -> Iterator[tuple[str, Path]]:
    """NIfTI files with what names them: relative folder and stem."""
    base = root.parent if root.is_file() else root
    for path in find_nifti(root):
        yield (path.parent.relative_to(base) / stem_of(path)).as_posix(), path


def check_unique(keys: list[str], root: Path) -> None:
    """Check that no two images would be one case.

    Raises:
        PancsegError: Naming the first that would.
    """
    for key, count in Counter(keys).items():
        if count > 1:
            raise PancsegError(
                f"{root}: {count} images are named {key} once their ending is taken off; rename "
                "all but one, or put labels in a folder of their own"
            )


def patient_of(key: str, pattern: str | None) -> str:
    r"""The patient that a file belongs to.

    >>> patient_of("a/liver_3_07", r"liver_(?P<patient>\d+)")
    '3'

    Raises:
        PancsegError: If the expression has no such group or does not match.
    """
    if pattern is None:
        return key
    try:
        match = re.search(pattern, key)
    except re.error as error:
        raise PancsegError(
            f"source.patient={pattern}: not a regular expression: {error}"
        ) from error
    if match is None or not match.groupdict().get("patient"):
        raise PancsegError(
            f"source.patient={pattern}: finds no group named patient in {key}; it must match every "
            "image, such as (?P<patient>[^_]+)"
        )
    return match["patient"]


def pieces_of_one_patient(keys: list[str]) -> str | None:
    r"""A warning where names differ only in the last of two numbers or more, else None.

    >>> pieces_of_one_patient(["case_001", "case_002"]) is None
    True
    >>> pieces_of_one_patient(["liver_1_0", "liver_1_1"])[:44]
    'liver_1_0 and liver_1_1 look like pieces of '
    """
    bases: dict[str, str] = {}
    for key in keys:
        numbers = list(re.finditer(r"\d+", key))
        if len(numbers) < 2:
            continue
        base = key[: numbers[-1].start()] + "#" + key[numbers[-1].end() :]
        if base in bases:
            return (
                f"{bases[base]} and {key} look like pieces of one patient, but each is taken for a "
                "patient of its own, so that one may be trained on and the other tested on; if "
                "they are one, give source.patient, such as '(?P<patient>.+)_\\d+$'"
            )
        bases[base] = key
    return None
