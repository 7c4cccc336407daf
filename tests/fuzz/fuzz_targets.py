"""What is fuzzed: each target has whole inputs to begin with, and says of a broken one what became of it.

Another kind of input is a module here, with a `targets()` like that of `fuzz_pictures.py`, and a line in `MODULES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fuzz_mutations import Format

#: Modules of `tests/fuzz/`, each imported in the process that needs it (PyTorch with it), and their targets.
MODULES = {
    "fuzz_pictures": ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"),
    "fuzz_lists": (
        *("list txt", "list csv", "list tsv", "list jsonl", "list parquet", "list csv.gz", "list jsonl.zst"),
        "address",
    ),
    "fuzz_redis": ("job", "chunk", "message", "manifest"),
    "fuzz_weights": ("weights zip", "weights pickle", "safetensors"),
}
NAMES = tuple(name for names in MODULES.values() for name in names)


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


def target(name: str) -> Target:
    """A target by its name."""
    module = next(module for module, names in MODULES.items() if name in names)
    found: dict[str, Target] = {one.name: one for one in importlib.import_module(module).targets()}
    assert set(found) == set(MODULES[module])
    return found[name]
