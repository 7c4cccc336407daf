"""The boto3 client of this process: where it connects to, and what all S3 servers understand."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from producer.jobs.model.errors import ServiceError
from producer.jobs.store.object_data import ObjectData
from producer.jobs.store.s3_errors import DENIED_WRITE, FIRST_TRY, S3Fault, fault_of

if TYPE_CHECKING:
    from botocore.awsrequest import AWSRequest
    from mypy_boto3_s3 import S3Client

    from producer.jobs.model.settings import Connections

#: What requests to S3 Express One Zone are signed for: the one store that takes no MD5.
_EXPRESS = "s3express"
#: Statuses from here on are errors.
_BAD = 400
#: What reads is asked of the buckets of images, too, which may be closed; what writes, of our own alone.
_READS = ("Get", "Head", "List")


def open_s3(
    settings: Connections, connections: int, failed: Callable[[str], None] | None = None
) -> tuple[S3Client, ObjectData]:
    """Make the S3 client of this process, and what moves objects beside it; about 100 ms, before any thread starts.

    Args:
        settings: Which endpoint; credentials and region are boto3's to find.
        connections: How many threads will use it at once.
        failed: Called with the fault of each request that fails, also where it is tried again: the name of an
            `S3Fault` in lower case; `denied_write` where it was to write and is denied; or `first_try` for what obstore
            sends and boto3 sends again.

    Raises:
        ServiceError: boto3 refuses the settings.
    """
    try:
        session = boto3.session.Session()
        client = _make_client(session, settings, connections)
        if failed is not None:
            client.meta.events.register("response-received.s3", partial(_tell_failures, failed))
        first_try_failed = partial(failed, FIRST_TRY) if failed is not None else None
        return client, ObjectData(session, _locator(session, client, settings), first_try_failed)
    except BotoCoreError as error:
        # An unknown profile, half of the credentials, an endpoint that is none.
        raise ServiceError(f"the AWS settings cannot be used: {error}; correct AWS_* or ~/.aws") from None


def _locator(session: boto3.session.Session, client: S3Client, settings: Connections) -> S3Client:
    """A client that presigns the addresses which boto3 itself would use: those of the region, not the global one."""
    if settings.s3_endpoint_url:
        return client
    return session.client(
        "s3",
        region_name=client.meta.region_name,
        config=Config(
            signature_version="s3v4", s3={"addressing_style": "virtual", "us_east_1_regional_endpoint": "regional"}
        ),
    )


def _make_client(session: boto3.session.Session, settings: Connections, connections: int) -> S3Client:
    client = session.client(
        "s3",
        endpoint_url=settings.s3_endpoint_url,
        # A region is always set: without one, signing fails on custom endpoints.
        region_name=session.region_name or "us-east-1",
        config=Config(
            max_pool_connections=connections,
            retries={"mode": "standard", "max_attempts": 6},
            connect_timeout=5,
            read_timeout=30,
            # What custom endpoints understand.
            s3={"addressing_style": "path"} if settings.s3_endpoint_url else {},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    # Before it is signed: the header is signed with the rest.
    client.meta.events.register("before-sign.s3.DeleteObjects", _send_md5)
    return client


def _send_md5(request: AWSRequest, signing_name: str, **_: Any) -> None:
    """Send MD5 in the place of the CRC32 that boto3 has sent since 1.36.

    AWS takes either. MinIO, Ceph and other servers ask for MD5 (`MissingContentMD5`), and some refuse headers of newer
    checksums.
    """
    if signing_name == _EXPRESS:
        return
    for name in [name for name in request.headers if name.lower().startswith(("x-amz-checksum-", "x-amz-sdk-check"))]:
        del request.headers[name]
    body: Any = request.body  # bytes, not the text that the stubs say
    digest = hashlib.md5(body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()


def _tell_failures(
    failed: Callable[[str], None],
    event_name: str,
    parsed_response: dict[str, Any] | None = None,
    exception: Exception | None = None,
    **_: Any,
) -> None:
    """Told of the answer to each try, and of each that has none."""
    if parsed_response is None:
        if exception is not None:
            failed(S3Fault.AWAY.name.lower())
    elif "Error" in parsed_response or parsed_response["ResponseMetadata"]["HTTPStatusCode"] >= _BAD:
        operation = event_name.rpartition(".")[2]
        fault = fault_of(ClientError(parsed_response, operation))  # type: ignore[arg-type]
        if fault is S3Fault.DENIED and not operation.startswith(_READS):
            failed(DENIED_WRITE)
        elif fault is not S3Fault.NOTHING_THERE:
            failed(fault.name.lower())


def client_like(client: S3Client, config: Config, endpoint_url: str | None = None) -> S3Client:
    """Make another client of the same store, with some settings of its own; at another address where one is given."""
    meta = client.meta
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint_url or meta.endpoint_url,
        region_name=meta.region_name,
        config=meta.config.merge(config),
    )
