"""A model in the layout of Hugging Face, as one small file: its JSON files, and the SHA-256 of its weights.

That file is what a job's weights are, and its SHA-256 covers all files of the model. A folder here is uploaded as two
objects, both named by their content. From an address that ends with a slash a worker fetches the files, and makes the
same of them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from producer.jobs.model.digests import sha256_of
from producer.jobs.model.errors import JobError
from producer.jobs.model.frozen import Frozen

CONFIG: Final = "config.json"
PREPROCESSOR: Final = "preprocessor_config.json"
WEIGHTS: Final = "model.safetensors"
#: What each of the two JSON files may take; that of a network with 22,000 classes takes 1 MB.
MAX_JSON_BYTES: Final = 2 * 2**20
#: What a bundle may take: both, with characters escaped.
MAX_BUNDLE_BYTES: Final = 8 * MAX_JSON_BYTES
#: Weights that are not read, as their files are called, and what to do.
_OTHERS: Final = {
    "model.safetensors.index.json": "its weights lie in several files; save it with max_shard_size='100GB'",
    "pytorch_model.bin": "pytorch_model.bin may hold code and is not read; save the model with save_pretrained again",
}

_Text = Annotated[str, Field(max_length=MAX_JSON_BYTES)]


class Bundle(Frozen):
    """All of a model but the numbers."""

    version: Literal[1] = 1
    config: _Text
    preprocessor: _Text | None = None
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    def to_bytes(self) -> bytes:
        """Write it; the same model gives the same bytes."""
        return self.model_dump_json().encode()

    @property
    def sha256(self) -> str:
        """The identity of the model."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def read_bundle(data: bytes) -> Bundle:
    """Read what `Bundle.to_bytes` wrote. Raises JobError."""
    try:
        return Bundle.model_validate_json(data)
    except ValidationError:
        raise JobError(
            "the weights are no model of Hugging Face that was uploaded here: give a folder, or an address that ends "
            "with a slash, by --weight-path"
        ) from None


def text_of(data: bytes, name: str) -> str:
    """Return the text of one of the JSON files.

    Raises:
        JobError: It is too large, or no text.
    """
    if len(data) > MAX_JSON_BYTES:
        raise JobError(f"{name} has more than {MAX_JSON_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise JobError(f"{name} is no UTF-8 text") from None


def read_folder(folder: Path) -> Bundle:
    """Make the bundle of a folder here.

    Raises:
        JobError: A file is missing, too large or cannot be read.
    """
    weights = folder / WEIGHTS
    if not weights.is_file():
        other = next((advice for name, advice in _OTHERS.items() if (folder / name).is_file()), "")
        raise JobError(f"there is no {WEIGHTS} in {folder}" + (f": {other}" if other else ""))
    config = _small(folder / CONFIG)
    if config is None:
        raise JobError(f"there is no {CONFIG} in {folder}")
    try:
        digest = sha256_of(weights)
    except OSError as error:
        raise JobError(f"{weights} cannot be read: {error.strerror}") from None
    return Bundle(config=config, preprocessor=_small(folder / PREPROCESSOR), weights_sha256=digest)


def _small(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return text_of(file.read(MAX_JSON_BYTES + 1), path.name)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JobError(f"{path} cannot be read: {error.strerror}") from None
