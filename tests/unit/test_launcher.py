from __future__ import annotations

import os
from pathlib import Path

import pytest

from producer.jobs.errors import UsageError, WorkerError
from worker.launcher import command, environment, plan


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that answers as the driver's tool does; what it says is what the launcher goes by."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho GPU-aaaa\necho GPU-bbbb\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("two_gpus")
def test_auto_starts_one_process_a_gpu_pinned_by_its_uuid() -> None:
    assert [(slot.device, slot.visible, slot.name[-6:]) for slot in plan("auto", 1)] == [
        ("cuda", "GPU-aaaa", "gpu0-0"),
        ("cuda", "GPU-bbbb", "gpu1-0"),
    ]


@pytest.mark.usefixtures("two_gpus")
def test_gpus_can_be_chosen_by_number() -> None:
    assert [slot.visible for slot in plan("cuda:1", 2)] == ["GPU-bbbb", "GPU-bbbb"]


@pytest.mark.usefixtures("two_gpus")
def test_a_choice_made_outside_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [slot.visible for slot in plan("auto", 1)] == ["GPU-bbbb"]


@pytest.mark.usefixtures("no_gpu")
def test_auto_without_a_gpu_is_the_cpu_and_its_cores_are_shared_out() -> None:
    cores = len(os.sched_getaffinity(0))
    slots = plan("auto", 2)
    assert [(slot.device, slot.visible) for slot in slots] == [("cpu", ""), ("cpu", "")]
    assert sum(slot.threads for slot in slots) <= max(cores, 2)


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(WorkerError, match="there is no GPU"):
        plan("cuda", 1)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("devices", "error"), [("cuda:2", WorkerError), ("cuda:x", UsageError), ("gpu", UsageError), ("", UsageError)]
)
def test_devices_that_cannot_be_are_refused(devices: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        plan(devices, 1)


@pytest.mark.usefixtures("two_gpus")
def test_a_process_sees_its_device_and_no_secret_stands_in_its_command(tmp_path: Path) -> None:
    slot = plan("cuda:1", 1)[0]
    made = environment(slot, tmp_path / "drain", {"GRADCAM_REDIS_URL": "redis://:hunter2@localhost", "A": "b"})
    assert made["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb"
    assert made["GRADCAM_WORKER_DEVICE"] == "cuda"
    assert made["OMP_NUM_THREADS"] == str(slot.threads)
    assert made["A"] == "b"
    assert "hunter2" not in " ".join(command(slot, ("high", "low")))
