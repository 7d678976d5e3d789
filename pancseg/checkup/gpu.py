"""The GPU: whether there is one, whether torch computes on it, and the line that mends it."""

import shutil
import subprocess
from typing import Any

from pancseg.checkup.findings import BROKEN, OK, SLOW, Finding

MAX_BF16_ERROR = 0.05  # bf16 has 8 bits: a right result is off by 1 %
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
    if facts["bf16"] and (off := bf16_convolution_error("cuda")) > MAX_BF16_ERROR:
        advice = f"torch {torch.__version__} computes bf16 convolutions wrongly, off by {off:.0%}"
        return Finding("gpu", BROKEN, f"{advice}; install another version", facts)
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


def bf16_convolution_error(device: str) -> float:
    """Largest error of a 3-D convolution in bf16, forward and backward, relative to the CPU.

    Torch 2.9 computed some of them wrongly on CUDA.
    """
    import torch
    from torch.nn.functional import conv3d

    generator = torch.Generator().manual_seed(0)
    image, weight = (
        torch.randn(shape, generator=generator).bfloat16().float()
        for shape in ((2, 16, 24, 24, 24), (16, 16, 3, 3, 3))
    )
    results = []
    for place, dtype in (("cpu", torch.float32), (device, torch.bfloat16)):
        inputs = [tensor.to(place, dtype).requires_grad_() for tensor in (image, weight)]
        output = conv3d(inputs[0], inputs[1], padding=1)
        gradients = torch.autograd.grad(output.square().mean(), inputs)
        results.append([tensor.detach().cpu().float() for tensor in (output, *gradients)])
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*results, strict=True))


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
