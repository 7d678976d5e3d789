"""The source ``nifti``: NIfTI and NRRD images with labels of the same path."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pancseg.errors import PancsegError
from pancseg.intake.dicom_source import add_cases
from pancseg.intake.match_labels import LocatedSeries, Match, locate_file, match_labels
from pancseg.intake.paths import is_pattern, search
from pancseg.intake.source import ReadOptions, SkippedFile, SourceContents
from pancseg.intake.volume_files import is_volume_file, stem_of, unread_format

SUFFIX = re.compile(r"(?<=.)[/.]+(nii|nii\.gz|gz|seg\.nrrd|nrrd)$", re.IGNORECASE)
CHANNEL = re.compile(r"(.+)_(\d{4})")  # of nnU-Net's image files
OTHER_CHANNEL = "other_channel: only channel 0000 is read"


def find_nifti_pairs(
    images: Path, labels: Path | None, patient: str | None, options: ReadOptions
) -> SourceContents:
    """Images with labels of the same key, which also names the patient.

    The key is the relative path and stem, or the text that the wildcards of a pattern match.

    Args:
        images: Folder, file or pattern.
        labels: Likewise, or None.
        patient: Regular expression with a group named ``patient``, searched in the key.
        options: How to read.

    Raises:
        PancsegError: If the paths do not fit together, or the expression finds no patient.
    """
    if labels and images.resolve() == labels.resolve():
        raise PancsegError(f"source.images={images}: is also source.labels; give their own folder")
    if labels and is_pattern(images) != is_pattern(labels):
        name, path = ("labels", labels) if is_pattern(images) else ("images", images)
        raise PancsegError(
            f"source.{name}={path}: is no pattern, but the other path is; give two patterns, such "
            "as DIR/*/ct.nii.gz and DIR/*/pancreas.nii.gz, or two folders"
        )
    contents = SourceContents()
    drawn = locate_files(labels, "label", contents) if labels else []
    label_files = {file for label in drawn for file in label.files}
    scans = locate_files(images, "image", contents)
    scans = [scan for scan in scans if label_files.isdisjoint(scan.files)]
    if labels and labels.is_file() and images.is_file():
        matches = [Match(label, scan) for label in drawn for scan in scans]
    else:
        scans, matches = match_files(scans, drawn, contents)
    add_cases(contents, scans, matches if labels else None, options)
    if patient is None:
        warn_of_parts(contents)
    else:
        contents.cases = [
            replace(case, patient=search_patient(case.patient, patient)) for case in contents.cases
        ]
    return contents


def locate_files(
    path: Path, kind: str, contents: SourceContents, stem: Callable[[Path], str] = stem_of
) -> list[LocatedSeries]:
    """Images or labels that a path or pattern names; rows of what is not read are added."""
    located = []
    searched, rows = search(path)
    contents.skipped = list(dict.fromkeys([*contents.skipped, *rows]))
    for pattern_key, folder, files, is_file in searched:
        for file in files:
            if reason := unread_format(file):
                contents.skipped.append(SkippedFile(file, kind, "refused", reason))
            elif is_volume_file(file) and not (kind == "image" and ".seg." in file.name.lower()):
                key = (file.parent.relative_to(folder) / stem(file)).as_posix()
                if pattern_key:  # in ct.nii* the text of * names nobody
                    key = SUFFIX.sub("", pattern_key) if is_file else f"{pattern_key}/{key}"
                located.append(locate_file(file, key))
    return located


def match_files(
    images: list[LocatedSeries], labels: list[LocatedSeries], contents: SourceContents
) -> tuple[list[LocatedSeries], list[Match]]:
    """Match labels with images of the same key, refuse several images of one key.

    ``p7_0000`` is the first channel of the image of a label ``p7``, unless a label has exactly its
    name; rows of its other channels are added.
    """
    label_keys, image_keys = ({each.key for each in located} for located in (labels, images))
    kept = []
    for image in images:
        match = CHANNEL.fullmatch(image.key)
        if match and image.key not in label_keys and match[1] in label_keys - image_keys:
            if match[2] != "0000":
                contents.skipped.append(SkippedFile(image.path, "other", "dropped", OTHER_CHANNEL))
                continue
            image = replace(image, key=match[1])
        kept.append(image)
    count = Counter(image.key for image in kept)
    reason = "ambiguous_image: several images have this name but for the suffix; keep one"
    kept = [replace(image, problem=reason * (count[image.key] > 1)) for image in kept]
    return kept, match_labels(labels, kept)


def search_patient(key: str, pattern: str) -> str:
    r"""The patient of a key.

    >>> search_patient("a/liver_3_07", r"liver_(?P<patient>\d+)")
    '3'

    Raises:
        PancsegError: If the expression has no such group or does not match.
    """
    try:
        match = re.search(pattern, key)
        if match and match["patient"]:
            return match["patient"]
        problem = f"does not match {key}"
    except (re.error, IndexError) as error:
        problem = str(error)
    raise PancsegError(
        f"source.patient={pattern}: {problem}; expected a regular expression with a group named "
        "patient that matches every image, such as (?P<patient>[^_]+)"
    )


def warn_of_parts(contents: SourceContents) -> None:
    """Warn where names of patients differ in nothing but the last of two numbers or more."""
    first: dict[str, str] = {}
    for key in (case.patient for case in contents.cases):
        base = re.sub(r"\d+(?=\D*$)", "#", key) if re.search(r"\d\D+\d", key) else key
        if first.setdefault(base, key) != key:
            contents.warnings.append(
                f"{first[base]} and {key} look like parts of one patient, but count as two, so "
                "that one may be trained on and the other tested on; if they are one, give "
                "source.patient, such as '(?P<patient>.+)_\\d+$'"
            )
            return
