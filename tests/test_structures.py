"""Several structures, and ignored voxels: from sampling to the files of ``predict``."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch

from pancseg.errors import PancsegError
from pancseg.inference.predictor import load_segmenter
from pancseg.metrics.case_scores import recipe_metric
from pancseg.metrics.lesions import lesion_counts, lesion_summary
from pancseg.models.losses import DiceCELoss, IgnoringLoss
from pancseg.models.metrics import PatientDice, count_voxels
from pancseg.models.segmenter import structure_logits
from pancseg.structures import IGNORED, match_names, parse_structures, structures_from_manifest
from tests.conftest import Command, run_command
from tests.source_contents import ORGAN
from tests.tiny_root import write_root

NESTED = [[1, 2], [2]]  # pancreas with tumour, tumour
NET = ("model=tiny", "loss=dice_ce", "hardware=cpu", "data=volume", "sampling.steps_per_epoch=4")


def parse(labels=None, **nodes):
    return parse_structures({name: {**ORGAN, "labels": own} for name, own in nodes.items()}, labels)


IMPOSSIBLE = [
    ({"Pancreas": [1]}, None, "small letters"),
    ({"pancreas": None}, [0, 1], "expected a list without 0"),
    ({"pancreas": [1, 2], "tumour": [2, 3]}, None, "share some labels"),
]


@pytest.mark.parametrize(("nodes", "labels", "message"), IMPOSSIBLE)
def test_structures_that_cannot_be_stored_are_refused_by_key(nodes, labels, message):
    with pytest.raises(PancsegError, match=message):
        parse(labels, **nodes)


def test_a_part_is_stored_with_a_code_of_its_own_and_belongs_to_its_whole():
    structures = parse(pancreas=["Pancreas", "tumour "], tumour=["Tumour"], duct=["duct"])
    assert [structure.values for structure in structures] == [(1, 2), (2,), (3,)]
    assert structures_from_manifest(s.to_dict() for s in structures) == structures


def test_structures_are_matched_by_number_name_or_code():
    names = {1: ("Liver",), 2: ("Pancreas", "15776009"), 3: ("Duct",)}
    structures = parse(pancreas=["15776009", 3], duct=[" DUCT"], spleen=["Spleen"])
    assert match_names(names, structures, "segment") == [[2, 3], [3], []]


def test_the_probability_of_a_structure_is_the_sum_of_those_of_its_classes() -> None:
    probabilities = torch.tensor([0.4, 0.35, 0.25]).view(1, 3, 1, 1, 1)
    pancreas, tumour = structure_logits(probabilities.log(), NESTED, sigmoid=False).sigmoid()[0]
    assert [round(float(p), 5) for p in (pancreas, tumour)] == [0.6, 0.25]
    alone = structure_logits(torch.tensor([0.0, -1.0, 2.0]).view(1, 3, 1, 1, 1), NESTED, True)
    assert alone.flatten().tolist() == [2.0, 2.0]  # the likeliest of its channels


def test_ignored_voxels_have_no_gradient_and_do_not_change_the_loss() -> None:
    logits = torch.randn(1, 3, 4, 4, 4, requires_grad=True)
    label = torch.randint(0, 3, (1, 1, 4, 4, 4)).float()
    label[..., :2] = IGNORED
    loss = IgnoringLoss(DiceCELoss())
    loss(logits, label).backward()
    assert logits.grad is not None
    assert logits.grad[..., :2].abs().max() == 0 < logits.grad[..., 2:].abs().min()
    other = logits.detach().clone()
    other[..., :2] = torch.randn(1, 3, 4, 4, 2)
    assert loss(other, label) == loss(logits, label)
    labelled = DiceCELoss()(logits[..., 2:], label[..., 2:])
    torch.testing.assert_close(loss(logits, label), labelled, atol=1e-4, rtol=0)


def test_dice_is_the_mean_over_structures_of_patients_that_have_them() -> None:
    reference = torch.zeros(2, 2, 4, 4, 4, dtype=torch.bool)
    reference[:, 0, :2] = True
    reference[0, 1, 0] = True  # the second patient has no tumour
    predicted = reference.clone()
    predicted[0, 1] = False
    predicted[1, 0, 0] = False
    for structure, expected in ((None, (5 / 6 + 0) / 2), (0, 5 / 6), (1, 0.0)):
        dice = PatientDice(structure)
        dice.update(count_voxels(predicted, reference), torch.arange(2))
        assert float(dice.compute()) == pytest.approx(expected)


def blocks(*boxes: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((40, 4, 4), bool)
    for start, stop in boxes:
        mask[start:stop] = True
    return mask


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ([(0, 1)], [(0, 20)], (1, 1, 0, 0, 1)),  # IoU 0.05
        ([(0, 2), (3, 5), (30, 32)], [(0, 5)], (1, 1, 1, 1, 1)),  # two parts of a lesion
        ([(0, 20)], [(0, 5), (15, 20)], (2, 2, 0, 1, 0)),  # two lesions in a mask
        ([], [(0, 5)], (1, 0, 0, 0, 0)),
        ([(7, 9)], [], (0, 0, 1, 0, 1)),
    ],
)
def test_lesions_are_found_by_overlap_and_by_iou(prediction, reference, expected) -> None:
    assert tuple(lesion_counts(blocks(*prediction), blocks(*reference)).values()) == expected


def test_lesion_figures_over_patients_are_those_counted_by_hand() -> None:
    names = ("patient", "lesions", "lesions_found", "false_positives", "max_probability")
    table = [("a", 2, 1, 0, 0.9), ("a", 0, 0, 1, 0.2), ("b", 0, 0, 0, 0.3), ("c", 1, 1, 0, 0.4),
             ("d", 0, 0, 2, 0.8), ("e", None, None, None, None)]  # fmt: skip
    rows: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in table]
    for row in rows:
        row |= {f"{name}_iou": row[name] for name in ("lesions_found", "false_positives")}
    figures = lesion_summary(rows)
    assert (figures["patients"], figures["patients_with_lesion"], figures["lesions"]) == (4, 2, 3)
    assert figures["sensitivity"]["mean"] == pytest.approx(2 / 3)
    assert figures["false_positives"]["mean"] == pytest.approx(3 / 4)
    assert figures["specificity"]["mean"] == pytest.approx(1 / 2)  # b of b and d
    assert figures["auroc"]["mean"] == pytest.approx(3 / 4)  # a > b, a > d, c > b
    assert tuple(figures["sensitivity"]["ci95"]) == (0.5, 1.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of two structures; a quarter of each label is ignored."""
    folder = tmp_path_factory.mktemp("structures")
    write_root(folder / "root", groups=False, ignored=True)
    words = (f"data.root={folder / 'root'}", f"hydra.run.dir={folder / 'run'}", *NET)
    size = ("data.spatial_size=[32,32,32]", "data.spacing_mm=[8,8,8]", "trainer.max_epochs=2")
    assert run_command("train", *words, *size) == 0
    return folder / "run"


def test_training_logs_dice_of_each_structure(run: Path) -> None:
    table = pd.read_csv(run / "metrics.csv")
    means = table[["val/dice_pancreas", "val/dice_tumour"]].mean(axis=1)
    assert np.allclose(means, table["val/dice"])


def codes_of(file: Path) -> np.ndarray:
    return np.asanyarray(nib.Nifti1Image.from_filename(file).dataobj)


def test_evaluate_scores_each_structure_where_labels_are_not_ignored(
    run: Path, command: Command
) -> None:
    scores, cases = run / "scores", run.parent / "root" / "cases"
    assert command("evaluate", f"checkpoint={run}", "postprocess.threshold=0.3").code == 0
    table = pd.read_csv(scores / "test.csv")
    assert table["structure"].tolist() == ["pancreas", "tumour"] * (len(table) // 2)
    figures = json.loads((scores / "test.json").read_text())
    assert figures["dice"] == figures["structures"]["pancreas"]["dice"]
    case = table["case"][0]
    mask = codes_of(scores / "test" / f"{case}_prediction.nii.gz")
    label = codes_of(cases / f"{case}_label.nii.gz")
    image = nib.Nifti1Image.from_filename(cases / f"{case}_image.nii.gz")
    predictions = load_segmenter(run).predict_structures(image, min_probability=0.0)
    counted = label != IGNORED
    rows = zip(table[:2].to_dict("records"), NESTED, predictions, strict=True)
    for row, codes, prediction in rows:
        own, reference = np.isin(mask, codes) & counted, np.isin(label, codes)
        dice = 2 * (own & reference).sum() / (own.sum() + reference.sum())
        assert row["dice"] == pytest.approx(dice, abs=1e-5)
        assert row["reference_ml"] == pytest.approx(reference.sum() * 0.512)
        soft = recipe_metric(prediction.probability * counted, reference)
        assert row["recipe_metric"] == pytest.approx(soft, abs=1e-5)


def test_label_maps_of_another_tool_are_scored_by_structure(run: Path, command: Command) -> None:
    Path("masks").mkdir()
    for file in (run.parent / "root" / "cases").glob("*_label.nii.gz"):
        codes, affine = codes_of(file), nib.Nifti1Image.from_filename(file).affine
        mask = np.where(codes == IGNORED, 0, codes)
        nib.save(nib.Nifti1Image(mask, affine), f"masks/{file.name[0]}_labels.nii.gz")
    words = ("predictions=masks", f"data.root={run.parent / 'root'}", "output=scores")
    assert command("evaluate", *words).code == 0
    dice = pd.read_csv("scores/scores/external.csv").groupby("structure")["dice"].mean()
    assert dice.to_dict() == {"pancreas": 1.0, "tumour": 1.0}


def test_predict_writes_a_segment_and_an_roi_of_each_structure(
    run: Path, dicom: Path, command: Command
) -> None:
    words = ("predict", f"checkpoint={run}", f"input={dicom / 'images'}", "output=out")
    assert command(*words, "rtstruct=true", "postprocess.threshold=0.3").code == 0
    row = pd.read_csv("out/predictions.csv").iloc[0]
    codes = codes_of(Path(f"out/{row['case']}_labels.nii.gz"))
    voxels = [np.isin(codes, values).sum() for values in NESTED]
    shown = dict(part.split("=") for part in row["structures_ml"].split())
    ml = [float(shown[name]) for name in ("pancreas", "tumour")]
    assert ml == pytest.approx([count * 0.512 for count in voxels], abs=1e-3)
    seg = hd.seg.segread(f"out/{row['case']}_labels.dcm")
    pixels = seg.get_volume(combine_segments=False).array
    assert [int(pixels[..., n].sum()) for n in (0, 1)] == voxels
    rois = pydicom.dcmread(f"out/{row['case']}_labels_rtstruct.dcm").StructureSetROISequence
    assert [roi.ROIName for roi in rois] == ["Pancreas", "Tumour"]


def test_a_folder_of_other_structures_is_refused(run: Path, command: Command) -> None:
    manifest = write_root(Path("other"), groups=False)
    manifest.structures = (replace(manifest.structures[0], values=(1,)),)
    manifest.write(Path("other"))
    ended = command("evaluate", f"checkpoint={run}", "data.root=other")
    assert ended.code == 2
    assert "has labels of pancreas, none of tumour" in ended.err
