"""A prepared folder of a few small patients, written without ``pancseg.prepare``."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from pancseg.data.datamodule import CTDataModule
from pancseg.data.manifest import Case, Group, Manifest
from pancseg.data.scan_statistics import scan_statistics
from pancseg.files import write_nifti
from pancseg.geometry import AIR_HU, cut_group, plan_cut
from pancseg.structures import IGNORED, Structure

SHAPE, SPACING_MM, DEPTH = (24, 24, 20), (8.0, 8.0, 8.0), 8
STRUCTURES = (
    Structure("pancreas", (1, 2), "15776009", "organ", (15.0, 300.0), (1, 2)),
    Structure("tumour", (2,), "126859007", "lesion", (0.0, 300.0), (2,)),
)
WHOLE: dict[str, Any] = {"kind": "whole"}
PATCHES = {"kind": "patches", "steps_per_epoch": 3, "foreground_share": 0.5, "jitter": 0.25}


def case_of(name: str, **fields: Any) -> Case:
    """A case of the manifest; every field may be replaced."""
    known: dict[str, Any] = {"name": name, "patient": name, "shape": [*SHAPE], "phantom": True}
    known |= {role: f"cases/{name}_{role}.nii.gz" for role in ("image", "label")}
    known |= {"spacing_mm": [*SPACING_MM], "label_voxels": 100, "voxel_hash": f"pixels {name}"}
    known |= {"structure_voxels": {"pancreas": 100, "tumour": 10}, "image_sha256": f"i {name}"}
    known |= {"input_hash": f"identity {name}", "input_state": f"source {name}"}
    return Case(**known | {"label_sha256": f"l {name}"} | fields)


def write_root(
    root: Path, names: str = "abcdef", *, groups: bool = True, ignored: bool = False
) -> Manifest:
    """Write patients of one case each: soft tissue, pancreas (code 1) with a tumour (code 2)."""
    affine = np.diag([-8.0, -8.0, 8.0, 1.0])
    settings = {"depth": DEPTH if groups else None, "tail": "shift", "keep_empty": False}
    manifest = Manifest(settings, STRUCTURES, complete=True)
    for n, name in enumerate(names):
        hu, codes = np.full(SHAPE, -1000, np.int16), np.zeros(SHAPE, np.uint8)
        hu[2:-2, 2:-2] = np.random.default_rng(n).integers(-100, 100, (20, 20, 20))
        codes[8 + n % 3 : 14, 9:15, 6:14] = 1
        codes[10:12, 10:12, 9:11] = 2
        codes[12:18, 12:18, :10] = IGNORED if ignored else codes[12:18, 12:18, :10]
        image, label = (nib.Nifti1Image(values, affine) for values in (hu, codes))
        files = write_pair(root, f"cases/{name}", image, label)
        files |= {"statistics": scan_statistics(image), "ignored_voxels": int(ignored)}
        manifest.cases.append(case_of(name, **files))
        for start in plan_cut(SHAPE[2], DEPTH, "shift")[0] if groups else ():
            cut = (cut_group(image, start, DEPTH, AIR_HU), cut_group(label, start, DEPTH, 0))
            files = write_pair(root, f"groups/{name}_{start:04}", *cut)
            voxels = int(np.count_nonzero(cut[1].dataobj))
            group = Group(f"{name}_{start:04}", name, name, start, label_voxels=voxels, **files)
            manifest.groups.append(group)
    manifest.write(root)
    return manifest


def write_pair(root: Path, name: str, *pair: nib.Nifti1Image) -> dict[str, Any]:
    """Write an image and its label; return the fields of the manifest."""
    fields = {}
    for role, image in zip(("image", "label"), pair, strict=True):
        fields[role] = f"{name}_{role}.nii.gz"
        fields[f"{role}_sha256"] = write_nifti(root / fields[role], image)
    return fields


def data_module(root: Path, **changes: Any) -> CTDataModule:
    settings: dict[str, Any] = {
        "name": "test", "root": str(root), "depth": DEPTH, "tail": "shift", "keep_empty": False,
        "orientation": "RAS", "spacing_mm": [8.0, 8.0, 8.0], "window_hu": [-200, 200],
        "spatial_size": [16, 16, 16], "field_mm": [60, 60, 60], "patch_voxels": 40_000,
        "batch_size": 2, "num_workers": 0, "pin_memory": False, "cache": "disk",
        "cache_folder": None, "cache_gb": 100, "sampling": WHOLE, "split": {"val": 1, "test": 2},
    }  # fmt: skip
    return CTDataModule(**{**settings, **changes})
