"""Pixel data: every transfer syntax gives the same HU, and claims of headers are checked."""

import os

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames

from pancseg.dicom import pixels
from pancseg.errors import Refused
from tests.tiny_dicom import put, read, write_series

PIXELS = np.random.default_rng(1).integers(-1000, 2000, (4, 64, 72))
STORED = PIXELS.transpose(2, 1, 0)


def hu(folder):
    return np.asarray(read(folder).image.dataobj)


def rewrite(folder, change):
    write_series(folder, pixels=PIXELS)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)


def refused(folder):
    with pytest.raises(Refused) as refusal:
        hu(folder)
    return refusal.value


@pytest.mark.parametrize("syntax", [
    uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian
])  # fmt: skip
def test_every_uncompressed_syntax_is_read(tmp_path, syntax):
    def change(slices):
        for dataset in slices:
            dataset.file_meta.TransferSyntaxUID = syntax
            if syntax == uid.ExplicitVRBigEndian:
                dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()

    write_series(tmp_path, pixels=PIXELS, intercept=-24.0, damage=change)
    np.testing.assert_array_equal(hu(tmp_path), STORED - 24)


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.RLELossless])
def test_compressed_syntaxes_are_read_and_damaged_streams_are_undecodable(tmp_path, syntax):
    rewrite(tmp_path, lambda dataset: dataset.compress(syntax, generate_instance_uid=False))
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
        reader, change = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax()
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
    # excess padding, PS3.5 8.1.1
    rewrite(tmp_path, lambda dataset: put(PixelData=dataset.PixelData + bytes(10**5))([dataset]))
    np.testing.assert_array_equal(hu(tmp_path), STORED)
    path = sorted(write_series(tmp_path / "cut", pixels=PIXELS).iterdir())[1]
    os.truncate(path, path.stat().st_size - 2)
    refusal = refused(tmp_path / "cut")
    assert refusal.code == "truncated"
    assert f"{path.name} has 9214 bytes of pixels, its header claims 9216" in str(refusal)


@pytest.mark.parametrize(("values", "code"), [
    ({"Rows": 30000, "Columns": 30000}, "too_large"),
    ({"BitsAllocated": 12}, "bad_pixels"),
    ({"SamplesPerPixel": 3}, "colour"),
    ({"NumberOfFrames": 200_000}, "bad_frames"),
    ({"PixelData": None, "FloatPixelData": bytes(64 * 72 * 4)}, "float_pixels"),
])  # fmt: skip
def test_claims_of_a_header_are_checked_before_memory_is_allocated(tmp_path, values, code):
    write_series(tmp_path, pixels=PIXELS, damage=put(2, **values))
    assert refused(tmp_path).code == code


def jpeg_claims(stream):
    start = next(n for n in range(len(stream)) if stream[n : n + 2] in (b"\xff\xf7", b"\xff\xc3"))
    stream[start + 5 : start + 9] = (20_000).to_bytes(2) * 2


def many_components(stream):
    stream[40:42] = (16384).to_bytes(2)


def no_header(stream):
    stream[4:44] = bytes(40)  # GDCM calls abort() then


CLAIMS = [(uid.JPEG2000Lossless, f) for f in (many_components, no_header)]


@pytest.mark.parametrize(("syntax", "claim"), [*CLAIMS, (uid.JPEGLSLossless, jpeg_claims)])
def test_a_codestream_of_another_size_reaches_no_decoder(tmp_path, monkeypatch, syntax, claim):
    def change(dataset):
        dataset.compress(syntax, generate_instance_uid=False)
        stream = bytearray(next(generate_frames(dataset.PixelData, number_of_frames=1)))
        claim(stream)
        dataset.PixelData = encapsulate([bytes(stream)])

    rewrite(tmp_path, change)
    decoded = []
    monkeypatch.setattr(pixels, "pixel_array", lambda *_, **__: decoded.append(1))
    assert (refused(tmp_path).code, decoded) == ("undecodable", [])


@pytest.mark.parametrize("syntax", [
    b"1.2.840.113619.5.2",  # GE: implicit little endian, pixels big endian
    b"1.2.840.10008.1.2.8.1",  # frames deflated, which a SEG may be
    b"1.2.840.10008.1.2.4.110",  # JPEG XL
])  # fmt: skip
def test_a_syntax_that_nothing_decodes_is_named_with_advice(tmp_path, syntax):
    padded = syntax + b"\0" * (len(syntax) % 2)
    element = b"UI" + len(padded).to_bytes(2, "little") + padded
    for path in write_series(tmp_path).iterdir():
        content = path.read_bytes()
        path.write_bytes(content.replace(b"UI\x14\x001.2.840.10008.1.2.1\0", element, 1))
    refusal = refused(tmp_path)
    assert refusal.code == "undecodable"
    assert syntax.decode() in str(refusal) and "gdcmconv --raw" in str(refusal)
