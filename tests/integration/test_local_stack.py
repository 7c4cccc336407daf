"""The embedded stack: real servers, and nothing of them left when it ends, however it ends."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from pathlib import Path

import grpc
import psutil
import pytest
import redis
from botocore.exceptions import ClientError
from redis.backoff import NoBackoff
from redis.retry import Retry
from stacks import mains_of, without_descriptors
from strangers import PAGES, answered, calls, careless, listening, page

from deploy import demo
from deploy.certificates import write_certificates
from deploy.directory_lock import OF_LAUNCHER, DirectoryLock, InUse, holder, make_private
from deploy.programs import _STARTER, free_ports
from deploy.servers import PortTaken, SeaweedFS, Valkey
from deploy.stack import FOREIGN, Stack, Worker
from deploy.supervisor import env_file
from producer.jobs.model.errors import ServiceError, UsageError
from producer.jobs.model.settings import Connections

PROJECT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of our own, since its servers are killed here."""
    with Stack(tmp_path_factory.mktemp("servers"), workers=0) as running:
        yield running


@pytest.fixture
def database(servers: Stack) -> Iterator[redis.Redis]:
    with closing(redis.Redis.from_url(servers.redis.url)) as client:
        yield client


def _wait(condition: Callable[[], object], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def _gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _pids(stack: Stack) -> list[int]:
    processes = [stack.redis.process, stack.s3.process]
    return [process.pid for process in processes if process is not None]


def _sockets(stack: Stack) -> list[Path]:
    grpc = [port for name, port in stack.s3.ports.items() if name.endswith(".grpc")]
    return [path for port in grpc for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock")]


def test_both_servers_do_what_they_are_for(servers: Stack, database: redis.Redis) -> None:
    assert database.ping()
    assert database.config_get("appendfsync") == {"appendfsync": "everysec"}
    assert database.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = int(str(database.config_get("maxmemory")["maxmemory"]))
    assert 0 < limit <= machine // 4, "doctor warns where there is no limit, and alerts cannot warn"
    with closing(servers.s3.client()) as client:
        client.put_object(Bucket=servers.s3.bucket, Key="a/b", Body=b"pixels")
        assert client.get_object(Bucket=servers.s3.bucket, Key="a/b")["Body"].read() == b"pixels"


def test_wrong_passwords_are_refused(servers: Stack) -> None:
    for password in ("", "wrong"):
        stranger = redis.Redis(port=servers.redis.ports["redis"], password=password, retry=Retry(NoBackoff(), 0))
        with closing(stranger), pytest.raises(redis.AuthenticationError):
            stranger.ping()
    right, servers.s3.secret_key = servers.s3.secret_key, "wrong"
    try:
        with closing(servers.s3.client()) as client, pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            client.list_buckets()
    finally:
        servers.s3.secret_key = right


@pytest.fixture
def kept(servers: Stack) -> Iterator[str]:
    """The key of an object that must still be there, alone and unread."""
    with closing(servers.s3.client()) as client:
        client.put_object(Bucket=servers.s3.bucket, Key="kept", Body=b"pixels of somebody")
        yield "kept"
        found = client.list_objects_v2(Bucket=servers.s3.bucket).get("Contents", [])
        assert "kept" in {entry["Key"] for entry in found}
        assert "planted" not in {entry["Key"] for entry in found}
        assert client.get_object(Bucket=servers.s3.bucket, Key="kept")["Body"].read() == b"pixels of somebody"


def test_pages_of_all_ports_are_closed_to_who_has_no_key(servers: Stack, kept: str) -> None:
    """Behind the S3 gateway master, volume server and filer serve the same files, and by default to everybody."""
    ports, _ = listening(servers.s3)
    assert ports == sorted(servers.s3.ports.values())
    context, told = careless(), []
    for port in ports:
        for method, path in PAGES:
            for tls in (None, context):
                status, body = page(port, method, path.format(bucket=servers.s3.bucket, key=kept), tls)
                # S3 has a page that says it lives: `/status`, without a word.
                if status not in {0, 400, 401, 403, 404, 405} and (body or path != "/status"):
                    told.append((port, method, path, status, body[:100]))
                if b"<Contents>" in body or b"pixels" in body or str(servers.directory).encode() in body:
                    told.append((port, method, path, status, body[:100]))
    assert told == []


def test_grpc_of_all_ports_and_sockets_is_closed_to_who_has_no_certificate(servers: Stack, kept: str) -> None:
    """The filer's gRPC lists and deletes every file, and asks nobody for a password."""
    ports, paths = listening(servers.s3)
    targets = [*(f"127.0.0.1:{port}" for port in ports), *(f"unix:{path}" for path in paths)]
    assert len(targets) >= 12
    filer, folder = f"127.0.0.1:{servers.s3.ports['filer.port.grpc']}", servers.s3.directory
    ours = grpc.ssl_channel_credentials(
        *((folder / name).read_bytes() for name in ("authority.pem", "server.key", "server.pem"))
    )
    # So it looks where the door is open.
    assert kept.encode() in answered(filer, *list(calls(servers.s3.bucket, kept))[1], ours)
    authority = (folder / "authority.pem").read_bytes()
    write_certificates(servers.directory)  # of another authority
    theirs = [(servers.directory / name).read_bytes() for name in ("server.key", "server.pem")]
    for method, request in calls(servers.s3.bucket, kept):
        assert {answered(target, method, request) for target in targets} == {b""}, method
    for credentials in (grpc.ssl_channel_credentials(authority), grpc.ssl_channel_credentials(authority, *theirs)):
        for method, request in list(calls(servers.s3.bucket, kept))[:8]:
            grpc_ports = [target for target in targets if target.endswith(".sock") or "grpc" in target] + [filer]
            assert {answered(target, method, request, credentials) for target in grpc_ports} == {b""}, method


def test_sockets_are_for_their_owner_alone(servers: Stack) -> None:
    """SeaweedFS makes them in the folder that all users of the machine share."""
    _, paths = listening(servers.s3)
    assert len(paths) >= 4
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in paths} == {0}


@pytest.mark.parametrize("kind", ["link", "socket of another user"])
def test_what_is_planted_in_the_place_of_a_socket_is_not_spoken_to(servers: Stack, tmp_path: Path, kind: str) -> None:
    """Other ports are taken, and what was planted stays as it is."""
    server = SeaweedFS(make_private(tmp_path / "s3"), {}, servers._secrets, "bucket")
    server.ports = dict(zip(server.port_names, free_ports(len(server.port_names)), strict=True))
    planted = Path(f"/tmp/seaweedfs-filer-grpc-{server.ports['filer.port.grpc']}.sock")
    with socket.socket(socket.AF_UNIX) as theirs:
        if kind == "link":
            planted.symlink_to(tmp_path / "theirs")
        else:
            theirs.bind(str(planted))
            os.chown(planted, 12345, 12345)
        before = dict(server.ports)
        try:
            with pytest.raises(PortTaken, match="a socket of SeaweedFS is taken"):
                server.restart()
            server.start()
            assert server.ports != before
            assert planted.is_symlink() == (kind == "link")
            assert os.path.lexists(planted)
        finally:
            server.stop()
            planted.unlink()


@pytest.mark.parametrize(
    "command", ["PING", "KEYS *", "GET job", "FLUSHALL", "CONFIG GET *", "EVAL return 0", "ACL LIST", "SHUTDOWN NOSAVE"]
)
def test_valkey_does_nothing_for_who_has_no_password(servers: Stack, database: redis.Redis, command: str) -> None:
    database.set("job", "here")
    ports, _ = listening(servers.redis)
    assert ports == [servers.redis.ports["redis"]]
    with (
        closing(redis.Redis(port=ports[0], retry=Retry(NoBackoff(), 0))) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.execute_command(*command.split())
    assert database.get("job") == b"here"


def test_arguments_hold_no_secret(servers: Stack) -> None:
    """`ps` shows the arguments of every process to every user."""
    lines = [path.read_bytes() for pid in _pids(servers) for path in [Path(f"/proc/{pid}/cmdline")]]
    assert all(lines)
    secrets = (servers.redis.password, servers.s3.secret_key, servers.s3.access_key)
    assert not [line for line in lines for secret in secrets if secret.encode() in line]


def test_files_are_for_their_owner_alone(servers: Stack) -> None:
    directories = [servers.directory, servers.directory / "valkey", servers.directory / "seaweedfs"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in directories} == {0o700}
    secret = [
        "settings.json",
        "valkey/valkey.conf",
        "seaweedfs/s3.json",
        "seaweedfs/security.toml",
        "seaweedfs/server.key",
    ]
    assert {stat.S_IMODE((servers.directory / name).stat().st_mode) for name in secret} == {0o600}


def test_servers_listen_on_loopback_alone(servers: Stack) -> None:
    for pid in _pids(servers):
        listening = [c.laddr for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert {address.ip for address in listening} == {"127.0.0.1"}
        assert {address.port for address in listening} <= {*servers.redis.ports.values(), *servers.s3.ports.values()}


def test_ctrl_c_in_the_terminal_is_not_theirs(servers: Stack) -> None:
    """They would end before the worker that needs them."""
    assert not [pid for pid in _pids(servers) if os.getsid(pid) == os.getsid(0)]


def test_killed_valkey_comes_back_with_its_data(servers: Stack, database: redis.Redis) -> None:
    database.set("job", "here")
    before = servers.redis.url
    servers.redis.kill()
    assert not servers.redis.alive
    servers.redis.restart()
    assert servers.redis.url == before
    assert database.get("job") == b"here"


def test_killed_seaweedfs_comes_back_with_its_objects(servers: Stack) -> None:
    with closing(servers.s3.client()) as client:
        client.put_object(Bucket=servers.s3.bucket, Key="kept", Body=b"here")
        servers.s3.kill()
        servers.s3.restart()
        assert client.get_object(Bucket=servers.s3.bucket, Key="kept")["Body"].read() == b"here"


def test_server_outlives_the_thread_that_started_it(servers: Stack, database: redis.Redis) -> None:
    """Linux counts the end of the starting thread as the parent's death."""
    thread = threading.Thread(target=servers.redis.restart)
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert servers.redis.alive
    assert database.ping()


def test_directory_has_one_stack_at_a_time(servers: Stack) -> None:
    with pytest.raises(InUse, match="already runs"), Stack(servers.directory, workers=0):
        pass
    assert servers.redis.alive


def test_taken_port_is_exchanged_for_a_free_one(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        taken = other.getsockname()[1]
        server = Valkey(tmp_path, {"redis": taken}, "secret")
        try:
            server.start()
            assert server.ports["redis"] != taken
        finally:
            server.stop()


def test_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "data" / "appendonlydir" / "appendonly.aof.manifest"
    broken.parent.mkdir(parents=True)
    broken.write_text("no manifest\n")
    with pytest.raises(ServiceError, match="Valkey ended as it started") as raised:
        Valkey(tmp_path, {}, "secret").start()
    assert "manifest" in raised.value.excerpt


def test_nothing_is_left_after_an_exception(tmp_path: Path) -> None:
    pids: list[int] = []

    def break_in_the_middle() -> None:
        with stack:
            pids.extend(_pids(stack))
            assert _sockets(stack)
            raise ZeroDivisionError

    stack = Stack(tmp_path, workers=0)
    with pytest.raises(ZeroDivisionError):
        break_in_the_middle()
    assert len(pids) == 2
    assert all(_gone(pid) for pid in pids)
    assert not _sockets(stack)
    assert holder(tmp_path) is None


def test_nothing_is_left_of_a_stack_that_starts_only_half(tmp_path: Path) -> None:
    stack = Stack(tmp_path, workers=0)
    (tmp_path / "seaweedfs" / "data").write_text("in the way")
    with pytest.raises(UsageError, match="name a directory of your own"), stack:
        pass
    valkey = tmp_path / "valkey"
    assert b"bye bye" in (valkey / "log").read_bytes()
    assert not [child for child in psutil.Process().children() if not _gone(child.pid) and child.cwd() == str(valkey)]
    assert holder(tmp_path) is None


_OWNER = """
import sys, time
from pathlib import Path
from deploy.stack import Stack
with Stack(Path(sys.argv[1]), workers=0) as stack:
    print(stack.redis.process.pid, stack.s3.process.pid, flush=True)
    time.sleep(600)
"""


def test_nothing_is_left_of_a_stack_that_is_interrupted_while_a_program_starts(tmp_path: Path) -> None:
    """The thread that starts it went on, and nobody knew of the server."""
    before = psutil.Process().children()
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs behind it ignore it
    try:
        _STARTER.submit(time.sleep, 1.0)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt), Stack(tmp_path / "a", workers=0):
            pass
    finally:
        signal.signal(signal.SIGINT, heard)
    _STARTER.submit(int).result()
    assert [child for child in psutil.Process().children() if child not in before] == []


def test_everything_ends_with_an_owner_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _OWNER, str(tmp_path)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(pids) == 2
        owner.kill()
    _wait(lambda: all(_gone(pid) for pid in pids), within_s=5)
    assert holder(tmp_path) is None
    Stack(tmp_path).stop()  # the next stack in the directory, a demo's sweep too, takes the sockets away
    assert not _sockets(Stack(tmp_path))


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a user has set who works with another Redis and store, and has some of it in files."""
    held = tmp_path / "held"
    held.write_text("redis://:sesame@redis.example:6379/0\n")
    monkeypatch.delenv("GRADCAM_REDIS_URL", raising=False)
    monkeypatch.setenv("GRADCAM_REDIS_URL_FILE", str(held))
    for name in ("GRADCAM_S3_BUCKET_FILE", "GRADCAM_S3_ENDPOINT_URL_FILE", "GRADCAM_S3_PREFIX_FILE"):
        monkeypatch.setenv(name, str(held))
    monkeypatch.setenv("GRADCAM_S3_PUBLIC_ENDPOINT_URL", "https://pictures.example")
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
        monkeypatch.setenv(name, "theirs")


_SETTINGS = """
import boto3
from producer.jobs.model.settings import Connections, read
found = read(Connections)
print(found.redis_url.get_secret_value(), found.s3_endpoint_url, found.s3_public_endpoint_url, found.s3_bucket)
print(found.s3_prefix, boto3.Session().get_credentials().token)
"""


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("who", ["a worker", "the demo", "who sources the file"])
def test_settings_of_another_redis_and_store_lead_nobody_there(servers: Stack, tmp_path: Path, who: str) -> None:
    """Settings in files made ours `both set`, with which no worker started; addresses were signed for another host."""
    command = [sys.executable, "-c", _SETTINGS]
    with demo._using(servers) if who == "the demo" else nullcontext():
        environment = servers.environment() if who == "a worker" else dict(os.environ)
        if who == "who sources the file":
            (tmp_path / "env").write_text(env_file(servers.env))
            command = ["bash", "-c", 'source "$1" && shift && exec "$@"', "bash", str(tmp_path / "env"), *command]
        run = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert run.stderr == ""
    endpoint = servers.s3.endpoint_url
    assert run.stdout.split() == [servers.redis.url, endpoint, "None", servers.s3.bucket, "jobs", "None"]


def test_every_setting_that_leads_somewhere_is_a_stacks_own() -> None:
    stay = {"allow_eviction", "job_lifetime_days", "log", "traces", "user"}
    leads = [f"GRADCAM_{name}".upper() for name in Connections.model_fields if name not in stay]
    assert {name for name in FOREIGN if name.startswith("GRADCAM_")} == {
        f"{name}{end}" for name in leads for end in ("", "_FILE")
    }


def _of_launcher(worker: Worker) -> dict[str, str]:
    assert worker.process is not None
    return psutil.Process(worker.process.pid).environ()


@pytest.mark.parametrize(("asked", "given"), [("300", "25"), ("3", "3"), ("300 in a file", "25")])
def test_a_launcher_gives_itself_less_time_to_end_than_it_has(
    servers: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str, given: str
) -> None:
    """It was killed at work, and its processes, which have sessions of their own, were left."""
    if asked.endswith("in a file"):
        (tmp_path / "grace").write_text("300")
        monkeypatch.setenv("GRADCAM_WORKER_GRACE_S_FILE", str(tmp_path / "grace"))
    else:
        monkeypatch.setenv("GRADCAM_WORKER_GRACE_S", asked)
    try:
        settings = _of_launcher(servers.start_worker())
    finally:
        servers.stop_worker(0)
    assert (settings["GRADCAM_WORKER_GRACE_S"], settings.get("GRADCAM_WORKER_GRACE_S_FILE")) == (given, None)


def test_a_worker_whose_time_to_end_is_over_leaves_no_process(servers: Stack) -> None:
    worker = servers.start_worker()
    _wait(lambda: mains_of(worker), within_s=60)
    (main,) = mains_of(worker)
    main.suspend()  # it ends by no signal
    try:
        servers.stop_worker(grace_s=1.0)
        _wait(lambda: _gone(main.pid), within_s=5)
    finally:
        with suppress(psutil.NoSuchProcess):
            main.kill()


def _local(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.cli", *arguments, "--directory", str(directory)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)


def _typed(verb: str, directory: Path) -> str:
    return f"`gradcam {verb} --directory {shlex.quote(str(directory))}`"


def _sourced(directory: Path, name: str) -> str:
    script = 'source "$1/env" && printenv "$2"'
    command = ["bash", "-c", script, "bash", str(directory), name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _supervisor(directory: Path) -> psutil.Process:
    return psutil.Process(json.loads((directory / "state.json").read_text())["pid"])


def _answers(url: str) -> bool:
    with closing(redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0))) as client, suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


def _valkey(directory: Path) -> psutil.Process | None:
    return next((child for child in _supervisor(directory).children() if child.name() == "valkey-server"), None)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory with a space and an apostrophe in its name, and whatever was left up in it taken down."""
    made = tmp_path / "it's mine"
    yield made
    _local("down", directory=made)


def test_up_restart_down_and_up_again(directory: Path) -> None:
    assert "not up" in _local("down", directory=directory).stdout
    up = _local("up", "--workers", "0", directory=directory)
    assert (up.returncode, up.stderr) == (0, "")
    assert "gradcam submit my-photos/ --network efficientnet_lite0" in up.stdout
    assert f"{_typed('down', directory)} stops it" in up.stdout
    # What it says is typed as it stands, also where the name of the directory has a space.
    (source,) = [line for line in up.stdout.splitlines() if line.startswith("  source ")]
    run = subprocess.run(["bash", "-c", f"{source} && printenv GRADCAM_REDIS_URL"], stdout=subprocess.PIPE, check=True)
    assert run.stdout.decode().strip() == _sourced(directory, "GRADCAM_REDIS_URL")
    assert stat.S_IMODE((directory / "env").stat().st_mode) == 0o600
    url = _sourced(directory, "GRADCAM_REDIS_URL")
    assert str(Path(sys.executable).parent) in _sourced(directory, "PATH")

    again = _local("up", "--workers", "0", directory=directory)
    assert (again.returncode, again.stdout) == (0, "The stack is up already, with no workers.\n")
    elsewhere = _local("down", directory=directory.parent / "elsewhere")
    assert f"{directory.parent / 'elsewhere'}' is not up" in elsewhere.stdout.replace('"', "'")
    assert f"Another one is up: gradcam down --directory {shlex.quote(str(directory))}\n" in elsewhere.stderr
    other = _local("up", "--workers", "2", directory=directory)
    assert (other.returncode, f"{_typed('down', directory)} first" in other.stderr) == (2, True)

    with closing(redis.Redis.from_url(url)) as client:
        client.set("job", "here")
        first = _valkey(directory)
        assert first is not None
        first.kill()
        _wait(lambda: (now := _valkey(directory)) is not None and now.pid != first.pid)
        _wait(lambda: _answers(url))
        assert client.get("job") == b"here"
        supervisor, servers = _supervisor(directory), _supervisor(directory).children()

        down = _local("down", directory=directory)
        assert (down.returncode, "is down" in down.stdout) == (0, True)
        assert all(_gone(process.pid) for process in servers)
        _wait(lambda: _gone(supervisor.pid), within_s=5)
        assert not (directory / "env").exists()

        assert _local("up", "--workers", "0", directory=directory).returncode == 0
        assert _sourced(directory, "GRADCAM_REDIS_URL") == url
        assert client.get("job") == b"here"


def test_workers_that_were_asked_to_leave_stay_ended_and_those_that_died_do_not(directory: Path) -> None:
    """`gradcam workers drain LAUNCHER` ends the launcher with exit code 0, as SIGTERM does."""
    make_private(directory)
    log = directory / "worker.log"
    with (directory / "supervisor.log").open("wb") as output:
        command = [sys.executable, "-m", "deploy.supervisor", str(directory), "1"]
        with subprocess.Popen(command, cwd=PROJECT, stdout=output, stderr=output) as supervisor:
            try:
                _wait(lambda: log.exists() and log.read_text().count("action=starting") == 1)
                _launcher(directory).kill()
                _wait(lambda: log.read_text().count("action=starting") == 2)
                _launcher(directory).terminate()
                _wait(lambda: json.loads((directory / "state.json").read_text())["left"])
                said = (directory / "supervisor.log").read_text()
                assert said.count("gradcam-worker has died and is started again") == 1
                assert "gradcam-worker was asked to leave, and has; it stays ended" in said
                up = _local("up", "--workers", "1", directory=directory)
                assert up.returncode == 0
                assert f"{_typed('down', directory)}, then {_typed('up', directory)} starts them again" in up.stdout
            finally:
                supervisor.terminate()
    assert log.read_text().count("action=starting") == 2


def test_workers_that_cannot_start_with_their_settings_are_no_stack(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were started again for ever, and `up` said that it was up."""
    monkeypatch.setenv("GRADCAM_WORKER_LEASE_S", "soon")
    up = _local("up", directory=directory)
    assert (up.returncode, up.stdout) == (2, "")
    assert "the workers cannot start: settings cannot be used: GRADCAM_WORKER_LEASE_S is wrong" in up.stderr
    assert holder(directory) is None
    assert (directory / "worker.log").read_text().count("GRADCAM_WORKER_LEASE_S") == 1


def test_no_more_workers_are_asked_for_than_one_launcher_has(directory: Path) -> None:
    up = _local("up", "--workers", "65", directory=directory)
    assert (up.returncode, "65 is not in the range 0<=x<=64" in up.stderr) == (2, True)
    run = subprocess.run(
        [sys.executable, "-m", "worker.cli", "--devices", "none", "--processes-per-device", "65"],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "65 is not in the range 1<=x<=64" in run.stderr


def test_a_server_that_cannot_be_started_again_now_is_tried_again_and_the_others_go_on(directory: Path) -> None:
    """One fork that failed, for want of memory say, ended the supervisor, and with it all that was well."""
    assert _local("up", "--workers", "0", directory=directory).returncode == 0
    supervisor, url = _supervisor(directory), _sourced(directory, "GRADCAM_REDIS_URL")
    first = _valkey(directory)
    assert first is not None
    others = {child.pid for child in supervisor.children()} - {first.pid}
    with without_descriptors(supervisor, left=3):
        first.kill()
        said = "Valkey cannot be started now (Too many open files)"
        _wait(lambda: said in (directory / "supervisor.log").read_text())
    _wait(lambda: _answers(url))
    assert others <= {child.pid for child in supervisor.children()}


def test_a_supervisor_whose_log_is_full_goes_on(directory: Path) -> None:
    make_private(directory)
    command = [sys.executable, "-m", "deploy.supervisor", str(directory), "0"]
    with Path("/dev/full").open("wb") as full, subprocess.Popen(command, cwd=PROJECT, stdout=full, stderr=full):
        _wait((directory / "state.json").exists)
        first = _valkey(directory)
        assert first is not None
        first.kill()
        _wait(lambda: (now := _valkey(directory)) is not None and now.pid != first.pid)
        assert "is down" in _local("down", directory=directory).stdout


_LOSES_THE_FIRST = """
import os, runpy, signal, sys, weakref
from deploy import servers
class Gone: pass
def answers(server, asked=servers.SeaweedFS.answers):
    gone = Gone()
    weakref.finalize(gone, os.kill, os.getpid(), signal.SIGTERM)
    del gone
    return asked(server)
servers.SeaweedFS.answers = answers
runpy.run_module("deploy.supervisor", run_name="__main__")
"""


def test_down_is_heard_also_where_a_library_loses_what_python_makes_of_the_signal(tmp_path: Path) -> None:
    """Of 40 stacks that were stopped as they started 2 stayed up: an error in a weak reference's end is lost."""
    command = [sys.executable, "-c", _LOSES_THE_FIRST, str(tmp_path), "0"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        try:
            out, _ = run.communicate(timeout=30)
        finally:
            run.kill()
    assert (run.returncode, out.endswith(" down\n")) == (0, True), out
    assert "KeyboardInterrupt" not in out
    assert (holder(tmp_path), (tmp_path / "state.json").exists()) == (None, False)


def test_down_beside_another_down_is_well(tmp_path: Path) -> None:
    """The first one had ended the supervisor when the second one asked it to end."""
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    lock.path.write_text(str(2**22 + 1))  # no process has such a number
    command = [sys.executable, "-m", "deploy.cli", "down", "--directory", str(tmp_path)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as down:
        assert down.stderr is not None
        said = down.stderr.readline()
        time.sleep(0.5)
        lock.release()
        out, err = down.communicate(timeout=30)
    assert (down.returncode, said, err) == (0, "Stopping the stack …\n", "")
    assert out.startswith("The stack is down")


def test_who_interrupts_down_is_told_that_the_stack_ends_all_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy.cli", "down", "--directory", str(tmp_path)]
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as supervisor:
        lock = DirectoryLock(tmp_path)
        lock.acquire()
        lock.path.write_text(str(supervisor.pid))
        with subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True) as down:
            assert supervisor.wait(30) == -signal.SIGTERM
            down.send_signal(signal.SIGINT)
            _out, err = down.communicate(timeout=30)
        lock.release()
    assert (down.returncode, [line for line in err.splitlines() if line]) == (
        130,
        [
            "Stopping the stack …",
            f"The stack ends by itself all the same; whether it has: gradcam down --directory {tmp_path}",
            "interrupted",
        ],
    )


def _launcher(directory: Path) -> psutil.Process:
    return next(child for child in _supervisor(directory).children() if "worker.cli" in child.cmdline())


def test_supervisor_that_was_killed_leaves_nothing_in_the_way(directory: Path) -> None:
    """Its files stay behind, and another process may have its number by now."""
    assert _local("up", "--workers", "0", directory=directory).returncode == 0
    supervisor = _supervisor(directory)
    servers = supervisor.children()
    supervisor.kill()
    _wait(lambda: all(_gone(process.pid) for process in (supervisor, *servers)), within_s=5)
    assert (directory / "state.json").exists()
    (directory / "state.json").write_text(json.dumps({"pid": os.getpid(), "workers": 0}))
    assert "not up" in _local("down", directory=directory).stdout
    assert _local("up", "--workers", "0", directory=directory).returncode == 0
    assert "is down" in _local("down", directory=directory).stdout


_WITH_A_LAUNCHER = """
import sys, time
from pathlib import Path
from deploy.stack import Stack
with Stack(Path(sys.argv[1]), workers=0) as stack:
    print(stack.start_worker().process.pid, flush=True)
    time.sleep(600)
"""


def test_down_ends_the_launcher_that_a_killed_supervisor_left(directory: Path) -> None:
    """It went on for a while, `down` found nothing to stop, and the next `up` had workers of both."""
    command = [sys.executable, "-c", _WITH_A_LAUNCHER, str(directory)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        launcher = psutil.Process(int(owner.stdout.readline()))
        launcher.suspend()  # it would end by itself some time after its owner
        owner.kill()
    assert holder(directory) is None
    assert holder(directory, OF_LAUNCHER) == launcher.pid
    down = _local("down", directory=directory)
    assert (down.returncode, down.stderr) == (0, "Ending the workers of a stack that was killed …\n")
    assert "what it left has ended" in down.stdout
    assert holder(directory, OF_LAUNCHER) is None
    _wait(lambda: _gone(launcher.pid), within_s=5)
    assert "nothing to stop" in _local("down", directory=directory).stdout
