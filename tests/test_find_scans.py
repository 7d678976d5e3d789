"""Scans to segment, and the names of their cases."""

import os
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from pancseg.errors import PancsegError
from pancseg.inference.find_scans import case_names, find_scans
from pancseg.intake.match_labels import SourceContents
from tests.source_contents import skipped
from tests.tiny_dicom import write_series
from tests.tiny_labels import write_nrrd


def find(path: Path) -> SourceContents:
    return find_scans(path, "CT", processes=1)


def names(path: Path) -> list[str]:
    return case_names(find(path).cases, path)


def write_files(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)), root / path)


def test_series_and_files_of_a_folder_are_found(tmp_path: Path) -> None:
    write_series(tmp_path / "series")
    write_files(tmp_path, "a.nii.gz", "b/c.nii")
    write_nrrd(tmp_path / "d.nrrd", np.zeros((2, 2, 2), np.int16))
    contents = find(tmp_path)
    found = sorted(case.path.relative_to(tmp_path).as_posix() for case in contents.cases)
    assert found == ["a.nii.gz", "b/c.nii", "d.nrrd", "series"]
    assert contents.skipped == []
    assert [case.path.name for case in find(tmp_path / "a.nii.gz").cases] == ["a.nii.gz"]
    assert len(find(tmp_path / "series").cases) == 1


def test_files_named_as_labels_are_left_out_with_a_warning(tmp_path: Path) -> None:
    write_files(tmp_path, "p1.nii.gz", "p1_seg.nii.gz", "p2-mask.nii", "label.nii.gz")
    (tmp_path / "p1.seg.nrrd").touch()
    contents = find(tmp_path)
    assert [case.path.name for case in contents.cases] == ["label.nii.gz", "p1.nii.gz"]
    [warning] = contents.warnings
    assert warning == "2 label files are left out, such as p1_seg.nii.gz"


def test_only_refused_input_gets_a_row(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    write_series(tmp_path / "mr", modality="MR")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "scan.mha").write_text("text")
    contents = find(tmp_path)
    assert skipped(contents) == [
        ("mr", "image", "not_ct"),
        ("scan.mha", "image", "unread_format"),
    ]
    assert contents.skipped[1].reason.endswith("; modality=any takes it")
    assert len(contents.skipped) == 2


def test_slices_named_as_files_of_another_format_are_read(tmp_path: Path) -> None:
    write_series(tmp_path, names=[f"{n}.img" for n in range(5)])
    contents = find(tmp_path)
    assert (len(contents.cases), contents.skipped) == (1, [])


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scan.nii.gz")
    assert skipped(find(tmp_path / "scan.nii.gz")) == [("scan.nii.gz", "other", "not_a_file")]


def test_nothing_to_segment_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(PancsegError, match="holds neither a CT series nor"):
        find(tmp_path)
    with pytest.raises(PancsegError, match="no such file or folder"):
        find(tmp_path / "missing")


def test_names_of_files_are_their_own_with_a_hash_of_the_folder_below(tmp_path: Path) -> None:
    write_files(tmp_path, "a.nii.gz", "DOE/b.nii", os.fsdecode(b"p\xe4t.nii"))
    below, *own = names(tmp_path)
    assert (below[:2], len(below)) == ("b-", len("b-") + 12)
    assert own[0] == "a"
    assert own[1].startswith("p-t-")  # bytes of no encoding are not written into names
    assert names(tmp_path / "a.nii.gz") == ["a"]


def test_names_of_series_are_hashes_of_their_uids(tmp_path: Path) -> None:
    write_series(tmp_path / "DOE", patient_id="DOE", series_uid="1.2.3")
    [name] = names(tmp_path)
    assert name.startswith("series-")
    write_series(tmp_path / "other", patient_id="DOE", series_uid="1.2.4")
    assert name in names(tmp_path)
    assert len(set(names(tmp_path))) == 2


def test_names_differ_also_where_capitals_do_not_count() -> None:
    paths = [Path(f"/in/{name}") for name in ("a.nii", "A.nii.gz", "a-2.nii", "a.nrrd", "b.nii")]
    cases = [SimpleNamespace(format="file", path=path) for path in paths]
    assert case_names(cases, Path("/in")) == ["a", "A-2", "a-2-2", "a-3", "b"]


def test_a_pattern_names_the_scans_of_folders_that_hold_masks_too(tmp_path: Path) -> None:
    """As TotalSegmentator's data set: a folder a patient, with ct.nii.gz and segmentations/."""
    for patient in ("s1", "s2"):
        write_files(tmp_path, f"{patient}/ct.nii.gz", f"{patient}/segmentations/liver.nii.gz")
    write_files(tmp_path, "labelsTr/s3.nii.gz")
    by_pattern = [case.path.parent.name for case in find(tmp_path / "*" / "ct.nii.gz").cases]
    assert by_pattern == ["s1", "s2"]
    assert len(set(names(tmp_path / "*" / "ct.nii.gz"))) == 2
    contents = find(tmp_path)
    assert [case.path.name for case in contents.cases] == ["ct.nii.gz", "ct.nii.gz"]
    assert contents.warnings == ["3 label files are left out, such as s3.nii.gz"]


def test_names_are_safe_on_every_file_system_and_in_spreadsheets(tmp_path: Path) -> None:
    long, formula = "a" * 200, "=cmd|x"
    write_files(tmp_path, f"{long}.nii.gz", f"{formula}.nii", "....nii")
    found = names(tmp_path)
    assert len(set(found)) == 3
    for name in found:
        assert len(name) < 80
        assert name[0].isalnum()
