"""What `gradcam-worker check` finds of the processes of this machine, by what they say of themselves.

A probe has to be fast: nothing here imports more than the standard library, and nobody asks Redis.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from worker.supervise import process_list, run_dirs
from worker.supervise.busy_file import BUSY_KINDS
from worker.supervise.health import READY_WITHIN_S, Health
from worker.supervise.process_list import ListedProcess

#: A process without a sign of life for longer is silent.
SILENT_AFTER_S = 60.0
#: A liveness probe waits so long for a sign: a restart costs the models in memory.
STUCK_AFTER_S = 1200.0
#: A process without any sign is starting until then: interpreter and Redis come on top of its imports.
STARTING_WITHIN_S = READY_WITHIN_S + 30.0


class State(StrEnum):
    """What a process does, as a check finds it."""

    #: It imports torch, and looks for its device and for Redis.
    STARTING = "starting"
    #: It reads the queues, and there is nothing for it.
    IDLE = "idle"
    #: It has a chunk in flight, whose current step is before its deadline.
    WORKING = "working"
    #: It has a chunk in flight, and a server does not answer; after `within_s` it is silent.
    WAITING = "waiting"
    #: It says itself what keeps it from working.
    FAULTY = "faulty"
    #: It runs without a sign of life for too long.
    SILENT = "silent"
    #: It does not run: its launcher starts it again soon, or has given up.
    DEAD = "dead"


#: The states in which nothing is wrong.
ALIVE = frozenset({State.STARTING, State.IDLE, State.WORKING, State.WAITING})


@dataclass(frozen=True)
class CheckedProcess:
    """What a check finds of one process."""

    name: str
    device: str
    state: State
    #: Since its last sign of life; None before the first.
    silent_s: float | None
    problem: str | None
    #: The stack whose jobs it works off, as `stack_of` names it; empty where it is not known.
    stack: str = ""
    #: What makes its work slower, or is left open by its settings; nothing is wrong all the same.
    note: str = ""
    #: Whether it runs and goes on, if only with waiting: for Redis, for a server, for the end of what is wrong.
    lives: bool = True


def of_stack(found: Sequence[CheckedProcess], stack: str) -> list[CheckedProcess]:
    """Return the processes of a stack; where its name, or theirs, is not known, they count."""
    return [one for one in found if not stack or one.stack in {"", stack}]


def check(run_dir: Path | None, within_s: float = SILENT_AFTER_S) -> list[CheckedProcess]:
    """Check every process of every launcher of this user on this machine.

    Args:
        run_dir: The parent of the launchers' folders, if one is set.
        within_s: A process without a sign of life for longer is silent.

    Raises:
        WorkerError: Somebody else can write to that folder.
    """
    return [found for folder in run_dirs.living(run_dir) for found in check_launcher(folder, within_s)]


def check_launcher(folder: Path, within_s: float = SILENT_AFTER_S) -> list[CheckedProcess]:
    """Check every process of one launcher.

    Args:
        folder: The launcher's.
        within_s: As of `check`.
    """
    return [_judge(Health(folder / process.name), process, within_s) for process in process_list.read(folder)]


def _judge(health: Health, process: ListedProcess, within_s: float) -> CheckedProcess:
    now = time.time()
    last = max(health.at(kind) for kind in ("ready", "polled", "at-work"))
    silent_s = round(max(now - last, 0.0), 1) if last else None

    lives = _lives(health, process, within_s)

    def found(state: State, problem: str | None = None) -> CheckedProcess:
        return CheckedProcess(
            process.name, process.device, state, silent_s, problem, process.stack, process.note, lives=lives
        )

    if process.pid is None:
        return found(State.DEAD, process.problem)
    if fault := health.standing_fault():
        return found(State.FAULTY, fault)
    if silent_s is None:
        age_s = now - process.started_at
        if age_s < STARTING_WITHIN_S or now < health.at("preloads"):
            return found(State.STARTING)
        return found(State.SILENT, f"it has not got ready for {age_s:.0f} s")
    return found(*_judge_ready(health, silent_s, within_s))


def _lives(health: Health, process: ListedProcess, within_s: float) -> bool:
    """Return whether a process runs and goes on: what it waits for, or calls wrong, a restart would not bring."""
    if process.pid is None:
        return False
    signs = ["ready", "polled", "away", "at-work"]
    if health.server_waited_for():
        signs.append("work")  # which a child that waits for a server writes all the same
    # The start counts as a sign; a step that may take longer has its deadline in a file's time.
    last = max(process.started_at, *map(health.at, signs))
    until = max(map(health.at, ("preloads", *BUSY_KINDS)))
    return time.time() <= max(last + within_s, until)


def _judge_ready(health: Health, silent_s: float, within_s: float) -> tuple[State, str | None]:
    """Return the state of a process that has been ready, and why it is silent or waits."""
    until = max(map(health.at, BUSY_KINDS))
    busy = until > 0
    if busy and (server := health.server_waited_for()):
        what, waited_s = server
        state = State.SILENT if waited_s > within_s else State.WAITING
        return state, f"it has waited for {what} for {waited_s:.0f} s"
    # One step may take longer than `within_s`: loading a model, or a large batch on a slow processor.
    if silent_s <= within_s or time.time() <= until:
        return State.WORKING if busy else State.IDLE, None
    what = "Redis cannot be reached or read" if health.has("away") else "no read of the queues has come back"
    return State.SILENT, f"{what} for {silent_s:.0f} s"


def live_sentence(found: Sequence[CheckedProcess]) -> str:
    """Say in one sentence how many processes live, and what is wrong with the others; there is at least one."""
    living = sum(one.lives for one in found)
    stuck = [f"{one.name} is {one.state}: {one.problem}" for one in found if not one.lives]
    return "; ".join((f"{living} of {len(found)} processes live", *stuck))


def sentence(found: Sequence[CheckedProcess], others: Sequence[str] = (), stack: str = "") -> str:
    """Say in one sentence what is wrong; where nothing is, what each process does.

    Args:
        found: The processes that were checked.
        others: The other stacks that processes of this machine work for.
        stack: The stack that was checked; empty for all.
    """
    if not found and others:
        return (
            f"no launcher of this user works for {stack}: start `gradcam-worker`; those of this machine, which --all "
            f"shows, work for {', '.join(others)}"
        )
    if not found:
        return "no launcher of this user runs on this machine: start `gradcam-worker`"
    wrong = [f"{one.name} is {one.state}: {one.problem}" for one in found if one.state not in ALIVE]
    if wrong:
        text = f"{len(wrong)} of {len(found)} processes cannot work: {'; '.join(wrong)}"
    else:
        text = ", ".join(f"{one.name} is {one.state}" + (f": {one.problem}" if one.problem else "") for one in found)
    return ". ".join((text, *sorted({one.note for one in found if one.note})))
