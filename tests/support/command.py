"""The `gradcam` command: as a user runs it, or in this process, which saves its imports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import pytest
from click.testing import CliRunner

from producer import cli
from worker.commands import run as worker_run


@dataclass(frozen=True)
class Run:
    """What a command that ended has said."""

    returncode: int
    stdout: str
    stderr: str


def gradcam(*arguments: str, code: int = 0, env: dict[str, str] | None = None) -> Run:
    """Run it in this process, with streams of its own; not from two threads at once."""
    command = partial(cli.cli, list(arguments), prog_name="gradcam", standalone_mode=False)
    return _checked(_here(lambda: sys.exit(cli.run(command)), ["gradcam", *arguments], env), code)


def worker_check(*arguments: str) -> Run:
    """Run `gradcam-worker check` in this process."""
    return _here(lambda: sys.exit(worker_run()), ["gradcam-worker", "check", *arguments])


def _here(main: Callable[[], NoReturn], argv: list[str], env: dict[str, str] | None = None) -> Run:
    with pytest.MonkeyPatch.context() as patch, CliRunner().isolation(env=env) as (stdout, stderr, _):
        patch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            main()
        sys.stdout.flush()
        sys.stderr.flush()
        return Run(int(ended.value.code or 0), stdout.getvalue().decode(), stderr.getvalue().decode())


def gradcam_process(*arguments: str, code: int = 0, env: dict[str, str] | None = None) -> Run:
    """Run it in a process of its own, as a user does."""
    run = subprocess.run(
        [sys.executable, "-m", "producer.cli", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **(env or {})},
    )
    return _checked(Run(run.returncode, run.stdout, run.stderr), code)


def _checked(run: Run, code: int) -> Run:
    assert run.returncode == code, f"{run.returncode}\n{run.stdout}\n{run.stderr}"
    assert "Traceback" not in run.stderr
    return run
