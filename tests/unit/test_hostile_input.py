"""The table of hostile cases names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/hostile-input.md").read_text()
TABLES = re.findall(r"^\| case \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
ROWS = [row for table in TABLES for row in table.splitlines()]


def test_every_case_names_a_test_that_exists() -> None:
    known = {name for path in ROOT.glob("tests/**/*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    named = [re.findall(r"`(test_\w+)`", row.rsplit(" | ", 1)[-1]) for row in ROWS]
    assert len(ROWS) > 50
    assert [row for row, tests in zip(ROWS, named, strict=True) if not tests] == []
    assert {test for tests in named for test in tests} - known == set()
