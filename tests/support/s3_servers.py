"""Other S3 servers the suite can run on, in the place of the stack's SeaweedFS: MinIO, or one that is given."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.servers import SeaweedFS, Server
from deploy.stack import Stack


class Minio(SeaweedFS):
    """A `minio` program on the path, with the stack's keys and bucket."""

    port_names = ("s3.port",)

    def configure(self) -> None:
        """MinIO reads everything from its environment and its command."""

    def command(self) -> Sequence[str]:
        return str(shutil.which("minio")), "server", "--address", f"127.0.0.1:{self.ports['s3.port']}", "data"

    def launch(self, command: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        keys = {"MINIO_ROOT_USER": self.access_key, "MINIO_ROOT_PASSWORD": self.secret_key}
        super().launch(command, {**environment, **keys}, directory)


class Given(SeaweedFS):
    """A server that runs already: `GRADCAM_TEST_S3_ENDPOINT_URL` and `AWS_*` say where and who."""

    port_names = ()

    @property
    def endpoint_url(self) -> str:
        return os.environ["GRADCAM_TEST_S3_ENDPOINT_URL"]

    def start(self) -> None:
        self.access_key, self.secret_key = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        assert self.answers(), f"the S3 server at {self.endpoint_url} does not answer"

    def stop(self, grace_s: float = 0.0) -> None:
        """It is somebody else's."""


def chosen() -> type[Server]:
    """The S3 server of this run."""
    if os.environ.get("GRADCAM_TEST_S3_ENDPOINT_URL"):
        return Given
    return Minio if shutil.which("minio") else SeaweedFS


def make_stack(directory: Path) -> Stack:
    """A stack without workers, on the chosen S3 server."""
    stack = Stack(directory, workers=0, bucket="gradcam-tests")
    kind = chosen()
    if kind is not SeaweedFS:
        seaweed = stack.s3
        secrets = {
            "s3_access_key": seaweed.access_key,
            "s3_secret_key": seaweed.secret_key,
            "s3_signing_key": "unused",
        }
        stack.s3 = kind(seaweed.directory, {}, secrets, seaweed.bucket)  # type: ignore[call-arg,assignment]
    return stack
