"""`gradcam metrics`: serve where jobs and workers stand."""

from __future__ import annotations

import click

from producer.commands.console import Examples, examples, make_talk
from producer.jobs.model import interrupt


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
    help="Interface to serve at: everybody who can reach it can read them.",
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

    talk = make_talk()
    with make_exporter(read(Connections), address, port, images_per_s=images_per_s, tell=talk.print) as server:
        talk.print(f"http://{address}:{server.server_port}/metrics")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            interrupt.heard()  # to be stopped is how it ends
