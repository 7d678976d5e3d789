"""The data module: subsets of a prepared folder as batches."""

import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cached_property, partialmethod
from pathlib import Path
from typing import Any

import monai
import pytorch_lightning as pl
import torch
from filelock import FileLock
from lightning_fabric.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader

from pancseg import __version__
from pancseg.data import sampling as samples
from pancseg.data.cache import STORAGES, Entry, VolumeCache, evict
from pancseg.data.manifest import Manifest, has_manifest, read_manifest
from pancseg.data.scan_statistics import training_profile
from pancseg.data.splits import SUBSETS, Split, make_split, persons_of
from pancseg.data.transforms import Plan, Preprocessing, make_plan
from pancseg.errors import PancsegError
from pancseg.files import check_writable, json_hash
from pancseg.models.augmentation import Augmentation, Augmenter, step_seed
from pancseg.parallel import ignore_signals

log = logging.getLogger(__name__)
Batch = dict[str, Any]
SUBSETS_OF_STAGE: dict[str | None, tuple[str, ...]] = {
    None: SUBSETS,
    "fit": ("train", "val"),
    "validate": ("val",),
}


class CTDataModule(pl.LightningDataModule):
    """Groups or patches of the CTs of a prepared folder; ``conf/data`` explains the arguments.

    A batch on its device is ``{"image": (B, 1, H, W, D) float32 0..1, "label": (B, 1, H, W, D)
    float32 codes of structures, "patient": (B,) int64, "name": list, "spacing_mm": list of (x, y,
    z)}``; in training it is augmented, and has its ``batch_number`` since the beginning, and
    ``sample_index``, that of its first sample in the batch of all processes.
    """

    def __init__(
        self,
        name: str,
        root: str,
        depth: int | None,
        tail: str,
        keep_empty: bool,
        orientation: str,
        spacing_mm: list[float] | None,
        window_hu: list[float],
        spatial_size: list[int] | None,
        field_mm: list[float],
        patch_voxels: int,
        batch_size: int,
        num_workers: int,
        pin_memory: bool,
        cache: str,
        cache_folder: str | None,
        cache_gb: float,
        sampling: dict[str, Any],
        split: dict[str, Any],
        augment: dict[str, Any] | None = None,
        seed: int = 0,
        prepare: Callable[[], object] | None = None,  # fills a root that is not prepared
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["prepare", "root", "cache_folder"])
        self.hparams["root"] = str(Path(root).resolve())
        self.root, self.prepare = Path(root), prepare
        self.cache_folder = Path(cache_folder) if cache_folder else self.root / "cache"
        self.sampling = samples.Sampling(**sampling)
        if not re.fullmatch("[LR][AP][IS]", orientation):
            raise PancsegError(f"data.orientation={orientation}: expected [LR][AP][IS], as RAS is")
        if batch_size < 1:
            raise PancsegError(f"data.batch_size={batch_size}: expected at least 1")
        if cache not in STORAGES:
            raise PancsegError(f"hardware.cache={cache}: expected one of {', '.join(STORAGES)}")
        if depth is None and not self.sampling.uses_patches:
            raise PancsegError("data.depth=null has no groups to take whole; give sampling=patches")
        if spatial_size is None and not self.sampling.uses_patches:
            raise PancsegError("data.spatial_size=null plans patches; groups are resized: give it")
        for key, numbers in (("spacing_mm", spacing_mm), ("spatial_size", spatial_size)):
            if numbers and (len(numbers) != 3 or min(numbers) <= 0):
                raise PancsegError(f"data.{key}={list(numbers)}: expected three above 0")
        if len(window_hu) != 2 or window_hu[0] >= window_hu[1]:
            raise PancsegError(f"data.window_hu={list(window_hu)}: expected two, the lower first")
        margin = {} if self.sampling.uses_patches else {"margin_share": 0.0}  # around a group: air
        self.augmentation = Augmentation(**{**(augment or {}), **margin})
        self.seen_before: set[str] = set()  # patients that initial weights were trained on
        self.caches: dict[str, VolumeCache] = {}

    def prepare_data(self) -> None:
        """Prepare the root where it is not; of several processes one prepares, the others wait."""

        def is_prepared() -> bool:
            return has_manifest(self.root) and read_manifest(self.root).complete

        if self.prepare and not is_prepared():
            check_writable(self.root.parent, "data.root")
            with FileLock(self.root.with_name(f".{self.root.name}.lock")):
                if not is_prepared():
                    log.info("%s is not prepared yet: preparing it", self.root)
                    self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Preprocess the volumes of a stage, and remove old ones of other settings."""
        caches = [self.volumes(subset) for subset in SUBSETS_OF_STAGE.get(stage, (stage or "",))]
        if is_first_process():
            with suppress(OSError):
                evict(caches[0].folder, self.hparams["cache_gb"])

    @cached_property
    def manifest(self) -> Manifest:
        """Content of the root."""
        manifest, depth = read_manifest(self.root), self.hparams["depth"]
        if not manifest.complete:
            raise PancsegError(f"{self.root} is not complete; run the same pancseg.prepare again")
        prepared = manifest.settings.get("depth")
        if prepared != depth and not self.sampling.uses_patches:
            groups = f"was prepared with groups of {prepared or 'no'} slices, data.depth is {depth}"
            raise PancsegError(f"{self.root} {groups}; prepare another data.root with such groups")
        self.hparams.update({key: manifest.settings.get(key) for key in ("tail", "keep_empty")})
        return manifest

    @cached_property
    def split(self) -> Split:
        """Patients of the subsets."""
        patients, persons = self.manifest.labelled_patients(), persons_of(self.manifest.cases)
        split = make_split(patients, **self.hparams["split"], persons=persons)
        if not any(entry.label_voxels for entry in self.entries_of(split.train)):
            unit = "voxel" if self.sampling.uses_patches else "group"
            raise PancsegError(
                f"{self.root}: the {len(split.train)} training patients have no labelled {unit}; "
                "see intake.csv, and prepare another data.root: with labels=[...] where labels are "
                "empty, with data.tail=shift or pad where slices are left out"
            )
        return split

    @cached_property
    def plan(self) -> Plan:
        """Spacing and size of the network's input; the manifest is read only to plan them."""
        spacing_mm, spatial_size = self.hparams["spacing_mm"], self.hparams["spatial_size"]
        if spacing_mm and spatial_size:
            return Plan(tuple(map(float, spacing_mm)), tuple(spatial_size))
        limits = self.hparams["patch_voxels"], self.hparams["field_mm"]
        cases = self.manifest.cases_of(self.split.train)
        plan = make_plan(cases, *limits, spacing_mm, spatial_size)
        log.info("planned  patches of %s", plan)
        self.hparams.update({key: list(value) for key, value in asdict(plan).items()})
        return plan

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """Arguments of the preprocessing transforms."""
        orientation, window_hu = self.hparams["orientation"], tuple(self.hparams["window_hu"])
        size = None if self.sampling.uses_patches else self.plan.spatial_size
        return Preprocessing(orientation, self.plan.spacing_mm, window_hu, size)

    @cached_property
    def augmenter(self) -> Augmenter:
        """Augmentation of training batches."""
        units = {"window_hu": self.hparams["window_hu"], "spacing_mm": self.plan.spacing_mm}
        return Augmenter(self.augmentation, **units, size=self.plan.spatial_size)

    @property
    def structures(self) -> dict[str, list[int]]:
        """Codes in the labels of each structure by its name."""
        return {structure.name: list(structure.values) for structure in self.manifest.structures}

    @property
    def has_ignored(self) -> bool:
        """Whether any label has voxels that nobody labelled."""
        return any(case.ignored_voxels for case in self.manifest.cases)

    @property
    def fingerprint(self) -> str:
        """Hash of all cases of the folder and of their preprocessing."""
        return data_fingerprint(self.manifest, self.preprocessing)

    def state_dict(self) -> dict[str, Any]:
        """Content of checkpoints beside the hyperparameters."""
        scans = [case.statistics for case in self.manifest.cases_of(self.split.train)]
        return {
            "split": asdict(self.split),
            "structures": [structure.to_dict() for structure in self.manifest.structures],
            "names": str(self.manifest.settings.get("names")),
            "fingerprint": self.fingerprint,
            "seen_before": sorted(self.seen_before),
            "profile": asdict(training_profile(scans)),
        }

    def entries(self, subset: str) -> list[Entry]:
        """Cases or groups of ``train``, ``val``, ``test`` or ``predict``, which has no labels."""
        if subset != "predict":
            return self.entries_of(getattr(self.split, subset))
        entries = self.manifest.cases if self.sampling.uses_patches else self.manifest.groups
        return [replace(entry, label=None, label_sha256="") for entry in entries]

    def entries_of(self, patients: list[str]) -> list[Entry]:
        """Labelled cases or groups of patients."""
        manifest, patches = self.manifest, self.sampling.uses_patches
        return [*(manifest.cases_of(patients) if patches else manifest.groups_of(patients))]

    def volumes(self, subset: str) -> VolumeCache:
        """Preprocessed volumes of a subset, made at the first call."""
        if subset not in self.caches:
            versions = [__version__, monai.__version__, torch.__version__]
            key = json_hash([asdict(self.preprocessing), self.manifest.settings, versions])
            folder, entries = self.cache_folder / key[:16], self.entries(subset)
            self.caches[subset] = VolumeCache(self.root, folder, self.preprocessing, entries)
            self.caches[subset].make_missing()
        return self.caches[subset]

    def batches_per_epoch(self) -> int:
        """Training batches of an epoch in each process."""
        return len(self.batch_sampler())

    def batch_sampler(self) -> samples.BatchSampler:
        """Numbers of the training samples of each batch of the present epoch."""
        batch_size, (rank, processes) = self.hparams["batch_size"], self.rank_and_processes()
        needed, per_epoch = batch_size * processes, len(self.entries("train"))
        if self.sampling.uses_patches:
            per_epoch = self.sampling.steps_per_epoch * needed
        if processes > 1 and per_epoch < needed:
            counts = f"{per_epoch} training groups for {processes} processes"
            raise PancsegError(f"{counts} with data.batch_size={batch_size}; give fewer devices")
        return samples.BatchSampler(per_epoch, batch_size, self.epoch, rank, processes)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of training samples of the present epoch."""
        volumes, batches, seed = self.volumes("train"), self.batch_sampler(), self.hparams["seed"]
        dataset: samples.VolumeDataset = samples.ShuffledDataset(volumes, batches, seed)
        if self.sampling.uses_patches:
            size, margin = self.plan.spatial_size, self.augmenter.margin
            codes = list(self.structures.values())
            parts = (size, margin, self.sampling, codes)
            dataset = samples.PatchDataset(volumes, batches, seed, *parts)
        return self.loader(dataset, batch_sampler=batches)

    def whole_volumes(self, subset: str) -> DataLoader[Batch]:
        """Whole volumes in order, each in one process."""
        volumes, (rank, processes) = self.volumes(subset), self.rank_and_processes()
        if 0 < len(volumes) < processes:
            counts = f"{len(volumes)} {subset} volumes for {processes} processes"
            raise PancsegError(f"{counts}; give fewer devices")
        own = replace(volumes, entries=volumes.entries[rank::processes])
        batch_size = 1 if self.sampling.uses_patches else self.hparams["batch_size"]
        return self.loader(samples.VolumeDataset(own), batch_size=batch_size)

    val_dataloader = partialmethod(whole_volumes, "val")
    test_dataloader = partialmethod(whole_volumes, "test")
    predict_dataloader = partialmethod(whole_volumes, "predict")

    def loader(self, dataset: samples.VolumeDataset, **options: Any) -> DataLoader[Batch]:
        """Load volumes to their storage; from the GPU they are read without worker processes."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        dataset.volumes.copy_to(self.hparams["cache"], device)
        on_gpu = dataset.volumes.is_on_gpu
        workers = 0 if on_gpu else self.hparams["num_workers"]
        options |= {"num_workers": workers, "persistent_workers": workers > 0}
        options |= {"pin_memory": self.hparams["pin_memory"] and not on_gpu}
        options |= {"worker_init_fn": ignore_signals, "collate_fn": samples.collate}
        return DataLoader(dataset, **options)

    def rank_and_processes(self) -> tuple[int, int]:
        """Rank of this process among those that train together, and their number."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def epoch(self) -> int:
        """Number of the present epoch, from 0."""
        if self.trainer is None:
            return 0
        loop: Any = self.trainer.fit_loop
        progress = loop.epoch_progress.current
        # the last epoch of a checkpoint counts as completed only after the first loader is made
        return int(progress.processed if loop.is_resuming else progress.completed)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Convert a batch to float32, and augment it in training; on its device."""
        if self.trainer is not None and self.trainer.training:
            return self.augment_batch(batch)
        return {**batch, **{key: batch[key].float() for key in ("image", "label") if key in batch}}

    def augment_batch(self, batch: Batch) -> Batch:
        """A training batch, augmented as a function of the seed and its step; float32."""
        seed = step_seed(self.hparams["seed"], batch["batch_number"])
        volumes = batch["image"].float(), batch["label"].float()
        numbers = {"first": batch["sample_index"], "spacings_mm": batch["spacing_mm"]}
        image, label = self.augmenter(*volumes, seed, **numbers)
        return {**batch, "image": image, "label": label}


def is_first_process() -> bool:
    """Whether this is the first or only process that trains."""
    return not rank_zero_only.rank  # type: ignore[attr-defined]


def data_fingerprint(manifest: Manifest, preprocessing: Preprocessing) -> str:
    """Hash of all cases of a prepared folder and of their preprocessing."""
    stored = sorted(case.image_sha256 + case.label_sha256 for case in manifest.cases)
    settings = preprocessing.spacing_mm, preprocessing.window_hu, preprocessing.spatial_size
    numbers = [[float(n) for n in values or ()] for values in settings]
    return json_hash([stored, preprocessing.orientation, numbers, manifest.settings])
