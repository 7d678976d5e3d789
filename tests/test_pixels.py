"""Pixel data: every transfer syntax gives the same HU, and claims of headers are checked."""

import os
from collections.abc import Callable
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom import Dataset, uid
from pydicom.encaps import encapsulate, generate_frames

from pancseg.dicom import pixels
from pancseg.errors import Refused, parsing
from tests.tiny_dicom import put, read, write_series

PIXELS = np.random.default_rng(1).integers(-1000, 2000, (4, 64, 72))
STORED = PIXELS.transpose(2, 1, 0)


def hu(folder: Path) -> np.ndarray:
    return np.asarray(read(folder).image.dataobj)


def rewrite(folder: Path, change: Callable[[Dataset], object]) -> None:
    write_series(folder, pixels=PIXELS)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)


def compress(syntax: str) -> Callable[[Dataset], object]:
    return lambda dataset: dataset.compress(syntax, generate_instance_uid=False)


def refused(folder: Path) -> Refused:
    with pytest.raises(Refused) as refusal:
        hu(folder)
    return refusal.value


def write_as(path: Path, syntax: str, written_as: str = "") -> None:
    """Declare another transfer syntax, where needed as one of equal length that pydicom writes."""
    dataset, fresh = pydicom.dcmread(path), Dataset()
    fresh.update(dataset)
    fresh.file_meta = dataset.file_meta
    fresh.file_meta.TransferSyntaxUID = written_as or syntax
    fresh["PixelData"].VR = "OW"
    if written_as and written_as != syntax:
        fresh.PixelData = encapsulate([dataset.PixelData])
    if syntax == uid.ExplicitVRBigEndian:
        fresh.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
    is_implicit = syntax == uid.ImplicitVRLittleEndian or syntax.startswith("1.2.840.113619")
    is_little = syntax != uid.ExplicitVRBigEndian
    options = {"implicit_vr": is_implicit, "little_endian": is_little}
    pydicom.dcmwrite(path, fresh, enforce_file_format=not written_as, **options)
    if written_as:
        padded = syntax.ljust(len(written_as), "\0").encode()
        path.write_bytes(path.read_bytes().replace(written_as.encode(), padded, 1))


UNCOMPRESSED = [
    uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian
]  # fmt: skip


@pytest.mark.parametrize("syntax", UNCOMPRESSED)
def test_every_uncompressed_syntax_is_read(tmp_path, syntax):
    for path in write_series(tmp_path, pixels=PIXELS, intercept=-24.0).iterdir():
        write_as(path, syntax)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(hu(tmp_path), STORED - 24)


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.RLELossless])
def test_compressed_syntaxes_are_read_and_damaged_streams_are_undecodable(tmp_path, syntax):
    rewrite(tmp_path, compress(syntax))
    np.testing.assert_array_equal(hu(tmp_path), STORED)
    path = sorted(tmp_path.iterdir())[0]
    content = bytearray(path.read_bytes())
    start = content.rindex(b"\xfe\xff\x00\xe0") + 8  # the item that holds the frame
    content[start : start + 60] = bytes(60)
    path.write_bytes(content)
    refusal = refused(tmp_path)
    assert (refusal.code, path.name in str(refusal)) == ("undecodable", True)


@pytest.mark.parametrize("kind", ["JPEGLosslessProcess14_1", "JPEGLosslessProcess14"])
def test_lossless_jpeg_is_read(tmp_path, kind):
    for path in write_series(tmp_path, pixels=PIXELS).iterdir():
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), None
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(path))
        assert writer.Write()
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(hu(tmp_path), STORED)


def test_pixels_may_be_more_than_claimed_and_never_less(tmp_path):
    def pad(dataset: Dataset) -> None:
        dataset.PixelData += b"\1" * 100_000  # excess padding, PS3.5 8.1.1

    rewrite(tmp_path, pad)
    np.testing.assert_array_equal(hu(tmp_path), STORED)
    path = sorted(write_series(tmp_path / "cut", pixels=PIXELS).iterdir())[1]
    os.truncate(path, path.stat().st_size - 2)
    refusal = refused(tmp_path / "cut")
    assert refusal.code == "truncated"
    assert f"{path.name} has 9214 bytes of pixels, its header claims 9216" in str(refusal)


FAULTS = [
    ({"Rows": 30000, "Columns": 30000}, "too_large"),
    ({"BitsAllocated": 12}, "bad_pixels"),
    ({"SamplesPerPixel": 3}, "colour"),
    ({"NumberOfFrames": 200_000}, "bad_frames"),
    ({"PixelData": None, "FloatPixelData": bytes(64 * 72 * 4)}, "float_pixels"),
]


@pytest.mark.parametrize(("values", "code"), FAULTS)
def test_claims_of_a_header_are_checked_before_memory_is_allocated(tmp_path, values, code):
    write_series(tmp_path, pixels=PIXELS, damage=lambda slices: put(**values)(slices[2:3]))
    assert refused(tmp_path).code == code


def jpeg_claims(stream: bytearray) -> None:
    start = next(n for n in range(len(stream)) if stream[n : n + 2] in (b"\xff\xf7", b"\xff\xc3"))
    stream[start + 5 : start + 9] = (20_000).to_bytes(2) * 2


def jpeg2000_claims(stream: bytearray) -> None:
    for start in (8, 12, 24, 28):  # of image and tile
        stream[start : start + 4] = (20_000).to_bytes(4)


def many_components(stream: bytearray) -> None:
    stream[40:42] = (16384).to_bytes(2)


def no_header(stream: bytearray) -> None:
    stream[4:44] = bytes(40)  # GDCM calls abort() then


CLAIMS = [(uid.JPEG2000Lossless, f) for f in (jpeg2000_claims, many_components, no_header)]


@pytest.mark.parametrize(("syntax", "claim"), [*CLAIMS, (uid.JPEGLSLossless, jpeg_claims)])
def test_a_codestream_of_another_size_reaches_no_decoder(tmp_path, monkeypatch, syntax, claim):
    def change(dataset: Dataset) -> None:
        compress(syntax)(dataset)
        stream = bytearray(next(generate_frames(dataset.PixelData, number_of_frames=1)))
        claim(stream)
        dataset.PixelData = encapsulate([bytes(stream)])

    rewrite(tmp_path, change)
    decoded = []
    monkeypatch.setattr(pixels, "pixel_array", lambda *_, **__: decoded.append(1))
    assert (refused(tmp_path).code, decoded) == ("undecodable", [])


UNKNOWN = [
    ("1.2.840.113619.5.2", "1.2.840.113619.5.2"),  # GE: implicit little endian, pixels big endian
    ("1.2.840.10008.1.2.8.1", uid.JPEGBaseline8Bit),  # frames deflated, which a SEG may be
    ("1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.102"),  # JPEG XL
]


@pytest.mark.parametrize(("syntax", "written_as"), UNKNOWN)
def test_a_syntax_that_nothing_decodes_is_named_with_what_to_do(tmp_path, syntax, written_as):
    for path in write_series(tmp_path).iterdir():
        write_as(path, syntax, written_as)
    refusal = refused(tmp_path)
    assert refusal.code == "undecodable"
    assert syntax in str(refusal) and "gdcmconv --raw" in str(refusal)


def test_an_error_of_reading_is_a_refusal_without_the_text_of_a_header():
    for error in (ValueError("no number: 'DOE^JOHN'"), PermissionError(13, "denied", "/DOE")):
        with pytest.raises(Refused) as refusal, parsing(Path("x.dcm")):
            raise error
        assert refusal.value.code == "unreadable"
        assert "DOE" not in str(refusal.value)
