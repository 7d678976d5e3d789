"""Layouts of public data sets: nnU-Net, Medical Segmentation Decathlon, TCIA Pancreas-CT."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pancseg.errors import PancsegError
from pancseg.geometry import oriented_like
from pancseg.intake.found import Choice, Found, Mask, Reading
from pancseg.intake.layouts.nih import find_nih
from pancseg.intake.layouts.nnunet import chosen, find_msd, find_nnunet
from tests.tiny_dicom import write_series

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
Find = Callable[[Path, Reading], Found]


def write(folder: Path, described: Any, *names: str) -> Path:
    """A data set of files with values 0, 1, 2 and 3."""
    folder.mkdir(parents=True, exist_ok=True)
    if described is not None:
        (folder / "dataset.json").write_text(json.dumps(described))
    for name in names:
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), path)
    return folder


def write_nnunet(folder: Path, described: Any = NEW) -> Path:
    return write(folder, described, "imagesTr/p7_0000", "labelsTr/p7")


def write_msd(folder: Path, described: Any = OLD) -> Path:
    return write(folder, described, "imagesTr/p7", "labelsTr/p7")


def rows(found: Found) -> list[tuple[str, str, str, str]]:
    """Name, kind, status and reason code of each stray."""
    return sorted(
        (one.path.name, one.kind, one.status, one.reason.split(":")[0]) for one in found.strays
    )


def mask_of(found: Found) -> Mask:
    """The label of the only candidate, read as another process would."""
    (one,) = pickle.loads(pickle.dumps(found.candidates))
    mask = one.read_label(one.read_image())
    assert isinstance(mask, Mask)
    return mask


def values_of(mask: Mask) -> list[int]:
    """Which of the values written became the mask."""
    return np.unique(VOXELS[np.asarray(mask.image.dataobj) == 1]).tolist()


LAYOUTS = pytest.mark.parametrize(
    ("find", "make"), [(find_nnunet, write_nnunet), (find_msd, write_msd)]
)


# nnU-Net and the Decathlon


@LAYOUTS
def test_an_image_goes_with_the_label_of_its_id(
    tmp_path: Path, find: Find, make: Callable[[Path], Path]
) -> None:
    folder = make(tmp_path)
    found = find(folder, Reading())
    (one,) = found.candidates
    assert (one.patient, found.strays) == ("p7", [])
    assert one.files == (next(folder.glob("imagesTr/*")), folder / "labelsTr" / "p7.nii.gz")
    assert np.asarray(one.read_image().image.dataobj).max() == 3


@LAYOUTS
@pytest.mark.parametrize("described", [NEW, OLD])
@pytest.mark.parametrize(
    ("choice", "values", "undeclared"),
    [
        (None, [1, 2, 3], ("3",)),
        (("pancreas",), [1], ("3",)),
        ((" Pancreas",), [1], ("3",)),
        (("pancreas", 3), [1, 3], ()),
        (("1", 2), [1, 2], ("3",)),
        ((2,), [2], ("3",)),
    ],
)
def test_labels_are_chosen_by_their_names_or_values(
    tmp_path: Path,
    find: Find,
    make: Callable[[Path, Any], Path],
    described: Any,
    choice: Choice,
    values: list[int],
    undeclared: tuple[str, ...],
) -> None:
    mask = mask_of(find(make(tmp_path, described), Reading(choice)))
    assert (values_of(mask), mask.undeclared) == (values, undeclared)


def test_a_name_may_stand_for_several_values(tmp_path: Path) -> None:
    assert values_of(mask_of(find_nnunet(write_nnunet(tmp_path), Reading(("whole",))))) == [1, 2]


def test_voxels_to_ignore_are_no_organ(tmp_path: Path) -> None:
    described = {**NEW, "labels": {"background": 0, "pancreas": 1, "duct": 2, "ignore": 3}}
    mask = mask_of(find_nnunet(write_nnunet(tmp_path, described), Reading()))
    assert (values_of(mask), mask.undeclared) == ([1, 2], ())
    assert chosen(None, {"pancreas": (1,), "ignore": (3,)}) == (1,)
    assert chosen(("ignore",), {"pancreas": (1,), "ignore": (3,)}) == (3,)


@LAYOUTS
@pytest.mark.parametrize("word", ["liver", "background", ""])
def test_a_name_that_the_data_set_does_not_have_is_an_error(
    tmp_path: Path, find: Find, make: Callable[[Path, Any], Path], word: str
) -> None:
    with pytest.raises(PancsegError, match=rf"'{word}', dataset.json has pancreas \[1\], cancer"):
        find(make(tmp_path, OLD), Reading((word,)))


@LAYOUTS
@pytest.mark.parametrize(
    ("described", "sentence"),
    [
        ({"channel_names": {"0": "MRI"}, "labels": {}}, "channel 0 is 'MRI', expected 'CT'"),
        ({"modality": {"0": "T2", "1": "CT"}, "labels": {}}, "channel 0 is 'T2'"),
        ({"labels": {"background": 0}}, 'expected JSON with "channel_names"'),
        ({"modality": {"1": "CT"}}, 'expected JSON with "channel_names"'),
        ({"modality": ["CT"]}, 'expected JSON with "channel_names"'),
        (["CT"], 'expected JSON with "channel_names"'),
        ({"modality": {"0": "CT"}}, 'expected "labels"'),
        ({"modality": {"0": "CT"}, "labels": ["pancreas"]}, 'expected "labels"'),
        ({"modality": {"0": "CT"}, "labels": {"pancreas": "one"}}, 'expected "labels"'),
        ({"modality": {"0": "CT"}, "labels": {"pancreas": None}}, 'expected "labels"'),
        ({**NEW, "file_ending": ".png"}, "file_ending is '.png', expected '.nii.gz'"),
    ],
)
def test_a_data_set_that_is_no_ct_or_badly_described_is_an_error(
    tmp_path: Path,
    find: Find,
    make: Callable[[Path, Any], Path],
    described: Any,
    sentence: str,
) -> None:
    with pytest.raises(PancsegError, match=sentence) as error:
        find(make(tmp_path, described), Reading())
    assert "\n" not in str(error.value)


@LAYOUTS
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\0", b"null"])
def test_a_damaged_description_is_an_error(
    tmp_path: Path, find: Find, make: Callable[[Path], Path], content: bytes
) -> None:
    (make(tmp_path) / "dataset.json").write_bytes(content)
    with pytest.raises(PancsegError, match="expected JSON"):
        find(tmp_path, Reading())


@LAYOUTS
def test_a_folder_without_description_is_told_where_it_may_lie(
    tmp_path: Path, find: Find, make: Callable[[Path], Path]
) -> None:
    with pytest.raises(PancsegError, match=r"expected dataset\.json, imagesTr and labelsTr"):
        find(tmp_path, Reading())
    make(tmp_path / "Task07")
    with pytest.raises(PancsegError, match=r"too high; give source.folder=.*Task07"):
        find(tmp_path, Reading())
    make(tmp_path / "Task03")
    with pytest.raises(PancsegError, match=r"holds 2 data sets; .* Task03, Task07"):
        find(tmp_path, Reading())


def test_only_the_first_channel_is_read_and_what_has_none_is_refused(tmp_path: Path) -> None:
    write(tmp_path, NEW, "imagesTr/p7_0000", "imagesTr/p7_0001", "imagesTr/p8", "labelsTr/p7")
    found = find_nnunet(tmp_path, Reading())
    assert [one.path.name for one in found.candidates] == ["p7_0000.nii.gz"]
    assert rows(found) == [
        ("p7_0001.nii.gz", "other", "dropped", "other_channel"),
        ("p8.nii.gz", "image", "refused", "no_channel"),
    ]


@pytest.mark.parametrize("name", ["p7_ct", "p7.seg", "p_0007"])
def test_an_id_is_taken_as_it_stands(tmp_path: Path, name: str) -> None:
    write(tmp_path, NEW, f"imagesTr/{name}_0000", f"labelsTr/{name}")
    assert [one.patient for one in find_nnunet(tmp_path, Reading()).candidates] == [name]


@LAYOUTS
def test_what_is_kept_for_testing_and_what_macos_left_is_dropped(
    tmp_path: Path, find: Find, make: Callable[[Path], Path]
) -> None:
    write(make(tmp_path), None, "imagesTs/p9", "labelsTs/p9")
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (tmp_path / folder / "._p7.nii.gz").write_bytes(b"\0\5\26\7")
    found = find(tmp_path, Reading())
    assert len(found.candidates) == 1
    assert rows(found) == [
        *[("._p7.nii.gz", "other", "dropped", "resource_fork")] * 3,
        ("p9.nii.gz", "image", "dropped", "test_image"),
        ("p9.nii.gz", "label", "dropped", "test_label"),
    ]


def test_one_bad_pair_does_not_stop_the_others(tmp_path: Path) -> None:
    write(tmp_path, OLD, "imagesTr/a", "imagesTr/b", "imagesTr/c", "labelsTr/b", "labelsTr/d")
    write(tmp_path, None, "labelsTr/c")
    nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "labelsTr" / "c.nii")
    found = find_msd(tmp_path, Reading())
    assert [one.patient for one in found.candidates] == ["b"]
    assert rows(found) == [
        ("a.nii.gz", "image", "refused", "no_label"),
        ("c.nii", "label", "refused", "ambiguous_label"),
        ("c.nii.gz", "image", "refused", "ambiguous_label"),
        ("c.nii.gz", "label", "refused", "ambiguous_label"),
        ("d.nii.gz", "label", "refused", "no_image"),
    ]


# TCIA Pancreas-CT

FIRST, SPACING_MM = (-10.0, -20.0, 30.0), (0.5, 0.8, 2.5)  # as tiny_dicom writes them, LPS
TRUTH = np.random.default_rng(5).integers(0, 2, (3, 4, 5))  # columns, rows, slices of the DICOM


def write_nih(root: Path, number: int = 1, *, patient_id: str | None = None) -> tuple[Path, Path]:
    """A scan whose HU are 100 in the organ and 0 around it, without its label."""
    images, labels = root / "Pancreas-CT", root / "TCIA_pancreas_labels-02-05-2017"
    labels.mkdir(parents=True, exist_ok=True)
    name = f"PANCREAS_{number:04}"
    folder = images / name / "11-24-2015-PANCREAS0001" / "Pancreas-63502"
    write_series(
        folder, pixels=100 * TRUTH.T, patient_id=name if patient_id is None else patient_id
    )
    return images, labels


def write_label(
    labels: Path,
    signs: tuple[int, int, int] = (-1, 1, 1),
    *,
    scale: float | tuple[float, float, float] = 1.0,
    origin: tuple[float, float, float] = (0, 0, 0),
    number: int = 1,
) -> None:
    """The truth with its rows against the DICOM's, as these files are."""
    affine = np.diag([*np.multiply(signs, SPACING_MM) * scale, 1.0])
    affine[:3, 3] = origin
    flipped = TRUTH[:, ::-1].astype("uint8")
    nib.save(nib.Nifti1Image(flipped, affine), labels / f"label{number:04}.nii.gz")


def read_both(images: Path, labels: Path) -> tuple[nib.Nifti1Image, Mask, np.ndarray]:
    """Image, mask, and the mask's voxels with axes as the image's."""
    (one,) = pickle.loads(pickle.dumps(find_nih(images, labels, Reading()).candidates))
    scan = one.read_image()
    mask = one.read_label(scan)
    return scan.image, mask, np.asarray(oriented_like(mask.image, scan.image).dataobj)


def test_a_label_without_origin_lands_on_its_scan_voxel_for_voxel(tmp_path: Path) -> None:
    images, labels = write_nih(tmp_path)
    write_label(labels)
    image, mask, voxels = read_both(images, labels)
    np.testing.assert_array_equal(voxels, np.asarray(image.dataobj) == 100)
    np.testing.assert_array_equal(voxels, TRUTH)
    np.testing.assert_allclose(mask.image.affine, image.affine)
    assert mask.flags == ("label_placed_by_axes",)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_label_whose_affine_says_the_opposite_lands_the_opposite_way(
    tmp_path: Path, axis: int
) -> None:
    images, labels = write_nih(tmp_path)
    signs = [-1, 1, 1]
    signs[axis] *= -1
    write_label(labels, (signs[0], signs[1], signs[2]))
    _, mask, voxels = read_both(images, labels)
    np.testing.assert_array_equal(voxels, np.flip(TRUTH, axis))
    assert not np.array_equal(voxels, TRUTH)
    assert mask.flags == ("label_placed_by_axes",)


def test_a_label_that_lies_on_its_scan_is_not_flagged(tmp_path: Path) -> None:
    images, labels = write_nih(tmp_path)
    right, back, feet = -FIRST[0], -FIRST[1] - 3 * SPACING_MM[1], FIRST[2]
    write_label(labels, origin=(right, back, feet))
    image, mask, voxels = read_both(images, labels)
    np.testing.assert_array_equal(voxels, TRUTH)
    np.testing.assert_allclose(oriented_like(mask.image, image).affine, image.affine, atol=1e-5)
    assert mask.flags == ()


@pytest.mark.parametrize(
    ("scale", "is_placed"), [(1.009, True), (1.02, False), (0.98, False), ((1, 1, 1.02), False)]
)
def test_a_label_of_other_spacing_is_left_where_it_is(
    tmp_path: Path, scale: float | tuple[float, float, float], is_placed: bool
) -> None:
    images, labels = write_nih(tmp_path)
    write_label(labels, scale=scale)
    image, mask, _ = read_both(images, labels)
    assert (mask.flags == ("label_placed_by_axes",)) == is_placed
    assert np.allclose(mask.image.affine, image.affine) == is_placed


def test_a_label_of_other_shape_is_left_where_it_is(tmp_path: Path) -> None:
    images, labels = write_nih(tmp_path)
    affine = np.diag([*np.multiply((-1, 1, 1), SPACING_MM), 1.0])
    nib.save(nib.Nifti1Image(TRUTH[:, :3].astype("uint8"), affine), labels / "label0001.nii.gz")
    _, mask, _ = read_both(images, labels)
    assert (mask.image.shape, mask.flags) == ((3, 3, 5), ())


@pytest.mark.parametrize("patient_id", ["PANCREAS_0007", ""])
def test_scans_and_labels_are_tied_by_number(tmp_path: Path, patient_id: str) -> None:
    images, labels = write_nih(tmp_path, 7, patient_id=patient_id)
    write_nih(tmp_path, 12)
    write_label(labels, number=7)
    write_label(labels, number=12)
    found = find_nih(images, labels, Reading())
    assert [(one.patient, one.label_path) for one in found.candidates] == [
        ("PANCREAS_0007", labels / "label0007.nii.gz"),
        ("PANCREAS_0012", labels / "label0012.nii.gz"),
    ]
    (seven, _) = found.candidates
    assert seven.path == images / "PANCREAS_0007" / "11-24-2015-PANCREAS0001" / "Pancreas-63502"
    assert (len(seven.files), bool(seven.study_uid)) == (6, True)
    assert found.strays == []


def test_what_has_no_partner_or_two_is_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    images, labels = write_nih(tmp_path, 1)
    for number in (2, 3, 4):
        write_nih(tmp_path, number)
    write_series(images / "PANCREAS_0003" / "again", patient_id="PANCREAS_0003")
    write_series(images / "other", patient_id="X")
    write_series(images / "PANCREAS_0001" / "report", modality="SR", patient_id="PANCREAS_0001")
    for number in (1, 3, 4, 5):
        write_label(labels, number=number)
    (labels / "label4.nii.gz").write_bytes((labels / "label0004.nii.gz").read_bytes())
    (labels / "README.txt").touch()
    found = find_nih(images, labels, Reading())
    assert [one.patient for one in found.candidates] == ["PANCREAS_0001"]
    codes = sorted((kind, status, code) for _, kind, status, code in rows(found))
    assert codes == [
        ("image", "refused", "ambiguous_image"),
        ("image", "refused", "ambiguous_image"),
        ("image", "refused", "ambiguous_label"),
        ("image", "refused", "no_label"),
        ("image", "refused", "no_label"),
        ("label", "refused", "ambiguous_image"),
        ("label", "refused", "ambiguous_label"),
        ("label", "refused", "ambiguous_label"),
        ("label", "refused", "no_image"),
        ("other", "dropped", "no_image"),
        ("other", "dropped", "not_ct"),
    ]


def test_scans_may_stand_alone(tmp_path: Path) -> None:
    images, _ = write_nih(tmp_path)
    (one,) = find_nih(images, None, Reading()).candidates
    assert (one.read_label, one.label_path, len(one.files)) == (None, None, 5)
