"""Why a server's certificate, or its TLS, was refused: it stands somewhere among the causes of a library's error."""

from __future__ import annotations

import ssl
from collections.abc import Iterator


def refused_certificate(error: BaseException) -> str | None:
    """Why the certificate is not valid here, in OpenSSL's words; None where that is not what went wrong."""
    for one in _causes(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            return one.verify_message.rstrip(".")
    return None


def failed_tls(error: BaseException) -> str | None:
    """What else went wrong in TLS, in OpenSSL's words; None where nothing did."""
    for one in _causes(error):
        if isinstance(one, ssl.SSLError):
            return (one.reason or type(one).__name__).lower().replace("_", " ")
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and all that it was made of; urllib3 has them among its arguments."""
    left: list[object] = [error]
    seen: set[int] = set()
    while left:
        one = left.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [one.__cause__, one.__context__, *one.args]
