"""A terminal for talk, bars and tables, which shows texts of strangers as `text.py` has them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from producer.jobs.model.interrupt import wished
from producer.jobs.model.text import LINE_CHARS, lines, shown


class Talk(Console):
    """rich's console without what reads texts: markup, names of emoji, numbers and addresses to be colored.

    Texts in tables, bars and notes are made safe as well: all that is drawn comes through here before colors are added.

    Args:
        options: As rich has them.
    """

    def __init__(self, **options: Any) -> None:
        # Looking for numbers and addresses costs minutes for a long text.
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts, a line each, and what rich can draw."""
        super().print(*(shown(each, LINE_CHARS) if isinstance(each, str) else each for each in objects), **options)

    def on_broken_pipe(self) -> None:
        """End; where Ctrl-C has ended the reader, too (`gradcam … 2>&1 | tee log`), as what was interrupted."""
        if wished():
            raise KeyboardInterrupt
        super().on_broken_pipe()

    def print_command(self, sentence: str, command: str) -> None:
        """Print a sentence, and a command behind it that is to be pasted: half of one does something else."""
        self.file.write(f"{shown(sentence, LINE_CHARS)}: {shown(command, sys.maxsize)}\n")
        self.file.flush()

    def print_lines(self, text: str) -> None:
        """Print a text of several lines of ours."""
        for line in lines(text).split("\n"):
            self.print(line)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Draw; what is no control sequence of rich's own is a text, and is made safe."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else _safe(text), style, control)


def _safe(text: str) -> str:
    return "\n".join(shown(line, LINE_CHARS) for line in text.split("\n"))
