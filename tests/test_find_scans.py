"""Scans to segment, and the names of their cases."""

import os
from pathlib import Path

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


def test_series_and_files_of_a_folder_are_found_and_labels_are_left_out(tmp_path: Path) -> None:
    write_series(tmp_path / "series", names=[f"{n}.img" for n in range(5)])  # slices named as files
    write_files(tmp_path, "a.nii.gz", "b/c.nii", "a_seg.nii.gz", "a-mask.nii", "label.nii.gz")
    write_nrrd(tmp_path / "d.nrrd", np.zeros((2, 2, 2), np.int16))
    contents = find(tmp_path)
    paths = sorted(case.path.relative_to(tmp_path).as_posix() for case in contents.cases)
    assert paths == ["a.nii.gz", "b/c.nii", "d.nrrd", "label.nii.gz", "series"]
    assert contents.skipped == []
    assert contents.warnings == ["2 label files are left out, such as a-mask.nii"]
    assert [case.path.name for case in find(tmp_path / "a.nii.gz").cases] == ["a.nii.gz"]


def test_only_refused_input_gets_a_row_and_a_pipe_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    write_series(tmp_path / "mr", modality="MR")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "scan.mha").write_text("text")
    contents = find(tmp_path)
    expected = [("mr", "image", "not_ct"), ("scan.mha", "image", "unread_format")]
    assert skipped(contents) == expected
    assert contents.skipped[1].reason.endswith("; modality=any takes it")
    os.mkfifo(tmp_path / "pipe.nii.gz")
    assert skipped(find(tmp_path / "pipe.nii.gz")) == [("pipe.nii.gz", "other", "not_a_file")]


def test_nothing_to_segment_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    for path, text in ((tmp_path, "neither a CT series nor"), (tmp_path / "missing", "no such")):
        with pytest.raises(PancsegError, match=text):
            find(path)


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


def test_files_below_a_folder_have_a_hash_in_their_name_and_series_a_hash_of_their_uid(
    tmp_path: Path,
) -> None:
    write_files(tmp_path, "a.nii.gz", "DOE/b.nii", os.fsdecode(b"p\xe4t.nii"))
    below, own, undecoded = names(tmp_path)
    assert (below[:2], len(below), own) == ("b-", len("b-") + 12, "a")
    assert undecoded.startswith("p-t-")  # bytes of no encoding are not written into names
    for n, folder in enumerate(("DOE", "other")):
        write_series(tmp_path / "ct" / folder, patient_id="DOE", series_uid=f"1.2.{n}")
    series = names(tmp_path / "ct")
    assert len(set(series)) == 2 and all(name.startswith("series-") for name in series)


def test_names_differ_where_capitals_do_not_count_and_are_safe_on_every_file_system(
    tmp_path: Path,
) -> None:
    write_files(tmp_path / "1", "a.nii", "A.nii.gz", "a-2.nii", "a.nii.gz", "b.nii")
    same = names(tmp_path / "1")
    assert len({name.casefold() for name in same}) == 5 and {"b", "a-2"} < set(same)
    long, formula = "a" * 200, "=cmd|x"
    write_files(tmp_path / "2", f"{long}.nii.gz", f"{formula}.nii", "....nii")
    odd = names(tmp_path / "2")
    assert len(set(odd)) == 3
    assert all(len(name) < 80 and name[0].isalnum() for name in odd)
