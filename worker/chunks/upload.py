"""Pictures go to the object store."""

from __future__ import annotations

from collections.abc import Mapping

from producer.jobs.model import keys
from producer.jobs.store.bucket import Storage


def upload(
    storage: Storage, files: Mapping[str, tuple[str, bytes]], *, job: str, index: int, stem: str, network: str
) -> dict[str, str]:
    """Write one image's pictures; a second run overwrites them with the same bytes.

    Args:
        storage: Our bucket.
        files: kind → suffix and content.
        job: Whose pictures.
        index: The image's index in the job.
        stem: Of the image's own file name.
        network: As the user typed it.

    Returns:
        kind → object key.

    Raises:
        StoreError: The store refused one of them.
        JobError, WorkerError: See `Storage.check`.
    """
    written = {}
    for kind, (suffix, content) in files.items():
        key = keys.picture(storage.prefix, job, index, keys.picture_name(stem, network, kind, suffix))
        storage.put(key, content)
        written[kind] = key
    return written
