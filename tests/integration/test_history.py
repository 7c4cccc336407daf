"""What was done to a job is kept with who, when and why: for `gradcam history`, for its status, in job.json."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from command import gradcam
from in_process_worker import InProcessWorker

from producer.client.client import Client
from producer.jobs.model import keys
from producer.jobs.model.errors import UnknownJob, UsageError
from producer.jobs.model.history import user_and_host
from producer.jobs.model.states import WaitReason

if TYPE_CHECKING:
    import redis

IMAGES = ("s3://photos/0.jpg", "s3://photos/1.jpg")


@pytest.fixture
def job(unattended: Client) -> str:
    return unattended.submit(IMAGES, chunk_size=1, network="resnet18", outputs=["cam"])


def verbs(client: Client, job: str) -> list[tuple[str, str]]:
    return [(action.verb, action.reason) for action in client.history(job)]


def test_what_was_done_is_listed_with_who_and_why_and_stands_in_the_summary(unattended: Client, job: str) -> None:
    gradcam("pause", job, "--reason", " until the review is done ")
    status = unattended.status(job)
    assert status.waits_reason is WaitReason.PAUSED
    assert status.waits is not None
    assert status.waits.startswith(f"paused by {user_and_host()} at 20")
    assert "(until the review is done)" in status.waits
    gradcam("pause", job, "--reason", "again")  # it is paused already: nothing was done
    gradcam("resume", job, env={"GRADCAM_USER": "the night shift"})
    hands = InProcessWorker(unattended)
    hands.gone = {IMAGES[1]}
    hands.explain_all(job)
    gradcam("retry", job, "--only", "fetch", "--reason", "the bucket is back")
    gradcam("cancel", job, "--because", "enough")
    expected = [
        ("pause", "until the review is done"),
        ("resume", ""),
        ("retry", "the bucket is back"),
        ("cancel", "enough"),
    ]
    assert verbs(unattended, job) == expected
    told = [json.loads(line) for line in gradcam("history", job, "--json").stdout.splitlines()]
    assert [(one["verb"], one["reason"]) for one in told] == expected
    assert [one["who"] for one in told][:2] == [user_and_host(), "the night shift"]
    assert gradcam("history", job).stdout.splitlines()[-1].endswith(f"\tcancel\t{user_and_host()}\tenough")
    written = json.loads(unattended.storage.get(keys.summary(unattended.storage.prefix, job)))
    assert [(one["verb"], one["reason"]) for one in written["history"]] == expected


def test_a_retry_keeps_why_it_is_done_and_chooses_no_images_by_it(unattended: Client, job: str) -> None:
    hands = InProcessWorker(unattended)
    hands.gone = {*IMAGES}
    hands.explain_all(job)
    assert "2 failed images" in gradcam("retry", job, "--reason", "the bucket is back").stderr
    hands.explain_all(job)
    assert unattended.retry(job, because="what 0.4.0 called it") == 2
    hands.explain_all(job)
    assert unattended.retry(job, only="fetch", reason="fetch") == 2
    assert verbs(unattended, job) == [
        ("retry", "the bucket is back"),
        ("retry", "what 0.4.0 called it"),
        ("retry", "fetch"),
    ]


def test_who_means_a_retry_of_some_images_by_the_option_of_0_4_0_does_not_retry_all(
    unattended: Client, job: str
) -> None:
    """`--reason fetch` chose images; now it is why one tries, and all images would be tried again."""
    hands = InProcessWorker(unattended)
    hands.gone = {*IMAGES}
    hands.explain_all(job)
    for typed, meant in (("timeout", "timeout"), (" fetch ", "fetch"), ("fetsh", "fetch"), ("time-out", "timeout")):
        refused = gradcam("retry", job, "--reason", typed, code=2).stderr
        assert f"say --only {meant}, in Python only='{meant}'" in refused
    with pytest.raises(UsageError, match="say --only image"):
        unattended.retry(job, reason="image", because="a new decoder")
    assert unattended.history(job) == []
    assert unattended.status(job).failed == 2


def test_failures_are_chosen_as_a_retry_chooses_them_and_by_the_option_of_0_4_0(unattended: Client, job: str) -> None:
    hands = InProcessWorker(unattended)
    hands.gone = {IMAGES[1]}
    hands.explain_all(job)
    for option in ("--only", "--reason"):
        assert gradcam("failures", job, option, "fetch").stdout.startswith("1\tfetch\t")
        assert gradcam("failures", job, option, "timeout").stdout == ""
    assert [failure.index for failure in unattended.failures(job, reason="fetch")] == [1]
    assert list(unattended.failures(job, only="timeout")) == []


def test_a_list_of_what_was_done_has_bounds_and_goes_with_its_job(
    unattended: Client, job: str, redis_client: redis.Redis
) -> None:
    for number in range(30):
        unattended.pause(job, reason=str(number))
        unattended.resume(job)
    assert len(unattended.history(job)) == 50
    assert verbs(unattended, job)[-2:] == [("pause", "29"), ("resume", "")]
    with pytest.raises(UsageError, match="at most 500"):
        unattended.pause(job, reason="x" * 501)
    unattended.cancel(job)
    assert redis_client.ttl(f"gradcam:job:{job}:history") > 0
    unattended.delete(job)
    assert not redis_client.exists(f"gradcam:job:{job}:history")
    with pytest.raises(UnknownJob):
        unattended.history(job)


@pytest.mark.parametrize(
    "entry",
    [b"", b"{", b"[]", b"\xff", b'{"verb": "pause"}', b'{"verb": "pause", "at": "x"}',
     b'{"verb": "pause", "at": 1e300}', b'{"verb": "pause", "at": "1", "reason": "' + b"x" * 501 + b'"}',
     b'{"verb": 1, "at": "1"}'],
)  # fmt: skip
def test_an_entry_that_is_not_as_we_write_it_hides_no_other(
    unattended: Client, job: str, redis_client: redis.Redis, entry: bytes
) -> None:
    unattended.pause(job)
    redis_client.rpush(f"gradcam:job:{job}:history", entry)
    assert verbs(unattended, job) == [("pause", "")]
    assert unattended.status(job).waits == f"paused: `gradcam resume {job}` goes on with it"


def test_a_strangers_words_in_a_history_stay_on_their_line(
    unattended: Client, job: str, redis_client: redis.Redis
) -> None:
    evil = json.dumps({"verb": "pause", "who": "\x1b[2J", "reason": "a\nb\tc", "at": "1"})
    redis_client.rpush(f"gradcam:job:{job}:history", evil)
    assert gradcam("history", job).stdout == "1970-01-01 00:00:01 UTC\tpause\t\\x1b[2J\ta\\nb\\tc\n"
    assert gradcam("history", "nobody", code=2).stderr.startswith("Error: ")
