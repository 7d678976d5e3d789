"""Series of DICOM images, read as one volume in space."""

import hashlib
from pathlib import Path

from pydicom import Dataset

from pancseg.errors import Refused
from pancseg.intake.dicom.pixels import Volume, frames_of, open_dicom, parsing
from pancseg.intake.dicom.planes import Plane, planes_of
from pancseg.intake.dicom.stack import Repair, Stack, stack
from pancseg.intake.found import Mask, Reading, Scan
from pancseg.intake.labels.foreground import chosen_values

AIR_HU = -1024


def read_ct(files: tuple[Path, ...], reading: Reading) -> Scan:
    """Read a series as HU.

    Raises:
        Refused: If its slices do not form one regular stack.
    """
    lying, volume = read_stack(files, reading.repair)
    return Scan(lying.to_image(volume.values, linear=True, fill=AIR_HU), lying)


def read_mask_series(files: tuple[Path, ...], reading: Reading, scan: Scan) -> Mask:
    """Read a series of mask slices.

    Raises:
        Refused: If it is not a regular stack, or has no background, as where a mask was saved
            with the intercept of its CT.
    """
    lying, volume = read_stack(files, reading.repair)
    mask, undeclared = chosen_values(volume.values, reading.choice)
    return Mask(lying.to_image(mask, linear=False, fill=0), undeclared)


def read_stack(files: tuple[Path, ...], repair: Repair) -> tuple[Stack, Volume]:
    """Read slices and order them by position along their normal.

    Each file is opened once: first all headers, to refuse before anything is decoded.

    Raises:
        Refused: If the slices do not form one stack.
    """
    opened = {file: open_dicom(file) for file in files}
    planes: list[Plane] = []
    for file, one in opened.items():
        with parsing(file):
            planes += planes_of(one, file)
    try:
        lying = stack(planes, repair)
    except Refused as refused:
        if refused.code == "same_position":
            raise told_apart(planes, opened, refused) from refused
        raise
    volume = Volume(lying.shape)
    inside: dict[Path, list[tuple[int, Plane]]] = {file: [] for file in files}
    for k, plane in enumerate(lying.planes):
        inside[plane.file].append((k, plane))
    for file, numbered in inside.items():
        one = opened.pop(file)  # one copy of a scan in memory is enough
        stored = frames_of(one, [plane for _, plane in numbered])
        for (k, plane), values in zip(numbered, stored, strict=True):
            volume.put(k, values, plane.slope, plane.intercept)
    return lying, volume


def told_apart(planes: list[Plane], opened: dict[Path, Dataset], refused: Refused) -> Refused:
    """Whether slices that share a position are copies of one, or contradict each other."""
    if len(planes) > len(opened):
        return refused  # frames of one file: nobody copied a file
    contents: dict[tuple[float, ...], set[bytes]] = {}
    for plane in planes:
        place = tuple(round(value, 2) for value in plane.position_mm)
        pixels = hashlib.sha256(opened[plane.file].PixelData).digest()
        contents.setdefault(place, set()).add(pixels)
    copies = len(planes) - len(contents)
    if copies == 0 or max(map(len, contents.values())) > 1:
        return refused
    return Refused(
        "duplicate_slice",
        f"{copies} slices are copies of another one at the same position; remove the copies",
    )
