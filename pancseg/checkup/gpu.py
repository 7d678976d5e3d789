"""The GPU: whether there is one, whether torch computes on it, and the line that mends it."""

import shutil
import subprocess
from typing import Any

from pancseg.checkup.findings import BROKEN, OK, SLOW, Finding

LITTLE_GB = 8.0  # a step of the recipe's network on groups of 64 takes about half of it


def gpu() -> Finding:
    """The GPU, made to compute something."""
    import torch

    from pancseg.hardware import unusable_gpu

    facts: dict[str, Any] = {"torch_cuda": torch.version.cuda, "driver": driver()}
    if not torch.cuda.is_available():
        if advice := unusable_gpu():
            return Finding("gpu", SLOW, advice, facts)
        return Finding("gpu", OK, "none: everything runs on the CPU", facts)
    devices = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    facts["devices"] = [
        {"name": one.name, "bytes": one.total_memory, "capability": [one.major, one.minor]}
        for one in devices
    ]
    facts["bf16"] = torch.cuda.is_bf16_supported(False)
    try:
        torch.ones(64, device="cuda").sum().item()
    except RuntimeError as error:
        told = " ".join(str(error).split())[:120]
        advice = "this torch was not built for it; hardware=cpu goes on without"
        return Finding("gpu", BROKEN, f"{devices[0].name}: {told}; {advice}", facts)
    memory_gb = devices[0].total_memory / 1e9
    words = ", ".join(
        [
            f"{len(devices)} x {devices[0].name}",
            f"{memory_gb:.0f} GB",
            f"driver {facts['driver'] or 'not known'}",
            f"torch's CUDA {torch.version.cuda}",
            "bf16" if facts["bf16"] else "no bf16",
        ]
    )
    if memory_gb < LITTLE_GB:
        return Finding("gpu", SLOW, f"{words}; small: give hardware.cache=ram", facts)
    return Finding("gpu", OK, words, facts)


def driver() -> str | None:
    """The driver's version, as nvidia-smi says; None where it says nothing."""
    asked = shutil.which("nvidia-smi")
    if asked is None:
        return None
    query = [asked, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.split("\n")[0].strip() or None if said.returncode == 0 else None
