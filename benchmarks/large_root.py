"""Does anything grow faster than the number of patients? A root of 5,000, and halves of it.

    python benchmarks/large_root.py --work FOLDER
    python benchmarks/large_root.py --work FOLDER --sizes 10,1250,2500,5000 --only manifest,splits

Patients are tiny, so that what is measured is the work around them: each is 24 x 24 x 32 voxels,
cut into four groups, and has files of its own, in the prepared format by pancseg's own writers.
Preprocessed volumes are links to one file. Each figure is of a process of its own; its imports do
not count in seconds, but do in memory. What takes parts of a second is the best of three. The first
size is what everything costs with hardly any patients: it is taken off before the exponent of
growth is formed, 1 where twice as many patients take twice as long. ``train``, ``evaluate``,
``prepare`` and ``predict`` are the real commands.
"""

import argparse
import datetime
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from dice_over_time import machine

DEPTH, SHAPE, SPACING_MM = 8, (24, 24, 32), 4.0
SMALL = 0.05  # seconds: growth below it is the clock's
PREPARED = ["source=nifti", f"data.depth={DEPTH}", "privacy=none", "processes=0"]
TRAINED = [
    "experiment=smoke", f"data.depth={DEPTH}", "data.spacing_mm=[4,4,4]",
    "hardware=cpu", "hardware.cache=disk", "hardware.num_workers=0", "trainer.max_epochs=1",
    "trainer.limit_train_batches=1", "trainer.limit_val_batches=1",
]  # fmt: skip
Seconds = dict[str, float]


def prepare_words(work: Path) -> list[str]:
    """Arguments of ``prepare``."""
    source = [f"source.images={work / 'images'}", f"source.labels={work / 'labels'}"]
    return [*PREPARED, *source, f"data.root={work / 'root'}"]


def train_words(work: Path) -> list[str]:
    """Arguments of ``train``."""
    return [*TRAINED, f"data.root={work / 'root'}", f"hydra.run.dir={work / 'run'}"]


def tiny(number: int) -> tuple[Any, Any]:
    """Image and label of a patient, unlike any other's; a piece of the organ in each group."""
    import nibabel as nib

    rng = np.random.default_rng(number)
    hu = rng.normal(40, 15, SHAPE).astype(np.int16)
    hu[:3] = -1000
    mask = np.zeros(SHAPE, np.uint8)
    first = 8 + number % 4
    mask[first : first + 6, 8:14, 2:-2] = 1
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    return nib.Nifti1Image(hu, affine), nib.Nifti1Image(mask, affine)


def write_source(work: Path, number: int) -> None:
    """A patient as NIfTI files."""
    from pancseg.files import write_nifti

    for folder, image in zip(("images", "labels"), tiny(number), strict=True):
        write_nifti(work / folder / f"p{number:06}.nii.gz", image)


def make_root(work: Path, patients: int) -> None:
    """Sources, and the root that they would give; the first and the last patient by the command."""
    from omegaconf import OmegaConf

    from pancseg.dataset.case_files import hash_of, picture_of, write_groups, write_pair
    from pancseg.dataset.groups import Cutting
    from pancseg.dataset.intake_table import Row
    from pancseg.dataset.manifest import read_manifest
    from pancseg.intake.checks.flags import Checks
    from pancseg.intake.found import Reading
    from pancseg.intake.layouts.nifti import find_nifti_pairs
    from pancseg.intake.pseudonyms import make_names
    from pancseg.parallel import passing
    from pancseg.preparing.planning import source_of
    from pancseg.preparing.preparation import Preparation

    root = work / "root"
    write_source(work, 0)
    assert run_command("prepare", *prepare_words(work)) == 0
    for number in range(1, patients):
        write_source(work, number)
    found = find_nifti_pairs(work / "images", work / "labels", None, Reading())
    settings, cutting = read_manifest(root).settings, Cutting(DEPTH, "drop", False)
    given = OmegaConf.to_container(composed("prepare", *prepare_words(work)).checks)
    checks = Checks(**given)  # type: ignore[arg-type]
    there = Preparation(root, cutting, checks, settings, make_names("none", work / "no.key"))
    (first,), (first_row, _) = there.cases.values(), there.rows.values()
    for number, one in enumerate(passing(found.candidates, patients, "writing", "patient")):
        if number == 0:
            assert source_of(there, one) == first.source, "prepare would do it all again"
        if number in (0, patients - 1):
            continue
        name, (image, label) = one.patient, tiny(number)
        groups, _, _ = write_groups(root, name, name, cutting, image, label)
        files, sha256 = write_pair(root, f"cases/{name}", image, label)
        shutil.copyfile(root / picture_of(first.case), root / picture_of(name))
        named = {"case": name, "patient": name, "image": files[0], "label": files[1]}
        hashes = {"sha256": sha256, "pixels": hash_of(image), "study": sha256[:20]}
        hashes |= {"origin": there.origin_of(one), "source": source_of(there, one)}
        there.cases[hashes["origin"]] = replace(first, **named, **hashes, person=sha256[:16])
        there.groups[name] = groups
        row = replace(first_row, patient=name, case=name, path=str(one.path))
        there.rows[row.key] = row
        row = Row(name, name, str(one.label_path), "label", "kept", slices=SHAPE[2])
        there.rows[row.key] = row
    there.save_state(complete=True)
    assert run_command("prepare", *prepare_words(work)) == 0  # draws the contact sheet, too


def composed(name: str, *words: str) -> Any:
    """The configuration of a command."""
    from hydra import compose, initialize_config_dir

    from pancseg.configuration import conf_folder, register_resolvers

    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose(name, [word for word in words if not word.startswith("hydra.")])


def make_cache(work: Path) -> None:
    """Preprocessed volumes of training and validation, made by links to those of one group."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from pancseg.dataset import volume_cache

    def link(cache: Any, missing: list[Any], processes: int | None) -> None:
        job = volume_cache.Job(missing[0], cache.folder, cache.preprocessing, 1)
        assert not volume_cache.make_volume(job).problem
        for source in missing[1:]:
            for name in volume_cache.ARRAYS:
                made, wanted = (
                    volume_cache.path_of(cache.folder, one, name) for one in (missing[0], source)
                )
                try:
                    os.link(made, wanted)
                except OSError:  # too many links, or a file system without
                    shutil.copyfile(made, wanted)

    volume_cache.VolumeCache.make = link  # type: ignore[method-assign]
    cfg = composed("train", *train_words(work))
    names = ("split", "sampling")
    parts = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in names}
    instantiate(cfg.data, **parts, seed=cfg.seed, _convert_="all").setup()


def make_predictions(work: Path) -> None:
    """What a batch over all images would have left, with empty files for masks and pictures."""
    from pancseg.applying.scan_files import MASK, PREVIEW
    from pancseg.applying.scan_run import input_of
    from pancseg.intake.found import Reading
    from pancseg.intake.layouts.unlabelled import find_scans, names_of
    from pancseg.output.prediction_table import Prediction, write_predictions

    out, scans = work / "masks", work / "images"
    out.mkdir()
    found = find_scans(scans, "CT", Reading())
    rows = []
    for name, one in zip(names_of(found.candidates, scans), found.candidates, strict=True):
        rows.append(Prediction(name, str(one.path), volume_ml=10.0, input=input_of(one)))
        for end in (MASK, PREVIEW):
            (out / f"{name}{end}").touch()
    write_predictions(out, rows)


def run_command(name: str, *words: str) -> int:
    """Run a command of pancseg in this process."""
    sys.argv = [f"pancseg.{name}", *words]
    try:
        import_module(f"pancseg.{name}").main()
    except SystemExit as ended:
        return int(ended.code or 0)
    raise AssertionError("a command ends by SystemExit")


@contextmanager
def clock(found: Seconds, name: str) -> Iterator[None]:
    """Note the seconds of a block."""
    began = time.perf_counter()
    yield
    found[name] = time.perf_counter() - began


def measure_manifest(work: Path) -> Seconds:
    """Manifest and table, read and written."""
    from pancseg.dataset.intake_table import read_rows, rows_to_csv
    from pancseg.dataset.manifest import NAME, read_manifest

    found: Seconds = {}
    with clock(found, "manifest, read"):
        manifest = read_manifest(work / "root")
    with clock(found, "manifest, written"):
        manifest.write(work)
    (work / NAME).unlink()
    with clock(found, "intake.csv, read and written"):
        rows_to_csv(list(read_rows(work / "root" / "intake.csv").values()))
    return found


def measure_splits(work: Path) -> Seconds:
    """Persons who go by several names, and dealing."""
    from pancseg.dataset.chosen_data import deal_patients
    from pancseg.dataset.manifest import read_manifest

    manifest, found = read_manifest(work / "root"), Seconds()
    for rule in ("holdout", "kfold"):
        with clock(found, f"split={rule}, dealt"):
            deal_patients(work / "root", manifest, {"rule": rule}, False)
    return found


def measure_ties(work: Path) -> Seconds:
    """As many DICOM series, each with a mask series, tied and entered; headers are read before."""
    from pancseg.intake.dicom.finding import doubted
    from pancseg.intake.dicom.headers import Header, Series
    from pancseg.intake.found import Found, Reading
    from pancseg.intake.layouts.dicom import take
    from pancseg.intake.layouts.ties import Entry, tie

    def series(n: int, kind: str) -> Series:
        folder = Path(f"p{n:06}")
        files = tuple(work / kind / folder / f"{k}.dcm" for k in range(4))
        told = (f"{kind}{n}", f"P{n}", "CT", f"study{n}", f"frame{n}")
        return Series(folder, *told, "image", False, files)

    count, found = len(list((work / "images").iterdir())), Seconds()
    images, masks = ([series(n, kind) for n in range(count)] for kind in ("images", "labels"))
    broken = Header(work / "images" / "p000001" / "x.dcm", problem="damaged", status="refused")
    with clock(found, "DICOM: damaged files, ties"):
        doubted(images, [broken])
        scans, labels = (
            [Entry(one, work / kind, one.folder.as_posix()) for one in many]
            for kind, many in (("images", images), ("labels", masks))
        )
        taken = Found()
        take(taken, scans, tie(labels, scans), True, Reading())
    assert len(taken.candidates) == count, taken.strays[:3]
    return found


def measure_check(work: Path) -> Seconds:
    """``prepare`` with nothing to do, and with one more patient."""
    found: Seconds = {}
    import_module("pancseg.preparing.filling")
    with clock(found, "prepare, nothing to do"):
        assert run_command("prepare", *prepare_words(work)) == 0
    write_source(work, 999_999)
    with clock(found, "prepare, one patient added"):
        assert run_command("prepare", *prepare_words(work)) == 0
    with clock(found, "prepare, that one taken away"):  # its files are gone, its case stays
        for folder in ("images", "labels"):
            (work / folder / "p999999.nii.gz").unlink()
        assert run_command("prepare", *prepare_words(work)) == 0
    return found


def measure_sheet(work: Path) -> Seconds:
    """The contact sheet, all pages anew."""
    from pancseg.dataset.manifest import read_manifest
    from pancseg.output.contact_sheet import Tile, draw_contact_sheet

    pictures, found = work / "root" / "pictures", Seconds()
    names = [case.case for case in read_manifest(work / "root").cases]
    tiles = [Tile(name, name, pictures / f"{name}.png", "label_cut", "10.0 ml") for name in names]
    sheet = work / "sheet"
    sheet.mkdir(exist_ok=True)
    with clock(found, "contact sheet, all pages"):
        draw_contact_sheet(sheet, tiles)
    shutil.rmtree(sheet)
    return found


def measure_train(work: Path) -> Seconds:
    """``train``: until the first step, and a whole run of one step."""
    from pancseg.learning.segmenter import Segmenter

    began, found, step = time.perf_counter(), Seconds(), Segmenter.training_step

    def first(self: Any, *words: Any, **more: Any) -> Any:
        found.setdefault("train, until the first step", time.perf_counter() - began)
        return step(self, *words, **more)

    Segmenter.training_step = first  # type: ignore[method-assign]
    assert run_command("train", *train_words(work)) == 0
    found["train, one step in all"] = time.perf_counter() - began
    return found


def measure_epoch(work: Path) -> Seconds:
    """Samples of an epoch, in their order, read from the cache."""
    from pancseg.dataset.kept_volumes import KeptVolumes
    from pancseg.dataset.sampling import WholeVolumes
    from pancseg.dataset.steps import Steps
    from pancseg.dataset.volume_cache import Source, Volume

    groups = 4 * len(list((work / "images").iterdir()))
    array, found = np.zeros((8, 8, 8), np.float16), Seconds()
    volume = Volume(array, array.astype(np.uint8), np.zeros((0, 3), np.int32))
    sources = [Source(str(n), str(n), work, work, str(n), 512) for n in range(groups)]
    kept = KeptVolumes(sources, lambda one: volume, "disk", import_module("torch").device("cpu"))
    steps = Steps(groups, 2)
    samples = WholeVolumes(kept, steps, 0)
    with clock(found, "an epoch's groups, drawn"):
        for batch in steps:
            for sample in batch:
                samples[sample]
    return found


def measure_evaluate(work: Path) -> Seconds:
    """``evaluate``: until the first case."""
    from pancseg.judging.case_judge import CaseJudge

    began = time.perf_counter()

    def first(*words: Any) -> Any:
        seconds = time.perf_counter() - began
        told = {"evaluate, until the first case": seconds, "peak_mb": peak_mb()}
        print(json.dumps(told), flush=True)
        os._exit(0)

    CaseJudge.judge = first  # type: ignore[method-assign]
    run_command("evaluate", f"checkpoint={work / 'run/checkpoints/best.ckpt'}", "hardware=cpu")
    raise AssertionError("no case was scored")


def measure_predict(work: Path) -> Seconds:
    """``predict``: finding scans, and going on where all is done."""
    from pancseg.intake.found import Reading
    from pancseg.intake.layouts.unlabelled import find_scans, names_of

    found, scans = Seconds(), work / "images"
    import_module("pancseg.applying.scan_run")
    with clock(found, "predict, scans found and named"):
        names_of(find_scans(scans, "CT", Reading()).candidates, scans)
    checkpoint = f"checkpoint={work / 'run/checkpoints/best.ckpt'}"
    where = [f"input={scans}", f"output={work / 'masks'}", "hardware=cpu"]
    with clock(found, "predict, all is done"):
        assert run_command("predict", checkpoint, *where) == 0
    return found


MEASURES: dict[str, Callable[[Path], Seconds]] = {
    "manifest": measure_manifest, "splits": measure_splits, "ties": measure_ties,
    "sheet": measure_sheet, "train": measure_train, "epoch": measure_epoch,
    "evaluate": measure_evaluate, "predict": measure_predict, "check": measure_check,
}  # fmt: skip
QUICK = ("manifest", "splits", "ties", "epoch")  # parts of a second: the best of three


def in_own_process(name: str, work: Path) -> tuple[Seconds, float]:
    """What a measure finds, and the peak memory of its process, MB."""
    words = [sys.executable, __file__, "--work", str(work), "--one", name]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"{name}: {err[-2000:]}")
    found = json.loads(out.splitlines()[-1])
    return found, found.pop("peak_mb", math.nan)


def growth(small: float, half: float, whole: float) -> float | None:
    """The exponent from half as many patients to all, what hardly any cost taken off.

    >>> growth(1.0, 3.0, 5.0), growth(0.0, 2.0, 8.0), growth(0.1, 0.11, 0.12)
    (1.0, 2.0, None)
    """
    if half - small < SMALL or whole - small < SMALL:
        return None
    return math.log2((whole - small) / (half - small))


def table(results: dict[int, dict[str, tuple[float, float]]]) -> str:
    """Seconds and memory by size, with exponents."""
    sizes = sorted(results)
    heads = [f"{n:,} patients s" for n in sizes]
    lines = [f"| | {' | '.join(heads)} | exponent | peak MB, first and last |"]
    lines.append("|--" * (len(sizes) + 3) + "|")
    for name in results[sizes[-1]]:
        seconds = [results[n][name][0] for n in sizes]
        grown = growth(seconds[0], *seconds[-2:]) if len(sizes) > 2 else None
        told = "-" if grown is None else f"{grown:.2f}" + " (!)" * (grown > 1.25)
        shown = " | ".join(f"{value:.2f}" for value in seconds)
        memory = f"{results[sizes[0]][name][1]:.0f}, {results[sizes[-1]][name][1]:.0f}"
        lines.append(f"| {name} | {shown} | {told} | {memory} |")
    return "\n".join(lines)


def sizes_on_disk(work: Path) -> str:
    """Sizes of the two tables."""
    names = ("manifest.json", "intake.csv")
    return ", ".join(f"{n} {(work / 'root' / n).stat().st_size / 1e6:.1f} MB" for n in names)


def make(work: Path, patients: int) -> None:
    """All that is measured on, once."""
    if (work / "made").is_file():
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    make_root(work, patients)
    make_cache(work)
    make_predictions(work)
    (work / "made").touch()


def report(work: Path, sizes: list[int], only: list[str]) -> None:
    """Measure and print."""
    results: dict[int, dict[str, tuple[float, float]]] = {n: {} for n in sizes}
    for n in sizes:
        folder = work / f"{n}"
        subprocess.run([sys.executable, __file__, "--work", folder, "--make", str(n)], check=True)
        for name in only:
            seconds, peak_mb = in_own_process(name, folder)
            results[n] |= {what: (value, peak_mb) for what, value in seconds.items()}
            print(n, name, *(f"{k}: {v:.2f} s;" for k, v in seconds.items()), file=sys.stderr)
        shutil.rmtree(folder / "run", ignore_errors=True)
    words = f"python benchmarks/large_root.py --work FOLDER --sizes {','.join(map(str, sizes))}"
    print(f"`{words}`, {machine()}, {datetime.date.today()}; four groups a patient,")
    print(f"at {sizes[-1]:,} {sizes_on_disk(work / str(sizes[-1]))}. (!): worse than linear.\n")
    print(table(results))


def one(name: str, work: Path) -> None:
    """Measure one thing in this process."""
    import monai  # noqa: F401  # what every command imports, before the clock starts
    import pytorch_lightning  # noqa: F401
    from matplotlib import figure  # noqa: F401

    measure = partial(MEASURES[name], work)
    rounds = [measure() for _ in range(3 if name in QUICK else 1)]
    found = {what: min(one[what] for one in rounds) for what in rounds[0]}
    print(json.dumps({**found, "peak_mb": peak_mb()}))


def peak_mb() -> float:
    """The most memory that this process has held."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure all, or make a root, or measure one thing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sizes", default="10,1250,2500,5000")
    parser.add_argument("--only", default=",".join(MEASURES))
    parser.add_argument("--make", type=int)
    parser.add_argument("--one", choices=MEASURES)
    asked = parser.parse_args()
    work = asked.work.resolve()
    if asked.make:
        make(work, asked.make)
    elif asked.one:
        one(asked.one, work)
    else:
        report(work, [int(n) for n in asked.sizes.split(",")], asked.only.split(","))


if __name__ == "__main__":
    main()
