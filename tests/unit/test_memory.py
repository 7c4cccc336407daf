from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from worker.models import memory
from worker.supervise import cgroups

_REAL_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _root(folder: Path, cgroup: str, limits: dict[str, str]) -> Path:
    files = {"proc/self/cgroup": cgroup} | {f"sys/fs/cgroup/{name}": text for name, text in limits.items()}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    return folder


@pytest.mark.parametrize(
    ("cgroup", "limits", "expected"),
    [
        ("0::/", {"memory.max": "1000"}, 1000),
        ("0::/a/b", {"a/memory.max": "2000", "a/b/memory.max": "max"}, 2000),
        ("0::/a/b", {"a/memory.max": "2000", "a/b/memory.max": "1000"}, 1000),
        ("4:memory:/a\n0::/", {"memory/a/memory.limit_in_bytes": "3000"}, 3000),
        ("4:cpu,memory:/elsewhere", {"memory/memory.limit_in_bytes": "3000"}, 3000),
        ("0::/", {"memory.max": "max"}, _REAL_BYTES),
        ("0::/a", {}, _REAL_BYTES),
    ],
)
def test_the_memory_of_a_machine_is_what_its_control_groups_leave(
    tmp_path: Path, cgroup: str, limits: dict[str, str], expected: int
) -> None:
    assert cgroups.machine_bytes(_root(tmp_path, cgroup, limits)) == expected


def test_a_machine_without_control_groups_has_all_its_memory(tmp_path: Path) -> None:
    assert cgroups.machine_bytes(tmp_path) == _REAL_BYTES


def test_processes_on_one_device_share_what_models_may_take(tmp_path: Path) -> None:
    root = _root(tmp_path, "0::/", {"memory.max": "10000"})
    assert [memory.models_bytes("cpu", processes, root) for processes in (1, 2, 4)] == [2000, 1000, 500]


def test_a_model_that_does_not_fit_is_one_sentence() -> None:
    with pytest.raises(memory.DeviceFull, match="does not fit"), memory.say_when_full():
        torch.empty(2**60)
    with pytest.raises(RuntimeError, match="another"), memory.say_when_full():
        raise RuntimeError("another")


_PROGRAM = """
import re
from pathlib import Path

import psutil
import torch
from torch import nn
from worker.models.cache import ModelCache
from worker.device.batches import open_device
from worker.models.memory import give_back

open_device("cpu")  # as a worker does, whose C library keeps what is freed
SIZE = 64 * 2**20


class Kept:
    def __init__(self, key):
        self.model = nn.ParameterList([nn.Parameter(torch.ones(2**20)) for _ in range(16)])


def load(key):
    cache.make_room(key, SIZE)
    return Kept(key)


def rss_mib():
    return psutil.Process().memory_info().rss / 2**20


cache = ModelCache(2 * SIZE, load, lambda: give_back("cpu"))
before = rss_mib()
for key in range(12):
    cache.get(key)
    print(rss_mib() - before)
# Not `ru_maxrss`, in which the process that started this one counts.
(peak_kib,) = re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(int(peak_kib) / 2**10 - before)
cache.clear()
print(rss_mib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no Linux")
def test_memory_of_models_that_were_let_go_is_free_for_others() -> None:
    """Two models of 64 MiB fit. Without giving back, the process stays as large as it ever was."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True, timeout=120)
    *grown, peak, emptied = map(float, done.stdout.split())
    assert grown[0] > 60
    assert max(grown) - grown[1] < 10
    assert peak < 2 * 64 + 30
    assert emptied < 20
