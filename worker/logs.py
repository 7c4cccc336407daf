"""One format for every line that a worker's processes write: launcher, Celery's main process, child, and all threads.

    2026-03-01T12:00:00.000Z host-cpu-1f3a INFO action=reclaimed job=cats chunk=3 Its process died; others get it.
    2026-03-01T12:00:00.000Z host-cpu-1f3a ERROR action=library from=celery.worker.consumer.consumer Connection lost.
      Traceback (most recent call last):
      ...

Time (UTC), worker, level, `action=` with a name that stays, what it is about, a sentence. What a library logs, warns of
or prints is shown as `action=library` with its source. A record is one line, whatever strangers put into it; only its
traceback has lines of its own, which are indented. Addresses are redacted once more, those of libraries for the first
time. With GRADCAM_LOG=json a record is one JSON object, with `trace_id` where its thread works for one.
"""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from producer.jobs.model.redaction import redact_text
from producer.jobs.model.settings import LogFormat
from producer.jobs.model.text import LINE_CHARS, lines, shown
from producer.jobs.tracing.traces import current_trace_id

#: Loggers of ours; all others are a library's.
_OURS = frozenset({"producer", "worker"})
#: What a record begins with: `action=reclaimed job=%s chunk=%d `.
_WORDS = re.compile(r"(?:[a-z_]+=\S+ )+")
#: How many reasons of refusals are told in a minute.
_MOST_REASONS, _MINUTE_S = 30, 60.0
#: Keys of a JSON record that no message may set.
_RESERVED = frozenset({"time", "worker", "level", "action", "trace_id", "message", "traceback"})

log = logging.getLogger(__name__)


def set_up(worker: str, log_format: LogFormat = "text") -> None:
    """Let this process write all its lines in the one format; may be called again when libraries brought handlers.

    What is printed to stdout and stderr becomes records as well.

    Args:
        worker: Whose lines they are.
        log_format: `text` or `json`.
    """
    # What was there when the process started: sys.stderr may be one of ours already.
    stream = sys.__stderr__ or sys.stderr
    handler = _Handler(stream)
    handler.setFormatter(_Json(worker) if log_format == "json" else _Text(worker))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # Some libraries give their loggers handlers, or keep them from the root's (multiprocessing, torch).
    for logger in list(logging.Logger.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            logger.handlers[:] = []
            logger.propagate = True
    logging.lastResort = handler
    warnings.formatwarning = _warning
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable
    sys.stdout = _Prints("stdout", logging.INFO, stream)
    sys.stderr = _Prints("stderr", logging.WARNING, stream)


class RefusalLog:
    """Tells whoever runs the worker why something that a job named was refused; the job is told only that it was.

    A job may name a million addresses. Each reason is told once a minute, and so many reasons a minute at most. Safe to
    share between threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since = time.monotonic()
        self._told: set[str] = set()
        self._left_out = 0

    def tell(self, why: str, job: str | None) -> None:
        """Log a reason, unless there were enough in this minute."""
        with self._lock:
            left_out = 0
            if time.monotonic() - self._since >= _MINUTE_S:
                left_out, self._left_out = self._left_out, 0
                self._told, self._since = set(), time.monotonic()
            if why in self._told or len(self._told) >= _MOST_REASONS:
                self._left_out += 1
                return
            self._told.add(why)
        more = f" ({left_out:,} more were not told in the minute before)" if left_out else ""
        if job is None:
            log.warning("action=fetch_refused Refused: %s%s.", why, more)
        else:
            log.warning("action=fetch_refused job=%s Refused: %s%s.", job, why, more)


# -- records -----------------------------------------------------------------------------------------------------------


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Whoever read the lines is gone, or the disk is full: work goes on, and a complaint could go nowhere."""


class _Text(logging.Formatter):
    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = re.sub(r"\s", "_", shown(worker))

    def format(self, record: logging.LogRecord) -> str:
        words, message = _read(record)
        said = " ".join(f"{key}={value}" for key, value in words.items())
        text = f"{_time(record)} {self._worker} {record.levelname} {said} {message}".rstrip()
        # Indented, so that no line of a stranger's exception looks like a record.
        return "\n  ".join([text, *_traceback(record)])


class _Json(logging.Formatter):
    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = re.sub(r"\s", "_", shown(worker))

    def format(self, record: logging.LogRecord) -> str:
        words, message = _read(record)
        said: dict[str, object] = {
            "time": _time(record),
            "worker": self._worker,
            "level": record.levelname,
            "action": words["action"],
        }
        said |= {key: _typed(key, value) for key, value in words.items() if key not in _RESERVED}
        if trace_id := current_trace_id():
            said["trace_id"] = trace_id
        said["message"] = message
        if traceback := _traceback(record):
            said["traceback"] = "\n".join(traceback)
        return json.dumps(said)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _typed(key: str, value: str) -> object:
    return int(value) if key == "chunk" and value.isdecimal() else value


def _read(record: logging.LogRecord) -> tuple[Mapping[str, str], str]:
    """The leading `key=value` words of a record, `action` first, and its sentence."""
    try:
        message = record.getMessage()
    except Exception:  # a library's template and its arguments do not fit: what there is, is shown
        message = f"{record.msg} {record.args!r}"
    message = shown(redact_text(message.strip()), LINE_CHARS)
    if record.name.partition(".")[0] not in _OURS:
        return {"action": "library", "from": re.sub(r"\s", "_", shown(record.name))}, message
    # How many words there are says our template, not what was put into it.
    found = _WORDS.match(f"{record.msg} ")
    count = found[0].count(" ") if found else 0
    *leading, sentence = (message + " ").split(" ", count)
    words = {key: value for key, _, value in (word.partition("=") for word in leading)}
    return {"action": words.pop("action", "note"), **words}, sentence.strip()


def _traceback(record: logging.LogRecord) -> list[str]:
    said = []
    if record.exc_info and record.exc_info[0] is not None:
        said.append(logging.Formatter().formatException(record.exc_info))
    elif record.exc_text:
        said.append(record.exc_text)
    if record.stack_info:
        said.append(record.stack_info)
    text = lines(redact_text("\n".join(said)))
    return text.split("\n") if text else []


# -- what is not logged by itself --------------------------------------------------------------------------------------


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{category.__name__}: {' '.join(str(message).split())} ({filename}:{lineno})"


def _uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    log.critical("action=bug Something unexpected ends this process.", exc_info=(kind, error, traceback))


def _uncaught_in_thread(raised: threading.ExceptHookArgs) -> None:
    if raised.exc_type is SystemExit or raised.exc_value is None:
        return
    name = raised.thread.name if raised.thread else "?"
    log.error(
        "action=bug Something unexpected ended the thread %s.",
        name,
        exc_info=(raised.exc_type, raised.exc_value, raised.exc_traceback),
    )


def _unraisable(raised: sys.UnraisableHookArgs) -> None:
    error = raised.exc_value
    logging.getLogger("python").warning(
        "%s %r",
        raised.err_msg or "Exception ignored in",
        raised.object,
        exc_info=(raised.exc_type, error, raised.exc_traceback) if error is not None else None,
    )


class _Prints(io.TextIOBase):
    """Makes records of what is printed, line by line.

    Args:
        name: Of the stream that it stands for.
        level: Of the records.
        stream: The real stderr, for those who write to its descriptor.
    """

    def __init__(self, name: str, level: int, stream: TextIO | Any) -> None:
        self._logger, self._level, self._stream = logging.getLogger(name), level, stream
        # Lines of several threads must not mix.
        self._of_thread = threading.local()

    def write(self, text: str) -> int:
        """Keep the text until its line ends."""
        mine = self._of_thread
        if getattr(mine, "busy", False):
            return len(text)  # the log's own trouble must not be logged
        *whole, mine.rest = (getattr(mine, "rest", "") + text).split("\n")
        # A bar of progress draws itself anew behind each return: what it showed last is enough.
        mine.rest = mine.rest.rpartition("\r")[2][-LINE_CHARS:]
        mine.busy = True
        try:
            for line in whole:
                if last := line.rstrip().rpartition("\r")[2]:
                    self._logger.log(self._level, "%s", last)
        finally:
            mine.busy = False
        return len(text)

    def writable(self) -> bool:
        """Whether it can be written to: always."""
        return True

    def fileno(self) -> int:
        """The descriptor of stderr, which started programs inherit."""
        return int(self._stream.fileno())

    @property
    def buffer(self) -> Any:
        """The bytes behind it, for who insists on them."""
        return self._stream.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """What callers may print."""
        return "utf-8"
