"""The chart's trial, run as processes, and scaled by what KEDA and Kubernetes make of its ScaledObject.

Servers, exporter, workers, probes and the bucket's job are the commands of the rendered manifests. Workers are started and
stopped as Kubernetes does: SIGTERM, whatever they have in hand.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pods
import pytest
from autoscaler import Autoscaler
from charts import VALUES, find, manifests, merged
from stacks import eventually

from producer.client.client import Client
from producer.jobs.model import keys

#: What makes a worker's speed here is this, and no core: eight threads fetch at a time.
FETCH_S = 0.4
IMAGES = 400
#: The chart's `hours`, of seconds; and the time between two looks.
WANTED_S = 16
LOOK_EVERY_S = 1.0

pytestmark = pytest.mark.skipif(not pods.hosts_can_be_named(), reason="a pod has a name of its own, which root alone gives here")


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


@dataclass
class Workers:
    """The Deployment's pods: as many as it is told."""

    cluster: pods.Cluster
    up: list[pods.Pod] = field(default_factory=list)
    down: list[pods.Pod] = field(default_factory=list)

    def be(self, replicas: int) -> None:
        """Start what is missing, and end what is too much."""
        while len(self.up) < replicas:
            pod = self.cluster.pod("Deployment", "-worker")
            pod.start()
            self.up.append(pod)
        while len(self.up) > replicas:
            # Which one Kubernetes takes is not ours to say: here the first, which has been at work for longest.
            pod = self.up.pop(0)
            pod.terminate()
            self.down.append(pod)

    def ended(self) -> bool:
        """Whether all that were told to end have, by themselves."""
        return all(pod.process is not None and pod.process.poll() == 0 for pod in self.down)


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
    worker = {"env": {"GRADCAM_WORKER_ALLOW_HOSTS": web.removeprefix("http://"), "GRADCAM_WORKER_COMMIT_EVERY_S": "0.5"}}
    return merged(VALUES["trial"], {"keda": keda, "worker": worker})


def test_workers_come_with_a_job_and_go_when_it_is_done_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KEDA on a queue's length stops workers that are at work, as their work has left the queue. On what is left it does not.

    A worker that is stopped in the middle all the same, since less is left to do, gives its images back.
    """
    with slow_images() as web, pods.running(rendered := manifests(values(web)), tmp_path) as cluster:
        servers = [cluster.pod("StatefulSet", name) for name in ("-valkey", "-s3")]
        for server in servers:
            server.start()
        bucket = cluster.pod("Job", "-bucket-1")
        bucket.start()
        exporter = cluster.pod("Deployment", "-exporter")
        exporter.start()
        eventually(lambda: exporter.probe("readinessProbe") == 0 and exporter.probe("livenessProbe") == 0)
        eventually(lambda: servers[1].probe("readinessProbe") == 0)
        assert bucket.process is not None
        assert bucket.process.wait(60) == 0, bucket.log_tail()

        for name in [name for name in os.environ if name.startswith(("GRADCAM_", "AWS_")) and "_TEST_" not in name]:
            monkeypatch.delenv(name)
        for name, value in cluster.pod("Deployment", "-client").environment.items():
            if name.startswith(("GRADCAM_", "AWS_")):
                monkeypatch.setenv(name, value)
        client = Client.from_env()
        redis = client.table.redis
        scaled = find(rendered, "ScaledObject", "-worker")["spec"]
        [trigger] = scaled["triggers"]
        url, place = cluster.addressed(trigger["metadata"]["url"]), trigger["metadata"]["valueLocation"]

        def asked() -> float | None:
            found = pods.fetch(url)
            return None if found is None else float(found[place])

        keda = Autoscaler(scaled, asked, time.monotonic)
        workers = Workers(cluster)
        counts, blind, stopped_at_work = [], False, False

        def look() -> int:
            nonlocal blind, stopped_at_work
            keda.poll()
            keda.sync()
            left = client.status(job) if job else None
            open_images = left.total - left.done - left.failed if left else 0
            stopped_at_work = stopped_at_work or (0 < keda.replicas < len(workers.up) and open_images > 0)
            workers.be(keda.replicas)
            queued = sum(redis.llen(keys.QUEUE_PREFIX + queue) for queue in ("recovery", "high", "default", "low"))
            blind = blind or (queued == 0 and open_images > 0 and bool(workers.up))
            counts.append(keda.replicas)
            return keda.replicas

        job = ""
        assert [look() for _ in range(2)] == [0, 0]
        job = client.submit(
            [f"{web}/{number}.jpg" for number in range(IMAGES)],
            network="squeezenet1_1", weight_path="random", outputs=["cam"], class_id=1, chunk_size=20,
        )  # fmt: skip

        def until(condition: Any, within_s: float) -> None:
            deadline = time.monotonic() + within_s
            while not condition():
                assert time.monotonic() < deadline, f"{counts}\n" + "\n".join(pod.log_tail() for pod in workers.up)
                look()
                time.sleep(LOOK_EVERY_S)

        until(lambda: max(counts) == 2, 30)
        first = workers.up[0]
        until(lambda: first.probe("startupProbe") == 0, 30)
        assert first.probe("readinessProbe") == first.probe("livenessProbe") == 0
        until(lambda: keda.replicas == 0, 120)
        status = client.status(job)
        assert (status.state, status.done, status.failed, status.total) == ("succeeded", IMAGES, 0, IMAGES)
        eventually(workers.ended, 45)

        # Each image is recorded once, with its picture.
        results = list(client.results(job))
        assert [result.index for result in results] == list(range(IMAGES))
        assert len({key for result in results for key in result.objects.values()}) == IMAGES
        assert stopped_at_work, f"a worker was to be stopped in the middle: {counts}"
        assert blind, "the queues were to be empty while images were in hand"
        assert counts[-1] == 0
        assert set(counts) == {0, 1, 2}
        # And once more from nothing.
        again = client.submit([f"{web}/again.jpg"], network="squeezenet1_1", weight_path="random", outputs=["cam"])
        eventually(lambda: (keda.poll(), keda.replicas)[1] == 1, 15, 0.5)
        assert client.status(again).done == 0
