"""Layouts of input: which image and which label make a case, and what else lies there.

A layout is one function from paths to ``Found``, one file in ``conf/source``.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import nibabel as nib

from pancseg.errors import PancsegError
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
        is_phantom: Whether this is no patient, so that every table can say so.
    """

    path: Path
    patient: str
    files: tuple[Path, ...]
    read_image: Reader
    read_label: Reader | None = None
    label_path: Path | None = None
    is_phantom: bool = False


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
    several series on either side is refused: which belong together would be a guess. Where a
    folder holds CT, series of other kinds in it (dose reports, a DICOMDIR) are left out.
    """
    check_apart(images, labels)
    found = Found()
    image_series, foreign = find_series(images)
    label_series, foreign_labels = find_series(labels) if labels else ([], [])
    for path in foreign + foreign_labels:
        found.strays.append(Stray(path, "other", "dropped", "not_dicom: not a DICOM file"))
    masks = by_folder(label_series)
    for folder, members in by_folder(image_series).items():
        scans = [series for series in members if series.modality == "CT"] or members
        for series in members:
            if series not in scans:
                reason = f"not_ct: modality is {series.modality or 'empty'}"
                found.strays.append(
                    stray_series(series, members, images, "other", "dropped", reason)
                )
        partners = masks.get(folder, [])
        problem = why_not_tied(scans, partners) if labels else None
        if problem is None:
            masks.pop(folder, None)
        for series in scans:
            if problem:
                row = stray_series(series, members, images, "image", "refused", problem)
                found.strays.append(row)
            else:
                mask = (partners[0], labels) if labels else None
                place = place_of(series, members, images)
                found.candidates.append(dicom_candidate(series, images, place, mask))
    for left in masks.values():
        for series in left:
            reason = "no_image: no one image series in the same folder of the images"
            row = stray_series(series, left, labels or images, "label", "refused", reason)
            found.strays.append(row)
    if warning := one_for_all(found.candidates):
        found.warnings.append(warning)
    return found


def dicom_candidate(
    series: Series, images: Path, place: Path, mask: tuple[Series, Path] | None
) -> Candidate:
    """A CT series and, where there is one, its mask series with the folder of labels."""
    folder = series.folder.as_posix()
    masks, labels = mask or (None, None)
    return Candidate(
        path=place,
        patient=series.patient_id or (images.resolve().name if folder == "." else folder),
        files=series.files + (masks.files if masks else ()),
        read_image=partial(read_ct, series),
        read_label=partial(read_mask, masks) if masks else None,
        label_path=labels / series.folder if labels else None,
        is_phantom=series.is_phantom,
    )


def stray_series(
    series: Series, neighbours: list[Series], root: Path, kind: str, status: str, reason: str
) -> Stray:
    """The row of a series that makes no case."""
    return Stray(place_of(series, neighbours, root), kind, status, reason, len(series.files))


def place_of(series: Series, neighbours: list[Series], root: Path) -> Path:
    """What names a series in the table: its folder, or its first file where it shares that."""
    return root / series.folder if len(neighbours) == 1 else series.files[0]


def why_not_tied(scans: list[Series], masks: list[Series]) -> str | None:
    """Why the series of a folder make no pair, or None if they do."""
    if not masks:
        return "no_label: no mask series in the same folder of the labels"
    if len(scans) > 1 or len(masks) > 1:
        return (
            f"ambiguous_label: {len(scans)} image series and {len(masks)} mask series share one "
            "folder, expected one of each"
        )
    if scans[0].patient_id and masks[0].patient_id and scans[0].patient_id != masks[0].patient_id:
        return "other_patient: image and mask carry different PatientIDs"
    return None


def one_for_all(candidates: list[Candidate]) -> str | None:
    """A warning where many folders carry one PatientID, as some anonymisers leave them."""
    folders, patients = {one.path for one in candidates}, {one.patient for one in candidates}
    if len(folders) < 3 or len(patients) > 1:
        return None
    return (
        f"all {len(folders)} scans carry one PatientID and count as one patient, so that no split "
        "can hold any of them out; if they are several, give each a PatientID of its own"
    )


def find_nifti_pairs(images: Path, labels: Path | None, patient: str | None = None) -> Found:
    """NIfTI images, tied to labels of the same relative path and stem.

    Args:
        images: A folder, or one file.
        labels: A folder, or one file, or None.
        patient: Regular expression with a group named ``patient``, searched in the relative path
            without its ending; all of that path where it is None.
    """
    check_apart(images, labels)
    found = Found()
    image_files = keyed(images, "images")
    label_files = keyed(labels, "labels") if labels else {}
    if labels and labels.is_file() and images.is_file():
        label_files = {stem_of(images): labels}  # one file with one file, whatever their names
    identities = []
    for key, path in image_files.items():
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
    for key, path in label_files.items():  # those that are left
        reason = f"no_image: no image file named {key} under the images"
        found.strays.append(Stray(path, "label", "refused", reason))
    if patient is None and (pieces := pieces_of_one_patient(identities)):
        found.warnings.append(pieces)
    return found


def check_apart(images: Path, labels: Path | None) -> None:
    """Check that images and labels are two places.

    Raises:
        PancsegError: If a CT would be its own mask.
    """
    if labels and images.resolve() == labels.resolve():
        raise PancsegError(
            f"source.images={images}: is given for source.labels too; give the labels' own folder"
        )


def by_folder(series: Iterable[Series]) -> dict[Path, list[Series]]:
    """Series by the folder they lie in."""
    folders: dict[Path, list[Series]] = {}
    for one in series:
        folders.setdefault(one.folder, []).append(one)
    return folders


def keyed(root: Path, what: str) -> dict[str, Path]:
    """NIfTI files by what names them: relative folder and stem.

    Raises:
        PancsegError: If two files have one name.
    """
    base = root.parent if root.is_file() else root
    files: dict[str, Path] = {}
    for path in find_nifti(root):
        key = (path.parent.relative_to(base) / stem_of(path)).as_posix()
        if key in files:
            raise PancsegError(
                f"{root}: {files[key].name} and {path.name} are {what} of one name once their "
                "ending is taken off; rename one, or put labels in a folder of their own"
            )
        files[key] = path
    return files


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
