"""What all commands of `gradcam` share: help with examples, a client, and how a job looks on a terminal.

Heavy imports stand inside the functions that need them, so that `gradcam --help` answers at once.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import click

from producer.jobs.model.errors import GradcamError, JobError, StoreError, UsageError
from producer.jobs.model.terminal import out_json, say_error
from producer.jobs.model.text import in_json, quoted, shown

if TYPE_CHECKING:
    from producer.client.client import Client
    from producer.client.talk import Talk
    from producer.jobs.model.status import JobStatus

CODES = (
    "Exit codes: 0 all images done, 1 some images failed, 2 usage, 3 the job failed or was cancelled, "
    "4 Redis, the object store or this disk cannot be used."
)


#: Exit codes beside those of jobs, which `producer.client.watch` has.
USAGE, SERVICE, TIMED_OUT, BUG = 2, 4, 5, 70
_LONGEST_S = 100 * 366 * 86_400.0
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Duration(click.ParamType[float]):
    """A time as 90s, 15m, 2h or 1d, in seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it; a plain number is seconds."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value))
        if found is None:
            self.fail(f"{quoted(value)} is no time: write 90s, 15m, 2h or 1d", param, ctx)
        seconds = float(found[1]) * _UNITS[found[2] or "s"]
        if seconds > _LONGEST_S:
            self.fail(f"{shown(value, 40)} is too long: a hundred years are the most", param, ctx)
        return seconds


#: Of verbs whose code does not say how a job stands.
PLAIN_CODES = "Exit codes: 0 done, 2 usage, 4 Redis, the object store or this disk cannot be used."


class Examples(click.Command):
    """A command whose epilog keeps its line breaks, and whose `--json` holds for errors, too."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; with `--json` an error is also an object on stdout."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            found = explained(error)
            if found is not None and ctx.params.get("as_json"):
                job = ctx.params.get("job")
                _out_error(*found, {"job": job} if isinstance(job, str) else {})
            raise

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog as it is."""
        if self.epilog:
            formatter.write_paragraph()
            for line in self.epilog.splitlines():
                formatter.write(f"{line}\n")


class Renamed(click.Option):
    """An option that is still read by its earlier name, which help and docs no longer show.

    Args:
        earlier: That name.
    """

    def __init__(self, *arguments: Any, earlier: str, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._earlier = earlier

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Read both names."""
        super().add_to_parser(parser, ctx)
        parser.add_option(obj=self, opts=[self._earlier], dest=self.name, action="store", nargs=self.nargs)


def examples(*lines: str, codes: str = CODES) -> str:
    """An epilog: examples, a line each, and the exit codes."""
    return "\n".join(["Examples:", *(f"  {line}" for line in lines), "", codes])


def explained(error: Exception) -> tuple[str, int] | None:
    """Give the sentence and the exit code of an error; None where it is a bug, or no error that anybody has to read."""
    if isinstance(error, UsageError):
        return str(error), USAGE
    if isinstance(error, GradcamError):
        return str(error), SERVICE
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        from producer.output.atomic_file import not_written

        return explained(not_written("the output", error))
    if _is_redis(error):
        return f"Redis cannot be used any more ({type(error).__name__}): try again when it is back", SERVICE
    return None


def _is_redis(error: BaseException) -> bool:
    # By name: an error path must not import what the happy path did without.
    modules = {type(e).__module__.split(".")[0] for e in (error, error.__cause__) if e is not None}
    return bool(modules & {"redis", "kombu"})


def _out_error(sentence: str, code: int, name: Mapping[str, str]) -> None:
    """Print an error as JSON, for programs that read stdout, behind the name of what it is the error of."""
    out_json(json.dumps({**name, "error": sentence, "exit_code": code}, ensure_ascii=False))


def each(kind: str, names: Iterable[str], act: Callable[[str], int], *, as_json: bool = False) -> int:
    """Act on jobs, or on what else has names; what cannot be acted on is told and does not stop the others.

    Args:
        kind: What they are in JSON, `job`.
        names: Their names.
        act: What to do; gives an exit code.
        as_json: Whether errors are printed as JSON as well.

    Returns:
        The gravest exit code.

    Raises:
        ServiceError, WorkerError: What all need is away: the others would fail alike.
    """
    gravest = 0
    for name in names:
        try:
            code = act(name)
        except (UsageError, JobError, StoreError) as error:
            code = USAGE if isinstance(error, UsageError) else SERVICE
            say_error(error)
            if as_json:
                _out_error(str(error), code, {kind: name})
        gravest = max(gravest, code)
    return gravest


def client_from_env() -> Client:
    """A client of the environment's settings. Raises SettingsError."""
    from producer.client.client import Client

    return Client.from_env()


def registered_networks() -> set[str]:
    """The networks that workers which are alive have registered; none where nobody can be asked."""
    try:
        return client_from_env().registered_networks()
    except GradcamError:
        return set()


def make_talk() -> Talk:
    """Where talk goes: stderr."""
    from producer.client.talk import Talk

    return Talk(stderr=True, soft_wrap=True)


class TerminalLines:
    """A terminal as a file for whole lines: what would move the cursor or turn the text is shown as JSON writes it.

    Args:
        terminal: Where it is shown.
    """

    def __init__(self, terminal: BinaryIO) -> None:
        self._terminal = terminal

    def write(self, line: bytes) -> int:
        """Show a line; line breaks within it are shown as well."""
        text = line.decode(errors="replace").removesuffix("\n")
        safe = "\t".join(in_json(cell).replace("\n", "\\n") for cell in text.split("\t"))
        return self._terminal.write(safe.encode() + b"\n")


def follow_job(client: Client, talk: Talk, job: str) -> JobStatus:
    """Show a job's progress until its end; its last status."""
    from producer.client.watch import follow

    try:
        return follow(client.watch(job, waiting=talk.print), talk)
    except KeyboardInterrupt:
        talk.print(f"job {job} goes on: gradcam status {job} --watch")
        raise


def summary_of(status: JobStatus) -> str:
    """A status as lines for a person."""
    from producer.client.watch import summary

    return summary(status)


def exit_code_of(status: JobStatus) -> int:
    """The exit code that says how a job stands."""
    from producer.client.watch import exit_code

    return exit_code(status)


def counts_of(status: JobStatus) -> str:
    """A status's counts in a few words."""
    left = "" if status.ended else f", {status.pending} pending"
    return f"{status.done} done, {status.failed} failed{left}"


def end(status: JobStatus, as_json: bool, talk: Talk) -> NoReturn:
    """Show a job's last status and exit with its code."""
    if as_json:
        out_json(status.model_dump_json())
    else:
        talk.print_lines(summary_of(status))
    if status.failed:
        talk.print(f"why: gradcam failures {status.job}")
    sys.exit(exit_code_of(status))
