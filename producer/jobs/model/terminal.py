"""What our programs print: data on stdout, talk on stderr, each line through `text.py`, whoever wrote what is in it.

Nothing else of ours prints: `tests/unit/test_strangers_text.py` looks. Talk with bars and tables is `client/talk.py`.
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Iterator, Sequence

import click

from producer.jobs.model.redaction import redact_text
from producer.jobs.model.text import LINE_CHARS, in_json, lines, shown


def out(*columns: object, command: str = "") -> None:
    """Print a line of data for a person; tabs between its columns. A last one that is a command is never shortened."""
    texts = [shown(column, LINE_CHARS) for column in columns]
    click.echo("\t".join([*texts, shown(command, sys.maxsize)] if command else texts))


def out_lines(text: object) -> None:
    """Print data of several lines."""
    click.echo(lines(text))


def out_table(rows: Sequence[Sequence[object]]) -> None:
    """Print rows with their columns one below the other; the last column may be long."""
    texts = [[*(shown(cell) for cell in cells), shown(last, LINE_CHARS)] for *cells, last in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def out_json(line: str) -> None:
    """Print JSON: the data is whole and exact, what would move a terminal's cursor stands as an escape of JSON's."""
    click.echo(in_json(line))


def say(sentence: object) -> None:
    """Print a sentence on stderr."""
    click.echo(shown(sentence, LINE_CHARS), err=True)


def say_json(line: str) -> None:
    """Print JSON on stderr, as `out_json` has it on stdout."""
    click.echo(in_json(line), err=True)


def say_lines(text: object) -> None:
    """Print several lines on stderr."""
    click.echo(lines(text), err=True)


def say_error(error: object, word: str = "Error") -> None:
    """Print what went wrong on stderr, with the excerpt of a log that belongs to it."""
    say(f"{word}: {error}")
    if excerpt := getattr(error, "excerpt", ""):
        say_lines(excerpt)


def say_refused(error: click.ClickException) -> None:
    """Print on stderr what click says of what was typed."""
    text = io.StringIO()
    error.show(text)
    say_lines(text.getvalue().rstrip("\n"))


def say_bug(error: BaseException) -> None:
    """Print on stderr an error that nobody foresaw, with its traceback."""
    # What is reported is read by others.
    say(f"Error: this is a bug of gradcam-queue, please report it with what follows ({redact_text(str(error))})")
    say_lines(redact_text("".join(_traceback(error)).rstrip("\n")))


def _traceback(error: BaseException) -> Iterator[str]:
    # Not `format_exception`, which would write out an error's text of any length several times.
    return traceback.TracebackException.from_exception(error, compact=True).format()
