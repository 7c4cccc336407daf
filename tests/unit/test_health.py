from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import Run, worker_check

from producer.jobs.model.errors import WorkerError
from worker.supervise import run_dirs
from worker.supervise.check import STARTING_WITHIN_S, CheckedProcess, State, check, of_stack, sentence
from worker.supervise.health import READY_WITHIN_S, Health
from worker.supervise.process_list import ListedProcess, publish, stack_of


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with run_dirs.folder(tmp_path) as made:
        yield made.path


def listed(pid: int | None = 1, *, age_s: float = 0.0, problem: str | None = None) -> ListedProcess:
    return ListedProcess("host-cpu", "cpu", pid, time.time() - age_s, problem)


def found(folder: Path, process: ListedProcess | None = None, *, within_s: float = 60.0) -> CheckedProcess:
    publish(folder, [process or listed()])
    (one,) = check(folder.parent.parent, within_s)
    return one


def age(health: Health, kind: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(health.file(kind), (then, then))


def state(folder: Path, process: ListedProcess | None = None, *, within_s: float = 60.0) -> State:
    return found(folder, process, within_s=within_s).state


# -- a process ---------------------------------------------------------------------------------------------------------


def test_a_process_that_reads_is_idle_and_one_with_a_chunk_works(folder: Path) -> None:
    health = Health(folder / "host-cpu")
    assert state(folder) == State.STARTING
    health.ready()
    assert state(folder) == State.IDLE
    age(health, "ready", 100)
    assert state(folder) == State.SILENT
    health.polled()
    assert state(folder) == State.IDLE
    health.file("busy1").touch()
    assert state(folder) == State.WORKING
    health.forget()
    assert list(folder.iterdir()) == [folder / "launcher.json"]


def test_one_that_takes_too_long_to_get_ready_is_silent(folder: Path) -> None:
    assert state(folder, listed(age_s=READY_WITHIN_S)) == State.STARTING
    one = found(folder, listed(age_s=STARTING_WITHIN_S + 5))
    assert (one.state, one.problem) == (State.SILENT, "it has not got ready for 155 s")


def test_one_step_may_take_longer_than_signs_do_but_not_longer_than_it_may(folder: Path) -> None:
    health = Health(folder / "host-cpu")
    health.ready()
    age(health, "ready", 300)
    health.file("busy1").touch()
    age(health, "busy1", -100)  # its time is when the step must be over
    assert state(folder) == State.WORKING
    age(health, "busy1", 1)
    assert state(folder) == State.SILENT
    health.at_work()
    assert state(folder) == State.WORKING


def test_silence_says_whether_redis_is_away(folder: Path) -> None:
    health = Health(folder / "host-cpu")
    health.polled()
    age(health, "polled", 100)
    assert found(folder).problem == "no read of the queues has come back for 100 s"
    assert found(folder, within_s=200).state == State.IDLE
    health.away()
    assert found(folder).problem == "Redis cannot be reached or read for 100 s"
    again = Health(folder / "host-cpu")
    again.polled()
    assert state(folder) == State.IDLE
    assert not again.has("away")


def test_a_fault_stands_until_it_is_over_or_not_told_any_more(folder: Path) -> None:
    health = Health(folder / "host-cpu")
    health.polled()
    health.fault("the disk is full")
    assert (found(folder).state, found(folder).problem) == (State.FAULTY, "the disk is full")
    health.recovered()
    assert state(folder) == State.IDLE
    health.fault("the disk is full")
    age(health, "fault", 1000)
    assert state(folder) == State.IDLE


def test_one_that_does_not_run_is_dead_and_its_launcher_says_why(folder: Path) -> None:
    one = found(folder, listed(None, problem="it is given up"))
    assert (one.state, one.problem) == (State.DEAD, "it is given up")


def test_a_sign_costs_one_write_a_second(folder: Path) -> None:
    health = Health(folder / "host-cpu")
    health.polled()
    age(health, "polled", 100)
    health.polled()
    assert time.time() - health.at("polled") > 50


def test_signs_are_nobodys_trouble_when_there_is_no_launcher_or_its_folder_is_gone(tmp_path: Path) -> None:
    for health in (Health(None), Health(tmp_path / "gone" / "host-cpu")):
        health.polled()
        health.away()
        health.at_work()
        health.ready()
        health.fault("x")
        health.recovered()
        health.startup_failed("x")
        health.forget()
        assert not health.has("ready")


def test_a_check_is_one_sentence() -> None:
    well = CheckedProcess("a", "cpu", State.IDLE, 0.5, None)
    wrong = CheckedProcess("b", "cuda", State.FAULTY, 0.5, "no driver")
    assert sentence([well]) == "a is idle"
    assert sentence([well, wrong]) == "1 of 2 processes cannot work: b is faulty: no driver"
    assert "no launcher" in sentence([])


def test_children_that_crash_as_they_start_are_counted_until_one_gets_ready(folder: Path) -> None:
    health = Health(folder / "host-cpu")
    for _ in range(3):
        health.begins()
    assert health.starts() == 3
    health.ready()
    assert health.starts() == 0
    assert Health(None).starts() == 0


# -- what a liveness probe asks ----------------------------------------------------------------------------------------


@pytest.fixture
def live(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """`gradcam-worker check --live`, with what the launcher of these processes lists."""
    monkeypatch.setenv("GRADCAM_WORKER_RUN_DIR", str(folder.parent.parent))

    def check(*processes: ListedProcess) -> Run:
        publish(folder, processes)
        return worker_check("--live", "--all")

    return check


def named(name: str, pid: int | None = 1, problem: str | None = None) -> ListedProcess:
    return ListedProcess(name, "cpu", pid, time.time() - 9000, problem)


def test_one_process_that_lives_saves_those_that_do_not(folder: Path, live: Callable[..., Run]) -> None:
    """One that was given up had a pod restarted whose other processes were at work."""
    dead, silent = named("dead", None, "it is given up"), named("silent")
    health = Health(folder / "silent")
    health.ready()
    age(health, "ready", 1000)
    run = live(dead, silent)
    assert (run.returncode, run.stdout) == (0, "1 of 2 processes live; dead is dead: it is given up\n")
    age(health, "ready", 1300)
    run = live(dead, silent)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("0 of 2 processes live; dead is dead: it is given up; silent is silent: no read of")
    assert live(dead).returncode == 1
    assert "no launcher" in live().stderr
    assert live().returncode == 1


def test_a_fault_of_hours_is_living(folder: Path, live: Callable[..., Run]) -> None:
    """With a store that was away for ten minutes each try told a fault, and the pod was restarted."""
    health = Health(folder / "a")
    health.ready()
    health.fault("the object store cannot be reached")
    assert live(named("a")).returncode == 0
    assert worker_check("--all").returncode == 1


def test_trying_a_redis_that_does_not_answer_is_living_and_having_tried_it_is_not(
    folder: Path, live: Callable[..., Run]
) -> None:
    health = Health(folder / "a")
    for kind in ("ready", "polled"):
        health.file(kind).touch()
        age(health, kind, 5000)
    health.away()
    age(health, "away", 4000)
    assert live(named("a")).returncode == 1  # frozen since
    health.away()
    assert live(named("a")).returncode == 0


def test_waiting_for_a_server_is_living_while_it_is_told(folder: Path, live: Callable[..., Run]) -> None:
    health = Health(folder / "a")
    health.ready()
    for kind in ("ready", "busy0"):
        health.file(kind).touch()
        age(health, kind, 5000)
    health.waits("the object store", 4000)
    health.tell_work("{}")
    assert live(named("a")).returncode == 0
    age(health, "work", 4000)
    assert live(named("a")).returncode == 1
    age(health, "busy0", -10)  # within the limit of its step
    assert live(named("a")).returncode == 0


# -- stacks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "stack"),
    [
        ("redis://localhost", "localhost:6379/0"),
        ("redis://:sesame@LocalHost:6379/0", "localhost:6379/0"),
        ("rediss://cats:ses@me@redis.example:7000/3/", "redis.example:7000/3"),
        ("redis://[::1]:1/2?socket_timeout=5", "[::1]:1/2"),
        ("redis://:sesame?x@localhost/0", ""),
        ("redis://:ses#me", ""),
        ("localhost", ""),
        ("", ""),
    ],
)
def test_a_stack_is_named_by_its_redis_without_the_secret(url: str, stack: str) -> None:
    assert stack_of(url) == stack


def test_a_check_looks_at_its_own_stack_and_at_those_it_does_not_know(tmp_path: Path) -> None:
    names = {"a": "localhost:1/0", "b": "localhost:2/0", "c": ""}
    with run_dirs.folder(tmp_path) as made:
        publish(made.path, [ListedProcess(name, "cpu", 1, time.time(), stack=stack) for name, stack in names.items()])
        there = check(tmp_path)
    assert [(one.name, one.stack) for one in there] == [*names.items()]
    assert [one.name for one in of_stack(there, "localhost:1/0")] == ["a", "c"]
    assert [one.name for one in of_stack(there, "localhost:3/0")] == ["c"]
    assert [one.name for one in of_stack(there, "")] == ["a", "b", "c"]


# -- the launchers' folders --------------------------------------------------------------------------------------------

_LAUNCHER = """
import sys, time
from pathlib import Path
from worker.supervise import run_dirs
with run_dirs.folder(Path(sys.argv[1])) as folder:
    print(folder.path, flush=True)
    time.sleep(600)
"""


def test_folders_are_their_owners_alone_and_end_with_their_launcher(tmp_path: Path) -> None:
    with run_dirs.folder(tmp_path) as one, run_dirs.folder(tmp_path) as two:
        first, second = one.path, two.path
        assert first.parent.stat().st_mode & 0o777 == 0o700
        assert set(run_dirs.living(tmp_path)) == {first, second}
        assert first.name.startswith(f"{os.getpid()}-")
    assert run_dirs.living(tmp_path) == []
    assert list(first.parent.iterdir()) == []


def test_what_a_killed_launcher_left_does_not_live_and_goes_at_the_next_start(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _LAUNCHER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        left = Path(launcher.stdout.readline().strip())
        publish(left, [listed()])
        assert len(check(tmp_path)) == 1
        launcher.kill()
        launcher.wait()
    assert left.exists()
    assert check(tmp_path) == []
    with run_dirs.folder(tmp_path):
        assert not left.exists()


def test_a_folder_that_somebody_else_may_have_made_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_dirs.user_folder_in(tmp_path).symlink_to(elsewhere)
    for use in (lambda: run_dirs.folder(tmp_path).__enter__(), lambda: run_dirs.living(tmp_path)):
        with pytest.raises(WorkerError, match="is not a folder of this user's own"):
            use()


def test_a_folder_that_others_could_enter_is_closed_to_them(tmp_path: Path) -> None:
    run_dirs.user_folder_in(tmp_path).mkdir(mode=0o755)
    with run_dirs.folder(tmp_path) as folder:
        assert folder.path.parent.stat().st_mode & 0o777 == 0o700


def test_a_place_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"cannot be used .*: set GRADCAM_WORKER_RUN_DIR"):
        run_dirs.folder(tmp_path / "gone").__enter__()


@pytest.mark.parametrize("gone", ["the folder", "the place of all folders", "the run folder itself"])
def test_a_folder_that_was_tidied_away_is_made_again_and_lives(tmp_path: Path, gone: str) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with run_dirs.folder(run_dir) as own, run_dirs.folder(run_dir) as other:
        assert not own.keep()
        shutil.rmtree({"the folder": own.path, "the place of all folders": own.path.parent}.get(gone, run_dir))
        assert own.keep()
        assert not own.keep()
        assert own.path.stat().st_mode & 0o777 == own.path.parent.stat().st_mode & 0o777 == 0o700
        other.keep()
        # Both are locked: a launcher that starts now takes neither for a dead one's.
        with run_dirs.folder(run_dir) as third:
            assert set(run_dirs.living(run_dir)) == {own.path, other.path, third.path}
    assert run_dirs.living(run_dir) == []


def test_a_folder_that_somebody_put_in_the_place_of_a_tidied_one_is_not_taken(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with run_dirs.folder(tmp_path) as own:
        shutil.rmtree(own.path.parent)
        own.path.parent.symlink_to(elsewhere)
        with pytest.raises(WorkerError, match="is not a folder of this user's own"):
            own.keep()
        assert list(elsewhere.iterdir()) == []


def test_what_is_made_to_look_used_still_says_when_it_was_said(tmp_path: Path) -> None:
    """Tidiers look at when a file was last read or changed; of a sign of life the time of change is what was said."""
    with run_dirs.folder(tmp_path) as own:
        health = Health(own.path / "host-cpu")
        health.polled()
        counters = own.path / "metrics" / "counter_1.db"
        counters.parent.mkdir()
        counters.touch()
        then = time.time() - 40 * 86_400
        for path in (health.file("polled"), counters, counters.parent, own.path, own.path.parent):
            os.utime(path, (then, then))
        own.touch()
        assert health.at("polled") == pytest.approx(then)
        assert health.file("polled").stat().st_atime > then + 86_400
        for path in (counters, counters.parent, own.path, own.path.parent):
            assert path.stat().st_mtime > then + 86_400


# -- servers that stand still ------------------------------------------------------------------------------------------


def test_a_process_whose_server_stands_still_waits_and_is_silent_after_the_time_that_is_asked_for(folder: Path) -> None:
    health = Health(folder / "host-cpu")
    health.ready()
    health.file("busy0").touch()
    future = time.time() + 1800  # what a step of recording may take
    os.utime(health.file("busy0"), (future, future))
    health.waits("the object store", 35)
    waiting = found(folder)
    assert waiting.state == State.WAITING
    assert sentence([waiting]) == "host-cpu is waiting: it has waited for the object store for 35 s"
    silent = found(folder, within_s=20)
    assert silent.state == State.SILENT
    assert "waited for the object store for 35 s" in sentence([silent])
    health.waits_no_more()
    assert state(folder) == State.WORKING


def test_a_wait_is_over_with_the_chunk_or_with_the_process(folder: Path) -> None:
    health = Health(folder / "host-cpu")
    health.ready()
    health.waits("Redis", 100)
    assert state(folder) == State.IDLE
    health.file("busy0").touch()
    assert state(folder) == State.SILENT
    health.begins()
    assert state(folder) == State.WORKING
