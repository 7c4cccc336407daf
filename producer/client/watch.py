"""How a job's progress looks to a person: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from producer.jobs.model import release
from producer.jobs.model.states import JobState
from producer.jobs.model.status import JobStatus
from producer.jobs.model.text import LINE_CHARS, NAME_CHARS, SENTENCE_CHARS, counted, shown

if TYPE_CHECKING:
    from producer.submission import sender

#: Seconds between lines where there is no terminal.
LINE_EVERY_S = 5.0
#: Exit codes, documented in the README.
ALL_DONE, SOME_FAILED, JOB_FAILED = 0, 1, 3
_EXIT_CODES = {JobState.SUCCEEDED: ALL_DONE, JobState.COMPLETED_WITH_ERRORS: SOME_FAILED}
#: Devices that are busy for so much of the time are what bounds a job.
_BUSY = 0.9
#: Images that wait for a stage for so much of all work done have a row in front of it.
_WAITS = 0.2
#: Of so many images, or so many seconds, what bounds a job can be told.
_ENOUGH_IMAGES, _ENOUGH_S = 200, 30.0


def exit_code(status: JobStatus) -> int:
    """0 all done, 1 some images failed, 3 the job failed or was cancelled."""
    return _EXIT_CODES.get(status.state, JOB_FAILED) if status.ended else ALL_DONE


def follow(statuses: Iterable[JobStatus], console: Console) -> JobStatus:
    """Show progress until the job ends, and give back its last status."""
    return _bar(statuses, console) if console.is_terminal else _lines(statuses, console)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def _bar(statuses: Iterable[JobStatus], console: Console) -> JobStatus:
    with _progress(console) as bar:
        task = bar.add_task("waiting", total=None, note="")
        for status in statuses:
            finished = status.done + status.failed
            bar.update(task, description=status.state, total=status.total, completed=finished, note=note(status))
    return status


def _lines(statuses: Iterable[JobStatus], console: Console) -> JobStatus:
    last, told = -LINE_EVERY_S, None
    for status in statuses:
        waits = status.waits_reason, _begins(status)
        if not status.ended and (waits != told or time.monotonic() - last >= LINE_EVERY_S):
            last, told = time.monotonic(), waits
            console.print(f"{status.state} {status.done + status.failed}/{status.total} {note(status)}".rstrip())
    return status


@contextmanager
def sending(console: Console) -> Iterator[tuple[sender.Progress, Callable[[str], None]]]:
    """Show how images are sent; gives what to call with how many are sent and in all, and with why it waits."""
    started = last = time.monotonic()

    def rate(sent: int) -> str:
        return f"{sent / max(time.monotonic() - started, 1e-3):,.0f} images/s"

    if not console.is_terminal:

        def line(sent: int, total: int | None) -> None:
            nonlocal last
            if time.monotonic() - last >= LINE_EVERY_S:
                last = time.monotonic()
                console.print(f"sending {sent:,}" + (f" of {total:,}" if total else "") + f", {rate(sent)}")

        yield line, console.print
        return
    with _progress(console) as bar:
        task = bar.add_task("sending", total=None, note="")
        yield (
            lambda sent, total: bar.update(task, description="sending", completed=sent, total=total, note=rate(sent)),
            lambda sentence: bar.update(task, description=shown(sentence, SENTENCE_CHARS)),
        )


def note(status: JobStatus) -> str:
    """What a user should know beside the counts."""
    if status.workers == 0 and not status.ended and status.waits is None:
        return "no worker is running: start `gradcam-worker`"
    parts = [_problem(status)] if status.problem else []
    if status.waits:
        parts.append(status.waits)
    elif _begins(status):
        parts.append("a worker has its first images in hand")
    if status.stalled_s is not None:
        parts.append(f"no progress for {status.stalled_s:.0f} s: {_waits(status)}")
    if status.failed:
        parts.append(f"{status.failed} failed")
    if status.images_per_s:
        parts.append(f"{status.images_per_s:.1f} images/s by {counted(status.workers, 'worker')}")
    if status.eta_s is not None:
        parts.append(f"{status.eta_s:.0f} s left")
    return shown(", ".join(parts), SENTENCE_CHARS)


def _begins(status: JobStatus) -> bool:
    """Whether a worker has images of it and none has its end: it imports PyTorch, say, or is at its first batch."""
    return not status.ended and status.chunks.in_flight > 0 and not status.done + status.failed


def summary(status: JobStatus) -> str:
    """The status as lines for a person."""
    rows = {
        "job": status.job,
        "state": f"{status.state}" + ("" if status.ended or status.ingest == "closed" else " (images still coming in)"),
        "network": status.network,
        "images": f"{status.done} done, {status.failed} failed, {status.pending} pending, "
        f"{status.cancelled} cancelled, {status.total} in all",
    }
    if status.error:
        rows["error"] = status.error
    rows |= _of_labels(status)
    if status.failures:
        rows["failures"] = ", ".join(f"{reason} {count}" for reason, count in sorted(status.failures.items()))
    if not status.ended:
        at_work = f"{counted(status.running, 'image')} in {counted(status.chunks.in_flight, 'chunk')}"
        rows["at work"] = f"{at_work}; {counted(status.workers, 'worker')} alive"
    rows["chunks"] = f"{status.chunks.complete} complete, {status.chunks.waiting} waiting, {status.chunks.total} in all"
    rows |= _standstill(status)
    if status.images_per_s:
        rows["speed"] = f"{status.images_per_s:.1f} images/s"
    if status.stages:
        rows["stages"] = stages(status)
    if status.device_busy is not None:
        advice = f": {bound(status)}" if _is_measured(status) else ""
        rows["devices"] = f"{status.device_busy:.0%} busy{advice}"
    if status.eta_s is not None:
        rows["left"] = f"{status.eta_s:.0f} s"
    if status.problem:
        rows["problem"] = _problem(status)
    if status.other_versions:
        rows["versions"] = release.others(status.other_versions)
    rows["created"] = f"{status.created_at:%Y-%m-%d %H:%M:%S} UTC"
    if status.finished_at:
        rows["finished"] = f"{status.finished_at:%Y-%m-%d %H:%M:%S} UTC"
    return "\n".join(f"{name:<9} {shown(text, LINE_CHARS)}" for name, text in rows.items())


def _standstill(status: JobStatus) -> dict[str, str]:
    rows = {}
    if status.waits:
        rows["waits"] = status.waits
    elif not status.ended and not status.workers:
        rows["workers"] = "none is running: start `gradcam-worker`"
    if status.stalled_s is not None:
        rows["progress"] = f"no progress for {status.stalled_s:.0f} s: {_waits(status)}"
    return rows


def _of_labels(status: JobStatus) -> dict[str, str]:
    correct, wrong, unknown = status.correct or 0, status.wrong or 0, status.unknown_labels or 0
    rows = {}
    if correct + wrong:
        share = f"{correct / (correct + wrong):.1%} correct"
        share += f" of {correct + wrong} labels that are classes" if unknown else ""
        rows["labels"] = f"{correct} predicted as labelled, {wrong} not: {share}"
    if unknown:
        said = f", such as: {status.label_problem}" if status.label_problem else ""
        are = "1 label is" if unknown == 1 else f"{unknown} labels are"
        rows["unknown"] = (
            f"{are} no class of this network (`gradcam results {status.job} --where correct=unknown --jsonl`); correct "
            f"them, or name the classes by --labels{said}"
        )
    return rows


def _problem(status: JobStatus) -> str:
    """What is wrong: with a worker while the job is at work, with Redis, or with what is left of the job after that."""
    problem = str(status.problem)
    at_work = status.state in {JobState.RUNNING, JobState.PAUSED, JobState.FINALIZING}
    # What a worker says against this job alone (`problem_of`) begins with who says it.
    of_job = problem.startswith(("worker ", "a process "))
    if not at_work or of_job or problem == status.redis_problem:
        return problem
    return f"a worker cannot work: {problem}"


def _waits(status: JobStatus) -> str:
    """What a job that does not go on waits for."""
    if not status.workers:
        return "no worker is running"
    if status.waited_for:
        told = (
            f"{counted(wait.workers, 'worker waits', 'workers wait')} for {wait.what}, "
            f"{'' if wait.workers == 1 else 'at most '}{wait.longest_s:.0f} s by now"
            for wait in status.waited_for
        )
        return "; ".join(told)
    return "no worker works at it" if not status.chunks.in_flight else "no worker says what it waits for"


def stages(status: JobStatus) -> str:
    """What each stage took, in milliseconds an image."""
    images = max(1, status.done + status.failed)
    return (
        ", ".join(f"{name} {1000 * time.work_s / images:.0f}" for name, time in status.stages.items()) + " ms an image"
    )


def _is_measured(status: JobStatus) -> bool:
    """Whether enough was explained to say what bounds the speed: of a few images loading and waiting are most."""
    images = status.done + status.failed
    seconds = images / status.images_per_s if status.images_per_s else 0
    return images >= _ENOUGH_IMAGES or seconds >= _ENOUGH_S


def bound(status: JobStatus) -> str:
    """What bounds a job's speed, and what makes it faster."""
    if status.device_busy is not None and status.device_busy >= _BUSY:
        return "they bound the speed, more of them make it faster"
    waits = {name: time.wait_s for name, time in status.stages.items() if name in {"fetch", "render"}}
    if not any(waits.values()) or max(waits.values()) < _WAITS * sum(time.work_s for time in status.stages.values()):
        return "images come in or go out too slowly, or too few at a time; give each device more processes"
    where = {"fetch": "fetching and decoding bound", "render": "drawing and storing bound"}[
        max(waits, key=waits.__getitem__)
    ]
    return f"{where} the speed; give each device more processes and cores"


def _count(status: JobStatus, count: int) -> str:
    return "?" if status.state is JobState.UNREADABLE else str(count)


#: What a table of jobs has a column for, and leaves out first where there is no room, from the last on.
_COLUMNS: dict[str, Callable[[JobStatus], str]] = {
    "job": lambda status: status.job,
    "state": lambda status: status.state,
    "total": lambda status: _count(status, status.total),
    "done": lambda status: _count(status, status.done),
    "failed": lambda status: _count(status, status.failed),
    "pending": lambda status: _count(status, status.pending),
    "cancelled": lambda status: _count(status, status.cancelled),
    "network": lambda status: status.network,
    "created (UTC)": lambda status: f"{status.created_at:%Y-%m-%d %H:%M:%S}",
}
_LEFT_OUT_FIRST = ("created (UTC)", "network")


def table(statuses: Sequence[JobStatus], console: Console) -> Table:
    """Jobs as a table, a row each, as wide as there is room; an id is never cut, but may go over two lines."""
    left_out: set[str] = set()
    for name in (None, *_LEFT_OUT_FIRST):
        left_out |= {name} if name else set()
        made = _table(statuses, [heading for heading in _COLUMNS if heading not in left_out])
        if Measurement.get(console, console.options.update(max_width=10_000), made).maximum <= console.width:
            return made
    return _table(statuses, [heading for heading in _COLUMNS if heading not in left_out], folded=("job", "state"))


def _table(statuses: Iterable[JobStatus], headings: Sequence[str], folded: Sequence[str] = ()) -> Table:
    made = Table(box=None)
    for heading in headings:
        made.add_column(heading, no_wrap=heading not in folded, overflow="fold")
    for status in statuses:
        made.add_row(*(shown(_COLUMNS[heading](status), NAME_CHARS) for heading in headings))
    return made
