from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from producer.jobs.model.errors import UsageError, WorkerError
from worker.supervise.gpus import find_gpus, installed

#: As the driver's tool prints it, an A100 with two instances between two whole GPUs.
LISTED = """\
GPU 0: NVIDIA L4 (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-c6d4f1ef-42e4-7de3-91c7-45d71c87eb3f)
  MIG 3g.20gb     Device  0: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)
  MIG 1c.3g.20gb  Device  1: (UUID: MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d)
GPU 2: NVIDIA L4 (UUID: GPU-5d111111-0000-0000-0000-000000000000)
"""
FIRST, SECOND, THIRD = "GPU-5d5ba0d6", "GPU-c6d4f1ef", "GPU-5d111111"
INSTANCES = ["MIG-c7384736", "MIG-a28ad590"]

Smi = Callable[[str], None]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """Put a program on the path that stands for the driver's tool of a machine which we have not."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(script: str) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)

    put(f"[ \"$*\" = -L ] || exit 1\ncat <<'END'\n{LISTED}END")
    return put


def chosen(devices: str) -> list[str]:
    return [place.uuid[:12] for place in find_gpus(devices)]


@pytest.mark.usefixtures("smi")
def test_a_divided_gpu_is_used_by_its_instances() -> None:
    assert chosen("auto") == [FIRST, *INSTANCES, THIRD]
    assert [place.name for place in find_gpus("cuda")] == ["gpu0", "gpu1-mig0", "gpu1-mig1", "gpu2"]


@pytest.mark.usefixtures("smi")
def test_gpus_and_instances_are_chosen_by_number() -> None:
    assert chosen("cuda:2,0") == [THIRD, FIRST]
    assert chosen("cuda:1") == INSTANCES
    assert chosen("cuda:1.1") == [INSTANCES[1]]
    assert chosen("cuda:1.1,1,0,0") == [INSTANCES[1], INSTANCES[0], FIRST]


def test_instances_of_an_old_driver_have_names_with_their_gpus(smi: Smi) -> None:
    smi("echo 'GPU 0: A100 (UUID: GPU-aa)'; echo '  MIG 1g.5gb Device 0: (UUID: MIG-GPU-aa/7/0)'")
    assert chosen("auto") == ["MIG-GPU-aa/7"]


@pytest.mark.usefixtures("smi")
@pytest.mark.parametrize(
    ("visible", "kept"),
    [
        ("2,0", [THIRD, FIRST]),
        (f"{SECOND}", INSTANCES),
        (f"{INSTANCES[1]},2", [INSTANCES[1], THIRD]),
        ("1, 1", INSTANCES),
        ("0,-1,2", [FIRST]),
        ("-1", []),
        ("NoDevFiles", []),
        ("", []),
    ],
)
def test_a_choice_made_outside_is_kept(monkeypatch: pytest.MonkeyPatch, visible: str, kept: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert chosen("auto") == kept


@pytest.mark.usefixtures("smi")
def test_numbers_count_what_was_left_and_names_say_which_gpu_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{THIRD},{INSTANCES[1]}")
    assert [place.name for place in find_gpus("cuda:0")] == ["gpu2"]
    assert [place.name for place in find_gpus("cuda:1.1")] == ["gpu1-mig1"]
    with pytest.raises(WorkerError, match="no MIG instance 0"):
        find_gpus("cuda:1.0")


@pytest.mark.usefixtures("smi")
@pytest.mark.parametrize("visible", ["3", "GPU-0000", "MIG-0000", "GPU-5d", "nonsense"])
def test_a_choice_made_outside_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    """`GPU-5d` is the beginning of two."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(WorkerError, match=f"CUDA_VISIBLE_DEVICES names '{visible}', which `nvidia-smi -L` does not"):
        find_gpus("auto")


@pytest.mark.usefixtures("smi")
@pytest.mark.parametrize("devices", ["cuda:x", "cuda:", "cuda:0,", "cuda:0.", "cuda:-1", "gpu", "auto:0", ""])
def test_devices_written_wrong_are_refused(devices: str) -> None:
    with pytest.raises(UsageError, match="is not understood"):
        find_gpus(devices)


@pytest.mark.usefixtures("smi")
@pytest.mark.parametrize(
    ("devices", "sentence"), [("cuda:3", "there is no GPU 3"), ("cuda:0.1", "GPU 0 has no MIG instance 1")]
)
def test_a_gpu_that_is_not_there_is_one_sentence(devices: str, sentence: str) -> None:
    with pytest.raises(WorkerError, match=sentence):
        find_gpus(devices)


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", "")
    assert find_gpus("auto") == []
    with pytest.raises(WorkerError, match="there is no GPU"):
        find_gpus("cuda:0")


def test_a_driver_without_gpus_leaves_the_cpu(smi: Smi) -> None:
    smi("echo No devices found.")
    assert find_gpus("auto") == []


@pytest.mark.parametrize("devices", ["auto", "cuda", "cuda:0"])
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo NVIDIA-SMI has failed because it could not talk to the driver; exit 9", "could not talk to the driver"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch' >&2", "version mismatch"),
    ],
)
def test_a_broken_driver_is_one_sentence_and_never_the_cpu(smi: Smi, script: str, said: str, devices: str) -> None:
    smi(script)
    with pytest.raises(WorkerError, match=f"use --devices cpu.*{said}") as broken:
        find_gpus(devices)
    assert "\n" not in str(broken.value)
    assert find_gpus("cpu") == []


def test_a_driver_that_hangs_is_not_waited_for(smi: Smi) -> None:
    smi("sleep 30")
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"gave no answer within 0\.2 s"):
        installed(within_s=0.2)
    assert time.monotonic() - started < 10


def test_a_tool_that_cannot_be_run_is_one_sentence(smi: Smi, tmp_path: Path) -> None:
    smi("")
    (tmp_path / "nvidia-smi").write_bytes(b"\x7fELF, and no program")
    with pytest.raises(WorkerError, match="cannot be run"):
        find_gpus("auto")
