"""Whether a GPU gives the right explanations, and how fast: `make gpu-check`; docs/gpu-check.md explains each line.

    PYTHONPATH=.:tests/bench python tests/gpu_check/gpu_check.py [--device cpu] [--json FILE] [--only right,speed]

Needs torch, torchvision, OpenCV and NumPy; no server, no network. What needs more is left out and says so. Each part
runs in a process of its own: one that fails, crashes or hangs is told in a sentence, and the others go on.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu_part import Found, Place

#: All of it has to end within this, whatever hangs.
_ALL_S = 480.0
#: What is not needed, and what for.
_EXTRAS = {
    "simplejpeg": "decoding",
    "pytest": "the gpu tests",
    "pydantic": "one of the gpu tests",
    "pytorch_grad_cam": "a comparison",
    "captum": "a comparison",
}

Part = Callable[["Place"], "Found"]
#: Every part: its module and function, and how many seconds it may take on a GPU.
PARTS = {
    "machine": ("gpu_check", "machine", 30.0),
    "right": ("gpu_right", "right", 150.0),
    "tests": ("gpu_right", "tests", 120.0),
    "speed": ("gpu_speed", "throughput", 120.0),
    "busy": ("gpu_speed", "busy", 60.0),
    "host": ("gpu_speed", "host", 60.0),
    "batch-size": ("gpu_speed", "batch_size", 60.0),
    "memory": ("gpu_memory", "room", 60.0),
    "full-memory": ("gpu_memory", "full", 60.0),
    "processes": ("gpu_memory", "processes", 60.0),
    "half": ("gpu_experiments", "half", 60.0),
    "graphs": ("gpu_experiments", "graphs", 60.0),
    "fused": ("gpu_experiments", "fused", 60.0),
    "stack": ("gpu_stack", "stack", 240.0),
}
#: A CPU may take so many times as long: nobody waits for it.
_CPU_TIMES = 10


def machine(place: Place) -> Found:
    """The device, its driver and the versions of what computes on it."""
    import cv2
    import numpy as np
    import torch
    import torchvision
    from gpu_part import Found, mib

    device = place.open()
    values: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "precisions": place.precisions(),
    }
    if place.cuda:
        own = torch.cuda.get_device_properties(device)
        values |= {"gpu": own.name, "memory_bytes": own.total_memory, "capability": f"{own.major}.{own.minor}"}
        values |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "driver": _driver()}
        what = f"{own.name}, {mib(own.total_memory)}, compute capability {own.major}.{own.minor}, "
        what += f"driver {values['driver']}, CUDA {values['cuda']}, cuDNN {values['cudnn']}"
    else:
        values["gpu"] = None
        what = f"the CPU, {values['threads']} threads"
    missing = [f"{name} ({what_for})" for name, what_for in _EXTRAS.items() if importlib.util.find_spec(name) is None]
    lines = [
        f"{what}; precisions: {', '.join(values['precisions'])}",
        f"torch {values['torch']}, torchvision {values['torchvision']}, OpenCV {values['opencv']}, "
        f"NumPy {values['numpy']}, Python {values['python']}, {values['cores']} cores",
    ]
    if missing:
        lines.append(f"not installed, so left out: {', '.join(missing)}")
    return Found(values, lines)


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown: there is no nvidia-smi"
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.split()
    return said[0] if said else "unknown"


def run(part: Part, place: Place, limit_s: float) -> dict[str, Any]:
    """Run a part in a process of its own; what became of it, whatever that is."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    began = time.monotonic()
    child = context.Process(target=_answer, args=(there, part, place))
    child.start()
    there.close()
    found: dict[str, Any] = {"state": "failed", "why": f"not ended after {limit_s:.0f} s"}
    try:
        if here.poll(max(1.0, limit_s)):
            found = here.recv()
            child.join(5.0)  # it has nothing to do but to end
    except EOFError:
        child.join(5.0)
        found["why"] = f"its process ended by itself, exit code {child.exitcode}"
    finally:
        child.kill()
        child.join()
    return found | {"seconds": round(time.monotonic() - began, 1)}


def _answer(pipe: Connection, part: Part, place: Place) -> None:
    from gpu_part import Skipped

    warnings.simplefilter("ignore")
    try:
        found = part(place)
    except Skipped as why:
        pipe.send({"state": "skipped", "why": str(why)})
    except Exception as error:  # the process's edge: whatever happened is one sentence
        first = next(iter(str(error).splitlines()), "")
        pipe.send({"state": "failed", "why": f"{type(error).__name__}: {first}"})
    else:
        state = "wrong" if found.wrong else "right"
        pipe.send({"state": state, "values": found.values, "lines": found.lines, "wrong": found.wrong})


def _finite(value: Any) -> Any:
    """The same without numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(name: str, found: dict[str, Any]) -> None:
    """Print what became of a part."""
    print(f"\n{name}: {found['state']}, {found['seconds']:.1f} s")
    for line in [*found.get("lines", []), *(f"WRONG: {each}" for each in found.get("wrong", []))]:
        print(f"  {line}")
    if "why" in found:
        print(f"  {found['why']}")
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="what to check")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all numbers are written, after each part")
    parser.add_argument("--only", metavar="PARTS", help="these parts, by commas")
    parser.add_argument("--stack", action="store_true", help="also jobs end to end, where servers are installed")
    parser.add_argument("--quick", action="store_true", help="small networks: whether the check itself works")
    return parser.parse_args()


def main() -> int:
    asked = arguments()
    missing = [name for name in ("torch", "torchvision", "cv2", "numpy") if importlib.util.find_spec(name) is None]
    if missing:
        need = "torch, torchvision, opencv-python-headless and numpy"
        print(f"error: {sys.executable} has no {', '.join(missing)}: install {need}, or name another Python by "
              "`make gpu-check PYTHON=…`", file=sys.stderr)  # fmt: skip
        return 2
    chosen = asked.only.split(",") if asked.only else [name for name in PARTS if name != "stack" or asked.stack]
    if unknown := [name for name in chosen if name not in PARTS]:
        print(f"error: no part is called {unknown[0]!r}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    # Parts are forks of this process, which must not have touched the GPU: torch then asks the driver alone.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    import torch
    from gpu_part import Place

    if asked.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no CUDA device; look at `nvidia-smi`, or try the check itself with --device cpu",
              file=sys.stderr)  # fmt: skip
        return 2
    place, began = Place(asked.device, asked.quick), time.monotonic()
    report: dict[str, Any] = {"device": asked.device, "quick": asked.quick, "parts": {}}
    for name in chosen:
        module, function, limit_s = PARTS[name]
        part: Part = getattr(importlib.import_module(module), function)
        # Jobs end to end come on top of the eight minutes.
        left_s = limit_s if name == "stack" else _ALL_S - (time.monotonic() - began)
        found = run(part, place, min(limit_s, left_s) if place.cuda else _CPU_TIMES * limit_s)
        report["parts"][name] = found
        show(name, found)
        report["right"] = all(each["state"] in ("right", "skipped") for each in report["parts"].values())
        report["seconds"] = round(time.monotonic() - began, 1)
        if asked.json:
            asked.json.write_text(json.dumps(_finite(report), indent=1) + "\n", encoding="utf-8")
    bad = [name for name, each in report["parts"].items() if each["state"] in ("wrong", "failed")]
    print(f"\n{'all is right' if not bad else 'not right: ' + ', '.join(bad)}; {report['seconds']:.0f} s")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
