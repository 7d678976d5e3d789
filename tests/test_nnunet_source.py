"""The sources ``nnunet`` and ``msd``: dataset.json, channels, and names of labels."""

import codecs
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pancseg.errors import PancsegError
from pancseg.intake.match_labels import SourceContents
from pancseg.intake.sources import find_msd, find_nnunet
from pancseg.intake.volume_files import ReadOptions
from pancseg.structures import Label
from tests.source_contents import codes_of, label_of, options, patients, skipped
from tests.tiny_labels import write_nrrd

NEW = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "pancreas": 1, "tumour": 2, "whole": [1, 2]},
    "file_ending": ".nii.gz",
}
OLD = {
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "pancreas", "2": "cancer"},
}
VOXELS = np.arange(8, dtype="uint8").reshape(2, 2, 2) // 2  # 0 to 3, each twice
Find = Callable[[Path, ReadOptions], SourceContents]
Make = Callable[..., Path]


def write(folder: Path, description: Any, *names: str) -> Path:
    """A data set of files with values 0, 1, 2 and 3."""
    folder.mkdir(parents=True, exist_ok=True)
    if description is not None:
        (folder / "dataset.json").write_text(json.dumps(description))
    for name in names:
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), path)
    return folder


def write_nnunet(folder: Path, description: Any = NEW) -> Path:
    return write(folder, description, "imagesTr/p7_0000", "labelsTr/p7")


def write_msd(folder: Path, description: Any = OLD) -> Path:
    return write(folder, description, "imagesTr/p7", "labelsTr/p7")


both = pytest.mark.parametrize(
    ("find", "make"), [(find_nnunet, write_nnunet), (find_msd, write_msd)]
)


def values_of(codes: np.ndarray, code: int = 1) -> list[int]:
    """Values of the file that became a code."""
    return np.unique(VOXELS[codes == code]).tolist()


@both
def test_an_image_matches_the_label_of_its_id(tmp_path: Path, find: Find, make: Make) -> None:
    contents = find(make(tmp_path), options())
    [case] = pickle.loads(pickle.dumps(contents.cases))
    assert (case.patient, contents.skipped, contents.warnings) == ("p7", [], [])
    assert case.files == (next(tmp_path.glob("imagesTr/*")), tmp_path / "labelsTr" / "p7.nii.gz")
    assert np.asarray(case.read_image().image.dataobj).max() == 3


@both
@pytest.mark.parametrize("description", [NEW, OLD])
@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (None, [1, 2, 3]),
        (["pancreas"], [1]),
        ([" Pancreas"], [1]),
        (["pancreas", 3], [1, 3]),
        (["1", 2], [1, 2]),
    ],
)
def test_labels_are_names_or_values(
    tmp_path: Path,
    find: Find,
    make: Make,
    description: Any,
    labels: list[Label] | None,
    values: list[int],
) -> None:
    [case] = find(make(tmp_path, description), options(pancreas=labels)).cases
    assert values_of(codes_of(case)) == values


def test_a_name_may_stand_for_several_values(tmp_path: Path) -> None:
    [case] = find_nnunet(write_nnunet(tmp_path), options(pancreas=["whole"])).cases
    assert values_of(codes_of(case)) == [1, 2]


def test_names_of_several_structures_become_their_codes(tmp_path: Path) -> None:
    chosen = options(pancreas=["pancreas", "tumour"], tumour=["tumour"])
    [case] = find_nnunet(write_nnunet(tmp_path), chosen).cases
    assert (values_of(codes_of(case), 1), values_of(codes_of(case), 2)) == ([1], [2])


def test_structures_that_overlap_by_value_but_not_by_name_are_an_error(tmp_path: Path) -> None:
    chosen = options(pancreas=["whole"], tumour=["tumour"])
    with pytest.raises(PancsegError, match=r"give all labels as values; .* whole \[1, 2\]"):
        find_nnunet(write_nnunet(tmp_path), chosen)


def test_values_that_dataset_json_does_not_declare_are_named(tmp_path: Path) -> None:
    [case] = find_nnunet(write_nnunet(tmp_path), options()).cases
    assert label_of(case).unknown_values == ("3",)


@both
@pytest.mark.parametrize("label", ["liver", "background", ""])
def test_an_unknown_name_is_an_error(tmp_path: Path, find: Find, make: Make, label: str) -> None:
    sentence = rf"'{label}' is not in dataset.json, which has pancreas \[1\], cancer \[2\]"
    with pytest.raises(PancsegError, match=sentence):
        find(make(tmp_path, OLD), options(pancreas=[label]))


def test_the_ignore_label_is_background_and_flagged_or_refused(tmp_path: Path) -> None:
    labels = {"background": 0, "pancreas": 1, "duct": 2, "ignore": 3}
    write_nnunet(tmp_path, {**NEW, "labels": labels})
    voxels = np.ones((6, 6, 6), np.uint8)
    voxels[0, 0, :2] = 3, 0
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "labelsTr" / "p7.nii.gz")
    [case] = find_nnunet(tmp_path, options()).cases
    label = label_of(case)
    assert (label.flags, label.unknown_values) == (("ignore_label",), ())
    assert np.count_nonzero(label.image.dataobj) == 6**3 - 2


@both
@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ({"channel_names": {"0": "MRI"}, "labels": {}}, "channel 0 is 'MRI', expected"),
        ({"modality": {"0": "T2", "1": "CT"}, "labels": {}}, "channel 0 is 'T2'"),
        ({"labels": {"background": 0}}, 'expected "channel_names"'),
        ({"modality": {"1": "CT"}}, 'expected "channel_names"'),
        ({"modality": ["CT"]}, 'expected "channel_names"'),
        ({"modality": {"0": {"CT": 1}}}, 'expected "channel_names"'),
        (["CT"], "not a description of a data set"),
        (None, "holds no dataset.json"),
        ({"modality": {"0": "CT"}}, 'expected "labels"'),
        ({"modality": {"0": "CT"}, "labels": ["pancreas"]}, 'expected "labels"'),
        ({"modality": {"0": "CT"}, "labels": {"pancreas": "one"}}, 'expected "labels"'),
        ({"modality": {"0": "CT"}, "labels": {"pancreas": None}}, 'expected "labels"'),
        ({"modality": {"0": "CT"}, "labels": {"pancreas": [[1]]}}, 'expected "labels"'),
        ({"modality": {"0": "CT"}, "labels": {"pancreas": 1e999}}, 'expected "labels"'),
        ({**NEW, "file_ending": ".mha"}, "file_ending '.mha' is not read; convert to .nii.gz"),
        ({**NEW, "file_ending": ".png"}, "file_ending '.png' is not read"),
    ],
)
def test_a_description_that_cannot_be_used_is_an_error_of_a_line(
    tmp_path: Path, find: Find, make: Make, description: Any, sentence: str
) -> None:
    with pytest.raises(PancsegError, match=sentence) as error:
        find(make(tmp_path, description), options())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\0", b"null", b"[" * 10**5])
def test_a_damaged_description_is_an_error_of_a_line(tmp_path: Path, content: bytes) -> None:
    (write_nnunet(tmp_path) / "dataset.json").write_bytes(content)
    with pytest.raises(PancsegError, match="a description of a data set") as error:
        find_nnunet(tmp_path, options())
    assert "\n" not in str(error.value)


def test_a_description_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = write_nnunet(tmp_path) / "dataset.json"
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    assert len(find_nnunet(tmp_path, options()).cases) == 1


def test_a_folder_too_high_is_an_error_that_names_those_below(tmp_path: Path) -> None:
    for name in ("Task07", "Task03"):
        write_msd(tmp_path / name)
    with pytest.raises(PancsegError, match="give one of its folders: Task03, Task07"):
        find_msd(tmp_path, options())


def test_other_channels_are_dropped_and_ids_are_used_as_they_are(tmp_path: Path) -> None:
    names = ["p7_ct", "p7.seg", "p_0007"]
    write(tmp_path, NEW, *(f"imagesTr/{name}_0000" for name in names), "imagesTr/p7_ct_0001")
    write(tmp_path, None, *(f"labelsTr/{name}" for name in names))
    contents = find_nnunet(tmp_path, options())
    assert sorted(patients(contents)) == sorted(names)
    assert skipped(contents, "dropped") == [("p7_ct_0001.nii.gz", "other", "other_channel")]
    assert skipped(contents) == []


def test_images_and_labels_may_be_nrrd(tmp_path: Path) -> None:
    write(tmp_path, {**NEW, "file_ending": ".nrrd"})
    for name in ("imagesTr/p7_0000.nrrd", "labelsTr/p7.nrrd"):
        (tmp_path / name).parent.mkdir()
        write_nrrd(tmp_path / name, VOXELS)
    [case] = find_nnunet(tmp_path, options(pancreas=["tumour"])).cases
    assert values_of(codes_of(case)) == [2]


def test_a_pair_that_cannot_be_used_does_not_stop_the_others(tmp_path: Path) -> None:
    write(tmp_path, OLD, "imagesTr/a", "imagesTr/b", "imagesTr/c", "labelsTr/b", "labelsTr/d")
    write(tmp_path, None, "labelsTr/c")
    nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "labelsTr" / "c.nii")
    contents = find_msd(tmp_path, options())
    assert patients(contents) == ["b"]
    assert skipped(contents) == [
        ("a.nii.gz", "image", "no_label"),
        ("c.nii", "label", "ambiguous_label"),
        ("c.nii.gz", "image", "ambiguous_label"),
        ("c.nii.gz", "label", "ambiguous_label"),
        ("d.nii.gz", "label", "no_image"),
    ]
