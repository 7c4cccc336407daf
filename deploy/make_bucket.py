"""Make the bucket that the settings name, where it is not there yet: `python -m deploy.make_bucket`.

For a store that starts empty, as that of compose.yaml or of the chart's trial. It waits until the store answers.
The empty object that it writes is the one by which workers tell whether the store takes anything.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from producer.jobs.model.errors import GradcamError, ServiceError, UsageError
from producer.jobs.model.keys import probe
from producer.jobs.model.settings import Connections, read
from producer.jobs.model.terminal import out, say_error
from producer.jobs.store.s3_client import open_s3
from producer.jobs.store.s3_errors import S3Fault, fault_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_WITHIN_S = 60.0


def make_bucket(settings: Connections, within_s: float = _WITHIN_S) -> bool:
    """Make it, say whether it was missing, and wait until the store takes an object: some do seconds after they answer.

    Args:
        settings: Where the store is, and the bucket's name.
        within_s: How long to wait, in seconds.

    Raises:
        ServiceError: The store does not answer, or refuses.
    """
    deadline = time.monotonic() + within_s
    client, _ = open_s3(settings, connections=1)
    bucket, made = settings.s3_bucket, False
    while True:
        try:
            # Where it is there, this takes no more rights than a worker has.
            if not _is_there(client, bucket):
                client.create_bucket(Bucket=bucket)
                made = True
            client.put_object(Bucket=bucket, Key=probe(settings.s3_prefix), Body=b"")
        except ClientError as error:
            problem = f"it says {error.response.get('Error', {}).get('Code', 'nothing')}"
        except BotoCoreError as error:
            problem = f"it does not answer ({type(error).__name__})"
        else:
            return made
        if time.monotonic() > deadline:
            raise ServiceError(f"the bucket {bucket} cannot be made: {problem}; see to the store, and try again")
        time.sleep(0.5)


def _is_there(client: S3Client, bucket: str) -> bool:
    try:
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        if fault_of(error) in {S3Fault.NO_BUCKET, S3Fault.NOTHING_THERE}:
            return False
        raise
    return True


def main() -> None:
    """Make the bucket of the environment; 2 for settings, 4 for the store."""
    try:
        settings = read(Connections)
        made = make_bucket(settings)
    except GradcamError as error:
        say_error(error)
        sys.exit(2 if isinstance(error, UsageError) else 4)
    out(f"the bucket {settings.s3_bucket} {'is made' if made else 'is there'}")


if __name__ == "__main__":
    main()
