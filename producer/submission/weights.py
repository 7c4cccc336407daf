"""Weights of the user's become reachable for every worker."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from producer.jobs.fetch import addresses
from producer.jobs.model import keys
from producer.jobs.model.digests import sha256_of
from producer.jobs.model.errors import FetchError, UsageError

if TYPE_CHECKING:
    from producer.jobs.store.bucket import Storage

#: A torchvision weights name, as `IMAGENET1K_V1`.
_WEIGHTS_NAME = re.compile(r"[A-Z][A-Z0-9_]*")


def place_weights(weight_path: str | None, storage: Storage) -> tuple[str, str | None]:
    """Make weights reachable for every worker: a local file is uploaded once, named by its content.

    Returns:
        What the spec says of the weights, and their SHA-256 where it is known.

    Raises:
        UsageError: It is neither a file here, nor an address, nor a name of weights.
    """
    if weight_path is None:
        return "DEFAULT", None
    if "://" in weight_path:
        try:
            addresses.parse(weight_path)
        except FetchError as error:
            raise UsageError(f"--weight-path: {error}") from None
        return weight_path, None
    path = Path(weight_path).expanduser()
    if path.is_file():
        digest = sha256_of(path)
        key = keys.weights(storage.prefix, digest)
        if storage.size(key) != path.stat().st_size:
            storage.put_file(key, path)
        return storage.uri(key), digest
    if weight_path == "random" or _WEIGHTS_NAME.fullmatch(weight_path):
        return weight_path, None
    raise UsageError(
        f"--weight-path {weight_path[:200]!r} is no file here: give a .pth, .pt or .safetensors file, its address "
        "(s3://, https://), a torchvision weights name such as IMAGENET1K_V1, or `random`"
    )
