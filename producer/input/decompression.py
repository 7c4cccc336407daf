"""Compressed lists are read as if they were not; broken data becomes a sentence."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TYPE_CHECKING, BinaryIO, cast

from producer.input.spooled import RereadableFile, SpooledFile
from producer.jobs.model.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PIECE_BYTES = 2**18
#: A list unpacks to so much, or to so many times its size; addresses that differ in their numbers alone take a 60th.
MAX_UNPACKED_BYTES, MAX_TIMES = 2**30, 250
#: Compressed bytes taken at once: a block of zstandard unpacks to 128 kB at most, and may have four bytes.
_PACKED_BYTES = 2**11


def pieces(stored: RereadableFile, packing: str | None, lines: Callable[[], int] = int) -> Generator[bytes, None, None]:
    """Read a list through its compression.

    Args:
        stored: The list.
        packing: `gz`, `zst` or none.
        lines: How many lines were read so far, for the message about what follows them.

    Raises:
        UsageError: It cannot be read, its compressed data is broken, or it unpacks to more than a list does.
    """
    unpacked = 0
    with stored.open() as packed, closing(_unpacked(packed, packing)) as file:
        while True:
            try:
                piece = file.read(_PIECE_BYTES)
            except (EOFError, zlib.error, OSError) as error:
                place = f" after line {lines()}" if lines() else ""
                raise UsageError(f"{stored.name} cannot be read{place}: {_cause(error)}") from None
            if not piece:
                return
            unpacked += len(piece)
            if packing and unpacked > MAX_UNPACKED_BYTES and unpacked > MAX_TIMES * packed.tell():
                raise UsageError(
                    f"{stored.name} unpacks to more than {MAX_TIMES} times its size: if it is a list, unpack it first"
                )
            yield piece


class DecompressedFile(SpooledFile):
    """A list without its compression, for those that cannot be read through it."""

    def __init__(self, stored: RereadableFile, packing: str) -> None:
        super().__init__(stored.name, lambda file: file.writelines(pieces(stored, packing)))
        self._packed = stored

    def close(self) -> None:
        """Let go of both."""
        super().close()
        self._packed.close()


def _cause(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "its compressed data breaks off"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return "its compressed data is broken"


def _unpacked(file: BinaryIO, packing: str | None) -> BinaryIO:
    if packing == "gz":
        return cast("BinaryIO", gzip.GzipFile(fileobj=file))
    if packing == "zst":
        return cast("BinaryIO", io.BufferedReader(_Zstandard(file), _PIECE_BYTES))
    return file


class _Zstandard(io.RawIOBase):
    """Frames of zstandard, one after the other; unlike the library's reader, it notices a truncated frame."""

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._file, self._errors = file, zstandard.ZstdError
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new_frame()
        self._inside = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._ready:
            packed = self._file.read(_PACKED_BYTES)
            if not packed:
                if self._inside:
                    raise EOFError
                return 0
            self._ready = memoryview(self._unpack(packed))
        view = memoryview(buffer)
        count = min(len(view), len(self._ready))
        view[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _unpack(self, packed: bytes) -> bytearray:
        out = bytearray()  # of many small frames: bytes would be copied for each
        while packed:
            try:
                out += self._frame.decompress(packed)
            except self._errors as error:
                raise zlib.error(str(error)) from None
            self._inside, packed = not self._frame.eof, self._frame.unused_data if self._frame.eof else b""
            if not self._inside:
                self._frame = self._new_frame()
        return out
