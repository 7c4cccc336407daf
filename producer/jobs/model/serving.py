"""What is wrong with an address and a port at which metrics were to be served, in a sentence."""

from __future__ import annotations

import errno
import socket

from producer.jobs.model.errors import UsageError
from producer.jobs.model.text import quoted


def not_served(address: str, port: int, error: OSError | UnicodeError) -> UsageError:
    """Say what to choose otherwise.

    Args:
        address: As it was given: of a network interface, or a name of it.
        port: TCP.
        error: What resolving or binding raised; UnicodeError where the name is none that any host can have.
    """
    place, why = quoted(address), getattr(error, "strerror", None) or "no host can have this name"
    if isinstance(error, socket.gaierror | UnicodeError) or error.errno in {errno.EADDRNOTAVAIL, errno.EINVAL}:
        return UsageError(
            f"no metrics can be served at {place} ({why}): name an address of this machine, such as 127.0.0.1"
        )
    return UsageError(f"no metrics can be served at {place}, port {port} ({why}): choose another port")
