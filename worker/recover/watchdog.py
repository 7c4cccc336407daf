"""The parent's eye on its child: one that hangs is killed, and what each death says of the images is weighed.

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
from typing import Final

from worker.chunks.lease import Busy

log = logging.getLogger(__name__)

#: An image is convicted of killing its process when the deaths it was alone in weigh this much.
CONVICTING: Final = 4
#: A process that was killed from outside, or whose end nobody saw: it may have been a coincidence.
UNKNOWN: Final = 1
#: A process that crashed by itself, or was killed by the kernel for want of memory.
CRASHED: Final = 2
#: A process that hung until its time was over: that is no coincidence.
HUNG: Final = 100

_LOOK_EVERY_S = 1.0
_CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGSYS})
_SIGNAL, _EXIT = re.compile(r"signal (\d+)"), re.compile(r"exitcode (\d+)")
_CGROUP, _VMSTAT = Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")


def oom_kills() -> int:
    """How often the kernel has killed for want of memory, in our control group or, where it tells nothing, here."""
    for path in (_CGROUP, _VMSTAT):
        with suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def death_weight(how: str, *, out_of_memory: bool) -> int:
    """Weigh a death by the words of the pool, as `signal 11 (SIGSEGV)` or `exitcode 1`.

    Args:
        how: What the pool says.
        out_of_memory: Whether the kernel killed for want of memory meanwhile.
    """
    if found := _SIGNAL.search(how):
        number = int(found[1])
        return CRASHED if number in _CRASHES or (number == signal.SIGKILL and out_of_memory) else UNKNOWN
    return CRASHED if _EXIT.search(how) else UNKNOWN


class Watchdog(threading.Thread):
    """Kills a child whose step takes longer than it may; started in the main process.

    Args:
        busy_files: What `worker/chunks/lease.py` writes, one for each chunk in hand.
        grace_s: How long after the step's time the child is killed.
    """

    def __init__(self, busy_files: Sequence[Path], *, grace_s: float) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._files, self._grace_s = busy_files, grace_s
        self._oom_kills = oom_kills()
        #: Claims whose holder was killed because it hung.
        self._hung: set[str] = set()
        #: Files that were late when last looked at.
        self._late: set[Path] = set()

    def run(self) -> None:
        """Look, again and again."""
        while True:
            time.sleep(min(_LOOK_EVERY_S, self._grace_s))
            self.look()

    def look(self) -> None:
        """Kill the child if one of its steps takes longer than it may."""
        for file in self._files:
            self._look_at(file)

    def _look_at(self, file: Path) -> None:
        try:
            late_s = time.time() - file.stat().st_mtime
        except FileNotFoundError:
            return
        busy = Busy.read(file) if late_s > self._grace_s else None
        if busy is None:
            self._late.discard(file)
            return
        if busy.claim_id in self._hung:
            return
        if file not in self._late:
            # Twice: a machine that was suspended, or whose clock was set, has run on in between.
            self._late.add(file)
            return
        log.error("action=hung job=%s chunk=%d The process hangs; it is killed.", busy.job, busy.chunk)
        self._hung.add(busy.claim_id)
        with suppress(ProcessLookupError):
            os.kill(busy.pid, signal.SIGKILL)

    def diagnose(self, delivery: str, how: str) -> list[tuple[Busy, int]]:
        """What a dead child had in hand, which need not be what its message named, and its death's weight for each.

        An image was alone only if no other chunk was in hand; where there were two, the next holder finds out.

        Args:
            delivery: What the dead holder's claim ids begin with.
            how: What the pool says of its end.
        """
        found = [Busy.read(file) for file in self._files]
        for file in self._files:
            file.unlink(missing_ok=True)
        before, self._oom_kills = self._oom_kills, oom_kills()
        weight = death_weight(how, out_of_memory=self._oom_kills > before)
        in_hand = [busy for busy in found if busy is not None and busy.claim_id.startswith(f"{delivery}/")]
        if len(in_hand) > 1:
            # Nobody knows whose it was, nor what a chunk without marks was about to do.
            return [(busy, 0) for busy in in_hand]
        # Two that ended while they loaded one model are no coincidence, however they did.
        return [
            (busy, CRASHED if busy.loading else HUNG if busy.claim_id in self._hung else weight) for busy in in_hand
        ]
