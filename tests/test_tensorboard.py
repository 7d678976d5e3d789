"""Scalars, pictures and hyperparameters that TensorBoard is given."""

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from pancseg.training.tensorboard import THRESHOLDS, count_by_probability, precision_recall


@pytest.fixture(scope="module")
def events(trained):
    return EventAccumulator(str(trained / "tensorboard")).Reload()


def test_scalars_pictures_and_curves_stand_in_few_groups(events):
    tags = events.Tags()
    names = ("loss", "dice", "recipe_metric")
    assert {f"{part}/{name}" for part in ("train", "val") for name in names} <= set(tags["scalars"])
    assert {tag.partition("/")[0] for tag in tags["scalars"]} == {"train", "val", "best"}
    assert {"train/samples", "val/volume_1", "val/volume_2"} == set(tags["images"])
    sizes = {
        tag: (events.Images(tag)[0].width, events.Images(tag)[0].height) for tag in tags["images"]
    }
    # two samples in a row, and volumes of 32 voxels of 3 pixels each
    assert sizes == {"train/samples": (192, 96), "val/volume_1": (96, 96), "val/volume_2": (96, 96)}
    assert events.Images("train/samples")[0].encoded_image_string[:4] == b"\x89PNG"
    assert "val/voxels" in tags["tensors"]


def test_each_patient_counts_once_in_the_histogram_of_equal_bins(events):
    first = events.Histograms("val/dice_of_patients")[0].histogram_value
    assert first.num == 1
    assert first.sum == pytest.approx(events.Scalars("val/dice")[0].value, abs=1e-6)
    assert np.diff([limit for limit in first.bucket_limit if limit > 0]) == pytest.approx(0.02)


def test_the_table_of_hyperparameters_is_described_by_no_single_run(events):
    """TensorBoard would take the first run's description, and not see what differs."""
    stored = events.summary_metadata
    assert metadata.EXPERIMENT_TAG not in stored
    content = stored[metadata.SESSION_START_INFO_TAG].plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    assert start.hparams["optimizer.lr"].number_value == 0.001
    assert not {"split.path", "data.root", "data.num_workers"} & set(start.hparams)


def test_precision_and_recall_are_those_of_the_voxels():
    probability = torch.tensor([0.1, 0.4, 0.6, 0.9])
    curve = precision_recall(count_by_probability(probability, torch.arange(4) % 2 == 1))
    # true and false positives, true and false negatives, precision, recall
    assert [values[THRESHOLDS // 2] for values in curve] == [1, 1, 1, 1, 0.5, 0.5]
    assert [values[0] for values in curve[4:]] == [0.5, 1]
