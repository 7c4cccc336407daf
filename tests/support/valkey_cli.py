"""`valkey-cli -p PORT COMMAND …` for a machine that has none: the same commands, and answers as it prints them."""

from __future__ import annotations

import os
import sys
from contextlib import closing

import redis


def main() -> None:
    """Send one command."""
    _, option, port, *command = sys.argv
    assert option == "-p"
    connection = redis.Redis(port=int(port), password=os.environ["REDISCLI_AUTH"], decode_responses=True)
    # Answers as they come: redis-py makes dictionaries of some.
    connection.response_callbacks.clear()
    with closing(connection):
        answer = connection.execute_command(*command)  # type: ignore[no-untyped-call]
        sys.stdout.write(f"{answer}\n")


if __name__ == "__main__":
    main()
