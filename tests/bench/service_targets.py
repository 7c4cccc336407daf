"""The numbers that the service is to reach, and which it does."""

from __future__ import annotations

from dataclasses import dataclass, field

import click


@dataclass(frozen=True)
class Row:
    """One number."""

    what: str
    measured: float
    target: float
    #: At most the target, in place of at least.
    most: bool
    #: Whether it is to be reached; else it is only told.
    asked: bool

    @property
    def met(self) -> bool:
        """Whether the number is reached."""
        return self.measured <= self.target if self.most else self.measured >= self.target


@dataclass
class Targets:
    """All of them."""

    rows: list[Row] = field(default_factory=list)

    def add(self, what: str, measured: float, target: float, asked: bool, *, most: bool = False) -> None:
        """Take note of a number."""
        self.rows.append(Row(what, measured, target, most, asked))

    def show(self) -> None:
        """Print the table."""
        if not self.rows:
            return
        click.echo(f"\n{'':<64}{'measured':>9}{'target':>9}")
        for row in self.rows:
            target = f"{'<=' if row.most else '>='} {row.target:g}" if row.asked else ""
            verdict = ("met" if row.met else "NOT MET") if row.asked else ""
            click.echo(f"{row.what:<64}{row.measured:>9.2f}{target:>9}  {verdict}")
