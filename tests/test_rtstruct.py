"""RTSTRUCT of masks: outlines known by hand, random masks there and back, what DICOM requires."""

import csv
import shutil
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon
from pydicom.dataset import Dataset
from scipy import ndimage

from pancseg.errors import Refused
from pancseg.intake.dicom.series import read_ct
from pancseg.intake.dicom.stack import Repair
from pancseg.intake.found import Reading, Scan
from pancseg.intake.labels.contours import read_contours
from pancseg.output.dicom_rtstruct import write_rtstruct
from pancseg.output.pixel_borders import pixel_borders
from tests.conftest import Command
from tests.other_software import errors_of
from tests.tiny_labels import FIRST, GAP_MM, SPACING, scan_of

OBLIQUE = (0.936293, 0.275096, -0.218351, -0.289629, 0.956425, -0.036957)


def picture(*rows: str) -> np.ndarray:
    """A mask ``(columns, rows)`` drawn with ``#``."""
    return np.array([[mark == "#" for mark in row] for row in rows]).T


def filled(outlines: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """How many outlines have each pixel's centre inside, by matplotlib."""
    centres = np.stack(np.indices(shape), axis=-1).reshape(-1, 2)
    inside = [Polygon(outline).contains_points(centres).reshape(shape) for outline in outlines]
    return np.sum(inside, axis=0) if inside else np.zeros(shape, int)


def area_of(outlines: list[np.ndarray]) -> float:
    """By the shoelace formula; a hole counts less for it is walked round the other way."""
    areas = []
    for x, y in (outline.T for outline in outlines):
        areas.append(x @ np.roll(y, -1) - y @ np.roll(x, -1))
    return sum(areas) / 2


def written(tmp_path: Path, scan: Scan, values: np.ndarray) -> Dataset:
    """The structure set of a mask of a scan, read back."""
    image = nib.Nifti1Image(values.astype(np.uint8), scan.image.affine)
    assert scan.stack is not None
    write_rtstruct(tmp_path / "rt.dcm", image, scan.stack)
    return pydicom.dcmread(tmp_path / "rt.dcm")


def contours_of(one: Dataset) -> list[np.ndarray]:
    """Points of each contour, LPS mm."""
    items = one.ROIContourSequence[0].get("ContourSequence") or []
    return [np.reshape(item.ContourData, (-1, 3)).astype(float) for item in items]


def read_back(tmp_path: Path, scan: Scan) -> np.ndarray:
    return np.asarray(read_contours(tmp_path / "rt.dcm", Reading(), scan).image.dataobj)


def test_one_pixel_has_its_four_corners() -> None:
    (outline,) = pixel_borders(picture("...", ".#.", "..."))
    assert sorted(outline.tolist()) == [[0.5, 0.5], [0.5, 1.5], [1.5, 0.5], [1.5, 1.5]]


def test_a_mask_that_fills_the_frame_has_the_frames_corners() -> None:
    (outline,) = pixel_borders(np.ones((5, 3), bool))
    assert sorted(outline.tolist()) == [[-0.5, -0.5], [-0.5, 2.5], [4.5, -0.5], [4.5, 2.5]]


def test_no_mask_has_no_outline() -> None:
    assert pixel_borders(np.zeros((4, 4), bool)) == []


def test_a_ring_is_one_outline_that_enters_its_hole_and_leaves_it_the_same_way() -> None:
    ring = picture("....", "###.", "#.#.", "###.")
    (outline,) = pixel_borders(ring)
    around = [(2.5, 0.5), (2.5, 3.5), (-0.5, 3.5), (-0.5, 1.5)]
    hole = [(0.5, 1.5), (0.5, 2.5), (1.5, 2.5), (1.5, 1.5)]
    expected = [*around, *hole, (-0.5, 1.5), (-0.5, 0.5)]
    start = expected.index((outline[0][0], outline[0][1]))
    assert [tuple(point) for point in outline.tolist()] == expected[start:] + expected[:start]
    assert area_of([outline]) == 8


def test_pieces_that_touch_at_a_corner_are_two_outlines() -> None:
    outlines = pixel_borders(picture("#.", ".#"))
    assert sorted(map(len, outlines)) == [4, 4]
    assert [outline.mean(axis=0).tolist() for outline in outlines] == [[0, 0], [1, 1]]


def test_an_island_within_a_hole_is_an_outline_of_its_own() -> None:
    rows = ["#######", "#.....#", "#.###.#", "#.#.#.#", "#.###.#", "#.....#", "#######"]
    outlines = pixel_borders(picture(*rows))
    assert sorted(area_of([outline]) for outline in outlines) == [8, 24]
    np.testing.assert_array_equal(filled(outlines, (7, 7)), picture(*rows))


def test_holes_side_by_side_and_holes_that_touch_at_a_corner_are_all_joined() -> None:
    mask = picture("#######", "#.#.#.#", "##.##.#", "#######")
    (outline,) = pixel_borders(mask)
    assert area_of([outline]) == mask.sum()
    np.testing.assert_array_equal(filled([outline], (7, 4)), mask)


@pytest.mark.parametrize("seed", range(10))
def test_random_masks_come_back_with_their_pieces_and_their_area(seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(25):
        mask = random.random(random.integers(1, 15, 2)) < random.uniform(0.1, 0.98)
        outlines = pixel_borders(mask)
        np.testing.assert_array_equal(filled(outlines, mask.shape), mask)
        assert len(outlines) == ndimage.label(mask)[1]
        assert area_of(outlines) == mask.sum()


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, 1, 0), OBLIQUE])
def test_random_masks_of_a_scan_come_back_from_its_contours(
    tmp_path: Path, orientation: tuple[float, ...]
) -> None:
    scan = scan_of(tmp_path / "ct", count=20, size=(14, 16), orientation=orientation)
    random = np.random.default_rng(5)
    values = random.random(scan.image.shape) < random.uniform(0, 1, 20)
    written(tmp_path, scan, values)
    np.testing.assert_array_equal(read_back(tmp_path, scan), values)


def test_a_voxel_of_a_slice_is_a_square_around_its_centre_on_that_image(tmp_path: Path) -> None:
    scan = scan_of(tmp_path / "ct")
    values = np.zeros(scan.image.shape)
    values[2, 1, 3] = 1
    one = written(tmp_path, scan, values)
    (points,) = contours_of(one)
    centre = np.array(FIRST) + [2 * SPACING[1], SPACING[0], 3 * GAP_MM]
    half = np.array([SPACING[1], SPACING[0], 0]) / 2
    corners = [centre + half * sign for sign in ((1, -1, 0), (1, 1, 0), (-1, 1, 0), (-1, -1, 0))]
    np.testing.assert_allclose(points, corners)
    (contour,) = one.ROIContourSequence[0].ContourSequence
    assert (contour.ContourGeometricType, contour.NumberOfContourPoints) == ("CLOSED_PLANAR", 4)
    (image,) = contour.ContourImageSequence
    headers = {str(h.SOPInstanceUID): h for h in map(pydicom.dcmread, (tmp_path / "ct").iterdir())}
    assert headers[image.ReferencedSOPInstanceUID].ImagePositionPatient[2] == centre[2]
    assert "ReferencedFrameNumber" not in image


def test_it_says_whose_organ_on_which_images_by_whom(tmp_path: Path) -> None:
    def known(slices: list[Dataset]) -> None:
        for one in slices:
            one.SpecificCharacterSet, one.PatientName = "ISO_IR 100", "Müller^Ann"
            one.StudyID, one.PatientSex, one.AccessionNumber = "S-7", "F", "A-9"
            one.StudyInstanceUID = slices[0].StudyInstanceUID

    scan = scan_of(tmp_path / "ct", damage=known)
    headers = [pydicom.dcmread(file) for file in (tmp_path / "ct").iterdir()]
    one = written(tmp_path, scan, np.ones(scan.image.shape))
    for name in ("PatientName", "PatientID", "PatientSex", "StudyID", "AccessionNumber",
                 "StudyInstanceUID", "FrameOfReferenceUID"):  # fmt: skip
        assert one[name].value == headers[0][name].value
    assert one.PatientBirthDate == one.ReferringPhysicianName == ""
    assert one.SeriesInstanceUID != headers[0].SeriesInstanceUID
    (frame,) = one.ReferencedFrameOfReferenceSequence
    (study,) = frame.RTReferencedStudySequence
    (series,) = study.RTReferencedSeriesSequence
    assert frame.FrameOfReferenceUID == headers[0].FrameOfReferenceUID
    assert study.ReferencedSOPInstanceUID == headers[0].StudyInstanceUID
    assert series.SeriesInstanceUID == headers[0].SeriesInstanceUID
    listed = [image.ReferencedSOPInstanceUID for image in series.ContourImageSequence]
    assert sorted(listed) == sorted(header.SOPInstanceUID for header in headers)
    (roi,), (seen,) = one.StructureSetROISequence, one.RTROIObservationsSequence
    assert (roi.ROIName, roi.ROIGenerationAlgorithm) == ("Pancreas", "AUTOMATIC")
    assert (seen.RTROIInterpretedType, seen.ReferencedROINumber) == ("ORGAN", roi.ROINumber)
    (code,) = seen.RTROIIdentificationCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("15776009", "SCT")
    assert one.ApprovalStatus == "UNAPPROVED"


def test_no_mask_is_a_roi_without_contours(tmp_path: Path) -> None:
    scan = scan_of(tmp_path / "ct")
    one = written(tmp_path, scan, np.zeros(scan.image.shape))
    assert len(one.StructureSetROISequence) == len(one.ROIContourSequence) == 1
    assert "ContourSequence" not in one.ROIContourSequence[0]
    assert not read_back(tmp_path, scan).any()
    assert errors_of(tmp_path / "rt.dcm") == []


def test_a_validator_sees_what_is_missing(tmp_path: Path) -> None:
    scan = scan_of(tmp_path / "ct")
    one = written(tmp_path, scan, np.ones(scan.image.shape))
    del one.StructureSetLabel
    one.save_as(tmp_path / "less.dcm")
    assert any("StructureSetLabel" in line for line in errors_of(tmp_path / "less.dcm"))


def test_numbers_far_from_the_scanners_centre_have_at_most_16_characters(tmp_path: Path) -> None:
    first = (-99_999.123456, 99_999.654321, -99_999.111111)
    scan = scan_of(tmp_path / "ct", first=first, orientation=OBLIQUE)
    values = np.zeros(scan.image.shape)
    values[1, 1:3, 2] = 1
    one = written(tmp_path, scan, values)
    raw = one.ROIContourSequence[0].ContourSequence[0].ContourData
    assert max(len(value.original_string) for value in raw) <= 16
    np.testing.assert_array_equal(read_back(tmp_path, scan), values)


def test_an_outline_too_long_for_an_explicit_length_is_written_whole(tmp_path: Path) -> None:
    scan = scan_of(tmp_path / "ct", count=3, size=(120, 120))
    values = np.zeros(scan.image.shape)
    values[..., 1] = np.random.default_rng(0).random((120, 120)) < 0.7
    one = written(tmp_path, scan, values)
    assert max(contour.size for contour in contours_of(one)) * 4 > 2**16  # bytes at the least
    np.testing.assert_array_equal(read_back(tmp_path, scan), values)


def test_contours_on_a_multi_frame_file_name_their_frames(tmp_path: Path) -> None:
    def complete(slices: list[Dataset]) -> None:
        for one in slices:
            one.StudyInstanceUID, one.SliceThickness = slices[0].StudyInstanceUID, 2.5
            one.PatientBirthDate = one.PatientSex = one.AccessionNumber = one.StudyID = ""
            one.StudyDate = one.StudyTime = one.ReferringPhysicianName = ""
            one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]

    scan_of(tmp_path / "single", damage=complete)
    singles = [pydicom.dcmread(file) for file in (tmp_path / "single").iterdir()]
    singles.sort(key=lambda one: -one.ImagePositionPatient[2])  # from the head, against the stack
    file = tmp_path / "frames.dcm"
    highdicom.legacy.LegacyConvertedEnhancedCTImage(
        singles, highdicom.UID(), 2, highdicom.UID(), 1
    ).save_as(file)
    scan = read_ct((file,), Reading())
    values = np.zeros(scan.image.shape)
    values[1, 1, 3] = values[2, 2, 0] = 1
    one = written(tmp_path, scan, values)
    groups = pydicom.dcmread(file).PerFrameFunctionalGroupsSequence
    contours = one.ROIContourSequence[0].ContourSequence
    named = [item.ContourImageSequence[0].ReferencedFrameNumber for item in contours]
    for number, points in zip(named, contours_of(one), strict=True):
        position = groups[number - 1].PlanePositionSequence[0].ImagePositionPatient
        assert set(points[:, 2].tolist()) == {float(position[2])}
    assert sorted(named) == [2, 5]
    np.testing.assert_array_equal(read_back(tmp_path, scan), values)


def test_a_repaired_series_is_refused_for_nothing_lies_on_its_images(tmp_path: Path) -> None:
    places = [(0, 0, 2.5 * k) for k in (0, 1, 2, 4)]
    scan = scan_of(tmp_path / "ct", positions=places, reading=Reading(repair=Repair(gaps=True)))
    with pytest.raises(Refused, match="rtstruct_repaired: the series was interpolated"):
        written(tmp_path, scan, np.ones(scan.image.shape))
    assert not (tmp_path / "rt.dcm").exists()


def rows_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))


@pytest.fixture
def series(dicom: Path) -> Path:
    """One phantom's images."""
    return next(path for path in sorted((dicom / "images").iterdir()) if path.is_dir())


def words(trained: Path, scans: Path) -> list[str]:
    best = trained / "checkpoints" / "best.ckpt"
    return [f"checkpoint={best}", f"input={scans}", "output=out"]


def test_it_is_written_only_where_asked_for_and_a_batch_goes_on_for_it(
    trained: Path, series: Path, command: Command
) -> None:
    assert command("predict", *words(trained, series)).code == 0
    (row,) = rows_of(Path("out"))
    file = Path("out") / f"{row['case']}_pancreas_rtstruct.dcm"
    assert not file.exists()
    assert command("predict", *words(trained, series), "rtstruct=true").code == 0
    content = file.read_bytes()
    assert command("predict", *words(trained, series), "rtstruct=true").code == 0
    assert file.read_bytes() == content  # UIDs would be new ones


def test_emptied_uids_and_unforeseen_headers_cost_seg_and_rtstruct_alone(
    trained: Path, series: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(series, tmp_path / "in")
    for path in (tmp_path / "in").iterdir():
        header = pydicom.dcmread(path)
        header.StudyInstanceUID = ""
        header.save_as(path)
    assert command("predict", *words(trained, tmp_path / "in"), "rtstruct=true").code == 0
    (row,) = rows_of(Path("out"))
    told = "the series has no StudyInstanceUID to refer to"
    assert row["reason"] == f"seg_no_uid: {told}; rtstruct_no_uid: {told}"
    assert row["flags"].split()[-2:] == ["no_seg", "no_rtstruct"]
    assert not list(Path("out").glob("*.dcm"))
    preview = Path("out") / f"{row['case']}_preview.png"
    before = preview.stat().st_mtime_ns
    assert command("predict", *words(trained, tmp_path / "in"), "rtstruct=true").code == 0
    assert preview.stat().st_mtime_ns == before  # it is done as far as it can be

    def unhappy(*given: Any) -> None:
        raise ValueError("a value of a header")

    monkeypatch.setattr("pancseg.applying.scan_files.write_rtstruct", unhappy)
    out = ["output=more", "rtstruct=true"]
    assert command("predict", *words(trained, series)[:2], *out).code == 0
    (row,) = rows_of(Path("more"))
    assert row["reason"] == "rtstruct_failed: ValueError: a value of a header"
    assert row["flags"].split()[-1] == "no_rtstruct"
