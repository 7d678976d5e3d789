"""Layouts ``nnunet`` and ``msd``: imagesTr, labelsTr and a dataset.json that explains values."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pancseg.errors import PancsegError
from pancseg.intake.found import Choice, Found, LabelReader, Reading, Stray
from pancseg.intake.layouts.nifti import Files, listed, pair_up, pieces_of_one_patient
from pancseg.intake.nifti.reading import IS_NIFTI, read_nifti_mask, without_ending

CHANNEL = re.compile(r"(.+)_(\d{4})")
TEST_FOLDERS = {"imagesTs": "test_image", "labelsTs": "test_label"}
IGNORE = "ignore"  # nnU-Net's name for voxels that nobody drew

Values = dict[str, tuple[int, ...]]
"""Values of a label by the name they go by."""


def find_nnunet(folder: Path, reading: Reading) -> Found:
    """Raw data of nnU-Net: ``imagesTr/<id>_0000.nii.gz`` with ``labelsTr/<id>.nii.gz``.

    Args:
        folder: Holds dataset.json.
        reading: How to read; labels may be chosen by their names in dataset.json.

    Raises:
        PancsegError: If there is no usable dataset.json, or channel 0 is no CT.
    """
    described = description(folder)
    files, strays = nifti_in(folder / "imagesTr")
    images: Files = {}
    for file in files:
        match = CHANNEL.fullmatch(without_ending(file))
        if match is None:
            reason = "no_channel: its name ends with no channel, expected such as p7_0000.nii.gz"
            strays.append(Stray(file, "image", "refused", reason))
        elif int(match[2]):
            reason = f"other_channel: only channel 0000 is read, this is {match[2]}"
            strays.append(Stray(file, "other", "dropped", reason))
        else:
            images.setdefault(match[1], []).append(file)
    return tied(folder, images, strays, described, reading)


def find_msd(folder: Path, reading: Reading) -> Found:
    """A task of the Medical Segmentation Decathlon: ``imagesTr/<id>.nii.gz`` with ``labelsTr``.

    Args:
        folder: Such as ``Task07_Pancreas``.
        reading: How to read; labels may be chosen by their names in dataset.json.

    Raises:
        PancsegError: If there is no usable dataset.json, or the task holds no CT.
    """
    described = description(folder)
    files, strays = nifti_in(folder / "imagesTr")
    return tied(folder, by_id(files), strays, described, reading)


def tied(
    folder: Path, images: Files, strays: list[Stray], described: dict[str, Any], reading: Reading
) -> Found:
    """Images with the labels of the same id, read as dataset.json says."""
    values = values_of(described, folder)
    declared = tuple(sorted({value for group in values.values() for value in group}))
    reading = replace(reading, choice=chosen(reading.choice, values))

    def read_label(label: Path) -> LabelReader:
        return partial(read_nifti_mask, label, reading, declared=declared)

    labels, forks = nifti_in(folder / "labelsTr")
    found = pair_up(images, by_id(labels), patient=str, read_label=read_label)
    found.strays += [*strays, *forks, *left_for_testing(folder)]
    if pieces := pieces_of_one_patient([one.patient for one in found.candidates]):
        found.warnings.append(pieces)
    return found


def description(folder: Path) -> dict[str, Any]:
    """What dataset.json says, checked to be of CT in NIfTI.

    Raises:
        PancsegError: If it is not.
    """
    file = folder / "dataset.json"
    if not file.is_file():
        raise PancsegError(f"source.folder={folder}: {where_else(folder)}")
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        channels = described.get("channel_names", described.get("modality"))
        channel = str(channels["0"])
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise PancsegError(
            f'{file}: expected JSON with "channel_names": {{"0": "CT"}}; '
            f"{type(error).__name__}: {error}"
        ) from error
    if channel.strip().casefold() != "ct":
        raise PancsegError(f"{file}: channel 0 is {channel!r}, expected 'CT'")
    ending = str(described.get("file_ending", ".nii.gz"))
    if not IS_NIFTI.search(ending):
        raise PancsegError(f"{file}: file_ending is {ending!r}, expected '.nii.gz' or '.nii'")
    return described


def where_else(folder: Path) -> str:
    """Why a folder has no dataset.json, as far as can be seen."""
    inside = sorted(file.parent for file in folder.glob("*/dataset.json"))
    if len(inside) == 1:
        return f"is one folder too high; give source.folder={inside[0]}"
    if inside:
        names = ", ".join(path.name for path in inside[:4])
        return f"holds {len(inside)} data sets; give the folder of one of them: {names}"
    return "holds no dataset.json; expected dataset.json, imagesTr and labelsTr in it"


def values_of(described: dict[str, Any], folder: Path) -> Values:
    """Names and values of labels without the background.

    New files say ``{"pancreas": 1, "whole": [1, 2]}``, old ones ``{"1": "pancreas"}``.

    >>> values_of({"labels": {"0": "background", "1": "pancreas"}}, Path())
    {'pancreas': (1,)}

    Raises:
        PancsegError: If dataset.json says neither.
    """
    try:
        stated = described["labels"].items()
        if all(key.isdigit() for key, _ in stated):
            stated = [(str(name), int(key)) for key, name in stated]
        listed_values = {
            name: tuple(map(int, value if isinstance(value, list) else [value]))
            for name, value in stated
        }
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise PancsegError(
            f'{folder / "dataset.json"}: expected "labels": {{"background": 0, "pancreas": 1}}; '
            f"{type(error).__name__}: {error}"
        ) from error
    return {name: group for name, group in listed_values.items() if any(group)}


def chosen(choice: Choice, values: Values) -> Choice:
    """A choice with names turned into values.

    >>> chosen(("Pancreas", 7), {"pancreas": (1,), "whole": (1, 2)})
    (1, 7)

    Raises:
        PancsegError: If dataset.json has no such name.
    """
    if choice is None:
        left = {v for name, group in values.items() if name != IGNORE for v in group}
        return tuple(sorted(left)) if IGNORE in values else None
    by_name = {name.strip().casefold(): group for name, group in values.items()}
    numbers: list[int | str] = []
    for word in choice:
        name = str(word).strip().casefold()
        if name not in by_name and not name.isdigit():
            there = ", ".join(f"{name} {list(group)}" for name, group in values.items())
            raise PancsegError(f"labels names {word!r}, dataset.json has {there or 'no labels'}")
        numbers += by_name.get(name) or [int(name)]
    return tuple(numbers)


def left_for_testing(folder: Path) -> list[Stray]:
    """Rows of images and labels that such data sets keep apart."""
    strays = []
    for name, code in TEST_FOLDERS.items():
        files, forks = nifti_in(folder / name)
        reason = f"{code}: lies in {name}, which is not for training"
        kind = code.partition("_")[2]
        strays += [*(Stray(file, kind, "dropped", reason) for file in files), *forks]
    return strays


def nifti_in(folder: Path) -> tuple[list[Path], list[Stray]]:
    """NIfTI files of a folder, none where it is missing, and resource forks."""
    files, forks = listed(folder)
    return [file for file in files if IS_NIFTI.search(file.name)], forks


def by_id(files: list[Path]) -> Files:
    """Files by their names without ending."""
    keys: Files = {}
    for file in files:
        keys.setdefault(without_ending(file), []).append(file)
    return keys
