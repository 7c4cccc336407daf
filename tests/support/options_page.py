"""The table of all options in `docs/options.md`, made of the models that define them: `make docs` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from producer.input.read_options import ReadOptions
from producer.jobs.model.options import Parameter, parameters
from producer.jobs.model.spec import JobSpec
from producer.submission.options import SubmitOptions

if TYPE_CHECKING:
    from pydantic import BaseModel

PAGE = Path(__file__).parents[2] / "docs" / "options.md"
HEAD = """# Options of a submission

What `gradcam submit` and `Client.submit` take. This page is made of the models that define the options: `make docs`
writes it, and a test compares it.
"""
PARTS: dict[str, tuple[str, type[BaseModel]]] = {
    "What a job computes": ("In Python each is an argument of `Client.submit`.", JobSpec),
    "How it is submitted": ("In Python each is an argument of `Client.submit`.", SubmitOptions),
    "Which images, and what lists say of them": (
        "In Python each is an argument of `ReadOptions`, which `Client.submit` takes as `reading`.",
        ReadOptions,
    ),
}


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_part(title, *part) for title, part in PARTS.items())])


def _part(title: str, words: str, model: type[BaseModel]) -> str:
    rows = [_row(each) for each in parameters(model).values()]
    return "\n".join(
        [
            f"## {title}",
            "",
            words,
            "",
            "| option | in Python | default | what it does |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _row(parameter: Parameter) -> str:
    choices = f" One of {', '.join(f'`{choice}`' for choice in parameter.choices)}." if parameter.choices else ""
    cells = (f"`{parameter.flag}`", f"`{parameter.name}`", _default(parameter), parameter.help + choices)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(parameter: Parameter) -> str:
    option, default = parameter.option, parameter.default
    if option.auto:
        return "`auto`"
    if option.absent:
        return option.absent
    if default in (None, False, ()):
        return ""
    return f"`{','.join(default)}`" if isinstance(default, tuple) else f"`{default}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
