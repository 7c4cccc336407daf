"""What a child process says of a chunk in flight, in a file that its parent reads.

The file exists while the chunk is in flight. Its content says what the child is doing. Its time of modification is the
deadline of the current step: a child that is later than that hangs.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from producer.jobs.model.errors import WorkerError
from worker.supervise.small_file import replace_text

#: The ends of the names of these files, one for each chunk that a process may have in flight: two large ones, or
#: several small ones that share a batch.
BUSY_KINDS: Final = tuple(f"busy{slot}" for slot in range(8))


@dataclass(frozen=True)
class Busy:
    """What a child does with a chunk in flight."""

    pid: int
    job: str
    chunk: int
    claim_id: str
    #: The job's, as `Claim` has it.
    life: str
    #: Offsets of the items that it is about to decode or compute.
    marked: list[int]
    #: Whether it loads the job's model.
    loading: bool = False
    #: Whether it only fetches the model's weights, beside whatever else is in flight.
    fetching: bool = False


class BusyFile:
    """The file of one chunk in flight: the child writes it, its parent reads it.

    Args:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, busy: Busy) -> None:
        """Say what the child does now.

        Raises:
            WorkerError: The disk cannot be written.
        """
        try:
            replace_text(self.path, json.dumps(vars(busy)))
        except FileNotFoundError:
            pass  # the launcher's folder is gone: the launcher makes it again, and the next step writes the file
        except OSError as error:
            raise WorkerError(f"nothing can be written to {self.path.parent} ({error.strerror})") from None

    def set_deadline(self, within_s: float) -> None:
        """Set when the current step must be over, from now on; a file that is gone has no deadline."""
        deadline = time.time() + within_s
        with suppress(OSError):
            os.utime(self.path, (deadline, deadline))

    def read(self) -> Busy | None:
        """Return what the child does; None where no chunk is in flight."""
        try:
            return Busy(**json.loads(self.path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def late_s(self) -> float | None:
        """Return how long ago the deadline was, below 0 before it; None where no chunk is in flight."""
        try:
            return time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return None

    def remove(self) -> None:
        """Say that the chunk is no longer in flight."""
        self.path.unlink(missing_ok=True)
