"""`gradcam recover`: jobs that the store has and Redis has not."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from producer.commands.console import Examples, client_from_env, examples, make_talk
from producer.jobs.model.errors import UsageError
from producer.jobs.model.terminal import out, out_json

if TYPE_CHECKING:
    from producer.client.client import Client
    from producer.client.talk import Talk
    from producer.submission.recover import StoredJob

_CODES = (
    "Exit codes: 0 done, 1 with --all: some are left to be submitted again, 2 usage, 4 Redis or the object store "
    "cannot be used."
)
_LEFT = 1


@click.command(
    cls=Examples,
    epilog=examples("gradcam recover", "gradcam recover JOB", "gradcam recover --all", codes=_CODES),
)
@click.argument("job", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Each job of the store that had ended and is not in Redis.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON a job.")
def recover(job: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """List the jobs of the object store, or bring jobs back into Redis from there.

    For the day when Redis has lost everything. A job that had ended comes back as it was; nothing is explained again.
    Of one that was at work only its source knows all images: the list shows the command that submits it again, with
    IMAGES in the place of the source.
    """
    if job and everything:
        raise UsageError("give names of jobs, or --all")
    client, talk = client_from_env(), make_talk()
    if everything:
        sys.exit(_recover_all(client, talk, as_json=as_json))
    for one in job:
        _recover(client, talk, one, as_json=as_json)
    if not job:
        _list(client, talk, as_json=as_json)


def _recover(client: Client, talk: Talk, job: str, *, as_json: bool) -> None:
    found = client.recover(job)
    if as_json:
        out_json(found.model_dump_json())
    else:
        out(found.job, found.state, f"{found.done} done, {found.failed} failed")
    if found.hidden:
        talk.print(
            f"job {found.job}: {found.hidden} failed images cannot be tried again: no record has their whole address"
        )


def _recover_all(client: Client, talk: Talk, *, as_json: bool) -> int:
    left = 0
    for found in client.stored():
        if found.in_redis:
            continue
        if found.can_be_recovered:
            try:
                _recover(client, talk, found.job, as_json=as_json)
            except UsageError as error:  # records are missing
                left += 1
                talk.print(str(error))
        else:
            left += 1
            _show(found, as_json=as_json)
    if left:
        talk.print(f"{left} jobs are left: submit them again")
    return _LEFT if left else 0


def _list(client: Client, talk: Talk, *, as_json: bool) -> None:
    missing = 0
    for found in client.stored():
        missing += not found.in_redis
        _show(found, as_json=as_json)
    talk.print(
        f"{missing} jobs are not in Redis; those that had ended come back by `gradcam recover --all`"
        if missing
        else "Redis has every job of the store"
    )


def _show(found: StoredJob, *, as_json: bool) -> None:
    if as_json:
        out_json(found.model_dump_json())
        return
    counts = "-" if found.total is None else f"{found.done} done, {found.failed} failed of {found.total}"
    where = "in Redis" if found.in_redis else "not in Redis"
    facts = (found.job, found.state, found.network or "-", counts, where)
    if found.command:
        out(*facts, command=found.command)
    else:
        out(*facts, found.problem or "-")
