"""The metrics of a machine's workers: what they count, what labels they have, and what is not there without a GPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from deploy.programs import free_ports
from producer.jobs.model import errors
from producer.jobs.model.network_names import known
from worker import metrics
from worker.supervise import run_dirs
from worker.supervise.health import Health
from worker.supervise.machine_metrics import GpuCollector, ProcessCollector
from worker.supervise.process_list import ListedProcess, publish

UUID = "GPU-5b2e7a1c-0000-0000-0000-000000000000"


@pytest.fixture(autouse=True)
def _no_labels_yet() -> None:
    metrics._labelled.cache_clear()


def written_by(program: str, folder: Path) -> dict[str, float]:
    """What a process that ran a program has written: `name{label="value"}` → value."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    subprocess.run([sys.executable, "-c", f"from worker import metrics\n{program}"], env=environment, check=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_a_commit_writes_sums_and_the_same_histogram_as_its_images_one_by_one(tmp_path: Path) -> None:
    """The sums go past the library's `observe`: an update that changes its insides shows here."""
    values = [0.0004, 0.001, 0.0011, 0.3, 0.3, 7.0, 99.0]
    together, apart = tmp_path / "together", tmp_path / "apart"
    together.mkdir()
    apart.mkdir()
    found = written_by(
        f"""
images = [{{"fetch": v, "encode": 0.002}} for v in {values}]
timings = {{"fetch": 4.5, "fetch:wait": 1.5, "explain:idle": 0.25}}
metrics.committed(timings, network="resnet50", done=4, failed={{"fetch": 2, "dancing": 1}}, images=images)
metrics.batch(7); metrics.halved(); metrics.model_loaded(0.3); metrics.model_reused()
metrics.weights_file(fetched=True); metrics.store_failed("away"); metrics.worker_fault()
""",
        together,
    )
    one_by_one = written_by(f"for v in {values}: metrics._STAGE.labels('fetch').observe(v)", apart)
    fetch = {
        name: value for name, value in found.items() if name.startswith("gradcam_stage_seconds") and "fetch" in name
    }
    assert fetch == pytest.approx(
        {name: value for name, value in one_by_one.items() if "gradcam_stage_seconds" in name}
    )
    assert fetch['gradcam_stage_seconds_bucket{le="0.001",stage="fetch"}'] == 2
    assert fetch['gradcam_stage_seconds_bucket{le="+Inf",stage="fetch"}'] == 7
    assert found['gradcam_images_total{network="resnet50",reason="",state="done"}'] == 4
    assert found['gradcam_images_total{network="resnet50",reason="fetch",state="failed"}'] == 2
    assert found['gradcam_images_total{network="resnet50",reason="other",state="failed"}'] == 1
    assert found['gradcam_stage_work_seconds_total{stage="fetch"}'] == 4.5
    assert found['gradcam_stage_wait_seconds_total{stage="fetch"}'] == 1.5
    assert found["gradcam_device_idle_seconds_total"] == 0.25
    assert found['gradcam_batch_images_bucket{le="8.0"}'] == 1
    assert found["gradcam_model_load_seconds_count"] == 1
    assert found['gradcam_weights_files_total{found="fetched"}'] == 1
    assert found['gradcam_store_errors_total{fault="away"}'] == 1
    served = {metric.series[0] for metric in metrics.METRICS if metric not in OF_THE_LAUNCHER}
    assert served == {name.partition("{")[0] for name in found} & served


@pytest.mark.parametrize("address", ["..", "x" * 64, "192.0.2.1"])
def test_metrics_cannot_be_served_at_an_address_that_is_not_of_this_machine(address: str, tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="name an address of this machine"):
        metrics.serve(tmp_path, address, 9)


def test_metrics_are_served_at_addresses_of_both_kinds_and_where_there_is_one_kind_at_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chart names `::`: a pod's address may be one of IPv6, and its node may know none."""
    dual, single = free_ports(2)
    metrics.serve(tmp_path, "::", dual)
    with monkeypatch.context() as patched:
        patched.setattr(socket, "has_dualstack_ipv6", lambda: False)
        metrics.serve(tmp_path, "::", single)
    for port in (dual, single):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            assert answer.status == 200
    with pytest.raises(OSError, match=r"."):  # refused, or there is no such address
        socket.create_connection(("::1", single), timeout=5)


OF_THE_LAUNCHER = (metrics.PROCESSES, metrics.DEATHS, metrics.GPU_USED, metrics.GPU_MEMORY, metrics.GPU_BUSY)


def test_networks_that_everybody_knows_have_a_label_and_those_that_users_name_share_one() -> None:
    assert metrics.network_label("resnet50") == "resnet50"
    assert metrics.network_label("timm/resnet50.a1_in1k") == "timm/resnet50"
    assert metrics.network_label("hf") == "hf"
    assert metrics.network_label("lungs-of-patient-7") == metrics.network_label("timm/made-up") == "own"


def test_labels_of_networks_are_bounded_however_many_jobs_name() -> None:
    labels = {metrics.network_label(name) for name in sorted(known().names)}
    assert len(labels) == 51
    assert "other" in labels
    assert metrics.network_label("timm/resnet50.a1_in1k") in labels


def test_every_reason_of_a_failure_has_a_label() -> None:
    def reasons(kind: type[Any]) -> set[str]:
        return {kind.reason}.union(*map(reasons, kind.__subclasses__()))

    assert reasons(errors.ItemError) - {"error"} <= set(metrics.REASONS)


def families(collector: Any) -> dict[str, dict[str, float]]:
    return {
        family.name: {"".join(sample.labels.values()): sample.value for sample in family.samples}
        for family in collector.collect()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with run_dirs.folder(tmp_path) as made:
        yield made.path


def test_processes_are_counted_as_the_check_finds_them(folder: Path) -> None:
    now = time.time()
    publish(
        folder,
        [ListedProcess("a", "cpu", 1, now), ListedProcess("b", "cpu", 2, now), ListedProcess("c", "cpu", None, now)],
    )
    Health(folder / "b").ready()
    Health(folder / "b").fault("the store refuses the credentials")
    found = families(ProcessCollector(folder, lambda: 3))
    states = found["gradcam_processes"]
    assert {state: count for state, count in states.items() if count} == {"starting": 1, "faulty": 1, "dead": 1}
    assert set(states) == {"starting", "idle", "working", "waiting", "faulty", "silent", "dead"}
    assert found["gradcam_process_deaths"] == {"": 3}


def test_files_that_are_gone_or_spoilt_leave_zeros(folder: Path) -> None:
    (folder / "launcher.json").write_text("{")
    assert set(families(ProcessCollector(folder, lambda: 0))["gradcam_processes"].values()) == {0}


def test_without_a_driver_nothing_is_said_of_gpus() -> None:
    """This machine has none; a worker on a CPU does not even ask."""
    assert families(GpuCollector({"gpu0": UUID})) == {}
    assert families(GpuCollector({})) == {}


def test_without_nvidias_package_nothing_is_said_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert families(GpuCollector({"gpu0": UUID})) == {}


class Driver(SimpleNamespace):
    """NVIDIA's package as far as it is called, with a GPU, a MIG instance that has no utilization, and a lost one."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__(open=0, hang=threading.Event())
        self.hang.set()

    def nvmlInit(self) -> None:
        assert self.hang.wait(10)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid == "GPU-lost":
            raise self.NVMLError
        return uuid

    def nvmlDeviceGetMemoryInfo(self, _: str) -> SimpleNamespace:
        return SimpleNamespace(total=80 * 2**30, used=2**30)

    def nvmlDeviceGetUtilizationRates(self, uuid: str) -> SimpleNamespace:
        if uuid.startswith("MIG-"):
            raise self.NVMLError
        return SimpleNamespace(gpu=87)


def test_each_gpu_that_tells_is_told_and_the_library_is_closed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    found = families(GpuCollector({"gpu0": UUID, "gpu1-mig0": "MIG-1", "gpu2": "GPU-lost"}))
    assert found == {
        "gradcam_gpu_memory_used_bytes": {"gpu0": 2**30, "gpu1-mig0": 2**30},
        "gradcam_gpu_memory_bytes": {"gpu0": 80 * 2**30, "gpu1-mig0": 80 * 2**30},
        "gradcam_gpu_utilization": {"gpu0": 0.87},
    }
    assert driver.open == 0


def test_a_driver_that_hangs_holds_up_one_question_and_no_other_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    driver.hang.clear()
    collector = GpuCollector({"gpu0": UUID})
    first = threading.Thread(target=families, args=(collector,))
    first.start()
    try:
        assert families(collector) == {}
    finally:
        driver.hang.set()
        first.join()
    assert families(collector) != {}
