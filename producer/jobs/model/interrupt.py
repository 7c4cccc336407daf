"""Ctrl-C for our commands: heard from their first import on, and raised again where a library loses it.

Python turns SIGINT into a KeyboardInterrupt wherever the main thread is. Where that is a destructor, the callback of a
weak reference, an `except:`, or pydantic's Rust while it makes a validator, the error is lost, and the command goes on
as if nobody had pressed anything. So it is raised again until it is on its way out. A second signal ends the command at
once. SIGTERM and SIGHUP count as well.

It imports nothing heavy: the commands import what they need under its guard.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

#: The exit code of a command that was interrupted, as shells have it for Ctrl-C.
INTERRUPTED = 130
#: The exit code of a command whose reader has gone (`| head`), as shells have it for SIGPIPE.
UNREAD = 141
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: How often an interrupt that was lost is raised again.
_AGAIN_S = 0.5
#: Signals within this time are one wish: a terminal and a program around us may both send it.
_ONE_WISH_S = 0.3
_SHOW_CURSOR = "\x1b[?25h"


class _Guard:
    """Notes the wish to end, and sees to it that the main thread hears it."""

    def __init__(self) -> None:
        self._wished_at: float | None = None
        self._over = False
        self._insists = True

    def begin(self, *, insists: bool) -> None:
        """Listen; what whoever started us has set to be ignored stays so, as under `nohup`.

        Args:
            insists: Whether a second signal ends the command at once.
        """
        self._insists = insists
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._signalled)
        signal.signal(signal.SIGALRM, self._again)
        sys.unraisablehook = _tell_unless_interrupt

    @property
    def wished(self) -> bool:
        """Whether somebody has asked us to end."""
        return self._wished_at is not None

    def heard(self) -> None:
        """The command ends in its own way; nothing is raised again. A further signal ends it at once."""
        self._over = True
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _signalled(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._wished_at is not None and now - self._wished_at < _ONE_WISH_S:
            return
        if self._wished_at is not None or self._over:
            if not self._insists:
                return
            _end_at_once()
        self._wished_at = now
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)
        raise KeyboardInterrupt

    def _again(self, _number: int, _frame: FrameType | None) -> None:
        if not self._over and not _under_way():
            raise KeyboardInterrupt


_guard = _Guard()


def heard() -> None:
    """Say that an interrupt is how this command ends, and that it is on its way: nothing has to be raised again."""
    _guard.heard()


def wished() -> bool:
    """Whether somebody has asked this command to end; an error that comes after that is no bug of its own."""
    return _guard.wished


def run_guarded(command: Callable[[], int], *, insists: bool = True) -> NoReturn:
    """Run a command and exit with its code, or, where it is interrupted, with 130 and one sentence.

    Args:
        command: What to do; imports that take long belong into it.
        insists: Whether a second signal ends it at once; else only the first one counts.
    """
    _guard.begin(insists=insists)
    _open_what_is_closed()
    streams = sys.stdout, sys.stderr
    try:
        code = command()
    except SystemExit as ended:
        # click and rich end with 1 where nobody reads any more, which says that images failed. click wraps the stream
        # that we began with then; Celery puts its own in place of it whenever it runs, which means nothing.
        if not (isinstance(ended.__context__, BrokenPipeError) or getattr(sys.stdout, "wrapped", None) is streams[0]):
            raise
        sys.stdout, sys.stderr = streams
        code = UNREAD
    except KeyboardInterrupt:
        _say("interrupted\n")
        code = INTERRUPTED
    except Exception:
        if not _guard.wished:
            raise
        _say("interrupted\n")  # a library made another error of it
        code = INTERRUPTED
    finally:
        _guard.heard()
    if code in {INTERRUPTED, UNREAD}:
        _drop_unread()
    sys.exit(code)


def _open_what_is_closed() -> None:
    """Give a stream that was closed before we began (`>&-`) nobody who reads it: Python has None in its place."""
    for name in ("stdin", "stdout", "stderr"):  # in their order: each file takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115 - as long as we run


def _under_way() -> bool:
    """Whether the code that is running cleans up after an interrupt: it is not to be interrupted in turn."""
    error, seen = sys.exception(), set[int]()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__context__ or error.__cause__
    return False


def _end_at_once() -> NoReturn:
    if os.isatty(2):
        _say(_SHOW_CURSOR)  # a bar may have hidden it
    _say("interrupted again: ended without tidying up\n")
    os._exit(INTERRUPTED)


def _say(text: str) -> None:
    # Not by `terminal.py`, which has to be imported.
    with suppress(OSError):  # Ctrl-C has ended whoever reads it, too: `gradcam … 2>&1 | tee log`
        os.write(2, text.encode())


def _drop_unread() -> None:
    """Leave out what nobody reads any more: Python would complain of it while it exits, with a code of its own."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _tell_unless_interrupt(unraisable: sys.UnraisableHookArgs) -> None:
    """Leave out what Python prints of an interrupt that it loses: it is raised again."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
