"""The ``nifti`` layout: image files tied to label files by path, or by what patterns leave open."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pancseg.errors import PancsegError
from pancseg.intake.found import Candidate, Found, LabelReader, Reading, Stray
from pancseg.intake.labels.nrrd import read_nrrd_mask
from pancseg.intake.layouts.places import is_pattern, places_of
from pancseg.intake.nifti.reading import IS_NIFTI, read_nifti_ct, read_nifti_mask, stem_of
from pancseg.intake.walk import FORK, files_under, is_fork

IS_LABEL = re.compile(r"\.(nii|nii\.gz|nrrd)$", re.IGNORECASE)
FORMAT = re.compile(r"(?<=.)[/.]+(nii|nii\.gz|gz|seg\.nrrd|nrrd)$", re.IGNORECASE)
Files = dict[str, list[Path]]
"""Files by the key that ties them; more than one of a key is ambiguous."""


def find_nifti_pairs(
    images: Path, labels: Path | None, patient: str | None, reading: Reading
) -> Found:
    """NIfTI images, tied to NIfTI or NRRD labels of the same relative path and stem.

    Where both are patterns, what their wildcards stand for ties them and names the patient.

    Args:
        images: A folder, one file, or a pattern.
        labels: Likewise, or None.
        patient: Regular expression with a group named ``patient``, searched in what ties the
            files; all of that where it is None.
        reading: How to read.

    Raises:
        PancsegError: If the paths or the expression make no sense.
    """
    check_paths(images, labels)
    label_files, forks = keyed(labels, IS_LABEL) if labels else ({}, [])
    taken = {path for paths in label_files.values() for path in paths}
    image_files, more = keyed(images, IS_NIFTI, taken)
    if labels and labels.is_file() and images.is_file():
        label_files = {stem_of(images): [labels]}  # one file with one file, whatever their names
    found = pair_up(
        image_files,
        label_files if labels else None,
        patient=partial(patient_of, pattern=patient),
        read_label=partial(reader_of, reading=reading),
    )
    found.strays = list(dict.fromkeys([*found.strays, *forks, *more]))
    if patient is None and (pieces := pieces_of_one_patient([o.patient for o in found.candidates])):
        found.warnings.append(pieces)
    return found


def pair_up(
    images: Files,
    labels: Files | None,
    patient: Callable[[str], str],
    read_label: Callable[[Path], LabelReader],
) -> Found:
    """Tie images to labels of the same key; what is not one and one is refused.

    Args:
        images: NIfTI files.
        labels: Label files, or None where images stand alone.
        patient: Gives the patient of a key.
        read_label: Gives the reader of a label.
    """
    found = Found()
    for key in {**images, **(labels or {})}:
        scans, masks = images.get(key, []), (labels or {}).get(key, [])
        if problem := why_no_pair(key, scans, masks, wants_label=labels is not None):
            found.strays += [Stray(path, "image", "refused", problem) for path in scans]
            found.strays += [Stray(path, "label", "refused", problem) for path in masks]
            continue
        found.candidates.append(
            Candidate(
                path=scans[0],
                patient=patient(key),
                files=(*scans, *masks),
                read_image=partial(read_nifti_ct, scans[0]),
                read_label=read_label(masks[0]) if masks else None,
                label_path=masks[0] if masks else None,
                identity=str(scans[0]),
            )
        )
    return found


def why_no_pair(
    key: str, images: Sequence[Path], labels: Sequence[Path], *, wants_label: bool
) -> str:
    """Why images and labels of one key are no pair, or nothing.

    >>> why_no_pair("p7", [Path("p7.nii")], [], wants_label=True)
    'no_label: no label under the labels is named p7'
    """
    if not images:
        return f"no_image: no image under the images is named {key}"
    if len(images) > 1:
        return f"ambiguous_image: {told(images)} are all images named {key}; leave one"
    if wants_label and not labels:
        return f"no_label: no label under the labels is named {key}"
    if len(labels) > 1:
        return f"ambiguous_label: {told(labels)} are all labels named {key}; leave one"
    return ""


def told(paths: Sequence[Path]) -> str:
    """Paths in a message, by name where names differ."""
    names = [path.name for path in paths]
    return " and ".join(names if len(set(names)) == len(names) else map(str, paths))


def reader_of(label: Path, reading: Reading) -> LabelReader:
    """What reads a label file of this format."""
    read = read_nifti_mask if IS_NIFTI.search(label.name) else read_nrrd_mask
    return partial(read, label, reading)


def keyed(
    path: Path, ending: re.Pattern[str], without: set[Path] | None = None
) -> tuple[Files, list[Stray]]:
    """Files of a folder, file or pattern by what ties them, and those that are none.

    The key is the relative folder and stem; under a pattern, what its wildcards stand for.

    Args:
        path: Where to look.
        ending: What the names of files end with.
        without: Files to leave out.
    """
    seen, strays = set(without or ()), []
    keys: Files = {}
    for place in places_of(path):
        base = place.path.parent if place.path.is_file() else place.path
        files, forks = listed(place.path)
        strays += forks
        for file in files:
            if file in seen or not ending.search(file.name):
                continue
            seen.add(file)  # folders that a ** names lie in each other
            key = (file.parent.relative_to(base) / stem_of(file)).as_posix()
            if place.key and place.path.is_dir():
                key = f"{place.key}/{key}"
            elif place.key:
                key = FORMAT.sub("", place.key)  # what * stands for in ct.nii* names nobody
            keys.setdefault(key, []).append(file)
    return keys, strays


def listed(root: Path) -> tuple[list[Path], list[Stray]]:
    """Files at any depth of a folder, or the file itself, and the resource forks of macOS."""
    files = files_under(root)
    strays = [Stray(file, "other", "dropped", FORK) for file in files if is_fork(file)]
    return [file for file in files if not is_fork(file)], strays


def check_paths(images: Path, labels: Path | None) -> None:
    """Check that images and labels are two places of one kind.

    Raises:
        PancsegError: If a CT would be its own mask, or only one path is a pattern.
    """
    if labels is None:
        return
    if images.resolve() == labels.resolve():
        raise PancsegError(
            f"source.images={images}: is given for source.labels too; give the labels' own folder"
        )
    if is_pattern(images) != is_pattern(labels):
        plain = "labels" if is_pattern(images) else "images"
        raise PancsegError(
            f"source.{plain}={labels if plain == 'labels' else images}: is no pattern, but the "
            "other path is; give two patterns, such as DIR/*/ct.nii.gz and DIR/*/pancreas.nii.gz, "
            "or two folders"
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
