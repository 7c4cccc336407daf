"""What was done to a job: which verb, who, when, and why."""

from __future__ import annotations

import getpass
import socket
from datetime import datetime
from typing import Annotated

from pydantic import Field

from producer.jobs.model.errors import UsageError
from producer.jobs.model.frozen import Frozen

#: Letters of who did something, and of why; what Redis holds beyond that is not ours.
MAX_WHO, MAX_REASON = 100, 500


class Action(Frozen):
    """Something that was done to a job."""

    #: `pause`, `resume`, `cancel`, `retry`, `repair`; `submit` where a submission went on with a job that had failed;
    #: `recover` where the store brought it back.
    verb: Annotated[str, Field(max_length=20)]
    #: user@host of the client, or what GRADCAM_USER says; empty where it was not told.
    who: Annotated[str, Field(max_length=MAX_WHO)] = ""
    reason: Annotated[str, Field(max_length=MAX_REASON)] = ""
    at: datetime


def user_and_host() -> str:
    """Say who acts here: the user and the machine's name, as far as they are known."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user need not have a name
        user = "unknown"
    return _utf8(f"{user}@{socket.gethostname()}")[:MAX_WHO]


def checked_reason(reason: str | None) -> str:
    """Give why something is done, without white space around it. Raises UsageError: it is too long."""
    text = _utf8(reason or "").strip()
    if len(text) > MAX_REASON:
        raise UsageError(f"the reason has {len(text)} letters: write at most {MAX_REASON}")
    return text


def _utf8(text: str) -> str:
    """What of a command line is no UTF-8 is not written to Redis as such."""
    return text.encode("utf-8", "replace").decode()
