"""The command `gradcam-worker`: an entry that imports next to nothing before Ctrl-C is heard."""

from __future__ import annotations

import os
from typing import NoReturn

from producer.jobs.model.interrupt import run_guarded


def main() -> NoReturn:
    """Run the command. Its launcher hears signals itself: workers finish their batches first."""
    run_guarded(_command)


def _command() -> int:
    if not os.environ.get("OMP_NUM_THREADS"):
        # Deployments set it to nothing where they have no number, of which libgomp complains when torch loads it.
        os.environ.pop("OMP_NUM_THREADS", None)
    from worker.commands import run

    return run()


if __name__ == "__main__":
    main()
