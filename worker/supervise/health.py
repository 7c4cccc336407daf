"""What the processes of a worker say of themselves, in files of their launcher's folder.

A file's time of modification or its content says the thing:

| file                    | its time or content                                                | who writes it |
|-------------------------|--------------------------------------------------------------------|---------------|
| `<name>.ready`          | since when the process has all it needs                            | child         |
| `<name>.starts`         | a byte for each child that began to start since the last ready one | child         |
| `<name>.startup_failed` | why the child cannot start; it ends                                | child         |
| `<name>.polled`         | when a read of the queues last returned                            | main process  |
| `<name>.away`           | when Redis, which lets nothing be read, was last tried             | main process  |
| `<name>.at-work`        | when a chunk in flight last advanced                               | child         |
| `<name>.busy0`, …       | the deadline of the current step of each chunk in flight (`busy_file.py`) | child  |
| `<name>.preloads`       | until when models may load before the first message                | child         |
| `<name>.waits`          | since when the process waits for a server, and which one           | child         |
| `<name>.fault`          | what keeps the process from working                                | child         |
| `<name>.work`           | network, batch size, images/s, busy share and images in hand, JSON | child         |
| `<name>.drain`          | that the process was asked to finish and leave                     | main process  |
| `<name>.gone`           | that the process has ended, and Redis may still count it as alive  | launcher      |

`launcher.json` beside them lists the processes (`process_list.py`), and `check.py` reads all of it.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from producer.jobs.model.keys import PROBLEM_LIFETIME_S
from producer.jobs.model.text import SENTENCE_CHARS, shown
from worker.supervise.busy_file import BUSY_KINDS
from worker.supervise.small_file import replace_text

#: A child that needs longer to import torch, from a slow disk say, has failed.
READY_WITHIN_S = 120.0
#: Models that load before the first message may need a download.
PRELOADED_WITHIN_S = 3600.0
#: At most one write a second for each kind of file.
_WRITE_EVERY_S: Final = 1.0
#: A child that says nothing for so long does nothing that could be told.
_WORK_IS_OLD_S: Final = 60.0
_KINDS: Final = (
    "ready", "starts", "preloads", "startup_failed", "polled", "away", "at-work", *BUSY_KINDS, "waits", "fault",
    "work", "drain", "gone",
)  # fmt: skip


def gone_from(folder: Path) -> list[Path]:
    """Return the `.gone` files of a launcher's folder: their stems are the names that Redis may still have."""
    return sorted(folder.glob("*.gone"))


class Health:
    """The signs of life of one process; every method may be called often, and none raises an error.

    Args:
        stem: The launcher's folder and the process's name; None without a launcher: then nothing is written.
    """

    def __init__(self, stem: Path | None) -> None:
        self._stem = stem
        self._written: dict[str, float] = {}

    def polled(self) -> None:
        """Say that a read of the queues returned, with a message or without."""
        if self._touch("polled"):
            self._remove("away")

    def away(self) -> None:
        """Say that Redis is tried, and does not answer; the next read that returns takes it back."""
        self._write("away", "")

    def at_work(self) -> None:
        """Say that a chunk in flight advances."""
        self._touch("at-work")

    def begins(self) -> None:
        """Say that a child begins to start; one that crashes while it starts leaves no other sign."""
        self.waits_no_more()  # the child that waited is dead
        if self._stem is not None:
            with suppress(OSError), self.file("starts").open("ab") as file:
                file.write(b".")

    def preloads(self) -> None:
        """Say that models load before the first message."""
        if self._stem is not None:
            with suppress(OSError):
                until = time.time() + PRELOADED_WITHIN_S
                self.file("preloads").touch()
                os.utime(self.file("preloads"), (until, until))

    def ready(self) -> None:
        """Say that the process has imported all it needs and can use its device."""
        self._write("ready", "")
        self._remove("starts")
        self._remove("preloads")

    def startup_failed(self, sentence: str) -> None:
        """Say why the process cannot start; its parent ends."""
        self.fault(sentence)
        self._write("startup_failed", shown(sentence, SENTENCE_CHARS))

    def fault(self, sentence: str) -> None:
        """Say what keeps this process from working; it expires after two minutes, as in Redis."""
        self._write("fault", shown(sentence, SENTENCE_CHARS))

    def recovered(self) -> None:
        """Say that this process can work again."""
        self._remove("fault")

    def waits(self, what: str, for_s: float) -> None:
        """Say that the process has waited for a server this long; repeat it while the wait lasts."""
        if self._stem is not None:
            self._write("waits", shown(what))
            with suppress(OSError):
                since = time.time() - for_s
                os.utime(self.file("waits"), (since, since))

    def tell_work(self, facts: str) -> None:
        """Say what the process does, as JSON."""
        self._write("work", facts)

    def work(self) -> str | None:
        """Return what the process does; None where it has not said it for a minute."""
        if time.time() - self.at("work") > _WORK_IS_OLD_S:
            return None
        try:
            return self.file("work").read_text()
        except (OSError, ValueError):
            return None

    def waits_no_more(self) -> None:
        """Take back `waits`."""
        self._remove("waits")

    # -- read by others ------------------------------------------------------------------------------------------------

    def file(self, kind: str) -> Path:
        """Return the file of one kind of sign."""
        if self._stem is None:
            raise ValueError("there is no launcher, and no file")
        return self._stem.with_name(f"{self._stem.name}.{kind}")

    def at(self, kind: str) -> float:
        """Return the time of a sign in seconds since 1970; 0 where there is none."""
        try:
            return self.file(kind).stat().st_mtime
        except (OSError, ValueError):
            return 0.0

    def has(self, kind: str) -> bool:
        """Return whether there is such a sign; False without a launcher."""
        return self._stem is not None and self.file(kind).exists()

    def starts(self) -> int:
        """Return how many children in a row began to start and did not get ready."""
        try:
            return self.file("starts").stat().st_size
        except (OSError, ValueError):
            return 0

    def standing_fault(self) -> str | None:
        """Return what keeps the process from working, if it said so a short time ago."""
        if time.time() - self.at("fault") > PROBLEM_LIFETIME_S:
            return None
        try:
            return self.file("fault").read_text()
        except OSError:
            return None

    def server_waited_for(self) -> tuple[str, float] | None:
        """Return which server does not answer, and for how many seconds; None where all answer."""
        try:
            return self.file("waits").read_text(), max(time.time() - self.file("waits").stat().st_mtime, 0.0)
        except (OSError, ValueError):
            return None

    def forget(self) -> None:
        """Remove all files of a process that has ended."""
        for kind in _KINDS:
            self._remove(kind)

    def gone(self) -> None:
        """Say that the process has ended; `gone_from` finds it."""
        self._write("gone", "")

    def _touch(self, kind: str) -> bool:
        """Set a file's time to now; return False if that was done within the last second."""
        now = time.monotonic()
        if self._stem is None or now - self._written.get(kind, -_WRITE_EVERY_S) < _WRITE_EVERY_S:
            return False
        self._written[kind] = now
        with suppress(OSError):  # the disk is full, or the folder is gone until the launcher makes it again
            self.file(kind).touch()
        return True

    def _write(self, kind: str, text: str) -> None:
        if self._stem is not None:
            with suppress(OSError):
                replace_text(self.file(kind), text)

    def _remove(self, kind: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: there is no launcher
            self.file(kind).unlink(missing_ok=True)
