from __future__ import annotations

import functools
import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "cv2", "numpy", "boto3", "celery", "kombu", "obstore", "redis", "pydantic", "rich")


def loaded_by(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return set(run.stdout.splitlines()[-1].split()) if run.stdout.strip() else set()


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"], ["results", "--help"]])
def test_help_of_the_producer_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"from deploy.commands import cli\ntry:\n    cli({arguments})\nexcept SystemExit:\n    pass"
    assert loaded_by(code) == set()


def test_help_of_submit_loads_the_models_of_its_options_and_nothing_else_that_is_heavy() -> None:
    code = "from deploy.commands import cli\ntry:\n    cli(['submit', '--help'])\nexcept SystemExit:\n    pass"
    assert loaded_by(code) == {"pydantic"}


def test_the_client_needs_no_torch_numpy_or_opencv_and_celery_only_to_submit() -> None:
    assert not loaded_by("import producer.client.client") & {"torch", "cv2", "numpy", "celery", "obstore"}


def test_the_public_module_is_as_light_as_the_client() -> None:
    assert loaded_by("import gradcam_queue") == loaded_by("import producer.client.client")


def test_a_probe_loads_nothing_heavy() -> None:
    """It runs every few seconds, beside work that needs the processor."""
    code = "from worker.commands import cli\ntry:\n    cli(['check'])\nexcept SystemExit:\n    pass"
    assert loaded_by(f"import os\nos.environ['GRADCAM_WORKER_RUN_DIR'] = '/nowhere'\n{code}") == set()


@functools.cache
def of_a_worker() -> dict[str, object]:
    """What a worker's child process has imported: torch takes seconds."""
    program = (
        "import json, sys, worker.child, producer.client.client, cv2\n"
        "traces = 'producer.jobs.tracing.otlp' in sys.modules\n"
        "print(json.dumps({'threads': cv2.getNumThreads(), 'traces': traces}))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    found: dict[str, object] = json.loads(run.stdout)
    return found


def test_a_worker_draws_and_decodes_without_threads_of_opencv() -> None:
    assert of_a_worker()["threads"] == 1


def test_nothing_of_ours_imports_opentelemetry_while_traces_are_off() -> None:
    """redis-py imports its metrics wherever they are installed, so that looking for the package would not do."""
    assert of_a_worker()["traces"] is False


def test_a_child_starts_without_the_compiler_of_torch_until_it_is_asked_something() -> None:
    """RoI align asks it, in detectors; the answer is the compiler's own. timm has wishes that bind nobody."""
    program = """
import sys, worker.child
from importlib import import_module
import torch
from worker.models.architectures import find
disable = torch.compiler.disable
find("timm/tf_efficientnet_lite0", None).build(5)(torch.zeros(2, 3, 64, 64))
print("torchvision" in sys.modules, "torch._dynamo" in sys.modules, torch.compiler.disable is disable)
asked = import_module("torchvision.ops.roi_align").is_compile_supported
answers = [asked(device) for device in ("cpu", "cuda")]
from torch._dynamo import utils
print(answers == [utils.is_compile_supported(device) for device in ("cpu", "cuda")])
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.split() == ["True", "False", "True", "True"]


def test_threads_that_import_timm_at_once_leave_torch_as_it_was() -> None:
    """The second one kept the first one's stand-in for `torch.compiler.disable`, and put it back for good."""
    program = """
import threading, torch
from worker.models.vision import import_timm
disable = torch.compiler.disable
threads = [threading.Thread(target=import_timm) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(torch.compiler.disable is disable)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout == "True\n"


@pytest.mark.parametrize("module", ["worker.supervise.launcher", "worker.tasks", "worker.recover.reconciler"])
def test_the_workers_main_process_stays_free_of_torch(module: str) -> None:
    assert not loaded_by(f"import {module}") & {"torch", "cv2"}


def test_what_was_typed_is_told_before_settings_that_are_missing() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "producer.cli", "submit", "nonsense"],
        capture_output=True, text=True, check=False, timeout=60, env={},
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.startswith("Error: 'nonsense' is neither a file nor a folder")
