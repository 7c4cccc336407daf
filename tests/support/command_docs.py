"""Write docs/commands.md: what every command takes, as `--help` says it.

python tests/support/command_docs.py > docs/commands.md
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from deploy.commands import cli as producer_cli
from worker.commands import cli as worker_cli

HEAD = """# Commands and options

As `--help` says it; `python tests/support/command_docs.py` writes this page. Every command also has `-h` and `--help`.
"""
#: Both commands by their names.
ROOTS: dict[str, click.Command] = {"gradcam": producer_cli, "gradcam-worker": worker_cli}


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command there is, by what is typed: `gradcam submit`."""
    for name, root in ROOTS.items():
        yield name, root
        if isinstance(root, click.Group):
            for verb, command in root.commands.items():
                yield f"{name} {verb}", command


def options_of(command: click.Command) -> set[str]:
    """What may stand behind it and begins with dashes."""
    named = {option for found in _parameters(command) for option in (*found.opts, *found.secondary_opts)}
    return {option for option in named if option.startswith("-")} | {"-h", "--help"}


def _parameters(command: click.Command) -> list[click.Parameter]:
    """All it takes; some make their options when they are asked for them."""
    return [found for found in command.get_params(click.Context(command)) if "--help" not in found.opts]


def page() -> str:
    return HEAD + "".join(f"\n{_section(typed, command)}" for typed, command in commands())


def _section(typed: str, command: click.Command) -> str:
    context = click.Context(command, info_name=typed)
    usage = " ".join([typed, *command.collect_usage_pieces(context)])
    what = " ".join((command.help or "").split("\b")[0].split())
    rows = [_row(option) for option in _parameters(command) if isinstance(option, click.Option)]
    table = ["", "| option | does |", "|---|---|", *rows] if rows else []
    return "\n".join([f"## `{typed}`", "", f"`{usage}`", "", _plain(what), *table, ""])


def _row(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if isinstance(option.type, click.Choice):
        names += f" {' '.join(f'`{choice}`' for choice in option.type.choices)}"
    elif not option.is_flag:
        names += f" `{_value_of(option)}`"
    default = f" Default: `{option.default}`." if option.show_default and option.default is not None else ""
    words = re.sub(r"\s+", " ", option.help or "").strip()
    return f"| {names.replace('|', '&#124;')} | {_plain(words)}{default} |"


def _value_of(option: click.Option) -> str:
    if isinstance(option.type, click.IntRange | click.FloatRange):
        return "N"
    return option.make_metavar(click.Context(click.Command("any")))


def _plain(text: str) -> str:
    """Help is no Markdown: outside of `code` its stars and angle brackets mean themselves."""
    parts = text.split("`")
    parts[::2] = [part.replace("*", r"\*").replace("<", "&lt;").replace("|", r"\|") for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    print(page(), end="")
