"""What this process may take of the machine: a container often has less than its host."""

import os
from pathlib import Path

MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
CORE_QUOTA = "/sys/fs/cgroup/cpu.max"  # cgroup v2: quota and period, microseconds
OLD_QUOTA = ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def main_memory() -> int | None:
    """Bytes of the machine or container; None where that is not known, as on Windows."""
    try:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, ValueError, OSError):
        return None
    for path in map(Path, MEMORY_LIMITS):
        limit = path.read_text().strip() if path.is_file() else "max"
        found += [int(limit)] if limit.isdigit() else []
    return min(found)


def core_quota() -> float | None:
    """Cores that a container may keep busy, maybe half of one; None where nothing limits them."""
    if Path(CORE_QUOTA).is_file():
        quota, _, period = Path(CORE_QUOTA).read_text().strip().partition(" ")
    elif all(Path(path).is_file() for path in OLD_QUOTA):
        quota, period = (Path(path).read_text().strip() for path in OLD_QUOTA)
    else:
        return None
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None
