"""How much of what is drawn is tried: a part in `make test`, all of it in `make test-all`."""

from __future__ import annotations

import os
from typing import Final, TypeVar

_Amount = TypeVar("_Amount")

PROFILES: Final = ("small", "large")
#: `GRADCAM_TEST_PROFILE` says which.
PROFILE: Final = os.environ.get("GRADCAM_TEST_PROFILE") or "small"
assert PROFILE in PROFILES, f"GRADCAM_TEST_PROFILE must be small or large, and is {PROFILE!r}"


def either(small: _Amount, large: _Amount) -> _Amount:
    """The amount for this run."""
    return small if PROFILE == "small" else large
