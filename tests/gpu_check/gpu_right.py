"""Whether the device is right: every network against the CPU in float64, in each precision; and the `gpu` tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import gpu_adapter as adapter
import numpy as np
import torch
from gpu_part import Found, Place, Skipped
from torch import Tensor

from worker.engine.explain import Explanations

ROOT = Path(__file__).parents[2]
#: Those of the original program, then one of each newer family.
NETWORKS: Final = (
    *("vgg16", "vgg19", "resnet50", "resnet101", "densenet121", "inception_v3"),
    *("vit_b_16", "swin_t", "convnext_tiny", "efficientnet_b0"),
)
_TESTS_S: Final = 115.0
#: The least correlation of maps and guided gradients with float64. docs/gpu-check.md has what a CPU reaches.
LEAST: Final = {"fp32": 0.9999, "tf32": 0.998, "fp16": 0.998, "bf16": 0.98}
#: The largest difference of logits in fp32, as a share of the largest: a CPU has 2e-6, what rounds to 11 bits 1e-3.
_FP32_LOGITS: Final = 1e-4
#: Of how many networks random weights may leave the range of float16, in which gradients vanish and sums overflow.
_OUT_OF_RANGE: Final = 0.3


def right(place: Place) -> Found:
    """Explain noise with every network, and compare."""
    device, found, out_of_range = place.open(), Found(), list[str]()
    precisions = place.precisions()
    for name in ("squeezenet1_1", "resnet18") if place.quick else NETWORKS:
        reference = adapter.load(name, torch.device("cpu"), place.size, prepared=False)
        reference.model.double()
        shape = (2, 3, *reference.size)
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        expected = adapter.on_tensors(reference, inputs, None, "fp32")
        del reference
        network = adapter.load(name, device, place.size)
        x = inputs.float().to(device).contiguous(memory_format=torch.channels_last)
        row = found.values[name] = {
            precision: compare(adapter.on_tensors(network, x, expected.class_ids, precision), expected)
            for precision in precisions
        }
        for precision, each in row.items():
            fault = fault_of(precision, each)
            found.lines.append(_line(name, precision, each) + (f"; {fault}" if fault else ""))
            if fault and precision == "fp16":
                out_of_range.append(name)
            elif fault:
                found.wrong.append(f"{name} in {precision}: {fault}")
        if "tf32" in row and row["tf32"]["logits_differ"] < _FP32_LOGITS:
            found.wrong.append(f"{name} in tf32: its logits are as exact as fp32's, so TF32 was not used")
    if len(out_of_range) > _OUT_OF_RANGE * len(found.values):
        found.wrong.append(f"in fp16 too many networks are far from float64: {', '.join(out_of_range)}")
    return found


def fault_of(precision: str, each: dict[str, Any]) -> str:
    """What is wrong with a comparison in that precision; nothing is the empty string."""
    if not min(each["map"], each["guided"]) > LEAST[precision]:
        return f"correlation below {LEAST[precision]}"
    if precision == "fp32" and not each["logits_differ"] < _FP32_LOGITS:
        return f"logits differ by more than {_FP32_LOGITS:.0e}, so this is not fp32"
    return ""


def compare(answer: Explanations, expected: Explanations) -> dict[str, Any]:
    """Correlation, and largest difference relative to the largest value, of map, guided gradient and logits."""
    pairs = {
        "map": (answer.maps[0], expected.maps[0]),
        "guided": (answer.guided, expected.guided),
        "logits": (answer.logits, expected.logits),
    }
    values: dict[str, Any] = {}
    for name, (got, right) in pairs.items():
        got, right = got.cpu().double(), right.cpu().double()  # noqa: PLW2901
        values[name] = correlation(got, right)
        values[f"{name}_differ"] = float((got - right).abs().max() / right.abs().max().clamp(min=1e-300))
    values["same_class"] = bool((answer.logits.cpu().argmax(1) == expected.logits.argmax(1)).all())
    return values


def correlation(got: Tensor, right: Tensor) -> float:
    """Of all values of a batch; 1 where both are constant."""
    a, b = (each.flatten().double().numpy() for each in (got, right))
    if a.std() == 0 or b.std() == 0:
        return float(a.std() == b.std())
    return float(np.corrcoef(a, b)[0, 1])


def _line(name: str, precision: str, each: dict[str, Any]) -> str:
    return (
        f"{name:<18}{precision:<6}correlation: map {each['map']:.6f}, guided {each['guided']:.6f}; "
        f"largest difference: map {each['map_differ']:.0e}, guided {each['guided_differ']:.0e}, "
        f"logits {each['logits_differ']:.0e}{'' if each['same_class'] else '; another class'}"
    )


def tests(place: Place) -> Found:
    """Run the tests that need a GPU, without the servers that others need."""
    if place.quick:
        raise Skipped("a quick check leaves the tests to pytest")
    if subprocess.run([sys.executable, "-c", "import pytest"], capture_output=True, check=False).returncode:
        raise Skipped("pytest is not installed: `pip install pytest`")
    # Not the project's settings: they need plugins, and fixtures need servers.
    command = [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(ROOT)]
    command += ["--noconftest", "-p", "no:cacheprovider", "-o", "markers=gpu: needs a CUDA device", "-rs"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command.append("tests/gpu")
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=_TESTS_S
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", lines[-1])}
    found = Found(dict(counts), [lines[-1].strip("= ")])
    if done.returncode:
        found.wrong = [line for line in lines if line.startswith(("FAILED", "ERROR"))] or [lines[-1]]
    return found
