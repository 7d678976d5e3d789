"""Every defect that a scan or label can have is told, and the good case beside it is unharmed."""

import csv
import gzip
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from pancseg.intake.checks.flags import FLAGS
from tests.conftest import Command, Ended
from tests.tiny_dicom import AXIAL, decimals, make_slice, write_series
from tests.tiny_labels import (
    LIVER,
    PANCREAS,
    Frame,
    bare,
    item,
    write_contours,
    write_nrrd,
    write_segmentation,
)

# damaged values make pydicom warn, which stops no command
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

SHAPE = (30, 36, 8)  # columns, rows, slices: enough pixels to judge HU and the order of slices by
SPACING = (3.0, 3.5)  # from row to row, from column to column, mm
GAP_MM = 5.0
FIRST = (-50.0, -52.0, -300.0)  # LPS mm
AFFINE = np.array([[-3.5, 0, 0, 50], [0, -3, 0, 52], [0, 0, 5, -300], [0, 0, 0, 1]])  # RAS
GOOD, BAD = "GOOD", "P-1"  # PatientIDs; tiny_labels writes the latter
NAMES = [f"{n}.dcm" for n in range(SHAPE[2])]
DIRECTIONS = "(3.5,0,0) (0,3,0) (0,0,5)"  # as NRRD writes them
LAYERED = {"space_directions": f"none {DIRECTIONS}"}
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])

Make = Callable[[Path], None]
Change = Callable[[list[Dataset]], None]
Bytes = Callable[[bytes], bytes]


@cache
def body(seed: int) -> np.ndarray:
    """HU of air around fat around muscle, whose contrast grows to the head, with noise."""
    x, y, z = np.indices(SHAPE)
    radius = np.hypot((x - 14.5) / 14, (y - 17.5) / 17)
    hu = np.where(radius < 1, -100, -1000)
    hu[radius < 0.85] = 50
    hu[(radius < 0.85) & (x < 8 + z)] = 240
    hu[13:16, 27:30] = 1200
    return (hu + np.random.default_rng(seed).normal(0, 10, SHAPE)).astype(np.int16)


def block(*ranges: slice) -> np.ndarray:
    """A mask that is 1 in a block of columns, rows and slices."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[ranges] = 1
    return mask


GOOD_HU, HU = body(1), body(2)
ORGAN = block(slice(11, 19), slice(13, 23), slice(2, 7))  # 21 ml
WIDE = np.pad(HU, ((0, 4), (0, 0), (0, 0)), constant_values=-1000)  # JPEG 2000 needs 32 pixels
LAYERS = np.stack([ORGAN, ORGAN])
HALF = block(slice(11, 19), slice(13, 18), slice(2, 7))
SWAPPED, TWICE = [0, 1, 2, 4, 3, 5, 6, 7], [0, 1, 2, 2, 3, 4, 5, 6]  # orders of slices


@dataclass(frozen=True)
class Defect:
    """Something wrong with a case, and what must be told of it.

    Attributes:
        code: Reason code, or all flags where the case is kept.
        tells: Regular expression that the reason has.
        make: Writes the damaged case into a source that holds a good one.
        status: Of the damaged input's row: ``refused``, ``dropped`` or ``kept``.
        path: Of that row, below the source.
        kind: Of that row.
        layout: Which arguments name the source.
        arguments: Further ones.
        hu: What the case must hold where it is kept.
        beside: How many further cases are kept.
    """

    code: str
    tells: str
    make: Make
    status: str = "refused"
    path: str = "images/bad"
    kind: str = "image"
    layout: str = "images"
    arguments: tuple[str, ...] = ()
    hu: np.ndarray | None = None
    beside: int = 0


# making


def series(
    damage: Change | None = None, *, at: str = "images/bad", hu: np.ndarray = HU, **options: Any
) -> Make:
    """A series at a path below the source."""
    values: dict[str, Any] = {
        "pixels": hu.T.astype(int) + 1024, "intercept": -1024.0, "first": FIRST, "gap_mm": GAP_MM,
        "pixel_spacing": SPACING, "patient_id": BAD,
    } | options  # fmt: skip
    values.setdefault("names", NAMES[: len(values.get("positions", values["pixels"]))])

    def make(source: Path) -> None:
        write_series(source / at, damage=damage, **values)

    return make


def mask(values: Any = ORGAN, *, at: str = "labels/bad", **options: Any) -> Make:
    """A mask series at a path below the source."""
    values = np.asarray(values)
    return series(at=at, **{"pixels": values.T, "intercept": 0.0, "modality": "OT"} | options)


def both(*makes: Make) -> Make:
    """One thing after the other."""

    def make(source: Path) -> None:
        for one in makes:
            one(source)

    return make


def spoiled(name: str, change: Bytes, make: Make) -> Make:
    """Something, with the bytes of one of its files changed."""

    def made(source: Path) -> None:
        make(source)
        content = (source / name).read_bytes()
        (source / name).write_bytes(change(content))

    return made


def written(name: str, content: bytes) -> Make:
    """A file at a path below the source."""

    def make(source: Path) -> None:
        (source / name).write_bytes(content)

    return make


def dicomdir(source: Path) -> None:
    bare(MediaStorageDirectoryStorage, "").save_as(
        source / "images" / "DICOMDIR", enforce_file_format=True
    )


def give(*which: int, **values: Any) -> Change:
    """Give some slices, or all where none is named, some values; None takes an attribute away."""

    def change(slices: list[Dataset]) -> None:
        for n, one in enumerate(slices):
            for keyword, value in values.items() if n in (which or range(len(slices))) else ():
                if value is None:
                    delattr(one, keyword)
                else:
                    setattr(one, keyword, value)

    return change


def without(n: int) -> dict[str, Any]:
    """Options of a series that lacks slice n."""
    places = np.delete(heights(*GAP_MM * np.arange(SHAPE[2])), n, axis=0)
    return {"positions": places, "pixels": np.delete(HU.T, n, axis=0) + 1024}


def heights(*values: float) -> np.ndarray:
    """Positions of slices at these heights above the first."""
    return np.array([(*FIRST[:2], FIRST[2] + value) for value in values])


def tilted(shift_mm: float) -> np.ndarray:
    """Positions of slices that move this far to the back from one to the next."""
    return np.array(FIRST) + np.arange(SHAPE[2])[:, None] * [0, shift_mm, GAP_MM]


def turned(degrees: float) -> tuple[float, ...]:
    """Directions of rows and columns, turned within the slice."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return (cos, sin, 0, -sin, cos, 0)


def floating(slices: list[Dataset]) -> None:
    for one in slices:
        one.FloatPixelData = np.frombuffer(one.PixelData, "<i2").astype("<f4").tobytes()
        one.BitsAllocated = 32
        del one.PixelData


def packed(uid: str, **values: Any) -> Change:
    """Compress every slice, then claim something else of it."""

    def change(slices: list[Dataset]) -> None:
        for one in slices:
            one.compress(uid, generate_instance_uid=False)
        give(**values)(slices)

    return change


def broken(content: bytes) -> bytes:
    """With zeros where a compressed frame begins."""
    start = content.rindex(b"\xfe\xff\x00\xe0") + 8
    return content[:start] + bytes(60) + content[start + 60 :]


def coloured(slices: list[Dataset]) -> None:
    for one in slices:
        one.SamplesPerPixel, one.PhotometricInterpretation, one.PlanarConfiguration = 3, "RGB", 0
        one.BitsAllocated = one.BitsStored = 8
        one.HighBit, one.PixelRepresentation = 7, 0
        one.PixelData = bytes(3 * SHAPE[0] * SHAPE[1])


def multi_frame(described: int, *, claimed: int = SHAPE[2]) -> Make:
    """One file of all slices, of which the header describes some."""

    def make(source: Path) -> None:
        one = make_slice(HU.T[0])
        one.PatientID, one.Modality, one.SeriesInstanceUID = BAD, "CT", generate_uid()
        one.ImageOrientationPatient, one.PixelSpacing = decimals(AXIAL), decimals(SPACING)
        one.NumberOfFrames, one.PixelData = claimed, (HU.T + 1024).astype("<i2").tobytes()
        one.PerFrameFunctionalGroupsSequence = [
            item(PlanePositionSequence=[item(ImagePositionPatient=decimals(place(k)))])
            for k in range(described)
        ]
        if not described:
            del one.PerFrameFunctionalGroupsSequence
        (source / "images" / "bad").mkdir()
        one.save_as(source / "images" / "bad" / "all.dcm", enforce_file_format=True)

    return make


def straight(hu: np.ndarray) -> np.ndarray:
    """What a scan becomes whose slices move one row to the back from one to the next."""
    columns, rows, slices = hu.shape
    wide = np.full((columns, rows + slices - 1, slices), -1024, hu.dtype)
    for k in range(slices):
        wide[:, k : k + rows, k] = hu[..., k]
    return wide


def unknown(content: bytes) -> bytes:
    """With a transfer syntax that is none."""
    return content.replace(JPEG2000Lossless.encode(), b"1.2.840.10008.1.2.4.99")


def renumbered(one: Dataset) -> None:
    """Give the only ROI another number."""
    one.StructureSetROISequence[0].ROINumber = one.ROIContourSequence[0].ReferencedROINumber = 5


def place(k: float, column: float = 0, row: float = 0) -> tuple[float, float, float]:
    """Position of a pixel, LPS mm."""
    return FIRST[0] + column * SPACING[1], FIRST[1] + row * SPACING[0], FIRST[2] + k * GAP_MM


def seg(*frames: Frame, at: str = "labels/bad.dcm", **options: Any) -> Make:
    """A series with a SEG drawn on it."""
    options = {"pixel_spacing": SPACING} | options

    def make(source: Path) -> None:
        series()(source)
        write_segmentation(source / at, frames or [drawn(3)], **options)

    return make


def drawn(k: float, column: float = 0, segment: int = 1) -> Frame:
    """The organ on one slice, as a frame of a SEG."""
    return Frame(ORGAN[..., 3].T, place(k, column), segment)


def rois(rois: dict[str, list[Any]], damage: Callable[[Dataset], None] | None = None) -> Make:
    """A series with an RTSTRUCT drawn on it."""

    def make(source: Path) -> None:
        series()(source)
        write_contours(source / "labels" / "bad.dcm", rois, damage=damage)

    return make


def square(k: float) -> list[tuple[float, float, float]]:
    """A contour around 12 x 14 pixels of the body."""
    return [place(k, *corner) for corner in ((8.5, 8.5), (20.5, 8.5), (20.5, 22.5), (8.5, 22.5))]


def nrrd(values: Any = ORGAN, **fields: Any) -> Make:
    """A series with an NRRD drawn on it."""
    fields = {
        "space_directions": DIRECTIONS,
        "space_origin": "({},{},{})".format(*FIRST),
    } | fields

    def make(source: Path) -> None:
        series()(source)
        write_nrrd(source / "labels" / "bad.nrrd", values, **fields)

    return make


def nifti(
    voxels: Any = HU, affine: np.ndarray | None = AFFINE, *, at: str = "images/bad.nii.gz"
) -> Make:
    """A NIfTI file at a path below the source."""

    def make(source: Path) -> None:
        (source / at).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, affine), source / at)

    return make


def with_header(start: int, values: Any, kind: str) -> Make:
    """A NIfTI file with other values in its header."""

    def change(content: bytes) -> bytes:
        plain, new = bytearray(gzip.decompress(content)), np.array(values, kind).tobytes()
        plain[start : start + len(new)] = new
        return gzip.compress(bytes(plain))

    return spoiled("images/bad.nii.gz", change, nifti())


# the table


def flagged(code: str, make: Make, **more: Any) -> Defect:
    """A scan that is kept with a flag."""
    return Defect(code, "^$", make, **{"status": "kept", "hu": HU} | more)


def label(code: str, tells: str, make: Make, **more: Any) -> Defect:
    """A label that is told of in its image's row."""
    return Defect(code, tells, both(series(), make), **{"layout": "labelled"} | more)


def marked(code: str, make: Make, **more: Any) -> Defect:
    """A label that is kept with a flag."""
    return flagged(code, both(series(), make), **{"layout": "labelled"} | more)


def image_file(code: str, tells: str, make: Make, **more: Any) -> Defect:
    """A NIfTI image."""
    return Defect(code, tells, make, **{"path": "images/bad.nii.gz", "layout": "nifti"} | more)


def third(change: Bytes) -> Make:
    """A series whose slice 3 is damaged on disk."""
    return spoiled("images/bad/3.dcm", change, series())


REPAIR = ("repair.gaps=resample", "repair.tilt=resample")
PIECES = ("checks.piece_share=0.6",)
THIRD: dict[str, Any] = {"path": "images/bad/3.dcm", "kind": "other"}
PDF = "1.2.840.10008.5.1.4.1.1.104.1"  # EncapsulatedPDFStorage
NO_VOLUME: dict[str, Any] = {"path": "images/bad/0.dcm", "kind": "other", "status": "dropped"}

FILES = {
    "pixels_cut_off": Defect(
        "truncated",
        r"3\.dcm has 2060 bytes of pixels, its header claims 2160",
        third(lambda content: content[:-100]),
    ),
    "header_cut_off": Defect(
        "unreadable", "its header is damaged", third(lambda content: content[:500]), **THIRD
    ),
    "header_of_the_last_slice_cut_off": Defect(
        "unreadable",
        "its header is damaged",
        spoiled("images/bad/7.dcm", lambda content: content[:500], series()),
        **THIRD | {"path": "images/bad/7.dcm"},
    ),
    "slice_that_cannot_be_read": Defect(
        "damaged_slice",
        r"7\.dcm beside it cannot be read",
        spoiled("images/bad/7.dcm", lambda _: b"", series()),
    ),
    "no_bytes": Defect("empty_file", "0 bytes", third(lambda _: b""), **THIRD),
    "text_named_dcm": Defect("not_dicom", r"named \.dcm", third(lambda _: b"words"), **THIRD),
    "text_beside_the_slices": Defect(
        "not_dicom",
        "not a DICOM file",
        both(series(), written("images/bad/notes", b"words")),
        status="dropped",
        path="images/bad/notes",
        kind="other",
        beside=1,
    ),
    "table_of_contents_beside_the_slices": Defect(
        "dicomdir",
        "the files themselves are looked at",
        both(series(), dicomdir),
        status="dropped",
        path="images/DICOMDIR",
        kind="other",
        beside=1,
    ),
    "noise_that_begins_as_dicom": Defect(
        "unreadable",
        "its header is damaged",
        third(lambda content: content[:132] + np.random.default_rng(3).bytes(3000)),
        **THIRD,
    ),
    "no_volume_but_a_document": Defect(
        "not_an_image",
        "a DICOM object without pixels",
        series(give(SOPClassUID=PDF, Modality="DOC", Rows=None, PixelData=None)),
        **NO_VOLUME,
    ),
    "no_volume_but_a_localizer": Defect(
        "localizer",
        "a scout view",
        series(give(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
        **NO_VOLUME,
    ),
    "no_volume_but_screen_shots": Defect(
        "secondary_capture",
        "a screen shot",
        series(give(SOPClassUID=SecondaryCaptureImageStorage, ImagePositionPatient=None)),
        **NO_VOLUME,
    ),
    "mr": Defect("not_ct", r"MR, expected CT; source\.modality=any", series(modality="MR")),
}

GEOMETRY = {
    f"no_{keyword}": Defect(
        "no_geometry", rf"3\.dcm has no usable {keyword}", series(give(3, **{keyword: None}))
    )
    for keyword in ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient")
} | {
    "no_rows": Defect("unreadable", "CT without Rows", series(give(3, Rows=None)), **THIRD),
    "no_columns": Defect(
        "no_geometry", r"3\.dcm has .* None Columns", series(give(3, Columns=None))
    ),
    "position_is_no_number": Defect(
        "no_geometry",
        r"3\.dcm has no usable ImagePositionPatient",
        third(lambda content: content.replace(b"-285.0", b"NaN   ")),
    ),
    "position_is_a_word": Defect(
        "unreadable",
        r"3\.dcm: .*supine",
        third(lambda content: content.replace(b"-285.0", b"supine")),
    ),
    "position_is_infinitely_far": Defect(
        "no_geometry",
        r"3\.dcm has no usable ImagePositionPatient",
        series(give(3, ImagePositionPatient=["1e300", "0", "0"])),
    ),
    "pixels_of_negative_size": Defect(
        "no_geometry", r"PixelSpacing \[3\.0, -3\.5\]", series(give(PixelSpacing=[3, -3.5]))
    ),
    "pixels_of_no_size": Defect(
        "no_geometry", r"PixelSpacing \[0\.0, 3\.5\]", series(give(PixelSpacing=[0, 3.5]))
    ),
    "pixels_of_one_number": Defect(
        "no_geometry", "no usable PixelSpacing", series(give(PixelSpacing=3))
    ),
    "axes_of_length_zero": Defect(
        "no_geometry",
        r"\[0\.0, 0\.0, 0\.0, 0\.0, 1\.0, 0\.0\], expected two unit vectors",
        series(give(3, ImageOrientationPatient=[0, 0, 0, 0, 1, 0])),
    ),
    "axes_not_at_right_angles": Defect(
        "no_geometry",
        r"\[1\.0, 0\.0, 0\.0, 0\.6, 0\.8, 0\.0\], expected two unit vectors",
        series(give(3, ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0])),
    ),
    "two_frames_of_reference": Defect(
        "mixed_frame_of_reference",
        "2 FrameOfReferenceUIDs, expected one",
        series(give(3, FrameOfReferenceUID="1.2.3")),
    ),
    "two_sizes": Defect(
        "mixed_size",
        r"\(35, 30\), \(36, 30\)\], expected one",
        series(give(3, Rows=35, PixelData=bytes(35 * 30 * 2))),
    ),
    "two_spacings": Defect(
        "mixed_spacing",
        r"from \[3\.0, 3\.5\] to \[3\.1, 3\.5\]",
        series(give(3, PixelSpacing=[3.1, 3.5])),
    ),
    "two_orientations": Defect(
        "mixed_orientation",
        r"ImageOrientationPatient goes from \[0\.995, .* to \[1\.0, 0\.0997",
        series(give(3, ImageOrientationPatient=[f"{v:.4f}" for v in turned(5.72)])),
    ),
    "slice_missing": Defect(
        "missing_slice", r"1 gap of 10\.0 mm at slice 4, spacing is 5\.0 mm", series(**without(4))
    ),
    "two_slices_missing": Defect(
        "missing_slice",
        r"2 gaps, the first of 10\.0 mm at slice 2",
        series(positions=heights(0, 5, 15, 20, 30, 35), pixels=HU.T[:6] + 1024),
    ),
    "gaps_uneven": Defect(
        "uneven_gaps",
        r"from 4\.00 to 6\.00 mm",
        series(positions=heights(0, 5, 10, 16, 20, 25, 30, 35)),
    ),
    "gantry_tilted": Defect("gantry_tilt", r"31\.0 degrees", series(positions=tilted(3))),
    "slice_aside": Defect(
        "shifted_slice",
        r"7\.0 mm beside the stack",
        series(give(3, ImagePositionPatient=[-43, -52, -285])),
    ),
    "all_at_one_position": Defect(
        "same_position", "8 slices or more share", series(positions=heights(*8 * [0]))
    ),
    "slice_twice": Defect(
        "duplicate_slice",
        "1 slices are copies of another one",
        series(positions=heights(0, 5, 10, 10, 15, 20, 25, 30), pixels=HU.T[TWICE] + 1024),
    ),
    "two_slices_at_one_position": Defect(
        "same_position",
        "2 slices or more share",
        series(positions=heights(0, 5, 10, 10, 15, 20, 25, 30)),
    ),
    "two_slices": Defect(
        "too_few_slices", "2 slices, expected at least 3", series(pixels=HU.T[:2] + 1024)
    ),
    "slices_swapped": flagged(
        "slice_order", series(pixels=HU.T[SWAPPED] + 1024), hu=HU[..., SWAPPED]
    ),
}

PIXELS = {
    "no_pixels": Defect("no_pixels", r"3\.dcm has no pixel data", series(give(3, PixelData=None))),
    "claims_a_gigabyte": Defect(
        "truncated",
        r"3\.dcm has 2160 bytes of pixels, its header claims 1073741824",
        series(give(3, Rows=8192, Columns=8192, NumberOfFrames=8)),
    ),
    "claims_more_than_any_scanner": Defect(
        "too_large",
        r"3\.dcm claims 30000 x 30000 pixels, at most 8192",
        series(give(3, Rows=30000, Columns=30000)),
    ),
    "claims_too_many_rows": Defect(
        "truncated", "has 2160 bytes of pixels, its header claims 2220", series(give(Rows=37))
    ),
    "claims_too_few_rows": Defect("bad_pixels", "2160", series(give(Rows=30))),
    "floating_point_pixels": Defect(
        "float_pixels", r"\.dcm has floating point pixels, expected integers", series(floating)
    ),
    "slope_zero": Defect(
        "no_rescale", "RescaleSlope 0 and RescaleIntercept -1024", series(give(3, RescaleSlope=0))
    ),
    "slope_huge": Defect("no_rescale", r"RescaleSlope 1e\+09", series(give(3, RescaleSlope="1e9"))),
    "intercept_huge": Defect(
        "no_rescale", r"RescaleIntercept -1e\+12", series(give(3, RescaleIntercept="-1e12"))
    ),
    "colour": Defect("colour", "has 3 values a pixel, expected 1", series(coloured)),
    "bits_that_are_none": Defect(
        "bad_pixels", r"3\.dcm has BitsAllocated 12", series(give(3, BitsAllocated=12))
    ),
    "syntax_unknown": Defect(
        "unreadable",
        r"3\.dcm: UID is not a transfer syntax",
        spoiled("images/bad/3.dcm", unknown, series(packed(JPEG2000Lossless), hu=WIDE)),
    ),
    "jpeg_2000_damaged": Defect(
        "undecodable",
        r"3\.dcm: ",
        spoiled("images/bad/3.dcm", broken, series(packed(JPEG2000Lossless), hu=WIDE)),
    ),
    "jpeg_ls_damaged": Defect(
        "undecodable",
        r"3\.dcm: ",
        spoiled("images/bad/3.dcm", broken, series(packed(JPEGLSLossless))),
    ),
    "rle_damaged": Defect(
        "undecodable", r"3\.dcm: ", spoiled("images/bad/3.dcm", broken, series(packed(RLELossless)))
    ),
    "jpeg_2000_of_another_size": Defect(
        "undecodable", r"\.dcm", series(packed(JPEG2000Lossless, Rows=40), hu=WIDE)
    ),
    "rle_of_another_size": Defect(
        "undecodable", r"\.dcm", series(packed(RLELossless, Rows=40), hu=WIDE)
    ),
    "more_frames_than_described": Defect(
        "bad_frames", r"all\.dcm claims 8 frames and describes 7 of them", multi_frame(7)
    ),
    "frames_not_described": Defect(
        "bad_frames", r"all\.dcm claims 8 frames and describes 0 of them", multi_frame(0)
    ),
    "more_frames_than_pixels": Defect(
        "truncated",
        r"all\.dcm has 17280 bytes of pixels, its header claims 19440",
        multi_frame(9, claimed=9),
    ),
    "no_frames": Defect("bad_frames", r"all\.dcm claims -1 frames", multi_frame(8, claimed=-1)),
}

FLAGGED = {
    "hu_never_rescaled": flagged("hu_not_applied", series(intercept=0.0), hu=HU + 1024),
    "hu_rescaled_twice": flagged("hu_implausible", series(intercept=-2048.0), hu=HU - 1024),
    "hu_windowed": flagged("hu_windowed", series(hu=HU.clip(-160, 240)), hu=HU.clip(-160, 240)),
    "one_scan_of_two_patients": flagged(
        "duplicate_pixels", both(series(), series(at="images/too", patient_id="OTHER")), beside=1
    ),
    "one_study_of_two_names": flagged(
        "two_names",
        both(
            series(give(StudyInstanceUID="1.2.3")),
            series(give(StudyInstanceUID="1.2.3"), at="images/too", patient_id="X", hu=body(3)),
        ),
        beside=1,
    ),
    "spacing_unlike_others": flagged(
        "spacing_outlier",
        both(
            series(pixel_spacing=(9.0, 3.5)),
            *(series(at=f"images/{n}", patient_id=f"{n}", hu=body(n)) for n in (3, 4, 5)),
        ),
        hu=None,
        beside=3,
    ),
    "gap_repaired": flagged(
        "repaired",
        series(**without(4)),
        hu=np.insert(np.delete(HU, 4, 2), 4, np.rint(HU[..., 3] / 2 + HU[..., 5] / 2), 2),
        arguments=REPAIR,
    ),
    "tilt_repaired": flagged(
        "repaired", series(positions=tilted(3)), hu=straight(HU), arguments=REPAIR
    ),
    "gap_too_wide_to_repair": Defect(
        "missing_slice",
        r"1 gap of 25\.0 mm at slice 3",
        series(positions=heights(0, 5, 10, 35, 40, 45, 50, 55)),
        arguments=REPAIR,
    ),
    "copy_refused": Defect(
        "duplicate_pixels",
        "the pixels are those of case P-1, and checks.refuse names it",
        both(series(), series(at="images/too", patient_id="OTHER")),
        path="images/too",
        arguments=("checks.refuse=[duplicate_pixels]",),
        beside=1,
    ),
}

LABELS = {
    "label_half_a_voxel_aside": label(
        "label_shifted",
        r"\(-1\.75, 0\.00, 0\.00\) mm to the right, .* \(0\.50, 0\.00, 0\.00\) of its voxels",
        mask(first=place(0, 0.5)),
    ),
    "label_a_slice_too_high": label(
        "label_shifted",
        r"\(0\.00, 0\.00, 5\.00\) mm .* \(0\.00, 0\.00, 1\.00\) of its voxels",
        mask(first=place(1)),
    ),
    "label_flipped": label(
        "label_flipped",
        "label begins where the image ends, back-front: its affine has wrong signs",
        mask(orientation=(1, 0, 0, 0, -1, 0), positions=heights(*GAP_MM * np.arange(8))),
    ),
    "label_of_lps_written_as_ras": label(
        "label_flipped",
        "lies mirrored at the scanner's zero, left-right",
        nifti(ORGAN, np.diag([-1, -1, 1, 1]) @ AFFINE, at="labels/bad.nii.gz"),
    ),
    "label_of_another_size": label(
        "label_size",
        r"label has 29 x 36 x 8 voxels .* image has 30 x 36 x 8",
        mask(ORGAN[1:]),
    ),
    "label_of_another_spacing": label(
        "label_spacing",
        r"voxels of 3\.6 x 3 x 5 mm, image of 3\.5 x 3 x 5 mm",
        mask(pixel_spacing=(3.0, 3.6)),
    ),
    "label_turned": label(
        "label_direction",
        r"axes lie 2\.00 degrees off the image's",
        mask(orientation=turned(2)),
    ),
    "label_with_the_intercept_of_its_ct": label(
        "no_background",
        "no voxel is 0, values go from -1024 to -1023",
        mask(intercept=-1024.0),
    ),
    "label_without_background": label(
        "no_background", "values go from 1 to 1", mask(np.ones(SHAPE, np.uint8))
    ),
    "label_lacks_a_slice": label(
        "missing_slice",
        r"1 gap of 10\.0 mm at slice 4",
        mask(**without(4) | {"pixels": np.delete(ORGAN.T, 4, axis=0)}),
    ),
    "label_is_of_another_patient": label(
        "other_patient", "carry different PatientIDs", mask(patient_id="Q-2")
    ),
    "label_cut_off": label(
        "truncated",
        r"3\.dcm has 2060 bytes",
        spoiled("labels/bad/3.dcm", lambda content: content[:-100], mask()),
    ),
    "no_label": Defect("no_label", "no label belongs", series(), layout="labelled"),
    "two_labels": label(
        "ambiguous_label",
        "2 labels belong to this image, expected one",
        both(mask(at="labels/bad/a"), mask(at="labels/bad/b")),
    ),
    "no_image": Defect(
        "no_image",
        "no image series belongs to this label",
        mask(),
        path="labels/bad",
        kind="label",
        layout="labelled",
    ),
    "two_images": Defect(
        "ambiguous_label",
        "2 image series fit this label equally well",
        both(series(), series(at="images/too"), mask(at="labels/other")),
        path="labels/other",
        kind="label",
        layout="labelled",
    ),
    "image_beside_the_one_that_was_drawn_on": Defect(
        "other_series",
        "the label belongs to another series of this patient",
        both(series(), series(at="images/too"), mask()),
        status="dropped",
        path="images/too",
        layout="labelled",
        beside=1,
    ),
    "label_among_the_images": Defect(
        "label_among_images",
        "SEG",
        seg(at="images/seg.dcm"),
        status="dropped",
        path="images/seg.dcm",
        kind="label",
        beside=1,
    ),
    "label_empty": marked("label_empty", mask(0 * ORGAN)),
    "label_empty_refused": label(
        "label_empty",
        "flagged label_empty, and checks.refuse names it",
        mask(0 * ORGAN),
        arguments=("checks.refuse=[label_empty]",),
    ),
    "label_of_two_values": marked("label_values", mask(ORGAN + HALF)),
    "label_values_refused": label(
        "label_values",
        r"\(1, 2\), and checks.refuse names it",
        mask(ORGAN + HALF),
        arguments=("checks.refuse=[label_values]",),
    ),
    "label_in_air": marked(
        "label_outside_body", mask(block(slice(0, 3), slice(0, 36), slice(2, 6)))
    ),
    "label_too_small": marked(
        "label_volume", mask(block(slice(11, 13), slice(13, 18), slice(2, 7)))
    ),
    "label_too_large": marked(
        "label_volume",
        mask(block(slice(6, 24), slice(7, 29), slice(1, 7))),
        arguments=("checks.volume_ml=[15, 100]",),
    ),
    "label_in_two_pieces": marked(
        "label_pieces", mask(ORGAN | block(slice(21, 23), slice(13, 23), slice(2, 7)))
    ),
    "label_on_the_first_slice": marked("label_cut", mask(np.roll(ORGAN, -2, axis=2))),
    "label_on_the_last_slice": marked("label_cut", mask(np.roll(ORGAN, 1, axis=2))),
    "label_lacks_slices": marked("label_gaps", mask(ORGAN * (np.arange(8) != 4)), arguments=PIECES),
}

SEGS = {
    "seg_without_the_segment": label(
        "no_such_segment",
        "no segment goes by 1; there are 2 Liver",
        seg(drawn(3, segment=2), segments={2: LIVER}),
        arguments=("labels=[1]",),
    ),
    "seg_of_two_segments": label(
        "ambiguous_segment",
        r"2 segments \(1 Liver, 2 Pancreas\); choose by labels=",
        seg(segments={1: LIVER, 2: PANCREAS}),
    ),
    "seg_of_no_segments": label(
        "bad_segments",
        "and 0 segments",
        seg(damage=lambda one: setattr(one, "SegmentSequence", [])),
    ),
    "seg_beside_the_pixels": label(
        "label_off_grid", r"bad\.dcm lies 1\.750 mm beside", seg(drawn(3, column=0.5))
    ),
    "seg_between_slices": label(
        "label_off_grid", r"2\.50 mm from the nearest slice", seg(drawn(3.5))
    ),
    "seg_of_larger_pixels": label(
        "label_off_grid",
        r"pixels of 4\.0000 x 3\.0000 mm, those of the image are 3\.5000 x 3\.0000",
        seg(pixel_spacing=(3.0, 4.0)),
    ),
    "seg_cut_off": label(
        "truncated",
        r"bad\.dcm has 35 bytes of pixels, its header claims 135",
        spoiled("labels/bad.dcm", lambda content: content[:-101], seg()),
    ),
    "seg_cut_off_in_its_header": label(
        "no_pixels",
        r"bad\.dcm has no pixel data",
        spoiled("labels/bad.dcm", lambda content: content[:600], seg()),
    ),
}

CONTOURS = {
    "rtstruct_without_the_roi": label(
        "no_such_roi",
        r"no roi goes by 1; there are 5 LIVER",
        rois({"LIVER": [square(3)]}, renumbered),
        arguments=("labels=[1]",),
    ),
    "rtstruct_of_two_rois": label(
        "ambiguous_roi", r"2 rois \(1 A, 2 B\)", rois({"A": [square(3)], "B": [square(3)]})
    ),
    "rtstruct_of_no_rois": label("no_rois", "lists no ROIs", rois({})),
    "contour_off_the_slices": label(
        "contour_off_slice",
        r"2\.50 mm from the nearest slice, expected at most 1\.25 mm",
        rois({"A": [square(3.5)]}),
    ),
    "contour_across_the_slices": label(
        "contour_off_slice",
        r"leans over 10\.00 mm",
        rois({"A": [[*square(3)[:2], *square(5)[2:]]]}),
    ),
    "contour_of_no_points": label(
        "bad_contour", "a contour of 11 numbers", rois({"A": [np.ravel(square(3))[:11]]})
    ),
    "contours_missing_between": marked(
        "label_gaps contour_gaps", rois({"A": [square(1), square(4)]}), arguments=PIECES
    ),
}

IMAGE_FILES = {
    "nifti_without_place": image_file("no_affine", "neither sform nor qform", nifti(affine=None)),
    "nifti_sheared": image_file(
        "bad_affine", r"axes 18\.4 degrees off", with_header(280, [-3.5, 1, 0, 50], "<f4")
    ),
    "nifti_flattened": image_file(
        "bad_affine", "places no volume", with_header(312, [0, 0, 0, 0], "<f4")
    ),
    "nifti_of_nan": image_file(
        "not_finite", "NaN or infinite", nifti(np.where(HU.max() == HU, np.nan, HU))
    ),
    "nifti_of_infinity": image_file(
        "not_finite", "NaN or infinite", nifti(np.where(HU.max() == HU, -np.inf, HU))
    ),
    "nifti_of_four_axes": image_file(
        "not_a_volume", r"shape \(30, 36, 8, 2\), expected three axes", nifti(np.stack([HU] * 2, 3))
    ),
    "nifti_of_two_axes": image_file(
        "not_a_volume", r"shape \(30, 36\), expected three axes", nifti(HU[..., 0])
    ),
    "nifti_of_colours": image_file("not_a_volume", "RGB voxels", nifti(np.zeros(SHAPE, RGB))),
    "nifti_cut_off": image_file(
        "truncated",
        r"bad\.nii\.gz breaks off: \d+ bytes of voxels, its header claims 17280",
        spoiled("images/bad.nii.gz", lambda content: content[:-3000], nifti()),
    ),
    "nifti_without_its_checksum": image_file(
        "truncated",
        r"breaks off: 17280 bytes of voxels and no checksum",
        spoiled("images/bad.nii.gz", lambda content: content[:-4], nifti()),
    ),
    "nifti_of_no_bytes": image_file(
        "unreadable", r"bad\.nii\.gz", spoiled("images/bad.nii.gz", lambda _: b"", nifti())
    ),
    "nifti_that_is_text": image_file(
        "unreadable", r"bad\.nii\.gz", spoiled("images/bad.nii.gz", lambda _: b"words", nifti())
    ),
    "nifti_with_another_magic_word": image_file(
        "unreadable", "magic string 'nope' is not valid", with_header(344, b"nope", "S4")
    ),
    "nifti_of_terabytes": image_file(
        "too_large", r"claims 70362\.3 GB", with_header(42, 3 * [32767], "<i2")
    ),
    "nifti_that_claims_more_than_there_is": image_file(
        "truncated", r"its header claims 4320000", with_header(46, [2000], "<i2")
    ),
    "nifti_of_huge_slope": image_file(
        "bad_rescale", r"slope 1e\+09 and intercept 0", with_header(112, [1e9, 0], "<f4")
    ),
    "nifti_that_is_a_resource_fork": Defect(
        "resource_fork",
        "what macOS keeps beside a file",
        both(nifti(), written("images/._bad.nii.gz", b"fork")),
        status="dropped",
        path="images/._bad.nii.gz",
        kind="other",
        layout="nifti",
        beside=1,
    ),
    "nifti_of_one_name_twice": image_file(
        "ambiguous_image", "bad.nii and bad.nii.gz", both(nifti(), nifti(at="images/bad.nii"))
    ),
}

LABEL_FILES = {
    "nifti_label_of_nan": label(
        "not_finite", "NaN", nifti(np.where(ORGAN, np.nan, 0), at="labels/bad.nii.gz")
    ),
    "nrrd_whose_voxels_are_elsewhere": label(
        "detached_data", r"keeps its voxels in another file", nrrd(data_file="bad.raw")
    ),
    "nrrd_without_space": label("no_affine", "has space 'none'", nrrd(space=None)),
    "nrrd_cut_off": label(
        "truncated",
        r"holds 100 bytes, its header claims 8640",
        nrrd(content=gzip.compress(bytes(100))),
    ),
    "nrrd_of_nan": label("not_finite", "NaN", nrrd(np.where(ORGAN, np.nan, 0).astype("f4"))),
    "nrrd_that_is_text": label(
        "unreadable", r"bad\.nrrd", both(nrrd(), written("labels/bad.nrrd", b"words\n\n"))
    ),
    "nrrd_of_terabytes": label(
        "too_large",
        r"claims \[99999, 99999, 99999\] voxels, 999970\.0 GB",
        nrrd(sizes="99999 99999 99999"),
    ),
    "nrrd_of_unnamed_layers": label(
        "not_a_volume", "2 layers without names, expected one", nrrd(LAYERS, **LAYERED)
    ),
    "nrrd_segment_in_no_layer": label(
        "bad_segments",
        "2 layers and a segment of value 0 or of none of them",
        nrrd(LAYERS, **LAYERED, Segment0_Name="Liver", Segment0_Layer="7"),
    ),
    "nrrd_segments_that_share_a_value": label(
        "ambiguous_segment",
        r"layers share values \(Liver 1, Spleen 1\); choose by labels=",
        nrrd(LAYERS, **LAYERED, Segment0_Name="Liver", Segment1_Name="Spleen"),
        arguments=("labels=[1]",),
    ),
}

DEFECTS = FILES | GEOMETRY | PIXELS | FLAGGED | LABELS | SEGS | CONTOURS | IMAGE_FILES | LABEL_FILES


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good case as DICOM with a mask series, and as NIfTI."""
    folder = tmp_path_factory.mktemp("good")
    series(at="images/good", hu=GOOD_HU, patient_id=GOOD)(folder / "dicom")
    mask(at="labels/good", patient_id=GOOD)(folder / "dicom")
    nifti(GOOD_HU, at="images/good.nii.gz")(folder / "nifti")
    return folder


def rows_of(root: Path) -> list[dict[str, str]]:
    with (root / "intake.csv").open(newline="") as table:
        return list(csv.DictReader(table))


def row_of(rows: list[dict[str, str]], path: Path, kind: str) -> dict[str, str]:
    (row,) = [row for row in rows if (row["path"], row["kind"]) == (str(path), kind)]
    return row


def assert_holds(root: Path, row: dict[str, str], role: str, voxels: np.ndarray) -> None:
    """Value by value and in place."""
    image = nib.load(root / "cases" / f"{row['case']}_{role}.nii.gz")
    np.testing.assert_array_equal(image.dataobj, voxels)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)


def prepare_beside(
    command: Command, defect: Defect, good: Path, folder: Path
) -> tuple[Ended, Path]:
    """Damage a case beside the good one and prepare both."""
    source, root = folder / "source", folder / "root"
    kind = "nifti" if defect.layout == "nifti" else "dicom"
    shutil.copytree(good / kind, source, copy_function=os.link)
    defect.make(source)
    labels = source / "labels" if defect.layout == "labelled" else "null"
    places = [f"source={kind}", f"source.images={source / 'images'}", f"source.labels={labels}"]
    settings = [f"data.root={root}", "data.depth=4", "privacy=none", "processes=0"]
    return command("prepare", *places, *settings, *defect.arguments), root


@pytest.fixture(autouse=True)
def _without_contact_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a fifth of the time and tell nothing of defects."""
    monkeypatch.setattr("pancseg.output.contact_sheet.draw_page", lambda *_: None)


def test_the_table_is_long_and_has_every_flag() -> None:
    assert len(DEFECTS) >= 140
    assert len({(one.code, one.tells, one.make) for one in DEFECTS.values()}) == len(DEFECTS)
    codes = {code for one in DEFECTS.values() for code in one.code.split()}
    assert len(codes) >= 70
    assert set(FLAGS) - codes == {"unlabelled", "phantom", "label_placed_by_axes"}  # no defects


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_told_and_the_good_case_beside_it_is_unharmed(
    name: str, good: Path, tmp_path: Path, command: Command
) -> None:
    defect = DEFECTS[name]
    ended, root = prepare_beside(command, defect, good, tmp_path)
    assert "Traceback" not in ended.err
    rows = rows_of(root)
    row = row_of(rows, tmp_path / "source" / defect.path, defect.kind)
    refused = [one for one in rows if one["status"] == "refused"]
    assert (row["status"], ended.code) == (defect.status, 1 if refused else 0), row["reason"]

    own_flags = row["flags"].replace("unlabelled", "").strip()
    code, _, sentence = row["reason"].partition(": ")
    assert (code or own_flags) == defect.code, row
    assert re.search(defect.tells, sentence), sentence
    if defect.hu is not None:
        assert_holds(root, row, "image", defect.hu)

    ending = ".nii.gz" if defect.layout == "nifti" else ""
    well = row_of(rows, tmp_path / "source" / "images" / f"good{ending}", "image")
    assert (well["status"], well["flags"].replace("unlabelled", "")) == ("kept", "")
    assert_holds(root, well, "image", GOOD_HU)
    if defect.layout == "labelled":
        assert_holds(root, well, "label", ORGAN)
    kept = 1 + defect.beside + (defect.status == "kept")
    assert len(json.loads((root / "manifest.json").read_text())["cases"]) == kept
    assert len(list((root / "cases").glob("*_image.nii.gz"))) == kept


@pytest.mark.parametrize(
    ("name", "repair"),
    [
        ("gap_repaired", "gaps of 5.00 to 10.00 mm, now 5.00 mm"),
        ("tilt_repaired", "tilt of 31.0 degrees"),
    ],
)
def test_what_was_repaired_stands_in_the_manifest(
    name: str, repair: str, good: Path, tmp_path: Path, command: Command
) -> None:
    _, root = prepare_beside(command, DEFECTS[name], good, tmp_path)
    cases = json.loads((root / "manifest.json").read_text())["cases"]
    assert {case["patient"]: case["repairs"] for case in cases} == {GOOD: [], BAD: [repair]}


def test_what_is_wrong_with_a_header_puts_no_identifier_on_the_console(
    good: Path, tmp_path: Path, command: Command
) -> None:
    make = third(lambda content: content.replace(b"1.2.826.0.1.", b"SECRET6.0.1."))
    ended, _ = prepare_beside(command, Defect("", "", make), good, tmp_path)
    assert "SECRET" not in ended.out + ended.err
