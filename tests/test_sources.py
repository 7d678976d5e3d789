"""Sources: which files make cases, their labels and patients; ``test_defects.py`` has the rows."""

import codecs
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from pancseg.dicom.series import Scan
from pancseg.errors import PancsegError, Refused
from pancseg.geometry import oriented_like
from pancseg.intake.match_labels import SourceContents, read_label
from pancseg.intake.sources import find_dicom, find_ircadb, find_nifti_pairs, find_nih, find_nnunet
from pancseg.structures import LabelMap
from tests.source_contents import codes_of, label_of, options, pairs, patients, skipped
from tests.tiny_dicom import put, write_series
from tests.tiny_labels import Frame, at, item, write_nrrd, write_segmentation

VALUES = np.arange(8, dtype="uint8").reshape(2, 2, 2) // 2  # 0 to 3, each twice


def write_files(root: Path, *names: str) -> Path:
    for path in (root / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".nrrd":
            write_nrrd(path, VALUES)
        elif path.suffix == ".mha":
            path.touch()
        else:
            nib.save(nib.Nifti1Image(VALUES, np.eye(4)), path)
    return root


# nifti


def find(images: Path, labels: Path | None, patient: str | None = None) -> SourceContents:
    return find_nifti_pairs(images, labels, patient, options(pancreas=[3]))


def test_files_of_one_relative_path_and_stem_match(images, labels):
    names = {
        "a/p1_ct.nii.gz": "a/p1-seg.nii.gz", "p1.nii.gz": "p1.nii", "p2_image.nii": "p2_lbl.nii.gz",
        "p3.img.nii.gz": "p3.NII.GZ", "p4.nrrd": "p4.seg.nrrd",
    }  # fmt: skip
    write_files(images, *names)
    write_files(labels, *names.values())
    contents = pickle.loads(pickle.dumps(find(images, labels)))
    assert sorted(pairs(contents, images, labels)) == sorted(names.items())
    assert (contents.skipped, contents.warnings) == ([], [])
    for case in contents.cases:
        assert case.read_image().stack is None
        assert np.argwhere(codes_of(case)).tolist() == [[1, 1, 0], [1, 1, 1]]


def test_a_file_matches_a_file_whatever_their_names(tmp_path):
    write_files(tmp_path, "ct.nii.gz", "drawn/pancreas.nii.gz")
    contents = find(tmp_path / "ct.nii.gz", tmp_path / "drawn/pancreas.nii.gz")
    assert pairs(contents, tmp_path, tmp_path) == [("ct.nii.gz", "drawn/pancreas.nii.gz")]


@pytest.mark.parametrize(
    ("images", "labels", "cases", "refused"),
    [
        (["p1.nii", "p2.nii"], ["p2.nii", "p3.nii", "a/p1.nii"], ["p2"],
         [("p1.nii", "image", "no_label"), ("p1.nii", "label", "no_image"),
          ("p3.nii", "label", "no_image")]),
        (["p7.nii", "p7.nii.gz", "p8.nii"], ["p8.nii"], ["p8"],
         [("p7.nii", "image", "ambiguous_image"), ("p7.nii.gz", "image", "ambiguous_image")]),
        (["p7.nii"], ["p7_label.nii", "p7_seg.nii"], [],
         [("p7.nii", "image", "ambiguous_label"), ("p7_label.nii", "label", "ambiguous_label"),
          ("p7_seg.nii", "label", "ambiguous_label")]),
        (["p2.nii"], ["p2.nii", "p1.mha"], ["p2"], [("p1.mha", "label", "unread_format")]),
        (["1_01_0000.nii", "a/2_0000.nii", "a/2_0001.nii"], ["1_01.nii", "a/2.nii"],
         ["1_01", "a/2"], []),  # channels of nnU-Net
        (["c_0000.nii", "c_0001.nii"], ["c_0000.nii", "c_0001.nii", "c.nii"],
         ["c_0000", "c_0001"], [("c.nii", "label", "no_image")]),
        (["p7.nii", "p7_0000.nii"], ["p7.nii"], ["p7"], [("p7_0000.nii", "image", "no_label")]),
    ],
)  # fmt: skip
def test_files_without_partner_are_refused(tmp_path, images, labels, cases, refused):
    write_files(tmp_path / "images", *images)
    write_files(tmp_path / "labels", *labels)
    contents = find(tmp_path / "images", tmp_path / "labels")
    assert (sorted(patients(contents)), skipped(contents)) == (cases, refused)


def test_without_labels_every_image_is_a_case(images):
    write_files(images, "p1.nii.gz", "a/p1.nii.gz", "p2.seg.nrrd", "labels/p1.nii.gz")
    assert sorted(patients(find(images, images / "labels"))) == ["p1"]
    contents = find(images, None)
    assert sorted(patients(contents)) == ["a/p1", "labels/p1", "p1"]
    assert {case.read_label for case in contents.cases} == {None}
    with pytest.raises(PancsegError, match=r"is also source\.labels"):
        find(images, images)


@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        ("*/ct.nii*", "*/mask/pancreas.nii", ["s1", "s2"]),
        ("s?/ct.nii", "s?/mask/pancreas*", ["1", "2"]),
        ("*/deep/image", "*/deep/mask", ["s1/p1", "s1/x/p2"]),
    ],
)
def test_the_text_of_wildcards_names_the_patient(tmp_path, images, labels, expected):
    write_files(tmp_path, "s1/ct.nii", "s1/mask/pancreas.nii", "s2/ct.nii", "s2/mask/pancreas.nii")
    deep = ("s1/deep/{}/p1.nii", "s1/deep/{}/x/p2.nii")
    write_files(tmp_path, "s3/ct.nii", *(d.format(r) for d in deep for r in ("image", "mask")))
    assert patients(find(tmp_path / images, tmp_path / labels)) == expected


@pytest.mark.parametrize(
    ("names", "pattern", "expected"),
    [
        (("liver_3_0", "liver_12_0"), r"liver_(?P<patient>\d+)", ["12", "3"]),
        (("p3/ct_a", "p3/ct_b"), "^(?P<patient>[^/]+)/", ["p3", "p3"]),
        (("liver_3",), r"scan_(?P<patient>\d+)", "finds none in liver_3"),
        (("liver_3",), "liver_(?P<patient>x*)", "finds none in liver_3"),
        (("liver_3",), r"liver_(\d+)", "finds none in liver_3"),
        (("liver_3",), "liver_(?P<patient>", "finds none in liver_3"),
    ],
)
def test_a_regular_expression_names_the_patient(images, names, pattern, expected):
    write_files(images, *(f"{name}.nii.gz" for name in names))
    if isinstance(expected, list):
        assert sorted(patients(find(images, None, pattern))) == expected
    else:
        with pytest.raises(PancsegError, match=f"source.patient=.*{expected}.*group named patient"):
            find(images, None, pattern)


@pytest.mark.parametrize(
    ("names", "is_warned"),
    [(("l_1_0", "l_1_1"), True), (("sub-01_ses-1", "sub-01_ses-2"), True),
     (("a/p_1", "a/p_2"), False), (("case_001", "case_002"), False), (("l_1_0", "l_2_0"), False)],
)  # fmt: skip
def test_names_that_differ_in_a_second_number_are_warned_of(images, names, is_warned):
    write_files(images, *(f"{name}.nii.gz" for name in names))
    expected = f"{names[0]} and {names[1]} look like parts of one patient"
    warnings = find(images, None).warnings
    assert [text.startswith(expected) for text in warnings] == [True] * is_warned


# dicom


def series(images: Path, labels: Path | None = None, modality: str = "CT") -> SourceContents:
    return find_dicom(images, labels, modality, options())


def test_a_case_reads_its_image_and_mask_in_other_processes(images, labels):
    values = {"Manufacturer": "GE MEDICAL SYSTEMS", "ContrastBolusAgent": "agent"}
    write_series(images / "p1", series_uid="1.2.3", damage=put(**values, StudyInstanceUID="1.2"))
    write_series(labels / "p1", pixels=np.eye(5)[:, :4, None] + [0, 0, 0], modality="OT")
    (labels / "p1" / "x.dcm").write_bytes(b"text")
    [case] = pickle.loads(pickle.dumps(series(images, labels).cases))
    assert len(case.files) == 10
    assert np.asarray(case.read_image().image.dataobj).max() == 432
    assert np.count_nonzero(codes_of(case)) == 12
    assert (case.manufacturer, case.contrast, case.flags) == ("ge", "yes", ("damaged_file",))
    assert (case.uid, case.study_uid, case.patient_id) == ("1.2.3", "1.2", "P-1")


def test_files_of_labels_match_the_folder_of_their_name(images, labels):
    drawn = np.zeros((3, 4, 5), np.uint8)
    drawn[1, 2, 3] = 1
    affine = np.array([[-0.5, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
    (labels / "p2").mkdir(parents=True)
    for n in (1, 2, 3):
        write_series(images / f"p{n}", patient_id=f"P-{n}")
    for name in ("p1.nii.gz", "p2/pancreas.nii"):
        nib.save(nib.Nifti1Image(drawn, affine), labels / name)
    write_nrrd(labels / "p3_ct.nrrd", drawn)
    contents = series(images, labels)
    expected = [("p1", "p1.nii.gz"), ("p2", "p2/pancreas.nii"), ("p3", "p3_ct.nrrd")]
    assert (pairs(contents, images, labels), contents.skipped) == (expected, [])
    for case in contents.cases:
        np.testing.assert_array_equal(codes_of(case), drawn)
    [alone] = series(images / "p1", labels / "p2" / "pancreas.nii").cases
    assert alone.label_path == labels / "p2" / "pancreas.nii"


def test_a_seg_among_the_images_is_their_label(images):
    write_series(images / "p1", series_uid="1.2.3.4")
    assert skipped(series(images, images)) == [("p1", "image", "no_label")]
    refer = put(ReferencedSeriesSequence=[item(SeriesInstanceUID="1.2.3.4")])
    frames = [Frame(np.ones((4, 3)), at(1))]
    write_segmentation(images / "p1" / "x.dcm", frames, damage=lambda dataset: refer([dataset]))
    contents = series(images, images)
    assert pairs(contents, images, images) == [("p1", "p1/x.dcm")]
    assert np.count_nonzero(codes_of(contents.cases[0])) == 12
    scan = Scan(nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4)))
    with pytest.raises(Refused, match="label_needs_dicom"):
        read_label("seg", (images / "p1" / "x.dcm",), options(), scan)


@pytest.mark.parametrize(("images", "labels"), [("", "masks"), ("scans", "")])
def test_files_of_two_folders_belong_to_the_inner(tmp_path, images, labels):
    outer = tmp_path / "outer"
    write_series(outer / (images or "scan") / "p1")
    write_series(outer / (labels or "mask") / "p1")
    contents = series(outer / images, outer / labels)
    assert (len(contents.cases), contents.skipped) == (1, [])
    write_series(tmp_path / "plain" / "p1")
    assert series(tmp_path / "plain" / "*", tmp_path / "plain").cases == []


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"first": ("P-1", "1.1"), "second": ("P-1", "1.2")}, ["P-1", "P-1"]),
        ({"site/p7": ("  ", "")}, ["site/p7"]),
        ({".": ("", "1.1")}, ["images"]),
        ({"a/1": ("", "1.1"), "a/2": ("", "1.1"), "b": ("", "1.2")}, ["a/1", "a/1", "b"]),
        ({"a": ("", "1.1"), "b": ("P-7", "1.1")}, ["P-7", "P-7"]),
        ({"a": ("", ""), "b": ("P-7", "")}, ["a", "P-7"]),
    ],
)
def test_the_patient_is_that_of_the_study_or_a_folder(images, written, expected):
    for name, (patient_id, study) in written.items():
        write_series(images / name, patient_id=patient_id, damage=put(StudyInstanceUID=study))
    assert patients(series(images)) == expected


@pytest.mark.parametrize(("ids", "is_warned"), [("XXX", True), ("XYZ", False), ("XX", False)])
def test_scans_of_one_patient_id_are_warned_of(images, ids, is_warned):
    for n, patient_id in enumerate(ids):
        write_series(images / f"p{n}", patient_id=patient_id)
    assert any("same PatientID" in text for text in series(images).warnings) == is_warned


def identities(images: Path) -> list[str]:
    return [case.input_key for case in series(images).cases]


def test_the_identity_stays_where_a_series_moves_or_a_second_copy_appears(images):
    before = identities(write_series(images / "DIR1").parent)
    shutil.copytree(images / "DIR1", images / "DIR2")
    assert identities(images) == before
    shutil.rmtree(images / "DIR1")
    assert identities(images) == before
    for uid in ("1.2.3", ""):  # of an anonymiser, or none
        for n in (0, 1):
            damage = put(SeriesInstanceUID=uid, StudyInstanceUID="1.2")
            write_series(images / f"uid{uid}" / f"p{n}", first=(0, 0, n), damage=damage)
        assert len(set(identities(images / f"uid{uid}"))) == 2


def test_another_modality_is_dropped_beside_a_scan_and_read_if_wanted(images):
    write_series(images / "p1", modality="MR", names=list("abcde"))
    assert skipped(series(images)) == [("p1", "image", "not_ct")]
    write_series(images / "p1", names=list("vwxyz"))
    assert skipped(series(images), "dropped") == [("a", "other", "not_ct")]
    assert len(series(images, modality="any").cases) == 2


# nnunet and msd

NEW = {
    "channel_names": {"0": "CT"}, "file_ending": ".nii.gz",
    "labels": {"background": 0, "pancreas": 1, "tumour": 2, "whole": [1, 2]},
}  # fmt: skip
OLD = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "pancreas", "2": "tumour"}}


def write_nnunet(folder: Path, description: Any = NEW, name: str = "p7_0000") -> Path:
    write_files(folder, f"imagesTr/{name}.nii.gz", "labelsTr/p7.nii.gz")
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.mark.parametrize(("description", "name"), [(NEW, "p7_0000"), (OLD, "p7")])
@pytest.mark.parametrize(
    ("labels", "values"),
    [(None, [1, 2, 3]), ([" Pancreas"], [1]), (["pancreas", 3], [1, 3]), (["1", 2], [1, 2])],
)
def test_labels_are_names_or_values(tmp_path, description, name, labels, values):
    contents = find_nnunet(write_nnunet(tmp_path, description, name), options(pancreas=labels))
    assert (patients(contents), contents.skipped, contents.warnings) == (["p7"], [], [])
    [label] = map(label_of, contents.cases)
    assert np.unique(VALUES[np.asarray(label.image.dataobj) == 1]).tolist() == values
    assert label.unknown_values == (("3",) if labels is None else ())


def test_names_of_several_structures_become_their_codes(tmp_path):
    chosen = options(pancreas=["pancreas", "tumour"], tumour=["tumour"])
    [case] = find_nnunet(write_nnunet(tmp_path), chosen).cases
    assert codes_of(case).ravel().tolist() == [0, 0, 1, 1, 2, 2, 0, 0]
    with pytest.raises(PancsegError, match=r"give all labels as values; .* whole \[1, 2\]"):
        find_nnunet(tmp_path, options(pancreas=["whole"], tumour=["tumour"]))
    with pytest.raises(PancsegError, match=r"'liver' is not in dataset.json, which has pancreas"):
        find_nnunet(tmp_path, options(pancreas=["liver"]))


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ({"modality": {"0": "T2", "1": "CT"}, "labels": {}}, "channel 0 is 'T2'"),
        ({"labels": {"background": 0}}, 'expected "channel_names"'),
        ({"modality": ["CT"]}, 'expected "channel_names"'),
        (["CT"], "not a description of a data set"),
        ({"modality": {"0": "CT"}}, 'expected "labels"'),
        ({"modality": {"0": "CT"}, "labels": {"pancreas": [[1]]}}, 'expected "labels"'),
        ({"modality": {"0": "CT"}, "labels": {"pancreas": 1e999}}, 'expected "labels"'),
        ({**NEW, "file_ending": ".mha"}, "file_ending '.mha' is not read; convert to .nii.gz"),
        ({**NEW, "dataset": ["p7"]}, 'expected "dataset"'),
        ({**NEW, "dataset": {"p7": {"images": [], "label": "x"}}}, 'expected "dataset"'),
        ({**NEW, "dataset": {"p7": {"images": ["../a"], "label": "x"}}}, "outside of its folder"),
    ],
)
def test_a_description_of_no_use_is_an_error(tmp_path, description, sentence):
    with pytest.raises(PancsegError, match=sentence):
        find_nnunet(write_nnunet(tmp_path, description), options())


def test_files_that_the_description_lists_are_read_where_they_lie(tmp_path):
    listed = {"p7": {"images": ["ct/a.nii.gz", "pet/a.nii.gz"], "label": "./b/x.nii.gz"}}
    write_files(tmp_path, "ct/a.nii.gz", "pet/a.nii.gz", "b/x.nii.gz", "ct/unlisted.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({**NEW, "dataset": listed}))
    [case] = find_nnunet(tmp_path, options(pancreas=["pancreas"])).cases
    assert (case.path, case.label_path) == (tmp_path / "ct/a.nii.gz", tmp_path / "b/x.nii.gz")
    assert case.patient == "p7"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"null", b"[" * 10**5])
def test_a_damaged_description_is_an_error_of_a_line(tmp_path, content):
    file = write_nnunet(tmp_path / "Task07") / "dataset.json"
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    assert len(find_nnunet(tmp_path / "Task07", options()).cases) == 1
    with pytest.raises(PancsegError, match=r"no dataset\.json; give one of its folders: Task07"):
        find_nnunet(tmp_path, options())
    file.write_bytes(content)
    with pytest.raises(PancsegError, match=r"^[^\n]*a description of a data set[^\n]*$"):
        find_nnunet(tmp_path / "Task07", options())


# 3D-IRCADb

SHAPE, AFFINE = (
    (20, 24, 7),
    np.array([[-3.5, 0, 0, 30], [0, -3, 0, 36], [0, 0, 5, 12], [0, 0, 0, 1]]),
)
PATIENTS = ["3Dircadb1.1", "3Dircadb1.2"]


def mask_of(n: int, organ: str) -> np.ndarray:
    left = {"pancreas": 3, "liver": 11}[organ] + n
    mask = np.zeros(SHAPE, np.uint8)
    mask[left : left + 5, 6 : 16 + n, 1:6] = 1
    return mask


def anonymous(is_mask: bool) -> Callable[[list[Dataset]], None]:
    """A study for each series, no frame of reference; masks of 8 bits, 0 and 255."""

    def damage(slices: list[Dataset]) -> None:
        put(StudyInstanceUID=generate_uid(), FrameOfReferenceUID=None)(slices)
        for dataset in slices if is_mask else ():
            dataset.BitsAllocated = dataset.BitsStored = 8
            dataset.HighBit, dataset.PixelRepresentation = 7, 0
            dataset.PixelData = dataset.PixelData[::2]
            del dataset.RescaleSlope, dataset.RescaleIntercept

    return damage


@pytest.fixture
def ircadb(tmp_path):
    """Two patients with a pancreas and a liver each."""
    shape: dict[str, Any] = {"first": (-30, -36, 12), "gap_mm": 5, "pixel_spacing": (3, 3.5)}
    for n, name in enumerate(PATIENTS):
        folders = {"PATIENT_DICOM": np.random.default_rng(n).integers(-1000, 1500, SHAPE)}
        folders["LABELLED_DICOM"] = mask_of(n, "pancreas")
        folders |= {
            f"MASKS_DICOM/{o}": 255 * mask_of(n, o).astype(int) for o in ("pancreas", "liver")
        }
        for folder, values in folders.items():
            damage = anonymous(folder.startswith("MASKS"))
            path = tmp_path / "3Dircadb1" / name / folder
            write_series(path, pixels=values.T, patient_id="", damage=damage, **shape)
    return tmp_path / "3Dircadb1"


def test_every_patient_of_ircadb_has_its_own_mask_of_the_organ(ircadb):
    shutil.rmtree(ircadb / PATIENTS[0] / "MASKS_DICOM" / "liver")
    contents = find_ircadb(ircadb, "pancreas", options())
    assert (patients(contents), contents.skipped, contents.warnings) == (PATIENTS, [], [])
    for n, case in enumerate(contents.cases):
        hu = np.random.default_rng(n).integers(-1000, 1500, SHAPE)
        np.testing.assert_array_equal(case.read_image().image.dataobj, hu)
        np.testing.assert_allclose(case.read_image().image.affine, AFFINE, atol=1e-4)
        np.testing.assert_array_equal(codes_of(case), mask_of(n, "pancreas"))
    contents = find_ircadb(ircadb, "liver", options())
    assert patients(contents) == PATIENTS[1:]
    assert skipped(contents) == [("PATIENT_DICOM", "image", "no_label")]
    with pytest.raises(PancsegError, match=r"source.organ=spleen: .* liver, pancreas"):
        find_ircadb(ircadb, "spleen", options())
    with pytest.raises(PancsegError, match=r"give the folder of 3Dircadb1\.1.*unpacked"):
        find_ircadb(ircadb / PATIENTS[0], "pancreas", options())


# TCIA Pancreas-CT

SPACING_MM = (0.5, 0.8, 2.5)  # as tiny_dicom writes them
TRUTH = np.random.default_rng(5).integers(0, 2, (3, 4, 5))  # columns, rows, slices of the DICOM


def write_nih(root: Path, number: int = 1, patient_id: str | None = None) -> tuple[Path, Path]:
    """A scan whose HU are 100 in the organ and 0 around it, without its label."""
    images, labels, name = root / "images", root / "labels", f"PANCREAS_{number:04}"
    labels.mkdir(exist_ok=True)
    patient = name if patient_id is None else patient_id
    write_series(
        images / name / "study" / "Pancreas-63502", pixels=100 * TRUTH.T, patient_id=patient
    )
    return images, labels


def write_label(
    labels: Path, signs: Any = (-1, 1, 1), scale: Any = 1.0, origin: Any = (0, 0, 0),
    number: int = 1, voxels: np.ndarray = TRUTH[:, ::-1],
) -> None:  # fmt: skip
    """A label whose rows run against those of the DICOM, as in these files."""
    affine = np.diag([*np.multiply(signs, SPACING_MM) * scale, 1.0])
    affine[:3, 3] = origin
    nib.save(nib.Nifti1Image(voxels.astype("uint8"), affine), labels / f"label{number:04}.nii.gz")


def read_nih(images: Path, labels: Path) -> tuple[nib.Nifti1Image, LabelMap, np.ndarray]:
    """Image, label, and the label's voxels with the axes of the image."""
    [case] = pickle.loads(pickle.dumps(find_nih(images, labels, options()).cases))
    image, label = case.read_image().image, label_of(case)
    return image, label, np.asarray(oriented_like(label.image, image).dataobj)


@pytest.mark.parametrize("flipped", [None, 0, 1, 2])
def test_a_label_without_origin_lands_by_its_directions(tmp_path, flipped):
    images, labels = write_nih(tmp_path)
    write_label(labels, [s * (-1 if n == flipped else 1) for n, s in enumerate((-1, 1, 1))])
    image, label, voxels = read_nih(images, labels)
    expected = TRUTH if flipped is None else np.flip(TRUTH, flipped)
    np.testing.assert_array_equal(voxels, expected)
    np.testing.assert_allclose(label.image.affine, image.affine)
    assert label.flags == ("label_placed_by_axes",)


@pytest.mark.parametrize(
    ("options_", "is_placed"),
    [({"scale": 1.009}, True), ({"scale": (1, 1, 1.02)}, False), ({"scale": 0.98}, False),
     ({"voxels": TRUTH[:, :3]}, False), ({"origin": (10, 20 - 3 * 0.8, 30)}, False)],
)  # fmt: skip
def test_a_label_of_another_grid_stays(tmp_path, options_, is_placed):
    images, labels = write_nih(tmp_path)
    write_label(labels, **options_)
    assert (read_nih(images, labels)[1].flags == ("label_placed_by_axes",)) == is_placed


def test_scans_and_labels_of_nih_match_by_number(tmp_path):
    for number, patient_id in ((3, None), (7, ""), (12, "PANCREAS_0012")):
        images, labels = write_nih(tmp_path, number, patient_id)
    write_series(images / "other", patient_id="X")
    for number in (5, 7, 12):
        write_label(labels, number=number)
    shutil.copy(labels / "label0012.nii.gz", labels / "label12.nii.gz")
    shutil.copy(labels / "label0012.nii.gz", labels / "average.nii.gz")
    contents = find_nih(images, labels, options())
    assert pairs(contents, images, labels) == [
        ("PANCREAS_0007/study/Pancreas-63502", "label0007.nii.gz")
    ]
    assert sorted((kind, code) for _, kind, code in skipped(contents)) == [
        ("image", "ambiguous_label"), ("image", "no_label"), ("image", "no_number"),
        ("label", "ambiguous_label"), ("label", "ambiguous_label"), ("label", "no_image"),
        ("label", "no_number"),
    ]  # fmt: skip
    assert len(find_nih(images, None, options()).cases) == 3
