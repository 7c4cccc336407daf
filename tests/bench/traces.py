"""What spans cost: processor time of a chunk's way from claim to commit, without and with them, by turns in one run.

PYTHONPATH=.:tests/support .venv/bin/python -W ignore tests/bench/traces.py

Pictures of 8 x 8 px and a network of a few kilobytes: what is left is what the pipeline itself takes of an image. A
collector in a process of its own takes the spans.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from chunk_core import Core
from stacks import own_stack

from producer.client.client import Client
from producer.jobs.tracing.traces import Traces, open_traces

if TYPE_CHECKING:
    from collections.abc import Iterator

_IMAGES, _ROUNDS = 250, 16
_COLLECTOR = """
import sys
from otlp_receiver import receiving
with receiving() as receiver:
    print(receiver.url, flush=True)
    sys.stdin.read()
"""


@contextmanager
def _collector() -> Iterator[str]:
    """The address of a collector."""
    program = [sys.executable, "-c", _COLLECTOR]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        yield running.stdout.readline().strip()
        running.communicate("")


def _core_ms(core: Core, traces: Traces, name: str) -> float:
    """Of an image, in this process: all threads, the one that sends spans included."""
    core.job(name, [core.image(color) for color in range(_IMAGES)], outputs=("cam",))
    claim, before = core.claim(name), time.process_time()
    with traces.span("chunk", job=name, chunk=0) as span:
        core.run(claim, span=span)
    traces.flush(10)
    return 1000 * (time.process_time() - before) / len(claim.pending)


def _alone(traces: Traces) -> float:
    """What is told of a chunk and nothing else, in core-µs an image."""
    before = time.process_time()
    with traces.span("chunk", job="alone", chunk=0) as span:
        for _ in range(_IMAGES):
            for stage in ("fetch", "decode", "explain", "render", "encode", "upload"):
                span.stage(stage, time.monotonic(), 0.001)
        for stage in ("weights", "model", "record", "commit"):
            with span.timed(stage):
                pass
    traces.flush(10)
    return 1e6 * (time.process_time() - before) / _IMAGES


def main() -> None:
    """Print both, and what spans alone take: medians, and the quartiles of the differences."""
    told: list[str] = []
    with tempfile.TemporaryDirectory() as folder, own_stack(Path(folder)), _collector() as url:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = url
        core = Core(Client.from_env().table, Client.from_env().storage)
        ways = {"off": Traces(), "on": open_traces("otlp", "gradcam-worker", told.append)}
        for name, traces in ways.items():
            _core_ms(core, traces, f"warm-{name}")
        rounds = [
            {name: _core_ms(core, traces, f"{name}-{number}") for name, traces in ways.items()}
            for number in range(_ROUNDS)
        ]
        alone = {name: [_alone(traces) for _ in range(5 * _ROUNDS)] for name, traces in ways.items()}
    for name in ways:
        print(f"{name:<4} {statistics.median(one[name] for one in rounds):.3f} core-ms an image")
    low, middle, high = statistics.quantiles([one["on"] - one["off"] for one in rounds], n=4)
    print(f"more with spans: {1000 * middle:.0f} core-µs an image (quartiles {1000 * low:.0f} to {1000 * high:.0f})")
    for name, taken in alone.items():
        print(f"spans alone, {name}: {statistics.median(taken):.1f} core-µs an image")
    print(*told, sep="\n", end="")


if __name__ == "__main__":
    main()
