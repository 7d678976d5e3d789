"""The source ``nifti``: NIfTI and NRRD images with labels of the same path."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from pancseg.errors import PancsegError
from pancseg.intake.dicom_source import add_cases
from pancseg.intake.match_labels import Match, match_labels
from pancseg.intake.paths import LocatedSeries, is_pattern, locate_files
from pancseg.intake.source import ReadOptions, SkippedFile, SourceContents

CHANNEL = re.compile(r"(.+)_(\d{4})")  # of nnU-Net's image files
OTHER_CHANNEL = "other_channel: only channel 0000 is read"


def find_nifti_pairs(
    images: Path, labels: Path | None, patient: str | None, options: ReadOptions
) -> SourceContents:
    """Images with labels of the same key, which also names the patient.

    The key is the relative path and stem, or the text that the wildcards of a pattern match. A
    regular expression with a group named ``patient`` finds the patient in it. Labels may be None.

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
    for n, image in enumerate(kept):
        if count[image.key] > 1:
            problem = f"ambiguous_image: {count[image.key]} images are named {image.key}; keep one"
            kept[n] = replace(image, problem=problem)
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
