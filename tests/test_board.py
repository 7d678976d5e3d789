"""What TensorBoard is given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pancseg.training.tensorboard import THRESHOLDS, count_by_probability, precision_recall
from tests.conftest import Command, smoke


@pytest.fixture(scope="module")
def events(trained: Path) -> EventAccumulator:
    found = EventAccumulator(str(trained / "tensorboard"))
    found.Reload()
    return found


def test_scalars_stand_in_a_few_groups(events: EventAccumulator) -> None:
    tags = events.Tags()["scalars"]
    measured = {
        f"{p}/{name}" for p in ("train", "val") for name in ("loss", "dice", "recipe_metric")
    }
    assert measured <= set(tags)
    assert {tag.partition("/")[0] for tag in tags} == {"train", "val", "best"}


def test_training_stands_beside_validation_in_one_chart(events: EventAccumulator) -> None:
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    summary = events.Tensors(metadata.CONFIG_SUMMARY_TAG)[0]
    layout = layout_pb2.Layout.FromString(summary.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert charts["dice"] == ["train/dice$", "val/dice$"]
    assert set(charts) == {"loss", "dice", "recipe_metric"}


def test_samples_and_overlays_are_pictures(events: EventAccumulator) -> None:
    assert {"train/samples", "val/volume_1"} <= set(events.Tags()["images"])
    assert events.Images("train/samples")[0].encoded_image_string[:4] == b"\x89PNG"


def test_each_patient_counts_once_in_the_histogram(events: EventAccumulator) -> None:
    first = events.Histograms("val/dice_of_patients")[0].histogram_value
    assert first.num == 1
    dice = events.Scalars("val/dice")[0].value
    assert first.sum == pytest.approx(dice, abs=1e-6)


def test_bins_of_dice_are_as_wide_at_its_upper_end(events: EventAccumulator) -> None:
    first = events.Histograms("val/dice_of_patients")[0].histogram_value
    assert np.diff([limit for limit in first.bucket_limit if limit > 0]) == pytest.approx(0.02)


def test_a_run_does_not_describe_the_table_of_hyperparameters_for_all(trained: Path) -> None:
    """TensorBoard would take the first run's description, and not see what differs."""
    from tensorboard.plugins.hparams import metadata

    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    told = events.summary_metadata
    assert {metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG} <= set(told)
    assert metadata.EXPERIMENT_TAG not in told
    content = told[metadata.SESSION_START_INFO_TAG].plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    assert start.hparams["optimizer.lr"].number_value == 0.001
    assert start.hparams["split.path"].string_value == ""
    assert events.Scalars("best/val_dice")[0].step > 0


def test_the_precision_recall_curve_is_there(events: EventAccumulator) -> None:
    assert "val/voxels" in events.Tags()["tensors"]


def test_precision_and_recall_are_those_of_the_voxels() -> None:
    probability = torch.tensor([0.1, 0.4, 0.6, 0.9])
    counts = count_by_probability(probability, torch.tensor([False, True, False, True]))
    true_positive, false_positive, true_negative, false_negative, precision, recall = (
        precision_recall(counts)
    )
    half = THRESHOLDS // 2
    assert (true_positive[half], false_positive[half]) == (1, 1)
    assert (true_negative[half], false_negative[half]) == (1, 1)
    assert (precision[half], recall[half]) == (0.5, 0.5)
    assert (precision[0], recall[0]) == (0.5, 1)


def test_any_other_logger_is_named_by_its_target(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    target = "_target_:pytorch_lightning.loggers.CSVLogger"
    logger = f"+logger.csv={{{target},save_dir:{tmp_path / 'csv'},name:runs,version:one}}"
    ended = command("train", *smoke(prepared, tmp_path / "run", logger))
    assert ended.code == 0, ended.err
    written = (tmp_path / "csv" / "runs" / "one" / "metrics.csv").read_text()
    assert "best/val_dice" in written
    assert "val/dice" in written
    assert "optimizer.lr" in (tmp_path / "csv" / "runs" / "one" / "hparams.yaml").read_text()
