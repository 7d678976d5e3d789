"""Headers: what each file is, of which series, and what of it is no slice of a volume."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, SecondaryCaptureImageStorage

from pancseg.dicom.series import Header, read_header
from tests.tiny_dicom import put, write_series
from tests.tiny_labels import Frame, at, write_segmentation


def header_of(folder: Path, damage: Any = None, **options: Any) -> Header:
    (path,) = write_series(folder, count=1, damage=damage, **options).iterdir()
    return read_header(path)


def code_of(header: Header) -> tuple[str, bool]:
    return header.problem.partition(":")[0], header.is_damaged


def test_attributes_are_read_stripped(tmp_path: Path) -> None:
    damage = put(QualityControlImage="YES", StudyInstanceUID="1.5", FrameOfReferenceUID="1.6")
    header = header_of(tmp_path, damage, series_uid="1.4", patient_id=" P-2 ")
    assert (header.uid, header.study_uid, header.frame_of_reference_uid) == ("1.4", "1.5", "1.6")
    assert (header.patient_id, header.modality, header.format) == ("P-2", "CT", "image")
    assert header.is_phantom
    assert code_of(header) == ("", False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("keyword", "name"),
    [("PatientID", "patient_id"), ("Modality", "modality"), ("SeriesInstanceUID", "uid")],
)
def test_text_is_cut_to_64_characters(tmp_path: Path, keyword: str, name: str) -> None:
    def damage(slices: list[Dataset]) -> None:
        slices[0].add_new(keyword, "UT", "9" * 200_000)

    header = header_of(tmp_path, damage)
    assert getattr(header, name) == "9" * 64


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImageType": ["DERIVED", "SECONDARY", "REF_SURVIEW"]}, "localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "SURVIEW", "HELIX"]}, "localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "SCOUT"]}, "localizer"),
        (
            {
                "ImageType": ["DERIVED", "SECONDARY", "REF_SURVIEW"],
                "SOPClassUID": SecondaryCaptureImageStorage,
                "ImagePositionPatient": None,
            },
            "localizer",
        ),
        (
            {"SOPClassUID": SecondaryCaptureImageStorage, "ImagePositionPatient": None},
            "secondary_capture",
        ),
        ({"SOPClassUID": BasicTextSRStorage, "Modality": "SR", "Rows": None}, "not_an_image"),
        ({"SOPClassUID": "1.3.12.2.1107.5.9.1", "Rows": None}, "not_an_image"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, ""),
        ({"ImageType": "SCOUT"}, "localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "NOT_LOCALIZER"]}, ""),
        ({}, ""),
    ],
)
def test_objects_that_are_no_slices_are_dropped(
    tmp_path: Path, values: dict[str, Any], code: str
) -> None:
    header = header_of(tmp_path, put(**values))
    assert code_of(header) == (code, False)


@pytest.mark.parametrize("uid", ["", "1.2.840.10008.5.1.4.1.1.2"])
def test_a_ct_without_rows_is_damaged(tmp_path: Path, uid: str) -> None:
    header = header_of(tmp_path, lambda slices: delattr(slices[0], "Rows"), series_uid="1.4")
    assert code_of(header) == ("unreadable", True)
    assert header.uid == "1.4"


@pytest.mark.parametrize(
    ("name", "content", "code", "is_damaged"),
    [
        ("LICENSE", b"not DICOM", "not_dicom", False),
        ("text.dcm", b"not DICOM", "not_dicom", True),
        ("READY", b"", "empty_file", False),
        ("empty.dcm", b"", "empty_file", True),
        ("x", bytes(128) + b"DICM" + b"\1" * 40, "unreadable", True),
    ],
)
def test_foreign_files_are_distinguished_from_damaged_ones(
    tmp_path: Path, name: str, content: bytes, code: str, is_damaged: bool
) -> None:
    (tmp_path / name).write_bytes(content)
    assert code_of(read_header(tmp_path / name)) == (code, is_damaged)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # a UID cut in the middle
def test_a_file_cut_short_anywhere_has_a_header(tmp_path: Path) -> None:
    (whole,) = write_series(tmp_path / "whole", count=1).iterdir()
    content = whole.read_bytes()
    for length in range(0, len(content), 7):
        whole.write_bytes(content[:length])
        assert read_header(whole).files == (whole,)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes")
def test_a_pipe_or_device_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.dcm")  # opening it would wait for a writer
    assert code_of(read_header(tmp_path / "pipe.dcm")) == ("not_a_file", False)
    assert code_of(read_header(Path("/dev/zero"))) == ("not_a_file", False)
    (tmp_path / "link.dcm").symlink_to(write_series(tmp_path / "a", count=1) / "001-0.dcm")
    assert read_header(tmp_path / "link.dcm").problem == ""


def test_a_file_that_cannot_be_opened_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = write_series(tmp_path, count=1).iterdir()

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    header = read_header(path)
    assert (header.problem, header.is_damaged) == ("unreadable: Permission denied", True)
    assert code_of(read_header(tmp_path / "gone.dcm")) == ("unreadable", True)


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
def test_a_file_name_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, count=1).iterdir()
    renamed = path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller.dcm"))
    assert read_header(renamed).problem == ""


@pytest.mark.parametrize(
    ("name", "manufacturer"),
    [
        ("SIEMENS", "siemens"),
        ("Siemens Healthineers", "siemens"),
        ("GE MEDICAL SYSTEMS", "ge"),
        ("Philips", "philips"),
        ("TOSHIBA", "canon"),
        ("CANON_MEC", "canon"),
        ("Imagenes SA", "other"),
        ("DOE^JOHN", "other"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_manufacturer_is_of_a_closed_list(
    tmp_path: Path, name: str | None, manufacturer: str
) -> None:
    damage = put(Manufacturer=name) if name is not None else None
    assert header_of(tmp_path, damage).manufacturer == manufacturer


@pytest.mark.parametrize(("agent", "contrast"), [("Iohexol", "yes"), ("", "no"), (None, "unknown")])
def test_contrast_follows_the_presence_of_an_agent(
    tmp_path: Path, agent: str | None, contrast: str
) -> None:
    damage = put(ContrastBolusAgent=agent) if agent is not None else None
    assert header_of(tmp_path, damage).contrast == contrast


def test_a_seg_refers_to_series(tmp_path: Path) -> None:
    def refer(dataset: Dataset) -> None:
        items = [Dataset(), Dataset(), Dataset()]
        for item, uid in zip(items, ("1.9", "1.8", "1.9"), strict=True):
            item.SeriesInstanceUID = uid
        dataset.ReferencedSeriesSequence = items

    file = write_segmentation(tmp_path / "x.dcm", [Frame([[1]], at(1))], damage=refer)
    header = read_header(file)
    assert (header.format, header.refers_to) == ("seg", ("1.8", "1.9"))
