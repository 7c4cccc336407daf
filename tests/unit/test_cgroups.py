from __future__ import annotations

from pathlib import Path

import pytest

from worker.supervise import cgroups


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({"cpu.max": "200000 100000"}, 2.0),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
        ({"a/b/cpu.max": "400000 100000", "a/cpu.max": "150000 100000", "cpu.max": "max 100000"}, 1.5),
        ({"a/b/cpu.max": "50000 100000", "a/cpu.max": "max 100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ],
)
def test_the_narrowest_control_group_around_us_counts(
    tmp_path: Path, files: dict[str, str], granted: float | None
) -> None:
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    own = tmp_path / "proc/self/cgroup"
    own.parent.mkdir(parents=True)
    own.write_text("1:cpu:/elsewhere\n0::/a/b\n")
    assert cgroups.cpu_cores(tmp_path) == granted


def test_kills_for_lack_of_memory_are_those_in_our_own_group(tmp_path: Path) -> None:
    """Another container's lack of memory says nothing of our child's end."""
    files = {
        "proc/self/cgroup": "0::/ours",
        "proc/vmstat": "oom_kill 7",
        "sys/fs/cgroup/ours/memory.events": "low 0\noom 3\noom_kill 2",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cgroups.oom_kills(tmp_path) == 2
    (tmp_path / "sys/fs/cgroup/ours/memory.events").unlink()
    assert cgroups.oom_kills(tmp_path) == 7


def test_this_machines_own_files_are_understood() -> None:
    granted = cgroups.cpu_cores()
    assert granted is None or granted > 0
    assert all(bytes_ > 0 for bytes_, _used in cgroups.memory_limits())
    assert cgroups.oom_kills() >= 0
