"""The data module: a prepared folder, dealt to parts, as batches."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from pancseg.dataset.chosen_data import ChosenData, deal_patients, open_prepared
from pancseg.dataset.kept_volumes import KEEPING, KeptVolumes
from pancseg.dataset.manifest import Case, has_manifest, read_manifest
from pancseg.dataset.sampling import Patches, Sampling, Size, Volumes, WholeVolumes
from pancseg.dataset.steps import Steps
from pancseg.dataset.transforms import Preprocessing
from pancseg.dataset.volume_cache import Source, VolumeCache
from pancseg.dataset.volume_plan import plan_volume
from pancseg.errors import PancsegError
from pancseg.parallel import ignore_signals

log = logging.getLogger(__name__)
Batch = dict[str, Any]


class GroupData(pl.LightningDataModule):
    """Groups or whole cases of a prepared folder: patients dealt to parts, in batches.

    A batch is ``{"image": (B, 1, H, W, D) float16 0..1, "label": (B, 1, H, W, D) uint8 0 or 1,
    "patient": (B,) int, "name": B names of groups or cases}``; in training also ``"step"``, which
    counts from its beginning, and ``"place"`` in the batch of all processes. Validation with
    patches has whole cases, one a batch.

    Args:
        name: Of the dataset, for folders of runs.
        root: Prepared folder.
        depth: Slices of a group; the folder must have been prepared with it. None takes cases.
        tail: Belongs to preparation.
        keep_empty: Belongs to preparation.
        orientation: Axis codes given to the network.
        spacing_mm: Voxel size after resampling; None plans it.
        window_hu: What becomes 0 and 1.
        spatial_size: Voxels given to the network; None plans it.
        field_mm: What a planned patch is to see.
        patch_voxels: That the machine takes in a planned patch.
        batch_size: Samples a step and process.
        num_workers: Processes that load.
        pin_memory: Whether batches wait in page-locked memory.
        cache: Where preprocessed volumes are read from: ``disk``, ``ram`` or ``gpu``.
        cache_folder: Where they are stored; None is below the root.
        sampling: Arguments of a :class:`Sampling`.
        split: Arguments of ``pancseg.dataset.splits.deal``.
        seed: Of the order of samples.
        prepare: Fills the root where it holds no manifest, if given.
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
        sampling: dict[str, Any],
        split: dict[str, Any],
        seed: int = 0,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["prepare", "root", "cache_folder"])
        self.hparams["root"] = str(Path(root).resolve())
        if batch_size < 1:
            raise PancsegError(f"data.batch_size={batch_size}: expected at least 1")
        if cache not in KEEPING:
            raise PancsegError(f"hardware.cache={cache}: expected one of {', '.join(KEEPING)}")
        self.root = Path(root)
        self.cache_folder = Path(cache_folder) if cache_folder else self.root / "cache"
        self.fill = prepare
        self.sampling = Sampling(**sampling)
        if depth is None and not self.sampling.of_patches:
            raise PancsegError("data.depth=null has no groups to take whole; give sampling=patches")
        self.margin: Size = (0, 0, 0)  # voxels around a patch that augmentation needs
        self.step_bytes = 0  # that a training step needs on the device, by the estimate
        self.choice: ChosenData | None = None
        self.seen_before: set[str] = set()  # patients whom the first weights were trained on

    def prepare_data(self) -> None:
        """Prepare the folder first where it holds no manifest."""
        if self.fill and not (has_manifest(self.root) and read_manifest(self.root).complete):
            log.info("%s is not prepared yet: preparing it", self.root)
            self.fill()

    def setup(self, stage: str | None = None) -> None:
        """Read the manifest, deal the patients, plan what is not given, and fill the cache.

        Raises:
            PancsegError: If the folder does not fit the settings, or the split cannot be dealt.
        """
        if self.choice is not None:
            return
        patches = self.sampling.of_patches
        manifest = open_prepared(self.root, self.hparams["depth"], patches)
        split = deal_patients(self.root, manifest, self.hparams["split"], patches)
        for name in ("tail", "keep_empty"):  # as it was prepared, whatever the configuration says
            self.hparams[name] = manifest.settings[name]
        self.plan(manifest.cases_of(split.train))
        x, y, z = self.hparams["spatial_size"]
        preprocessing = Preprocessing(
            self.hparams["orientation"],
            tuple(self.hparams["spacing_mm"]),
            tuple(self.hparams["window_hu"]),
            None if patches else (x, y, z),
        )
        self.choice = ChosenData(self.root, manifest, split, preprocessing, (x, y, z))
        self.store().fill([one for part in ("train", "val") for one in self.chosen.sources(part)])

    def plan(self, cases: list[Case]) -> None:
        """Choose the spacing and the patch that were not given, for these cases."""
        given = {"spacing_mm": self.hparams["spacing_mm"], "patch": self.hparams["spatial_size"]}
        if None in given.values():
            plan = plan_volume(
                [case.shape for case in cases],
                [case.spacing_mm for case in cases],
                patch_voxels=self.hparams["patch_voxels"],
                field_mm=self.hparams["field_mm"],
                **given,
            )
            log.info("planned  %s", plan.describe())
            self.hparams["spacing_mm"] = list(plan.spacing_mm)
            self.hparams["spatial_size"] = list(plan.patch)

    @property
    def chosen(self) -> ChosenData:
        """Who is in which part, and how their scans are given, once set up."""
        if self.choice is None:
            raise RuntimeError("setup() comes first")
        return self.choice

    def store(self) -> VolumeCache:
        """Where preprocessed volumes lie."""
        return self.chosen.store(self.cache_folder)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data beside the hyperparameters: who was dealt where."""
        return {
            "split": self.chosen.split.as_dict(),
            "fingerprint": self.chosen.fingerprint(),
            "seen_before": sorted(self.seen_before),
            "profile": self.chosen.profile().as_dict(),
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of training samples, from where the training is."""
        sources, patches = self.chosen.sources("train"), self.sampling.of_patches
        batch_size, seed = self.hparams["batch_size"], self.hparams["seed"]
        together = batch_size * self.processes
        per_epoch = self.sampling.steps_per_epoch * together if patches else len(sources)
        if self.processes > 1 and per_epoch < together:
            raise PancsegError(
                f"{per_epoch} training groups for {self.processes} processes with "
                f"data.batch_size={batch_size}; give fewer devices"
            )
        steps = Steps(per_epoch, batch_size, self.position, self.rank, self.processes)
        volumes = self.kept(sources)
        if not patches:
            return self.loader(WholeVolumes(volumes, steps, seed), batch_sampler=steps)
        dataset = Patches(volumes, steps, seed, self.chosen.patch, self.margin, self.sampling)
        return self.loader(dataset, batch_sampler=steps)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Validation groups in batches, or whole cases one by one; each in one process only."""
        sources = self.chosen.sources("val")
        if 0 < len(sources) < self.processes:
            raise PancsegError(
                f"{len(sources)} to validate on for {self.processes} processes; give fewer devices "
                "or more split.val"
            )
        sources = sources[self.rank :: self.processes]
        size = 1 if self.sampling.of_patches else self.hparams["batch_size"]
        return self.loader(Volumes(self.kept(sources)), batch_size=size)

    def kept(self, sources: list[Source]) -> KeptVolumes:
        """Volumes where ``hardware.cache`` says."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        cache = self.hparams["cache"]
        return KeptVolumes(sources, self.store().open, cache, device, self.step_bytes)

    def loader(self, dataset: Volumes, **options: Any) -> DataLoader[Batch]:
        """A loader with the settings of the hardware; what is on the GPU needs no processes."""
        on_gpu = dataset.volumes.on_gpu
        workers = 0 if on_gpu else self.hparams["num_workers"]
        return DataLoader(
            dataset,
            num_workers=workers,
            pin_memory=self.hparams["pin_memory"] and not on_gpu,
            persistent_workers=workers > 0,
            worker_init_fn=ignore_signals,
            **options,
        )

    @property
    def rank(self) -> int:
        """Which process this is."""
        return self.trainer.global_rank if self.trainer else 0

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return self.trainer.world_size if self.trainer else 1

    def position(self) -> tuple[int, int]:
        """Batches trained on in all, and of the present epoch: both travel in checkpoints."""
        if self.trainer is None:
            return 0, 0
        loop = self.trainer.fit_loop.epoch_loop
        progress = loop.batch_progress
        of_epoch = progress.current.processed if loop.restarting else 0  # type: ignore[attr-defined]
        return progress.total.processed, of_epoch  # type: ignore[attr-defined]
