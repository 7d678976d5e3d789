"""How fast is DICOM to .nii.gz, and in how much memory? pancseg beside the others, in one run.

    pip install -c constraints.txt -e .[bench]
    python benchmarks/intake.py WORK_FOLDER

Each tool converts the same series of 512 x 512 slices, stored plain and as JPEG 2000. A figure is
the median of the rounds, in which the tools take turns, each in a process of its own. "seconds"
is the conversion alone, as the process measures it; "process" is the whole process with what it
imports, which is paid once for a folder of any size. pancseg also checks what it reads.
"""

import argparse
import datetime
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from pancseg.parallel import cores, process_map

SLICES, SIDE = 119, 512
VOLUME_MB = SLICES * SIDE * SIDE * 2 / 1e6
TOOLS = ("pancseg", "SimpleITK", "dicom2nifti", "dcm2niix")


def convert_pancseg(series: Path, out: Path) -> float:
    """Search, read, check and write, as ``prepare`` does with an image."""
    import numpy as np

    from pancseg.dicom.series import Repair, find_series, read_series
    from pancseg.files import write_nifti
    from pancseg.geometry import spacing_of
    from pancseg.intake.checks import Checks, voxel_flags
    from pancseg.intake.match_labels import SourceContents
    from pancseg.intake.sources import files_under

    begun = time.perf_counter()
    (found,), _ = find_series(series, files_under(series, SourceContents()))
    image = read_series(found.files, Repair()).image
    voxel_flags(np.asanyarray(image.dataobj), None, spacing_of(image.affine), Checks(), ())
    write_nifti(out / "pancseg.nii.gz", image)
    return time.perf_counter() - begun


def convert_simpleitk(series: Path, out: Path) -> float:
    """The documented way: names in order from GDCM, then the series."""
    import SimpleITK

    begun = time.perf_counter()
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    SimpleITK.WriteImage(reader.Execute(), str(out / "simpleitk.nii.gz"))
    return time.perf_counter() - begun


def convert_dicom2nifti(series: Path, out: Path) -> float:
    """One series, its axes left as they are."""
    import dicom2nifti

    begun = time.perf_counter()
    target = str(out / "dicom2nifti.nii.gz")
    dicom2nifti.dicom_series_to_nifti(str(series), target, reorient_nifti=False)
    return time.perf_counter() - begun


def convert_dcm2niix(series: Path, out: Path) -> float:
    """The program from PyPI, with its own zlib."""
    program = Path(sys.executable).parent / "dcm2niix"
    begun = time.perf_counter()
    words = [program, "-z", "i", "-b", "n", "-f", "dcm2niix", "-o", out, series]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def run(tool: str, series: Path, out: Path) -> tuple[float, float, float]:
    """Seconds of the conversion, seconds of the whole process, and its peak memory, MB."""
    out.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, __file__, "--tool", tool, str(series), "--out", str(out)]
    begun = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seconds = float(process.stdout.read().split()[-1])
    _, status, usage = os.wait4(process.pid, 0)
    whole = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, tool
    return seconds, whole, usage.ru_maxrss * 1024 / 1e6  # with the processes it waited for


def write_dicom(work: Path) -> dict[str, Path]:
    """A phantom of full size, plain and as JPEG 2000."""
    import pydicom
    from pydicom.uid import JPEG2000Lossless

    plain, packed = work / "plain", work / "jpeg2000"
    if not packed.exists():
        shape = [f"shape=[{SIDE},{SIDE},{SLICES}]", "spacing_mm=[0.75,0.75,2.5]", "patients=1"]
        phantom = [sys.executable, "-m", "pancseg.phantom", f"out={work / 'phantom'}", *shape]
        subprocess.run(phantom, check=True)
        series = next((work / "phantom" / "images").iterdir())
        shutil.copytree(series, plain, dirs_exist_ok=True)
        (work / "packing").mkdir(exist_ok=True)
        for path in plain.iterdir():
            one = pydicom.dcmread(path)
            one.compress(JPEG2000Lossless, generate_instance_uid=False)
            one.save_as(work / "packing" / path.name)
        (work / "packing").rename(packed)
    return {"plain": plain, "JPEG 2000": packed}


def one_at_a_time(series: Path, work: Path, rounds: int) -> dict[str, list[float]]:
    """Medians of seconds, whole process and memory of each tool, one series and one process."""
    measured: dict[str, list[tuple[float, ...]]] = {tool: [] for tool in TOOLS}
    for _ in range(rounds):
        for tool in TOOLS:
            measured[tool].append(run(tool, series, work / "out" / tool))
    return {
        tool: [statistics.median(values) for values in zip(*figures, strict=True)]
        for tool, figures in measured.items()
    }


def all_cores(series: Path, work: Path, processes: int) -> dict[str, float]:
    """Slices a second of each tool where as many processes as cores share ten series a core."""
    rates = {}
    for tool in TOOLS:
        begun = time.perf_counter()
        words = [
            sys.executable,
            __file__,
            "--tool",
            tool,
            str(series),
            "--copies",
            str(10 * processes),
        ]
        subprocess.run([*words, "--out", str(work / "out")], check=True, stdout=subprocess.DEVNULL)
        rates[tool] = 10 * processes * SLICES / (time.perf_counter() - begun)
    return rates


def convert(job: tuple[str, Path, Path]) -> float:
    """Convert with one of the tools; seconds."""
    tool, series, out = job
    out.mkdir(parents=True, exist_ok=True)
    return float(globals()[f"convert_{tool.lower()}"](series, out))


def fail(job: tuple[str, Path, Path]) -> float:
    """A process of a tool ended."""
    raise RuntimeError(f"{job[0]} ended its process")


def report(work: Path, rounds: int) -> None:
    """Print the table."""
    machine = f"{cores()} cores of {processor()}, Python {platform.python_version()}"
    stored = write_dicom(work)
    print(f"`python benchmarks/intake.py`, {machine}, {datetime.date.today()}; {SLICES} slices of")
    print(f"{SIDE} x {SIDE}, {VOLUME_MB:.0f} MB as int16, median of {rounds} rounds\n")
    print(
        "| stored as | tool | seconds | slices/s | times dcm2niix | process s | peak MB |", end=""
    )
    print(" peak / volume | all cores, slices/s |\n|--|--|--|--|--|--|--|--|--|")
    for name, series in stored.items():
        figures = one_at_a_time(series, work, rounds)
        rates = all_cores(series, work, cores())
        base = figures["dcm2niix"][0]
        for tool, (seconds, whole, peak) in figures.items():
            shown = (
                f"{seconds:.2f} | {SLICES / seconds:.0f} | {base / seconds:.2f} | {whole:.2f} | "
            )
            shown += f"{peak:.0f} | {peak / VOLUME_MB:.1f} | {rates[tool]:.0f}"
            print(f"| {name} | {tool} | {shown} |", flush=True)


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Measure all tools, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to work, or the series to convert")
    parser.add_argument("--tool", choices=TOOLS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    if chosen.tool:
        jobs = [(chosen.tool, chosen.folder, chosen.out / str(n)) for n in range(chosen.copies)]
        processes = 1 if chosen.copies == 1 else cores()
        print(max(process_map(convert, jobs, processes, fail)))
    else:
        chosen.folder.mkdir(parents=True, exist_ok=True)
        report(chosen.folder, chosen.rounds)


if __name__ == "__main__":
    main()
