"""How far a scan has come on its way to a mask."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from pancseg.applying.scan_segmenter import Segmented
from pancseg.errors import Refused, brief, lacks_room
from pancseg.intake.types import CaseSource, Scan
from pancseg.output.prediction_table import FAILED, REFUSED, Prediction

log = logging.getLogger(__name__)
LARGE_MB = 300  # of HU: two such scans at a time are not held


@dataclass(frozen=True)
class Job:
    """A scan, and the name of its files."""

    candidate: CaseSource
    case: str


@dataclass
class Progress:
    """A scan on its way.

    Attributes:
        job: What it is.
        row: Of the table, as far as it is known.
        scan: Once it was read.
        found: Once it was segmented.
        seconds: Spent on it so far, waiting left out.
    """

    job: Job
    row: Prediction
    scan: Scan | None = None
    found: Segmented | None = None
    seconds: float = 0.0

    @property
    def is_large(self) -> bool:
        """Whether it is to be alone in memory."""
        if self.scan is None:
            return False
        return np.asanyarray(self.scan.image.dataobj).nbytes > LARGE_MB * 2**20

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the time, and make a failure a row: one bad scan never stops a batch.

        Raises:
            OSError: If there is no room to write, which is no scan's fault.
        """
        began = time.perf_counter()
        try:
            yield
        except Refused as refused:
            self.row = replace(self.row, status=REFUSED, reason=str(refused))
        except Exception as error:
            if lacks_room(error):
                raise
            log.debug("%s", self.job.case, exc_info=True)
            reason = f"{type(error).__name__}: {brief(error)}"
            self.row = replace(self.row, status=FAILED, reason=reason)
        finally:
            self.seconds += time.perf_counter() - began
