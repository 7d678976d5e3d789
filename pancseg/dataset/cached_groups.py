"""Groups whose deterministic transforms run once, on first use, and are kept on disk.

MONAI's PersistentDataset does the same, but moves its files into place across file systems, where
a move is a copy, and stops on a file that was cut short.
"""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from monai.transforms import Compose, Transform
from torch import Tensor
from torch.utils.data import Dataset

from pancseg.atomic import replaced

Item = dict[str, Any]
TENSORS = ("image", "label")


class CachedGroups(Dataset[Item]):
    """Transformed groups.

    Args:
        items: Each with the paths ``image`` and ``label``, a ``key`` that stands for their content,
            and whatever should go along into the batch.
        deterministic: Run once an item.
        random: Run every time, on tensors.
        folder: Where results are kept under their key; None keeps none.
    """

    def __init__(
        self,
        items: Sequence[Item],
        deterministic: Sequence[Transform],
        random: Sequence[Transform],
        folder: Path | None,
    ) -> None:
        self.items = items
        self.deterministic = Compose(deterministic)
        self.random = Compose(random)
        self.folder = folder

    def __len__(self) -> int:
        """How many groups."""
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        """One group, ``image`` and ``label`` as ``(1, H, W, D)`` float32."""
        item = self.items[index]
        # MONAI's random state is its own, and alike in every worker: take it from torch's
        self.random.set_random_state(int(torch.randint(2**31, ())))
        extra = {name: value for name, value in item.items() if name not in (*TENSORS, "key")}
        return {**self.random(self.transformed(item)), **extra}

    def transformed(self, item: Item) -> dict[str, Tensor]:
        """The result of the deterministic transforms, from disk where it is there and whole."""
        path = self.folder / f"{item['key']}.pt" if self.folder else None
        if path and path.is_file():
            try:
                return torch.load(path, weights_only=True)
            except (RuntimeError, UnpicklingError, EOFError):
                pass  # cut short or damaged: made again below
        made = self.deterministic({name: item[name] for name in TENSORS})
        tensors = {name: made[name].as_tensor().contiguous() for name in TENSORS}
        if path:
            with replaced(path) as temporary:
                torch.save(tensors, temporary)
        return tensors
