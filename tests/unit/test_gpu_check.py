"""`make gpu-check` runs on a CPU, with small networks: whoever has a GPU gets a program that works."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
#: A worker needs them, and the check must not.
EXTRAS = ("boto3", "celery", "kombu", "prometheus_client", "pydantic", "redis", "safetensors", "simplejpeg", "captum")
WITHOUT = f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS!r}))\n"


@pytest.fixture(scope="module")
def gpu_right() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("bench", "gpu_check"):
            patch.syspath_prepend(ROOT / "tests" / folder)
        yield importlib.import_module("gpu_right")


def checked(tmp_path: Path, *options: str, path: str = "", code: int = 0) -> tuple[dict[str, Any], str]:
    """Run the check and give its report, and what it printed."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-W", "ignore", "tests/gpu_check/gpu_check.py", "--quick", "--json", str(report)]
    run = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=False, timeout=120, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f".:tests/bench{path}"},
    )  # fmt: skip
    assert run.returncode == code, run.stdout + run.stderr
    return json.loads(report.read_text()) if report.exists() else {}, run.stdout + run.stderr


def test_all_that_a_cpu_can_do_runs_with_torch_torchvision_opencv_and_numpy_alone(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    report, said = checked(tmp_path, "--device", "cpu", path=f":{tmp_path}")
    parts = report["parts"]
    assert report["right"]
    assert {name for name, part in parts.items() if part["state"] == "skipped"} == {"tests", "full-memory", "fused"}
    assert {part["state"] for part in parts.values()} == {"right", "skipped"}
    values = {name: part.get("values", {}) for name, part in parts.items()}
    assert values["machine"]["torch"] == torch.__version__
    assert values["machine"]["precisions"] == ["fp32", "bf16"]
    for row in values["right"].values():
        assert row["fp32"]["logits_differ"] < 1e-5 < row["bf16"]["logits_differ"]
    assert values["batch-size"]["found"] in (4, 8)
    assert values["memory"]["peak_bytes"] > values["memory"]["before_bytes"]
    assert set(values["processes"]) == {"1", "2"}
    assert values["graphs"]["1"]["alike"] > 0.9999
    assert set(values["host"]) == {"fit", "draw", "encode", "together"}
    assert "simplejpeg (decoding)" in said
    assert "captum" not in values["speed"]
    assert "needs simplejpeg, `pip install simplejpeg`" in said


def test_what_is_installed_is_measured_too(tmp_path: Path) -> None:
    check = f"--device cpu --quick --only host,speed --json {tmp_path}/report"
    run = subprocess.run(
        ["make", "gpu-check", f"PYTHON={sys.executable}", f"CHECK={check}"],
        capture_output=True, text=True, check=False, timeout=120, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    parts = json.loads((tmp_path / "report").read_text())["parts"]
    assert "decode" in parts["host"]["values"]
    for team in ("ours fp32", "ours bf16", "pytorch-grad-cam", "captum"):
        assert all(images_per_s > 0 for images_per_s in parts["speed"]["values"][team].values())


def test_a_part_that_fails_dies_or_hangs_is_told_and_the_others_go_on() -> None:
    program = """if True:
        import json, os, time
        import gpu_check
        from gpu_part import Found, Place, Skipped

        def fails(place): raise RuntimeError("the device is on fire\\nand more")
        def dies(place): os._exit(3)
        def hangs(place): time.sleep(60)
        def skipped(place): raise Skipped("nothing here")
        def wrong(place): return Found({"x": 1}, ["x is 1"], ["x should be 2"])

        parts = (fails, dies, hangs, skipped, wrong)
        print(json.dumps([gpu_check.run(part, Place("cpu", True), 1.0) for part in parts]))
    """
    path = f"{ROOT}:{ROOT}/tests/gpu_check:{ROOT}/tests/bench"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True, timeout=60,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    fails, dies, hangs, skipped, wrong = json.loads(run.stdout)
    assert (fails["state"], fails["why"]) == ("failed", "RuntimeError: the device is on fire")
    assert (dies["state"], dies["why"]) == ("failed", "its process ended by itself, exit code 3")
    assert (hangs["state"], hangs["why"]) == ("failed", "not ended after 1 s")
    assert (skipped["state"], skipped["why"]) == ("skipped", "nothing here")
    assert (wrong["state"], wrong["wrong"]) == ("wrong", ["x should be 2"])


def test_what_cannot_be_checked_is_a_sentence(tmp_path: Path) -> None:
    _, said = checked(tmp_path, "--device", "cpu", "--only", "colour", code=2)
    assert "no part is called 'colour'; there are machine, right" in said
    if not torch.cuda.is_available():
        _, said = checked(tmp_path, code=2)
        assert "torch sees no CUDA device; look at `nvidia-smi`" in said


def _rounded(values: torch.Tensor) -> torch.Tensor:
    """To the 11 bits that TF32 reads of a float32."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def test_fp32_that_is_tf32_in_truth_is_found_out(gpu_right: ModuleType) -> None:
    """torch's own default on newer GPUs; correlations hardly show it."""
    import gpu_adapter as adapter

    network, rounded = (adapter.load("resnet18", torch.device("cpu"), (64, 64)) for _ in range(2))
    reference = adapter.load("resnet18", torch.device("cpu"), (64, 64), prepared=False)
    for parameter in rounded.model.parameters():
        parameter.data = _rounded(parameter.data)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    reference.model.double()
    right = adapter.on_tensors(reference, x.double(), None, "fp32")
    full, tf32 = (
        gpu_right.compare(adapter.on_tensors(each, x, right.class_ids, "fp32"), right) for each in (network, rounded)
    )
    assert gpu_right.fault_of("fp32", full) == ""
    assert "this is not fp32" in gpu_right.fault_of("fp32", tf32)
    assert gpu_right.fault_of("tf32", tf32) == ""


def test_time_in_which_kernels_run_beside_each_other_counts_once(gpu_right: ModuleType) -> None:
    from gpu_speed import union

    assert union([(0, 4), (1, 2), (3, 6), (8, 9)]) == 7
    assert union([]) == 0
