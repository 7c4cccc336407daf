"""Serves a deployment's metrics over HTTP: for Prometheus, for what starts and stops workers, for a probe.

It holds no lock and no state: any number of them may run, and none has to.
"""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from producer.jobs.model.errors import GradcamError, Unfit, UsageError
from producer.jobs.model.serving import not_served, served_at
from producer.jobs.model.spec import PRIORITIES
from producer.jobs.table.redis_scripts import make_redis_client
from producer.jobs.table.table import JobTable
from producer.monitoring.forecast import HOURS, IMAGES_PER_S, forecast
from producer.monitoring.metrics import DeploymentCollector

if TYPE_CHECKING:
    from producer.jobs.model.settings import Connections
    from producer.jobs.table.overview import Overview

#: What was seen of Redis is told again for so long: who asks more often costs Redis nothing.
KEEP_S: Final = 5.0
#: Prometheus gives up after 10 s.
_REDIS_ANSWERS_WITHIN_S: Final = 4.0
#: A client that sends nothing for so long is cut off.
_CLIENT_SILENT_S: Final = 10.0
#: Of hours, and of images a second; beyond them a number is a mistake.
_LEAST: Final = 1e-6
_MOST: Final = 1_000_000_000
_MOST_PARAMETERS: Final = 20
_METHODS: Final = ("GET", "HEAD")
_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"


class Looker:
    """Looks at Redis, at most once in `keep_s` seconds; safe to share between threads.

    Args:
        read: Looks.
        tell: Called with an action, as logs have it, and a sentence: Redis stops answering, or does again.
        keep_s: How long what was seen is told again, an error too.
    """

    def __init__(
        self, read: Callable[[], Overview], tell: Callable[[str, str], None], *, keep_s: float = KEEP_S
    ) -> None:
        self._read, self._tell, self._keep_s = read, tell, keep_s
        self._lock = threading.Lock()
        self._until = -math.inf
        self._found: tuple[Overview, float] | GradcamError | None = None
        self._problem = ""

    def look(self) -> tuple[Overview, float]:
        """What was seen lately, and how long looking took, in seconds. Raises ServiceError and Unfit."""
        with self._lock:
            if self._found is None or time.monotonic() >= self._until:
                self._found = self._look()
                self._until = time.monotonic() + self._keep_s
            if isinstance(self._found, GradcamError):
                raise self._found
            return self._found

    def _look(self) -> tuple[Overview, float] | GradcamError:
        started = time.monotonic()
        try:
            found = self._read()
        except GradcamError as error:
            if str(error) != self._problem:
                self._tell("redis_refuses" if isinstance(error, Unfit) else "redis_away", str(error))
            self._problem = str(error)
            return error
        if self._problem:
            self._tell("redis_back", "Redis answers again")
        self._problem = ""
        return found, time.monotonic() - started


class Exporter:
    """The answers, as a WSGI application: `/metrics`, `/scale`, `/healthz`.

    Args:
        looker: Looks at Redis.
        images_per_s: A GPU's speed with networks that were not measured.
    """

    def __init__(self, looker: Looker, images_per_s: float = IMAGES_PER_S) -> None:
        self._looker, self._images_per_s = looker, images_per_s
        registry = CollectorRegistry()
        registry.register(DeploymentCollector(looker.look, images_per_s))
        self._metrics: Any = make_wsgi_app(registry)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request: HEAD as GET, but for the text."""
        method = environ.get("REQUEST_METHOD")
        if method not in _METHODS:
            text = f"{str(method)[:40]} is not answered: use {' or '.join(_METHODS)}\n"
            return _answer(start, "405 Method Not Allowed", _TEXT, text, [("Allow", ", ".join(_METHODS))])
        begun: list[Any] = []
        whole = b"".join(self._got({**environ, "REQUEST_METHOD": "GET"}, lambda *given: begun.extend(given)))
        status, headers = begun
        start(status, [*headers, ("Content-Length", str(len(whole)))])
        return [] if method == "HEAD" else [whole]

    def _got(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            found: Iterable[bytes] = self._metrics(environ, start)
            return found
        if path == "/healthz":
            # Of this process alone: to start it again does not bring Redis back.
            return _answer(start, "200 OK", _TEXT, "ok\n")
        if path == "/scale":
            return self._scale(environ.get("QUERY_STRING", ""), start)
        return _answer(
            start, "404 Not Found", _TEXT, "there are /metrics, /scale?hours=4&images_per_s=20 and /healthz\n"
        )

    def _scale(self, query: str, start: Callable[..., Any]) -> Iterable[bytes]:
        try:
            hours, images_per_s, priorities = _asked(query, self._images_per_s)
        except UsageError as error:
            return _answer(start, "400 Bad Request", _JSON, json.dumps({"error": str(error)}))
        try:
            overview, _ = self._looker.look()
        except GradcamError as error:
            # Not a number: who takes 0 for an answer stops workers that are at work.
            return _answer(start, "503 Service Unavailable", _JSON, json.dumps({"error": str(error)}))
        return _answer(start, "200 OK", _JSON, json.dumps(scale(overview, hours, images_per_s, priorities)))


def scale(overview: Overview, hours: float, images_per_s: float, priorities: Iterable[str]) -> dict[str, float]:
    """What `/scale` says.

    Args:
        overview: Where jobs and workers stand.
        hours: In how many all that is open shall be done; more than 0.
        images_per_s: A GPU's speed with networks that nobody has measured lately; more than 0.
        priorities: Jobs of these only.
    """
    left = forecast(overview, images_per_s, set(priorities))
    speed = left.open_images / left.gpu_seconds if left.gpu_seconds else images_per_s
    return {
        "gpus_wanted": round(left.gpus_wanted(hours), 4),
        "open_images": left.open_images,
        "in_flight_images": left.in_flight_images,
        "finalizing_jobs": left.finalizing_jobs,
        "measured_images": left.measured_images,
        "images_per_s_per_gpu": round(speed, 3),
        "gpu_seconds": round(left.gpu_seconds, 3),
        "hours": hours,
        "gpus": len({worker.device for worker in overview.workers if worker.state != "silent"}),
    }


def _asked(query: str, images_per_s: float) -> tuple[float, float, tuple[str, ...]]:
    """Read what follows `/scale?`. Raises UsageError."""
    try:
        given = parse_qs(query, keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        raise UsageError(f"more than {_MOST_PARAMETERS} parameters are given: leave some out") from None
    if unknown := sorted(given.keys() - {"hours", "images_per_s", "priority"}):
        raise UsageError(f"{unknown[0][:40]!r} is not understood: there are hours, images_per_s and priority")
    if twice := [name for name, words in given.items() if len(words) > 1 and name != "priority"]:
        raise UsageError(f"{twice[0]} is given {len(given[twice[0]])} times: give it once")
    priorities = tuple(given.get("priority", PRIORITIES))
    if wrong := set(priorities) - set(PRIORITIES):
        raise UsageError(f"priority {min(wrong)[:40]!r} is none: use {', '.join(PRIORITIES)}")
    return _positive(given, "hours", HOURS), _positive(given, "images_per_s", images_per_s), priorities


def _positive(given: dict[str, list[str]], name: str, default: float) -> float:
    (word,) = given.get(name, [str(default)])
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not _LEAST <= number <= _MOST:
        raise UsageError(f"{name} {word[:40]!r} is no number from {_LEAST:f} to {_MOST}")
    return number


def _answer(
    start: Callable[..., Any], status: str, kind: str, text: str, headers: Iterable[tuple[str, str]] = ()
) -> Iterable[bytes]:
    start(status, [("Content-Type", kind), *headers])
    return [text.encode()]


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_SILENT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away before its answer."""


def make_exporter(
    settings: Connections,
    address: str,
    port: int,
    *,
    images_per_s: float,
    tell: Callable[[str, str], None],
    keep_s: float = KEEP_S,
) -> _Server:
    """Open the port; the server's `serve_forever` then answers.

    Args:
        settings: Where Redis is. It may be away: the metrics say so.
        address: Of the network interface.
        port: TCP; 0 for any that is free.
        images_per_s: A GPU's speed with networks that were not measured.
        tell: As of `Looker`.
        keep_s: How long what was seen is told again.

    Raises:
        UsageError: The address or the port cannot be used.
    """
    table = JobTable(make_redis_client(settings, answers_within_s=_REDIS_ANSWERS_WITHIN_S), patience_s=0)
    app = Exporter(Looker(table.overview.read, tell, keep_s=keep_s), images_per_s)
    try:
        place = served_at(address)
        family = socket.getaddrinfo(place, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        server = type("_Server", (_Server,), {"address_family": family})
        return make_server(place, port, app, server, _Handler)
    except (OSError, UnicodeError) as error:
        raise not_served(address, port, error) from None
