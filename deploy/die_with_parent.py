"""Run a program that ends when the process that started it ends, however that ended.

python die_with_parent.py PARENT SIGNAL PROGRAM [ARGUMENT...]

Started by path, with `python -I -S`, and replaced by the program at once: it keeps the process id. A program started
through Python's `preexec_fn` would do the same with less, but that may deadlock where other threads run.
"""

from __future__ import annotations

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask the kernel for a signal at the parent's death, then become the program. Only Linux knows such a signal."""
    parent, death_signal, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent:
            raise SystemExit("the process that started this one is gone already")
    # Python ignores these two, and a program inherits what is ignored.
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execv(program[0], program)  # noqa: S606 - no shell is wanted
    except OSError as error:
        raise SystemExit(f"{program[0]} cannot be run: {error.strerror}") from error


if __name__ == "__main__":
    main()
