"""Pages of docs/ of which a program writes parts: between two marks, with text by hand around them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

_MARKS: Final = "<!-- {}: made by `make docs` -->\n", "<!-- end -->\n"


def renewed(path: Path, parts: Mapping[str, str]) -> str:
    """The page as it should be.

    Args:
        path: Where it is.
        parts: What belongs between the marks, by the name in the first one.

    Raises:
        ValueError: The page has no place for a part, or several.
    """
    page = path.read_text(encoding="utf-8")
    for name, text in parts.items():
        begin, end = _MARKS[0].format(name), _MARKS[1]
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        places = pattern.split(page)
        if len(places) != 2:
            raise ValueError(f"{path.name} has {len(places) - 1} places for {name}, not one")
        page = f"{places[0]}{begin}{text}{end}{places[1]}"
    return page


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, with an empty line before and behind it."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    texts = [f"|{'|'.join(line)}|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines]
    return "\n".join(["", *texts, "", ""])
