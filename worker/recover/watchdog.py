"""The parent's watch over its child: it kills a child that hangs, and weighs what each death says of the images.

This runs in the worker's main process, which has no torch and survives whatever an image does to the child.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from worker.supervise import cgroups
from worker.supervise.busy_file import Busy, BusyFile
from worker.supervise.deaths import CRASHED, HUNG, UNKNOWN

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGSYS})
_SIGNAL, _EXIT = re.compile(r"signal (\d+)"), re.compile(r"exitcode (\d+)")


def death_weight(how: str, *, out_of_memory: bool) -> int:
    """Weigh a death by the words of the pool, as `signal 11 (SIGSEGV)` or `exitcode 1`.

    Args:
        how: What the pool says.
        out_of_memory: Whether the kernel killed for lack of memory meanwhile.
    """
    if found := _SIGNAL.search(how):
        number = int(found[1])
        return CRASHED if number in _CRASHES or (number == signal.SIGKILL and out_of_memory) else UNKNOWN
    return CRASHED if _EXIT.search(how) else UNKNOWN


class Watchdog(threading.Thread):
    """Kills a child that is past the deadline of a step; started in the main process.

    Args:
        busy_files: Where the child writes a busy file for each chunk in flight.
        grace_s: How long after the deadline the child is killed.
    """

    def __init__(self, busy_files: Sequence[Path], *, grace_s: float) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._files, self._grace_s = [BusyFile(path) for path in busy_files], grace_s
        self._oom_kills = cgroups.oom_kills()
        #: Claims whose holder was killed because it hung.
        self._hung: set[str] = set()
        #: Files that were late at the last look.
        self._late: set[BusyFile] = set()

    def run(self) -> None:
        """Look for ever."""
        while True:
            time.sleep(min(_LOOK_EVERY_S, self._grace_s))
            self.look()

    def look(self) -> None:
        """Kill the child if one of its steps is past its deadline."""
        for file in self._files:
            self._look_at(file)

    def _look_at(self, file: BusyFile) -> None:
        late_s = file.late_s()
        busy = file.read() if late_s is not None and late_s > self._grace_s else None
        if busy is None:
            self._late.discard(file)
            return
        if busy.claim_id in self._hung:
            return
        if file not in self._late:
            # Look twice: after a suspended machine wakes up, or its clock was set, the child needs a moment.
            self._late.add(file)
            return
        log.error("action=hung job=%s chunk=%d The process hangs and is killed.", busy.job, busy.chunk)
        self._hung.add(busy.claim_id)
        with suppress(ProcessLookupError):
            os.kill(busy.pid, signal.SIGKILL)

    def diagnose(self, delivery: str, how: str) -> list[tuple[Busy, int]]:
        """Return the chunks that a dead child had in flight, and how much its death weighs for each.

        These need not be the chunks that its message named. An image was alone only if no other chunk was in flight;
        where there were two, the next holder finds out.

        Args:
            delivery: The beginning of the dead holder's claim ids.
            how: What the pool says of its end.
        """
        found = [file.read() for file in self._files]
        for file in self._files:
            file.remove()
        before, self._oom_kills = self._oom_kills, cgroups.oom_kills()
        weight = death_weight(how, out_of_memory=self._oom_kills > before)
        in_flight = [busy for busy in found if busy is not None and busy.claim_id.startswith(f"{delivery}/")]
        # What only fetches ends no process, and must not hide what does.
        if len([busy for busy in in_flight if not busy.fetching]) > 1:
            # Nobody knows which chunk caused it, nor what a chunk without marks was about to do.
            return [(busy, 0) for busy in in_flight]
        # Two deaths while one model is loaded are no coincidence, however they came.
        return [
            (
                busy,
                0 if busy.fetching else CRASHED if busy.loading else HUNG if busy.claim_id in self._hung else weight,
            )
            for busy in in_flight
        ]
