"""A job's pictures in the store: from the address in the manifest to bytes, size, and an address for others."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from producer.jobs.model import keys
from producer.output.shards import Shards

if TYPE_CHECKING:
    from producer.jobs.store.bucket import Storage


@dataclass(frozen=True, slots=True)
class Entry:
    """What a listing says of an object."""

    #: None of a member of a shard: its size stands in the shard alone.
    size_bytes: int | None
    modified: datetime


class Objects:
    """The objects of one job, by their address in the manifest (`Result.objects`)."""

    def __init__(self, storage: Storage, job: str, *, page_size: int = 1000) -> None:
        self.job = job
        self._storage, self._page_size = storage, page_size
        self._shards = Shards(storage)
        self._ours = keys.job_prefix(storage.prefix, job)
        #: One page of the listing: everything after `_after`, up to and with `_until` (None: to the end).
        self._page: dict[str, Entry] = {}
        self._after: str | None = None
        self._until: str | None = None

    def are_ours(self, address: str) -> bool:
        """Whether an address is one of this job's: the manifest is data, it may name other people's objects."""
        return address.startswith(self._ours) and not {".", ".."} & set(address.split("/"))

    def get(self, address: str) -> bytes:
        """The bytes of a picture. Safe to share between threads; errors as `Storage.get`."""
        return self._shards.get(address) if "#" in address else self._storage.get(address)

    def entry(self, address: str) -> Entry | None:
        """What the listing says of a picture, or its shard, None when it is not there; for one thread.

        Asked for in about the order of the listing, a thousand pictures cost one request.

        Raises:
            StoreError, JobError, WorkerError: The store cannot be used.
        """
        key, in_shard, _ = address.partition("#")
        # A page begins with the image's folder, whose pictures may be asked for in any order; or just before the key.
        for after in (key.rpartition("/")[0] + "/", key[:-1]):
            if not self._knows(key):
                self._turn_to(after)
        found = self._page.get(key)
        return Entry(None, found.modified) if found and in_shard else found

    def url(self, address: str, *, expires_s: float) -> str:
        """An address at which anybody can read a picture, or the shard it is in, for a while.

        Raises:
            WorkerError: There are no credentials.
        """
        key = address.partition("#")[0]
        return self._storage.presigned_url(key, expires_s=expires_s)

    def _knows(self, key: str) -> bool:
        return self._after is not None and self._after < key and (self._until is None or key <= self._until)

    def _turn_to(self, after: str) -> None:
        with self._storage.errors("be listed"):
            listed = self._storage.client.list_objects_v2(
                Bucket=self._storage.bucket, Prefix=self._ours, StartAfter=after, MaxKeys=self._page_size
            )
        contents = listed.get("Contents", [])
        self._page = {found["Key"]: Entry(found["Size"], found["LastModified"]) for found in contents}
        self._after = after
        self._until = contents[-1]["Key"] if listed["IsTruncated"] and contents else None
