"""The first samples of a training, drawn as the network sees them."""

from pathlib import Path
from typing import Any

from pancseg.data.datamodule import CTDataModule
from pancseg.output.sample_sheet import COLUMNS, ROWS, draw_samples


def draw_preview(path: Path, data: CTDataModule, title: str) -> None:
    """Draw sixteen samples.

    Args:
        path: PNG file.
        data: Set up for training.
        title: One line above all.
    """
    most = COLUMNS * ROWS
    samples: list[Any] = []
    for batch in data.train_dataloader():
        batch = data.augment_batch(batch)
        samples += zip(batch["image"], batch["label"], batch["name"], strict=True)
        if len(samples) >= most:
            break
    images, labels, names = zip(*samples[:most], strict=True)
    draw_samples(
        path,
        [image[0].cpu().numpy() for image in images],
        [label[0].cpu().numpy() for label in labels],
        names,
        title,
        spacing_mm=data.plan.spacing_mm,
    )
