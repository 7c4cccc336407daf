"""How a metric is declared: once, with its sentence, so that the documentation's table is made of it."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """A metric in Prometheus' sense; its labels have few values, and none of them is a job's name."""

    #: A counter's without its `_total`, which Prometheus' format puts behind it.
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    #: What it says, in a sentence.
    words: str
    labels: tuple[str, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names that queries know it by."""
        match self.kind:
            case "counter":
                return (f"{self.name}_total",)
            case "histogram":
                return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
            case _:
                return (self.name,)
