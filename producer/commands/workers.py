"""The verb of `gradcam` for the worker processes that are alive: which there are, what they do, and who shall leave."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from producer.commands.console import PLAIN_CODES, Examples, client_from_env, each, examples, make_talk
from producer.jobs.model.errors import UsageError
from producer.jobs.model.terminal import out, out_json
from producer.jobs.model.text import counted, shown

if TYPE_CHECKING:
    from producer.client.client import Client
    from producer.jobs.model.worker_record import WorkerRecord

_LOOK_EVERY_S = 2.0
_DRAIN = "drain"
#: Characters a line where no terminal says how many fit.
_WIDE = 250
#: Nothing of a worker's words is shown beyond this in a table.
_LONGEST_CELL = 200
#: A process tells of itself every 5 s; one that has not for longer than this may be gone.
_SILENT_S = 10.0


def _remarks(worker: WorkerRecord) -> Iterator[str]:
    if worker.draining:
        yield "leaves"
    if worker.silent_s > _SILENT_S:
        yield f"silent for {worker.silent_s:.0f} s"
    if worker.problem:
        yield "has a problem"


_COLUMNS: dict[str, Callable[[WorkerRecord], object]] = {
    "name": lambda worker: worker.name,
    "host": lambda worker: worker.host,
    "launcher": lambda worker: worker.launcher,
    "device": lambda worker: worker.device,
    "network": lambda worker: worker.network,
    "batch": lambda worker: worker.batch_size,
    "images/s": lambda worker: None if worker.images_per_s is None else f"{worker.images_per_s:.1f}",
    "busy": lambda worker: None if worker.busy is None else f"{worker.busy:.0%}",
    "in hand": lambda worker: worker.in_hand,
    "reads": lambda worker: worker.queues or "all",
    "version": lambda worker: worker.version,
    "": lambda worker: ", ".join(_remarks(worker)),
}


@click.command(
    cls=Examples,
    epilog=examples(
        "gradcam workers",
        "gradcam workers --watch",
        "gradcam workers --json | jq '.[] | select(.problem) | .name'",
        "gradcam workers drain lab7-gpu0-1f3a             # one process",
        "gradcam workers drain lab7-4711-x8a2k0q1         # a launcher with all of its processes",
        codes=PLAIN_CODES,
    ),
)
@click.argument("drain", nargs=-1, metavar="[drain NAME...]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list; with --watch a line each time.")
@click.option("--watch", is_flag=True, help="Look again every 2 s until it is interrupted.")
def workers(drain: tuple[str, ...], as_json: bool, watch: bool) -> None:
    """List the worker processes that are alive; `drain` asks some to finish and leave.

    A NAME is that of a process, or of a launcher with all of its processes. What leaves finishes the batch on its
    device, gives the rest back to others, ends, and is not started again by its launcher. A launcher without processes
    ends, too.
    """
    if drain:
        if drain[0] != _DRAIN or len(drain) == 1:
            raise UsageError("write `gradcam workers`, or `gradcam workers drain NAME`")
        if watch:
            raise UsageError("--watch goes with the list: leave `drain` out")
        _drain(client_from_env(), drain[1:], as_json=as_json)
        return
    client = client_from_env()
    while True:
        _show(client.workers(), as_json=as_json, watch=watch)
        if not watch:
            return
        time.sleep(_LOOK_EVERY_S)


def _drain(client: Client, names: Sequence[str], *, as_json: bool) -> None:
    def ask(name: str) -> int:
        asked = client.drain(name)
        if as_json:
            out_json(asked.model_dump_json())
        elif asked.kind == "process":
            out(f"process {shown(name)} finishes its batch and leaves")
        else:
            which = ", ".join(map(shown, asked.processes))
            count = counted(len(asked.processes), "process", "processes")
            out(f"launcher {shown(name)} leaves with its {count}: {which}")
        return 0

    sys.exit(each("name", names, ask, as_json=as_json))


def _show(found: Sequence[WorkerRecord], *, as_json: bool, watch: bool) -> None:
    if as_json:
        out_json(json.dumps([worker.model_dump(mode="json") for worker in found]))
        return
    if watch and sys.stdout.isatty():
        click.clear()
    if not found:
        make_talk().print("no worker is running: start `gradcam-worker`")
        return
    from rich.table import Table

    from producer.client.talk import Talk

    # Elsewhere than on a terminal there is room.
    console = Talk(width=None if sys.stdout.isatty() else _WIDE)
    made = Table(box=None)
    for heading in _COLUMNS:
        made.add_column(heading, overflow="fold")
    for worker in found:
        made.add_row(*(_cell(column(worker)) for column in _COLUMNS.values()))
    console.print(made)
    # Sentences would make the table wider than any terminal; here a terminal breaks them where it ends.
    for worker in found:
        if worker.problem:
            out(f"{worker.name}: {worker.problem}")


def _cell(value: object) -> str:
    """What Redis holds of workers is text of strangers: on one line, and of a bounded length."""
    return shown("-" if value in {None, ""} else value, _LONGEST_CELL)
