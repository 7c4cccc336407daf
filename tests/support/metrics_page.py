"""The tables of metrics in `docs/metrics.md`, made of the code that declares them: `make docs` writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from producer.jobs.model.metric import Metric
from producer.monitoring.metrics import METRICS as OF_DEPLOYMENT
from worker.metrics import METRICS as OF_WORKERS

PAGE: Final = Path(__file__).parents[2] / "docs" / "metrics.md"
#: What stands on the page before and behind a table.
_MARKS: Final = "<!-- {}: made by `make docs` -->\n", "<!-- end -->\n"
_PARTS: Final[dict[str, Sequence[Metric]]] = {"deployment": OF_DEPLOYMENT, "workers": OF_WORKERS}


def renewed() -> str:
    """The page as it should be: what is around the tables is written by hand."""
    page = PAGE.read_text(encoding="utf-8")
    for name, metrics in _PARTS.items():
        begin, end = _MARKS[0].format(name), _MARKS[1]
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(page):
            raise ValueError(f"{PAGE.name} has no place for {name}")
        before, behind = pattern.split(page)
        page = f"{before}{begin}{_table(metrics)}{end}{behind}"
    return page


def _table(metrics: Sequence[Metric]) -> str:
    rows = [_row(metric) for metric in metrics]
    return "\n".join(["", "| metric | kind | says |", "|---|---|---|", *rows, "", ""])


def _row(metric: Metric) -> str:
    name = metric.series[0] if metric.kind != "histogram" else metric.name
    labels = "{" + ", ".join(metric.labels) + "}" if metric.labels else ""
    return f"| `{name}{labels}` | {metric.kind} | {metric.words} |"


if __name__ == "__main__":
    PAGE.write_text(renewed(), encoding="utf-8")
