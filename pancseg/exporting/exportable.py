"""The one network that is exported, with the numbers it is applied by."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pancseg.errors import PancsegError
from pancseg.inference.old_checkpoint import Trained, open_checkpoint
from pancseg.inference.members import checkpoints_of
from pancseg.inference.postprocess import Postprocess, recorded


@dataclass(frozen=True)
class Exportable:
    """A trained network and how masks are made of what it says.

    Attributes:
        checkpoint: Its file.
        trained: What the file holds.
        how: Makes the mask, as it was chosen on validation patients, else the plain way.
    """

    checkpoint: Path
    trained: Trained
    how: Postprocess

    @property
    def network(self) -> nn.Module:
        """The network, in evaluation mode."""
        return self.trained.segmenter.network

    @property
    def model(self) -> dict[str, Any]:
        """``_target_`` and arguments of the network."""
        return dict(self.trained.segmenter.hparams["model"])

    @property
    def window(self) -> list[int]:
        """Voxels of what the network is given, ``[H, W, D]``."""
        return [int(n) for n in self.trained.segmenter.hparams["view"]["size"]]

    @property
    def overlap(self) -> float:
        """Share by which windows overlap."""
        return float(self.trained.segmenter.hparams["view"]["overlap"])

    @property
    def activation(self) -> str:
        """How logits become probabilities: by the rule that the loss teaches."""
        return "sigmoid" if self.trained.segmenter.hparams["loss"].get("sigmoid") else "softmax"


def open_exportable(given: Any) -> Exportable:
    """Open the checkpoint to export.

    Args:
        given: A file, or the folder of a run.

    Raises:
        PancsegError: If it is no checkpoint of pancseg, or names several.
    """
    if not isinstance(given, str):
        raise PancsegError(f"checkpoint={given}: an export is of one network; give one checkpoint")
    found = checkpoints_of(Path(given))
    if len(found) > 1:
        raise PancsegError(
            f"checkpoint={given}: holds {len(found)} runs, and an export is of one network; give "
            "the checkpoints/best.ckpt of one"
        )
    trained = open_checkpoint(found[0])
    if trained.segmenter.hparams["view"] is None:
        raise PancsegError(
            f"checkpoint={given}: does not say what size its network was given; train it again"
        )
    return Exportable(found[0], trained, recorded(found[0]) or Postprocess())
