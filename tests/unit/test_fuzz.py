"""What strangers write, mutated: read or refused in a sentence, in bounded time and memory. Pictures are elsewhere."""

from __future__ import annotations

import fuzz
import pytest
from fuzz_targets import MODULES


@pytest.mark.parametrize("module", [module for module in MODULES if module != "fuzz_pictures"])
def test_fuzzed_inputs_are_read_or_refused(module: str) -> None:
    """500 of each; `make fuzz` runs more, each target in a process of its own, whose death is a finding."""
    summaries = fuzz.in_child(MODULES[module], 500)
    assert {one["target"]: one["findings"] for one in summaries if one["findings"]} == {}
    for summary in summaries:
        assert summary["inputs"] == 500
        assert len(summary["verdicts"]) > 1, summary
