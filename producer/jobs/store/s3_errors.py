"""What an error of S3 means; the codes are read here and nowhere else.

| fault            | answered when                                             |
|------------------|-----------------------------------------------------------|
| `NOTHING_THERE`  | there is no such object                                   |
| `NO_BUCKET`      | there is no such bucket                                   |
| `DENIED`         | the bucket is closed to us                                |
| `CREDENTIALS`    | our key or token is not valid, or our clock is wrong      |
| `SIGNATURE`      | our secret is wrong, or the key of the object is strange  |
| `NO_CREDENTIALS` | temporary credentials could not be had                    |
| `AWAY`           | the store is overloaded or broken: try again              |
| `OTHER`          | anything else                                             |
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

#: What is told of requests beside faults: one of the fast way that boto3 does again, and a write that is denied.
FIRST_TRY, DENIED_WRITE = "first_try", "denied_write"
SERVER_ERRORS, TOO_MANY_REQUESTS = 500, 429
#: What botocore calls to get or refresh temporary credentials; an error of theirs says nothing of the bucket.
_CREDENTIALS_CALLS = ("AssumeRole", "GetSessionToken", "GetRoleCredentials", "CreateToken")


class S3Fault(Enum):
    """What went wrong."""

    NOTHING_THERE = auto()
    NO_BUCKET = auto()
    DENIED = auto()
    CREDENTIALS = auto()
    SIGNATURE = auto()
    NO_CREDENTIALS = auto()
    AWAY = auto()
    OTHER = auto()


_FAULTS = {
    # A question for an object's size is answered without words: the status alone.
    **dict.fromkeys(("NoSuchKey", "404", "NotFound"), S3Fault.NOTHING_THERE),
    "NoSuchBucket": S3Fault.NO_BUCKET,
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "403", "Forbidden"), S3Fault.DENIED),
    **dict.fromkeys(
        ("ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed"), S3Fault.CREDENTIALS
    ),
    "SignatureDoesNotMatch": S3Fault.SIGNATURE,
    "SlowDown": S3Fault.AWAY,
}


def code_of(error: ClientError) -> str:
    """The code that S3 answered; empty where it gave none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def fault_of(error: ClientError) -> S3Fault:
    """What an error means."""
    if error.operation_name.startswith(_CREDENTIALS_CALLS):
        return S3Fault.NO_CREDENTIALS
    if fault := _FAULTS.get(code_of(error)):
        return fault
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return S3Fault.AWAY if status >= SERVER_ERRORS or status == TOO_MANY_REQUESTS else S3Fault.OTHER
