"""Read NIfTI and NRRD scans and label maps; what a header claims is checked before its voxels."""

import bz2
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import nrrd
import numpy as np
from isal import igzip
from numpy.typing import NDArray

from pancseg.dicom.pixels import DEFLATE_RATIO, FARTHEST_MM, LARGEST_BYTES, HUVolume
from pancseg.dicom.series import Repair, Scan
from pancseg.errors import Refused, parsing
from pancseg.geometry import Affine, oriented_like, same_grid, slices_from_feet, spacing_of
from pancseg.parallel import main_memory
from pancseg.structures import IGNORED, LabelMap, Structure, encode_values, match_names

IS_NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
SUFFIX = re.compile(r"\.(nii\.gz|nii|seg\.nrrd|nrrd)$", re.IGNORECASE)
ROLE = re.compile(r"[_\-.](image|img|ct|label|lbl|seg|mask)$", re.IGNORECASE)
NRRD_ENCODINGS: dict[str, tuple[Callable[[Any], Any], int]] = {  # largest ratio of packing
    "raw": (lambda stream: stream, 1),
    **dict.fromkeys(("gz", "gzip"), (igzip.open, DEFLATE_RATIO)),
    **dict.fromkeys(("bz2", "bzip2"), (bz2.open, 10**5)),
}
LARGEST_RESCALE = 1e6  # of slope and intercept
LARGEST_TAIL = 2**20  # bytes after the voxels; more is another file than its header describes


@dataclass(frozen=True)
class ReadOptions:
    """How the scans and labels of a source are read."""

    structures: tuple[Structure, ...]
    repair: Repair = field(default_factory=Repair)
    processes: int = 1  # that read headers
    declared: tuple[int, ...] = ()  # values of label files that are known, chosen or not
    ignore: int | None = None  # value of voxels in label files that nobody labelled
    takes_scan_origin: bool = False  # for label files that differ from their scan in nothing else


class Volume(NamedTuple):
    """Content of a file."""

    values: NDArray[Any]  # (x, y, z); where there are segments (layers, x, y, z)
    affine: Affine  # RAS, mm
    qform: Affine | None = None  # mm; where it differs from the sform
    rounding: float = 0.0  # of values: half the step of scaled integers
    segments: Sequence[tuple[str, int, int]] = ()  # of an NRRD: name, value and layer of each


def is_volume_file(path: Path) -> bool:
    """Whether a name is that of a NIfTI or NRRD file."""
    return bool(SUFFIX.search(path.name))


def without_suffix(path: Path) -> str:
    """The name without the suffix of its format: ``p7_ct`` of ``p7_ct.nii.gz``."""
    return SUFFIX.sub("", path.name)


def stem_of(path: Path) -> str:
    """The name without suffix and role: ``p7`` of ``p7_ct.nii.gz``."""
    return ROLE.sub("", without_suffix(path))


def read_scan_file(path: Path) -> Scan:
    """Read a CT; refused without position in space, or if it is not one volume of numbers."""
    volume = (read_nifti if IS_NIFTI.search(path.name) else read_nrrd)(path)
    if volume.segments:
        raise Refused("not_a_volume", f"{path.name} holds segments, expected a scan")
    image = slices_from_feet(nib.Nifti1Image(volume.values, volume.affine))
    flags = () if volume.qform is None else ("sform_qform",)
    return Scan(image, file_affine=volume.affine, qform=volume.qform, flags=flags)


def read_label_file(path: Path, options: ReadOptions, scan: Scan) -> LabelMap:
    """Read a label map by its values, or by the names of segments where an NRRD has them."""
    is_nifti = IS_NIFTI.search(path.name)
    volume = (read_nifti if is_nifti else read_nrrd)(path)
    codes, unknown_values = encode(volume, options)
    image = slices_from_feet(nib.Nifti1Image(codes, volume.affine))
    image = image if is_nifti else uncropped(image, scan.image)
    flags = ("ignore_label",) * bool((codes == IGNORED).any())
    if options.takes_scan_origin and (placed := with_origin_of(image, scan.image)) is not image:
        image, flags = placed, (*flags, "label_placed_by_axes")
    return LabelMap(image, unknown_values, flags)


def encode(volume: Volume, options: ReadOptions) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Structure codes ``(x, y, z)``, and unknown values.

    Segments are chosen by name, or by value where each value belongs to one segment.
    """
    values = volume.values
    codes: NDArray[np.uint8] = np.zeros(values.shape[-3:], np.uint8, order="F")
    if volume.segments:
        numbers = [value for _, value, _ in volume.segments]
        if len(set(numbers)) < len(numbers):
            numbers = [-1 - n for n in range(len(numbers))]  # no label is negative
        segments = dict(zip(numbers, volume.segments, strict=True))
        names = {number: (name,) for number, (name, _, _) in segments.items()}
        for code, own in enumerate(match_names(names, options.structures, "segment"), start=1):
            for _, value, layer in [segments[number] for number in own]:
                codes[values[layer] == value] = code
        return codes, ()
    slices = range(values.shape[2])  # indices of all voxels would take gigabytes
    distinct = np.unique(np.concatenate([np.unique(values[..., k]) for k in slices]))
    whole = np.rint(distinct)
    labels = np.where(np.abs(distinct - whole) <= volume.rounding, whole, distinct)
    is_ignored = whole == (np.nan if options.ignore is None else options.ignore)
    known = np.where(is_ignored, 0, labels)
    code_of, unknown_values = encode_values(known, options.structures, options.declared)
    code_of[is_ignored] = IGNORED
    for k in slices:
        codes[..., k] = code_of[np.searchsorted(distinct, values[..., k])]
    return codes, unknown_values


def read_nifti(file: Path) -> Volume:
    """Read NIfTI, compressed or not, whatever its name."""
    with parsing(file), file.open("rb") as opened:
        is_gzip = opened.read(2) == b"\x1f\x8b"
    with (igzip.open if is_gzip else open)(file, "rb") as stream:
        with parsing(file):
            head = stream.read(nib.Nifti2Header.sizeof_hdr)
            is_nifti2 = nib.Nifti2Header.may_contain_header(head)
            kind = nib.Nifti2Header if is_nifti2 else nib.Nifti1Header
            header = kind(head[: kind.sizeof_hdr], check=False)
            header.check_fix(logger=logging.Logger("nibabel", logging.CRITICAL + 1))
            dtype, shape = header.get_data_dtype(), [int(n) for n in header.get_data_shape()]
            slope, intercept = (value or 0.0 for value in header.get_slope_inter())
            offset = header.get_data_offset()
            stream.seek(offset)
        shape = shape[:3] + [n for n in shape[3:] if n != 1]
        if header["magic"].item() != kind.single_magic or offset < kind.single_vox_offset:
            raise Refused("unreadable", f"{file.name} is not a NIfTI file of header and voxels")
        if len(shape) != 3:
            raise Refused("not_a_volume", f"{file.name} has {len(shape)} axes, expected 3")
        if max(abs(slope), abs(intercept)) > LARGEST_RESCALE:
            raise Refused("bad_rescale", f"{file.name} has slope {slope} and intercept {intercept}")
        affine, qform = nifti_affines(header, tuple(shape), file)
        stored = read_voxels(stream, shape, dtype, file, DEFLATE_RATIO if is_gzip else 1)
    rounding = min(abs(slope), 0.5) / 2 if dtype.kind in "iu" else 0.0
    return Volume(to_real(stored, slope or 1.0, intercept, file), affine, qform, rounding)


def nifti_affines(header: Any, shape: Any, file: Path) -> tuple[Affine, Affine | None]:
    """Check and return the sform, else the qform, mm; and the qform where its grid differs."""
    has_sform, has_qform = header["sform_code"] > 0, header["qform_code"] > 0
    if not (has_sform or has_qform):
        raise Refused("no_affine", f"{file.name} has neither sform nor qform, expected one")
    mm_of_unit = {1: 1000.0, 3: 0.001}.get(int(header["xyzt_units"]) % 8, 1.0)  # m, um, else mm
    to_mm = np.diag([*[mm_of_unit] * 3, 1.0])
    with parsing(file):
        affine = to_mm @ header.get_best_affine()
    check_affine(affine, file)
    try:
        qform = to_mm @ header.get_qform() if has_sform and has_qform else affine
        check_affine(qform, file)
    except (ValueError, Refused):  # a qform that cannot be used
        return affine, None
    return affine, None if same_grid(shape, affine, shape, qform) else qform


def check_affine(affine: Affine, file: Path) -> None:
    """Refuse affines that are not invertible, or whose axes are not at right angles."""
    if not np.abs(affine).max() <= FARTHEST_MM or abs(np.linalg.det(affine)) < 1e-9:
        raise Refused("bad_affine", f"{file.name} has an affine that is not finite or invertible")
    axes = affine[:3, :3] / spacing_of(affine)
    if np.abs(axes.T @ axes - np.eye(3)).max() > 0.01:  # half a degree
        raise Refused("bad_affine", f"{file.name} has axes that are not at right angles")


def read_nrrd(file: Path) -> Volume:
    """Read NRRD, one volume or segments."""
    segments = []
    with parsing(file), file.open("rb") as stream:
        head, *rest = re.split(rb"(\n\r?\n)", stream.read(2**21), maxsplit=1)
        # decoded here: pynrrd drops letters that are not ASCII
        header = nrrd.read_header(head.decode("utf-8", "replace").split("\n"))
        if {"data file", "datafile"} & header.keys():  # could name any file of this machine
            raise Refused("detached_data", f"{file.name} has its voxels in another file")
        if any(header.get(key) for key in ("line skip", "lineskip", "byte skip", "byteskip")):
            raise Refused("unreadable", f"{file.name} skips bytes before its voxels")
        affine, is_spatial = nrrd_affine(header, file)
        empty = {**header, "sizes": 0 * header["sizes"], "encoding": "raw"}
        dtype = nrrd.read_data(empty, BytesIO()).dtype  # pynrrd has no function for the type alone
        opener, ratio = NRRD_ENCODINGS[header["encoding"].lower()]
        for n in re.findall(r"^Segment(\d+)_Name$", "\n".join(header), re.MULTILINE):
            value = header.get(f"Segment{n}_LabelValue", 1)
            # before 3D Slicer 4.11 each segment had a layer
            layer = header.get(f"Segment{n}_Layer", 0 if is_spatial.all() else n)
            segments.append((header[f"Segment{n}_Name"], int(value), int(layer)))
    with file.open("rb") as stream:
        stream.seek(len(head) + len(b"".join(rest[:1])))
        values = read_voxels(opener(stream), header["sizes"].tolist(), dtype, file, ratio)
    layers = values[np.newaxis] if is_spatial.all() else np.moveaxis(values, is_spatial.argmin(), 0)
    if any(value == 0 or not 0 <= layer < len(layers) for _, value, layer in segments):
        raise Refused("bad_segments", f"{file.name} has a segment of value 0 or without its layer")
    if len(layers) > 1 and not segments:
        raise Refused("not_a_volume", f"{file.name} has {len(layers)} layers without names")
    real = layers if segments else to_real(layers[0], 1.0, 0.0, file)
    return Volume(real, affine, segments=segments)


def nrrd_affine(header: Mapping[str, Any], file: Path) -> tuple[Affine, NDArray[np.bool_]]:
    """Check and return the affine, RAS, mm; and whether each array axis is an axis in space."""
    space = str(header.get("space")).lower()
    initials = "".join(word[:1] for word in space.split("-")) if "-" in space else space
    rows = np.array(header.get("space directions", np.empty((0, 3))), dtype=float)
    corner = np.array(header.get("space origin", ()), dtype=float)
    is_spatial = np.isfinite(rows).all(axis=1)
    is_placed = initials in ("ras", "las", "lps") and corner.shape == (3,)
    is_volume = rows[is_spatial].shape == (3, 3) and len(rows) == len(header["sizes"]) <= 4
    if not (is_placed and is_volume and set(header.get("space units", ())) <= {"mm", ""}):
        expected = "space RAS, LAS or LPS, space origin and 3 space directions in mm"
        raise Refused("no_affine", f"{file.name} has no position in space, expected {expected}")
    signs = [1 if axis in "ras" else -1 for axis in initials]
    affine = np.diag([*signs, 1.0]) @ nib.affines.from_matvec(rows[is_spatial].T, corner)
    check_affine(affine, file)
    return affine, is_spatial


def read_voxels(
    stream: Any, shape: Sequence[int], dtype: np.dtype[Any], file: Path, largest_ratio: int
) -> NDArray[Any]:
    """Read voxels, first axis fastest, and what follows: packed data end with a checksum.

    Refused if file or memory cannot hold what the header claims, or there is less or more.
    """
    if dtype.kind not in "iuf" or dtype.itemsize > 8 or min(shape) < 1:
        raise Refused("not_a_volume", f"{file.name} has an axis of no length, or no real numbers")
    size, file_size = math.prod(shape) * dtype.itemsize, file.stat().st_size
    if size > LARGEST_BYTES or size + 2 * math.prod(shape) > (main_memory() or math.inf):
        raise Refused("too_large", f"{file.name} claims {size / 1e9:.1f} GB, memory has less")
    if size > file_size * largest_ratio:
        raise Refused("truncated", f"{file.name} has {file_size} bytes, its header claims {size}")
    content, n_read = np.empty(size, np.uint8), 0  # writable, which torch expects
    with parsing(file):
        while chunk := stream.read(min(2**18, size - n_read)):
            content[n_read : n_read + len(chunk)] = np.frombuffer(chunk, np.uint8)
            n_read += len(chunk)
        tail = len(stream.read(LARGEST_TAIL))
    if n_read < size:
        raise Refused("truncated", f"{file.name} has {n_read} bytes of voxels, expected {size}")
    if tail == LARGEST_TAIL:
        raise Refused("unreadable", f"{file.name} goes on after {size} bytes of voxels")
    values = content.view(dtype).reshape(shape, order="F")
    return values.astype(dtype.newbyteorder("="), copy=False)


def to_real(stored: NDArray[Any], slope: float, intercept: float, file: Path) -> NDArray[Any]:
    """Real values, int16 where that is lossless, else float32; refused if some are not finite."""
    if stored.dtype == np.int16 and (slope, intercept) == (1, 0):
        return stored
    volume = HUVolume(stored.shape)
    with np.errstate(all="ignore"):  # overflow gives infinity
        for k in range(stored.shape[2]):  # float64 of all voxels would take gigabytes
            volume.put(k, stored[..., k].T, slope, intercept)
    if not np.isfinite([volume.values.min(), volume.values.max()]).all():
        raise Refused("not_finite", f"{file.name} holds NaN or infinite values")
    return volume.values


def uncropped(label: nib.Nifti1Image, image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Pad a label that 3D Slicer cropped to its structure to its image's grid; else unchanged."""
    turned = oriented_like(label, image)
    shape = turned.shape
    first = np.rint(np.linalg.solve(image.affine, turned.affine)[:3, 3]).astype(int)
    if shape == image.shape or (first < 0).any() or (first + shape > image.shape).any():
        return label
    box = tuple(slice(start, start + size) for start, size in zip(first, shape, strict=True))
    if not same_grid(shape, turned.affine, shape, image.slicer[box].affine):
        return label
    codes: NDArray[np.uint8] = np.zeros(image.shape, np.uint8)
    codes[box] = np.asanyarray(turned.dataobj)
    return nib.Nifti1Image(codes, image.affine)


def with_origin_of(label: nib.Nifti1Image, image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Place a label on the grid of its image where only the origins differ; else unchanged."""
    turned = oriented_like(label, image)
    apart_mm = np.linalg.norm((turned.affine - image.affine)[:3, :3], axis=0)
    is_same = same_grid(turned.shape, turned.affine, image.shape, image.affine)
    is_parallel = (apart_mm <= 0.01 * np.array(spacing_of(image.affine))).all()
    if is_same or turned.shape != image.shape or not is_parallel:
        return label
    return nib.Nifti1Image(np.asanyarray(turned.dataobj), image.affine)
