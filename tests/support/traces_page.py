"""The tables of spans in `docs/traces.md`, made of the code that declares them: `make docs` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import marked_pages

from producer.jobs.tracing.traces import ATTRIBUTES, SPANS

PAGE: Final = Path(__file__).parents[2] / "docs" / "traces.md"


def renewed() -> str:
    """The page as it should be."""
    rows = {
        name: [(f"`{key}`", words) for key, words in says.items()]
        for name, says in (("spans", SPANS), ("attributes", ATTRIBUTES))
    }
    tables = {
        "spans": marked_pages.table(("span", "lasts while"), rows["spans"]),
        "attributes": marked_pages.table(("attribute", "says"), rows["attributes"]),
    }
    return marked_pages.renewed(PAGE, tables)


if __name__ == "__main__":
    PAGE.write_text(renewed(), encoding="utf-8")
