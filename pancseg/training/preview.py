"""The first samples of a training, drawn as the network sees them."""

from pathlib import Path
from typing import Any

from pancseg.dataset.datamodule import GroupData
from pancseg.learning.segmenter import Segmenter
from pancseg.output.sample_sheet import COLUMNS, ROWS, draw_samples


def draw_preview(path: Path, data: GroupData, segmenter: Segmenter, title: str) -> None:
    """Draw sixteen samples.

    Args:
        path: PNG file.
        data: Set up.
        segmenter: Changes the samples at random, as in training.
        title: One line above all.
    """
    most = COLUMNS * ROWS
    samples: list[Any] = []
    for batch in data.train_dataloader():
        seen = segmenter.seen(batch, training=True)
        samples += zip(seen["image"], seen["label"], batch["name"], strict=True)
        if len(samples) >= most:
            break
    images, labels, names = zip(*samples[:most], strict=True)
    draw_samples(
        path,
        [image[0].cpu().numpy() for image in images],
        [label[0].cpu().numpy() for label in labels],
        names,
        title,
        spacing_mm=data.chosen.preprocessing.spacing_mm,
    )
