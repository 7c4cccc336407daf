"""The `gradcam` command: data on stdout, talk on stderr, errors in one sentence.

Heavy imports stand inside the functions that need them, so that `gradcam --help` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from producer.commands import results as results_cli
from producer.commands.console import (
    BUG,
    PLAIN_CODES,
    USAGE,
    Examples,
    client_from_env,
    examples,
    exit_code_of,
    explained,
    follow_job,
    make_talk,
    summary_of,
)
from producer.commands.control import COMMANDS
from producer.commands.metrics import metrics
from producer.commands.recover import recover
from producer.commands.submit import submit
from producer.commands.workers import workers
from producer.jobs.model import release
from producer.jobs.model.errors import GradcamError
from producer.jobs.model.interrupt import INTERRUPTED, UNREAD, run_guarded, wished
from producer.jobs.model.limits import MAX_COUNT
from producer.jobs.model.states import JobState
from producer.jobs.model.terminal import out_json, out_lines, say, say_bug, say_error, say_refused
from producer.jobs.model.text import counted

#: Characters a line where no terminal says how many fit.
_WIDE = 250


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(release.own(), prog_name="gradcam")
def cli() -> None:
    """Show where a convolutional network looked, for as many images as you have.

    Settings come from the environment: GRADCAM_REDIS_URL, GRADCAM_S3_BUCKET, GRADCAM_S3_ENDPOINT_URL,
    GRADCAM_S3_PREFIX and the usual AWS_*.
    """


@cli.command(
    cls=Examples,
    epilog=examples(
        "gradcam status JOB",
        "gradcam status JOB --watch",
        "gradcam status JOB --json | jq .done",
        "gradcam status JOB --watch --jsonl >> progress.jsonl",
    ),
)
@click.argument("job")
@click.option("--watch", is_flag=True, help="Show progress until the job ends; a Redis that restarts is waited for.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON; with --watch the last one.")
@click.option("--jsonl", "as_jsonl", is_flag=True, help="With --watch, print each status as a line of JSON.")
def status(job: str, watch: bool, as_json: bool, as_jsonl: bool) -> None:
    """Say where a job stands."""
    client, talk = client_from_env(), make_talk()
    if watch and as_jsonl:
        for found in client.watch(job, waiting=talk.print):
            out_json(found.model_dump_json())
        sys.exit(exit_code_of(found))
    found = follow_job(client, talk, job) if watch else client.status(job)
    if as_json or as_jsonl:
        out_json(found.model_dump_json())
    else:
        out_lines(summary_of(found))
    sys.exit(exit_code_of(found))


@cli.command(
    name="list",
    cls=Examples,
    epilog=examples(
        "gradcam list",
        "gradcam list --state running --state paused",
        "gradcam list --name 'audit-*' --limit 100 --offset 100 --json",
        codes=PLAIN_CODES,
    ),
)
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=20, show_default=True, help="How many.")
@click.option(
    "--offset", type=click.IntRange(0, MAX_COUNT), default=0, help="Leave out so many of the newest: the next page."
)
@click.option("--state", multiple=True, type=click.Choice([s.value for s in JobState]), help="Only jobs in this state.")
@click.option("--name", help="Only jobs whose name matches, with * and ?.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_jobs(limit: int, offset: int, state: tuple[str, ...], name: str | None, as_json: bool) -> None:
    """List jobs, newest first."""
    found = client_from_env().list(limit=limit, offset=offset, state=state, name=name)
    if found.misnamed:
        make_talk().print(
            f"left out: {counted(found.misnamed, 'entry', 'entries')} of gradcam:jobs in Redis with names that no job "
            "has: somebody else writes to this Redis, see who has its password"
        )
    if as_json:
        out_json(json.dumps([job.model_dump(mode="json") for job in found]))
        return
    if not found:
        none = "no such jobs" if offset or state or name else "no jobs yet: gradcam submit photos/"
        make_talk().print(none)
        return
    from producer.client.talk import Talk
    from producer.client.watch import table

    # Elsewhere than on a terminal there is room.
    console = Talk(width=None if sys.stdout.isatty() else _WIDE)
    console.print(table(found, console))
    talk = make_talk()
    for job in found:
        if job.state is JobState.UNREADABLE:
            talk.print(str(job.problem))
    if len(found) == limit:
        talk.print(f"more: --offset {offset + limit}")


for _command in (submit, workers, *COMMANDS, recover, *results_cli.COMMANDS, metrics):
    cli.add_command(_command)


def main() -> NoReturn:
    """Run the command; `gradcam` itself begins in `deploy/cli.py`, where less is imported before Ctrl-C is heard."""
    run_guarded(lambda: run(lambda: cli(standalone_mode=False)))


def run(command: Callable[[], Any]) -> int:  # noqa: PLR0911 - a line a way to end
    """Call a command; the one place where errors become a sentence on stderr and an exit code."""
    try:
        return int(command() or 0)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        say_refused(error)
        return USAGE
    except (KeyboardInterrupt, click.Abort):
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        return UNREAD
    except Exception as error:
        if found := explained(error):
            say_error(error if isinstance(error, GradcamError) else found[0])
            return found[1]
        if wished():
            say("interrupted")  # a library made another error of it
            return INTERRUPTED
        say_bug(error)
        return BUG


if __name__ == "__main__":
    main()
