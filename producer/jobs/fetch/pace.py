"""How one fetch goes on: what time it may take, how fast it must be, and whether anybody still waits for it.

Who fetches for somebody that may lose interest says so around the call:

    with interruptible(check):
        fetcher.fetch_to(...)

`check` is called several times a second, perhaps in another thread, and raises `Interrupted` when the fetch shall end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, TypeAlias

from producer.jobs.model.errors import FetchTimeout

#: Raises where what is under way shall end.
Check: TypeAlias = Callable[[], None]
#: How often it is asked whether anybody still waits.
LOOK_EVERY_S: Final = 0.25


def _nobody_asks() -> None:
    pass


_interruption: ContextVar[Check] = ContextVar("interruption", default=_nobody_asks)


@contextmanager
def interruptible(check: Check) -> Iterator[None]:
    """Let `check` end what this thread fetches, or waits for, within the `with`."""
    token = _interruption.set(check)
    try:
        yield
    finally:
        _interruption.reset(token)


def check_interruption() -> None:
    """Raise what the check of this thread raises, for those who wait for something else than bytes."""
    _interruption.get()()


class Pace:
    """The limits of one fetch, and how far it has come; safe to share with the thread that watches it.

    Args:
        total_s: How long it may take.
        low_speed_limit: So many bytes a second must come; 0 asks for nothing.
        low_speed_time_s: Over how many seconds they are counted. As curl's `--speed-limit` and `--speed-time`.
    """

    def __init__(self, total_s: float, low_speed_limit: float = 0, low_speed_time_s: float = 30.0) -> None:
        self._total_s, self._low_speed_limit, self._low_speed_time_s = total_s, low_speed_limit, low_speed_time_s
        self._end_s = time.monotonic() + total_s
        self._interrupted = _interruption.get()
        self._lock = threading.Lock()
        #: What a look found; it stays.
        self._verdict: BaseException | None = None
        self.begin()

    def again(self) -> Pace:
        """As much time once more."""
        return Pace(self._total_s, self._low_speed_limit, self._low_speed_time_s)

    def begin(self) -> None:
        """Begin a try: its bytes are counted from here."""
        with self._lock:
            #: Bytes that came over the network, and those given on.
            self.received_bytes = self.delivered_bytes = 0
            self._since_s, self._before_bytes = time.monotonic(), 0

    def remaining_s(self) -> float:
        """Seconds that are left; less than none when the time is over."""
        return self._end_s - time.monotonic()

    def next_look_s(self) -> float:
        """After how many seconds `check` may find something, though nothing comes."""
        due = [self.remaining_s()]
        if self._low_speed_limit:
            due.append(self._since_s + self._low_speed_time_s - time.monotonic())
        if self._interrupted is not _nobody_asks:
            due.append(LOOK_EVERY_S)
        return max(min(due), 0.0)

    def check(self, shown: str) -> None:
        """Look whether the fetch may go on; what was found once is found again.

        Args:
            shown: The address as it may be shown.

        Raises:
            FetchTimeout: It takes too long, or is too slow.
            Interrupted: Nobody waits for it any more.
        """
        if self._verdict is None:
            try:
                self._interrupted()
            except Exception as error:
                self._verdict = error
            else:
                self._verdict = self._timeout(shown)
        if self._verdict is not None:
            raise self._verdict

    def _timeout(self, shown: str) -> FetchTimeout | None:
        now = time.monotonic()
        if now >= self._end_s:
            return FetchTimeout(f"{shown} cannot be fetched: it took longer than {self._total_s:g} s")
        with self._lock:
            if not self._low_speed_limit or now - self._since_s < self._low_speed_time_s:
                return None
            came = self.received_bytes - self._before_bytes
            if came < self._low_speed_limit * (now - self._since_s):
                return FetchTimeout(
                    f"{shown} cannot be fetched: fewer than {self._low_speed_limit:,g} bytes a second came for "
                    f"{self._low_speed_time_s:g} s"
                )
            self._since_s, self._before_bytes = now, self.received_bytes
        return None
