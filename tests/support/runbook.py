"""The blocks of `docs/runbook.md`: which commands stand in which section, and what one sees."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "runbook.md"
_PART = re.compile(
    r"^## (?P<title>[^\n]+)$|^(?P<indent> *)```(?P<kind>\w+)\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S
)


@dataclass
class Block:
    """Commands that are run together."""

    section: str
    commands: str
    #: Lines that are seen, in any order; `…` stands for anything.
    seen: str = ""

    def missing(self, said: str) -> list[str]:
        """Which of the lines that should be seen are not among what was said."""
        return [
            line for line in self.seen.splitlines() if not re.search(".*".join(map(re.escape, line.split("…"))), said)
        ]


def blocks() -> list[Block]:
    """All of them, in order."""
    found: list[Block] = []
    section = ""
    for part in _PART.finditer(PAGE.read_text()):
        if part["title"]:
            section = part["title"]
        elif part["kind"] == "sh":
            found.append(Block(section, textwrap.dedent(part["text"])))
        elif part["kind"] == "text":
            assert found
            assert found[-1].section == section
            found[-1].seen = textwrap.dedent(part["text"])
    return found
