"""At which address metrics are served; what is wrong with one at which they were to be, in a sentence."""

from __future__ import annotations

import errno
import socket

from producer.jobs.model.errors import UsageError
from producer.jobs.model.text import quoted


def served_at(address: str) -> str:
    """Return where to listen: `::`, all addresses of this machine, is those of IPv4 where a machine knows no others.

    Args:
        address: As it was given.
    """
    return "0.0.0.0" if address == "::" and not socket.has_dualstack_ipv6() else address  # noqa: S104 - it was asked for


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
