"""Work spread over processes; an item that kills its process costs only itself."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from pancseg.stopping import SIGNALS

Item = TypeVar("Item")
Result = TypeVar("Result")
OUTLIVED_S = 30  # that Slurm leaves after SIGTERM


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_processes(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    processes: int,
    died: Callable[[Item], Result],
) -> Iterator[Result]:
    """Results as they come, in any order.

    Args:
        work: A module function; it and the items cross to other processes.
        items: What to work on.
        processes: How many; with 0 everything happens in this process, which then ends where an
            item ends it.
        died: The result for an item whose process ended, as by a decoder that crashes or by the
            kernel when memory runs out.
    """
    if processes < 1:
        yield from map(work, items)
        return
    left = dict(enumerate(items))
    while left:
        yield from until_broken(work, left, min(processes, len(left)))
        # handed out in order: the one that killed its process is among the first that are left
        for n in list(left)[: 2 * processes + 1]:
            item = left[n]
            yield from until_broken(work, alone := {n: item}, 1)
            del left[n]
            if alone:
                yield died(item)


def until_broken(
    work: Callable[[Item], Result], left: dict[int, Item], processes: int
) -> Iterator[Result]:
    """Results until all is done or a process ends; what is done is taken out of ``left``."""
    context = multiprocessing.get_context("spawn")  # no lock, thread or open file is inherited
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=obey_parent)
    try:
        waiting = {pool.submit(work, item): n for n, item in left.items()}
        for future in as_completed(waiting):
            result = future.result()
            del left[waiting.pop(future)]
            yield result
    except BrokenProcessPool:
        return
    finally:
        pool.shutdown(cancel_futures=True)


def obey_parent() -> None:
    """End with the parent, however it ends, and leave Ctrl-C and signals to a whole job to it."""
    for one in (signal.SIGINT, *SIGNALS):
        signal.signal(one, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=end_after, args=(parent,), daemon=True).start()


def outlive_signals(worker: int) -> None:
    """Go on loading while the training that this worker loads for ends on a signal to all.

    Only for a while: SIGTERM is also what ends workers that their parent left behind.
    """

    def end_soon(*_: object) -> None:
        signal.alarm(OUTLIVED_S)

    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, end_soon)


def end_after(parent: multiprocessing.process.BaseProcess) -> None:
    """Wait for a process to end, then end this one at once: nobody wants its result."""
    parent.join()
    os._exit(1)
