"""Weights of the user's become reachable for every worker."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from producer.jobs.fetch import addresses
from producer.jobs.fetch.addresses import HttpAddress
from producer.jobs.model import keys
from producer.jobs.model.digests import sha256_of
from producer.jobs.model.errors import FetchError, JobError, UsageError
from producer.jobs.model.network_names import HF
from producer.jobs.model.redaction import redact
from producer.jobs.model.text import quoted
from producer.jobs.store.bundle import WEIGHTS, read_folder

if TYPE_CHECKING:
    from producer.jobs.store.bucket import Storage

#: A torchvision weights name, as `IMAGENET1K_V1`.
_WEIGHTS_NAME = re.compile(r"[A-Z][A-Z0-9_]*")


def place_weights(weight_path: str | None, storage: Storage, network: str = "") -> tuple[str, str | None]:
    """Make weights reachable for every worker: a local file is uploaded once, named by its content.

    Args:
        weight_path: As it was typed; an address may have `#sha256=` and a digest at its end.
        storage: Where to.
        network: `hf` reads a folder, or an address that ends with a slash.

    Returns:
        What the spec says of the weights, and their SHA-256 where it is known.

    Raises:
        UsageError: It is neither a file here, nor an address, nor a name of weights.
    """
    if network == HF:
        return _place_folder(weight_path or "", storage)
    if weight_path is None:
        return "DEFAULT", None
    if "://" in weight_path:
        return _checked_address(weight_path)
    path = Path(weight_path).expanduser()
    if path.is_dir():
        raise UsageError(f"--weight-path {quoted(weight_path)} is a folder: give --network {HF}, or the file in it")
    if path.is_file():
        digest = sha256_of(path)
        return _place_file(path, digest, storage), digest
    if weight_path == "random" or _WEIGHTS_NAME.fullmatch(weight_path):
        return weight_path, None
    raise UsageError(
        f"--weight-path {quoted(redact(weight_path))} is no file here: give a .pth, .pt or .safetensors file, its "
        "address (s3://, https://), a torchvision weights name such as IMAGENET1K_V1, or `random`"
    )


def _checked_address(typed: str, name: str = "") -> tuple[str, str | None]:
    """Return an address that can be fetched, and the digest that was typed behind it.

    Args:
        typed: It, perhaps with `#sha256=` and a digest at its end.
        name: Of a file under an address that ends with a slash.

    Raises:
        UsageError: It is no such address, or has a fragment that means nothing.
    """
    try:
        plain, digest = addresses.split_digest(typed)
        address = addresses.parse(plain + name if plain.endswith("/") else plain)
    except (FetchError, ValueError) as error:
        raise UsageError(f"--weight-path: {error}") from None
    if isinstance(address, HttpAddress) and "#" in plain:
        raise UsageError(
            f"--weight-path: {address.shown} has a fragment that means nothing: behind # stands sha256= and the digest"
        )
    return plain, digest


def _place_folder(weight_path: str, storage: Storage) -> tuple[str, str | None]:
    """Make a model of Hugging Face reachable: two objects, its weights and all else."""
    if "://" in weight_path:
        address, digest = _checked_address(weight_path, WEIGHTS)
        if address.endswith("/"):
            return address, digest
    folder = Path(weight_path).expanduser()
    if not weight_path or "://" in weight_path or not folder.is_dir():
        given = f", and {quoted(redact(weight_path))} is neither" if weight_path else ""
        raise UsageError(
            f"--network {HF} needs --weight-path with a folder of config.json and {WEIGHTS}, or an address of one that "
            f"ends with a slash, as s3://bucket/my-vit/{given}"
        )
    try:
        bundle = read_folder(folder)
    except JobError as error:
        raise UsageError(f"--weight-path: {error}") from None
    content, size_bytes = bundle.to_bytes(), (folder / WEIGHTS).stat().st_size
    # Workers look for the weights beside the bundle: both are taken from where earlier releases put them, or neither.
    there = {bundle.sha256: len(content), bundle.weights_sha256: size_bytes}
    if all(storage.size(keys.old_weights(storage.prefix, digest)) == size for digest, size in there.items()):
        return storage.uri(keys.old_weights(storage.prefix, bundle.sha256)), bundle.sha256
    _upload(folder / WEIGHTS, bundle.weights_sha256, storage)
    key = keys.weights(storage.prefix, bundle.sha256)
    storage.put(key, content)
    return storage.uri(key), bundle.sha256


def _place_file(path: Path, digest: str, storage: Storage) -> str:
    # What an earlier release uploaded is used where it is: a job that is submitted again names the same address.
    old = keys.old_weights(storage.prefix, digest)
    return storage.uri(old if storage.size(old) == path.stat().st_size else _upload(path, digest, storage))


def _upload(path: Path, digest: str, storage: Storage) -> str:
    key = keys.weights(storage.prefix, digest)
    if storage.size(key) != path.stat().st_size:
        storage.put_file(key, path)
    return key
