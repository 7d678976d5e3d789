"""Sources: cases, their labels and patients; ``test_defects.py`` has the rows."""

import json
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import generate_uid

from pancseg.errors import PancsegError
from pancseg.geometry import oriented_like
from pancseg.intake.match_labels import SourceItem, match_labels
from pancseg.intake.sources import find_dicom, find_ircadb, find_nifti_pairs, find_nih, find_nnunet
from tests.source_contents import codes_of, label_of, options, pairs, patients, skipped
from tests.tiny_dicom import put, read, write_series
from tests.tiny_labels import Frame, at, item, write_nrrd, write_segmentation

VALUES = np.arange(8, dtype="uint8").reshape(2, 2, 2) // 2  # 0 to 3, each twice


def write_files(root, *names):
    for path in (root / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".nrrd":
            write_nrrd(path, VALUES)
        else:
            nib.save(nib.Nifti1Image(VALUES, np.eye(4)), path)
    return root


# matching of labels with images, by UIDs, PatientID, grid and path


def ct(key, patient_id="", **fields):
    """A series without grid; the key is its path and, unless given, its UID."""
    path = Path("/nowhere") / key
    own = {"format": "image", "uid": key, "names_patient": False, "key": key} | fields
    return SourceItem(folder=path, path=path, files=(path / "0.dcm",), patient_id=patient_id, **own)


def seg(key, patient_id="", **fields):
    return ct(key, patient_id, format="seg", **fields)


def named(key):
    return ct(key, "same", names_patient=True)


F8, F9 = ({"frame_of_reference_uid": uid} for uid in ("1.2.8", "1.2.9"))
A = {"refers_to": ("a",)}
MATCHES = [  # images, labels, and for each label the key of its image or a reason code
    # equal paths, alone and below
    ([ct("p1"), ct("s/p2")], [ct("p1"), ct("s/p2")], ["p1", "s/p2"]),
    ([ct("p1"), ct("p2")], [ct("p1/liver"), ct("p3")], ["p1", "no_image"]),
    ([ct(".")], [ct("liver")], ["."]),
    ([ct("."), ct("p2")], [ct("liver")], ["no_image"]),
    # PatientID goes before the path, frame of reference before both, reference before all
    ([ct("a", "A"), ct("b", "B")], [ct("b", "A")], ["a"]),
    ([ct("a", **F8), ct("b", **F8)], [seg("b", **F8, **A)], ["a"]),
    ([ct("a", "A", **F8), ct("b", "B", **F8)], [ct("x", "B", **F8)], ["b"]),
    # attributes of a SEG rule out other images, those of mask slices do not
    ([ct("a", **F9)], [seg("a", **F8)], ["no_image"]),
    ([ct("a", **F9)], [ct("a", **F8)], ["a"]),
    ([ct("a", **F9)], [seg("a", refers_to=("z",))], ["no_image"]),
    # several
    ([ct("a", "A"), ct("b", "A")], [ct("x", "A")], ["ambiguous_label"]),
    ([ct("a", "A")], [ct("x", "A"), ct("y", "A")], 2 * ["ambiguous_label"]),
    ([ct("a", "A")], [ct("a", "A"), ct("y", "A")], ["a", "no_image"]),
    ([ct("a", "A")], [seg("x", "A", **A), seg("y", "B", **A)], ["a", "other_patient"]),
    # patterns
    ([named("a"), named("b")], [named("b"), named("a/x")], ["b", "a"]),
    ([named("a")], [named("b")], ["no_image"]),
]


@pytest.mark.parametrize(("images", "labels", "expected"), MATCHES)
def test_the_strongest_link_decides_and_never_a_guess(images, labels, expected):
    matches = match_labels(labels, images)
    found = [m.problem.partition(":")[0] or (m.image.key if m.image else "") for m in matches]
    assert found == expected


def find(images, labels, patient=None):
    return find_nifti_pairs(images, labels, patient, options(pancreas=[3]))


def test_files_of_a_relative_path_and_stem_or_two_files_match(images, labels):
    names = {
        "a/p1_ct.nii.gz": "a/p1-seg.nii.gz", "p1.nii.gz": "p1.nii", "p2_image.nii": "p2_lbl.nii.gz",
        "p3.img.nii.gz": "p3.NII.GZ", "p4.nrrd": "p4.seg.nrrd",
    }  # fmt: skip
    write_files(images, *names)
    write_files(labels, *names.values())
    contents = find(images, labels)
    assert sorted(pairs(contents, images, labels)) == sorted(names.items())
    assert (contents.skipped, contents.warnings) == ([], [])
    for case in contents.cases:
        assert np.argwhere(codes_of(case)).tolist() == [[1, 1, 0], [1, 1, 1]]
    contents = find(images / "p1.nii.gz", labels / "p4.seg.nrrd")  # whatever their names
    assert pairs(contents, images, labels) == [("p1.nii.gz", "p4.seg.nrrd")]


@pytest.mark.parametrize(("images_", "labels_", "cases", "refused"), [
    ("p1 p2", "p2 p3 a/p1", "p2", "p1:image:no_label p1:label:no_image p3:label:no_image"),
    ("p7 p7.nii.gz p8", "p8", "p8", "p7:image:ambiguous_image p7.nii.gz:image:ambiguous_image"),
    ("p7", "p7_label p7_seg", "", "p7:image:ambiguous_label p7_label:label:ambiguous_label "
     "p7_seg:label:ambiguous_label"),
    ("1_01_0000 a/2_0000 a/2_0001", "1_01 a/2", "1_01 a/2", ""),  # channels of nnU-Net
    ("p7 p7_0000", "p7", "p7", "p7_0000:image:no_label"),
])  # fmt: skip
def test_files_without_partner_are_refused(images, labels, images_, labels_, cases, refused):
    for folder, names in ((images, images_), (labels, labels_)):
        write_files(folder, *(f"{name}.nii" if "." not in name else name for name in names.split()))
    contents = find(images, labels)
    rows = [":".join((name.removesuffix(".nii"), *row)) for name, *row in skipped(contents)]
    assert (sorted(patients(contents)), rows) == (cases.split(), refused.split())


@pytest.mark.parametrize(("images_", "labels_", "patient", "expected"), [
    (".", None, None, ["s1/ct/p1", "s1/mask/p1", "s2/ct/p1", "s2/mask/p1"]),
    ("*/ct", "*/mask", None, ["s1/p1", "s2/p1"]),
    ("s?/ct/p1.nii*", "s?/mask/p*", None, ["1", "2"]),
    ("s?", None, "^(?P<patient>[^/]+)/", ["1", "1", "2", "2"]),
])  # fmt: skip
def test_patients_are_named_by_keys_wildcards_or_a_regular_expression(
    tmp_path, images_, labels_, patient, expected
):
    write_files(tmp_path, *(f"{a}/{b}/p1.nii" for a in ("s1", "s2") for b in ("ct", "mask")))
    contents = find(tmp_path / images_, labels_ and tmp_path / labels_, patient)
    assert sorted(patients(contents)) == expected
    with pytest.raises(PancsegError, match=r"is also source\.labels"):
        find(tmp_path, tmp_path)
    with pytest.raises(PancsegError, match=r"source.patient=.*finds none in .*a group named"):
        find(tmp_path, None, r"scan_(?P<patient>\d+)")


@pytest.mark.parametrize(("names", "is_warned"), [
    (("l_1_0", "l_1_1"), True), (("sub-01_ses-1", "sub-01_ses-2"), True),
    (("a/p_1", "a/p_2"), False), (("case_001", "case_002"), False), (("l_1_0", "l_2_0"), False),
])  # fmt: skip
def test_names_that_differ_in_a_second_number_are_warned_of(images, names, is_warned):
    write_files(images, *(f"{name}.nii.gz" for name in names))
    expected = f"{names[0]} and {names[1]} look like parts of one patient"
    warnings = find(images, None).warnings
    assert [text.startswith(expected) for text in warnings] == [True] * is_warned


def series(images, labels=None, modality="CT"):
    return find_dicom(images, labels, modality, options())


def test_labels_match_the_folder_of_their_name_or_a_single_scan_in_other_processes(images, labels):
    drawn = np.zeros((3, 4, 5), np.uint8)
    drawn[1, 2, 3] = 1
    (labels / "p2").mkdir(parents=True)
    for n in (1, 2, 3, 4):
        write_series(images / f"p{n}", patient_id=f"P-{n}")
    affine = read(images / "p1").image.affine
    for name in ("p1.nii.gz", "p2/pancreas.nii"):
        nib.save(nib.Nifti1Image(drawn, affine), labels / name)
    write_nrrd(labels / "p3_ct.nrrd", drawn)
    write_series(labels / "p4", pixels=drawn.T, modality="OT", patient_id="P-4")
    contents = pickle.loads(pickle.dumps(series(images, labels)))
    expected = [("p1", "p1.nii.gz"), ("p2", "p2/pancreas.nii"), ("p3", "p3_ct.nrrd"), ("p4", "p4")]
    assert pairs(contents, images, labels) == expected
    for case in contents.cases:
        np.testing.assert_array_equal(codes_of(case), drawn)
        assert case.read_image().image.get_fdata().max() == 432
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


@pytest.mark.parametrize(("written", "expected"), [
    ({"first": ("P-1", "1.1"), "second": ("P-1", "1.2")}, ["P-1", "P-1"]),
    ({"site/p7": ("  ", "")}, ["site/p7"]), ({".": ("", "1.1")}, ["images"]),
    ({"a/1": ("", "1.1"), "a/2": ("", "1.1"), "b": ("", "1.2")}, ["a/1", "a/1", "b"]),
    ({"a": ("", "1.1"), "b": ("P-7", "1.1")}, ["P-7", "P-7"]),
    ({"a": ("", ""), "b": ("P-7", "")}, ["a", "P-7"]),
    (dict.fromkeys("abc", ("X", "")), ["X", "X", "X"]),
])  # fmt: skip
def test_the_patient_is_that_of_the_study_or_a_folder(images, written, expected):
    for name, (patient_id, study) in written.items():
        write_series(images / name, patient_id=patient_id, damage=put(StudyInstanceUID=study))
    contents = series(images)
    assert patients(contents) == expected
    assert any("same PatientID" in text for text in contents.warnings) == (expected == ["X"] * 3)


# nnunet and msd

NEW = {
    "channel_names": {"0": "CT"}, "file_ending": ".nii.gz",
    "labels": {"background": 0, "pancreas": 1, "tumour": 2, "whole": [1, 2]},
}  # fmt: skip
OLD = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "pancreas", "2": "tumour"}}


def write_nnunet(folder, description=NEW, name="p7_0000"):
    write_files(folder, f"imagesTr/{name}.nii.gz", "labelsTr/p7.nii.gz")
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.mark.parametrize(("description", "name"), [(NEW, "p7_0000"), (OLD, "p7")])
@pytest.mark.parametrize(("labels", "values"), [
    (None, [1, 2, 3]), ([" Pancreas"], [1]), (["pancreas", 3], [1, 3]), (["1", 2], [1, 2])
])  # fmt: skip
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


@pytest.mark.parametrize(("description", "sentence"), [
    ({"modality": {"0": "T2", "1": "CT"}, "labels": {}}, "channel 0 is 'T2'"),
    ({**NEW, "labels": {"pancreas": [[1]]}}, 'expected "labels"'),
    ({**NEW, "file_ending": ".mha"}, "file_ending '.mha' is not read; convert to .nii.gz"),
    ({**NEW, "dataset": ["p7"]}, 'expected "dataset"'), (None, "a description of a data set"),
    ({**NEW, "dataset": {"p7": {"images": ["../a"], "label": "x"}}}, "outside of its folder"),
])  # fmt: skip
def test_a_damaged_description_or_none_is_an_error_of_a_line(tmp_path, description, sentence):
    file = write_nnunet(tmp_path / "Task07") / "dataset.json"
    with pytest.raises(PancsegError, match=r"no dataset\.json; give one of its folders: Task07"):
        find_nnunet(tmp_path, options())
    file.write_text(json.dumps(description))
    with pytest.raises(PancsegError, match=rf"^[^\n]*{sentence}[^\n]*$"):
        find_nnunet(tmp_path / "Task07", options())


# 3D-IRCADb


def anonymous(slices):
    """A study for each series, and no frame of reference."""
    put(StudyInstanceUID=generate_uid(), FrameOfReferenceUID=None)(slices)


def test_every_patient_of_ircadb_has_its_own_mask_of_the_organ(tmp_path):
    masks = 255 * np.random.default_rng(0).integers(0, 2, (2, 5, 4, 3))
    own = {"patient_id": "", "damage": anonymous}
    for n, patient in enumerate(tmp_path / f"3Dircadb1.{number}" for number in (1, 2)):
        write_series(patient / "PATIENT_DICOM", intercept=n, **own)
        write_series(patient / "LABELLED_DICOM", **own)
        for organ in ("pancreas", "liver")[: n + 1]:
            mask = masks[n] if organ == "pancreas" else masks[n] * 0
            write_series(patient / "MASKS_DICOM" / organ, pixels=mask, modality="OT", **own)
    contents = find_ircadb(tmp_path, "pancreas", options())
    assert patients(contents) == ["3Dircadb1.1", "3Dircadb1.2"]
    assert (contents.skipped, contents.warnings) == ([], [])
    for n, case in enumerate(contents.cases):
        assert case.read_image().image.get_fdata().min() == n
        np.testing.assert_array_equal(codes_of(case), masks[n].T > 0)
    assert patients(find_ircadb(tmp_path, "liver", options())) == ["3Dircadb1.2"]
    with pytest.raises(PancsegError, match=r"source.organ=spleen: .* liver, pancreas"):
        find_ircadb(tmp_path, "spleen", options())
    with pytest.raises(PancsegError, match=r"give the folder of 3Dircadb1\.1.*unpacked"):
        find_ircadb(tmp_path / "3Dircadb1.1", "liver", options())


# TCIA Pancreas-CT

SPACING_MM = (0.5, 0.8, 2.5)  # as tiny_dicom writes them
TRUTH = np.random.default_rng(5).integers(0, 2, (3, 4, 5))  # columns, rows, slices of the DICOM


def write_nih(root, number=1, patient_id=""):
    """A scan whose HU are 100 in the organ and 0 around it, without its label."""
    (root / "labels").mkdir(exist_ok=True)
    folder = root / "images" / f"PANCREAS_{number:04}" / "study" / "Pancreas-63502"
    write_series(folder, pixels=100 * TRUTH.T, patient_id=patient_id)
    return root / "images", root / "labels"


def write_nih_label(
    labels, signs=(-1, 1, 1), scale=1, origin=(0, 0, 0), number=1, voxels=TRUTH[:, ::-1]
):
    """A label whose rows run against those of the DICOM, as in these files."""
    affine = nib.affines.from_matvec(np.diag(np.multiply(signs, SPACING_MM) * scale), origin)
    nib.save(nib.Nifti1Image(voxels.astype("uint8"), affine), labels / f"label{number:04}.nii.gz")


@pytest.mark.parametrize(("options_", "flipped", "is_placed"), [
    ({}, (), True), ({"signs": (1, 1, 1)}, 0, True), ({"signs": (-1, -1, 1)}, 1, True),
    ({"signs": (-1, 1, -1)}, 2, True), ({"scale": 1.009}, (), True), ({"scale": 0.98}, (), False),
    ({"voxels": TRUTH[:, 2::-1]}, None, False), ({"origin": (10, 20 - 3 * 0.8, 30)}, (), False),
])  # fmt: skip
def test_a_label_without_origin_lands_by_its_directions(tmp_path, options_, flipped, is_placed):
    images, labels = write_nih(tmp_path)
    write_nih_label(labels, **options_)
    [case] = find_nih(images, labels, options()).cases
    image, label = case.read_image().image, label_of(case)
    assert label.flags == ("label_placed_by_axes",) * is_placed
    if flipped is not None:
        voxels = np.asarray(oriented_like(label.image, image).dataobj)
        np.testing.assert_array_equal(voxels, np.flip(TRUTH, flipped))
    if is_placed:
        np.testing.assert_allclose(label.image.affine, image.affine)


def test_scans_and_labels_of_nih_match_by_number(tmp_path):
    for number, patient_id in ((3, "PANCREAS_0003"), (7, "")):
        images, labels = write_nih(tmp_path, number, patient_id)
    write_series(images / "other", patient_id="X")
    for number in (5, 7):
        write_nih_label(labels, number=number)
    contents = find_nih(images, labels, options())
    expected = [("PANCREAS_0007/study/Pancreas-63502", "label0007.nii.gz")]
    assert pairs(contents, images, labels) == expected
    rows = sorted(f"{kind} {code}" for _, kind, code in skipped(contents))
    assert rows == ["image no_label", "image no_number", "label no_image"]
