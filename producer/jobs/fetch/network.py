"""What fetching from the web and from S3 have in common: sizes, temporary faults, and their messages."""

from __future__ import annotations

import http.client
import os
import ssl
from typing import Final

import urllib3

from producer.jobs.model.errors import FetchError

PIECE_BYTES: Final = 64 * 1024
#: What a connection may raise.
NETWORK_ERRORS: Final = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)


class TryAgain(FetchError):
    """The network or the server failed; the same request may succeed in a moment."""


def refuse_larger(shown: str, size_bytes: int, limit_bytes: int) -> None:
    """Raise FetchError where a body is larger than the limit."""
    if size_bytes > limit_bytes:
        raise FetchError(f"{shown} is refused: it is larger than {limit_bytes:,} bytes")


def cause_of(error: BaseException | None) -> str:
    """Describe a network error without the library's object names."""
    root = error.__cause__ or error if error else None
    if isinstance(root, TimeoutError):
        return "no answer in time"
    if isinstance(root, http.client.IncompleteRead):
        return "the answer broke off"
    if isinstance(root, ssl.SSLError):
        return f"TLS failed ({root.reason})"
    if isinstance(root, OSError) and root.errno:
        return os.strerror(root.errno).lower()
    if root is None or isinstance(root, http.client.RemoteDisconnected | OSError):
        return "the connection broke"
    return "the server's answer is broken off, or is not HTTP"
