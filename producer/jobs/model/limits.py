"""How large a number may be: a larger one is refused, and never reaches Redis or an iterator."""

from __future__ import annotations

from typing import Final

#: What Redis, the store and Python's own iterators count with: 64 bits.
MAX_COUNT: Final = 2**63 - 1
#: The largest id of a class.
MAX_CLASS_ID: Final = 2**31 - 1
#: A producer waits when Redis holds more than this share of its `maxmemory`: the rest is what workers need to go on.
FULL_SHARE = 0.8
