"""The Redis that is there: users with few rights, addresses with parameters, and a Redis that drops keys."""

from __future__ import annotations

import json
import os
import re
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from command import gradcam
from stacks import settings_of

from deploy.stack import Worker
from producer.client.client import Client
from producer.jobs.model.errors import ServiceError, Unfit
from producer.jobs.model.states import JobState
from producer.jobs.table.redis_scripts import Scripts, hello
from producer.jobs.table.redis_server import DIRECT, READING, Server, scripted
from producer.monitoring.metrics import MEMORY, MEMORY_LIMIT, measure

if TYPE_CHECKING:
    from deploy.stack import Stack

PHOTOS = Path(str(__import__("skimage").__file__)).parent / "data"
COFFEE = str(PHOTOS / "coffee.png")
OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
(LINE,) = re.findall(r"^(ACL SETUSER gradcam .*)$", OPERATIONS, re.MULTILINE)


@pytest.fixture
def admin(stack: Stack) -> Iterator[redis.Redis]:
    with closing(redis.Redis.from_url(stack.redis.url)) as made:
        before = str(made.config_get("maxmemory")["maxmemory"])
        made.config_set("maxmemory", 0)
        yield made
        made.acl_deluser("gradcam")
        made.config_set("maxmemory", before)
        made.config_set("maxmemory-policy", "noeviction")


def url_of(stack: Stack, parameters: str = "", *, database: int = 0) -> str:
    return f"redis://gradcam:PASSWORD@127.0.0.1:{stack.redis.ports['redis']}/{database}{parameters}"


def server_as(stack: Stack) -> Server:
    return Server(Scripts(redis.Redis.from_url(url_of(stack)), patience_s=0))


def start_worker(stack: Stack, code: int, **env: str) -> str:
    """A worker that refuses to start; what it says."""
    command = [sys.executable, "-m", "worker.cli", "--devices", "cpu"]
    run = subprocess.run(
        command, env={**stack.environment(), **env}, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    assert "bug" not in run.stderr
    return run.stderr


# -- rights -----------------------------------------------------------------------------------------------------------


def test_a_job_is_done_by_a_user_with_the_documented_rights_and_parameters_in_the_address(
    stack: Stack, admin: redis.Redis, tmp_path: Path
) -> None:
    """The line of the documentation, less INFO, which no job needs."""
    admin.acl_log_reset()  # it lists what tests of wrong passwords were denied, too
    admin.execute_command(*LINE.split(), "-info")
    # The other worker of this lane reads another database.
    url = url_of(stack, "?socket_timeout=5&health_check_interval=5&client_name=gradcam-test", database=1)
    with settings_of(stack, GRADCAM_REDIS_URL=url):
        own = Worker(tmp_path / "log", {**stack.environment(), "GRADCAM_REDIS_URL": url}, processes=1, devices="cpu")
        own.start()
        try:
            client = Client.from_env()
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.table.redis.info("memory")
            job = client.submit(
                [COFFEE, str(PHOTOS / "nothing.png")][:1], network="efficientnet_lite0", outputs=["cam"]
            )
            assert client.wait(job, timeout_s=120).state is JobState.SUCCEEDED
            names = {connection["name"] for connection in admin.client_list()}
            assert "gradcam-test" in names
            assert gradcam("status", job).returncode == 0
            seen = client.table.overview.read()  # what `gradcam metrics` asks
            assert (seen.kept, seen.counts, seen.memory.used_bytes) == (1, {"ended:succeeded": 1}, None)
            told = [json.loads(line) for line in gradcam("doctor", "--json").stdout.splitlines()]
            verdicts = {answer["check"]: answer["verdict"] for answer in told}
            assert verdicts["rights"] == verdicts["Redis"] == verdicts["workers"] == "ok"
            assert verdicts["eviction"] == verdicts["memory"] == "warn"
            assert next(client.list(limit=1).__iter__()).job == job
            assert client.delete(job, objects=True)
        finally:
            own.stop()
    assert "no permissions" not in (tmp_path / "log").read_text()
    entries: list[dict[Any, Any]] = admin.acl_log()
    denied = {entry[b"object"] if b"object" in entry else entry["object"] for entry in entries}
    assert denied <= {b"info", b"config|get", "info", "config|get"}


def test_a_user_with_the_documented_rights_is_told_of_memory_and_whoever_sets_no_limit_is_warned(
    stack: Stack, admin: redis.Redis
) -> None:
    """An alert is of what is used and of the limit: without either number it never fires, and nobody would know."""
    admin.execute_command(*LINE.split())
    with settings_of(stack, GRADCAM_REDIS_URL=url_of(stack)):

        def memory() -> tuple[str, set[str]]:
            told = [json.loads(line) for line in gradcam("doctor", "--json").stdout.splitlines()]
            (answer,) = (one for one in told if one["check"] == "memory")
            seen = dict(measure(Client.from_env().table.overview.read(), 20))
            return answer["verdict"], {metric.name for metric in (MEMORY, MEMORY_LIMIT) if seen.get(metric, {}).get(())}

        assert memory() == ("warn", {MEMORY.name})  # no limit
        admin.config_set("maxmemory", "1gb")
        assert memory() == ("ok", {MEMORY.name, MEMORY_LIMIT.name})
        admin.execute_command(*LINE.split(), "-info")
        assert memory() == ("warn", set())


def test_the_documentation_lists_every_command_that_is_used() -> None:
    listed = set(re.findall(r"`([A-Z]+(?: [A-Z]+)?)`", OPERATIONS))
    assert {*DIRECT, *READING, *scripted(), "EVALSHA", "SCRIPT LOAD"} - listed == set()


def test_each_right_that_is_taken_away_is_named(stack: Stack, admin: redis.Redis) -> None:
    for command in sorted({*DIRECT, *READING, *scripted()} - {"PING"}):
        admin.execute_command(*LINE.split(), f"-{command.lower()}")
        assert server_as(stack).missing() == [command]
    admin.execute_command(*LINE.split())
    assert server_as(stack).missing() == []
    assert admin.keys("gradcam:rights*") == []


@pytest.mark.parametrize("command", ["EVALSHA", "SCRIPT|LOAD", "PING"])
def test_a_right_without_which_nothing_can_be_tried_is_named(stack: Stack, admin: redis.Redis, command: str) -> None:
    admin.execute_command(*LINE.split(), f"-{command.lower()}")
    admin.script_flush()
    with settings_of(stack, GRADCAM_REDIS_URL=url_of(stack)):
        refused = gradcam("submit", COFFEE, code=4).stderr
        assert f"`gradcam` run {command}: `ACL SETUSER gradcam +{command.lower()}`" in refused.replace("\n", " ")
        assert f"+{command.lower()}" in gradcam("doctor", code=4).stdout


def test_producers_worker_and_doctor_name_what_a_user_may_not_run(stack: Stack, admin: redis.Redis) -> None:
    admin.execute_command(*LINE.split(), "-bitfield", "-brpop")
    with settings_of(stack, GRADCAM_REDIS_URL=url_of(stack)):
        refused = gradcam("submit", COFFEE, "--name", "no-rights", code=4).stderr
        assert "Redis does not let the user `gradcam` run BITFIELD: `ACL SETUSER gradcam +bitfield`" in refused
        assert not admin.exists("gradcam:job:no-rights")
        told = start_worker(stack, 4, GRADCAM_REDIS_URL=url_of(stack))
        assert "run BITFIELD, BRPOP: `ACL SETUSER gradcam +bitfield +brpop`" in told
        assert (
            "bad   rights       Redis does not let the user `gradcam` run BITFIELD, BRPOP"
            in gradcam("doctor", code=4).stdout
        )
        admin.execute_command(*LINE.split(), "-hmget")
        assert "run HMGET: `ACL SETUSER gradcam +hmget`" in gradcam("status", "no-rights", code=4).stderr


def test_keys_that_a_user_may_not_use_are_named(stack: Stack, admin: redis.Redis) -> None:
    admin.execute_command(*LINE.replace("~gradcam:*", "~other:*").split())
    with settings_of(stack, GRADCAM_REDIS_URL=url_of(stack)):
        assert "use the keys gradcam:*: `ACL SETUSER gradcam ~gradcam:*`" in gradcam("submit", COFFEE, code=4).stderr


# -- others that speak Redis' language --------------------------------------------------------------------------------


@contextmanager
def saying(port: int, *changes: tuple[bytes, bytes]) -> Iterator[int]:
    """The port of a Redis that says something else, of the same length, in the place of some words."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", port)) as server:
                threading.Thread(target=self.ask, args=(server,), daemon=True).start()
                while said := server.recv(2**20):
                    for found, instead in changes:
                        said = said.replace(found, instead)
                    self.request.sendall(said)

        def ask(self, server: socket.socket) -> None:
            with suppress(OSError):
                while asked := self.request.recv(2**16):
                    server.sendall(asked)
                server.shutdown(socket.SHUT_WR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as proxy:
        proxy.daemon_threads = True
        threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            yield proxy.server_address[1]
        finally:
            proxy.shutdown()


def test_a_redis_that_tells_less_or_otherwise_is_examined_to_the_end(stack: Stack, admin: redis.Redis) -> None:
    """Some who sell Redis leave fields out, and what is not released yet has letters in its version: a traceback."""
    version = hello(admin)["version"].encode()
    odd = (b"8-rc" + version)[: len(version)]
    port = stack.redis.ports["redis"]
    cases = {
        (b"aof_enabled", b"aof_unknown"): ("persistence", "warn", "it does not tell"),
        (b"aof_last_write_status", b"aof_last_write_unknow"): ("persistence", "ok", "appendonly yes"),
        (b"aof_enabled:1", b"aof_enabled:?"): ("persistence", "warn", "cannot be read (ValueError)"),
        (version, odd): ("Redis", "ok", odd.decode()),
    }
    for change, (check, verdict, words) in cases.items():
        with saying(port, change) as other:
            url = stack.redis.url.replace(f":{port}/", f":{other}/")
            with settings_of(stack, GRADCAM_REDIS_URL=url):
                run = gradcam("doctor", "--json")
                told = {answer["check"]: answer for answer in map(json.loads, run.stdout.splitlines())}
        assert (told[check]["verdict"], words in told[check]["words"]) == (verdict, True), told[check]
        assert told["rights"]["verdict"] == told["S3 delete"]["verdict"] == "ok"


# -- eviction ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_redis_that_drops_jobs_is_refused_unless_the_settings_allow_it(
    stack: Stack, admin: redis.Redis, unattended: Client, policy: str
) -> None:
    url = os.environ["GRADCAM_REDIS_URL"]
    admin.config_set("maxmemory", "1gb")
    admin.config_set("maxmemory-policy", policy)
    refused = gradcam("submit", COFFEE, "--name", "dropped", code=4).stderr
    assert f"({policy}): `CONFIG SET maxmemory-policy noeviction`" in refused
    assert "GRADCAM_ALLOW_EVICTION=true" in refused
    assert not unattended.table.redis.exists("gradcam:job:dropped")
    assert "`CONFIG SET maxmemory-policy noeviction`" in start_worker(stack, 4)
    with settings_of(stack, GRADCAM_ALLOW_EVICTION="true", GRADCAM_REDIS_URL=url):
        job = Client.from_env().submit([COFFEE], network="efficientnet_lite0")
    assert "Redis drops jobs when it is full" in gradcam("status", job).stdout
    assert policy in (Client.from_env().status(job).problem or "")
    admin.config_set("maxmemory-policy", "noeviction")
    assert Client.from_env().status(job).problem is None
    Client.from_env().cancel(job)


def test_a_policy_without_a_limit_or_one_that_cannot_be_read_is_no_refusal(stack: Stack, admin: redis.Redis) -> None:
    admin.config_set("maxmemory-policy", "allkeys-lru")
    Server(Scripts(admin, patience_s=0)).check(reads_queues=True, allow_eviction=False)
    admin.config_set("maxmemory", "1gb")
    with pytest.raises(Unfit, match="allkeys-lru"):
        Server(Scripts(admin, patience_s=0)).check(reads_queues=True, allow_eviction=False)
    admin.execute_command(*LINE.split(), "-info")
    assert server_as(stack).memory().policy is None
    server_as(stack).check(reads_queues=True, allow_eviction=False)
    # INFO alone tells it, and CONFIG GET alone does.
    for right in ("+info", "+config|get"):
        admin.execute_command(*LINE.split(), "-info", right)
        with pytest.raises(Unfit, match="allkeys-lru"):
            server_as(stack).check(reads_queues=True, allow_eviction=False)


def test_a_redis_that_is_away_is_not_called_unfit() -> None:
    with pytest.raises(ServiceError) as caught:
        Server(Scripts(redis.Redis(port=9), patience_s=0)).check(reads_queues=True, allow_eviction=False)
    assert not isinstance(caught.value, Unfit)
