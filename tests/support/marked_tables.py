"""Tables in pages of docs/ that are made of the code that declares what they show; the rest is written by hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

#: What stands on a page before and behind a table.
_MARKS: Final = "<!-- {}: made by `make docs` -->\n", "<!-- end -->\n"


def renewed(path: Path, tables: Mapping[str, str]) -> str:
    """The page as it should be.

    Args:
        path: Of the page.
        tables: What belongs between the marks of that name.
    """
    page = path.read_text(encoding="utf-8")
    for name, rows in tables.items():
        begin, end = _MARKS[0].format(name), _MARKS[1]
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(page):
            raise ValueError(f"{path.name} has no place for {name}")
        before, behind = pattern.split(page)
        page = f"{before}{begin}{rows}{end}{behind}"
    return page


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown, with an empty line around it."""
    lines = [head, ["---"] * len(head), *rows]
    shown = [("|" + "|".join(line) + "|") if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines]
    return "\n".join(["", *shown, "", ""])
