"""Pixel data: every transfer syntax gives the same HU, and claims of headers are checked."""

import os
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from pancseg.dicom import pixels
from pancseg.errors import Refused, brief, parsing
from tests.tiny_dicom import find, put, read, write_series

PIXELS = np.random.default_rng(1).integers(-1000, 2000, (4, 64, 72))


def hu(folder: Path) -> np.ndarray:
    return np.asarray(read(folder).image.dataobj)


def rewrite(folder: Path, change: Callable[[Dataset], object]) -> None:
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)


def compress(uid: str) -> Callable[[Dataset], object]:
    return lambda dataset: dataset.compress(uid, generate_instance_uid=False)


def as_syntax(uid: str) -> Callable[[Dataset], None]:
    """Declare another way of writing the same data set."""

    def change(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = uid
        if uid == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
        dataset["PixelData"].VR = "OW"

    return change


@pytest.mark.parametrize(
    "uid", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_every_uncompressed_syntax_is_read(tmp_path: Path, uid: str) -> None:
    write_series(tmp_path, pixels=PIXELS, intercept=-24.0)
    for path in tmp_path.iterdir():
        dataset = pydicom.dcmread(path)
        as_syntax(uid)(dataset)
        little = uid != ExplicitVRBigEndian
        implicit = uid == ImplicitVRLittleEndian
        fresh = Dataset()
        fresh.update(dataset)
        fresh.file_meta = dataset.file_meta
        pydicom.dcmwrite(
            path, fresh, implicit_vr=implicit, little_endian=little, enforce_file_format=True
        )
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == uid
    np.testing.assert_array_equal(hu(tmp_path), PIXELS.transpose(2, 1, 0) - 24)


@pytest.mark.parametrize("uid", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_every_compressed_syntax_that_pydicom_writes_is_read(tmp_path: Path, uid: str) -> None:
    write_series(tmp_path, pixels=PIXELS)
    rewrite(tmp_path, compress(uid))
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
    np.testing.assert_allclose(read(single).image.affine, read(multi).image.affine)


def as_one_study(slices: list[Dataset]) -> None:
    study = generate_uid()
    for dataset in slices:
        dataset.StudyInstanceUID = study
        dataset.StudyID, dataset.StudyDate, dataset.StudyTime = "1", "20200101", "000000"
        dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
        dataset.PatientBirthDate = dataset.PatientSex = dataset.PositionReferenceIndicator = ""
        dataset.SeriesNumber, dataset.Manufacturer = 1, ""
        dataset.SliceThickness = 2.5
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.AcquisitionNumber = 1
        dataset.Laterality = dataset.KVP = None
        dataset.BurnedInAnnotation = "NO"


def refused(folder: Path) -> Refused:
    with pytest.raises(Refused) as refusal:
        hu(folder)
    return refusal.value


def test_a_file_that_ends_inside_its_pixels_is_truncated(tmp_path: Path) -> None:
    write_series(tmp_path, pixels=PIXELS)
    path = sorted(tmp_path.iterdir())[1]
    os.truncate(path, path.stat().st_size - 100)
    refusal = refused(tmp_path)
    assert refusal.code == "truncated"
    assert f"{path.name} has 9116 bytes of pixels, its header claims 9216" in str(refusal)


@pytest.mark.parametrize("excess", [1, 512, 9216, 100_000])
def test_bytes_after_the_pixels_are_ignored(tmp_path: Path, excess: int) -> None:
    def pad(dataset: Dataset) -> None:
        dataset.PixelData += b"\1" * (excess + excess % 2)

    rewrite(write_series(tmp_path, pixels=PIXELS), pad)
    np.testing.assert_array_equal(hu(tmp_path), PIXELS.transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"Rows": 30000, "Columns": 30000}, "too_large"),
        ({"Rows": 8000, "Columns": 8000}, "truncated"),
        ({"BitsAllocated": 12}, "bad_pixels"),
        ({"SamplesPerPixel": 3}, "colour"),
        ({"NumberOfFrames": 200_000}, "bad_frames"),
        ({"NumberOfFrames": 7}, "truncated"),
        ({"PixelData": None}, "no_pixels"),
    ],
)
def test_a_header_that_claims_nonsense_is_refused_before_memory_is_allocated(
    tmp_path: Path, values: dict[str, object], code: str
) -> None:
    write_series(tmp_path, pixels=PIXELS, damage=lambda slices: put(**values)(slices[2:3]))
    assert refused(tmp_path).code == code


def deflated(folder: Path, private_bytes: int) -> Path:
    """A folder of a deflated slice with private data, which packs to nearly nothing."""
    dataset = pydicom.dcmread(next(write_series(folder / "plain", pixels=PIXELS).iterdir()))
    as_syntax(DeflatedExplicitVRLittleEndian)(dataset)
    dataset.add_new(0x00091010, "OB", bytes(private_bytes))
    (folder / "deflated").mkdir()
    dataset.save_as(folder / "deflated" / "a.dcm", enforce_file_format=True)
    return folder / "deflated"


@pytest.mark.parametrize("private_bytes", [400_000, 3_000_000])
def test_a_deflated_file_is_inflated_up_to_its_pixels_and_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private_bytes: int
) -> None:
    folder = deflated(tmp_path, private_bytes)
    monkeypatch.setattr(pixels, "LARGEST_EXCESS", 1_000_000)
    whole = []
    read_all = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda f, **k: whole.append(f) or read_all(f, **k))
    series, skipped = find(folder)
    if private_bytes < 1_000_000:
        assert (len(series), skipped) == (1, [])
    else:
        assert skipped[0].reason.startswith("too_large")
        assert all(isinstance(file, BytesIO) for file in whole)  # never by its path


def test_pixels_of_a_deflated_file_may_exceed_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "LARGEST_EXCESS", 4_000)  # less than the pixels of a slice
    monkeypatch.setattr(pixels, "DEFLATE_RATIO", 10**6)
    series, skipped = find(deflated(tmp_path, 100))
    assert (len(series), skipped) == (1, [])


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    def change(dataset: Dataset) -> None:
        dataset.FloatPixelData = np.frombuffer(dataset.PixelData, "<i2").astype("<f4").tobytes()
        dataset.BitsAllocated = 32
        del dataset.PixelData

    write_series(tmp_path, pixels=PIXELS)
    rewrite(tmp_path, change)
    assert refused(tmp_path).code == "float_pixels"


@pytest.mark.parametrize("uid", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_damaged_compressed_pixels_are_undecodable(tmp_path: Path, uid: str) -> None:
    write_series(tmp_path, pixels=PIXELS)
    rewrite(tmp_path, compress(uid))
    path = sorted(tmp_path.iterdir())[0]
    content = bytearray(path.read_bytes())
    start = content.rindex(b"\xfe\xff\x00\xe0") + 8  # the item that holds the frame
    content[start : start + 60] = bytes(60)
    path.write_bytes(content)
    refusal = refused(tmp_path)
    assert refusal.code == "undecodable"
    assert path.name in str(refusal)


def test_a_damaged_stream_reaches_no_decoder_that_ends_the_process(tmp_path: Path) -> None:
    """GDCM calls abort() where a JPEG 2000 stream has no header; fuzzing found it."""
    write_series(tmp_path, pixels=PIXELS)
    rewrite(tmp_path, compress(JPEG2000Lossless))
    path = sorted(tmp_path.iterdir())[0]
    content = bytearray(path.read_bytes())
    start = content.index(b"\xff\x4f\xff\x51")  # SOC, SIZ
    content[start + 4 : start + 44] = bytes(40)
    path.write_bytes(content)
    assert refused(tmp_path).code == "undecodable"


def jpeg_claims(stream: bytearray, side: int) -> None:
    """Change the size in a frame header of JPEG or JPEG-LS."""
    start = next(n for n in range(len(stream)) if stream[n : n + 2] in (b"\xff\xf7", b"\xff\xc3"))
    stream[start + 5 : start + 9] = side.to_bytes(2) * 2


def jpeg2000_claims(stream: bytearray, side: int) -> None:
    """Change the size of image and tile in the header of JPEG 2000."""
    for start in (8, 12, 24, 28):
        stream[start : start + 4] = side.to_bytes(4)


def many_components(stream: bytearray, side: int) -> None:
    stream[40:42] = (16384).to_bytes(2)


@pytest.mark.parametrize(
    ("uid", "claim"),
    [
        (JPEG2000Lossless, jpeg2000_claims),
        (JPEG2000Lossless, many_components),
        (JPEGLSLossless, jpeg_claims),
    ],
)
def test_a_codestream_that_claims_another_size_reaches_no_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: str, claim: Callable[..., None]
) -> None:
    def change(dataset: Dataset) -> None:
        compress(uid)(dataset)
        stream = bytearray(next(generate_frames(dataset.PixelData, number_of_frames=1)))
        claim(stream, 20_000)
        dataset.PixelData = encapsulate([bytes(stream)])

    rewrite(write_series(tmp_path, pixels=PIXELS), change)
    decoded = []
    monkeypatch.setattr(pixels, "pixel_array", lambda *_, **__: decoded.append(1))
    assert refused(tmp_path).code == "undecodable"
    assert decoded == []


@pytest.mark.parametrize(
    "uid",
    [
        "1.2.840.113619.5.2",  # GE: implicit little endian, pixels big endian
        "1.2.840.10008.1.2.8.1",  # frames deflated, which a SEG may be
        "1.2.840.10008.1.2.4.110",  # JPEG XL
        "1.3.46.670589.33.1.4.1",  # Philips, private
    ],
)
def test_a_syntax_that_nothing_decodes_is_named_with_what_to_do(tmp_path: Path, uid: str) -> None:
    for path in write_series(tmp_path).iterdir():
        dataset, fresh = pydicom.dcmread(path), Dataset()
        fresh.update(dataset)
        fresh.file_meta = dataset.file_meta
        standard = {23: "1.2.840.10008.1.2.4.102", 21: JPEGBaseline8Bit}
        written = standard[len(uid)] if uid.startswith("1.2.840.10008") else uid
        fresh.file_meta.TransferSyntaxUID = written  # of UIDs of that length that pydicom writes
        if written != uid:
            fresh.PixelData = encapsulate([dataset.PixelData])
        is_ge = uid.startswith("1.2.840.113619")
        pydicom.dcmwrite(path, fresh, implicit_vr=is_ge, little_endian=True)
        content, padded = path.read_bytes(), uid.ljust(len(written), "\0")
        path.write_bytes(content.replace(written.encode(), padded.encode(), 1))
    refusal = refused(tmp_path)
    assert refusal.code == "undecodable"
    assert uid in str(refusal)
    assert "gdcmconv --raw" in str(refusal)


def test_jpeg_of_8_bits_is_read(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    grey = np.add.outer(np.arange(64), np.arange(72)).astype(np.uint8)

    def change(dataset: Dataset) -> None:
        stream = BytesIO()
        image.fromarray(grey).save(stream, "JPEG", quality=95)
        dataset.PixelData = encapsulate([stream.getvalue()])
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelRepresentation = 7, 0
        dataset["PixelData"].VR = "OB"

    rewrite(write_series(tmp_path, pixels=PIXELS), change)
    assert np.abs(hu(tmp_path)[..., 0].T.astype(int) - grey).max() <= 3


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("could not convert string to float: 'DOE^JOHN'"), "damaged (ValueError)"),
        (zlib.error("invalid block type"), "damaged (error)"),
        (PermissionError(13, "Permission denied", "/secret/path"), "x.dcm: Permission denied"),
    ],
)
def test_an_error_of_reading_is_a_refusal_without_the_text_of_a_header(
    error: Exception, text: str
) -> None:
    with pytest.raises(Refused) as refusal, parsing(Path("x.dcm")):
        raise error
    assert refusal.value.code == "unreadable"
    assert text in str(refusal.value)
    assert "DOE" not in str(refusal.value) and "secret" not in str(refusal.value)


def test_an_error_is_told_briefly() -> None:
    assert brief(OSError(2, "No such file", "/secret")) == "No such file"
    assert brief(ValueError("Unable to decode:\n  gdcm: no\n")) == "Unable to decode: gdcm: no"
    assert brief(KeyError()) == "KeyError"
