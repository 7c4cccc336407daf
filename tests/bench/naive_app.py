"""Celery as people use it: prefork, a task an image, the model loaded once a process, each with one thread.

The engine is ours, so are rendering, encoding and the settings of the S3 client: what differs is how the work is handed
out and done. An image's task fetches it, explains it as a batch of one, and writes its four pictures.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import redis
from celery import Celery, signals

#: Celery's own names, so that the queue is none of ours.
QUEUE = "naive"
#: How many images a run has done; what the benchmark waits for.
DONE = "naive:done:{run}"

app = Celery("naive", broker=os.environ["GRADCAM_REDIS_URL"], set_as_current=False)
app.conf.update(task_ignore_result=True, task_default_queue=QUEUE, broker_connection_retry_on_startup=True)


@cache
def _storage() -> Any:
    from producer.jobs.model.settings import Connections, read
    from producer.jobs.store.bucket import Storage

    return Storage.from_settings(read(Connections))


@cache
def _network(name: str, weights: str | None) -> Any:
    from worker.models import networks

    return networks.load(name, weights)


@cache
def _redis() -> redis.Redis:
    return redis.Redis.from_url(os.environ["GRADCAM_REDIS_URL"])


@signals.worker_process_init.connect
def _get_ready(**_: Any) -> None:
    import torch

    from worker.device import batches

    torch.set_num_threads(1)
    batches.open_device("cpu")
    if "BENCH_DEVICE_MS" in os.environ:
        import fake_device

        fake_device.install()
    _storage()
    _redis().ping()
    _network(os.environ["NAIVE_NETWORK"], os.environ.get("NAIVE_WEIGHTS"))
    print("naive: ready", flush=True)


@app.task(name="naive.explain")
def explain(run: str, index: int, key: str) -> None:
    """Explain one image."""
    from worker.device import batches
    from worker.pictures import decode, geometry, render

    network = _network(os.environ["NAIVE_NETWORK"], os.environ.get("NAIVE_WEIGHTS"))
    storage = _storage()
    picture = decode.decode(storage.get(key))
    fitted, _frame = geometry.fit(picture, network.size, "squash", network.resize_px)
    (answer,) = batches.explain_classes(network, [fitted], [None]).answers()
    assert not isinstance(answer, Exception), answer
    (explained,) = answer
    if explained.drawn is not None:  # by the benchmark's device, as by a GPU
        pictures = explained.drawn.pictures
    else:
        assert explained.guided is not None
        pictures = render.render(fitted / 255, explained.map, explained.guided)
    for kind, drawn in pictures.items():
        storage.put(f"naive/{run}/{index:08d}/{kind}.jpg", render.encode(drawn))
    _redis().incr(DONE.format(run=run))
