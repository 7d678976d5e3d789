"""Sources of scans and labels: ``dicom``, ``nifti``, ``nnunet``, ``msd``, ``ircadb``, ``nih``."""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

from pancseg.data.manifest import MANIFEST, TABLE, read_manifest
from pancseg.dicom.series import find_series
from pancseg.errors import PancsegError
from pancseg.files import read_json
from pancseg.intake.match_labels import Match, SourceContents, SourceItem, add_cases, match_labels
from pancseg.intake.volume_files import ReadOptions, is_volume_file, stem_of, without_suffix
from pancseg.structures import Structure, parse_structures

WILDCARD = re.compile(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])")
WILDCARD_GROUPS = {"**/": "(?:(.*)/)?", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
KEY_SUFFIX = re.compile(r"(?<=.)[/.]+(nii|nii\.gz|gz|seg\.nrrd|nrrd)$", re.IGNORECASE)
NOT_CT = "not_ct: Modality is not CT"
OUTSIDE = "outside_link: leads to a folder outside of the source; name it by a pattern, as DIR/*"
UNREAD_FORMATS = {".mha": "MetaImage", ".mhd": "MetaImage"}
UNREAD_FORMATS |= dict.fromkeys((".hdr", ".img", ".nhdr"), "header and voxels in two files")
CHANNEL = re.compile(r"(.+)_(\d{4})")  # of nnU-Net's image files
NIH_NUMBER = re.compile(r"(?:PANCREAS_|label)(\d+)", re.IGNORECASE)
Values = dict[str, tuple[int, ...]]  # of a label map, by the name of the label


def find_dicom(
    images: Path, labels: Path | None, modality: str, options: ReadOptions
) -> SourceContents:
    """CT series, and mask series, DICOM SEG, RTSTRUCT, NIfTI or NRRD as their labels."""
    contents = SourceContents()
    image_items, label_items = locate_both(images, labels, modality, options, contents)
    matches = match_labels(label_items, image_items) if labels else None
    if labels and labels.is_file() and len(label_items) == len(image_items) == 1:
        matches = [Match(label_items[0], image_items[0])]  # whatever the file is named
    add_cases(contents, image_items, matches, options)
    if len(contents.cases) > 2 and len({case.patient for case in contents.cases}) == 1:
        contents.warnings.append(
            f"all {len(contents.cases)} scans have the same PatientID and count as one patient; if "
            "they are several, name them by patterns: source.images=DIR/*/CT source.labels=DIR/*/M"
        )
    return contents


def locate_both(
    images: Path, labels: Path | None, modality: str, options: ReadOptions, contents: SourceContents
) -> tuple[list[SourceItem], list[SourceItem]]:
    """Series of a modality, or of ``any``; and files and series of labels. Rows are added."""
    is_shared = labels is not None and images.resolve() == labels.resolve()
    label_items = locate_files(labels, "", contents) if labels and not is_shared else []
    label_paths = {label.path for label in label_items}
    series = locate_series(images, options, contents, label_paths)
    if labels and not is_shared:
        label_items += locate_series(labels, options, contents, label_paths)
    elif labels:
        label_items = [item for item in series if item.format != "image"]
    # where one folder contains the other, its files belong to the inner one
    image_files = {file for item in series for file in item.files}
    label_files = {file for label in label_items for file in label.files}
    if len(image_files) < len(label_files):
        label_items = [label for label in label_items if image_files.isdisjoint(label.files)]
    else:
        series = [item for item in series if label_files.isdisjoint(item.files)]
    scans = [s for s in series if s.format == "image" and modality in ("any", s.modality)]
    scan_folders = {scan.folder for scan in scans}
    for item in series:
        row = ("image", "refused", f"{NOT_CT}, expected CT; source.modality=any takes it")
        if item.format != "image":
            row = ("label", "dropped", f"label_among_images: {item.format.upper()}")
        elif modality in ("any", item.modality):
            continue
        elif item.folder in scan_folders:  # alone in its folder, it is expected to be read
            row = ("other", "dropped", NOT_CT)
        contents.skip(item.path, *row, len(item.files))
    return scans, label_items


def find_nifti_pairs(
    images: Path, labels: Path | None, patient: str | None, options: ReadOptions
) -> SourceContents:
    """Images with labels of the same key: relative path and stem, or what a pattern's ``*`` match.

    The key is the patient, or what a regular expression with a group named ``patient`` finds in it.
    """
    if labels and images.resolve() == labels.resolve():
        raise PancsegError(f"source.images={images}: is also source.labels; give their own folder")
    contents = SourceContents()
    label_items = locate_files(labels, "label", contents) if labels else []
    label_paths = {label.path for label in label_items}
    image_items = locate_files(images, "image", contents)
    image_items = [image for image in image_items if image.path not in label_paths]
    if labels and labels.is_file() and images.is_file():
        matches = [Match(label, image) for label in label_items for image in image_items]
    else:
        image_items, matches = match_files(image_items, label_items, contents)
    add_cases(contents, image_items, matches if labels else None, options)
    if patient is None:
        warn_of_parts(contents)
    for n, case in enumerate(contents.cases if patient else ()):
        with suppress(re.error, IndexError):
            match = re.search(str(patient), case.patient)
            if match and match["patient"]:
                contents.cases[n] = replace(case, patient=match["patient"])
                continue
        raise PancsegError(
            f"source.patient={patient}: finds none in {case.patient}; expected a regular expression"
            " with a group named patient that matches every image, such as (?P<patient>[^_]+)"
        )
    return contents


def match_files(
    images: list[SourceItem], labels: list[SourceItem], contents: SourceContents
) -> tuple[list[SourceItem], list[Match]]:
    """Match labels with images of the same key; ``p7_0000`` is the first channel of ``p7``."""
    label_keys, image_keys = {label.key for label in labels}, {image.key for image in images}
    kept = []
    for image in images:
        match = CHANNEL.fullmatch(image.key)
        if match and image.key not in label_keys and match[1] in label_keys - image_keys:
            if match[2] != "0000":
                reason = "other_channel: only channel 0000 is read"
                contents.skip(image.path, "other", "dropped", reason)
                continue
            image = replace(image, key=match[1])
        kept.append(image)
    count = Counter(image.key for image in kept)
    for n, image in enumerate(kept):
        if count[image.key] > 1:
            problem = f"ambiguous_image: {count[image.key]} images have one name; keep one of them"
            kept[n] = replace(image, problem=problem)
    return kept, match_labels(labels, kept)


def warn_of_parts(contents: SourceContents) -> None:
    """Warn where names of patients differ in nothing but the last of two numbers or more."""
    first: dict[str, str] = {}
    for key in (case.patient for case in contents.cases if re.search(r"\d\D+\d", case.patient)):
        base = re.sub(r"\d+(?=\D*$)", "#", key)
        if first.setdefault(base, key) != key:
            contents.warnings.append(
                f"{first[base]} and {key} look like parts of one patient, but count as two, whom a "
                "split may separate; if they are one, give source.patient='(?P<patient>.+)_\\d+$'"
            )
            return


def find_ircadb(folder: Path, organ: str, options: ReadOptions) -> SourceContents:
    """3D-IRCADb: ``*/PATIENT_DICOM`` with masks of one organ, ``*/MASKS_DICOM/<organ>``."""
    # PatientIDs are empty, each mask series has another study, and there is no frame of reference
    if not any(folder.glob("*/PATIENT_DICOM")):
        raise PancsegError(
            f"source.folder={folder}: holds no */PATIENT_DICOM; give the folder of 3Dircadb1.1, "
            "3Dircadb1.2, ..., with PATIENT_DICOM.zip and MASKS_DICOM.zip unpacked in each"
        )
    organs = {path.name for path in folder.glob("*/MASKS_DICOM/*")}
    if organ not in organs:
        available = ", ".join(sorted(organs)) or "nothing"
        raise PancsegError(f"source.organ={organ}: nobody has a mask of it; there are {available}")
    masks = folder / "*" / "MASKS_DICOM" / organ
    return find_dicom(folder / "*" / "PATIENT_DICOM", masks, "CT", options)


def find_nih(images: Path, labels: Path | None, options: ReadOptions) -> SourceContents:
    """TCIA Pancreas-CT: ``PANCREAS_0001/<study>/<series>`` with ``label0001.nii.gz``, or alone."""
    contents, options = SourceContents(), replace(options, takes_scan_origin=True)
    image_items, label_items = locate_both(images, labels, "CT", options, contents)
    image_items = numbered(image_items, "image", contents)
    label_items = numbered(label_items, "label", contents)
    matches = match_labels(label_items, image_items) if labels else None
    add_cases(contents, image_items, matches, options)
    return contents


def numbered(items: list[SourceItem], kind: str, contents: SourceContents) -> list[SourceItem]:
    """Series and files with their number as key, which names the patient; others become rows."""
    kept = []
    for item in items:
        if numbers := NIH_NUMBER.findall(f"{item.path} {item.patient_id}"):
            key = f"PANCREAS_{int(numbers[-1]):04}"
            kept.append(replace(item, key=key, names_patient=True))
        else:
            reason = "no_number: expected a name such as PANCREAS_0001 or label0001.nii.gz"
            contents.skip(item.path, kind, "refused", reason, len(item.files))
    return kept


def find_nnunet(folder: Path, options: ReadOptions) -> SourceContents:
    """Raw data of nnU-Net or MSD, ``imagesTr/<id>[_0000].nii.gz`` with ``labelsTr/<id>.nii.gz``."""
    contents, file = SourceContents(), folder / "dataset.json"
    values, listed = read_description(file)
    options = replace(
        options,
        structures=with_values(options.structures, values),
        declared=tuple({value for group in values.values() for value in group}),
        ignore=values.get("ignore", (None,))[0],  # nnU-Net's name of voxels that nobody labelled
    )
    if listed is None:
        images = locate_files(folder / "imagesTr", "image", contents, without_suffix)
        labels = locate_files(folder / "labelsTr", "label", contents, without_suffix)
    else:
        images, labels = listed_files(listed, file, contents)
    add_cases(contents, *match_files(images, labels, contents), options)
    warn_of_parts(contents)
    return contents


def read_description(file: Path) -> tuple[Values, Any]:
    """Values of labels without the background, and ``dataset``, nnU-Net's list of files, or None.

    PancsegError unless the file describes CT.
    """
    if not file.is_file():
        below = sorted(path.parent.name for path in file.parent.glob("*/dataset.json"))
        advice = f"; give one of its folders: {', '.join(below[:8])}" if below else ""
        raise PancsegError(f"source.folder={file.parent}: holds no dataset.json{advice}")
    described: dict[str, Any] = read_json(file, "a description of a data set")
    channels = described.get("channel_names", described.get("modality"))
    channel = str(channels.get("0") if isinstance(channels, dict) else None)[:40]
    if channel.strip().casefold() != "ct":
        expected = 'expected "channel_names": {"0": "CT"}'
        raise PancsegError(f"{file}: channel 0 is {channel!r}, {expected}")
    ending = str(described.get("file_ending", ".nii.gz"))[:40]
    if not is_volume_file(Path(f"p7{ending}")):
        raise PancsegError(f"{file}: file_ending {ending!r} is not read; convert to .nii.gz")
    try:
        entries = described["labels"].items()
        if all(key.isdigit() for key, _ in entries):
            entries = [(str(name), int(key)) for key, name in entries]
        lists = {name: value if isinstance(value, list) else [value] for name, value in entries}
        values = {name: tuple(map(int, group)) for name, group in lists.items()}
    except (KeyError, AttributeError, TypeError, ValueError, OverflowError):
        expected = '{"background": 0, "pancreas": 1}'
        raise PancsegError(f'{file}: expected "labels": {expected}') from None
    return {n: group for n, group in values.items() if any(group)}, described.get("dataset")


def listed_files(
    listed: Any, file: Path, contents: SourceContents
) -> tuple[list[SourceItem], list[SourceItem]]:
    """Images and labels of ``{"p7": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}``.

    Paths are relative to the folder of ``file``, and must lie in it; channel 0 is read.
    """
    images: list[SourceItem] = []
    labels: list[SourceItem] = []
    folder = Path(os.path.normpath(file.parent))
    try:
        for key, entry in listed.items():
            names = entry["images"][0], entry["label"]
            paths = [Path(os.path.normpath(folder / name)) for name in names]
            if not all(path.is_relative_to(folder) for path in paths):
                raise PancsegError(f"{file}: lists files outside of its folder; copy them into it")
            located = map(locate_files, paths, ("image", "label"), repeat(contents))
            image, label = ([replace(i, key=key) for i in items] for items in located)
            images, labels = [*images, *image], [*labels, *label]
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        expected = '{"p7": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}'
        raise PancsegError(f'{file}: expected "dataset": {expected}') from None
    return images, labels


def with_values(structures: tuple[Structure, ...], values: Values) -> tuple[Structure, ...]:
    """Structures with the values of their labels in place of names."""
    known = {name.strip().casefold(): group for name, group in values.items()}
    available = ", ".join(f"{name} {list(group)}" for name, group in values.items()) or "no labels"
    node = {structure.name: structure.to_dict() for structure in structures}
    for structure in structures:
        numbers: list[int] = []
        for label in structure.labels or ():
            name = str(label).strip().casefold()
            if name not in known and not name.isdigit():
                raise PancsegError(f"label {label!r} is not in dataset.json, which has {available}")
            numbers += known.get(name) or [int(name)]
        node[structure.name]["labels"] = structure.labels and numbers
    changed = parse_structures(node)
    if [s.values for s in changed] != [s.values for s in structures]:
        raise PancsegError(f"structures: give all labels as values; dataset.json has {available}")
    return changed


def locate_series(
    path: Path, options: ReadOptions, contents: SourceContents, without: Collection[Path] = ()
) -> list[SourceItem]:
    """Series that a path or pattern names; rows of other files, except some, are added."""
    located = []
    for pattern_key, match, files in search(path, contents):
        root = match if match.is_dir() else match.parent
        rest = [file for file in files if file not in without]
        series, skipped = find_series(root, rest, options.processes)
        contents.skipped += skipped
        count = Counter(item.folder for item in series if item.format == "image")
        for item in series:
            folder, key = root / item.folder, pattern_key or item.folder.as_posix()
            has_folder = item.format == "image" and count[item.folder] == 1
            own = {"folder": folder, "path": folder if has_folder else item.files[0], "key": key}
            located.append(SourceItem(**vars(item) | own, names_patient=bool(pattern_key)))
    return located


def locate_files(
    path: Path, role: str, contents: SourceContents, stem: Callable[[Path], str] = stem_of
) -> list[SourceItem]:
    """NIfTI and NRRD files at a path or pattern; with a role, rows of other formats are added."""
    located = []
    for pattern_key, match, files in search(path, contents):
        for file in files:
            if role and (unread := UNREAD_FORMATS.get(file.suffix.lower())):
                reason = f"unread_format: {unread}; save it as NIfTI or NRRD"
                contents.skip(file, role, "refused", reason)
            elif is_volume_file(file) and not (role == "image" and ".seg." in file.name.lower()):
                if file == match:  # the text of * in ct.nii* names nobody
                    key = KEY_SUFFIX.sub("", pattern_key) or stem(file)
                else:
                    folder = Path(pattern_key) / file.parent.relative_to(match)
                    key = (folder / stem(file)).as_posix()
                own: dict[str, Any] = {"folder": file.parent, "path": file, "files": (file,)}
                located.append(SourceItem(**own, format="file", key=key, names_patient=True))
    return located


def search(path: Path, contents: SourceContents) -> list[tuple[str, Path, list[Path]]]:
    """Paths that a path or pattern names, each with its key and files; rows are added."""
    located, known = [], set[Path]()
    for key, match in expand_pattern(path):
        files = [file for file in files_under(match, contents) if file not in known]
        known.update(files)
        located.append((key, match, files))
    return located


def files_under(root: Path, contents: SourceContents) -> list[Path]:
    """Regular files below a folder, sorted, or the file itself; rows of what is not read are added.

    Links to files are read. Links to folders are not followed: the folder is searched by its own
    path, or lies outside and gets a row. Prepared folders are not searched.
    """

    def skip_folder(error: OSError) -> None:
        reason = f"unreadable: cannot be listed ({error.strerror})"
        contents.skip(Path(error.filename), "other", "refused", reason)

    files: list[Path] = []
    walk: Iterable[tuple[str, list[str], list[str]]] = ()
    if root.is_symlink() and contains(root, root.parent):
        contents.skip(root, "other", "refused", OUTSIDE)
    elif root.is_dir():
        walk = os.walk(root, onerror=skip_folder)
    elif root.exists():
        walk = [(str(root.parent), [], [root.name])]
    for name, folders, names in walk:
        folder = Path(name)
        if {MANIFEST, TABLE} <= set(names):
            with suppress(PancsegError, OSError):  # where others write files of these names
                read_manifest(folder)
                reason = "prepared_folder: pancseg wrote it; it is no source"
                contents.skip(folder, "other", "dropped", reason)
                folders.clear()
                names.clear()
        for path in map(folder.joinpath, folders):
            if path.is_symlink() and not contains(root, path):
                contents.skip(path, "other", "refused", OUTSIDE)
        for path in map(folder.joinpath, names):
            if path.name.startswith("._"):
                reason = "resource_fork: macOS keeps it beside a file"
                contents.skip(path, "other", "dropped", reason)
            elif os.path.isfile(path):  # noqa: PTH113, Path.is_file raises in a closed folder
                files.append(path)
            else:
                reason = "not_a_file: a broken link, pipe, socket or device"
                contents.skip(path, "other", "refused", reason)
    return sorted(files)


def contains(folder: Path, path: Path) -> bool:
    """Whether a path, with links resolved, lies in a folder or is that folder."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def is_pattern(path: Path) -> bool:
    """Whether a path has wildcards and no file or folder is named exactly so."""
    return bool(WILDCARD.search(str(path))) and not path.exists()


def expand_pattern(path: Path) -> list[tuple[str, Path]]:
    """Paths that a path or pattern names, each with the text that the wildcards match, sorted."""
    if not is_pattern(path):
        return [("", path)]
    fixed = next(n for n, part in enumerate(path.parts) if WILDCARD.search(part))
    root, pattern = Path(*path.parts[:fixed]), "/".join(path.parts[fixed:])
    parts = WILDCARD.split(pattern)  # in turn texts and wildcards
    parts[0::2] = [re.escape(text) for text in parts[0::2]]
    parts[1::2] = [WILDCARD_GROUPS.get(w) or f"({w.replace('[!', '[^')})" for w in parts[1::2]]
    expression = re.compile("".join(parts))
    return sorted(
        ("/".join(filter(None, match.groups())), path)
        for path in root.glob(pattern)
        if (match := expression.fullmatch(path.relative_to(root).as_posix()))
    )
