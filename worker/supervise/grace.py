"""The end of a stopping process, whatever it waits for: a Redis or a store that stands still answers no last word."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

_LOOK_EVERY_S: Final = 0.25
#: Of the time that a stopping worker has: when a child gives up what it waits for, when its parent does, and when the
#: launcher kills what is left, so that it ends within that time itself.
CHILD_SHARE: Final = 0.8
PARENT_SHARE: Final = 0.9
LAUNCHER_SHARE: Final = 0.95


class Grace(threading.Thread):
    """Calls `over` when a share of the time is over that a stopping process has.

    Args:
        drain_file: Exists since the process shall end.
        grace_s: How long a stopping worker may take in all.
        share: After which share of it.
        over: What then ends the process; gets how many seconds it may take at most.
    """

    def __init__(self, drain_file: Path, grace_s: float, share: float, over: Callable[[float], None]) -> None:
        super().__init__(name="grace", daemon=True)
        self._file, self._grace_s, self._share, self._over = drain_file, grace_s, share, over

    def run(self) -> None:
        """Look again and again; the clock that nobody sets begins when the file is seen first."""
        since: float | None = None
        while since is None or time.monotonic() - since < self._share * self._grace_s:
            time.sleep(_LOOK_EVERY_S)
            if since is None and self._file.exists():
                since = time.monotonic()
        self._over((LAUNCHER_SHARE - self._share) / 2 * self._grace_s)
