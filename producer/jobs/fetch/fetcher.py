"""Get the bytes behind an address: within the worker's policy, its size limit and its time limit.

What `policy.py` decides about an address holds for the connection too (`http_reader.py`, `file_reader.py`).
"""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO, Final

from producer.jobs.fetch import addresses
from producer.jobs.fetch.addresses import HttpAddress, S3Address
from producer.jobs.fetch.file_reader import file_pieces
from producer.jobs.fetch.http_reader import HttpReader
from producer.jobs.fetch.network import NETWORK_ERRORS, PIECE_BYTES, TryAgain, refuse_larger
from producer.jobs.fetch.pace import Pace, check_interruption
from producer.jobs.fetch.policy import FetchPolicy, Resolve, check_object
from producer.jobs.model.errors import (
    EmptyFile,
    FetchError,
    FetchTimeout,
    GradcamError,
    NothingThere,
    OtherContent,
    WorkerError,
)
from producer.jobs.store.s3_errors import S3Fault, code_of, fault_of

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

    from producer.jobs.store.object_data import Answer, ObjectData

#: Waits before the second and the third try.
_PAUSES_S: Final = (0.1, 0.5)


class Fetcher:
    """Fetches what `FetchPolicy` allows; one a process, used by all its threads.

    Args:
        policy: What may be fetched and how much of it.
        s3: The process's S3 client; its own settings bound the waits for S3. None: `s3://` is refused.
        resolve: Answers like `socket.getaddrinfo`.
        store_answers: Says whether S3 as such is well; tells the fault of one object from that of the store. None:
            every fault is the object's.
        object_data: What reads objects faster than S3's client, where it can.
        refused: Told why something was refused, and to which job: what the job itself is not told.
    """

    def __init__(
        self,
        policy: FetchPolicy,
        s3: S3Client | None,
        resolve: Resolve = socket.getaddrinfo,
        store_answers: Callable[[], bool] | None = None,
        object_data: ObjectData | None = None,
        refused: Callable[[str, str | None], object] | None = None,
    ) -> None:
        self._refused = refused
        self._object_data = object_data
        self._store_answers = store_answers
        self._policy = policy
        self._s3 = s3
        self._http = HttpReader(policy, resolve)

    def close(self) -> None:
        """Close the connections kept for reuse."""
        self._http.close()

    def fetch(self, uri: str, max_bytes: int | None = None, *, job: str | None = None) -> bytes:
        """Return the body behind an address.

        Args:
            uri: An `s3://`, `http://`, `https://` or `file://` address.
            max_bytes: The largest body taken; the policy's limit where not given.
            job: The job that names it; what it uploaded itself is open to it alone.

        Returns:
            At least one byte.

        Raises:
            FetchError: The address is refused, gone, empty, too large, too slow or broken, or has another digest than
                stands behind it.
            Interrupted: As `pace.interruptible` says.
            WorkerError: S3 cannot be used from this machine or with its credentials.
        """
        body = BytesIO()
        self.fetch_to(uri, body, max_bytes, job=job)
        return body.getvalue()

    def fetch_to(
        self,
        uri: str,
        file: BinaryIO,
        max_bytes: int | None = None,
        total_timeout_s: float | None = None,
        *,
        job: str | None = None,
    ) -> int:
        """Write the body behind an address to a file, piece by piece.

        Args:
            uri: As for `fetch`.
            file: Writable and seekable; what it holds after an error is unspecified.
            max_bytes: The largest body taken; the policy's limit where not given.
            total_timeout_s: The longest it may take, retries included; the policy's limit where not given.
            job: As for `fetch`.

        Returns:
            The number of bytes written, at least one.

        Raises:
            FetchError: The address is refused, gone, empty, too large, too slow or broken, or has another digest than
                stands behind it.
            Interrupted: As `pace.interruptible` says.
            WorkerError: S3 cannot be used from this machine or with its credentials.
            OSError: The file cannot be written.
        """
        address = addresses.parse(uri)
        limit_bytes = self._policy.max_bytes if max_bytes is None else max_bytes
        policy = self._policy
        pace = Pace(
            policy.total_timeout_s if total_timeout_s is None else total_timeout_s,
            policy.low_speed_limit,
            policy.low_speed_time_s,
        )
        try:
            if isinstance(address, S3Address):
                check_object(address, self._policy, job)
            return self._copy_from(address, file, limit_bytes, pace)
        except FetchError as error:
            if self._refused is not None and error.why:
                self._refused(error.why, job)
            raise

    def _copy_from(self, address: addresses.Address, file: BinaryIO, limit_bytes: int, pace: Pace) -> int:
        try:
            return self._copy_patiently(address, file, limit_bytes, pace)
        except (TryAgain, FetchTimeout) as error:
            if not isinstance(address, S3Address) or self._store_answers is None:
                raise
            if not self._store_answers():
                raise WorkerError(f"the object store does not answer this worker: {error}") from error
        # The store is well: one more time, in case it has become so only now.
        return self._copy_patiently(address, file, limit_bytes, pace.again())

    def _copy_patiently(self, address: addresses.Address, file: BinaryIO, limit_bytes: int, pace: Pace) -> int:
        start = file.tell()
        for pause_s in (*_PAUSES_S, None):
            try:
                return self._copy(address, file, limit_bytes, pace)
            except (TryAgain, FetchTimeout) as error:
                file.seek(start)
                file.truncate()
                if pause_s is None or isinstance(error, FetchTimeout) or pace.remaining_s() <= pause_s:
                    raise
                check_interruption()
                time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _copy(self, address: addresses.Address, file: BinaryIO, limit_bytes: int, pace: Pace) -> int:
        pace.begin()
        counted = isinstance(address, HttpAddress)  # its reader counts what comes, and not only what is left of it
        written_bytes = 0
        digest = None if address.sha256 is None else hashlib.sha256()
        with closing(self._pieces(address, limit_bytes, pace)) as pieces:
            for piece in pieces:
                pace.delivered_bytes += len(piece)
                if not counted:
                    pace.received_bytes += len(piece)
                pace.check(address.shown)
                written_bytes += len(piece)
                refuse_larger(address.shown, written_bytes, limit_bytes)
                if digest is not None:
                    digest.update(piece)
                file.write(piece)
        # The watchdog ends a slow body like a server that closes: only its verdict tells them apart.
        pace.check(address.shown)
        if not written_bytes:
            raise EmptyFile(f"{address.shown} is empty")
        if digest is not None and digest.hexdigest() != address.sha256:
            raise OtherContent(
                f"{address.shown} has another content than its #sha256= says (it is {digest.hexdigest()})"
            )
        return written_bytes

    def _pieces(self, address: addresses.Address, limit_bytes: int, pace: Pace) -> Generator[bytes, None, None]:
        if isinstance(address, S3Address):
            return self._s3_pieces(address, limit_bytes)
        if isinstance(address, HttpAddress):
            return self._http.pieces(address, limit_bytes, pace)
        return file_pieces(address, limit_bytes, self._policy)

    # --- s3 ----------------------------------------------------------------------------------------------------------

    def _s3_pieces(self, address: S3Address, limit_bytes: int) -> Generator[bytes, None, None]:
        from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

        if self._s3 is None:
            raise FetchError(f"{address.shown} is refused: no object store is set up here")
        try:
            body, pieces, length = self._s3_body(self._s3, address)
        except ClientError as error:
            raise _s3_error(address, error) from error
        except ParamValidationError as error:
            raise FetchError(f"{address.shown} is refused: S3 has no such names") from error
        except BotoCoreError as error:
            # A bucket may name a place that there is not: one address must not be able to stop a worker.
            if self._store_answers is None or not self._store_answers():
                raise WorkerError(f"S3 cannot be used from this worker: {error}") from error
            why = type(error).__name__
            raise TryAgain(
                f"{address.shown} cannot be fetched: S3 cannot be reached for this bucket ({why})"
            ) from error
        with closing(body):
            refuse_larger(address.shown, length, limit_bytes)
            try:
                yield from pieces
            except (BotoCoreError, *NETWORK_ERRORS) as error:
                raise TryAgain(f"{address.shown} cannot be fetched: S3 broke off its answer") from error

    def _s3_body(self, s3: S3Client, address: S3Address) -> tuple[StreamingBody | Answer, Iterator[bytes], int]:
        """What is to be closed, its bytes, and how many they are."""
        if self._object_data is not None and (object_ := self._object_data.get(address.bucket, address.key)):
            # As they come: one that comes slowly is left when its time is over.
            return object_, object_.pieces(), object_.length
        answer = s3.get_object(Bucket=address.bucket, Key=address.key)
        return answer["Body"], answer["Body"].iter_chunks(PIECE_BYTES), answer["ContentLength"]


def _s3_error(address: S3Address, error: ClientError) -> GradcamError:
    code = code_of(error) or "an error"
    match fault_of(error):
        case S3Fault.CREDENTIALS | S3Fault.NO_CREDENTIALS:
            return WorkerError(
                f"S3 refuses this worker's credentials ({code}): correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        case S3Fault.NOTHING_THERE:
            return NothingThere(f"there is no object {address.shown}")
        case S3Fault.NO_BUCKET:
            return FetchError(f"{address.shown} cannot be fetched: there is no bucket {address.bucket}")
        case S3Fault.AWAY:
            return TryAgain(f"{address.shown} cannot be fetched: S3 answered {code}")
        case _:
            # A signature that does not match is not ours to blame: a strange key can cause it too, and one image must
            # not be able to stop a worker.
            return FetchError(f"{address.shown} cannot be fetched: S3 answered {code}")
