"""Cores, memory, and which arithmetic is fast here."""

import os
import platform
from pathlib import Path

from pancseg.checkup.findings import OK, SLOW, Finding
from pancseg.parallel import core_quota, main_memory
from pancseg.parallel import cores as cores_here

GB_A_PROCESS = 2.0  # of preparation: libraries and a scan of 1000 slices, as predict takes them
GB_TO_WORK = 8.0  # a round number above a step of the default networks and their libraries
MARKS_OF_CONTAINERS = ("/.dockerenv", "/run/.containerenv")


def system() -> Finding:
    """The operating system, and whether this is a container."""
    container = any(Path(mark).exists() for mark in MARKS_OF_CONTAINERS)
    facts = {"system": platform.platform(), "machine": platform.machine(), "container": container}
    words = f"{facts['system']}{', in a container' * container}"
    return Finding("system", OK, words, facts)


def cores() -> Finding:
    """Cores of the machine, those that this process may use, and a container's quota."""
    machine, usable, quota = os.cpu_count() or 1, cores_here(), core_quota()
    facts = {"machine": machine, "usable": usable, "quota": quota}
    words = f"{usable} of {machine}"
    if quota is not None and quota < usable:
        few = max(1, int(quota))
        advice = f"give processes={few} to prepare, and OMP_NUM_THREADS={few} to the rest"
        return Finding("cores", SLOW, f"{words}, but a quota of {quota:g}: {advice}", facts)
    return Finding("cores", OK, words, facts)


def memory() -> Finding:
    """Main memory, held against what a process of preparation takes."""
    found = main_memory()
    if found is None:
        return Finding("memory", OK, "not known on this system", {"bytes": None})
    total_gb, usable = found / 1e9, cores_here()
    facts = {"bytes": found}
    words = f"{total_gb:.1f} GB"
    if total_gb < GB_TO_WORK:
        advice = "train with small data.batch_size and data.spatial_size, prepare with processes=1"
        return Finding("memory", SLOW, f"{words} are few: {advice}", facts)
    if total_gb < GB_A_PROCESS * usable:
        few = int(total_gb / GB_A_PROCESS)
        advice = f"long scans on {usable} cores may not fit: give processes={few} to prepare"
        return Finding("memory", SLOW, f"{words}; {advice}", facts)
    return Finding("memory", OK, words, facts)


def speed() -> Finding:
    """Which arithmetic ``hardware=auto`` takes, and what that means."""
    from pancseg.hardware import detect

    machine = detect()
    facts = {
        "accelerator": machine.accelerator,
        "precision": machine.precision,
        "patch_voxels": machine.patch_voxels,
    }
    if machine.accelerator == "gpu":
        words = f"hardware=auto computes in {machine.precision} on the GPU; all is fast"
        if machine.precision != "bf16-mixed":
            words = f"hardware=auto computes in {machine.precision}: this GPU has no bf16 units"
        return Finding("speed", OK, words, facts)
    slow = "data=volume at full resolution wants a GPU"
    if machine.precision == "bf16-mixed":
        words = f"bf16 on the CPU; groups, 3 mm and predict are fast, {slow}"
        return Finding("speed", OK, words, facts)
    words = f"the CPU has no bf16 units: float32, at about half the speed of one that has; {slow}"
    return Finding("speed", SLOW, words, facts)
