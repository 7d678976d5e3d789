"""What a run's folder says of the checkpoint that is exported: its training and its test scores."""

from dataclasses import asdict, dataclass
from typing import Any

from pancseg.exporting.exportable import Exportable
from pancseg.files import read_json
from pancseg.inference.members import folder_of
from pancseg.output.run_files import Run

NOT_SCORED = "Its test patients were not scored."
OF_ANOTHER = (
    "There are test scores beside it, but of another checkpoint or of masks made in another way "
    "than these: they are left out."
)


@dataclass(frozen=True)
class RunFacts:
    """What stands in the folder of a checkpoint's run.

    Attributes:
        summary: ``summary.json``; empty where there is none of this training.
        figures: ``scores/test.json``; empty where there are none of this very network.
        unscored: Why there are no figures; empty where there are.
    """

    summary: dict[str, Any]
    figures: dict[str, Any]
    unscored: str

    @property
    def phantoms(self) -> bool | None:
        """Whether the network was trained on phantoms; None where nothing says it."""
        return self.summary.get("phantoms", self.figures.get("phantoms"))


def facts_of(net: Exportable) -> RunFacts:
    """Read them.

    Raises:
        PancsegError: If a file is damaged, or of an earlier version.
    """
    folder = folder_of(net.checkpoint)
    summary: dict[str, Any] = {}
    if (folder / "summary.json").is_file():
        summary = read_json(folder / "summary.json", "a run's summary")
    if summary.get("data_fingerprint") != net.trained.fingerprint:
        summary = {}
    if not (folder / "scores" / "test.json").is_file():
        return RunFacts(summary, {}, NOT_SCORED)
    figures = Run(folder, [folder]).figures("test")
    if not is_of(net, figures):
        return RunFacts(summary, {}, OF_ANOTHER)
    return RunFacts(summary, figures, "")


def is_of(net: Exportable, figures: dict[str, Any]) -> bool:
    """Whether figures are of this network, with masks made as they are made now."""
    own = {
        "checkpoint": [net.checkpoint.name],
        "checkpoint_epoch": net.trained.epoch,
        "data_fingerprint": net.trained.fingerprint,
        "postprocess": [asdict(net.how)],
    }
    return all(figures[key] == value for key, value in own.items())
