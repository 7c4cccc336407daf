"""An exporter of this process: `gradcam metrics` without its start, that keeps what it saw for as long as one wants."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from producer.jobs.model.settings import Connections, read
from producer.monitoring.exporter import make_exporter


@contextmanager
def serving(
    keep_s: float = 0.0, told: list[str] | None = None, port: int = 0, place: str = "127.0.0.1"
) -> Iterator[str]:
    """Serve the stack that the environment names, at any free port where none is given; its address."""
    tell = (lambda *_: None) if told is None else (lambda _, sentence: told.append(sentence))
    with make_exporter(read(Connections), place, port, images_per_s=20, keep_s=keep_s, tell=tell) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
