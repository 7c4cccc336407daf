"""Settings from files: `GRADCAM_REDIS_URL_FILE=/run/secrets/redis_url` in the place of `GRADCAM_REDIS_URL`.

Nothing is imported that takes time: probes, which run every few seconds, read a setting in this way, too.
"""

from __future__ import annotations

import os
from typing import Final

#: At the end of a setting's name: the variable has the path of a file that holds it.
FILE: Final = "_FILE"
#: No setting is longer.
_MAX_BYTES: Final = 65536


def variable_of(name: str) -> str:
    """Return the variable that a setting comes from, for who is to correct it: `name`, or `name_FILE`."""
    return f"{name}{FILE}" if os.environ.get(f"{name}{FILE}") else name


def held_in_file(name: str) -> str | None:
    """Return what the file of a setting holds, less a line's end; None where no file is named.

    Args:
        name: The setting's; the file's path is in the variable of this name with `_FILE` behind it.

    Raises:
        ValueError: It cannot be read, or the setting is there as well. Nothing of what it holds is in the sentence.
    """
    # An empty variable is one that is not set.
    path = os.environ.get(f"{name}{FILE}")
    if not path:
        return None
    if os.environ.get(name):
        raise ValueError(f"{name} and {name}{FILE} are both set; leave one out")
    try:
        with open(path, "rb") as file:
            held = file.read(_MAX_BYTES + 1)
        text = held.decode()
    except (OSError, ValueError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "it is no text"
        raise ValueError(f"{name}{FILE} cannot be read ({why})") from None
    if len(held) > _MAX_BYTES:
        raise ValueError(f"{name}{FILE} is longer than {_MAX_BYTES} bytes")
    return text.rstrip("\r\n")
