"""What scoring costs beside reading and writing: 100 cases of 512 x 512 x 200 voxels.

    python benchmarks/evaluate.py --work FOLDER --cases 100 --shape 512,512,200

Each case is read, its mask written, scored and drawn as ``pancseg.evaluate`` does it, by the same
code; the network is left out: what it found is made here, in another place and size for each case.
Beside it, in the same run and on the same files, the image and label are read and the mask is
written, and nothing else. All cases share one image's content; organs differ.
"""

import argparse
import datetime
import resource
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import torch
from dice_over_time import machine
from scipy import ndimage

from pancseg.data.manifest import Case
from pancseg.files import write_nifti
from pancseg.inference.members import Member
from pancseg.inference.own_grid import Piece
from pancseg.inference.postprocess import Postprocess
from pancseg.judging.case_judge import CaseJudge, read_case
from pancseg.parallel import progress

SPACING_MM = (0.75, 0.75, 1.5)
TOLERANCES_MM = [1.0, 2.0, 3.0]
ORGAN_MM = (70.0, 25.0, 30.0)  # half axes


@dataclass
class Found:
    """Stands where the network would: gives a probability that lies ready."""

    value: np.ndarray
    fold: int | None = None

    @property
    def network(self) -> "Found":
        """Itself."""
        return self

    def look(self, image: nib.Nifti1Image) -> list[Piece]:
        """What lies ready, whatever the image."""
        return [Piece(torch.from_numpy(self.value), image.affine, 0, image.shape[2])]


def make_image(path: Path, shape: tuple[int, ...]) -> None:
    """A body with noise as a scanner leaves it, int16."""
    rng = np.random.default_rng(0)
    x, y = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    body = (x / 0.8) ** 2 + (y / 0.6) ** 2 < 1
    hu = np.empty(shape, np.int16)
    for k in range(shape[2]):
        noise = ndimage.gaussian_filter(rng.normal(0, 40, shape[:2]), 1)
        hu[..., k] = np.where(body, 40 + noise, -1000 + noise / 4)
    nib.save(nib.Nifti1Image(hu, np.diag([*SPACING_MM, 1.0])), path)


def organ(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A drawn mask, and a probability that is nearly right about it."""
    middle = [size / 2 + rng.uniform(-0.1, 0.1) * size for size in shape]
    axes = [length / step for length, step in zip(ORGAN_MM, SPACING_MM, strict=True)]
    grids = np.ogrid[tuple(slice(0, size) for size in shape)]
    far = sum(((g - m) / a) ** 2 for g, m, a in zip(grids, middle, axes, strict=True))
    moved = sum(((g - m - 3) / a) ** 2 for g, m, a in zip(grids, middle, axes, strict=True))
    return far < 1, (1 / (1 + np.exp(np.clip(8 * (moved - 1), -30, 30)))).astype(np.float32)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--shape", default="512,512,200")
    asked = parser.parse_args()
    shape, rng = tuple(int(n) for n in asked.shape.split(",")), np.random.default_rng(1)
    root, out = asked.work / "root", asked.work / "scores"
    shutil.rmtree(asked.work, ignore_errors=True)
    root.mkdir(parents=True)
    make_image(root / "image.nii.gz", shape)
    judge = CaseJudge(root, out, TOLERANCES_MM, "made for a benchmark, NOT HELD OUT")
    spent: dict[str, list[float]] = {"read and write": [], "evaluate": []}
    affine = np.diag([*SPACING_MM, 1.0])
    for i in progress(range(asked.cases), "scoring", "case"):
        drawn, probability = organ(shape, rng)
        name = f"case-{i:03}"
        label = f"{name}_label.nii.gz"
        nib.save(nib.Nifti1Image(drawn.astype(np.uint8), affine), root / label)
        facts: dict[str, Any] = dict.fromkeys(Case.__dataclass_fields__, "")
        case = Case(
            **{**facts, "name": name, "patient": name, "image": "image.nii.gz", "label": label}
        )
        began = time.perf_counter()
        image, reference = read_case(case, root)
        mask = nib.Nifti1Image(reference.view(np.uint8), image.affine)
        write_nifti(out / "plain.nii.gz", mask)
        spent["read and write"].append(time.perf_counter() - began)
        member = cast(Member, Found(probability))
        began = time.perf_counter()
        row, _ = judge.judge(case, [member], [Postprocess()])
        spent["evaluate"].append(time.perf_counter() - began)
        assert row["status"] == "scored", row
        (root / label).unlink()
    medians = {name: float(np.median(times)) for name, times in spent.items()}
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ratio = medians["evaluate"] / medians["read and write"]
    volume_mb = np.prod(shape) * 2 / 2**20
    print(f"{machine()}, {datetime.date.today()}, {asked.cases} cases of {asked.shape}")
    print("| | s a case, median |\n|--|--|")
    for name, seconds in medians.items():
        print(f"| {name} | {seconds:.2f} |")
    print(f"times reading and writing: {ratio:.2f}; peak memory {peak_mb:.0f} MB, of which the")
    print(
        f"scan as int16 {volume_mb:.0f} MB and what stands for the network {4 * volume_mb:.0f} MB"
    )


if __name__ == "__main__":
    main()
