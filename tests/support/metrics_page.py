"""The tables of metrics in `docs/metrics.md`, made of the code that declares them: `make docs` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import marked_pages

from producer.jobs.model.metric import Metric
from producer.monitoring.metrics import METRICS as OF_DEPLOYMENT
from worker.metrics import METRICS as OF_WORKERS

PAGE: Final = Path(__file__).parents[2] / "docs" / "metrics.md"
_PARTS: Final[dict[str, Sequence[Metric]]] = {"deployment": OF_DEPLOYMENT, "workers": OF_WORKERS}


def renewed() -> str:
    """The page as it should be: what is around the tables is written by hand."""
    head = ("metric", "kind", "says")
    tables = {name: marked_pages.table(head, [_row(one) for one in metrics]) for name, metrics in _PARTS.items()}
    return marked_pages.renewed(PAGE, tables)


def _row(metric: Metric) -> tuple[str, str, str]:
    name = metric.series[0] if metric.kind != "histogram" else metric.name
    labels = "{" + ", ".join(metric.labels) + "}" if metric.labels else ""
    return f"`{name}{labels}`", metric.kind, metric.words


if __name__ == "__main__":
    PAGE.write_text(renewed(), encoding="utf-8")
