"""The data module: a prepared folder, dealt to parts, as batches."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import monai
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from pancseg import __version__
from pancseg.dataset import transforms
from pancseg.dataset.cached_groups import CachedGroups
from pancseg.dataset.manifest import Group, Manifest, has_manifest, read_manifest
from pancseg.dataset.splits import PARTS, Split, deal
from pancseg.dataset.transforms import Augmentation, Preprocessing
from pancseg.dataset.whole_root import same_person
from pancseg.errors import PancsegError

log = logging.getLogger(__name__)
Batch = dict[str, Any]


class GroupData(pl.LightningDataModule):
    """Groups of a prepared folder: whole patients dealt to parts, transformed, in batches.

    A batch is ``{"image": (B, 1, H, W, D) float 0..1, "label": (B, 1, H, W, D) float 0 or 1,
    "patient": (B,) int, "group": B names}``; ``patient`` is ``patient_number`` of the pseudonym.

    Args:
        name: Of the dataset, for folders of runs.
        root: Prepared folder.
        depth: Slices of a group; the folder must have been prepared with it.
        tail: Belongs to preparation.
        keep_empty: Belongs to preparation.
        orientation: Axis codes given to the network.
        spacing_mm: Voxel size after resampling.
        window_hu: What becomes 0 and 1.
        spatial_size: Voxels given to the network.
        augment: Numbers of the random transforms.
        batch_size: Groups a step.
        num_workers: Processes that load.
        pin_memory: Whether batches wait in page-locked memory.
        cache: Whether the result of the deterministic transforms is kept on disk.
        split: Arguments of ``pancseg.dataset.splits.deal``.
        prepare: Fills the root where it holds no manifest, if given.
    """

    def __init__(
        self,
        name: str,
        root: str,
        depth: int,
        tail: str,
        keep_empty: bool,
        orientation: str,
        spacing_mm: list[float],
        window_hu: list[float],
        spatial_size: list[int],
        augment: dict[str, Any],
        batch_size: int,
        num_workers: int,
        pin_memory: bool,
        cache: bool,
        split: dict[str, Any],
        prepare: Callable[[], object] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["prepare", "root"])
        self.hparams["root"] = str(Path(root).resolve())
        if batch_size < 1:
            raise PancsegError(f"data.batch_size={batch_size}: expected at least 1 group")
        self.root = Path(root)
        self.fill = prepare
        self.preprocessing = Preprocessing(
            orientation, tuple(spacing_mm), tuple(window_hu), tuple(spatial_size)
        )
        self.augmentation = Augmentation(**augment)
        self.manifest: Manifest | None = None
        self.split: Split | None = None

    def prepare_data(self) -> None:
        """Prepare the folder first where it holds no manifest."""
        ready = has_manifest(self.root) and read_manifest(self.root).complete
        if self.fill and not ready:
            log.info("%s is not prepared yet: preparing it", self.root)
            self.fill()

    def setup(self, stage: str | None = None) -> None:
        """Read the manifest, deal the patients, and check both.

        Raises:
            PancsegError: If the folder does not fit the settings, or the split cannot be dealt.
        """
        if self.manifest is not None:
            return
        manifest = read_manifest(self.root)
        if not manifest.complete:
            raise PancsegError(
                f"{self.root}: its preparation is under way or was interrupted; run the same "
                "pancseg.prepare again, it goes on where it was"
            )
        depth = manifest.settings.get("depth")
        if depth != self.hparams["depth"]:
            raise PancsegError(
                f"{self.root} was prepared with groups of {depth}, data.depth is "
                f"{self.hparams['depth']}; give the data.root of such groups or prepare one"
            )
        names = same_person(manifest.cases)
        split = deal(manifest.labelled_patients(), **self.hparams["split"], same_person=names)
        if not manifest.groups_of(split.train):
            raise PancsegError(
                f"{self.root}: the {len(split.train)} training patients have no labelled group; "
                "see groups_kept, groups_empty and groups_tail in intake.csv (data.tail=shift or "
                "pad keeps the slices after the last whole group)"
            )
        split.check()
        self.manifest, self.split = manifest, split
        for name in ("tail", "keep_empty"):  # as it was prepared, whatever the configuration says
            self.hparams[name] = manifest.settings[name]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data beside the hyperparameters: who was dealt where."""
        return {"split": self.dealt.as_dict(), "fingerprint": self.fingerprint()}

    @property
    def dealt(self) -> Split:
        """The split, once set up."""
        if self.split is None:
            raise RuntimeError("setup() comes first")
        return self.split

    @property
    def contents(self) -> Manifest:
        """The manifest, once set up."""
        if self.manifest is None:
            raise RuntimeError("setup() comes first")
        return self.manifest

    def groups(self, part: str) -> list[Group]:
        """Labelled groups of ``train``, ``val`` or ``test``."""
        return self.contents.groups_of(getattr(self.dealt, part))

    @property
    def of_phantoms(self) -> bool:
        """Whether any of the dealt patients is a phantom."""
        dealt = {patient for part in PARTS for patient in getattr(self.dealt, part)}
        return any(case.phantom for case in self.contents.cases if case.patient in dealt)

    def counts(self) -> dict[str, dict[str, int]]:
        """Patients and groups of each part."""
        return {
            part: {"patients": len(getattr(self.dealt, part)), "groups": len(self.groups(part))}
            for part in PARTS
        }

    def fingerprint(self) -> str:
        """Hash of every stored case of the folder and of what is done to it."""
        stored = sorted(case.sha256 for case in self.contents.cases)
        return hash_of([stored, asdict(self.preprocessing), self.contents.settings])

    def dataset(self, part: str) -> CachedGroups:
        """Groups of a part; the deterministic part runs once a group, on first use."""
        content = {case.case: case.sha256[:32] for case in self.contents.cases}
        items = [
            {
                "image": str(self.root / group.image),
                "label": str(self.root / (group.label or "")),
                "key": f"{group.group}-{content[group.case]}",
                "patient": patient_number(group.patient),
                "group": group.group,
            }
            for group in self.groups(part)
        ]
        augmentation = self.augmentation if part == "train" else Augmentation()
        versions = [__version__, monai.__version__, torch.__version__]
        key = hash_of([asdict(self.preprocessing), self.contents.settings, versions])
        return CachedGroups(
            items,
            transforms.deterministic(self.preprocessing),
            transforms.random(augmentation),
            self.root / "cache" / key[:16] if self.hparams["cache"] else None,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of training groups, shuffled; a last batch of one joins no step of its own."""
        dataset = self.dataset("train")
        alone = (
            len(dataset) > self.hparams["batch_size"]
            and len(dataset) % self.hparams["batch_size"] == 1
        )
        return self.loader(dataset, shuffle=True, drop_last=alone)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches of validation groups."""
        return self.loader(self.dataset("val"))

    def loader(self, dataset: CachedGroups, **options: Any) -> DataLoader[Batch]:
        """A loader with the settings of the hardware."""
        workers = self.hparams["num_workers"]
        return DataLoader(
            dataset,
            batch_size=self.hparams["batch_size"],
            num_workers=workers,
            pin_memory=self.hparams["pin_memory"],
            persistent_workers=workers > 0,
            **options,
        )


def hash_of(value: Any) -> str:
    """SHA-256 of plain values, hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def patient_number(patient: str) -> int:
    """A number that stands for a patient in tensors, the same in every folder."""
    return int.from_bytes(hashlib.sha256(patient.encode()).digest()[:7], "big")
