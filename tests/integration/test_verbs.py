"""The table in docs/reliability.md of what each verb answers in each state, held against the scripts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from in_process_worker import InProcessWorker

from producer.client.client import Client
from producer.jobs.model.errors import UsageError
from producer.jobs.model.states import JobState

IMAGES = ("s3://photos/0.jpg", "s3://photos/1.jpg")
DOCS = Path(__file__).parents[2] / "docs" / "reliability.md"
DOES, REFUSED, NOTHING = "does it", "refused", "no change"


@pytest.fixture
def own(client: Client, redis_client: object, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client of a database that no worker process looks at."""
    monkeypatch.setenv(
        "GRADCAM_REDIS_URL", client._services.settings.redis_url.get_secret_value().removesuffix("/0") + "/1"
    )
    return Client.from_env()


def submit(client: Client, job: str) -> None:
    client.submit(IMAGES, name=job, chunk_size=1, network="resnet18", outputs=["cam"])


def bring(client: Client, job: str, state: JobState) -> None:
    """A job in that state, one of whose images has failed where it has ended."""
    submit(client, job)
    hands, control = InProcessWorker(client), client.table.actions
    if state in {JobState.RUNNING, JobState.PAUSED, JobState.FINALIZING, JobState.CANCELLED, JobState.FAILED}:
        match state:
            case JobState.PAUSED:
                control.pause(job)
            case JobState.FINALIZING:
                client.table.fail(job, "no such layer")
                assert client.table.finalize(job, "a worker that is slow") is not None
            case JobState.CANCELLED:
                client.cancel(job)
            case JobState.FAILED:
                client.table.fail(job, "no such layer")
                client._services.finalize_if_due(job)
    else:
        hands.gone = set() if state is JobState.SUCCEEDED else {IMAGES[1]}
        hands.explain_all(job)
        if state in {JobState.REPAIRING, JobState.DELETING}:
            control.maintain(job, state, "another client")
    assert client.table.queries.status(job).state is state


VERBS: dict[str, Callable[[Client, str], object]] = {
    "`submit` the same again": submit,
    "`cancel`": Client.cancel,
    "`pause`": Client.pause,
    "`resume`": Client.resume,
    "`retry`": Client.retry,
    "`audit --repair`": lambda client, job: list(client.audit(job, repair=True)),
    "`delete`": Client.delete,
    "`delete --objects`": lambda client, job: client.delete(job, objects=True),
}


#: These set a flag, or find it set.
FLAGS = ("`cancel`", "`pause`", "`resume`")


def state_of(client: Client, job: str) -> JobState:
    return client.table.queries.status(job).state


def written() -> dict[tuple[str, str], str]:
    """The table as it stands in the docs: verb and state → what is answered."""
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("| verb in state |"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]]
    states = [cell.strip("`") for cell in rows[0][1:]]
    found = {}
    for row in rows[2:]:
        if row[0] not in VERBS:
            break
        for state, cell in zip(states, row[1:], strict=True):
            found[row[0], state] = cell
    return found


def test_each_verb_answers_in_each_state_as_the_docs_say(own: Client) -> None:
    answers, sentences = {}, []
    for number, (verb, do) in enumerate(VERBS.items()):
        # No job is `unreadable`: a list says so of one in whatever state.
        for state in set(JobState) - {JobState.UNREADABLE}:
            job = f"{state}-{number}"
            bring(own, job, state)
            try:
                do(own, job)
                answers[verb, str(state)] = NOTHING if verb in FLAGS and state_of(own, job) is state else DOES
            except UsageError as error:
                answers[verb, str(state)] = REFUSED
                sentences.append(str(error))
    assert answers == written()
    assert all(re.search(r"`gradcam|wait|submit it again|has ended already|no failed images", s) for s in sentences)
