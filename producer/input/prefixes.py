"""A prefix of a bucket becomes the images below it, page by page, in the order of their keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from producer.input.read_options import ReadOptions
from producer.input.rows import PLAIN, check_address
from producer.input.selection import LeftOut, chosen, describe_empty
from producer.input.source import Source
from producer.input.source_group import SourceGroup
from producer.input.spooled import TempFile, explain_full_disk
from producer.jobs.fetch import addresses
from producer.jobs.model.errors import FetchError, ServiceError, UsageError
from producer.jobs.model.redaction import redact
from producer.jobs.store.s3_errors import S3Fault, code_of, fault_of

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

    from producer.jobs.store.bucket import Storage

#: Pages looked at before anything is sent: where there is but one, the number of images is known.
_PAGES_CHECKED = 2
#: What AWS gives at once; MinIO gives more where it is not said.
_PAGE_KEYS = 1000


class Listing(SourceGroup):
    """The images below `s3://bucket/prefix/`.

    The first time that it is read to its end, what was listed is kept: it is the same the next time, and comes sooner.
    """

    has_patterns = True

    def __init__(self, address: str, reading: ReadOptions, storage: Callable[[], Storage] | None) -> None:
        try:
            # As if it were the address of an object: the same buckets and the same keys are refused.
            addresses.parse(address + "_")
        except FetchError as error:
            raise UsageError(str(error)) from None
        self._bucket, _, self._prefix = address.partition("://")[2].partition("/")
        self.name = redact(address)
        self._reading = reading
        self._storage = storage
        self._kept: TempFile | None = None

    def check(self, at_most: int | None, *, whole: bool) -> None:
        """Look whether there are images; a short listing is read to its end. Errors as `batches`."""
        if not sum(map(len, islice(self.batches(), None if whole else _PAGES_CHECKED))):
            raise UsageError(f"no images under {self.name}: {describe_empty(self._reading, self.left_out)}")

    def batches(self) -> Iterator[list[Source]]:
        """Read the images.

        Raises:
            UsageError: There is no such bucket, it may not be listed, or it holds a key that no image can have.
            ServiceError: The object store cannot be used from here.
        """
        for page in self._list() if self._kept is None else _kept(self._kept):
            yield [Source(address) for address in page]

    def close(self) -> None:
        """Forget what was listed."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _list(self) -> Iterator[list[str]]:
        with explain_full_disk(self.name):
            spool = TempFile()
        count = 0
        with spool.writer() as file:
            for page in self._pages():
                self._check(page)
                with explain_full_disk(self.name):
                    file.write(json.dumps(page).encode() + b"\n")
                count += len(page)
                yield page
            with explain_full_disk(self.name):
                file.flush()
        self._kept, self.count = spool, count

    def _check(self, page: list[str]) -> None:
        if all(map(PLAIN, page)):
            return
        for address in page:
            try:
                check_address(address)
            except UsageError as error:
                raise UsageError(f"{self.name} holds a key that cannot be used ({error}): --exclude it") from None

    def _pages(self) -> Iterator[list[str]]:
        """Addresses of the images of each page that has any."""
        if self._storage is None:
            raise UsageError(f"{self.name} cannot be listed: no object store is set up here")
        storage = self._storage()
        # Counted anew each time that it is listed from its beginning.
        self.left_out = left_out = LeftOut(self._reading)
        takes, below, start = chosen(self._reading), len(self._prefix), f"s3://{self._bucket}/"
        ours = self._ours(storage)
        pages = storage.client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix, PaginationConfig={"PageSize": _PAGE_KEYS}
        )
        following = iter(pages)
        while True:
            with self._errors():
                page = next(following, None)
            if page is None:
                return
            keys = [entry["Key"] for entry in page.get("Contents", ())]
            theirs = [key for key in keys if not key.endswith("/") and not (ours and key.startswith(ours))]
            addresses = [start + key for key in theirs if takes(key[below:])]
            if len(addresses) < len(theirs):
                for key in theirs:
                    if not takes(key[below:]):
                        left_out.see(key[below:])
            if addresses:
                yield addresses

    def _ours(self, storage: Storage) -> str:
        """Where our own pictures and inputs lie, which a listing of everything must not take for images to explain."""
        ours = f"{storage.prefix}/" if storage.prefix and storage.bucket == self._bucket else ""
        return "" if self._prefix.startswith(ours) else ours

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (NoCredentialsError, PartialCredentialsError):
            raise ServiceError(
                "no credentials for the object store: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        except ClientError as error:
            raise self._said(error) from None
        except (BotoCoreError, HTTPError, OSError) as error:
            raise ServiceError(
                f"the object store cannot be reached ({type(error).__name__}): correct GRADCAM_S3_ENDPOINT_URL "
                "or the network"
            ) from None

    def _said(self, error: ClientError) -> UsageError | ServiceError:
        code = code_of(error)
        match fault_of(error):
            case S3Fault.CREDENTIALS | S3Fault.SIGNATURE | S3Fault.NO_CREDENTIALS:
                return ServiceError(
                    f"the object store refuses the credentials ({code}): correct AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY"
                )
            case S3Fault.AWAY:
                return ServiceError(f"{self.name} cannot be listed: the object store answered {code}")
            case S3Fault.NO_BUCKET:
                return UsageError(f"{self.name} cannot be listed: there is no bucket {self._bucket}")
            case _:
                return UsageError(f"{self.name} cannot be listed: the object store answered {code}")


def _kept(spool: TempFile) -> Iterator[list[str]]:
    with spool.open() as file:
        for line in file:
            yield json.loads(line)
