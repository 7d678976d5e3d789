"""The sources ``nnunet`` and ``msd``: imagesTr, labelsTr, and a dataset.json with label names."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from pancseg.errors import PancsegError
from pancseg.files import read_json
from pancseg.intake.cases import add_cases
from pancseg.intake.locate import files_under, locate_files, volume_item
from pancseg.intake.sources import OTHER_CHANNEL, match_files, warn_of_parts
from pancseg.intake.types import ReadOptions, SourceContents, SourceItem
from pancseg.intake.volume_files import is_volume_file, without_suffix
from pancseg.structures import Structure, parse_structures

TEST_FOLDERS = {"imagesTs": "image", "labelsTs": "label"}
IGNORE = "ignore"  # nnU-Net's name of voxels that nobody labelled
Values = dict[str, tuple[int, ...]]  # of a label map, by the name of the label


def find_nnunet(folder: Path, options: ReadOptions) -> SourceContents:
    """Raw data of nnU-Net, ``imagesTr/<id>_0000.nii.gz`` with ``labelsTr/<id>.nii.gz``.

    Names without channel, as in the Medical Segmentation Decathlon, are read too. Labels of
    structures may be names in dataset.json. PancsegError if there is no usable dataset.json, or
    channel 0 is no CT.
    """
    file, contents = folder / "dataset.json", SourceContents()
    described = read_description(file)
    values = label_values(described, file)
    options = replace(
        options,
        structures=with_values(options.structures, values),
        declared=tuple({value for group in values.values() for value in group}),
        ignore=values.get(IGNORE, (None,))[0],
    )
    if "dataset" in described:
        images, labels = listed_files(described["dataset"], file, contents)
    else:
        images = locate_files(folder / "imagesTr", "image", contents, without_suffix)
        labels = locate_files(folder / "labelsTr", "label", contents, without_suffix)
    add_cases(contents, *match_files(images, labels, contents), options)
    for name, kind in TEST_FOLDERS.items():
        reason = f"test_{kind}: lies in {name}, which is not for training"
        for test in locate_files(folder / name, kind, contents):
            contents.skip(test.path, kind, "dropped", reason)
    warn_of_parts(contents)
    return contents


find_msd = find_nnunet


def read_description(file: Path) -> dict[str, Any]:
    """Read dataset.json; PancsegError unless it describes CT in a format that is read."""
    if not file.is_file():
        below = sorted(path.parent.name for path in file.parent.glob("*/dataset.json"))
        advice = f"give one of its folders: {', '.join(below[:8])}" if below else "expected there"
        raise PancsegError(f"source.folder={file.parent}: holds no dataset.json; {advice}")
    described: dict[str, Any] = read_json(file, "a description of a data set")
    channels = described.get("channel_names", described.get("modality"))
    channel = str(channels.get("0") if isinstance(channels, dict) else None)
    if channel.strip().casefold() != "ct":
        expected = 'expected "channel_names": {"0": "CT"}'
        raise PancsegError(f"{file}: channel 0 is {channel[:40]!r}, {expected}")
    ending = str(described.get("file_ending", ".nii.gz"))[:40]
    if not is_volume_file(Path(f"p7{ending}")):
        raise PancsegError(f"{file}: file_ending {ending!r} is not read; convert to .nii.gz")
    return described


def label_values(described: dict[str, Any], file: Path) -> Values:
    """Values of labels without the background; PancsegError if there are none.

    New files hold ``{"pancreas": 1, "whole": [1, 2]}``, old ones ``{"1": "pancreas"}``.

    >>> label_values({"labels": {"0": "background", "1": "pancreas"}}, Path())
    {'pancreas': (1,)}
    """
    try:
        entries = described["labels"].items()
        if all(key.isdigit() for key, _ in entries):
            entries = [(str(name), int(key)) for key, name in entries]
        lists = {name: value if isinstance(value, list) else [value] for name, value in entries}
        values = {name: tuple(map(int, group)) for name, group in lists.items()}
    except (KeyError, AttributeError, TypeError, ValueError, OverflowError):
        expected = '{"background": 0, "pancreas": 1}'
        raise PancsegError(f'{file}: expected "labels": {expected}') from None
    return {name: group for name, group in values.items() if any(group)}


def with_values(structures: tuple[Structure, ...], values: Values) -> tuple[Structure, ...]:
    """Structures with the values of their labels in place of names.

    PancsegError if a name is unknown, or by value a structure is part of another, by name not.
    """
    known = {name.strip().casefold(): group for name, group in values.items()}
    available = ", ".join(f"{name} {list(group)}" for name, group in values.items()) or "no labels"
    changed = []
    for structure in structures:
        numbers: list[int] = []
        for label in structure.labels or ():
            name = str(label).strip().casefold()
            if name not in known and not name.isdigit():
                raise PancsegError(f"label {label!r} is not in dataset.json, which has {available}")
            numbers += known.get(name) or [int(name)]
        changed.append(replace(structure, labels=structure.labels and tuple(numbers)))
    node = {structure.name: structure.to_dict() for structure in changed}
    if [s.values for s in parse_structures(node)] != [s.values for s in structures]:
        raise PancsegError(f"structures: give all labels as values; dataset.json has {available}")
    return tuple(changed)


def listed_files(
    listed: Any, file: Path, contents: SourceContents
) -> tuple[list[SourceItem], list[SourceItem]]:
    """Images and labels of ``{"p7": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}``.

    Paths are relative to the folder of the file, and lie in it. Rows of other channels are added.
    """
    images: list[SourceItem] = []
    labels: list[SourceItem] = []
    folder = Path(os.path.normpath(file.parent))
    try:
        for key, entry in listed.items():
            names = [*entry["images"], entry["label"]]
            image, *others, label = [Path(os.path.normpath(folder / name)) for name in names]
            if not all(path.is_relative_to(folder) for path in (image, label)):
                raise PancsegError(f"{file}: lists files outside of its folder; copy them into it")
            for path in others:
                contents.skip(path, "other", "dropped", OTHER_CHANNEL)
            images += [volume_item(path, key) for path in files_under(image, contents)]
            labels += [volume_item(path, key) for path in files_under(label, contents)]
    except (AttributeError, KeyError, TypeError, ValueError):
        expected = '{"p7": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}'
        raise PancsegError(f'{file}: expected "dataset": {expected}') from None
    return images, labels
