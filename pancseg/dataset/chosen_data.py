"""What a training reads: labelled patients of a prepared folder, dealt to parts."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import monai
import torch

from pancseg import __version__
from pancseg.dataset.appearance import Profile, profile_of
from pancseg.dataset.manifest import Case, Group, Manifest, read_manifest
from pancseg.dataset.sampling import Size
from pancseg.dataset.splits import PARTS, Split, deal
from pancseg.dataset.transforms import Preprocessing
from pancseg.dataset.volume_cache import Source, VolumeCache
from pancseg.dataset.whole_root import same_person
from pancseg.errors import PancsegError


@dataclass(frozen=True)
class ChosenData:
    """Who is in which part, and how their scans are given to the network.

    Attributes:
        root: Prepared folder.
        manifest: What lies there.
        split: Who was dealt where.
        preprocessing: Numbers of the deterministic transforms.
        patch: Voxels given to the network.
        listed: Sources of the parts that were asked for: of thousands they are asked for often.
    """

    root: Path
    manifest: Manifest
    split: Split
    preprocessing: Preprocessing
    patch: Size
    listed: dict[str, list[Source]] = field(default_factory=dict, repr=False)

    @property
    def of_patches(self) -> bool:
        """Whether patches of whole cases are taken, or else whole groups."""
        return self.preprocessing.spatial_size is None

    def sources(self, part: str) -> list[Source]:
        """The labelled groups of ``train``, ``val`` or ``test``, or its cases for patches."""
        if part not in self.listed:
            self.listed[part] = self.list_sources(part)
        return self.listed[part]

    def list_sources(self, part: str) -> list[Source]:
        """What :meth:`sources` gives, made anew."""
        content = {case.case: case for case in self.manifest.cases}
        patients = getattr(self.split, part)
        found: list[Case] | list[Group] = self.manifest.groups_of(patients)
        if self.of_patches:
            found = self.manifest.cases_of(patients)
        return [
            Source(
                (name := one.group if isinstance(one, Group) else one.case),
                one.patient,
                self.root / one.image,
                self.root / str(one.label),
                f"{name}-{content[one.case].sha256[:32]}",
                math.prod(content[one.case].shape),
                one.sha256,
            )
            for one in found
        ]

    @property
    def of_phantoms(self) -> bool:
        """Whether any of the dealt patients is a phantom."""
        dealt = {patient for part in PARTS for patient in getattr(self.split, part)}
        return any(case.phantom for case in self.manifest.cases if case.patient in dealt)

    def counts(self) -> dict[str, dict[str, int]]:
        """Patients of each part, and its groups, or its cases where patches are taken."""
        unit = "cases" if self.of_patches else "groups"
        return {
            part: {"patients": len(getattr(self.split, part)), unit: len(self.sources(part))}
            for part in PARTS
        }

    @property
    def geometry(self) -> str:
        """On which grid ``val/dice`` is measured, in words."""
        size, spacing_mm = (
            " x ".join(f"{value:g}" for value in values)
            for values in (self.patch, self.preprocessing.spacing_mm)
        )
        if self.of_patches:
            return f"voxels summed over a patient's whole cases, of {spacing_mm} mm"
        return f"voxels summed over a patient's groups, on the network's grid of {size}"

    def profile(self) -> Profile:
        """What the training scans look like."""
        return profile_of([one.appearance for one in self.manifest.cases_of(self.split.train)])

    def fingerprint(self) -> str:
        """Hash of every stored case of the folder and of what is done to it."""
        stored = sorted(case.sha256 for case in self.manifest.cases)
        return hash_of([stored, asdict(self.preprocessing), self.manifest.settings])

    def store(self, folder: Path) -> VolumeCache:
        """Where preprocessed volumes lie; other data, numbers or versions give another folder."""
        versions = [__version__, monai.__version__, torch.__version__]
        key = hash_of([asdict(self.preprocessing), self.manifest.settings, versions])
        return VolumeCache(folder / key[:16], self.preprocessing)


def open_prepared(root: Path, depth: int | None, of_patches: bool) -> Manifest:
    """The manifest of a folder that was prepared as a training needs it.

    Args:
        root: Prepared folder.
        depth: Slices of its groups; None for whole cases.
        of_patches: Whether patches are taken, which need no groups.

    Raises:
        PancsegError: If it is not prepared to the end, or with other groups; with both depths.
    """
    manifest = read_manifest(root)
    if not manifest.complete:
        raise PancsegError(
            f"{root}: its preparation is under way or was interrupted; run the same "
            "pancseg.prepare again, it goes on where it was"
        )
    prepared = manifest.settings.get("depth")
    if prepared == depth or of_patches:
        return manifest
    there = "as whole cases" if prepared is None else f"with groups of {prepared}"
    raise PancsegError(
        f"{root} was prepared {there}, data.depth is {depth}; give the data.root of such "
        "groups or prepare one"
    )


def deal_patients(root: Path, manifest: Manifest, rule: dict[str, Any], of_patches: bool) -> Split:
    """Deal the labelled patients, those of one person together.

    Args:
        root: Prepared folder, for messages.
        manifest: What lies there.
        rule: Arguments of ``pancseg.dataset.splits.deal``.
        of_patches: Whether patches are taken, which need no groups.

    Raises:
        PancsegError: If they cannot be dealt so, or leave nothing to train on.
    """
    names = same_person(manifest.cases)
    split = deal(manifest.labelled_patients(), **rule, same_person=names)
    if not of_patches and not manifest.groups_of(split.train):
        raise PancsegError(
            f"{root}: the {len(split.train)} training patients have no labelled group; "
            "see groups_kept, groups_empty and groups_tail in intake.csv (data.tail=shift or "
            "pad keeps the slices after the last whole group)"
        )
    split.check()
    return split


def hash_of(value: Any) -> str:
    """SHA-256 of plain values, hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
