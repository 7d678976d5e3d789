"""Pixel data: every transfer syntax gives the same HU, and what is claimed must be there."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from pancseg.errors import Refused
from pancseg.intake.dicom import deflated, headers
from pancseg.intake.dicom.finding import find_series
from pancseg.intake.dicom.pixels import check_pixels
from pancseg.intake.dicom.series import read_ct
from pancseg.intake.found import Reading
from tests.tiny_dicom import make_slice, write_series

PIXELS = np.random.default_rng(1).integers(-1000, 2000, (4, 64, 72))


def hu(folder: Path) -> np.ndarray:
    (series,), strays = find_series(folder)
    assert strays == []
    return np.asarray(read_ct(series.files, Reading()).image.dataobj)


def rewrite(folder: Path, change: Callable[[Dataset], None]) -> None:
    for path in folder.iterdir():
        one = pydicom.dcmread(path)
        change(one)
        one.save_as(path)


def as_syntax(uid: str) -> Callable[[Dataset], None]:
    """Declare another way of writing the same data set."""

    def change(one: Dataset) -> None:
        one.file_meta.TransferSyntaxUID = uid
        if uid == ExplicitVRBigEndian:
            one.PixelData = np.frombuffer(one.PixelData, "<i2").astype(">i2").tobytes()
        one["PixelData"].VR = "OW"

    return change


@pytest.mark.parametrize(
    "uid", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_every_uncompressed_syntax_is_read(tmp_path: Path, uid: str) -> None:
    write_series(tmp_path, pixels=PIXELS, intercept=-24.0)
    for path in tmp_path.iterdir():
        one = pydicom.dcmread(path)
        as_syntax(uid)(one)
        little = uid != ExplicitVRBigEndian
        implicit = uid == ImplicitVRLittleEndian
        fresh = Dataset()
        fresh.update(one)
        fresh.file_meta = one.file_meta
        pydicom.dcmwrite(
            path, fresh, implicit_vr=implicit, little_endian=little, enforce_file_format=True
        )
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == uid
    np.testing.assert_array_equal(hu(tmp_path), PIXELS.transpose(2, 1, 0) - 24)


@pytest.mark.parametrize("uid", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_every_compressed_syntax_that_pydicom_writes_is_read(tmp_path: Path, uid: str) -> None:
    write_series(tmp_path, pixels=PIXELS)
    rewrite(tmp_path, lambda one: one.compress(uid, generate_instance_uid=False))
    np.testing.assert_array_equal(hu(tmp_path), PIXELS.transpose(2, 1, 0))


@pytest.mark.parametrize("kind", ["JPEGLosslessProcess14_1", "JPEGLosslessProcess14"])
def test_lossless_jpeg_is_read(tmp_path: Path, kind: str) -> None:
    write_series(tmp_path, pixels=PIXELS)
    for path in tmp_path.iterdir():
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(path))
        assert writer.Write()
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(hu(tmp_path), PIXELS.transpose(2, 1, 0))


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_multi_frame_file_equals_its_single_frames(tmp_path: Path, order: slice) -> None:
    single, multi = tmp_path / "single", tmp_path / "multi"
    write_series(single, pixels=PIXELS, intercept=-24.0, damage=as_one_study)
    slices = [pydicom.dcmread(path) for path in sorted(single.iterdir())][order]
    file = LegacyConvertedEnhancedCTImage(slices, generate_uid(), 1, generate_uid(), 1)
    multi.mkdir()
    file.save_as(multi / "all.dcm")
    np.testing.assert_array_equal(hu(multi), hu(single))
    (a,), _ = find_series(single)
    (b,), _ = find_series(multi)
    one, other = (read_ct(series.files, Reading()).image for series in (a, b))
    np.testing.assert_allclose(one.affine, other.affine)


def as_one_study(slices: list[Dataset]) -> None:
    study = generate_uid()
    for one in slices:
        one.StudyInstanceUID = study
        one.StudyID, one.StudyDate, one.StudyTime = "1", "20200101", "000000"
        one.AccessionNumber = one.ReferringPhysicianName = ""
        one.PatientBirthDate = one.PatientSex = one.PositionReferenceIndicator = ""
        one.SeriesNumber, one.Manufacturer = 1, ""
        one.SliceThickness = 2.5
        one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        one.AcquisitionNumber = 1
        one.Laterality = one.KVP = None
        one.BurnedInAnnotation = "NO"


def refused(folder: Path) -> Refused:
    with pytest.raises(Refused) as told:
        hu(folder)
    return told.value


def test_a_file_that_ends_inside_its_pixels_is_truncated(tmp_path: Path) -> None:
    write_series(tmp_path, pixels=PIXELS)
    path = sorted(tmp_path.iterdir())[1]
    os.truncate(path, path.stat().st_size - 100)
    told = refused(tmp_path)
    assert told.code == "truncated"
    assert "has 9116 bytes of pixels, its header claims 9216" in str(told)
    assert path.name in str(told)


@pytest.mark.parametrize(
    ("count", "code"), [(29, "truncated"), (30, ""), (31, ""), (39, ""), (40, "bad_pixels")]
)
def test_pixels_may_be_longer_than_claimed_by_less_than_a_row_and_never_shorter(
    count: int, code: str
) -> None:
    one = make_slice(np.zeros((3, 5)))  # 30 bytes, 10 a row
    one.PixelData = bytes(count)
    told = nullcontext() if not code else pytest.raises(Refused, match=f"has {count} bytes")
    with told as error:
        check_pixels(one, Path("x.dcm"))
    assert not code or error.value.code == code


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"Rows": 30000, "Columns": 30000}, "too_large"),
        ({"Rows": 8000, "Columns": 8000}, "truncated"),
        ({"Rows": 0}, "no_geometry"),
        ({"BitsAllocated": 12}, "bad_pixels"),
        ({"SamplesPerPixel": 3}, "colour"),
        ({"RescaleSlope": "0"}, "no_rescale"),
        ({"NumberOfFrames": 7}, "bad_frames"),
    ],
)
def test_a_header_that_claims_nonsense_is_refused_before_anything_is_allocated(
    tmp_path: Path, values: dict[str, object], code: str
) -> None:
    write_series(tmp_path, pixels=PIXELS)
    one = pydicom.dcmread(path := sorted(tmp_path.iterdir())[2])
    for keyword, value in values.items():
        setattr(one, keyword, value)
    one.save_as(path)
    if values.get("Rows") == 0:
        with pytest.raises((Refused, AssertionError)):
            hu(tmp_path)
    elif "NumberOfFrames" in values:
        assert refused(tmp_path).code in ("bad_frames", "truncated")
    else:
        assert refused(tmp_path).code == code


@pytest.mark.parametrize(("largest", "is_refused"), [(200_000, True), (20_000_000, False)])
def test_a_deflated_file_that_holds_more_than_any_scan_is_never_inflated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int, is_refused: bool
) -> None:
    one = pydicom.dcmread(next(write_series(tmp_path / "x", pixels=PIXELS).iterdir()))
    as_syntax(DeflatedExplicitVRLittleEndian)(one)
    one.add_new(0x00091010, "OB", bytes(10_000_000))  # packs to some 10 kB
    (tmp_path / "bomb").mkdir()
    one.save_as(tmp_path / "bomb" / "a.dcm", enforce_file_format=True)
    assert (tmp_path / "bomb" / "a.dcm").stat().st_size < 30_000
    inflated = []
    monkeypatch.setattr(deflated, "LARGEST_INFLATED", largest)
    monkeypatch.setattr(headers.pydicom, "dcmread", lambda *_, **__: inflated.append(1))
    _, strays = find_series(tmp_path / "bomb")
    assert bool(inflated) != is_refused
    assert strays[0].reason.startswith("too_large") == is_refused


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    def change(one: Dataset) -> None:
        one.FloatPixelData = np.frombuffer(one.PixelData, "<i2").astype("<f4").tobytes()
        one.BitsAllocated = 32
        del one.PixelData

    write_series(tmp_path, pixels=PIXELS)
    rewrite(tmp_path, change)
    assert refused(tmp_path).code == "float_pixels"


@pytest.mark.parametrize("uid", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_damaged_compressed_pixels_are_undecodable(tmp_path: Path, uid: str) -> None:
    write_series(tmp_path, pixels=PIXELS)
    rewrite(tmp_path, lambda one: one.compress(uid, generate_instance_uid=False))
    path = sorted(tmp_path.iterdir())[0]
    content = bytearray(path.read_bytes())
    start = content.rindex(b"\xfe\xff\x00\xe0") + 8  # the item that holds the frame
    content[start : start + 60] = bytes(60)
    path.write_bytes(content)
    told = refused(tmp_path)
    assert told.code == "undecodable"
    assert path.name in str(told)


def test_a_damaged_stream_reaches_no_decoder_that_ends_the_process(tmp_path: Path) -> None:
    """GDCM calls abort() where a JPEG 2000 stream has no header; fuzzing found it."""
    write_series(tmp_path, pixels=PIXELS)
    rewrite(tmp_path, lambda one: one.compress(JPEG2000Lossless, generate_instance_uid=False))
    path = sorted(tmp_path.iterdir())[0]
    content = bytearray(path.read_bytes())
    start = content.index(b"\xff\x4f\xff\x51")  # SOC, SIZ
    content[start + 4 : start + 44] = bytes(40)
    path.write_bytes(content)
    assert refused(tmp_path).code == "undecodable"


def test_copies_of_a_slice_are_told_from_slices_that_contradict_each_other(tmp_path: Path) -> None:
    write_series(tmp_path / "copies", pixels=PIXELS)
    path = sorted((tmp_path / "copies").iterdir())[0]
    (tmp_path / "copies" / "again.dcm").write_bytes(path.read_bytes())
    told = refused(tmp_path / "copies")
    assert told.code == "duplicate_slice"
    assert "1 slices are copies" in str(told)
    write_series(tmp_path / "conflict", pixels=PIXELS, positions=[(0, 0, z) for z in (0, 1, 1, 2)])
    assert refused(tmp_path / "conflict").code == "same_position"
