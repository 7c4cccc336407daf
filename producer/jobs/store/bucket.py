"""The object store: one bucket, through one boto3 client a process and, for what objects hold, obstore."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError, SSLError
from urllib3.exceptions import HTTPError

from producer.jobs.model import keys
from producer.jobs.model.certificates import failed_tls, refused_certificate
from producer.jobs.model.errors import BucketClosed, GradcamError, StoreError, WorkerError
from producer.jobs.model.waits import STORE, waiting
from producer.jobs.store.object_data import BrokenOff
from producer.jobs.store.s3_client import client_like, open_s3
from producer.jobs.store.s3_errors import S3Fault, code_of, fault_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

    from producer.jobs.model.settings import Connections
    from producer.jobs.store.object_data import ObjectData

_TYPES = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "json": "application/json",
    "jsonl": "application/jsonl",
    "npz": "application/zip",
}
#: How often one object is tried, each time with boto3's own retries, while the store answers others.
_TRIES = 3
_T = TypeVar("_T")
_PIECE_BYTES = 2**20
#: How many objects one request deletes.
DELETED_AT_ONCE = 1000
#: A character that XML 1.0 cannot say, not even escaped: such a key cannot be in a list of keys to delete.
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: How long `glance` waits.
_GLANCE_S = 2.0


class StoreAway(WorkerError):
    """The object store is away, overloaded or broken, as seen from here."""


class Storage:
    """Our bucket; keys are made by `keys.py`. Safe to share between threads.

    Args:
        client: What everything can be done with.
        bucket: Its name.
        prefix: Of all our keys.
        object_data: What moves objects faster than the client, where it can.
        public_endpoint_url: The store's address for those outside, where it is another one than the client's.
    """

    def __init__(
        self,
        client: S3Client,
        bucket: str,
        prefix: str,
        object_data: ObjectData | None = None,
        public_endpoint_url: str | None = None,
    ) -> None:
        self.client, self.object_data = client, object_data
        self._public_endpoint_url = public_endpoint_url
        self.bucket = bucket
        self.prefix = prefix

    @classmethod
    def from_settings(
        cls, settings: Connections, *, connections: int = 32, failed: Callable[[str], None] | None = None
    ) -> Storage:
        """Open the bucket that the settings name.

        Args:
            settings: Where it is.
            connections: How many threads will use it at once.
            failed: As of `open_s3`.
        """
        client, object_data = open_s3(settings, connections, failed)
        return cls(client, settings.s3_bucket, settings.s3_prefix, object_data, settings.s3_public_endpoint_url)

    @property
    def place(self) -> str:
        """Where everything of ours lies: bucket/prefix."""
        return f"{self.bucket}/{self.prefix}"

    def uri(self, key: str) -> str:
        """The address of one of our objects."""
        return f"s3://{self.bucket}/{key}"

    @waiting(STORE)
    def check(self) -> None:
        """Make sure that the bucket is there and ours to use.

        Raises:
            JobError: It is not there, or closed to us.
            WorkerError: The store or the credentials cannot be used from here.
        """
        with self.errors("be listed"):
            self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)

    @waiting(STORE)
    def put(self, key: str, body: bytes) -> None:
        """Write an object whole.

        Raises:
            StoreError: The store refused this object, again and again, while it took others.
            JobError, WorkerError: As `check`.
        """
        kind = _TYPES.get(key.rsplit(".", 1)[-1], "application/octet-stream")
        if self.object_data is not None and self.object_data.put(self.bucket, key, body, kind):
            return

        def put() -> object:
            return self.client.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType=kind)

        self._patiently("be written to", put, probe=self.accepts_writes)

    def put_file(self, key: str, path: Path) -> None:
        """Write a local file, in parts when it is large. Errors as `put`; OSError when it cannot be read."""

        def put() -> None:
            with path.open("rb") as file, waiting(STORE) as wait:
                self.client.upload_fileobj(file, self.bucket, key, Callback=wait.moved)

        with path.open("rb") as file:
            file.read(1)  # whether it can be read is told before the store's faults are
            if self._moved_file(key, file):
                return
        self._patiently("be written to", put, probe=self.accepts_writes)

    def put_open_file(self, key: str, file: IO[bytes]) -> None:
        """Write an open file from its beginning; it stays open. Errors as `put`."""

        def put() -> None:
            # boto3 closes what it has read.
            with os.fdopen(os.dup(file.fileno()), "rb") as again, waiting(STORE) as wait:
                again.seek(0)
                self.client.upload_fileobj(again, self.bucket, key, Callback=wait.moved)

        file.flush()
        if self._moved_file(key, file):
            return
        self._patiently("be written to", put, probe=self.accepts_writes)

    def _moved_file(self, key: str, file: IO[bytes]) -> bool:
        if self.object_data is None:
            return False
        with waiting(STORE) as wait:
            return self.object_data.put_file(self.bucket, key, file, wait.moved)

    @waiting(STORE)
    def get(self, key: str) -> bytes:
        """Read an object whole. Errors as `put`."""
        if self.object_data is not None and (answer := self.object_data.get(self.bucket, key)):
            with closing(answer), suppress(BrokenOff):
                return answer.read()

        def get() -> bytes:
            return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

        return self._patiently("be read", get, probe=self.answers)

    def get_to(self, key: str, file: IO[bytes]) -> None:
        """Read an object into a file, in pieces. Errors as `put`; OSError when the file cannot be written."""

        def write(pieces: Iterator[bytes]) -> None:
            file.seek(0)
            file.truncate()
            for piece in pieces:
                file.write(piece)

        if self.object_data is not None and (answer := self.object_data.get(self.bucket, key)):
            with closing(answer), suppress(BrokenOff):
                write(answer.pieces(_PIECE_BYTES))
                return

        def get() -> None:
            write(self.client.get_object(Bucket=self.bucket, Key=key)["Body"].iter_chunks(_PIECE_BYTES))

        self._patiently("be read", get, probe=self.answers)

    @waiting(STORE)
    def delete(self, names: Sequence[str]) -> None:
        """Delete up to 1000 objects; those that are not there are no error. Errors as `put`."""
        unlisted = [name for name in names if _NOT_IN_XML.search(name)]
        wanted: list[ObjectIdentifierTypeDef] = [{"Key": name} for name in names if not _NOT_IN_XML.search(name)]
        with self.errors("be written to"):
            for name in unlisted:
                self.client.delete_object(Bucket=self.bucket, Key=name)
            if not wanted:
                return
            answer = self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": wanted, "Quiet": True})
        if refused := answer.get("Errors"):
            raise StoreError(
                f"{len(refused)} objects in bucket {self.bucket} could not be deleted: the store answered "
                f"{refused[0].get('Code')}"
            )

    def answers(self) -> bool:
        """Whether the store answers requests that read."""
        try:
            self.check()
        except StoreAway:
            return False
        return True

    def accepts_writes(self) -> bool:
        """Whether the store takes what is written: one with a full disk still answers those who read."""
        try:
            with self.errors("be written to"):
                self.client.put_object(Bucket=self.bucket, Key=keys.probe(self.prefix), Body=b"")
        except StoreAway:
            return False
        return True

    def _patiently(self, verb: str, call: Callable[[], _T], *, probe: Callable[[], bool]) -> _T:
        """Tell the fault of one object from that of the store, which is nobody's image's."""
        for _ in range(_TRIES):
            try:
                with self.errors(verb):
                    return call()
            except StoreAway as error:
                if not probe():
                    raise
                why = str(error)
        raise StoreError(f"{why} (for this object, again and again; it took others meanwhile)")

    @waiting(STORE)
    def size(self, key: str) -> int | None:
        """Bytes of an object, None when there is no such object. Errors as `put`."""
        with self.errors("be read"):
            try:
                return int(self.client.head_object(Bucket=self.bucket, Key=key)["ContentLength"])
            except ClientError as error:
                if fault_of(error) is S3Fault.NOTHING_THERE:
                    return None
                raise

    def glance(self, key: str) -> bool | None:
        """Whether there is an object; None where the store does not say so at once."""
        try:
            self._impatient_client.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            return False if fault_of(error) is S3Fault.NOTHING_THERE else None
        except BotoCoreError:
            return None
        return True

    @cached_property
    def _impatient_client(self) -> S3Client:
        """A client that neither waits for long nor tries again."""
        return client_like(
            self.client,
            Config(connect_timeout=_GLANCE_S, read_timeout=_GLANCE_S, retries={"total_max_attempts": 1}),
        )

    def presigned_url(self, key: str, *, expires_s: float) -> str:
        """An address at which anybody can read an object for a while. Raises WorkerError: there are no credentials."""
        with self.errors("be read"):
            return self._signer.generate_presigned_url(
                "get_object", Params={"Bucket": self.bucket, "Key": key}, ExpiresIn=int(expires_s)
            )

    @cached_property
    def _signer(self) -> S3Client:
        """A client that signs by Signature 4: boto3 presigns by an older one, which newer regions refuse.

        The host is signed, too: an address for those outside must be signed for the host that they ask.
        """
        config = Config(signature_version="s3v4")
        if self._public_endpoint_url is None:
            return client_like(self.client, config)
        path_style = config.merge(Config(s3={"addressing_style": "path"}))
        return client_like(self.client, path_style, self._public_endpoint_url)

    def keys(self, prefix: str) -> Iterator[str]:
        """Keys under a prefix, in order, without folders. Errors as `put`."""
        return (key for key, _ in self.sizes(prefix))

    def sizes(self, prefix: str, *, after: str = "") -> Iterator[tuple[str, int]]:
        """Keys under a prefix with the bytes of their objects, in order, from behind `after` on. Errors as `put`.

        Consoles, and stores over a file system, list a folder as an object whose key ends with a slash; no key of ours
        does.
        """
        with self.errors("be listed"):
            pages = self.client.get_paginator("list_objects_v2")
            found = (
                pages.paginate(Bucket=self.bucket, Prefix=prefix, StartAfter=after)
                if after
                else pages.paginate(Bucket=self.bucket, Prefix=prefix)
            )
            for page in found:
                for entry in page.get("Contents", []):
                    if not entry["Key"].endswith("/"):
                        yield entry["Key"], entry["Size"]

    def folders(self, prefix: str) -> Iterator[str]:
        """The names that stand before the next slash of the keys under a prefix, in order. Errors as `put`."""
        with self.errors("be listed"):
            pages = self.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/"):
                for entry in page.get("CommonPrefixes", []):
                    yield entry["Prefix"].removeprefix(prefix).removesuffix("/")

    @contextmanager
    def errors(self, verb: str) -> Iterator[None]:
        """Turn errors of S3 into ours: the bucket is the job's fault, credentials and network are this machine's."""
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError):
            raise WorkerError(
                "no credentials for the object store: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        except ClientError as error:
            raise self._error(verb, error) from None
        except (BotoCoreError, HTTPError, ConnectionError, TimeoutError) as error:
            # The last three are bodies that break off; another OSError is of a file here that is read or written.
            if why := refused_certificate(error):
                raise StoreAway(
                    f"the object store shows a certificate that is not valid here ({why}): name the file of its "
                    "authority in AWS_CA_BUNDLE, or correct GRADCAM_S3_ENDPOINT_URL"
                ) from None
            if isinstance(error, SSLError):
                why = failed_tls(error) or "the authorities cannot be read"
                raise StoreAway(
                    f"TLS to the object store fails ({why}): correct AWS_CA_BUNDLE or GRADCAM_S3_ENDPOINT_URL"
                ) from None
            raise StoreAway(
                f"the object store cannot be reached ({type(error).__name__}): correct GRADCAM_S3_ENDPOINT_URL "
                "or the network"
            ) from None

    def _error(self, verb: str, error: ClientError) -> GradcamError:
        code, operation = code_of(error), error.operation_name
        match fault_of(error):
            case S3Fault.NO_CREDENTIALS:
                return WorkerError(
                    f"the credentials for the object store cannot be had ({operation}: {code}): correct the role or "
                    "the AWS settings of this machine"
                )
            case S3Fault.NO_BUCKET | S3Fault.DENIED:
                return BucketClosed(
                    f"bucket {self.bucket} cannot {verb} ({code}): create it, or correct GRADCAM_S3_BUCKET "
                    "and its permissions"
                )
            case S3Fault.CREDENTIALS | S3Fault.SIGNATURE:
                return WorkerError(
                    f"the object store refuses the credentials ({code}): correct AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY"
                )
            case S3Fault.NOTHING_THERE:
                return StoreError(f"an object that should be in bucket {self.bucket} is not there")
            case S3Fault.AWAY:
                return StoreAway(f"bucket {self.bucket} could not {verb}: the store answered {code}")
            case S3Fault.OTHER:
                return StoreError(f"bucket {self.bucket} could not {verb}: the store answered {code}")
