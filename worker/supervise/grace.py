"""The end of a stopping process, whatever it waits for: a Redis or a store may never answer again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

_LOOK_EVERY_S: Final = 0.25
#: Shares of the time that a stopping worker has. The child stops waiting first, then its parent; last the launcher
#: kills what is left, so that it ends within that time itself.
CHILD_SHARE: Final = 0.8
PARENT_SHARE: Final = 0.9
LAUNCHER_SHARE: Final = 0.95


class Grace(threading.Thread):
    """Calls `over` when a stopping process has used a share of its time.

    Args:
        drain_files: Each tells that the process must end.
        grace_s: How long a stopping worker may take in all.
        share: After which share of it.
        over: Ends the process; its argument is how many seconds that may take.
    """

    def __init__(
        self, drain_files: Sequence[Path], grace_s: float, share: float, over: Callable[[float], None]
    ) -> None:
        super().__init__(name="grace", daemon=True)
        self._files, self._grace_s, self._share, self._over = drain_files, grace_s, share, over

    def run(self) -> None:
        """Wait for a file, then for the share of the time, by the monotonic clock."""
        since: float | None = None
        while since is None or time.monotonic() - since < self._share * self._grace_s:
            time.sleep(_LOOK_EVERY_S)
            if since is None and any(file.exists() for file in self._files):
                since = time.monotonic()
        self._over((LAUNCHER_SHARE - self._share) / 2 * self._grace_s)
