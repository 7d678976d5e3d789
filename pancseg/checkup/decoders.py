"""Decoders of compressed DICOM, each given a small image whose pixels are known."""

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array

from pancseg.checkup.findings import BROKEN, OK, Finding
from pancseg.dicom.pixels import decoder_of
from pancseg.errors import brief, quiet

SAMPLES = {
    "lossless JPEG": (
        uid.JPEGLosslessSV1,
        "/9j/wwALEAAgACABAREA/8QAFwABAQEBAAAAAAAAAAAAAAAAAAoJEP/aAAgBAQABAADgABfQAAAAAvoA"
        "AAAAX0AAAAAL6AAAAAF9AAAAAC+gAAAABfQAAAAAvoAAAAAX0AAAAAL6AAAAAF9AAAAAC+gAAAABfQAA"
        "AAAvoAAAAAX0AAAAAL6AABpYAAL6AAAAAF9AAAAAC+gAAAABfQAAAAAvoAAAAAX0AAAAAL6AAAAAF9AA"
        "AAAC+gAAAABfQAAAAAvoAAAAAX0AAAAAL6AAAAAF9AAAAAC+gAAAABfQAAP/2Q==",
    ),
    "JPEG-LS": (
        uid.JPEGLSLossless,
        "/9j/9wALDAAgACABAREA/9oACAEBAAAAAP9AAAAACfAgghCEIiIiIjwgfCDog4IYIYIYIYIwRgjBGCME"
        "YIwRBleSSSSSSSAALElVVVVAZ5wTBMEwTBMEwTBMEwTBMEwTBID/2Q==",
    ),
    "JPEG 2000": (
        uid.JPEG2000Lossless,
        "/0//UQApAAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABCwEB/1IADAAAAAEABQQEAAH/"
        "XAATQGBoaHBoaHBoaHBoaHBoaHD/ZAAlAAFDcmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjL/"
        "kAAKAAAAAACdAAH/k8/kDAgwf8P2AoPzAgABagSnwfmDQPwBgAgTYc28jwZCfA9Pn8P2C4H4BIAXLHOC"
        "c6gGUcWWfwx4Ecdd2Sh+LsP2FIH4B4Ahbg0jLjIWr712Jnz8aaOAWmjAnwDUxzclPLEjjHj8DBPPX8H5"
        "h8D8BAA18j+qvQkWAABgGSFdEg9naqrwDj6bB/tVGsdBf14P/9k=",
    ),
    "RLE": (
        uid.RLELossless,
        "AgAAAEAAAADAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAPEA8QPxAPED8QDxA/EA8QPxAPED8QDxA/EA8QPxAPED8QDxA/EA8QPxAPED8QDxA/EA8QPxAPED"
        "8QDxA/EA8QPxAfEF8QHxBfEB8QXxAfEF8QHxBfEB8QXxAfEF8QHxBfEB8QXxAfEF8QHxBfEB8QXxAfEF"
        "8QHxBfEB8QXxAfEF8QDx6PEA8ejxAPHo8QDx6PEA8ejxAPHo8QDx6PEA8ejxAPHo8QDx6PEA8ejxAPHo"
        "8QDx6PEA8ejxAPHo8QDx6PEs8RTxLPEU8SzxFPEs8RTxLPEU8SzxFPEs8RTxLPEU8SzxFPEs8RTxLPEU"
        "8SzxFPEs8RTxLPEU8SzxFPEs8RQ=",
    ),
}
"""Name, transfer syntax and one frame of :func:`picture`, base64."""


def picture() -> NDArray[np.uint16]:
    """What the samples hold: four squares of 0, 1000, 300 and 1300, ``(32, 32)``, 12 bits."""
    far = np.arange(32) >= 16
    return np.add.outer(far * 300, far * 1000).astype(np.uint16)


def decoders() -> Finding:
    """Every decoder, tried."""
    told = {name: problem(syntax, frame) for name, (syntax, frame) in SAMPLES.items()}
    broken = [f"{name} ({words})" for name, words in told.items() if words]
    facts: dict[str, Any] = {name: words or "ok" for name, words in told.items()}
    if broken:
        advice = "pip install -c constraints.txt -e . brings all decoders"
        return Finding("decoders", BROKEN, f"{'; '.join(broken)}; {advice}", facts)
    return Finding("decoders", OK, ", ".join(told), facts)


def problem(syntax: uid.UID, frame: str) -> str:
    """What is wrong with a decoder; empty where it gives the picture."""
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = syntax
    one.Rows = one.Columns = 32
    one.BitsAllocated, one.BitsStored, one.HighBit = 16, 12, 11
    one.SamplesPerPixel, one.PixelRepresentation = 1, 0
    one.PhotometricInterpretation = "MONOCHROME2"
    one.PixelData = encapsulate([base64.b64decode(frame)])
    try:
        with quiet():
            values = pixel_array(one, decoding_plugin=decoder_of(one))
    except Exception as error:  # decoders raise nearly anything
        return brief(error)
    return "" if np.array_equal(values, picture()) else "gives wrong pixels"
