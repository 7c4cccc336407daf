"""Weights files, mutated: state dicts of torch.save, now and before torch 1.6, and safetensors."""

from __future__ import annotations

import io
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from fuzz_mutations import Format, Structure
from fuzz_targets import Target
from safetensors.torch import save

from producer.jobs.model.errors import JobError
from producer.jobs.model.redaction import UNPRINTABLE
from worker.models import checkpoint

# What torch and pickletools warn of once a process, of what hostile pickles hold, is no error where workers run.
warnings.filterwarnings("ignore", message="Defining your `__torch_function__`")
warnings.filterwarnings("ignore", message="invalid escape sequence")

#: The file that is read: weights are mapped or sought in, so they are no bytes in memory.
_FILE = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())


def targets() -> Iterator[Target]:
    """A target for each kind of file."""
    yield Target("weights zip", list(_zips()), _read, Format(_zip_structure, _zip_repaired))
    yield Target("weights pickle", list(_pickles()), _read, Format(_pickle_structure))
    yield Target("safetensors", list(_safetensors()), _read, Format(_safetensors_structure))


def _read(data: bytes) -> str:
    with tempfile.NamedTemporaryFile(dir=_FILE, prefix="gradcam-fuzz-") as file:
        file.write(data)
        file.flush()
        try:
            content = checkpoint.read(Path(file.name))
        except JobError as error:
            said = str(error).replace(file.name, "FILE")
            assert not UNPRINTABLE.search(said), said
            assert len(said) < 2000, said
            return "refused as code" if "more than tensors" in said else "refused"
    del content
    return "read"


# --- whole files ------------------------------------------------------------------------------------------------------


def _state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "conv1.weight": torch.randn(4, 3, 3, 3),
        "bn.running_mean": torch.zeros(4),
        "bn.num_batches_tracked": torch.tensor(7),
        "fc.weight": torch.randn(5, 4, dtype=torch.float16),
        "fc.bias": torch.randn(5, dtype=torch.float64).t(),
    }


def _saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _contents() -> Iterator[Any]:
    yield _state()
    yield {"model": _state(), "optimizer": {"state": {0: torch.ones(3)}}, "epoch": 3, "args": ["--lr", "0.1"]}
    yield {"state_dict": {f"module.{name}": torch.nn.Parameter(value) if value.is_floating_point() else value
                          for name, value in _state().items()}}  # fmt: skip


def _zips() -> Iterator[bytes]:
    yield from map(_saved, _contents())


def _pickles() -> Iterator[bytes]:
    for content in _contents():
        yield _saved(content, _use_new_zipfile_serialization=False)


def _safetensors() -> Iterator[bytes]:
    yield save({name: value.contiguous() for name, value in _state().items()}, {"format": "pt"})
    yield save({"a": torch.zeros(2, 3), "b": torch.ones(1, dtype=torch.bfloat16)})


# --- where their parts are --------------------------------------------------------------------------------------------


def _zip_structure(data: bytes) -> Structure:
    """Local files, the directory's entries and its end, and the numbers of each."""
    parts, fields = [], []
    for mark, numbers in (
        (b"PK\x03\x04", ((8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2))),
        (b"PK\x01\x02", ((10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4))),
        (b"PK\x05\x06", ((8, 2), (10, 2), (12, 4), (16, 4), (20, 2))),
    ):
        at = data.find(mark)
        while at >= 0:
            following = data.find(b"PK", at + 4)
            parts.append((at, following if following > 0 else len(data)))
            fields += [(at + place, size) for place, size in numbers]
            at = data.find(mark, at + 4)
    return Structure(parts, fields)


def _zip_repaired(data: bytes) -> bytes:
    """The same names and contents in a whole archive, where Python can read them; torch checks sums, too."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()[:50]
            if any(info.file_size > 2**20 for info in infos):
                return data
            members = {info.filename: _member(data, info) for info in infos}
    except (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, OSError, struct.error, IndexError):
        return data
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            try:
                archive.writestr(zipfile.ZipInfo(name), content)
            except (ValueError, UnicodeError):
                return data
    return buffer.getvalue()


def _member(data: bytes, info: zipfile.ZipInfo) -> bytes:
    """What is stored, whatever its checksum."""
    name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
    start = info.header_offset + 30 + name + extra
    content = data[start : start + info.compress_size]
    return content if info.compress_type == zipfile.ZIP_STORED else zlib.decompressobj(-15).decompress(content, 2**20)


def _pickle_structure(data: bytes) -> Structure:
    ends = [at + 1 for at, byte in enumerate(data[:8192]) if byte in b".qXR}("]
    fields = [(at, 4) for at, byte in enumerate(data[:8192], 1) if byte in b"XJj"]
    return Structure(list(zip([0, *ends], [*ends, len(data)], strict=True)), fields)


def _safetensors_structure(data: bytes) -> Structure:
    head = 8 + int.from_bytes(data[:8], "little")
    marks = [at for at in range(8, min(head, len(data), 4096)) if data[at] in b'{}[],:"']
    return Structure([*pairwise(marks), (min(head, len(data)), len(data))], [(0, 8), (0, 4)])
