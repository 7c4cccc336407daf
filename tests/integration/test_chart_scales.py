"""The chart's trial, run as processes, and scaled by what KEDA and Kubernetes make of its ScaledObject.

Servers, exporter, workers, probes and the bucket's job are the commands of the rendered manifests. Workers are started
and stopped as Kubernetes does: SIGTERM, whatever they have in hand.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pods
import pytest
from autoscaler import Autoscaler
from charts import VALUES, Manifest, find, manifests, merged
from stacks import eventually, set_only
from store_journey import open_outside

from producer.client.client import Client
from producer.jobs.model import keys

#: What makes a worker's speed here is this, and no core: eight threads fetch at a time.
FETCH_S = 2.0
#: A job for one worker, and one for many, of which nothing has to be done.
IMAGES, MANY = 80, 2000
#: The chart's `hours`, of seconds; and the time between two looks.
WANTED_S = 90
LOOK_EVERY_S = 1.0
SMALL: dict[str, Any] = {"network": "squeezenet1_1", "weight_path": "random", "outputs": ["cam"], "class_id": 1}
#: Where `kubectl port-forward` lets a browser reach the trial's store.
FORWARDED = "http://localhost:8333"
QUEUES = ("recovery", "high", "default", "low")

pytestmark = pytest.mark.skipif(
    not pods.hosts_can_be_named(), reason="a pod has a name of its own, which root alone gives here"
)


@contextmanager
def slow_images() -> Iterator[str]:
    """A web server that takes a while for each picture."""
    _, encoded = cv2.imencode(".jpg", np.full((64, 64, 3), 120, np.uint8))
    body = encoded.tobytes()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(FETCH_S)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def values(web: str) -> dict[str, Any]:
    keda = {
        "enabled": True,
        "maxReplicas": 2,
        "hours": WANTED_S / 3600,
        "imagesPerSecondPerGpu": 8 / FETCH_S,
        "pollingIntervalSeconds": 1,
        "cooldownSeconds": 2,
        "scaleDown": {"stabilizationSeconds": 1},
    }
    allowed = {"GRADCAM_WORKER_ALLOW_HOSTS": web.removeprefix("http://"), "GRADCAM_WORKER_COMMIT_EVERY_S": "0.5"}
    return merged(VALUES["trial"], {"keda": keda, "worker": {"env": allowed}, "s3": {"publicEndpointUrl": FORWARDED}})


class Scaled:
    """The Deployment's pods, as many as KEDA and Kubernetes say."""

    def __init__(self, rendered: list[Manifest], cluster: pods.Cluster) -> None:
        spec = find(rendered, "ScaledObject", "-worker")["spec"]
        [trigger] = spec["triggers"]
        self._url = cluster.addressed(trigger["metadata"]["url"])
        self._place = trigger["metadata"]["valueLocation"]
        self.keda = Autoscaler(spec, self.asked, time.monotonic)
        self._cluster = cluster
        self.up: list[pods.Pod] = []
        self.down: list[pods.Pod] = []
        self.counts: list[int] = []

    def asked(self) -> float | None:
        """What KEDA reads; None where it gets no number."""
        found = pods.fetch(self._url)
        return None if found is None else float(found[self._place])

    def look(self) -> int:
        """What happens every few seconds in a cluster: KEDA looks, Kubernetes looks, pods start or are told to end."""
        self.keda.poll()
        self.keda.sync()
        while len(self.up) < self.keda.replicas:
            self.up.append(self._cluster.pod("Deployment", "-worker"))
            self.up[-1].start()
        while len(self.up) > self.keda.replicas:
            # Which one Kubernetes takes is not ours to say: here the first, which has been at work for longest.
            self.down.append(self.up.pop(0))
            self.down[-1].terminate()
        self.counts.append(self.keda.replicas)
        return self.keda.replicas

    def until(
        self, condition: Callable[[], bool], within_s: float, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Look again and again until it is so."""
        deadline = time.monotonic() + within_s
        while not condition():
            logs = "\n".join(pod.log_tail() for pod in self._cluster.pods)
            assert time.monotonic() < deadline, f"{self.counts}\n{logs}"
            self.look()
            meanwhile()
            time.sleep(LOOK_EVERY_S)

    def ended_by_themselves(self) -> bool:
        """Whether all that were told to end have."""
        return all(pod.process is not None and pod.process.poll() == 0 for pod in self.down)


def start_servers(cluster: pods.Cluster) -> None:
    """Start Redis, the store and the exporter, and make the bucket."""
    redis, store = (cluster.pod("StatefulSet", name) for name in ("-valkey", "-s3"))
    bucket, exporter = cluster.pod("Job", "-bucket-1"), cluster.pod("Deployment", "-exporter")
    for pod in (redis, store, bucket, exporter):
        pod.start()
    eventually(lambda: exporter.probe("readinessProbe") == exporter.probe("livenessProbe") == 0, every_s=0.2)
    eventually(lambda: store.probe("readinessProbe") == 0, every_s=0.2)
    assert bucket.process is not None
    assert bucket.process.wait(60) == 0, bucket.log_tail()


def client_of(cluster: pods.Cluster, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client with the settings of the client's pod, and the store's service forwarded to a port of this machine."""
    settings = cluster.pod("Deployment", "-client").environment
    assert settings["GRADCAM_S3_PUBLIC_ENDPOINT_URL"] == FORWARDED
    forwarded = settings["GRADCAM_S3_ENDPOINT_URL"].replace("127.0.0.1", "localhost")
    set_only(monkeypatch, {**settings, "GRADCAM_S3_PUBLIC_ENDPOINT_URL": forwarded})
    return Client.from_env()


def test_workers_come_with_a_job_and_go_when_it_is_done_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a queue's length KEDA would stop workers at work, as what they work at has left the queue.

    A worker that is stopped in the middle all the same, since fewer are enough, gives its images back.
    """
    with slow_images() as web, pods.running(rendered := manifests(values(web)), tmp_path) as cluster:
        start_servers(cluster)
        client = client_of(cluster, monkeypatch)
        scaled = Scaled(rendered, cluster)
        assert [scaled.look() for _ in range(2)] == [0, 0]

        many = client.submit([f"{web}/{number}.jpg" for number in range(MANY)], queue="low", **SMALL)
        job = client.submit([f"{web}/{number}.jpg" for number in range(IMAGES)], queue="high", chunk_size=10, **SMALL)

        def left() -> int:
            status = client.status(job)
            return status.total - status.done - status.failed

        scaled.until(lambda: len(scaled.up) == 2, 30)
        first = scaled.up[0]
        at_work = '"committed"'
        scaled.until(lambda: all(at_work in pod.log.read_text() for pod in scaled.up) or left() < IMAGES // 2, 120)
        assert [first.probe(f"{kind}Probe") for kind in ("startup", "readiness", "liveness")] == [0, 0, 0]

        # Much less is left at once. One worker is enough, and one of two that are at work is told to end.
        client.cancel(many)
        scaled.until(lambda: len(scaled.up) == 1, 60)
        assert left() > 0, "it was to be stopped at work"
        blind = []

        def look_at_queues() -> None:
            queued = sum(client.table.redis.llen(f"{keys.QUEUE_PREFIX}{queue}") for queue in QUEUES)
            blind.append(queued == 0 and left() > 0)

        scaled.until(lambda: not scaled.up, 120, look_at_queues)
        status = client.status(job)
        assert (status.state, status.done, status.failed, status.total) == ("succeeded", IMAGES, 0, IMAGES)
        assert any(blind), "the queues were to be empty while images were in hand"
        steps = [count for count, before in zip(scaled.counts, [-1, *scaled.counts], strict=False) if count != before]
        assert steps == [0, 2, 1, 0]
        eventually(scaled.ended_by_themselves, first.grace_s)

        # Each image is recorded once, with its picture.
        results = list(client.results(job))
        assert [result.index for result in results] == list(range(IMAGES))
        assert len({key for result in results for key in result.objects.values()}) == IMAGES

        open_outside(client, job)

        # Once more from nothing.
        client.submit([f"{web}/again.jpg"], **SMALL)
        scaled.until(lambda: len(scaled.up) == 1, 15)
