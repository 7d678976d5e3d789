"""Each defect of a scan or label has its row or flag, and a good case beside it is unharmed."""

import csv
import gzip
import json
import os
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

from pancseg.intake.checks import FLAGS
from tests.conftest import Command
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

# damaged values make pydicom warn
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
SWAPPED = [0, 1, 2, 4, 3, 5, 6, 7]  # order of slices


@dataclass(frozen=True)
class Defect:
    """A fault of a case, and the expected row.

    Attributes:
        code: Reason code, or all flags where the case is kept.
        make: Writes the damaged case into a source that holds a good one.
        status: ``refused``, ``dropped`` or ``kept``.
        path: Of the row, below the source.
        kind: Of the row.
        layout: ``images`` or ``labelled`` (DICOM), or ``nifti``.
        arguments: Of the command.
        hu: Voxels of the case where it is kept.
        beside: Number of further cases that are kept.
    """

    code: str
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
    return lambda source: void(write_series(source / at, damage=damage, **values))


def void(_: object) -> None:
    """Drop a result."""


def mask(values: Any = ORGAN, *, at: str = "labels/bad", **options: Any) -> Make:
    """A mask series at a path below the source."""
    values = np.asarray(values)
    return series(at=at, **{"pixels": values.T, "intercept": 0.0, "modality": "OT"} | options)


def both(*makes: Make) -> Make:
    """Several, one after the other."""
    return lambda source: void([make(source) for make in makes])


def damaged(name: str, change: Bytes, make: Make) -> Make:
    """Something, with the bytes of a file changed."""

    def made(source: Path) -> None:
        make(source)
        (source / name).write_bytes(change((source / name).read_bytes()))

    return made


def third(change: Bytes) -> Make:
    """A series whose slice 3 is damaged on disk."""
    return damaged("images/bad/3.dcm", change, series())


def written(name: str, content: bytes) -> Make:
    """A file at a path below the source."""
    return lambda source: void((source / name).write_bytes(content))


def moved(old: str, new: str, make: Make) -> Make:
    """Something, with a file in another folder."""

    def made(source: Path) -> None:
        make(source)
        (source / new).parent.mkdir(exist_ok=True)
        (source / old).rename(source / new)

    return made


def copied(old: str, new: str) -> Make:
    """A copy of a file."""
    return lambda source: void(shutil.copy(source / old, source / new))


def dicomdir(source: Path) -> None:
    bare(MediaStorageDirectoryStorage, "").save_as(
        source / "images" / "DICOMDIR", enforce_file_format=True
    )


def changed(*which: int, **values: Any) -> Change:
    """Set attributes of some slices, or of all; None removes them."""

    def change(slices: list[Dataset]) -> None:
        for n in which or range(len(slices)):
            for keyword, value in values.items():
                if value is None:
                    delattr(slices[n], keyword)
                else:
                    setattr(slices[n], keyword, value)

    return change


def without(n: int) -> dict[str, Any]:
    """Options of a series that lacks slice n."""
    places = np.delete(heights(*GAP_MM * np.arange(SHAPE[2])), n, axis=0)
    return {"positions": places, "pixels": np.delete(HU.T, n, axis=0) + 1024}


def heights(*values: float) -> np.ndarray:
    """Positions of slices at these heights above the first."""
    return np.array([(*FIRST[:2], FIRST[2] + value) for value in values])


def tilted(shift_mm: float) -> np.ndarray:
    """Positions of slices that move this far to the back from each to the next."""
    return np.array(FIRST) + np.arange(SHAPE[2])[:, None] * [0, shift_mm, GAP_MM]


def turned(degrees: float) -> tuple[float, ...]:
    """Directions of rows and columns, turned within the slice."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return (cos, sin, 0, -sin, cos, 0)


def phases(slices: list[Dataset]) -> None:
    """Two acquisitions whose slices alternate."""
    for n, dataset in enumerate(slices):
        dataset.AcquisitionNumber = n % 2 + 1


def floating(slices: list[Dataset]) -> None:
    for dataset in slices:
        dataset.FloatPixelData = np.frombuffer(dataset.PixelData, "<i2").astype("<f4").tobytes()
        dataset.BitsAllocated = 32
        del dataset.PixelData


def compressed(uid: str, **values: Any) -> Change:
    """Compress every slice, then change attributes."""

    def change(slices: list[Dataset]) -> None:
        for dataset in slices:
            dataset.compress(uid, generate_instance_uid=False)
        changed(**values)(slices)

    return change


def without_frame(content: bytes) -> bytes:
    """With zeros where a compressed frame begins."""
    start = content.rindex(b"\xfe\xff\x00\xe0") + 8
    return content[:start] + bytes(60) + content[start + 60 :]


def multi_frame(described: int, *, claimed: int = SHAPE[2]) -> Make:
    """A file of all slices, of which the header describes some."""

    def make(source: Path) -> None:
        dataset = make_slice(HU.T[0])
        dataset.PatientID, dataset.Modality, dataset.SeriesInstanceUID = BAD, "CT", generate_uid()
        dataset.ImageOrientationPatient, dataset.PixelSpacing = decimals(AXIAL), decimals(SPACING)
        dataset.NumberOfFrames, dataset.PixelData = claimed, (HU.T + 1024).astype("<i2").tobytes()
        dataset.PerFrameFunctionalGroupsSequence = [
            item(PlanePositionSequence=[item(ImagePositionPatient=decimals(position(k)))])
            for k in range(described)
        ]
        (source / "images" / "bad").mkdir()
        dataset.save_as(source / "images" / "bad" / "all.dcm", enforce_file_format=True)

    return make


def straight(hu: np.ndarray) -> np.ndarray:
    """The volume of a scan whose slices move a row to the back from each to the next."""
    columns, rows, slices = hu.shape
    wide = np.full((columns, rows + slices - 1, slices), -1024, hu.dtype)
    for k in range(slices):
        wide[:, k : k + rows, k] = hu[..., k]
    return wide


def position(k: float, column: float = 0, row: float = 0) -> tuple[float, float, float]:
    """Position of a pixel, LPS mm."""
    return FIRST[0] + column * SPACING[1], FIRST[1] + row * SPACING[0], FIRST[2] + k * GAP_MM


def seg(*frames: Frame, at: str = "labels/bad.dcm", **options: Any) -> Make:
    """A SEG."""
    frames = frames or (organ_frame(3),)
    return lambda source: void(
        write_segmentation(source / at, frames, **{"pixel_spacing": SPACING} | options)
    )


def organ_frame(k: float, column: float = 0, segment: int = 1) -> Frame:
    """The organ on a slice, as a frame of a SEG."""
    return Frame(ORGAN[..., 3].T, position(k, column), segment)


def rtstruct(contours: dict[str, list[Any]], **options: Any) -> Make:
    """An RTSTRUCT."""
    return lambda source: void(write_contours(source / "labels" / "bad.dcm", contours, **options))


def renumber(dataset: Dataset) -> None:
    """Set the number of the only ROI to 5."""
    dataset.StructureSetROISequence[0].ROINumber = 5
    dataset.ROIContourSequence[0].ReferencedROINumber = 5


def square(k: float) -> list[tuple[float, float, float]]:
    """A contour around 12 x 14 pixels of the body."""
    return [position(k, *corner) for corner in ((8.5, 8.5), (20.5, 8.5), (20.5, 22.5), (8.5, 22.5))]


def nrrd(values: Any = ORGAN, **fields: Any) -> Make:
    """An NRRD label."""
    fields = {
        "space_directions": DIRECTIONS,
        "space_origin": "({},{},{})".format(*FIRST),
    } | fields
    return lambda source: void(write_nrrd(source / "labels" / "bad.nrrd", values, **fields))


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

    return damaged("images/bad.nii.gz", change, nifti())


# the table


def flagged(code: str, make: Make, **more: Any) -> Defect:
    """A scan that is kept with flags."""
    return Defect(code, make, **{"status": "kept", "hu": HU} | more)


def label(code: str, make: Make, **more: Any) -> Defect:
    """A label with a fault that stands in its image's row."""
    return Defect(code, both(series(), make), **{"layout": "labelled"} | more)


def flagged_label(code: str, make: Make, **more: Any) -> Defect:
    """A label that is kept with flags."""
    return flagged(code, both(series(), make), **{"layout": "labelled"} | more)


def image_file(code: str, make: Make, **more: Any) -> Defect:
    """A NIfTI image."""
    return Defect(code, make, **{"path": "images/bad.nii.gz", "layout": "nifti"} | more)


def other_file(code: str, name: str, make: Make, status: str = "dropped", **more: Any) -> Defect:
    """A file that belongs to no series."""
    return Defect(
        code, make, **{"status": status, "path": f"images/{name}", "kind": "other"} | more
    )


REPAIR = ("repair.gaps=resample", "repair.tilt=resample")
PIECES = ("checks.piece_share=0.6",)
ALONE = "bad/0.dcm"  # the first of files that make no volume
PDF = "1.2.840.10008.5.1.4.1.1.104.1"  # EncapsulatedPDFStorage
SCREEN_SHOT = {"SOPClassUID": SecondaryCaptureImageStorage, "ImagePositionPatient": None}

FILES = {
    "a slice whose pixels are cut off": Defect("truncated", third(lambda content: content[:-100])),
    "a slice without bytes": other_file("empty_file", "bad/3.dcm", third(lambda _: b""), "refused"),
    "the scan of a slice without bytes": Defect("missing_slice", third(lambda _: b"")),
    "a damaged slice that names its series": Defect(
        "damaged_slice", series(changed(7, Rows=None))
    ),
    "a text named .dcm beside the slices": flagged(
        "damaged_file", both(series(), written("images/bad/x.dcm", b"words"))
    ),
    "the text itself": other_file(
        "not_dicom", "bad/x.dcm", both(series(), written("images/bad/x.dcm", b"words")), "refused",
        beside=1,
    ),
    "notes beside the slices": other_file(
        "not_dicom", "bad/notes", both(series(), written("images/bad/notes", b"words")), beside=1
    ),
    "noise that begins as DICOM": other_file(
        "unreadable",
        "bad/3.dcm",
        third(lambda content: content[:132] + np.random.default_rng(3).bytes(3000)),
        "refused",
    ),
    "a copy of a slice": flagged(
        "duplicate_files", both(series(), copied("images/bad/5.dcm", "images/bad/5 (1).dcm"))
    ),
    "a copy of a slice in another folder": flagged(
        "duplicate_files", both(series(), moved("images/bad/x", "images/copy/5.dcm",
        copied("images/bad/5.dcm", "images/bad/x"))),
    ),
    "a series in two folders": flagged(
        "", moved("images/bad/7.dcm", "images/bad2/7.dcm", series()),
    ),
    "a table of contents": other_file("dicomdir", "DICOMDIR", both(series(), dicomdir), beside=1),
    "a document": other_file(
        "not_an_image", ALONE, series(changed(SOPClassUID=PDF, Modality="DOC", Rows=None,
        PixelData=None)),
    ),
    "a localizer": other_file(
        "localizer", ALONE, series(changed(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    ),
    "a survey as Philips stores it": other_file(
        "localizer", ALONE, series(changed(ImageType=["DERIVED", "REF_SURVIEW"], **SCREEN_SHOT)),
    ),
    "screen shots": other_file("secondary_capture", ALONE, series(changed(**SCREEN_SHOT))),
    "MR": Defect("not_ct", series(modality="MR")),
    "slices of two patients": Defect("mixed_patient", series(changed(3, PatientID="X"))),
    "a mask as a scan": Defect("looks_like_mask", mask(at="images/bad", modality="CT")),
}  # fmt: skip

GEOMETRY = {
    **{
        f"no {keyword}": Defect("no_geometry", series(changed(3, **{keyword: None})))
        for keyword in ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient")
    },
    "no number in a position": Defect(
        "no_geometry", third(lambda content: content.replace(b"-285.0", b"supine"))
    ),
    "pixels of negative size": Defect("no_geometry", series(changed(PixelSpacing=[3, -3.5]))),
    "axes not at right angles": Defect(
        "no_geometry", series(changed(3, ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]))
    ),
    "two frames of reference": Defect(
        "mixed_frame_of_reference", series(changed(3, FrameOfReferenceUID="1.2.3"))
    ),
    "two sizes": Defect("mixed_size", series(changed(3, Rows=35, PixelData=bytes(35 * 30 * 2)))),
    "two spacings": Defect("mixed_spacing", series(changed(3, PixelSpacing=[3.1, 3.5]))),
    "two orientations": Defect(
        "mixed_orientation",
        series(changed(3, ImageOrientationPatient=[f"{v:.4f}" for v in turned(5.72)])),
    ),
    "two phases": Defect("mixed_acquisitions", series(phases)),
    "a slice missing": Defect("missing_slice", series(**without(4))),
    "uneven gaps": Defect("uneven_gaps", series(positions=heights(0, 5, 10, 16, 20, 25, 30, 35))),
    "rounded positions": flagged("", series(positions=heights(*np.arange(8) * 5 + [0, 0.2] * 4))),
    "a tilted gantry": Defect("gantry_tilt", series(positions=tilted(3))),
    "a slice aside": Defect(
        "shifted_slice", series(changed(3, ImagePositionPatient=[-43, -52, -285]))
    ),
    "two slices at a position": Defect(
        "same_position", series(positions=heights(0, 5, 10, 10, 15, 20, 25, 30))
    ),
    "two slices": Defect("too_few_slices", series(pixels=HU.T[:2] + 1024)),
    "slices swapped": flagged(
        "slice_order", series(pixels=HU.T[SWAPPED] + 1024), hu=HU[..., SWAPPED]
    ),
}

PIXELS = {
    "no pixels": Defect("no_pixels", series(changed(3, PixelData=None))),
    "the claim of a gigabyte": Defect(
        "truncated", series(changed(3, Rows=8192, Columns=8192, NumberOfFrames=8))
    ),
    "the claim of more than any scanner": Defect(
        "too_large", series(changed(3, Rows=30000, Columns=30000))
    ),
    "bytes after the pixels": flagged(
        "", series(changed(3, PixelData=(HU.T[3] + 1024).astype("<i2").tobytes() + bytes(510)))
    ),
    "floating point": Defect("float_pixels", series(floating)),
    "a slope of 0": Defect("no_rescale", series(changed(3, RescaleSlope=0))),
    "an intercept out of range": Defect("no_rescale", series(changed(3, RescaleIntercept="-1e12"))),
    "colour": Defect("colour", series(changed(SamplesPerPixel=3, PlanarConfiguration=0))),
    "12 bits allocated": Defect("bad_pixels", series(changed(3, BitsAllocated=12))),
    **{
        f"damaged {uid.name}": Defect(
            "undecodable",
            damaged("images/bad/3.dcm", without_frame, series(compressed(uid), hu=WIDE)),
        )
        for uid in (JPEG2000Lossless, JPEGLSLossless, RLELossless)
    },
    **{
        f"{uid.name} of another size": Defect(
            "undecodable", series(compressed(uid, Rows=40), hu=WIDE)
        )
        for uid in (JPEG2000Lossless, RLELossless)
    },
    "more frames than descriptions": Defect("bad_frames", multi_frame(7)),
    "more frames than pixels": Defect("truncated", multi_frame(9, claimed=9)),
    "a negative number of frames": Defect("bad_frames", multi_frame(8, claimed=-1)),
}

SCANS = {
    "never rescaled": flagged("hu_not_applied", series(intercept=0.0), hu=HU + 1024),
    "rescaled twice": flagged("hu_implausible", series(intercept=-2048.0), hu=HU - 1024),
    "windowed": flagged("hu_windowed", series(hu=HU.clip(-160, 240)), hu=HU.clip(-160, 240)),
    "an iodine map": flagged("rescale_type", series(changed(RescaleType="MGML"))),
    "a scan of two patients": flagged(
        "duplicate_pixels", both(series(), series(at="images/too", patient_id="OTHER")), beside=1
    ),
    "a study of two names": flagged(
        "two_names",
        both(
            series(changed(StudyInstanceUID="1.2.3")),
            series(changed(StudyInstanceUID="1.2.3"), at="images/too", patient_id="X", hu=body(3)),
        ),
        beside=1,
    ),
    "a spacing unlike that of others": flagged(
        "spacing_outlier",
        both(
            series(pixel_spacing=(9.0, 3.5)),
            *(series(at=f"images/{n}", patient_id=f"{n}", hu=body(n)) for n in (3, 4, 5)),
        ),
        hu=None,
        beside=3,
    ),
    "a gap that is repaired": flagged(
        "repaired",
        series(**without(4)),
        hu=np.insert(np.delete(HU, 4, 2), 4, np.rint(HU[..., 3] / 2 + HU[..., 5] / 2), 2),
        arguments=REPAIR,
    ),
    "a tilt that is repaired": flagged(
        "repaired", series(positions=tilted(3)), hu=straight(HU), arguments=REPAIR
    ),
    "a gap too wide to be repaired": Defect(
        "missing_slice",
        series(positions=heights(0, 5, 10, 35, 40, 45, 50, 55)),
        arguments=REPAIR,
    ),
    "a copy where copies are refused": Defect(
        "duplicate_pixels",
        both(series(), series(at="images/too", patient_id="OTHER")),
        path="images/too",
        arguments=("checks.refuse=[duplicate_pixels]",),
        beside=1,
    ),
}

LABELS = {
    "a label half a voxel aside": label("label_shifted", mask(first=position(0, 0.5))),
    "a label with a wrong sign": label(
        "label_flipped",
        mask(orientation=(1, 0, 0, 0, -1, 0), positions=heights(*GAP_MM * np.arange(8))),
    ),
    "a label in LPS written as RAS": label(
        "label_flipped", nifti(ORGAN, np.diag([-1, -1, 1, 1]) @ AFFINE, at="labels/bad.nii.gz")
    ),
    "a label of another size": label("label_size", mask(ORGAN[1:])),
    "a label of another spacing": label("label_spacing", mask(pixel_spacing=(3.0, 3.6))),
    "a label of another direction": label("label_direction", mask(orientation=turned(2))),
    "a label with the intercept of its CT": label("no_background", mask(intercept=-1024.0)),
    "a label that lacks a slice": label(
        "missing_slice", mask(**without(4) | {"pixels": np.delete(ORGAN.T, 4, axis=0)})
    ),
    "a label of another patient": label("other_patient", mask(patient_id="Q-2")),
    "a label cut off": label(
        "truncated", damaged("labels/bad/3.dcm", lambda content: content[:-100], mask())
    ),
    "a NIfTI label with NaN": label(
        "not_finite", nifti(np.where(ORGAN, np.nan, 0), at="labels/bad.nii.gz")
    ),
    "no label": Defect("no_label", series(), layout="labelled"),
    "two labels": label("ambiguous_label", both(mask(at="labels/bad/a"), mask(at="labels/bad/b"))),
    "no image": Defect("no_image", mask(), path="labels/bad", kind="label", layout="labelled"),
    "two images": Defect(
        "ambiguous_label",
        both(series(), series(at="images/too"), mask(at="labels/other")),
        path="labels/other",
        kind="label",
        layout="labelled",
    ),
    "an image beside that of the label": Defect(
        "other_series",
        both(series(), series(at="images/too"), mask()),
        status="dropped",
        path="images/too",
        layout="labelled",
        beside=1,
    ),
    "a label among the images": Defect(
        "label_among_images",
        both(series(), seg(at="images/seg.dcm")),
        status="dropped",
        path="images/seg.dcm",
        kind="label",
        beside=1,
    ),
    "an empty label": flagged_label("label_empty", mask(0 * ORGAN)),
    "an empty label where they are refused": label(
        "label_empty", mask(0 * ORGAN), arguments=("checks.refuse=[label_empty]",)
    ),
    "a label of two values": flagged_label("label_values", mask(ORGAN + HALF)),
    "a chosen value of two": flagged_label("", mask(ORGAN + HALF), arguments=("labels=[1,2]",)),
    "a label in air": flagged_label(
        "label_outside_body", mask(block(slice(0, 3), slice(0, 36), slice(2, 6)))
    ),
    "a label too small": flagged_label(
        "label_volume", mask(block(slice(11, 13), slice(13, 18), slice(2, 7)))
    ),
    "a label too large": flagged_label(
        "label_volume",
        mask(block(slice(6, 24), slice(7, 29), slice(1, 7))),
        arguments=("checks.volume_ml=[15, 100]",),
    ),
    "a label in two pieces": flagged_label(
        "label_pieces", mask(ORGAN | block(slice(21, 23), slice(13, 23), slice(2, 7)))
    ),
    "a label on the first slice": flagged_label("label_cut", mask(np.roll(ORGAN, -2, axis=2))),
    "a label that lacks slices": flagged_label(
        "label_gaps", mask(ORGAN * (np.arange(8) != 4)), arguments=PIECES
    ),
    "a SEG without the segment": label(
        "no_such_segment",
        seg(organ_frame(3, segment=2), segments={2: LIVER}),
        arguments=("labels=[1]",),
    ),
    "a SEG of two segments": label("ambiguous_segment", seg(segments={1: LIVER, 2: PANCREAS})),
    "a SEG of no segments": label(
        "bad_segments", seg(damage=lambda dataset: setattr(dataset, "SegmentSequence", []))
    ),
    "a SEG beside the pixels": label("label_off_grid", seg(organ_frame(3, column=0.5))),
    "a SEG between slices": label("label_off_grid", seg(organ_frame(3.5))),
    "a SEG cut off": label(
        "truncated", damaged("labels/bad.dcm", lambda content: content[:-101], seg())
    ),
    "an RTSTRUCT without the ROI": label(
        "no_such_roi",
        rtstruct({"LIVER": [square(3)]}, damage=renumber),
        arguments=("labels=[1]",),
    ),
    "an RTSTRUCT of two ROIs": label(
        "ambiguous_roi", rtstruct({"A": [square(3)], "B": [square(3)]})
    ),
    "an RTSTRUCT of no ROIs": label("no_rois", rtstruct({})),
    "a contour off the slices": label("contour_off_slice", rtstruct({"A": [square(3.5)]})),
    "a contour across slices": label(
        "contour_off_slice", rtstruct({"A": [[*square(3)[:2], *square(5)[2:]]]})
    ),
    "a contour of 11 numbers": label("bad_contour", rtstruct({"A": [np.ravel(square(3))[:11]]})),
    "contours missing between others": flagged_label(
        "label_gaps contour_gaps", rtstruct({"A": [square(1), square(4)]}), arguments=PIECES
    ),
    "a contour without a type": flagged_label(
        "contour_type_assumed", rtstruct({"A": [square(k) for k in (2, 3, 4)]}, geometry="")
    ),
    "an NRRD whose voxels are elsewhere": label("detached_data", nrrd(data_file="bad.raw")),
    "an NRRD without space": label("no_affine", nrrd(space=None)),
    "an NRRD cut off": label("truncated", nrrd(content=gzip.compress(bytes(100)))),
    "an NRRD that is text": label(
        "unreadable", both(nrrd(), written("labels/bad.nrrd", b"words\n\n"))
    ),
    "an NRRD of terabytes": label("too_large", nrrd(sizes="99999 99999 99999")),
    "an NRRD of unnamed layers": label("not_a_volume", nrrd(LAYERS, **LAYERED)),
    "an NRRD segment in no layer": label(
        "bad_segments", nrrd(LAYERS, **LAYERED, Segment0_Name="Liver", Segment0_Layer="7")
    ),
}

IMAGE_FILES = {
    "a NIfTI without position": image_file("no_affine", nifti(affine=None)),
    "a sheared NIfTI": image_file("bad_affine", with_header(280, [-3.5, 1, 0, 50], "<f4")),
    "a qform of another grid": flagged(
        "sform_qform",
        with_header(252, [1, 2, *6 * [0]], "<i2"),
        path="images/bad.nii.gz",
        layout="nifti",
    ),
    "a NIfTI with NaN": image_file("not_finite", nifti(np.where(HU.max() == HU, np.nan, HU))),
    "a NIfTI of four axes": image_file("not_a_volume", nifti(np.stack([HU] * 2, 3))),
    "a NIfTI of colours": image_file("not_a_volume", nifti(np.zeros(SHAPE, RGB))),
    "a NIfTI cut off": image_file(
        "truncated", damaged("images/bad.nii.gz", lambda content: content[:-3000], nifti())
    ),
    "a NIfTI that is text": image_file(
        "unreadable", damaged("images/bad.nii.gz", lambda _: b"words", nifti())
    ),
    "a NIfTI of terabytes": image_file("too_large", with_header(42, 3 * [32767], "<i2")),
    "a NIfTI that claims too much": image_file("truncated", with_header(46, [2000], "<i2")),
    "a NIfTI of a huge slope": image_file("bad_rescale", with_header(112, [1e9, 0], "<f4")),
    "a resource fork": other_file(
        "resource_fork",
        "._bad.nii.gz",
        both(nifti(), written("images/._bad.nii.gz", b"fork")),
        layout="nifti",
        beside=1,
    ),
    "MetaImage": image_file(
        "unread_format", written("images/bad.mha", b"ObjectType = Image"), path="images/bad.mha"
    ),
    "two NIfTI of a name": image_file("ambiguous_image", both(nifti(), nifti(at="images/bad.nii"))),
}

DEFECTS = FILES | GEOMETRY | PIXELS | SCANS | LABELS | IMAGE_FILES


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good case as DICOM with a mask series, and as NIfTI."""
    folder = tmp_path_factory.mktemp("good")
    series(at="images/good", hu=GOOD_HU, patient_id=GOOD)(folder / "dicom")
    mask(at="labels/good", patient_id=GOOD)(folder / "dicom")
    nifti(GOOD_HU, at="images/good.nii.gz")(folder / "nifti")
    return folder


def row_of(rows: list[dict[str, str]], path: Path, kind: str) -> dict[str, str]:
    (row,) = [row for row in rows if (row["path"], row["kind"]) == (str(path), kind)]
    return row


def assert_holds(root: Path, row: dict[str, str], role: str, voxels: np.ndarray) -> None:
    """Voxel for voxel, and in place."""
    image = nib.load(root / "cases" / f"{row['case']}_{role}.nii.gz")
    np.testing.assert_array_equal(image.dataobj, voxels)
    np.testing.assert_allclose(image.affine, AFFINE, atol=0.2)  # half of what "rounded" moves


def test_the_table_has_every_flag_that_a_single_scan_or_label_can_have() -> None:
    codes = {code for defect in DEFECTS.values() for code in defect.code.split()}
    elsewhere = {"unlabelled", "phantom", "label_placed_by_axes", "ignore_label"}  # other sources
    assert set(FLAGS) - codes == elsewhere


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_has_its_row_and_the_good_case_beside_it_is_unharmed(
    name: str, good: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pancseg.intake.convert.draw_contact_sheet", lambda *_: None)  # slow
    defect, source, root = DEFECTS[name], tmp_path / "source", tmp_path / "root"
    kind = "nifti" if defect.layout == "nifti" else "dicom"
    shutil.copytree(good / kind, source, copy_function=os.link)
    defect.make(source)
    labels = source / "labels" if defect.layout == "labelled" else "null"
    paths = [f"source={kind}", f"source.images={source / 'images'}", f"source.labels={labels}"]
    settings = [f"data.root={root}", "data.depth=4", "privacy=none"]
    ended = command("prepare", *paths, *settings, *defect.arguments)

    with (root / "intake.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    row = row_of(rows, source / defect.path, defect.kind)
    assert row["status"] == defect.status, row["reason"]
    own_flags = row["flags"].replace("unlabelled", "").strip()
    assert (row["reason"].partition(":")[0] or own_flags) == defect.code, row
    assert ended.code == any(other["status"] == "refused" for other in rows)
    if defect.hu is not None:
        assert_holds(root, row, "image", defect.hu)

    ending = ".nii.gz" if defect.layout == "nifti" else ""
    good_row = row_of(rows, source / "images" / f"good{ending}", "image")
    assert (good_row["status"], good_row["flags"].replace("unlabelled", "")) == ("kept", "")
    assert_holds(root, good_row, "image", GOOD_HU)
    if defect.layout == "labelled":
        assert_holds(root, good_row, "label", ORGAN)
    kept = 1 + defect.beside + (defect.status == "kept")
    assert len(json.loads((root / "manifest.json").read_text())["cases"]) == kept
    assert len(list((root / "cases").glob("*_image.nii.gz"))) == kept
