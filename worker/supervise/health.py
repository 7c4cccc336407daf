"""What processes say of themselves, in files of their launcher's folder, and what `gradcam-worker check` makes of it.

| file             | its time, or content                                             | written by     |
|------------------|------------------------------------------------------------------|----------------|
| `launcher.json`  | the processes there are, and why some do not run                 | launcher       |
| `<name>.ready`    | since when the process has what it needs                         | child          |
| `<name>.starts`  | a byte for each child that has begun to start since the last one that got ready | child |
| `<name>.startup_failed`    | it cannot get what it needs, and ends                            | child          |
| `<name>.polled`  | when a read of the queues last came back, with a message or none | main process   |
| `<name>.away`    | since when Redis cannot be reached                               | main process   |
| `<name>.at-work` | when the chunk in hand last went on                              | child          |
| `<name>.busy0`, … | when the step in hand must be over, of each chunk in hand (`busy_file.py`) | child |
| `<name>.preloads` | until when models may be loaded before the first message is read | child         |
| `<name>.waits`   | since when a server has been waited for, and which one           | child          |
| `<name>.fault`   | what keeps the process from working                              | child          |

A probe has to be fast: nothing here imports more than the standard library, and Redis is not asked.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from producer.jobs.model.keys import PROBLEM_LIFETIME_S
from worker.supervise import run_dirs
from worker.supervise.busy_file import BUSY_KINDS
from worker.supervise.small_file import replace_text

#: A process whose last sign of life is older is silent.
SILENT_AFTER_S = 60.0
#: Importing torch from a slow disk takes long; one that takes longer has failed.
READY_WITHIN_S = 120.0
#: Models that are loaded before the first message is read may have to be downloaded.
PRELOADED_WITHIN_S = 3600.0
#: Until then a process that has given no sign is starting: interpreter and Redis come on top of what it imports.
STARTING_WITHIN_S = READY_WITHIN_S + 30.0
#: One file a second is written at most, however often something is said.
_SAY_EVERY_S = 1.0
_LIST = "launcher.json"
#: Host, port and database of what is left of a Redis address without its secret.
_PLACE = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(\d+))?(?:/(\d*))?/?", re.IGNORECASE)


class Health:
    """One process's signs of life; every method may be called often, and none of them raises.

    Args:
        stem: The launcher's folder and the process's name; None where there is no launcher, and nothing is said.
    """

    def __init__(self, stem: Path | None) -> None:
        self._stem = stem
        self._said: dict[str, float] = {}

    def polled(self) -> None:
        """Say that a read of the queues came back, with a message or without."""
        if self._say("polled"):
            self._take_back("away")

    def away(self) -> None:
        """Say that Redis is looked for; the next read that comes back takes it back."""
        if self._stem is not None and not self.file("away").exists():
            self._write("away", "")

    def at_work(self) -> None:
        """Say that the chunk in hand goes on."""
        self._say("at-work")

    def begins(self) -> None:
        """Say that a child begins to start; one that crashes then has no other word to say so."""
        self.waits_no_more()  # whoever did is dead
        if self._stem is not None:
            with suppress(OSError), self.file("starts").open("ab") as file:
                file.write(b".")

    def preloads(self) -> None:
        """Say that models are loaded before the first message is read."""
        if self._stem is not None:
            with suppress(OSError):
                until = time.time() + PRELOADED_WITHIN_S
                self.file("preloads").touch()
                os.utime(self.file("preloads"), (until, until))

    def ready(self) -> None:
        """Say that the process has imported what it needs, and can use its device."""
        self._write("ready", "")
        self._take_back("starts")
        self._take_back("preloads")

    def startup_failed(self, sentence: str) -> None:
        """Say that the process cannot get what it needs, and why; its parent ends."""
        self.fault(sentence)
        self._write("startup_failed", sentence)

    def fault(self, sentence: str) -> None:
        """Say what keeps this process from working; it stands for two minutes, as what is said in Redis does."""
        self._write("fault", sentence)

    def recovered(self) -> None:
        """Say that nothing keeps this process from working any more."""
        self._take_back("fault")

    def waits(self, what: str, for_s: float) -> None:
        """Say that a server has been waited for so long; said again while it lasts."""
        if self._stem is not None:
            self._write("waits", what)
            with suppress(OSError):
                since = time.time() - for_s
                os.utime(self.file("waits"), (since, since))

    def waits_no_more(self) -> None:
        """Take back what `waits` said."""
        self._take_back("waits")

    # -- what has been said --------------------------------------------------------------------------------------------

    def file(self, kind: str) -> Path:
        """The file of one kind of sign."""
        if self._stem is None:
            raise ValueError("there is no launcher, and no file")
        return self._stem.with_name(f"{self._stem.name}.{kind}")

    def at(self, kind: str) -> float:
        """When something was said, in seconds since 1970; 0 where it never was."""
        try:
            return self.file(kind).stat().st_mtime
        except OSError:
            return 0.0

    def has(self, kind: str) -> bool:
        """Whether something has been said; always not where there is no launcher."""
        return self._stem is not None and self.file(kind).exists()

    def starts(self) -> int:
        """How many children in a row have begun to start, and not got ready."""
        try:
            return self.file("starts").stat().st_size
        except (OSError, ValueError):
            return 0

    def standing_fault(self) -> str | None:
        """What keeps the process from working, as it said itself not long ago."""
        if time.time() - self.at("fault") > PROBLEM_LIFETIME_S:
            return None
        try:
            return self.file("fault").read_text()
        except OSError:
            return None

    def server_waited_for(self) -> tuple[str, float] | None:
        """Which server does not answer, and for how many seconds; None where all do."""
        try:
            return self.file("waits").read_text(), max(time.time() - self.file("waits").stat().st_mtime, 0.0)
        except (OSError, ValueError):
            return None

    def forget(self) -> None:
        """Remove all files of a process that has ended."""
        if self._stem is not None:
            for kind in (
                "ready",
                "starts",
                "preloads",
                "startup_failed",
                "polled",
                "away",
                "at-work",
                *BUSY_KINDS,
                "waits",
                "fault",
            ):
                self._take_back(kind)

    def _say(self, kind: str) -> bool:
        """Give a file the time that it is; False when that was done a moment ago."""
        now = time.monotonic()
        if self._stem is None or now - self._said.get(kind, -_SAY_EVERY_S) < _SAY_EVERY_S:
            return False
        self._said[kind] = now
        with suppress(OSError):  # a full disk, or the launcher's folder is gone: it is made again in a moment
            self.file(kind).touch()
        return True

    def _write(self, kind: str, text: str) -> None:
        if self._stem is not None:
            with suppress(OSError):
                replace_text(self.file(kind), text)

    def _take_back(self, kind: str) -> None:
        with suppress(OSError, ValueError):
            self.file(kind).unlink(missing_ok=True)


# -- the launcher's list -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ListedProcess:
    """One process, as its launcher knows it."""

    name: str
    device: str
    #: None while it does not run.
    pid: int | None
    #: In seconds since 1970.
    started_at: float
    #: Why it does not run.
    problem: str | None = None
    #: Whose jobs it works off, as `stack_of` says it; empty where that is not known.
    stack: str = ""


def stack_of(redis_url: str) -> str:
    """Name a stack by what makes it one: the Redis with its jobs, as `host:port/database`; no secret is in it.

    Empty where the address is missing or cannot be read: whoever starts something with it is told what is wrong.
    """
    found = _PLACE.fullmatch(redis_url.partition("://")[2].partition("?")[0].rpartition("@")[2])
    return f"{found[1].lower()}:{found[2] or 6379}/{found[3] or 0}" if found else ""


def publish(folder: Path, processes: Sequence[ListedProcess]) -> None:
    """Write down which processes a launcher has; a full disk keeps nobody from working."""
    with suppress(OSError):
        replace_text(folder / _LIST, json.dumps([asdict(process) for process in processes]))


def published(folder: Path) -> bool:
    """Whether the list is there."""
    return (folder / _LIST).exists()


# -- the check ---------------------------------------------------------------------------------------------------------


class State(StrEnum):
    """What a check finds a process in."""

    #: It gets ready: imports torch, looks for its device and for Redis.
    STARTING = "starting"
    #: It reads the queues, and there is nothing for it.
    IDLE = "idle"
    #: It has a chunk in hand, whose step in hand is within its time.
    WORKING = "working"
    #: It has a chunk in hand, and a server does not answer; for longer than `within_s` it is silent.
    WAITING = "waiting"
    #: It says itself what keeps it from working.
    FAULTY = "faulty"
    #: It runs, and has given no sign of life for too long.
    SILENT = "silent"
    #: It does not run: its launcher starts it again in a moment, or has given it up.
    DEAD = "dead"


#: The states that are as they should be.
ALIVE = frozenset({State.STARTING, State.IDLE, State.WORKING, State.WAITING})


@dataclass(frozen=True)
class Found:
    """What a check finds of one process."""

    name: str
    device: str
    state: State
    #: Since its last sign of life; None before the first.
    silent_s: float | None
    problem: str | None
    #: Whose jobs it works off: `host:port/database` of its Redis; empty where that is not known.
    stack: str = ""


def of_stack(found: Sequence[Found], stack: str) -> list[Found]:
    """Those that work for a stack; where one of both is not known, they may."""
    return [one for one in found if not stack or one.stack in {"", stack}]


def look(run_dir: Path | None, within_s: float = SILENT_AFTER_S) -> list[Found]:
    """Look at every process of every launcher of this user on this machine.

    Args:
        run_dir: Where the launchers were told to have their folders.
        within_s: A process whose last sign of life is older is silent.

    Raises:
        WorkerError: The folder they are in is not ours alone.
    """
    found = []
    for folder in run_dirs.living(run_dir):
        try:
            listed = [ListedProcess(**entry) for entry in json.loads((folder / _LIST).read_text())]
        except FileNotFoundError:
            continue  # it begins or ends in this moment
        found += [_judge(Health(folder / process.name), process, within_s) for process in listed]
    return found


def _judge(health: Health, process: ListedProcess, within_s: float) -> Found:
    now = time.time()
    last = max(health.at(kind) for kind in ("ready", "polled", "at-work"))
    silent_s = round(max(now - last, 0.0), 1) if last else None

    def found(state: State, problem: str | None = None) -> Found:
        return Found(process.name, process.device, state, silent_s, problem, process.stack)

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


def _judge_ready(health: Health, silent_s: float, within_s: float) -> tuple[State, str | None]:
    """What a process is in that has been ready once, and why it is silent or waits."""
    until = max(map(health.at, BUSY_KINDS))
    busy = until > 0
    if busy and (server := health.server_waited_for()):
        what, waited_s = server
        state = State.SILENT if waited_s > within_s else State.WAITING
        return state, f"it has waited for {what} for {waited_s:.0f} s"
    # One step may take longer than `within_s`: a model is loaded, a large batch is computed on a slow processor.
    if silent_s <= within_s or time.time() <= until:
        return State.WORKING if busy else State.IDLE, None
    what = "Redis cannot be reached" if health.has("away") else "no read of the queues has come back"
    return State.SILENT, f"{what} for {silent_s:.0f} s"


def sentence(found: Sequence[Found], others: Sequence[str] = (), stack: str = "") -> str:
    """Say what a check found, in one sentence: what is wrong where something is, else what all are doing.

    Args:
        found: Those that were looked at.
        others: The other stacks that processes of this machine work for.
        stack: The one that was looked at; empty for all.
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
        return f"{len(wrong)} of {len(found)} processes cannot work: {'; '.join(wrong)}"
    return ", ".join(f"{one.name} is {one.state}" + (f": {one.problem}" if one.problem else "") for one in found)
