"""What is fuzzed: each target has whole inputs to begin with, and says of a broken one what became of it.

Another kind of input is a module here, with a `targets()` like that of `fuzz_pictures.py`, and a line in `MODULES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fuzz_mutations import Format

#: Modules of `tests/fuzz/` that have targets; each is imported in the process that needs it.
MODULES = ("fuzz_pictures", "fuzz_redis")


@dataclass(frozen=True)
class Target:
    """One kind of input."""

    name: str
    #: Whole inputs; mutations begin with them.
    seeds: Sequence[bytes]
    #: Gives the verdict, such as "read" or "refused"; an exception, or a process that dies, is a finding.
    run: Callable[[bytes], str]
    format: Format = field(default_factory=Format)
    #: What an input may take, in processor seconds and in bytes beside what the process had before.
    most_s: float = 10.0
    most_bytes: int = 520_000_000


def targets() -> dict[str, Target]:
    """All targets by name."""
    found = [target for name in MODULES for target in importlib.import_module(name).targets()]
    return {target.name: target for target in found}
