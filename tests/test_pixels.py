"""Pixel data: every transfer syntax gives the same HU, and claims of headers are checked."""

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
SYNTAXES = [
    uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian,
    uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.RLELossless,
]  # fmt: skip


def hu(folder):
    return np.asarray(read(folder).image.dataobj)


def write(folder, change):
    """Write a series whose slices are changed before."""
    write_series(folder, pixels=PIXELS, damage=lambda slices: [change(each) for each in slices])


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_syntax_is_read(tmp_path, syntax):
    def change(dataset):
        if syntax.is_compressed:
            dataset.compress(syntax, generate_instance_uid=False)
        elif syntax == uid.ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax

    write(tmp_path, change)
    np.testing.assert_array_equal(hu(tmp_path), STORED)


def test_lossless_jpeg_is_read(tmp_path):
    for path in write_series(tmp_path, pixels=PIXELS).iterdir():
        reader, change = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax()
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(path))
        assert writer.Write()
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == uid.JPEGLosslessSV1
    np.testing.assert_array_equal(hu(tmp_path), STORED)


def test_bytes_after_the_pixels_are_read_over(tmp_path):  # PS3.5 8.1.1
    write(tmp_path, lambda dataset: put(PixelData=dataset.PixelData + bytes(10**5))([dataset]))
    np.testing.assert_array_equal(hu(tmp_path), STORED)


@pytest.mark.parametrize(("values", "code"), [
    ({"Rows": 30000, "Columns": 30000}, "too_large"), ({"BitsAllocated": 12}, "bad_pixels"),
    ({"SamplesPerPixel": 3}, "colour"), ({"NumberOfFrames": 200_000}, "bad_frames"),
    ({"PixelData": None, "FloatPixelData": bytes(64 * 72 * 4)}, "float_pixels"),
])  # fmt: skip
def test_claims_of_a_header_are_checked_before_memory_is_allocated(tmp_path, values, code):
    write_series(tmp_path, pixels=PIXELS, damage=put(2, **values))
    with pytest.raises(Refused, match=code):
        hu(tmp_path)


def test_a_codestream_of_another_size_reaches_no_decoder(tmp_path, monkeypatch):
    def change(dataset):
        dataset.compress(uid.JPEGLSLossless, generate_instance_uid=False)
        stream = bytearray(next(generate_frames(dataset.PixelData, number_of_frames=1)))
        start = stream.index(b"\xff\xf7")
        stream[start + 5 : start + 9] = (20_000).to_bytes(2) * 2
        dataset.PixelData = encapsulate([bytes(stream)])

    write(tmp_path, change)
    decoded = []
    monkeypatch.setattr(pixels, "pixel_array", lambda *_, **__: decoded.append(1))
    with pytest.raises(Refused, match="undecodable"):
        hu(tmp_path)
    assert decoded == []


def test_a_syntax_that_nothing_decodes_is_named_with_advice(tmp_path):
    general_electric = b"UI\x12\x001.2.840.113619.5.2"  # pixels are big endian, all else is not
    for path in write_series(tmp_path).iterdir():
        content = path.read_bytes()
        path.write_bytes(content.replace(b"UI\x14\x001.2.840.10008.1.2.1\0", general_electric, 1))
    with pytest.raises(Refused, match=r"undecodable: .* 1\.2\.840\.113619\.5\.2,.*gdcmconv --raw"):
        hu(tmp_path)
