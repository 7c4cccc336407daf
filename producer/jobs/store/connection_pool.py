"""What fetches over HTTP share: connections that stay open between two requests."""

from __future__ import annotations

import threading
from collections import deque
from typing import Final, TypeAlias

from urllib3.connection import HTTPConnection

MAX_IDLE: Final = 64
#: Scheme, IP address, port and host name: only an equal request may use a connection again.
Key: TypeAlias = tuple[str, str, int, str]


class ConnectionPool:
    """Open connections between two requests; the one unused for longest is closed when there are too many."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[tuple[Key, HTTPConnection]] = deque()

    def take(self, key: Key) -> HTTPConnection | None:
        """An open connection for such a request, if there is one; whoever takes it has it alone."""
        while connection := self._pop(key):
            # False also where bytes came unasked for, which would be read as the next answer.
            if connection.is_connected:
                return connection
            connection.close()
        return None

    def _pop(self, key: Key) -> HTTPConnection | None:
        with self._lock:
            for index in reversed(range(len(self._kept))):
                if self._kept[index][0] == key:
                    connection = self._kept[index][1]
                    del self._kept[index]
                    return connection
        return None

    def put(self, key: Key, connection: HTTPConnection) -> None:
        """Keep a connection whose last answer was read to its end."""
        with self._lock:
            self._kept.append((key, connection))
            spare = self._kept.popleft()[1] if len(self._kept) > MAX_IDLE else None
        if spare is not None:
            spare.close()

    def close(self) -> None:
        """Close them all."""
        with self._lock:
            kept = [connection for _, connection in self._kept]
            self._kept.clear()
        for connection in kept:
            connection.close()
