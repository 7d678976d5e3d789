"""NRRD masks, and 3D Slicer's ``.seg.nrrd`` with named segments in layers."""

import bz2
import gzip
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import nrrd
import numpy as np
from numpy.typing import NDArray

from pancseg.errors import Refused
from pancseg.geometry import Affine, slices_from_feet
from pancseg.intake.checks.label_grid import uncropped
from pancseg.intake.dicom.pixels import LARGEST_BYTES, brief
from pancseg.intake.dicom.planes import FARTHEST_MM
from pancseg.intake.found import Choice, Mask, Reading, Scan
from pancseg.intake.labels.foreground import chosen_structures, chosen_values
from pancseg.intake.nifti.content import check_affine

RAS_FROM = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
OPENERS: dict[str, Any] = {"gzip": gzip.open, "gz": gzip.open, "bzip2": bz2.open, "bz2": bz2.open}
LONGEST_HEADER = 2**22  # bytes
CHUNK = 2**24  # bytes
Header = Mapping[str, Any]


@dataclass(frozen=True)
class Segment:
    """One structure of a ``.seg.nrrd``: the voxels of one layer that have its value."""

    name: str
    value: int
    layer: int


def read_nrrd_mask(file: Path, reading: Reading, scan: Scan) -> Mask:
    """Read a mask: a value, or named segments where the file has names.

    Args:
        file: ``.nrrd`` or ``.seg.nrrd``.
        reading: Which values or segments.
        scan: The image: a mask that was cropped to its structure is put on its whole grid.

    Raises:
        Refused: If the file is damaged, has no place in space or the choice is unclear.
    """
    try:
        layers, affine, segments = load(file)
    except Refused:
        raise
    except Exception as error:  # pynrrd checks little: damage raises nearly anything
        raise Refused("unreadable", f"{file.name}: {brief(error)}") from error
    undeclared: tuple[str, ...] = ()
    if segments:
        mask = organ_of(layers, segments, reading.choice)
    elif len(layers) == 1:
        mask, undeclared = chosen_values(layers[0], reading.choice)
    else:
        raise Refused(
            "not_a_volume", f"{file.name} has {len(layers)} layers without names, expected one"
        )
    label = slices_from_feet(nib.Nifti1Image(mask, affine))
    return Mask(uncropped(label, scan.image), undeclared)


def load(file: Path) -> tuple[NDArray[Any], Affine, list[Segment]]:
    """Values ``(layers, x, y, z)``, affine and named segments.

    Raises:
        Refused: If the header asks for what no mask needs, or the data are not what it says.
    """
    with file.open("rb") as stream:
        header = header_of(stream, file)
        affine, layer_axis = place_of(header, file)
        sizes = [int(size) for size in header["sizes"]]
        dtype = type_of(header, file)
        expected = math.prod(sizes) * dtype.itemsize
        if min(sizes) < 1 or expected > LARGEST_BYTES:
            raise Refused(
                "too_large", f"{file.name} claims {sizes} voxels, {expected / 1e9:.1f} GB"
            )
        content = unpacked(stream, str(header.get("encoding")).lower(), expected, file)
    values = np.frombuffer(content, dtype).reshape(sizes, order="F")
    if dtype.kind == "f" and not np.isfinite(values).all():
        raise Refused("not_finite", f"{file.name} holds NaN or infinite values")
    layers = values[np.newaxis] if layer_axis is None else np.moveaxis(values, layer_axis, 0)
    segments = segments_of(header, len(layers))
    if any(one.value == 0 or not 0 <= one.layer < len(layers) for one in segments):
        raise Refused(
            "bad_segments",
            f"{file.name} has {len(layers)} layers and a segment of value 0 or of none of them",
        )
    return layers, affine, segments


def header_of(stream: BinaryIO, file: Path) -> Header:
    """Parse the header and leave the stream where the data begin.

    Decoded here, as pynrrd drops letters that are not ASCII, which names have.

    Raises:
        Refused: If it has no end, or the data are elsewhere.
    """
    lines: list[str] = []
    while (line := stream.readline(LONGEST_HEADER)).strip():
        lines.append(line.decode("utf-8", "replace"))
        if stream.tell() > LONGEST_HEADER:
            raise Refused("unreadable", f"{file.name} has a header without an end")
    header: Header = nrrd.read_header(lines)
    elsewhere = [key for key in ("data file", "datafile") if key in header]
    if elsewhere:  # it could name any file of this machine
        raise Refused(
            "detached_data",
            f"{file.name} keeps its voxels in another file; save it as one file, such as "
            f"{file.stem}.nrrd",
        )
    if any(header.get(key) for key in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise Refused("unreadable", f"{file.name} skips bytes before its voxels, expected none")
    return header


def place_of(header: Header, file: Path) -> tuple[Affine, int | None]:
    """Affine, RAS, and which axis holds layers instead of a direction in space, if any.

    Raises:
        Refused: If the file has no place in space.
    """
    space, axes = str(header.get("space")).lower(), len(header["sizes"])
    rows = np.array(header.get("space directions", np.empty((0, 3))), dtype=float)
    corner = np.array(header.get("space origin", ()), dtype=float)
    spatial = np.isfinite(rows).all(axis=1)
    in_mm = set(header.get("space units", ())) <= {"mm", ""}
    placed = space in RAS_FROM and rows[spatial].shape == (3, 3) and corner.shape == (3,)
    if not placed or not in_mm or axes > 4 or len(rows) != axes:
        raise Refused(
            "no_affine",
            f"{file.name} has space {space!r}, {axes} axes, directions for {spatial.sum()} and an "
            f"origin of {len(corner)} numbers, expected three axes with directions in mm in one of "
            f"{', '.join(name for name in RAS_FROM if '-' in name)}",
        )
    affine = np.eye(4)
    affine[:3] = np.column_stack([rows[spatial].T, corner]) * np.array([RAS_FROM[space]]).T
    if not (np.abs(affine) < FARTHEST_MM).all():
        raise Refused("bad_affine", f"{file.name} has an affine with infinite or huge numbers")
    check_affine(affine, file.name)
    return affine, None if spatial.all() else int(np.flatnonzero(~spatial)[0])


def type_of(header: Header, file: Path) -> np.dtype[Any]:
    """The type of the voxels; pynrrd tells it only of an array, so of an empty one.

    Raises:
        Refused: If they are no numbers.
    """
    none = {**header, "sizes": np.zeros_like(header["sizes"]), "encoding": "raw"}
    dtype = nrrd.read_data(none, BytesIO()).dtype
    if dtype.kind not in "iuf":
        raise Refused("unreadable", f"{file.name} has voxels of type {header['type']}")
    return np.dtype(dtype)


def unpacked(stream: BinaryIO, encoding: str, expected: int, file: Path) -> bytearray:
    """Decompress what the header claims and no more: a small file may unpack to any size.

    Raises:
        Refused: If there is less or more, or the encoding is none that tools write by default.
    """
    if encoding != "raw" and encoding not in OPENERS:
        raise Refused(
            "unreadable", f"{file.name} has encoding {encoding!r}; save it as gzip or raw"
        )
    content = bytearray()
    source: Any = stream if encoding == "raw" else OPENERS[encoding](stream, "rb")
    while len(content) <= expected and (chunk := source.read(CHUNK)):
        content += chunk
    if len(content) != expected:
        raise Refused(
            "truncated",
            f"{file.name} holds {'more' if len(content) > expected else len(content)} bytes, its "
            f"header claims {expected}",
        )
    return content


def segments_of(header: Header, layers: int) -> list[Segment]:
    """Named segments; a file of before 3D Slicer 4.11 has one in each layer, as 1.

    >>> segments_of({"Segment0_Name": "Organ", "Segment0_LabelValue": "2"}, layers=1)
    [Segment(name='Organ', value=2, layer=0)]
    """
    found = [re.fullmatch(r"Segment(\d+)_Name", key) for key in header]
    return [
        Segment(
            str(header[f"Segment{n}_Name"]),
            int(header.get(f"Segment{n}_LabelValue", 1)),
            int(header.get(f"Segment{n}_Layer", n if layers > 1 else 0)),
        )
        for n in (match[1] for match in found if match)
    ]


def organ_of(layers: NDArray[Any], segments: list[Segment], choice: Choice) -> NDArray[np.uint8]:
    """Choose segments by name, or by value where no two layers use the same.

    Raises:
        Refused: If the choice is unclear.
    """
    values = [segment.value for segment in segments]
    numbers = values if len(set(values)) == len(values) else range(1, len(values) + 1)
    if numbers is not values and any(str(word).strip().isdigit() for word in choice or ()):
        raise Refused(
            "ambiguous_segment",
            f"layers share values ({', '.join(f'{one.name} {one.value}' for one in segments)}); "
            "choose by labels=[NAME]",
        )
    named = dict(zip(numbers, segments, strict=True))
    chosen, _ = chosen_structures({n: (one.name,) for n, one in named.items()}, choice, "segment")
    mask = np.zeros(layers.shape[1:], np.uint8, order="F")
    for n in chosen:
        mask |= layers[named[n].layer] == named[n].value
    return mask
