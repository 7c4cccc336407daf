"""A real Prometheus scrapes a real exporter and real workers, and each alert fires because what it warns of is caused.

The rules are those of `deploy/monitoring/alerts.yml`; only their times are shorter. `promtool` checks them with the
times that are written there: `tests/unit/test_monitoring_files.py`. The tests stand in an order: each leaves the stack
as the next one needs it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import redis
import s3_servers
import yaml
from exporters import serving
from stacks import SMALL, eventually, own_stack

from deploy.programs import Program, free_ports
from deploy.stack import Worker
from producer.client.client import Client
from producer.jobs.model.items import Chunk, uri_line
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import JobState

if TYPE_CHECKING:
    from fault_proxy import HttpFaultProxy

    from deploy.stack import Stack

PROMETHEUS = shutil.which("prometheus")
pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: prometheus)")
MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
#: In the place of minutes.
WINDOW_S = 8


@dataclass(frozen=True)
class Scene:
    """What runs."""

    stack: Stack
    client: Client
    #: Between workers and S3.
    store: HttpFaultProxy
    prometheus: str
    #: Where Prometheus looks for an exporter, and for another one.
    ports: tuple[int, int]

    def ask(self, path: str, **query: str) -> Any:
        address = f"{self.prometheus}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)["data"]

    def firing(self, name: str) -> list[dict[str, str]]:
        """The labels of the alerts of that name that fire now."""
        alerts = self.ask("alerts")["alerts"]
        return [one["labels"] for one in alerts if one["labels"]["alertname"] == name and one["state"] == "firing"]

    def fires(self, name: str, **labels: str) -> None:
        """Wait until an alert fires."""
        eventually(lambda: any(labels.items() <= found.items() for found in self.firing(name)), every_s=0.2)

    def ends(self, name: str) -> None:
        """Wait until an alert is over."""
        eventually(lambda: not self.firing(name), every_s=0.2)


def shortened(rules: str) -> str:
    """The same rules, with seconds for minutes."""
    quick, count = re.subn(r"\bfor: \d+m", "for: 0s", rules)
    quick, windows = re.subn(r"\[\d+m\]", f"[{WINDOW_S}s]", quick)
    quick, stalls = re.subn(r"> 900\b", "> 3", quick)
    assert (count, windows, stalls) == (len(re.findall("alert:", rules)), 8, 1), "something else is in alerts.yml now"
    return quick


@contextmanager
def prometheus_of(folder: Path, jobs: dict[str, list[int]]) -> Iterator[str]:
    """Prometheus with our rules; its address."""
    (port,) = free_ports(1)
    (folder / "alerts.yml").write_text(shortened((MONITORING / "alerts.yml").read_text()))
    configuration = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": ["alerts.yml"],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{target}" for target in targets]}]}
            for job, targets in jobs.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    program = Program("prometheus", folder / "prometheus.log")
    command = [
        *(str(PROMETHEUS), "--config.file=prometheus.yml", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"),
    ]
    program.launch(command, {"PATH": os.environ["PATH"], "GOMAXPROCS": "1"}, folder)
    address = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert program.alive, program.log_tail()
        try:
            with urllib.request.urlopen(f"{address}/-/ready", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False

    try:
        eventually(ready)
        yield address
    finally:
        program.stop()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Prometheus, one worker that reads two priorities, and no exporter yet."""
    with ExitStack() as held:
        stack = held.enter_context(own_stack(tmp_path_factory.mktemp("alerts")))
        store = held.enter_context(s3_servers.proxied(stack.s3))
        exporter, other, of_worker = free_ports(3)
        environment = {**stack.environment(), "GRADCAM_S3_ENDPOINT_URL": f"http://127.0.0.1:{store.port}"}
        options = ["--metrics-port", str(of_worker), "--queues", "default,low"]
        log = stack.directory / "worker.log"
        stack.worker = Worker(log, environment, processes=1, devices="cpu", options=options)
        stack.worker.start()
        folder = tmp_path_factory.mktemp("prometheus")
        prometheus = held.enter_context(
            prometheus_of(folder, {"gradcam": [exporter, other], "gradcam-worker": [of_worker]})
        )
        yield Scene(stack, Client.from_env(), store, prometheus, (exporter, other))


@pytest.fixture(scope="module")
def watched(scene: Scene) -> Iterator[Scene]:
    """The same with an exporter, and a worker that is ready."""
    with serving(0.2, port=scene.ports[0]):
        eventually(lambda: scene.ask("query", query='gradcam_workers{state="ready"} > 0')["result"], every_s=0.2)
        yield scene


def one_chunk(client: Client, job: str, queue: str) -> JobSpec:
    """A job of one chunk, of which no message tells."""
    spec = JobSpec(queue=queue, network="squeezenet1_1", weights="random", chunk_size=2, store=client.storage.place)
    client.table.create(job, spec, lifetime_s=60)
    client.table.add_chunk(job, Chunk.compress(0, [uri_line("s3://b/1.jpg"), uri_line("s3://b/2.jpg")]))
    client.table.close(job, chunks=1, items=2)
    return spec


def test_metrics_that_nobody_serves_are_missed(scene: Scene) -> None:
    """First of all, while no exporter runs."""
    scene.fires("GradcamMetricsMissing")


def test_nothing_fires_where_nothing_is_wrong(watched: Scene) -> None:
    watched.ends("GradcamMetricsMissing")
    time.sleep(1.5)
    assert watched.ask("alerts")["alerts"] == []


def test_a_redis_that_does_not_answer_fires(watched: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADCAM_REDIS_URL", "redis://127.0.0.1:1/0")
    with serving(0.2, port=watched.ports[1]):
        watched.fires("GradcamRedisAway", instance=f"127.0.0.1:{watched.ports[1]}")


def test_a_redis_that_fills_fires(watched: Scene) -> None:
    with closing(redis.Redis.from_url(watched.stack.redis.url)) as client:
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.25))
        try:
            watched.fires("GradcamRedisMemory")
        finally:
            client.config_set("maxmemory", 2**30)  # a limit far away
    watched.ends("GradcamRedisMemory")


def test_a_job_whose_chunk_is_held_by_one_who_does_nothing_fires(watched: Scene) -> None:
    spec = one_chunk(watched.client, "held", "low")
    assert watched.client.table.claim("held", 0, spec, claim_id="nobody", lease_s=600)
    watched.fires("GradcamJobStuck", priority="low")
    watched.client.cancel("held")
    watched.ends("GradcamJobStuck")


def test_a_priority_that_nobody_reads_fires(watched: Scene) -> None:
    one_chunk(watched.client, "urgent", "high")
    watched.fires("GradcamNoWorker", priority="high")
    watched.client.cancel("urgent")
    watched.ends("GradcamNoWorker")


def test_images_that_fail_fire(watched: Scene, tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02d}.jpg").write_bytes(b"this is no image")
    query = 'gradcam_images_total{network="squeezenet1_1",state="failed",reason="image"} > 0'
    # A counter that comes up at 40 has not grown, in Prometheus' eyes: the second job is what it sees.
    for _ in range(2):
        job = watched.client.submit(sorted(tmp_path.iterdir()), **SMALL)
        assert watched.client.wait(job, timeout_s=120).state is JobState.COMPLETED_WITH_ERRORS
        eventually(lambda: watched.ask("query", query=query)["result"], every_s=0.2)
    watched.fires("GradcamErrorRate", network="squeezenet1_1")


def test_a_store_that_refuses_fires_for_the_store_and_for_the_worker_and_is_over_when_it_works_again(
    watched: Scene, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    for number in range(12):
        cv2.imwrite(str(tmp_path / f"{number:02d}.jpg"), random.integers(0, 255, (64, 64, 3), np.uint8))
    watched.store.answer_errors(403, "InvalidAccessKeyId")
    job = watched.client.submit(sorted(tmp_path.iterdir()), **SMALL)
    watched.fires("GradcamStoreErrors")
    watched.fires("GradcamWorkerFaulty", state="faulty")
    assert any("instance" in labels for labels in watched.firing("GradcamWorkerFaulty"))
    watched.store.passing()
    assert watched.client.wait(job, timeout_s=120).done == 12
    watched.ends("GradcamWorkerFaulty")
    watched.ends("GradcamStoreErrors")


def test_a_store_that_denies_writes_fires_while_reads_go_on(watched: Scene, tmp_path: Path) -> None:
    """The job fails as soon as its only worker was denied: what lasts for minutes would never see it."""
    cv2.imwrite(str(tmp_path / "one.jpg"), np.zeros((64, 64, 3), np.uint8))
    watched.store.answer_errors(403, "AccessDenied", only=lambda method, _: method == "PUT")
    job = watched.client.submit([tmp_path / "one.jpg"], **SMALL)
    assert watched.client.wait(job, timeout_s=120).state is JobState.FAILED
    watched.fires("GradcamStoreDenied")
    watched.store.passing()
    watched.ends("GradcamStoreDenied")


def expressions(files: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """Every query of the dashboard and of the alerts, and where it stands."""
    for panel in json.loads(files("grafana/dashboard.json"))["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], re.sub(r"\$(namespace|job)\b", ".*", target["expr"]).replace("$__rate_interval", "5m")
    for rule in yaml.safe_load(files("alerts.yml"))["groups"][0]["rules"]:
        yield rule["alert"], rule["expr"]


def test_every_query_of_the_dashboard_has_an_answer_and_every_name_in_it_is_served(watched: Scene) -> None:
    """All but what a GPU's driver tells: there is none here."""
    served = set(watched.ask("label/__name__/values"))
    unanswered = set()
    for where, expr in expressions(lambda name: (MONITORING / name).read_text()):
        found = watched.ask("query", query=expr)["result"]
        names = set(re.findall(r"\bgradcam_\w+", expr))
        assert {name for name in names - served if not name.startswith("gradcam_gpu_")} == set(), where
        if not found and not where.startswith("Gradcam"):
            unanswered.add(where)
    assert unanswered == {"GPU utilization", "GPU memory"}


def test_lost_work_that_nobody_hands_out_fires(watched: Scene) -> None:
    """The last test: no worker is left, which hands out lost work."""
    assert watched.stack.worker is not None
    watched.stack.worker.stop()
    spec = one_chunk(watched.client, "lost", "default")
    assert watched.client.table.claim("lost", 0, spec, claim_id="dead", lease_s=0.1)
    watched.fires("GradcamChunksOverdue", priority="default")
    watched.fires("GradcamNoWorker", priority="default")
