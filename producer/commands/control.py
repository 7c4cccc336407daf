"""The verbs of `gradcam` for jobs that are there: cancel, pause, resume, retry, audit, delete, wait; and doctor."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import click

from producer.commands.console import (
    PLAIN_CODES,
    SERVICE,
    TIMED_OUT,
    Duration,
    Examples,
    Renamed,
    client_from_env,
    counts_of,
    each,
    end,
    examples,
    exit_code_of,
    follow_job,
    make_talk,
)
from producer.jobs.model.errors import UnreadableJob, UsageError
from producer.jobs.model.terminal import out, out_json
from producer.jobs.model.text import counted, shown

if TYPE_CHECKING:
    from producer.jobs.model.status import JobStatus

_JSON_HELP = "Print a line of JSON a job: its status."
#: Why somebody does something; 0.4.0 called it --because where --reason meant something else.
_REASON = click.option(
    "--reason",
    cls=Renamed,
    earlier="--because",
    metavar="TEXT",
    help="Why you do this; it is kept with who and when, and `gradcam history` shows it.",
)
_DIFFERENT = 1
_AGAIN = "submit their source again under another name"


@click.command(cls=Examples, epilog=examples("gradcam cancel JOB", "gradcam cancel JOB OTHER --json"))
@click.argument("job", nargs=-1, required=True)
@_REASON
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
def cancel(job: tuple[str, ...], reason: str | None, as_json: bool) -> None:
    """Stop jobs for good.

    What is done stays done, with its pictures; workers stop after the current batch.
    """
    client = client_from_env()
    sys.exit(each("job", job, lambda one: _print(client.cancel(one, reason=reason), as_json), as_json=as_json))


@click.command(
    cls=Examples,
    epilog=examples('gradcam pause JOB --reason "until the review is done"', "gradcam resume JOB", codes=PLAIN_CODES),
)
@click.argument("job", nargs=-1, required=True)
@_REASON
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
def pause(job: tuple[str, ...], reason: str | None, as_json: bool) -> None:
    """Hand out nothing more of jobs until they are resumed."""
    client = client_from_env()
    sys.exit(each("job", job, lambda one: _print(client.pause(one, reason=reason), as_json), as_json=as_json))


@click.command(cls=Examples, epilog=examples("gradcam resume JOB", codes=PLAIN_CODES))
@click.argument("job", nargs=-1, required=True)
@_REASON
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
def resume(job: tuple[str, ...], reason: str | None, as_json: bool) -> None:
    """Go on with paused jobs."""
    client = client_from_env()
    sys.exit(each("job", job, lambda one: _print(client.resume(one, reason=reason), as_json), as_json=as_json))


@click.command(
    cls=Examples,
    epilog=examples(
        "gradcam retry JOB",
        "gradcam status JOB   # lists why images failed",
        "gradcam retry JOB --only fetch --wait",
        'gradcam retry JOB --only fetch --reason "the bucket is back"',
    ),
)
@click.argument("job")
@click.option("--only", metavar="REASON", help="Only images that failed for it, such as fetch, timeout or store.")
@_REASON
@click.option("--wait", is_flag=True, help="Stay until the job ends.")
@click.option("--json", "as_json", is_flag=True, help="Print the job's status as JSON.")
def retry(job: str, only: str | None, reason: str | None, wait: bool, as_json: bool) -> None:
    """Try the failed images of a job that has ended once more.

    The counts follow. A job that failed as a whole goes on with what is left of it. Local files are tried again as they
    were uploaded: where you corrected one since, submit the file itself.
    """
    client, talk = client_from_env(), make_talk()
    count = client.retry(job, only=only, reason=reason)
    again = f"{counted(count, 'failed image')} {'is' if count == 1 else 'are'} tried again"
    talk.print(again if count else f"job {job} goes on")
    if wait:
        end(follow_job(client, talk, job), as_json, talk)
    if as_json:
        out_json(client.status(job).model_dump_json())
    else:
        talk.print(f"watch it: gradcam status {job} --watch")


@click.command(
    cls=Examples, epilog=examples("gradcam history JOB", "gradcam history JOB --json | jq -r .who", codes=PLAIN_CODES)
)
@click.argument("job")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each thing that was done.")
def history(job: str, as_json: bool) -> None:
    """List what was done to a job: when, which verb, who, and why.

    The 50 latest are kept, and stand in job.json when the job has ended.
    """
    found = client_from_env().history(job)
    for action in found:
        if as_json:
            out_json(action.model_dump_json())
        else:
            words = (f"{action.at:%Y-%m-%d %H:%M:%S} UTC", action.verb, action.who or "-", action.reason or "-")
            out(*words)
    if not found and not as_json:
        make_talk().print(f"nobody has cancelled, paused, resumed, retried, repaired or recovered job {job}")


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
    client, talk = client_from_env(), make_talk()
    counts: Counter[str] = Counter()
    beyond, hidden = 0, 0
    for finding in client.audit(job, repair=repair):
        counts[finding.kind] += 1
        if finding.kind in {"missing", "empty"} and finding.again is None and finding.index is not None:
            beyond, hidden = beyond + (finding.result is None), hidden + (finding.result is not None)
        if as_json:
            out_json(finding.model_dump_json(exclude={"result"}, exclude_none=True))
        else:
            where = finding.key if finding.line is None else f"{finding.key} line {finding.line}"
            out(finding.kind, "-" if finding.index is None else finding.index, where)
    status = client.status(job)
    talk.print(f"{counted(status.done, 'image')} done: {_found(counts)}")
    if not counts:
        return
    if repair:
        again = status.state in {"running", "finalizing"}
        talk.print(f"set right: gradcam status {job} --watch" if again else "set right")
    elif beyond + hidden + counts["newer"] < counts.total():
        talk.print(f"set it right: gradcam audit {job} --repair")
    if beyond:
        talk.print(f"of {counted(beyond, 'image')} the manifest is gone as well: {_AGAIN}")
    if hidden:
        talk.print(f"{hidden} of them cannot be made again, as no record has their images' whole addresses: {_AGAIN}")
    sys.exit(_DIFFERENT)


def _found(counts: Counter[str]) -> str:
    said = [f"{counted(counts['missing'], 'object')} missing", f"{counts['extra']} extra"]
    if counts["empty"]:
        said.append(f"{counts['empty']} empty")
    if counts["damaged"]:
        said.append(f"{counted(counts['damaged'], 'record')} that cannot be read")
    if counts["newer"]:
        said.append(f"{counted(counts['newer'], 'record')} of a newer version of gradcam-queue (update this one)")
    return ", ".join(said)


def _print(status: JobStatus, as_json: bool) -> int:
    """Print where a job stands; it was acted on."""
    if as_json:
        out_json(status.model_dump_json())
    else:
        out(status.job, status.state, counts_of(status))
    return 0


@click.command(
    cls=Examples,
    epilog=examples(
        "gradcam delete JOB", "gradcam delete JOB --objects --yes", "gradcam delete OLD OLDER", codes=PLAIN_CODES
    ),
)
@click.argument("job", nargs=-1, required=True)
@click.option("--objects", is_flag=True, help="Also its pictures, manifests and uploaded images in the store.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(job: tuple[str, ...], objects: bool, yes: bool) -> None:
    """Forget jobs that have ended, or that cannot be read.

    Uploaded weights stay: other jobs share them.
    """
    client, talk = client_from_env(), make_talk()

    def forget(one: str) -> int:
        also = " and all its objects in the store" if objects else "; its objects in the store stay"
        if not yes:
            try:
                status = client.status(one)
                what = f"{status.state}, {counted(status.total, 'image')}"
            except UnreadableJob:
                what = "it cannot be read"
            if not sys.stdin.isatty():
                raise UsageError("nobody can be asked here: give --yes")
            if not click.confirm(f"forget job {shown(one)} ({what}){also}?", err=True):
                talk.print(f"job {one} stays")
                return 0
        count = client.delete(one, objects=objects)
        stay = "; its pictures stay in the store: a job of its name takes them over, and `gradcam recover` lists it"
        talk.print(f"job {one} is forgotten" + (f", {counted(count, 'object')} deleted" if objects else stay))
        return 0

    sys.exit(each("job", job, forget))


@click.command(
    cls=Examples,
    epilog=examples("gradcam wait JOB", "gradcam wait JOB OTHER --timeout 2h && echo all done")
    + f"\nOf several jobs the gravest code counts; {TIMED_OUT}: they had not all ended by then.",
)
@click.argument("job", nargs=-1, required=True)
@click.option("--timeout", type=Duration(), help="Give up waiting after 90s, 15m, 2h or 1d; the jobs go on.")
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
def wait(job: tuple[str, ...], timeout: float | None, as_json: bool) -> None:
    """Wait until jobs have ended, and say how they did."""
    client, talk = client_from_env(), make_talk()
    deadline = None if timeout is None else time.monotonic() + timeout
    known: list[str] = []

    def look(one: str) -> int:
        next(client.watch(one, waiting=talk.print))
        known.append(one)
        return 0

    def wait_for(one: str) -> int:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            status = client.wait(one, timeout_s=left)
            code = exit_code_of(status)
        except TimeoutError as error:
            talk.print(str(error))
            code, status = TIMED_OUT, client.status(one)
        if status.error:
            talk.print(f"job {one}: {status.error}")
        _print(status, as_json)
        return code

    # A name that is none is told before an hour is waited.
    unknown = each("job", job, look, as_json=as_json)
    sys.exit(max(unknown, each("job", known, wait_for, as_json=as_json)))


@click.command(
    cls=Examples,
    epilog="Examples:\n  gradcam doctor\n  gradcam doctor --json\n\nExit codes: 0 jobs can run, 4 they cannot.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each question.")
def doctor(as_json: bool) -> None:
    """Check Redis, the object store, the clock and the workers; say what to do where something is wrong."""
    from producer.jobs.model.settings import Connections, read
    from producer.maintenance.doctor import examine

    verdicts = set()
    for answer in examine(read(Connections)):
        verdicts.add(answer.verdict)
        if as_json:
            out_json(answer.model_dump_json())
        else:
            out(f"{answer.verdict:<5} {answer.check:<12} {answer.words}")
    sys.exit(SERVICE if "bad" in verdicts else 0)


COMMANDS = (cancel, pause, resume, retry, history, audit, delete, wait, doctor)
