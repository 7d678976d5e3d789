"""``python -m pancseg.doctor``: check packages, GPUs, DICOM decoders and disk."""

import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path

from omegaconf import DictConfig

from pancseg.cli import command
from pancseg.errors import Incomplete, brief

OK, WARNING, ERROR = "ok", "warning", "ERROR"
Findings = Iterator[tuple[str, str]]  # status and text, with advice unless the status is OK
INSTALL = "pip install -c constraints.txt -e ."
MAX_DIFFERENCE = 0.05  # bf16 has 8 bits of precision: correct results differ by 1 %
SMALL_DISK_GB, SCAN_GB = 20.0, 0.4  # case, groups and cache of 300 slices of 512 x 512


def doctor(cfg: DictConfig) -> None:
    """Print findings and the report of ``torch.utils.collect_env``; raise if one is an error."""
    checks = check_packages(), check_gpus(), check_decoders(), check_disk(Path(cfg.data.root))
    failed: list[str] = []
    for name, check in zip(("packages", "gpu", "decoders", "disk"), checks, strict=True):
        try:
            with warnings.catch_warnings(action="ignore"):  # of torch, that the driver is too old
                findings = list(check)
        except Exception as error:  # a broken installation raises any
            findings = [(ERROR, f"{type(error).__name__}: {brief(error)}; {INSTALL}")]
        for status, text in findings:
            print(f"{status:8} {name:9} {text}")
            failed += [name] * (status == ERROR)
    print(f"\n{environment()}")
    if failed:
        raise Incomplete(f"errors: {', '.join(dict.fromkeys(failed))}; the lines give advice")


def environment() -> str:
    """The report of ``torch.utils.collect_env``, without flags and vulnerabilities of the CPU."""
    # pip, conda or nvidia-smi may hang in it, and would keep a pipe open after it was killed
    command = [sys.executable, "-m", "torch.utils.collect_env"]
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(command, stdout=file, stderr=subprocess.DEVNULL, timeout=60)
        file.seek(0)
        lines = [line for line in file if not line.startswith(("Flags:", "Vulnerability "))]
    return "".join(lines).strip() or "torch.utils.collect_env gave no report"


def check_packages() -> Findings:
    """Check the versions of the dependencies in pyproject.toml."""
    from packaging.requirements import Requirement

    versions = {"pancseg": metadata.version("pancseg")}
    for requirement in map(Requirement, metadata.requires("pancseg") or []):
        name, expected = requirement.name, requirement.specifier
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            versions[name] = metadata.version(name)
            if not expected.contains(versions[name], prereleases=True):
                yield WARNING, f"{name} {versions[name]}, expected {expected}; {INSTALL}"
        except metadata.PackageNotFoundError:
            yield ERROR, f"{name} is missing; {INSTALL}"
    yield OK, ", ".join(f"{name} {version}" for name, version in versions.items())


def check_gpus() -> Findings:
    """Check that torch finds the GPUs and computes correctly on each."""
    import torch

    from pancseg.hardware import WHEEL_INDEXES, detect, install_line, unusable_gpu

    if not torch.cuda.is_available():
        advice = unusable_gpu()
        yield WARNING if advice else OK, advice or f"none; the CPU computes in {detect().precision}"
        return
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        dtype = "bfloat16" if device.major >= 8 else "float16"
        text = f"{device.name}, {device.total_memory / 1e9:.0f} GB, {dtype}"
        try:
            difference = convolution_difference(f"cuda:{number}", dtype)
            wrong = f": conv3d is off by {difference:.0%}, as in torch 2.9; install another torch"
            yield (OK, text) if difference <= MAX_DIFFERENCE else (ERROR, text + wrong)
        except RuntimeError as error:
            advice = "hardware=cpu works without it"
            if "no kernel image" in str(error):  # CUDA 12.6 has those of 5.0 to 9.0, 13.0 from 7.5
                advice = install_line(WHEEL_INDEXES[0 if device.major > 9 else -1][1])
            yield ERROR, f"{text}: {brief(error)}; {advice}"


def convolution_difference(device: str, dtype: str) -> float:
    """Largest relative difference of ``conv3d``, forward and backward, from fp32 on the CPU."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shapes = (2, 16, 24, 24, 24), (16, 16, 3, 3, 3), (2, 16, 24, 24, 24)
    inputs = [torch.randn(s, generator=generator).to(getattr(torch, dtype)) for s in shapes]
    conv3d = partial(torch.nn.functional.conv3d, padding=1)
    results = []
    for image, weight, gradient in ([t.float() for t in inputs], [t.to(device) for t in inputs]):
        output, gradients = torch.autograd.functional.vjp(conv3d, (image, weight), gradient)
        results.append([tensor.cpu().float() for tensor in (output, *gradients)])
    errors = [(a - b).abs().max() / a.abs().max() for a, b in zip(*results, strict=True)]
    return float(torch.stack(errors).max())


def check_decoders() -> Findings:
    """Check the decoders of compressed transfer syntaxes."""
    from pydicom.pixels import get_decoder

    from pancseg.dicom.pixels import DECODERS

    decodes: dict[bool, list[str]] = {True: [], False: []}
    for syntax, plugin in DECODERS.items():
        with suppress(NotImplementedError):  # pydicom decodes no multi-component JPEG 2000
            decodes[plugin in get_decoder(syntax).available_plugins].append(syntax.keyword)
    if decodes[False]:
        yield ERROR, f"cannot decode {', '.join(decodes[False])}; {INSTALL}"
    yield OK, ", ".join(decodes[True])


def check_disk(root: Path) -> Findings:
    """Check the free space for prepared data, and measure the caches below ``root``."""
    root = root.absolute()
    folder = next(path for path in (root, *root.parents) if path.is_dir())
    free_gb = shutil.disk_usage(folder).free / 1e9
    caches = (file for level in (".", "*") for file in root.glob(f"{level}/cache/*/*.npy"))
    cache_gb = sum(file.stat().st_size for file in caches) / 1e9
    text = f"{free_gb:.0f} GB free at data.root, caches of preprocessed volumes {cache_gb:.1f} GB"
    advice = f"; room for {free_gb / SCAN_GB:.0f} scans, use another disk"
    yield (OK, text) if free_gb >= SMALL_DISK_GB else (WARNING, text + advice)


main = command(doctor)

if __name__ == "__main__":
    main()
