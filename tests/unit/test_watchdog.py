"""The parent's eye on its child: who hangs is killed, and what a death says of an image depends on how it came."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.chunks.chunk_run import blame
from worker.recover.watchdog import Watchdog, death_weight
from worker.supervise.busy_file import Busy, BusyFile
from worker.supervise.deaths import CONVICTING, CRASHED, HUNG, UNKNOWN


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def busy(path: Path, pid: int, *, late_s: float, claim_id: str = "me/1/0") -> Path:
    file = BusyFile(path)
    file.write(Busy(pid, "job", 3, claim_id, "life", [7]))
    file.set_deadline(-late_s)
    return path


@pytest.mark.parametrize(
    ("how", "out_of_memory", "weight"),
    [
        ("Worker exited prematurely: signal 11 (SIGSEGV) Job: 0.", False, CRASHED),
        ("Worker exited prematurely: signal 6 (SIGABRT) Job: 0.", False, CRASHED),
        ("Worker exited prematurely: signal 9 (SIGKILL) Job: 0.", True, CRASHED),
        ("Worker exited prematurely: signal 9 (SIGKILL) Job: 0.", False, UNKNOWN),
        ("Worker exited prematurely: signal 15 (SIGTERM) Job: 0.", True, UNKNOWN),
        ("Worker exited prematurely: exitcode 3 Job: 0.", False, CRASHED),
        ("", False, UNKNOWN),
    ],
)
def test_a_death_is_weighed_by_how_it_came(how: str, out_of_memory: bool, weight: int) -> None:
    assert death_weight(how, out_of_memory=out_of_memory) == weight


def test_the_words_of_the_pool_are_those_we_read() -> None:
    """billiard's, which another version may word otherwise."""
    from billiard.common import human_status

    assert death_weight(f"Worker exited prematurely: {human_status(-signal.SIGSEGV)}", out_of_memory=False) == CRASHED
    assert death_weight(f"Worker exited prematurely: {human_status(-signal.SIGKILL)}", out_of_memory=False) == UNKNOWN


def test_two_crashes_alone_convict_and_three_coincidences_do_not() -> None:
    assert blame(2 * CRASHED) is not None
    assert blame(CRASHED + UNKNOWN) is None
    assert blame(3 * UNKNOWN) is None
    assert blame(CONVICTING) is not None
    assert getattr(blame(CONVICTING), "reason", None) == "crashed_worker"
    assert getattr(blame(HUNG), "reason", None) == "timeout"


def test_a_child_whose_time_is_over_is_killed(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    watchdog = Watchdog([busy(tmp_path / "busy", child.pid, late_s=10)], grace_s=5)
    watchdog.look()
    assert child.poll() is None
    watchdog.look()
    assert child.wait(5) == -signal.SIGKILL
    assert watchdog.diagnose("me/1", "signal 9 (SIGKILL)") == [(Busy(child.pid, "job", 3, "me/1/0", "life", [7]), HUNG)]
    assert not (tmp_path / "busy").exists()


@pytest.mark.parametrize("late_s", [-30, 3])
def test_a_child_that_is_in_time_lives(tmp_path: Path, child: subprocess.Popen[bytes], late_s: float) -> None:
    Watchdog([busy(tmp_path / "busy", child.pid, late_s=late_s)], grace_s=5).look()
    time.sleep(0.1)
    assert child.poll() is None


def test_a_watchdog_without_a_busy_child_looks_at_nothing(tmp_path: Path) -> None:
    watchdog = Watchdog([tmp_path / "busy"], grace_s=5)
    watchdog.look()
    (tmp_path / "busy").write_text("half a li")
    os.utime(tmp_path / "busy", (1, 1))
    watchdog.look()
    assert watchdog.diagnose("me/2", "signal 11 (SIGSEGV)") == []


def test_a_death_is_of_what_was_in_hand_and_of_nothing_else(tmp_path: Path) -> None:
    """A message is worth the chunk whose turn it is: it need not be the one it names."""
    path = busy(tmp_path / "busy", 1, late_s=0)
    assert Watchdog([path], grace_s=5).diagnose("another/1", "signal 11 (SIGSEGV)") == []
    path = busy(tmp_path / "busy", 1, late_s=0)
    found = Watchdog([path], grace_s=5).diagnose("me/1", "signal 11 (SIGSEGV)")
    assert found == [(Busy(1, "job", 3, "me/1/0", "life", [7]), CRASHED)]


@pytest.mark.parametrize("how", ["signal 11 (SIGSEGV)", "signal 9 (SIGKILL)"])
def test_an_image_was_alone_only_if_no_other_chunk_was_in_hand(tmp_path: Path, how: str) -> None:
    files = [busy(tmp_path / name, 1, late_s=0) for name in ("busy0", "busy1")]
    assert [weight for _, weight in Watchdog(files, grace_s=5).diagnose("me/1", how)] == [0, 0]


@pytest.mark.parametrize("how", ["signal 11 (SIGSEGV)", "signal 9 (SIGKILL)", "exitcode 1"])
def test_every_end_in_loading_a_model_weighs_the_same(tmp_path: Path, how: str) -> None:
    path = tmp_path / "busy0"
    BusyFile(path).write(Busy(1, "job", 3, "me/1/0", "life", [], loading=True))
    assert [weight for _, weight in Watchdog([path], grace_s=5).diagnose("me/1", how)] == [CRASHED]


def test_of_two_chunks_in_a_process_that_hung_nobody_is_accused(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    """The next holder works at those that were marked when nothing else is in hand, and finds out."""
    late = busy(tmp_path / "busy0", child.pid, late_s=10)
    other = busy(tmp_path / "busy1", child.pid, late_s=-30, claim_id="me/1/1")
    watchdog = Watchdog([late, other], grace_s=5)
    watchdog.look()
    watchdog.look()
    assert child.wait(5) == -signal.SIGKILL
    found = watchdog.diagnose("me/1", "signal 9 (SIGKILL)")
    assert [(busy.claim_id, weight) for busy, weight in found] == [("me/1/0", 0), ("me/1/1", 0)]


def test_a_chunk_whose_weights_are_fetched_is_not_accused_and_hides_nobody(tmp_path: Path) -> None:
    """Beside it another chunk may kill the process; a fetch kills none."""
    files = [tmp_path / "busy0", tmp_path / "busy1"]
    BusyFile(files[0]).write(Busy(1, "slow", 0, "me/1/0", "life", [], fetching=True))
    BusyFile(files[1]).write(Busy(1, "deadly", 0, "me/1/1", "life", [7]))
    found = Watchdog(files, grace_s=1).diagnose("me/1", "signal 11 (SIGSEGV)")
    assert [(each.job, weight) for each, weight in found] == [("slow", 0), ("deadly", CRASHED)]
