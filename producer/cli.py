"""The `gradcam` command: data on stdout, talk on stderr, errors in one sentence.

Heavy imports stand inside the functions that need them, so that `gradcam --help` answers at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from producer.commands import results as results_cli
from producer.commands.console import (
    BUG,
    INTERRUPTED,
    PLAIN_CODES,
    SERVICE,
    USAGE,
    Examples,
    client_from_env,
    examples,
    exit_code_of,
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
from producer.jobs.model.errors import GradcamError, UsageError
from producer.jobs.model.limits import MAX_COUNT
from producer.jobs.model.states import JobState
from producer.jobs.model.terminal import out_json, out_lines, say, say_bug, say_error, say_refused

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
        for found in client.watch(job):
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
            f"left out: {found.misnamed} entries of gradcam:jobs in Redis with names that no job has: somebody else "
            "writes to this Redis, see who has its password"
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
    """Run the command; the one place where errors become sentences and exit codes."""
    # A submission that is stopped by any means tidies up after itself.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    sys.exit(run(lambda: cli(standalone_mode=False)))


def run(command: Callable[[], Any]) -> int:  # noqa: PLR0911 - a line a way to end
    """Call a command and turn what it raises into a sentence on stderr and an exit code."""
    try:
        return int(command() or 0)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        say_refused(error)
        return USAGE
    except UsageError as error:
        return _say(error, USAGE)
    except GradcamError as error:
        return _say(error, SERVICE)
    except (KeyboardInterrupt, click.Abort):
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted; Python must not complain about stdout while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _say(f"the output cannot be written ({error.strerror or error})", USAGE)
    except Exception as error:
        if _is_redis(error):
            return _say(f"Redis cannot be used any more ({type(error).__name__}): try again when it is back", SERVICE)
        say_bug(error)
        return BUG


def _say(error: object, code: int) -> int:
    say_error(error)
    return code


def _is_redis(error: BaseException) -> bool:
    # By name: an error path must not import what the happy path did without.
    modules = {type(e).__module__.split(".")[0] for e in (error, error.__cause__) if e is not None}
    return bool(modules & {"redis", "kombu"})


if __name__ == "__main__":
    main()
