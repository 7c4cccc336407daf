"""The command `gradcam`: an entry that imports next to nothing before Ctrl-C is heard."""

from __future__ import annotations

from typing import NoReturn

from producer.jobs.model.interrupt import run_guarded


def main() -> NoReturn:
    """Run the command."""
    run_guarded(_command)


def _command() -> int:
    from deploy.commands import cli
    from producer.cli import run

    return run(lambda: cli(standalone_mode=False))


if __name__ == "__main__":
    main()
