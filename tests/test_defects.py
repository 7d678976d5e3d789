"""Each defect of a scan or label has its row or flag, and a good case beside it is unharmed.

All defects of a layout lie in one source, a patient each, and are prepared at once.
"""

import csv
import shutil

import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import MediaStorageDirectoryStorage

from tests.conftest import run_command
from tests.tiny_dicom import decimals, put, write_series
from tests.tiny_labels import (
    LIVER,
    PANCREAS,
    Frame,
    bare,
    write_contours,
    write_segmentation,
)

SHAPE = (30, 36, 8)  # columns, rows, slices: enough pixels to judge HU and the order of slices by
SPACING, GAP_MM = (3.0, 3.5), 5.0  # from row to row, from column to column, between slices
FIRST = (-50.0, -52.0, -300.0)  # LPS mm
AFFINE = np.array([[-3.5, 0, 0, 50], [0, -3, 0, 52], [0, 0, 5, -300], [0, 0, 0, 1]])  # RAS
SWAPPED = [0, 1, 2, 4, 3, 5, 6, 7]  # order of slices
REPAIR = ("repair.gaps=resample", "repair.tilt=resample")
CHOICE = ("labels=[1,2]", "checks.piece_share=0.6", "checks.refuse=[label_empty]")


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


# functions that return make(source, name, hu), which writes a case into a source folder


def series(damage=None, *, at="images/{}", pixels=lambda hu: hu.T.astype(int) + 1024, **options):
    def make(source, name, hu):
        own = {"intercept": -1024.0, "first": FIRST, "gap_mm": GAP_MM, "pixel_spacing": SPACING}
        values = {**own, "patient_id": name, **options, "pixels": pixels(hu)}
        names = [f"{n}.dcm" for n in range(len(values.get("positions", values["pixels"])))]
        write_series(source / at.format(name), damage=damage, names=names, **values)

    return make


def mask(values=ORGAN, *, at="labels/{}", **options):
    own = {"pixels": lambda _: np.asarray(values).T, "intercept": 0.0, "modality": "OT"}
    return series(at=at, **own | options)


def both(*makes):
    return lambda *given: [make(*given) for make in makes]


def label(make):
    """A label, beside its image."""
    return both(series(), make)


def written(path, content=lambda _: b"words", make=None):
    """A file whose content is a function of its old bytes."""

    def made(source, name, hu):
        if make:
            make(source, name, hu)
        file = source / path.format(name)
        file.write_bytes(content(file.read_bytes() if make else b""))

    return made


def third(change):
    """A series whose slice 3 is damaged on disk."""
    return written(SLICE, change, series())


def copied(old, new):
    return lambda source, name, _: shutil.copy(source / old.format(name), source / new.format(name))


def dicomdir(source, name, _):
    dataset = bare(MediaStorageDirectoryStorage, "")
    dataset.save_as(source / "images" / name / "DICOMDIR", enforce_file_format=True)


def nifti(change=lambda hu: hu, affine=AFFINE, at="images/{}.nii.gz", qform=None):
    def make(source, name, hu):
        image = nib.Nifti1Image(change(hu), affine)
        if qform is not None:
            image.set_qform(qform, code=1)
        nib.save(image, source / at.format(name))

    return make


def of_patient(name):
    return lambda dataset: setattr(dataset, "PatientID", name)


def seg(*frames, at="labels/{}.dcm", **options):
    return lambda source, name, _: write_segmentation(
        source / at.format(name), frames or (organ_frame(),), pixel_spacing=SPACING,
        damage=of_patient(name), **options,
    )  # fmt: skip


def rtstruct(contours, **options):
    return lambda source, name, _: write_contours(
        source / "labels" / f"{name}.dcm", contours, damage=of_patient(name), **options
    )


def heights(*values):
    """Positions of slices at these heights above the first."""
    return np.array([(*FIRST[:2], FIRST[2] + value) for value in values])


def phases(slices):
    """Two acquisitions whose slices alternate."""
    for n, dataset in enumerate(slices):
        dataset.AcquisitionNumber = n % 2 + 1


def position(k, column=0.0, row=0.0):
    """Position of a pixel, LPS mm."""
    return FIRST[0] + column * SPACING[1], FIRST[1] + row * SPACING[0], FIRST[2] + k * GAP_MM


def organ_frame(k=3.0, column=0.0, segment=1):
    """The organ on a slice, as a frame of a SEG."""
    return Frame(ORGAN[..., 3].T, position(k, column), segment)


def square(k):
    """A contour around 12 x 14 pixels of the body."""
    return [position(k, *corner) for corner in ((8.5, 8.5), (20.5, 8.5), (20.5, 22.5), (8.5, 22.5))]


# the tables: status unless refused, and reason or flags; how it is made; its path; the case's HU

IMAGE, SECOND, SLICE, TEXT = "images/{}", "images/{}2", "images/{}/3.dcm", "images/{}/x.dcm"
ALONE, THIRD = "images/{}/0.dcm", "labels/{}3"  # the first of files that make no volume
PDF = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1", "Rows": None, "PixelData": None}
LOCALIZER = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
GAP = series(
    positions=heights(0, 5, 10, 15, 25, 30, 35), pixels=lambda hu: np.delete(UP(hu.T), 4, 0)
)
TILTED = np.array(FIRST) + np.arange(SHAPE[2])[:, None] * [0, 3, GAP_MM]
SWAP, WINDOW = (lambda hu: hu[..., SWAPPED]), (lambda hu: hu.clip(-160, 240))
UP, DOWN, OTHER = (lambda hu: hu + 1024), (lambda hu: hu - 1024), (lambda _: body(99).T + 1024)
LPS = np.diag([-1, -1, 1, 1]) @ AFFINE
COS, SIN = np.cos(np.radians(2)), np.sin(np.radians(2))
TURNED = [float(text) for text in decimals(np.round((COS, SIN, 0, -SIN, COS, 0), 4))]
STUDY = put(StudyInstanceUID="1.2.3")
TWO_NAMES = both(series(STUDY), series(STUDY, at=SECOND, patient_id="Y", pixels=OTHER))

IMAGES = {
    "pixels cut off": ("truncated", third(lambda content: content[:-100])),
    "slice empty": ("empty_file", third(lambda _: b""), SLICE),
    "slice lost": ("missing_slice", third(lambda _: b"")),
    "slice damaged": ("damaged_slice", series(put(7, Rows=None))),
    "text beside": ("kept damaged_file", both(series(), written(TEXT))),
    "text": ("not_dicom", both(series(), written(TEXT)), TEXT),
    "notes": ("dropped not_dicom", both(series(), written("images/{}/x")), "images/{}/x"),
    "copy": ("kept duplicate_files", both(series(), copied(SLICE, TEXT))),
    "contents": ("dropped dicomdir", both(series(), dicomdir), "images/{}/DICOMDIR"),
    "document": ("dropped not_an_image", series(put(Modality="DOC", **PDF)), ALONE),
    "localizer": ("dropped localizer", series(put(**LOCALIZER)), ALONE),
    "MR": ("not_ct", series(modality="MR")),
    "two patients": ("mixed_patient", series(put(3, PatientID="X"))),
    "mask": ("looks_like_mask", mask(at="images/{}", modality="CT")),
    "SEG": ("dropped label_among_images", both(series(), seg(at="images/{}.dcm")), "images/{}.dcm"),
    "no position": ("no_geometry", series(put(3, ImagePositionPatient=None))),
    "two sizes": ("mixed_size", series(put(3, Rows=35, PixelData=bytes(35 * 30 * 2)))),
    "two phases": ("mixed_acquisitions", series(phases)),
    "gap": ("missing_slice", GAP),
    "uneven": ("uneven_gaps", series(positions=heights(0, 5, 10, 16, 20, 25, 30, 35))),
    "rounded": ("kept", series(positions=heights(*np.arange(8) * 5 + [0, 0.2] * 4))),
    "tilt": ("gantry_tilt", series(positions=TILTED)),
    "swapped": ("kept slice_order", series(pixels=lambda hu: SWAP(hu).T + 1024), IMAGE, SWAP),
    "no pixels": ("no_pixels", series(put(3, PixelData=None))),
    "rescaled twice": ("kept hu_implausible", series(intercept=-2048.0), IMAGE, DOWN),
    "never rescaled": ("kept hu_not_applied", series(intercept=0.0), IMAGE, UP),
    "window": ("kept hu_windowed", series(pixels=lambda hu: WINDOW(hu).T + 1024), IMAGE, WINDOW),
    "iodine": ("kept rescale_type", series(put(RescaleType="MGML"))),
    "twice": ("kept duplicate_pixels", both(series(), series(at=SECOND, patient_id="X"))),
    "two names": ("kept two_names", TWO_NAMES),
    "spacing": ("kept spacing_outlier", series(pixel_spacing=(9.0, 3.5))),
}

REPAIRED = {
    "gap": ("kept repaired", GAP),
    "tilt": ("kept repaired", series(positions=TILTED)),
    "wide": ("missing_slice", series(positions=heights(0, 5, 10, 35, 40, 45, 50, 55))),
}

TWO_IMAGES = both(series(), series(at=SECOND))
LABELLED = {
    "aside": ("label_shifted", label(mask(first=position(0, 0.5)))),
    "LPS": ("label_flipped", label(nifti(lambda _: ORGAN, LPS, "labels/{}.nii.gz"))),
    "direction": ("label_direction", label(mask(orientation=TURNED))),
    "intercept": ("no_background", label(mask(intercept=-1024.0))),
    "patient": ("other_patient", label(mask(patient_id="Q-2"))),
    "NaN": ("not_finite", label(nifti(lambda _: ORGAN * np.nan, at="labels/{}.nii.gz"))),
    "none": ("no_label", series()),
    "two": ("ambiguous_label", label(both(mask(at="labels/{}/a"), mask(at="labels/{}/b")))),
    "no image": ("no_image", mask(), "labels/{}"),
    "two images": ("ambiguous_label", both(TWO_IMAGES, mask(at=THIRD)), THIRD),
    "other image": ("dropped other_series", both(TWO_IMAGES, mask()), SECOND),
    "values": ("kept label_values", label(mask(ORGAN + HALF))),
    "empty": ("kept label_empty", label(mask(0 * ORGAN))),
    "air": ("kept label_outside_body", label(mask(block((0, 3), (0, 36), (2, 6))))),
    "small": ("kept label_volume", label(mask(block((11, 13), (13, 18), (2, 7))))),
    "pieces": ("kept label_pieces", label(mask(ORGAN | block((21, 23), (13, 23), (2, 7))))),
    "cut": ("kept label_cut", label(mask(np.roll(ORGAN, -2, axis=2)))),
    "two segments": ("ambiguous_segment", label(seg(segments={1: LIVER, 2: PANCREAS}))),
    "beside": ("label_off_grid", label(seg(organ_frame(3, column=0.5)))),
    "two ROIs": ("ambiguous_roi", label(rtstruct({"A": [square(3)], "B": [square(3)]}))),
    "no ROIs": ("no_rois", label(rtstruct({}))),
    "off slices": ("contour_off_slice", label(rtstruct({"A": [square(3.5)]}))),
    "no type": ("kept contour_type_assumed",
                label(rtstruct({"A": [*map(square, (2, 3, 4))]}, geometry=""))),
}  # fmt: skip

CHOSEN = {
    "values": ("kept", label(mask(ORGAN + HALF))),
    "empty": ("label_empty", label(mask(0 * ORGAN))),
    "gaps": ("kept label_gaps", label(mask(ORGAN * (np.arange(8) != 4)))),
    "contours": ("kept label_gaps contour_gaps", label(rtstruct({"A": [square(1), square(4)]}))),
    "segment": ("no_such_segment", label(seg(organ_frame(segment=3), segments={3: LIVER}))),
}

NIFTI = {
    "no position": ("no_affine", nifti(affine=None)),
    "qform": ("kept sform_qform", nifti(qform=LPS)),
    "NaN": ("not_finite", nifti(lambda hu: np.where(hu == hu.max(), np.nan, hu))),
    "fork": ("dropped resource_fork", written("images/._{}.nii.gz"), "images/._{}.nii.gz"),
    "MetaImage": ("unread_format", written("images/{}.mha"), "images/{}.mha"),
    "two": ("ambiguous_image", both(nifti(), nifti(at="images/{}.nii"))),
}

RUNS = {
    "images": (IMAGES, ("source.labels=null",)),
    "repaired": (REPAIRED, ("source.labels=null", *REPAIR)),
    "labelled": (LABELLED, ()),
    "chosen": (CHOSEN, CHOICE),
    "nifti": (NIFTI, ("source=nifti", "source.labels=null")),
}


@pytest.fixture(scope="module")
def prepared_runs(tmp_path_factory):
    """A folder for each run with ``source`` and ``root``, and the rows of its table."""
    folders = {}
    for run, (defects, words) in RUNS.items():
        folder = tmp_path_factory.mktemp(run)
        source = folder / "source"
        for role in ("images", "labels"):
            (source / role).mkdir(parents=True)
        good = ("kept", nifti() if run == "nifti" else label(mask()))
        for n, (name, row) in enumerate({**defects, "good": good}.items()):
            row[1](source, name, body(n))
        paths = [f"source.{role}={source / role}" for role in ("images", "labels")]
        settings = [f"data.root={folder / 'root'}", "data.depth=4", "privacy=none"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pancseg.intake.convert.draw_contact_sheet", lambda *_: None)
            assert run_command("prepare", *paths, *settings, *words) == 1
        with (folder / "root" / "intake.csv").open(newline="") as table:
            folders[run] = folder, list(csv.DictReader(table))
    return folders


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # damaged values make it warn
@pytest.mark.parametrize(
    ("run", "name"), [(run, name) for run, (defects, _) in RUNS.items() for name in [*defects, ""]]
)
def test_a_defect_has_its_row_and_good_cases_are_unharmed(run, name, prepared_runs):
    (folder, rows), defects = prepared_runs[run], RUNS[run][0]
    expected, _, *more = defects.get(name, ("kept", None))
    path, change = (*more, *(IMAGE, None)[len(more) :])
    ending = ".nii.gz" * (run == "nifti" and "." not in path)
    source = folder / "source" / (path.format(name or "good") + ending)
    [row] = [row for row in rows if row["path"] == str(source)]
    flags = row["flags"].replace("unlabelled", "").split()
    code, status = row["reason"].partition(":")[0], row["status"].replace("refused", "")
    assert " ".join([status, *([code] if code else flags)]).strip() == expected, row
    stored = folder / "root" / "cases"
    if (row["status"] == "kept" and "repaired" not in flags) or change:  # voxel for voxel
        hu = body([*defects, ""].index(name))
        image = nib.load(stored / f"{row['case']}_image.nii.gz").dataobj
        np.testing.assert_array_equal(image, change(hu) if change else hu)
    if not name and run in ("labelled", "chosen"):
        np.testing.assert_array_equal(nib.load(stored / "good_label.nii.gz").dataobj, ORGAN)
