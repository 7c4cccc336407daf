"""The command `gradcam-worker`: an entry that imports next to nothing before Ctrl-C is heard."""

from __future__ import annotations

from typing import NoReturn

from producer.jobs.model.interrupt import run_guarded


def main() -> NoReturn:
    """Run the command. Its launcher hears signals itself: workers finish their batches first."""
    run_guarded(_command)


def _command() -> int:
    from worker.commands import run

    return run()


if __name__ == "__main__":
    main()
