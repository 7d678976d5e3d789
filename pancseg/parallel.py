"""Shards, process pools that survive a crash, progress bars, and the cores and memory there are."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from pancseg.errors import PancsegError
from pancseg.signals import SIGNALS

Item = TypeVar("Item")
Result = TypeVar("Result")
SIGTERM_GRACE_S = 30  # that Slurm leaves after SIGTERM
THROTTLE = 50  # times as long as a call takes
LOG_INTERVAL_S = 10.0  # between progress lines where stderr is no terminal
CGROUP_ROOT, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count`` of the cases, chosen by a hash of each case.

    >>> Shard.parse("1/4")
    Shard(index=1, count=4)
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """A shard from ``index/count``; ``PancsegError`` if it is something else."""
        index, _, count = str(text).partition("/")
        if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
            raise PancsegError(f"shard={text}: expected i/n with i from 0 to n - 1, such as 0/4")
        return cls(int(index), int(count))

    def has(self, input_hash: str) -> bool:
        """Whether a case belongs to this shard."""
        return int(input_hash[:12], 16) % self.count == self.index


def process_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    processes: int,
    on_crash: Callable[[Item], Result],
) -> Iterator[Result]:
    """Results of a function in several processes, as they are ready, in any order.

    Args:
        function: A module function; it and the items are pickled.
        items: Arguments.
        processes: Pool size; with 0 everything runs in this process.
        on_crash: Gives the result for an item whose process died: a decoder crashed, or the kernel
            ended it when memory ran out.
    """
    if processes < 1:
        yield from map(function, items)
        return
    left = dict(enumerate(items))
    while left:
        yield from map_until_crash(function, left, min(processes, len(left)))
        # items are handed out in order: the one that crashed is among the first of those left
        for n in list(left)[: 2 * processes + 1]:
            item = left[n]
            yield from map_until_crash(function, alone := {n: item}, 1)
            del left[n]
            if alone:
                yield on_crash(item)


def map_until_crash(
    function: Callable[[Item], Result], left: dict[int, Item], processes: int
) -> Iterator[Result]:
    """Results until all are ready or a process dies; finished items are removed from ``left``."""
    context = multiprocessing.get_context("spawn")  # no lock, thread or open file is inherited
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=follow_parent)
    try:
        waiting = {pool.submit(function, item): n for n, item in left.items()}
        for future in as_completed(waiting):
            result = future.result()
            del left[waiting.pop(future)]
            yield result
    except BrokenProcessPool:
        return
    finally:
        pool.shutdown(cancel_futures=True)


def follow_parent() -> None:
    """End with the parent, and leave Ctrl-C and signals to the whole job to it."""
    for number in (signal.SIGINT, *SIGNALS):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=exit_after, args=(parent,), daemon=True).start()


def exit_after(parent: multiprocessing.process.BaseProcess) -> None:
    """Wait for a process to end, then end this one."""
    parent.join()
    os._exit(1)


def ignore_signals(worker: int) -> None:
    """Keep a data loader's worker loading while its training ends on a signal sent to all.

    Only for a while: SIGTERM also ends workers whose parent has died.
    """

    def end_soon(*_: object) -> None:
        signal.alarm(SIGTERM_GRACE_S)

    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, end_soon)


def progress(
    items: Iterable[Item],
    description: str,
    unit: str,
    total: int | None = None,
    delay_s: float = 0.0,
) -> Iterator[Item]:
    """Iterate with a bar on a terminal, and with a line now and then elsewhere.

    Args:
        items: To iterate over.
        description: Such as ``preparing``.
        unit: Of an item.
        total: Number of items, where they have no length.
        delay_s: Show nothing before, and remove the bar at the end.
    """
    interval_s = 0.1 if sys.stderr.isatty() else LOG_INTERVAL_S
    yield from tqdm(
        items,
        description,
        total,
        unit=f" {unit}",
        mininterval=interval_s,
        dynamic_ncols=True,
        delay=delay_s,
        leave=not delay_s,
    )


def follow(steps: Iterator[tuple[int, int, str]], doing: str, unit: str) -> None:
    """Run through steps: how many are done, how many there are, and what is worked on next."""
    seconds = 0.1 if sys.stderr.isatty() else LOG_INTERVAL_S
    with tqdm(desc=doing, unit=f" {unit}", mininterval=seconds, dynamic_ncols=True) as bar:
        for done, total, current in steps:
            bar.total = total
            waits = done == bar.n and bar.postfix not in (None, current)
            bar.set_postfix_str(current, refresh=waits)  # as when all that is left is with others
            bar.update(done - bar.n)


def throttled(call: Callable[[], None]) -> Callable[[], None]:
    """A function that calls another, unless that would take more than about 2 % of the time.

    For tables that are written anew after each item: with many rows, less often.
    """
    earliest_s = 0.0

    def call_or_skip() -> None:
        nonlocal earliest_s
        start_s = time.monotonic()
        if start_s >= earliest_s:
            call()
            earliest_s = time.monotonic() + THROTTLE * (time.monotonic() - start_s)

    return call_or_skip


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main_memory() -> int | None:
    """Bytes of memory of the machine, container or Slurm job; None where unknown, as on Windows."""
    try:
        limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, ValueError, OSError):
        return None
    for text in (
        *cgroup_values("", "memory.max"),
        *cgroup_values("memory", "memory.limit_in_bytes"),
    ):
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


def core_quota() -> float | None:
    """Cores that a container or job may keep busy, possibly a fraction; None if not limited."""
    quotas = [tuple(text.split()) for text in cgroup_values("", "cpu.max")]
    periods = cgroup_values("cpu", "cpu.cfs_period_us")
    quotas += zip(cgroup_values("cpu", "cpu.cfs_quota_us"), periods, strict=False)
    shares = [int(q) / int(p) for q, p in quotas if q.isdigit() and p.isdigit()]
    return min(shares, default=None)


def cgroup_values(controller: str, name: str) -> list[str]:
    """Contents of a control file of this process's cgroup and of each group above it.

    Limits hold for all groups below, and Slurm sets them some levels above its tasks.

    Args:
        controller: Of cgroup v1; empty for cgroup v2.
        name: Of the file.
    """
    groups = {Path()}
    for line in OWN_CGROUP.read_text().splitlines() if OWN_CGROUP.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            group = Path(path.lstrip("/"))
            groups |= {group, *group.parents}
    files = [CGROUP_ROOT / controller / group / name for group in groups]
    return [file.read_text().strip() for file in sorted(files) if file.is_file()]
