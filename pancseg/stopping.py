"""SIGTERM, and SIGUSR1 ahead of a time limit of Slurm, end a command as Ctrl-C does."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # Windows has the first alone


class Stopped(KeyboardInterrupt):
    """Raised on a signal; handled like Ctrl-C."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
        self.exit_code = 128 + signum  # as shells have it
        self.note = ""  # appended to the message

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}"


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise :class:`Stopped` at the first signal while the body runs, and ignore further ones.

    Not in a job of submitit, which handles signals itself: it runs the job again.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or "SUBMITIT_EXECUTOR" in os.environ:
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise Stopped(signum)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
