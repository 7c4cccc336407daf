"""A model of Hugging Face on this machine: from a folder, or fetched from where a job says it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from producer.jobs.model.digests import sha256_of
from producer.jobs.model.errors import FetchError, NothingThere, OtherWeights
from producer.jobs.model.redaction import redact
from producer.jobs.store.bundle import (
    CONFIG,
    MAX_BUNDLE_BYTES,
    MAX_JSON_BYTES,
    PREPROCESSOR,
    WEIGHTS,
    Bundle,
    read_bundle,
    read_folder,
    text_of,
)

if TYPE_CHECKING:
    from worker.models.weights_cache import WeightsFiles

#: Fetches the bytes behind an address, so many at most.
FetchSmall = Callable[[str, int], bytes]


@dataclass(frozen=True)
class LocalBundle:
    """A model's JSON files, and where its weights are on this machine."""

    bundle: Bundle
    weights: Path


def of_folder(folder: Path) -> LocalBundle:
    """Read a folder. Raises JobError."""
    return LocalBundle(read_folder(folder), folder / WEIGHTS)


@contextmanager
def fetched(uri: str, sha256: str | None, fetch: FetchSmall, files: WeightsFiles) -> Iterator[LocalBundle]:
    """Give a model that lies at an address; its weights stay in place within the `with`.

    Args:
        uri: Of a bundle, or, with a slash at its end, of what stands before the names of the files.
        sha256: Of the bundle, which covers all files of the model, where it is known.
        fetch: Brings the small files.
        files: Keep the weights.

    Raises:
        OtherWeights: It has another content than `sha256` says.
        JobError: It is no model of Hugging Face.
        FetchError, WorkerError: As `WeightsFiles.file`.
    """
    if not uri.endswith("/"):
        data = fetch(uri, MAX_BUNDLE_BYTES)
        _check_digest(uri, hashlib.sha256(data).hexdigest(), sha256)
        bundle = read_bundle(data)
        # An uploaded file lies beside it, under its own SHA-256.
        with files.file(f"{uri.rpartition('/')[0]}/{bundle.weights_sha256}", bundle.weights_sha256) as path:
            yield LocalBundle(bundle, path)
        return
    config = text_of(fetch(uri + CONFIG, MAX_JSON_BYTES), CONFIG)
    try:
        preprocessor = text_of(fetch(uri + PREPROCESSOR, MAX_JSON_BYTES), PREPROCESSOR)
    except FetchError as error:
        if not isinstance(error, NothingThere) and not uri.startswith("file:"):
            raise
        preprocessor = None
    with files.file(uri + WEIGHTS) as path:
        found = Bundle(config=config, preprocessor=preprocessor, weights_sha256=sha256_of(path))
        _check_digest(uri, found.sha256, sha256)
        yield LocalBundle(found, path)


def _check_digest(uri: str, found: str, sha256: str | None) -> None:
    if sha256 not in (None, found):
        raise OtherWeights(f"the weights at {redact(uri)} are not those that were uploaded: submit them again", found)
