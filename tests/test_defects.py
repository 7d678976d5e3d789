"""Each defect of a scan or label has its row or flag, and a good case beside it is unharmed.

All defects of a layout lie in one source, a patient each, and are prepared at once.
"""

import csv
import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import MediaStorageDirectoryStorage

from pancseg.intake.checks import FLAGS
from tests.conftest import run_command
from tests.tiny_dicom import decimals, write_series
from tests.tiny_labels import (
    LIVER,
    PANCREAS,
    Frame,
    bare,
    write_contours,
    write_nrrd,
    write_segmentation,
)

SHAPE = (30, 36, 8)  # columns, rows, slices: enough pixels to judge HU and the order of slices by
SPACING = (3.0, 3.5)  # from row to row, from column to column, mm
GAP_MM = 5.0
SLICE = "images/{}/3.dcm"
FIRST = (-50.0, -52.0, -300.0)  # LPS mm
AFFINE = np.array([[-3.5, 0, 0, 50], [0, -3, 0, 52], [0, 0, 5, -300], [0, 0, 0, 1]])  # RAS
DIRECTIONS = "(3.5,0,0) (0,3,0) (0,0,5)"  # as NRRD writes them
SWAPPED = [0, 1, 2, 4, 3, 5, 6, 7]  # order of slices
REPAIR = ("repair.gaps=resample", "repair.tilt=resample")
CHOICE = ("labels=[1,2]", "checks.piece_share=0.6", "checks.refuse=[label_empty]")
# writes a case of a name into a source; HU (columns, rows, slices)
Make = Callable[[Path, str, np.ndarray], object]
Change = Callable[[list[Dataset]], None]
Bytes = Callable[[bytes], bytes]


class Defect(NamedTuple):
    """A row: reason code, or status and code or flags; how it is made; its path; the case's HU."""

    expected: str
    make: Make
    path: str = "images/{}"
    hu: Callable[[np.ndarray], np.ndarray] | None = None


def body(seed: int) -> np.ndarray:
    """HU of air around fat around muscle, whose contrast grows to the head, with noise."""
    x, y, z = np.indices(SHAPE)
    radius = np.hypot((x - 14.5) / 14, (y - 17.5) / 17)
    hu = np.where(radius < 1, -100, -1000)
    hu[radius < 0.85] = 50
    hu[(radius < 0.85) & (x < 8 + z)] = 240
    hu[13:16, 27:30] = 1200
    return (hu + np.random.default_rng(seed).normal(0, 10, SHAPE)).astype(np.int16)


def block(*ranges: tuple[int, int]) -> np.ndarray:
    """A mask that is 1 in a block of columns, rows and slices."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[tuple(slice(*limits) for limits in ranges)] = 1
    return mask


ORGAN = block((11, 19), (13, 23), (2, 7))  # 21 ml
HALF = block((11, 19), (13, 18), (2, 7))


# making


def series(damage: Change | None = None, *, at: str = "images/{}", **options: Any) -> Make:
    """A series at a path below the source."""

    def make(source: Path, name: str, hu: np.ndarray) -> None:
        pixels = options.get("pixels", lambda hu: hu.T.astype(int) + 1024)
        values: dict[str, Any] = {
            "intercept": -1024.0, "first": FIRST, "gap_mm": GAP_MM, "pixel_spacing": SPACING,
            "patient_id": name,
        } | options | {"pixels": pixels(hu)}  # fmt: skip
        names = [f"{n}.dcm" for n in range(len(values.get("positions", values["pixels"])))]
        write_series(source / at.format(name), damage=damage, names=names, **values)

    return make


def mask(values: Any = ORGAN, *, at: str = "labels/{}", **options: Any) -> Make:
    """A mask series at a path below the source."""
    own = {"pixels": lambda _: np.asarray(values).T, "intercept": 0.0, "modality": "OT"}
    return series(at=at, **own | options)


def both(*makes: Make) -> Make:
    """Several, one after the other."""
    return lambda *given: [make(*given) for make in makes]


def damaged(path: str, change: Bytes, make: Make) -> Make:
    """Something, with the bytes of a file changed."""

    def made(source: Path, name: str, hu: np.ndarray) -> None:
        make(source, name, hu)
        file = source / path.format(name)
        file.write_bytes(change(file.read_bytes()))

    return made


def third(change: Bytes, make: Make | None = None) -> Make:
    """A series whose slice 3 is damaged on disk."""
    return damaged(SLICE, change, make or series())


def written(path: str, content: bytes = b"words") -> Make:
    """A file at a path below the source."""
    return lambda source, name, _: (source / path.format(name)).write_bytes(content)


def copied(old: str, new: str) -> Make:
    """A copy of a file."""

    def make(source: Path, name: str, _: np.ndarray) -> None:
        target = source / new.format(name)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(source / old.format(name), target)

    return make


def dicomdir(source: Path, name: str, _: np.ndarray) -> None:
    dataset = bare(MediaStorageDirectoryStorage, "")
    dataset.save_as(source / "images" / name / "DICOMDIR", enforce_file_format=True)


def changed(*which: int, **values: Any) -> Change:
    """Set attributes of some slices, or of all; None removes them."""

    def change(slices: list[Dataset]) -> None:
        for dataset in [slices[n] for n in which] or slices:
            for keyword, value in values.items():
                delattr(dataset, keyword) if value is None else setattr(dataset, keyword, value)

    return change


def without(n: int, values: Any = None) -> dict[str, Any]:
    """Options of a series that lacks slice n."""
    places = np.delete(heights(*GAP_MM * np.arange(SHAPE[2])), n, axis=0)
    kept = [k for k in range(SHAPE[2]) if k != n]
    return {
        "positions": places,
        "pixels": lambda hu: hu.T[kept] + 1024 if values is None else values.T[kept],
    }


def heights(*values: float) -> np.ndarray:
    """Positions of slices at these heights above the first."""
    return np.array([(*FIRST[:2], FIRST[2] + value) for value in values])


def turned(degrees: float) -> list[str]:
    """Directions of rows and columns, turned within the slice."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return decimals(np.round((cos, sin, 0, -sin, cos, 0), 4))


def phases(slices: list[Dataset]) -> None:
    """Two acquisitions whose slices alternate."""
    for n, dataset in enumerate(slices):
        dataset.AcquisitionNumber = n % 2 + 1


def straight(hu: np.ndarray) -> np.ndarray:
    """The volume of a scan whose slices move a row to the back from each to the next."""
    columns, rows, slices = hu.shape
    wide = np.full((columns, rows + slices - 1, slices), -1024, hu.dtype)
    for k in range(slices):
        wide[:, k : k + rows, k] = hu[..., k]
    return wide


def interpolated(hu: np.ndarray) -> np.ndarray:
    """With slice 4 between its neighbours."""
    middle = np.rint(hu[..., 3] / 2 + hu[..., 5] / 2)
    return np.insert(np.delete(hu, 4, 2), 4, middle, 2)


def position(k: float, column: float = 0, row: float = 0) -> tuple[float, float, float]:
    """Position of a pixel, LPS mm."""
    return FIRST[0] + column * SPACING[1], FIRST[1] + row * SPACING[0], FIRST[2] + k * GAP_MM


def organ_frame(k: float = 3, column: float = 0, segment: int = 1) -> Frame:
    """The organ on a slice, as a frame of a SEG."""
    return Frame(ORGAN[..., 3].T, position(k, column), segment)


def of_patient(name: str, damage: Callable[[Dataset], None] | None) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        dataset.PatientID = name
        if damage:
            damage(dataset)

    return change


def seg(*frames: Frame, at: str = "labels/{}.dcm", damage: Any = None, **options: Any) -> Make:
    """A SEG."""
    return lambda source, name, _: write_segmentation(
        source / at.format(name), frames or (organ_frame(),), pixel_spacing=SPACING,
        damage=of_patient(name, damage), **options,
    )  # fmt: skip


def rtstruct(contours: dict[str, list[Any]], damage: Any = None, **options: Any) -> Make:
    """An RTSTRUCT."""
    return lambda source, name, _: write_contours(
        source / "labels" / f"{name}.dcm", contours, damage=of_patient(name, damage), **options
    )


def renumber(dataset: Dataset) -> None:
    """Set the number of the only ROI to 5."""
    dataset.StructureSetROISequence[0].ROINumber = 5
    dataset.ROIContourSequence[0].ReferencedROINumber = 5


def square(k: float) -> list[tuple[float, float, float]]:
    """A contour around 12 x 14 pixels of the body."""
    return [position(k, *corner) for corner in ((8.5, 8.5), (20.5, 8.5), (20.5, 22.5), (8.5, 22.5))]


def nrrd(values: Any = ORGAN, **fields: Any) -> Make:
    """An NRRD label."""
    own = {"space_directions": DIRECTIONS, "space_origin": "({},{},{})".format(*FIRST)}
    return lambda source, name, _: write_nrrd(
        source / "labels" / f"{name}.nrrd", values, **own | fields
    )


def nifti(
    change: Callable[[np.ndarray], Any] = lambda hu: hu,
    affine: np.ndarray | None = AFFINE,
    at: str = "images/{}.nii.gz",
) -> Make:
    """A NIfTI file at a path below the source."""
    return lambda source, name, hu: nib.save(
        nib.Nifti1Image(change(hu), affine), source / at.format(name)
    )


def with_header(start: int, values: Any, kind: str) -> Make:
    """A NIfTI file with other values in its header."""

    def change(content: bytes) -> bytes:
        plain, new = bytearray(gzip.decompress(content)), np.array(values, kind).tobytes()
        plain[start : start + len(new)] = new
        return gzip.compress(bytes(plain))

    return damaged("images/{}.nii.gz", change, nifti())


def label(make: Make, image: Make | None = None) -> Make:
    """A label, beside its image."""
    return both(image or series(), make)


# the tables

IMAGE, SECOND, TEXT = "images/{}", "images/{}2", "images/{}/x.dcm"
PDF = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1", "Rows": None, "PixelData": None}
LOCALIZER = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
ALONE = "images/{}/0.dcm"  # the first of files that make no volume
TILTED = np.array(FIRST) + np.arange(SHAPE[2])[:, None] * [0, 3, GAP_MM]
SWAP, WINDOWED = (lambda hu: hu[..., SWAPPED]), (lambda hu: hu.clip(-160, 240))
UP, DOWN, OTHER = (lambda hu: hu + 1024), (lambda hu: hu - 1024), (lambda _: body(99).T + 1024)
MIRROR = np.diag([-1, -1, 1, 1])
FLIPPED = {"orientation": (1, 0, 0, 0, -1, 0), "positions": heights(*GAP_MM * np.arange(8))}
STUDY = changed(StudyInstanceUID="1.2.3")

IMAGES = {
    "pixels cut off": ("truncated", third(lambda content: content[:-100])),
    "slice empty": ("empty_file", third(lambda _: b""), SLICE),
    "slice lost": ("missing_slice", third(lambda _: b"")),
    "slice damaged": ("damaged_slice", series(changed(7, Rows=None))),
    "text beside": ("kept damaged_file", both(series(), written(TEXT))),
    "text": ("not_dicom", both(series(), written(TEXT)), TEXT),
    "notes": ("dropped not_dicom", both(series(), written("images/{}/x")), "images/{}/x"),
    "copy": ("kept duplicate_files", both(series(), copied(SLICE, TEXT))),
    "contents": ("dropped dicomdir", both(series(), dicomdir), "images/{}/DICOMDIR"),
    "document": ("dropped not_an_image", series(changed(Modality="DOC", **PDF)), ALONE),
    "localizer": ("dropped localizer", series(changed(**LOCALIZER)), ALONE),
    "MR": ("not_ct", series(modality="MR")),
    "two patients": ("mixed_patient", series(changed(3, PatientID="X"))),
    "mask": ("looks_like_mask", mask(at="images/{}", modality="CT")),
    "SEG": ("dropped label_among_images", both(series(), seg(at="images/{}.dcm")), "images/{}.dcm"),
    "no position": ("no_geometry", series(changed(3, ImagePositionPatient=None))),
    "two sizes": ("mixed_size", series(changed(3, Rows=35, PixelData=bytes(35 * 30 * 2)))),
    "two phases": ("mixed_acquisitions", series(phases)),
    "gap": ("missing_slice", series(**without(4))),
    "uneven": ("uneven_gaps", series(positions=heights(0, 5, 10, 16, 20, 25, 30, 35))),
    "rounded": ("kept", series(positions=heights(*np.arange(8) * 5 + [0, 0.2] * 4))),
    "tilt": ("gantry_tilt", series(positions=TILTED)),
    "swapped": ("kept slice_order", series(pixels=lambda hu: SWAP(hu).T + 1024), IMAGE, SWAP),
    "no pixels": ("no_pixels", series(changed(3, PixelData=None))),
    "a gigabyte": ("truncated", series(changed(3, Rows=8192, Columns=8192, NumberOfFrames=8))),
    "rescaled twice": ("kept hu_implausible", series(intercept=-2048.0), IMAGE, DOWN),
    "never rescaled": ("kept hu_not_applied", series(intercept=0.0), IMAGE, UP),
    "windowed": (
        "kept hu_windowed",
        series(pixels=lambda hu: WINDOWED(hu).T + 1024),
        IMAGE,
        WINDOWED,
    ),
    "iodine": ("kept rescale_type", series(changed(RescaleType="MGML"))),
    "twice": ("kept duplicate_pixels", both(series(), series(at=SECOND, patient_id="X"))),
    "two names": (
        "kept two_names",
        both(series(STUDY), series(STUDY, at=SECOND, patient_id="Y", pixels=OTHER)),
    ),
    "spacing": ("kept spacing_outlier", series(pixel_spacing=(9.0, 3.5))),
}

REPAIRED = {
    "gap": ("kept repaired", series(**without(4)), IMAGE, interpolated),
    "tilt": ("kept repaired", series(positions=TILTED), IMAGE, straight),
    "wide": ("missing_slice", series(positions=heights(0, 5, 10, 35, 40, 45, 50, 55))),
}

LABELLED = {
    "aside": ("label_shifted", label(mask(first=position(0, 0.5)))),
    "sign": ("label_flipped", label(mask(**FLIPPED))),
    "LPS": ("label_flipped", label(nifti(lambda _: ORGAN, MIRROR @ AFFINE, "labels/{}.nii.gz"))),
    "direction": ("label_direction", label(mask(orientation=np.float64(turned(2))))),
    "intercept": ("no_background", label(mask(intercept=-1024.0))),
    "slice": ("missing_slice", label(mask(**without(4, ORGAN)))),
    "patient": ("other_patient", label(mask(patient_id="Q-2"))),
    "NaN": ("not_finite", label(nifti(lambda _: ORGAN * np.nan, at="labels/{}.nii.gz"))),
    "none": ("no_label", series()),
    "two": ("ambiguous_label", label(both(mask(at="labels/{}/a"), mask(at="labels/{}/b")))),
    "no image": ("no_image", mask(), "labels/{}"),
    "two images": (
        "ambiguous_label",
        both(series(), series(at=SECOND), mask(at="labels/{}3")),
        "labels/{}3",
    ),
    "other image": ("dropped other_series", both(series(), series(at=SECOND), mask()), SECOND),
    "values": ("kept label_values", label(mask(ORGAN + HALF))),
    "empty": ("kept label_empty", label(mask(0 * ORGAN))),
    "air": ("kept label_outside_body", label(mask(block((0, 3), (0, 36), (2, 6))))),
    "small": ("kept label_volume", label(mask(block((11, 13), (13, 18), (2, 7))))),
    "pieces": ("kept label_pieces", label(mask(ORGAN | block((21, 23), (13, 23), (2, 7))))),
    "cut": ("kept label_cut", label(mask(np.roll(ORGAN, -2, axis=2)))),
    "two segments": ("ambiguous_segment", label(seg(segments={1: LIVER, 2: PANCREAS}))),
    "beside": ("label_off_grid", label(seg(organ_frame(3, column=0.5)))),
    "between": ("label_off_grid", label(seg(organ_frame(3.5)))),
    "two ROIs": ("ambiguous_roi", label(rtstruct({"A": [square(3)], "B": [square(3)]}))),
    "no ROIs": ("no_rois", label(rtstruct({}))),
    "off slices": ("contour_off_slice", label(rtstruct({"A": [square(3.5)]}))),
    "no type": (
        "kept contour_type_assumed",
        label(rtstruct({"A": [*map(square, (2, 3, 4))]}, geometry="")),
    ),
    "elsewhere": ("detached_data", label(nrrd(data_file="bad.raw"))),
}

CHOSEN = {
    "values": ("kept", label(mask(ORGAN + HALF))),
    "empty": ("label_empty", label(mask(0 * ORGAN))),
    "gaps": ("kept label_gaps", label(mask(ORGAN * (np.arange(8) != 4)))),
    "contours": ("kept label_gaps contour_gaps", label(rtstruct({"A": [square(1), square(4)]}))),
    "segment": ("no_such_segment", label(seg(organ_frame(segment=3), segments={3: LIVER}))),
    "ROI": ("no_such_roi", label(rtstruct({"A": [square(3)]}, damage=renumber))),
}

NIFTI = {
    "no position": ("no_affine", nifti(affine=None)),
    "qform": ("kept sform_qform", with_header(252, [1, 2, *6 * [0]], "<i2")),
    "NaN": ("not_finite", nifti(lambda hu: np.where(hu == hu.max(), np.nan, hu))),
    "terabytes": ("too_large", with_header(42, 3 * [32767], "<i2")),
    "fork": ("dropped resource_fork", written("images/._{}.nii.gz"), "images/._{}.nii.gz"),
    "MetaImage": ("unread_format", written("images/{}.mha"), "images/{}.mha"),
    "two": ("ambiguous_image", both(nifti(), nifti(at="images/{}.nii"))),
}

Table = dict[str, tuple[Any, ...]]
RUNS: dict[str, tuple[Table, tuple[str, ...]]] = {
    "images": (IMAGES, ("source.labels=null",)),
    "repaired": (REPAIRED, ("source.labels=null", *REPAIR)),
    "labelled": (LABELLED, ()),
    "chosen": (CHOSEN, CHOICE),
    "nifti": (NIFTI, ("source=nifti", "source.labels=null")),
}


@pytest.fixture(scope="module")
def prepared_runs(tmp_path_factory):
    """A folder for each run with ``source`` and ``root``."""
    folders = {}
    for run, (defects, words) in RUNS.items():
        folders[run] = folder = tmp_path_factory.mktemp(run)
        source = folder / "source"
        (source / "images").mkdir(parents=True)
        (source / "labels").mkdir()
        good = ("kept", nifti() if run == "nifti" else label(mask()))
        for n, (name, row) in enumerate({**defects, "good": good}.items()):
            row[1](source, name, body(n))
        paths = [f"source.{role}={source / role}" for role in ("images", "labels")]
        settings = [f"data.root={folder / 'root'}", "data.depth=4", "privacy=none"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pancseg.intake.convert.draw_contact_sheet", lambda *_: None)
            assert run_command("prepare", *paths, *settings, *words) == 1
    return folders


def check_case(folder: Path, row: dict[str, str], role: str, voxels: np.ndarray) -> None:
    """Voxel for voxel, and in place."""
    image = nib.load(folder / "root" / "cases" / f"{row['case']}_{role}.nii.gz")
    np.testing.assert_array_equal(image.dataobj, voxels)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # damaged values make it warn
@pytest.mark.parametrize(
    ("run", "name"), [(run, name) for run, (defects, _) in RUNS.items() for name in [*defects, ""]]
)
def test_a_defect_has_its_row_and_good_cases_are_unharmed(run, name, prepared_runs):
    folder, defects = prepared_runs[run], RUNS[run][0]
    defect = Defect(*defects.get(name, ("kept", series())))
    ending = ".nii.gz" * (run == "nifti" and "." not in defect.path)
    path = folder / "source" / (defect.path.format(name or "good") + ending)
    with (folder / "root" / "intake.csv").open(newline="") as table:
        [row] = [row for row in csv.DictReader(table) if row["path"] == str(path)]
    flags = row["flags"].replace("unlabelled", "").split()
    code = row["reason"].partition(":")[0]
    status = row["status"].replace("refused", "")
    assert " ".join([status, *([code] if code else flags)]).strip() == defect.expected, row
    if (row["status"] == "kept" and "repaired" not in flags) or defect.hu:
        hu = body([*defects, ""].index(name))
        check_case(folder, row, "image", defect.hu(hu) if defect.hu else hu)
    if not name and run in ("labelled", "chosen"):
        check_case(folder, row, "label", ORGAN)


def test_the_tables_have_every_flag_that_a_single_scan_or_label_can_have():
    expected = [row[0] for defects, _ in RUNS.values() for row in defects.values()]
    codes = {code for text in expected for code in text.split()}
    elsewhere = {"unlabelled", "phantom", "label_placed_by_axes", "ignore_label"}  # other sources
    assert set(FLAGS) - codes == elsewhere
