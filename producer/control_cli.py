"""The verbs of `gradcam` that change a job that is there: cancel, pause, resume, retry, audit."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from producer.console import Examples, end, examples, follow_job, make_client, make_talk, one_line

if TYPE_CHECKING:
    from producer.client import Client
    from producer.jobs.spec import JobStatus

_JSON_HELP = "Print a line of JSON a job: its status."
_DIFFERENT = 1


@click.command(cls=Examples, epilog=examples("gradcam cancel JOB", "gradcam cancel JOB OTHER --json"))
@click.argument("job", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
def cancel(job: tuple[str, ...], as_json: bool) -> None:
    """Stop jobs for good.

    What is done stays done, with its pictures; workers stop after the batch in hand.
    """
    _each(job, as_json, lambda client, one: client.cancel(one))


@click.command(cls=Examples, epilog=examples("gradcam pause JOB", "gradcam resume JOB"))
@click.argument("job", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
def pause(job: tuple[str, ...], as_json: bool) -> None:
    """Hand out nothing more of jobs until they are resumed."""
    _each(job, as_json, lambda client, one: client.pause(one))


@click.command(cls=Examples, epilog=examples("gradcam resume JOB"))
@click.argument("job", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
def resume(job: tuple[str, ...], as_json: bool) -> None:
    """Go on with paused jobs."""
    _each(job, as_json, lambda client, one: client.resume(one))


@click.command(
    cls=Examples,
    epilog=examples(
        "gradcam retry JOB", "gradcam retry JOB --reason fetch --wait", "gradcam status JOB   # lists the reasons"
    ),
)
@click.argument("job")
@click.option("--reason", help="Only images that failed for it, such as fetch, timeout or store.")
@click.option("--wait", is_flag=True, help="Stay until the job ends.")
@click.option("--json", "as_json", is_flag=True, help="Print the job's status as JSON.")
def retry(job: str, reason: str | None, wait: bool, as_json: bool) -> None:
    """Try the failed images of a job that has ended once more.

    The counts follow. A job that failed as a whole goes on with what is left of it.
    """
    client, talk = make_client(), make_talk()
    count = client.retry(job, reason=reason)
    talk.print(f"{count} failed images are tried again" if count else f"job {job} goes on")
    if wait:
        end(follow_job(client, talk, job), as_json, talk)
    if as_json:
        click.echo(client.status(job).model_dump_json())
    else:
        talk.print(f"watch it: gradcam status {job} --watch")


@click.command(
    cls=Examples,
    epilog=examples("gradcam audit JOB", "gradcam audit JOB --json | jq -r .key", "gradcam audit JOB --repair")
    + "\nHere 1 means that something was missing or extra, also when --repair has set it right.",
)
@click.argument("job")
@click.option("--repair", is_flag=True, help="Delete extra objects; explain images with missing ones again.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each difference.")
def audit(job: str, repair: bool, as_json: bool) -> None:
    """Compare what is called done with the objects in the store."""
    client, talk = make_client(), make_talk()
    counts: Counter[str] = Counter()
    for finding in client.audit(job, repair=repair):
        counts[finding.kind] += 1
        if as_json:
            click.echo(finding.model_dump_json(exclude={"result"}, exclude_none=True))
        else:
            click.echo(one_line(f"{finding.kind}\t{'-' if finding.index is None else finding.index}\t{finding.key}"))
    status = client.status(job)
    talk.print(f"{status.done} images done: {counts['missing']} objects missing, {counts['extra']} extra")
    if not counts:
        return
    if repair:
        again = status.state in {"running", "finalizing"}
        talk.print(f"set right: gradcam status {job} --watch" if again else "set right")
    else:
        talk.print(f"set it right: gradcam audit {job} --repair")
    sys.exit(_DIFFERENT)


def _each(jobs: tuple[str, ...], as_json: bool, verb: Callable[[Client, str], JobStatus]) -> None:
    client = make_client()
    for job in jobs:
        status = verb(client, job)
        left = "" if status.ended else f", {status.pending} pending"
        words = f"{status.job}\t{status.state}\t{status.done} done, {status.failed} failed{left}"
        click.echo(status.model_dump_json() if as_json else words)


COMMANDS = (cancel, pause, resume, retry, audit)
