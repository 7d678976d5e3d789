"""Does anything grow faster than the number of patients? Folders of up to 5,000 patients.

    python benchmarks/large_root.py --work FOLDER
    python benchmarks/large_root.py --work FOLDER --sizes 10,250,500,1000 --only sources,prepare

Patients are tiny, so that what is measured is the work around them: 24 x 24 x 32 voxels, four
groups. ``prepare`` and ``train`` are the real commands, one after the other on the same folder.
Each measure is a process of its own; imports do not count in seconds, but do in memory. Of what
takes parts of a second the best of three is shown. The cost of the first size is subtracted before
the exponent of growth is computed, which is 1 where twice as many patients take twice as long.
"""

import argparse
import datetime
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from dice_over_time import machine

DEPTH, SHAPE, SPACING_MM = 8, (24, 24, 32), 4.0
MIN_GROWTH_S = 0.05  # less is the clock's
LARGEST_EXPONENT = 1.25  # more is marked
TRAINING = [
    "experiment=smoke", f"data.depth={DEPTH}", "data.spacing_mm=[4,4,4]",
    "hardware=cpu", "hardware.cache=disk", "hardware.num_workers=0", "trainer.max_epochs=1",
    "trainer.limit_train_batches=1", "trainer.limit_val_batches=1",
]  # fmt: skip
Seconds = dict[str, float]


def write_source(work: Path, number: int) -> None:
    """Write a patient as NIfTI files, different for each number; the organ is in each group."""
    import nibabel as nib

    from pancseg.files import write_nifti

    hu = np.random.default_rng(number).normal(40, 15, SHAPE).astype(np.int16)
    hu[:3] = -1000
    mask = np.zeros(SHAPE, np.uint8)
    mask[8 + number % 4 : 14 + number % 4, 8:14, 2:-2] = 1
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    for folder, values in (("images", hu), ("labels", mask)):
        image = nib.Nifti1Image(values, affine)
        write_nifti(work / folder / f"p{number:06}.nii.gz", image)


def run_command(name: str, *arguments: str) -> None:
    """Run a command of pancseg in this process."""
    sys.argv = [f"pancseg.{name}", *arguments]
    try:
        import_module(f"pancseg.{name}").main()
    except SystemExit as error:
        if error.code:
            raise


def prepare(work: Path) -> None:
    """Run ``prepare`` in this process."""
    source = [f"source.images={work / 'images'}", f"source.labels={work / 'labels'}"]
    where = [f"data.root={work / 'root'}", f"data.depth={DEPTH}", "privacy=none", "processes=0"]
    run_command("prepare", "source=nifti", *source, *where)


@contextmanager
def clock(seconds: Seconds, name: str) -> Iterator[None]:
    """Store the seconds of a block."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def measure_sources(work: Path) -> Seconds:
    """As many DICOM series, each with a mask series, matched and made cases; no file is read."""
    from pancseg.intake.match_labels import SourceContents, SourceItem, add_cases, match_labels
    from pancseg.intake.volume_files import ReadOptions

    def series(n: int, kind: str) -> SourceItem:
        folder = Path(f"/{kind}/p{n:06}")
        fields: dict[str, Any] = {"patient_id": f"P{n}", "study_uid": f"study{n}"}
        fields |= {"folder": folder, "path": folder, "key": folder.name, "names_patient": False}
        return SourceItem(
            format="image", uid=f"{kind}{n}", files=(folder / "0.dcm", folder / "1.dcm"), **fields
        )

    count, seconds, contents = len(list((work / "images").iterdir())), Seconds(), SourceContents()
    images, masks = ([series(n, kind) for n in range(count)] for kind in ("images", "labels"))
    with clock(seconds, "DICOM, labels matched with images"):
        add_cases(contents, images, match_labels(masks, images), ReadOptions(()))
    assert len(contents.cases) == count, contents.skipped[:3]
    return seconds


def measure_prepare(work: Path) -> Seconds:
    """``prepare`` of all, with nothing to do, and with one more patient."""
    seconds = Seconds()
    with clock(seconds, "prepare, all patients"):
        prepare(work)
    with clock(seconds, "prepare, nothing to do"):
        prepare(work)
    write_source(work, 999_999)
    with clock(seconds, "prepare, one patient added"):
        prepare(work)
    return seconds


def measure_manifest(work: Path) -> Seconds:
    """Manifest and table, read and written."""
    from pancseg.data.manifest import MANIFEST, read_manifest, read_rows, rows_to_csv

    seconds = Seconds()
    with clock(seconds, "manifest, read"):
        manifest = read_manifest(work / "root")
    with clock(seconds, "manifest, written"):
        manifest.write(work)
    (work / MANIFEST).unlink()
    with clock(seconds, "intake.csv, read and written"):
        rows_to_csv(read_rows(work / "root"))
    return seconds


def measure_splits(work: Path) -> Seconds:
    """Persons with several names found, and splits made."""
    from pancseg.data.manifest import read_manifest
    from pancseg.data.splits import make_split, persons_of

    manifest, seconds = read_manifest(work / "root"), Seconds()
    for rule in ("holdout", "kfold"):
        with clock(seconds, f"split={rule}"):
            make_split(manifest.labelled_patients(), rule, persons=persons_of(manifest.cases))
    return seconds


def measure_train(work: Path) -> Seconds:
    """``train`` of one step, twice: the first run fills the cache."""
    seconds = Seconds()
    for name in ("train, one step, cache empty", "train, one step, cache filled"):
        with clock(seconds, name):
            where = [f"data.root={work / 'root'}", f"hydra.run.dir={work / 'run'}"]
            run_command("train", *TRAINING, *where)
        shutil.rmtree(work / "run")
    return seconds


MEASURES: dict[str, Callable[[Path], Seconds]] = {
    "sources": measure_sources, "prepare": measure_prepare, "manifest": measure_manifest,
    "splits": measure_splits, "train": measure_train,
}  # fmt: skip
QUICK = ("sources", "manifest", "splits")  # parts of a second: the best of three


def measure_in_process(name: str, work: Path) -> tuple[Seconds, float]:
    """Seconds of a measure, and the peak memory of its process, MB."""
    command = [sys.executable, __file__, "--work", str(work), "--measure", name]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{name}: {result.stderr[-2000:]}")
    seconds = json.loads(result.stdout.splitlines()[-1])
    return seconds, seconds.pop("peak_mb")


def measure_here(name: str, work: Path) -> None:
    """Print a measure of this process as JSON."""
    import resource

    import monai  # noqa: F401  # what every command imports, before the clock starts
    import pytorch_lightning  # noqa: F401
    from matplotlib import figure  # noqa: F401

    rounds = [MEASURES[name](work) for _ in range(3 if name in QUICK else 1)]
    seconds = {key: min(each[key] for each in rounds) for key in rounds[0]}
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**seconds, "peak_mb": peak_mb}))


def growth(small: float, half: float, whole: float) -> float | None:
    """The exponent of growth from half of the patients to all, without the cost of a few.

    >>> growth(1.0, 3.0, 5.0), growth(0.0, 2.0, 8.0), growth(0.1, 0.11, 0.12)
    (1.0, 2.0, None)
    """
    if half - small < MIN_GROWTH_S or whole - small < MIN_GROWTH_S:
        return None
    return math.log2((whole - small) / (half - small))


def table(results: dict[int, dict[str, tuple[float, float]]]) -> str:
    """Markdown table of seconds and memory by size, with exponents."""
    sizes = sorted(results)
    heads = [f"{n:,} patients s" for n in sizes]
    lines = [f"| | {' | '.join(heads)} | exponent | peak MB, first and last |"]
    lines.append("|--" * (len(sizes) + 3) + "|")
    for name in results[sizes[-1]]:
        seconds = [results[n][name][0] for n in sizes]
        exponent = growth(seconds[0], *seconds[-2:]) if len(sizes) > 2 else None
        text = "-" if exponent is None else f"{exponent:.2f}"
        text += " (!)" * (exponent is not None and exponent > LARGEST_EXPONENT)
        columns = " | ".join(f"{value:.2f}" for value in seconds)
        memory = f"{results[sizes[0]][name][1]:.0f}, {results[sizes[-1]][name][1]:.0f}"
        lines.append(f"| {name} | {columns} | {text} | {memory} |")
    return "\n".join(lines)


def report(work: Path, sizes: list[int], names: list[str]) -> None:
    """Measure every size and print the table."""
    results: dict[int, dict[str, tuple[float, float]]] = {n: {} for n in sizes}
    for n in sizes:
        folder = work / f"{n}"
        shutil.rmtree(folder, ignore_errors=True)
        for number in range(n):
            write_source(folder, number)
        for name in (name for name in MEASURES if name in names):
            seconds, peak_mb = measure_in_process(name, folder)
            results[n] |= {key: (value, peak_mb) for key, value in seconds.items()}
            print(n, name, *(f"{k}: {v:.2f} s;" for k, v in seconds.items()), file=sys.stderr)
    command = f"python benchmarks/large_root.py --work FOLDER --sizes {','.join(map(str, sizes))}"
    print(f"`{command}`, {machine()}, {datetime.date.today()}; four groups a patient.")
    print(f"(!): worse than linear.\n\n{table(results)}")


def main() -> None:
    """Measure all sizes, or one thing in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sizes", default="10,1250,2500,5000", help="patients")
    parser.add_argument("--only", default=",".join(MEASURES), help="all but sources need prepare")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    if arguments.measure:
        measure_here(arguments.measure, work)
    else:
        sizes = [int(n) for n in arguments.sizes.split(",")]
        report(work, sizes, arguments.only.split(","))


if __name__ == "__main__":
    main()
