"""What reading a weights file would take, looked up in its headers before anything of that size is made.

| kind        | its size in memory                          | how many things it holds         |
|-------------|---------------------------------------------|----------------------------------|
| zip         | the unpacked sizes of its entries           | entries; instructions of its pickle |
| before 1.6  | the file: all numbers stand in it           | instructions of its pickles      |
| safetensors | the file: its reader holds the header to it | the length of its header         |
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import IO, Final, cast

import torch

from worker.models.pickle_cost import MOST_BYTES, BoundedReader, Costs, TooMuch

#: Weights, their average, gradients and two moments of an optimizer, in float64: 10 times the network in float32.
_TIMES: Final = 12
#: What small networks may come with: queues of features, heads of a hundred thousand classes.
_LEAST_BYTES: Final = 512 * 2**20
#: A training checkpoint of a large network has 10,000 tensors, and an entry for each.
MOST_ENTRIES: Final = 50_000
#: A tensor takes 60 to 200 bytes there.
_MOST_HEADER_BYTES: Final = 4 * 2**20
#: In a file from before torch 1.6 three small pickles come before the content, and one behind it.
_PICKLES: Final = 5
#: The end of a zip archive: its mark, then, 10 bytes in, the number of entries. Behind it is a comment.
_END, _END_BYTES, _COMMENT_BYTES = b"PK\x05\x06", 22, 2**16
#: Of large archives: where the true end is, 20 bytes before.
_LOCATOR, _LOCATOR_BYTES = b"PK\x06\x07", 20
_LARGE_END_BYTES: Final = 56


def most_bytes(own_bytes: int) -> int:
    """Return how many bytes of numbers a file may bring for a network of `own_bytes` in float32."""
    return max(_TIMES * own_bytes, _LEAST_BYTES)


def check_entries(path: Path) -> None:
    """Count the entries of a zip archive before anybody reads their names.

    Raises:
        TooMuch: There are too many.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _END_BYTES - _COMMENT_BYTES, 0))
        tail = file.read()
        # The last mark is the one that readers take: archives within this one have marks of their own.
        at = tail.rfind(_END, 0, len(tail) - _END_BYTES + len(_END))
        count = _count(file, tail, at) if at >= 0 else 0
    if count > MOST_ENTRIES:
        raise TooMuch(f"has {count} entries, and {MOST_ENTRIES} at most are read")


def _count(file: IO[bytes], tail: bytes, at: int) -> int:
    (count,) = struct.unpack_from("<H", tail, at + 10)
    if at >= _LOCATOR_BYTES and tail[at - _LOCATOR_BYTES :].startswith(_LOCATOR):
        (place,) = struct.unpack_from("<Q", tail, at - _LOCATOR_BYTES + 8)
        file.seek(min(place, 2**62))
        end = file.read(_LARGE_END_BYTES)
        if len(end) == _LARGE_END_BYTES:
            (count,) = struct.unpack_from("<Q", end, 32)
    return int(count)


def check_zip(path: Path, archive: zipfile.ZipFile, most: int | None) -> int:
    """Look what a zip archive of torch.save unpacks to.

    Args:
        path: The file.
        archive: The same, opened.
        most: How many bytes of numbers it may hold; None where nobody says.

    Returns:
        How many bytes that is.

    Raises:
        TooMuch: It is too much.
    """
    entries = archive.infolist()
    total = sum(entry.file_size for entry in entries)
    _check_total(total, most)
    largest = max((entry.file_size for entry in entries if entry.filename.endswith(".pkl")), default=0)
    if largest > MOST_BYTES:
        raise TooMuch(f"has more than {MOST_BYTES // 2**20} MiB beside the numbers of its tensors")
    # The reader that torch uses: another one might find another pickle in the same file.
    with path.open("rb") as file:
        pickled = torch._C.PyTorchFileReader(file).get_record("data.pkl")
    Costs().follow(io.BytesIO(pickled))
    return total


def check_legacy(path: Path, most: int | None) -> int:
    """Look what a file of torch.save from before torch 1.6 takes; as `check_zip`."""
    total = path.stat().st_size
    _check_total(total, most)
    costs = Costs()
    with path.open("rb") as file:
        reader = BoundedReader(cast("IO[bytes]", file))
        for _ in range(_PICKLES):
            if not costs.follow(reader):
                break
    return total


def check_safetensors(path: Path, most: int | None) -> None:
    """Look what a safetensors file takes; as `check_zip`."""
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) == 8 and int.from_bytes(start, "little") > _MOST_HEADER_BYTES:  # noqa: PLR2004 - of the format
        raise TooMuch(f"has a header of more than {_MOST_HEADER_BYTES // 2**20} MiB")
    _check_total(path.stat().st_size, most)


def _check_total(total: int, most: int | None) -> None:
    if most is not None and total > most:
        raise TooMuch(f"holds {_megabytes(total)} of numbers, and for this network at most {_megabytes(most)} are read")


def _megabytes(count: int) -> str:
    return f"{-(-count // 10**6)} MB"
