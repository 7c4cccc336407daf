"""Names of files, as texts."""

from __future__ import annotations

import os

from producer.jobs.model.redaction import hides, redact
from producer.jobs.model.text import quoted


def printable(text: str) -> str:
    """A path as text that can be sent and shown: a file name may hold bytes that are no UTF-8."""
    try:
        return os.fsencode(text).decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()


def named(text: str) -> str:
    """What somebody wrote as the name of an image that is not there: it may be half an address with a secret."""
    without_secret = redact(text)
    return quoted(without_secret if hides(without_secret) else text)
