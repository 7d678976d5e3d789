"""Signals that ask a command to end: SIGTERM, and SIGUSR1 or SIGUSR2 some time ahead of it.

Slurm sends them where a job's time is up or its place is needed. Lightning's own handlers save a
second kind of checkpoint from within a step, and call collectives from within a handler.
"""

import signal
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)  # Windows has the first alone


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end: what minds Ctrl-C minds this.

    Args:
        signum: Which one.

    Attributes:
        told: What to say of it; empty for one of several processes that speaks not.
        exit_code: As shells have it, 128 and the signal.
        goes_on: Whether the same command, run again, goes on where this one was.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
        self.told = f"stopped by {name_of(signum)}, with what was reached saved; run it again"
        self.exit_code = 128 + signum
        self.goes_on = True


class Watch:
    """Hears the signals while a job runs; ``with watch:``.

    At first a signal raises :class:`Stopped` wherever the job is, as Ctrl-C does. Once
    ``defer()`` was called it is only noted, for the job to end where it may.

    >>> with watch:
    ...     watch.defer()
    ...     signal.raise_signal(signal.SIGTERM)
    ...     name_of(watch.signum)
    'SIGTERM'
    """

    def __init__(self) -> None:
        self.signum = 0
        self.heard_at = 0.0
        self.deferred = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Watch":
        self.signum, self.deferred = 0, False
        if threading.current_thread() is threading.main_thread():
            self.before = {one: signal.getsignal(one) for one in SIGNALS}
            self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        before, self.before = self.before, {}
        for one, handler in before.items():
            signal.signal(one, handler)

    def listen(self) -> None:
        """Hear the signals; again, where something else has begun to."""
        for one in self.before:
            signal.signal(one, self.hear)

    def hear(self, signum: int, frame: FrameType | None) -> None:
        """Note a signal, and end the job at once unless it is to end by itself."""
        if self.signum:
            return  # what the first one asked for is under way
        self.signum, self.heard_at = signum, time.monotonic()
        if not self.deferred:
            raise Stopped(signum)

    def defer(self) -> None:
        """Only note signals from here on."""
        self.deferred = True
        self.listen()

    def waited_s(self) -> float:
        """Seconds since a signal came; 0 where none did."""
        return time.monotonic() - self.heard_at if self.signum else 0.0


def name_of(signum: int) -> str:
    """``SIGTERM`` of 15."""
    return signal.Signals(signum).name


watch = Watch()
