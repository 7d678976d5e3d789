"""One checkpoint or the several of a sweep, and which of them may judge a patient."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from pancseg.config import BEST
from pancseg.errors import PancsegError
from pancseg.geometry import with_right_angles
from pancseg.inference.old_checkpoint import Trained, open_checkpoint
from pancseg.inference.own_grid import OwnGrid
from pancseg.inference.postprocess import Postprocess
from pancseg.inference.region import look_coarse_to_fine
from pancseg.inference.whole_case import WholeCase
from pancseg.inference.windows import Windows


@dataclass(frozen=True)
class Member:
    """A trained network, ready to be applied.

    Attributes:
        checkpoint: Its file.
        trained: What the file holds.
        device: Where it computes.
        mirrored: Axes along which it is shown mirror images, too.
        precision: Lightning's name of its arithmetic.
    """

    checkpoint: Path
    trained: Trained
    device: str
    mirrored: tuple[int, ...] = ()
    precision: str = "32-true"

    @cached_property
    def network(self) -> WholeCase:
        """Applies it to whole cases."""
        windows = Windows(self.trained.segmenter, self.device, self.mirrored, self.precision)
        return WholeCase(windows, self.trained.preprocessing, self.trained.depth)

    @property
    def fold(self) -> int | None:
        """The fold it was tested on, of ``split=kfold``."""
        return self.trained.data["split"].get("fold")


def open_members(
    path: Path | Sequence[Path],
    *,
    device: str,
    precision: str = "32-true",
    mirrored: bool = False,
) -> list[Member]:
    """Open a checkpoint, or the best one of each run in a folder, or several of both.

    Args:
        path: A file, a run's folder, or a sweep's folder; or a list of them.
        device: ``cpu`` or ``cuda``.
        precision: Lightning's name of their arithmetic.
        mirrored: Whether they are shown mirror images, too.

    Raises:
        PancsegError: If there is none, one is no checkpoint of pancseg, or one was never shown
            mirror images.
    """
    paths = [path] if isinstance(path, Path) else path
    members = []
    for checkpoint in dict.fromkeys(one for each in paths for one in checkpoints_of(each)):
        trained = open_checkpoint(checkpoint)
        trained.segmenter.prepare_for(torch.device(device).type)
        axes = mirror_axes(trained, checkpoint) if mirrored else ()
        members.append(Member(checkpoint, trained, device, axes, precision))
    return members


def mirror_axes(trained: Trained, checkpoint: Path) -> tuple[int, ...]:
    """Axes along which a network was shown mirror images in training.

    Organs have sides: a network that never saw a mirrored patient has no reason to know one.

    Raises:
        PancsegError: If there is none.
    """
    flips = (trained.data["augment"] or {}).get("flip_probability") or ()
    axes = tuple(axis for axis, chance in enumerate(flips) if chance > 0)
    if not axes:
        raise PancsegError(
            f"tta=true: {checkpoint} was trained without mirror images (augment.flip_probability "
            "was 0 on every axis), which would mislead it; leave tta out"
        )
    return axes


def checkpoints_of(path: Path) -> list[Path]:
    """The checkpoint that a path names, or those of the runs in a folder.

    Raises:
        PancsegError: If a folder holds none.
    """
    if not path.is_dir():
        return [path]
    runs = sorted((run for run in path.iterdir() if run.is_dir()), key=by_number)
    found = [run / BEST for run in (path, *runs) if (run / BEST).is_file()]
    if not found:
        raise PancsegError(
            f"checkpoint={path}: neither a run nor a sweep of runs: there is no {BEST} in it or "
            "in the folders of it"
        )
    return found


def by_number(folder: Path) -> tuple[int, str]:
    """Sweeps number their runs: 2 comes before 10."""
    name = folder.name
    return (int(name), "") if name.isdecimal() else (1 << 30, name)


def folder_of(path: Path) -> Path:
    """The folder of the run, or of the sweep, that a checkpoint or folder belongs to."""
    if path.is_dir():
        return path.resolve()
    folder = path.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder


def judges_of(members: Sequence[Member], subset: str) -> dict[str, list[Member]]:
    """Who judges which patient.

    One checkpoint judges the patients of its subset. Of several, those judge a test patient who
    were all dealt it as test: in a k-fold sweep one each, on a common test set all together.

    Raises:
        PancsegError: If the subset is empty, or not ``test`` for several checkpoints.
    """
    if len(members) > 1 and subset != "test":
        raise PancsegError(
            f"subset={subset}: of {len(members)} checkpoints, patients are judged by those that "
            "hold them out: give subset=test, or one checkpoint"
        )
    judges: dict[str, list[Member]] = {}
    for member in members:
        for patient in getattr(member.trained.split, subset):
            judges.setdefault(patient, []).append(member)
    if not judges:
        raise PancsegError(f"subset={subset}: the split dealt no patient to it (split.{subset}=0)")
    return dict(sorted(judges.items()))


def are_held_out(judges: dict[str, list[Member]], subset: str) -> bool:
    """Whether every patient was kept out of the training and every choice of who judges it."""
    if subset != "test":
        return False
    return all(
        member.trained.split.held_out and patient not in member.trained.seen
        for patient, judging in judges.items()
        for member in judging
    )


def missing_folds(members: Sequence[Member], path: Path) -> list[int]:
    """Folds of a k-fold sweep that nobody was tested on; none where the path is no such sweep."""
    rules = [m.trained.data["split"] for m in members if m.trained.split.rule == "kfold"]
    if not path.is_dir() or (path / BEST).is_file() or not rules:
        return []
    return sorted(set(range(int(rules[0]["folds"]))) - {int(rule["fold"]) for rule in rules})


def look_together(
    judging: Sequence[Member], image: nib.Nifti1Image, coarse_to_fine: bool = False
) -> OwnGrid:
    """What networks say of a case, to be had on its own grid; the mean over them counts.

    Args:
        judging: The networks.
        image: HU, slice 0 nearest the feet.
        coarse_to_fine: Whether they look at the whole of it, or closely only where they see the
            organ from afar.
    """
    upright = with_right_angles(image)
    looks = [
        look_coarse_to_fine(one.network, upright) if coarse_to_fine else one.network.look(upright)
        for one in judging
    ]
    return OwnGrid(upright.shape, upright.affine, looks)


def together(chosen: Sequence[Postprocess]) -> Postprocess:
    """One way to make a mask for several: the mean threshold, and what all agree on.

    >>> together([Postprocess(0.4, True), Postprocess(0.6, False)])
    Postprocess(threshold=0.5, largest_component=False)
    """
    threshold = float(np.mean([one.threshold for one in chosen]))
    return Postprocess(threshold, all(one.largest_component for one in chosen))
