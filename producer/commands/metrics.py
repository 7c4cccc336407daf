"""`gradcam metrics`: serve where jobs and workers stand."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

import click

from producer.commands.console import Examples, examples
from producer.jobs.model import interrupt
from producer.jobs.model.terminal import say, say_json
from producer.jobs.model.text import LINE_CHARS, shown

#: Actions of log lines that tell of nothing wrong.
_WELL: Final = ("serving", "redis_back")


@click.command(
    cls=Examples,
    epilog=examples(
        "gradcam metrics",
        "gradcam metrics --address 0.0.0.0 --port 9100",
        "curl 'http://127.0.0.1:9100/scale?hours=4&images_per_s=400'",
        codes="Exit codes: 0 stopped, 2 usage or settings.",
    ),
)
@click.option(
    "--address",
    default="127.0.0.1",
    show_default=True,
    help="Interface to serve at: everybody who can reach it can read them. :: is all, 0.0.0.0 all of IPv4.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=9100, show_default=True, help="Where to serve.")
@click.option(
    "--images-per-s",
    type=click.FloatRange(0.001, 1e6),
    default=20.0,
    show_default=True,
    help="A GPU's images a second, for forecasts, with networks that nobody has measured for 30 days.",
)
def metrics(address: str, port: int, images_per_s: float) -> None:
    """Serve where jobs and workers stand, in Prometheus' format, until it is stopped.

    /metrics has all of it, without names of jobs. /scale says as JSON how many GPUs do what is open in so many hours.
    /healthz answers as long as this process does.
    """
    from producer.jobs.model.settings import Connections, read
    from producer.monitoring.exporter import make_exporter

    settings = read(Connections)
    tell = _tell_json if settings.log == "json" else _tell

    def tell_if_read(action: str, sentence: str) -> None:
        with suppress(OSError):  # whoever read the lines has gone, or their disk is full: answers go on
            tell(action, sentence)

    with make_exporter(settings, address, port, images_per_s=images_per_s, tell=tell_if_read) as server:
        host = f"[{address}]" if ":" in address else address
        tell("serving", f"http://{host}:{server.server_port}/metrics")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            interrupt.heard()  # to be stopped is how it ends


def _tell(_action: str, sentence: str) -> None:
    say(sentence)


def _tell_json(action: str, sentence: str) -> None:
    """Write a line as workers do."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
    level = "INFO" if action in _WELL else "WARNING"
    say_json(json.dumps({"time": at, "level": level, "action": action, "message": shown(sentence, LINE_CHARS)}))
