"""How much the death of a child process speaks against an image that it worked at alone."""

from __future__ import annotations

from typing import Final

#: An image fails when the deaths that it was alone in weigh this much.
CONVICTING: Final = 4
#: Something from outside killed the process, or nobody saw its end: a coincidence is possible.
UNKNOWN: Final = 1
#: The process crashed by itself, or the kernel killed it for lack of memory.
CRASHED: Final = 2
#: The process hung past its deadline: that is no coincidence.
HUNG: Final = 100
