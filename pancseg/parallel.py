"""Shards, process pools that survive a crash, progress bars, and the machine's cores and memory."""

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
    """Part ``index`` of ``count`` of the cases, chosen by a hash of each case."""

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

    With 0 ``processes`` everything runs in this one. ``on_crash`` gives the result for an item
    whose process died: a decoder crashed, or the kernel ended it when memory ran out.
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
    threading.Thread(target=exit_after_parent, daemon=True).start()


def exit_after_parent() -> None:
    """End this process as soon as its parent has ended."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def ignore_signals(worker: int) -> None:
    """Keep a data loader's worker loading while its training ends on a signal sent to all.

    Only for a while: SIGTERM also ends workers whose parent has died.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SIGTERM_GRACE_S))
    # a worker may wait for ever for a lock that its parent held
    threading.Thread(target=exit_after_parent, daemon=True).start()


def progress(
    items: Iterable[Item], doing: str, unit: str, total: int | None = None, delay_s: float = 0.0
) -> Iterator[Item]:
    """Iterate with a bar on a terminal, and with a line now and then elsewhere.

    ``total`` is the number of items where they have no length. With ``delay_s`` nothing is shown
    before, and the bar is removed at the end.
    """
    interval_s = 0.1 if sys.stderr.isatty() else LOG_INTERVAL_S
    options = {"mininterval": interval_s, "dynamic_ncols": True, "leave": not delay_s}
    yield from tqdm(items, doing, total, unit=f" {unit}", delay=delay_s, **options)


def throttled(call: Callable[[], None]) -> Callable[[], None]:
    """A function that calls another, unless that would take more than about 2 % of the time."""
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
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    texts = cgroup_values("", "memory.max") + cgroup_values("memory", "memory.limit_in_bytes")
    return min([machine, *(int(text) for text in texts if text.isdigit())])


def cgroup_values(controller: str, name: str) -> list[str]:
    """Contents of a control file of this process's cgroup and of each group above it.

    Limits hold for all groups below. ``controller`` is that of cgroup v1, empty for cgroup v2.
    """
    groups = {Path()}
    for line in OWN_CGROUP.read_text().splitlines() if OWN_CGROUP.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            group = Path(path.lstrip("/"))
            groups |= {group, *group.parents}
    files = [CGROUP_ROOT / controller / group / name for group in groups]
    return [file.read_text().strip() for file in sorted(files) if file.is_file()]
