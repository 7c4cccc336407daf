"""`gradcam recover`: jobs that the store has and Redis has not."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from producer.commands.console import Examples, client_from_env, each, examples, make_talk
from producer.jobs.model.errors import UsageError
from producer.jobs.model.terminal import out, out_json
from producer.jobs.model.text import counted

if TYPE_CHECKING:
    from producer.client.client import Client
    from producer.client.talk import Talk
    from producer.submission.recover import StoredJob

_CODES = (
    "Exit codes: 0 done, 1 with --all: some are left to be submitted again or could not be recovered, 2 usage, 4 Redis "
    "or the object store cannot be used."
)
_LEFT = 1


@click.command(
    cls=Examples,
    epilog=examples("gradcam recover", "gradcam recover JOB OTHER", "gradcam recover --all", codes=_CODES),
)
@click.argument("job", nargs=-1)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Each job of the store that had ended and is not in Redis, less those that Redis would have forgotten by now.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON a job.")
def recover(job: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """List the jobs of the object store, or bring jobs back into Redis from there.

    For the day when Redis has lost everything. A job that had ended comes back as it was; nothing is explained again.
    Where that is broken off, the same command goes on. Of a job that was at work only its source knows all images: the
    list shows the command that submits it again, with IMAGES in the place of the source.
    """
    if job and everything:
        raise UsageError("give names of jobs, or --all")
    client, talk = client_from_env(), make_talk()
    if everything:
        sys.exit(_recover_all(client, talk, as_json=as_json))
    if job:
        sys.exit(each("job", job, lambda one: _recover(client, talk, one, as_json=as_json), as_json=as_json))
    _list(client, talk, as_json=as_json)


def _recover(client: Client, talk: Talk, job: str, *, as_json: bool) -> int:
    found = client.recover(job, waiting=talk.print)
    if as_json:
        out_json(found.model_dump_json())
    else:
        out(found.job, found.state, f"{found.done} done, {found.failed} failed")
    if found.hidden:
        talk.print(
            f"job {found.job}: {counted(found.hidden, 'failed image')} cannot be tried again: no record has "
            "the whole address"
        )
    if found.weights_hidden:
        talk.print(
            f"job {found.job}: no record has the whole address of its weights, so nothing of it can be tried again: "
            f"for that `gradcam delete {found.job}`, then submit its source again"
        )
    return 0


def _recover_all(client: Client, talk: Talk, *, as_json: bool) -> int:
    left, expired, blanks = 0, 0, dict[str, None]()

    def bring_back(job: str) -> int:
        return _recover(client, talk, job, as_json=as_json)

    for found in client.stored():
        if found.expired:
            expired += 1
        elif found.can_be_recovered:
            left += each("job", [found.job], bring_back, as_json=as_json) > 0
        elif not found.in_redis:
            left += 1
            _show(found, as_json=as_json)
            blanks[found.blanks or ""] = None
    _tell_blanks(talk, blanks)
    if expired:
        talk.print(_expired(expired) + ": `gradcam recover JOB` brings one back all the same")
    if left:
        talk.print(f"{counted(left, 'job is left: submit its', 'jobs are left: submit their')} images again")
    return _LEFT if left else 0


def _list(client: Client, talk: Talk, *, as_json: bool) -> None:
    missing, expired, blanks = 0, 0, dict[str, None]()
    for found in client.stored():
        expired += found.expired
        missing += not found.expired and (not found.in_redis or found.can_be_recovered)
        _show(found, as_json=as_json)
        blanks[found.blanks or ""] = None
    _tell_blanks(talk, blanks)
    if expired:
        talk.print(_expired(expired))
    talk.print(
        f"{counted(missing, 'job is', 'jobs are')} not in Redis, or in part; those that had ended come back by "
        "`gradcam recover --all`"
        if missing
        else "Redis has every other job of the store"
        if expired
        else "Redis has every job of the store"
    )


def _expired(count: int) -> str:
    jobs = counted(count, "job that is not in Redis", "jobs that are not in Redis")
    return f"{jobs} ended longer ago than Redis keeps one (GRADCAM_JOB_LIFETIME_DAYS)"


def _tell_blanks(talk: Talk, blanks: Iterable[str]) -> None:
    for words in filter(None, blanks):
        talk.print(f"in the commands {words}")


def _show(found: StoredJob, *, as_json: bool) -> None:
    if as_json:
        out_json(found.model_dump_json())
        return
    counts = "-" if found.total is None else f"{found.done} done, {found.failed} failed of {found.total}"
    at = "-" if found.finished_at is None else f"{found.finished_at:%Y-%m-%d %H:%M:%S} UTC"
    where = ("in Redis in part" if found.can_be_recovered else "in Redis") if found.in_redis else "not in Redis"
    facts = (found.job, found.state, found.network or "-", counts, at, where)
    if found.command:
        out(*facts, command=found.command)
    else:
        out(*facts, found.problem or "-")
