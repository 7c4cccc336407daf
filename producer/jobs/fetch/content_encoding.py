"""What a web server says of how it packed a body is judged by the body's first bytes.

| `Content-Encoding`               | the body begins                 | what is read                             |
|----------------------------------|---------------------------------|------------------------------------------|
| none, empty, `identity`          | anyhow                          | as it is                                 |
| `gzip`, `x-gzip`, `deflate`      | as gzip or zlib does            | unpacked, piece by piece                 |
| `zstd`, `compress`, `x-compress` | as zstd or compress does        | refused                                  |
| `br`, which begins in no own way | not as a file that we read does | refused                                  |
| any of them                      | in another way                  | as it is: the server is wrong            |
| any other word                   | anyhow                          | as it is: `none`, `utf-8`, `aws-chunked` |
| any, of `.gz`, `.tgz`, `.zst`    | anyhow                          | as it is: that file was asked for        |

Servers are asked to pack nothing. Some do it all the same, others keep such a word beside a file that never was packed.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from typing import Final

from producer.jobs.model.errors import FetchError

#: Bytes unpacked at once: memory stays flat, whatever a piece unpacks to.
_CHUNK_BYTES: Final = 64 * 1024
#: So many bytes tell what a body is.
_TELLING_BYTES: Final = 8
#: zlib's number for "gzip or zlib, see its head".
_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS

_GZIP: Final = b"\x1f\x8b\x08"
_UNPACKED: Final = frozenset({"gzip", "x-gzip", "deflate"})
_REFUSED: Final = {"zstd": b"\x28\xb5\x2f\xfd", "compress": b"\x1f\x9d", "x-compress": b"\x1f\x9d"}
#: Pictures, zip (PyTorch's weights) and Parquet.
_OURS: Final = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II", b"MM", b"PK\3\4", b"PAR1")
_PACKED_NAME: Final = re.compile(r"\.(?:t?gz|zst)\Z", re.IGNORECASE)


def is_packed(path: str) -> bool:
    """Whether a file lies packed where it is, by its name."""
    return bool(_PACKED_NAME.search(path))


def content(pieces: Iterator[bytes], said: str, shown: str, *, packed: bool) -> Generator[bytes, None, None]:
    """Give the content of a body, of which the server says that it is packed.

    Args:
        pieces: The body as it came.
        said: The header `Content-Encoding`.
        shown: The address, as an error may show it.
        packed: Whether the file that is asked for is packed itself.

    Raises:
        FetchError: It is packed in a way that is not read, or is broken.
    """
    beginning = b""
    for piece in pieces:
        beginning += piece
        if len(beginning) >= _TELLING_BYTES:
            break
    whole = chain((beginning,), pieces)
    words = set() if packed else {word.strip().lower() for word in said.split(",")}
    for word, mark in _REFUSED.items():
        if word in words and beginning.startswith(mark):
            raise _refused(shown, word)
    if "br" in words and not beginning.startswith(_OURS):
        raise _refused(shown, "br")
    if words & _UNPACKED and (beginning.startswith(_GZIP) or ("deflate" in words and _is_zlib(beginning))):
        yield from _inflated(whole, shown)
    else:
        yield from whole


def _refused(shown: str, word: str) -> FetchError:
    return FetchError(f"{shown} is refused: the server packs it ({word}), although it was asked not to")


def _is_zlib(beginning: bytes) -> bool:
    """Whether this is zlib's head (RFC 1950): method 8, and a multiple of 31."""
    head = int.from_bytes(beginning[:2])
    return len(beginning) > 1 and head >> 8 & 0x0F == zlib.DEFLATED and head % 31 == 0


def _inflated(pieces: Iterable[bytes], shown: str) -> Generator[bytes, None, None]:
    inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        for piece in pieces:
            left = piece
            while left:
                if inflate.eof:  # several gzip files in a row are one
                    inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
                yield inflate.decompress(left, _CHUNK_BYTES)
                # Some programs fill up the end with zeros.
                left = inflate.unused_data.lstrip(b"\0") if inflate.eof else inflate.unconsumed_tail
        while not inflate.eof and (rest := inflate.decompress(b"", _CHUNK_BYTES)):
            yield rest
    except zlib.error:
        raise FetchError(f"{shown} cannot be read: the server packs it, and it does not unpack") from None
    if not inflate.eof:
        raise FetchError(f"{shown} cannot be read: the server packs it, and its end is missing")
