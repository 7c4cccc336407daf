from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

#: A shell lets what it runs in the background ignore SIGINT: these programs are to hear it wherever the tests run.
PROGRAM = """
import os, signal, sys, time
signal.signal(signal.SIGINT, {before})
from producer.jobs.model import interrupt

def press():
    os.kill(os.getpid(), signal.SIGINT)

def command():
    {body}
    print("went on to its end", flush=True)
    return 0

interrupt.run_guarded(command)
"""


@contextmanager
def started(*lines: str, before: str = "signal.default_int_handler") -> Iterator[subprocess.Popen[str]]:
    program = PROGRAM.format(body="\n    ".join(lines), before=before)
    command = [sys.executable, "-c", program]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=buffered) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(*lines: str, before: str = "signal.default_int_handler") -> tuple[int, str, str]:
    with started(*lines, before=before) as process:
        out, error = process.communicate(timeout=30)
        return process.returncode, out, error


LOST = {
    "in a destructor": (
        "class Ends:",
        "    def __del__(self): press()",
        "Ends()",
        "time.sleep(20)",
    ),
    "in the callback of a weak reference, as imports have them": (
        "import weakref",
        "class Gone: pass",
        "gone = Gone()",
        "weak = weakref.ref(gone, lambda _: press())",
        "del gone",
        "time.sleep(20)",
    ),
    "by an except of everything": ("try: press()", "except: pass", "time.sleep(20)"),
    "by a library that makes another error of it": (
        "try: press()",
        "except BaseException as error: raise ValueError('of a library') from error",
    ),
}


@pytest.mark.parametrize("lines", LOST.values(), ids=list(LOST))
def test_an_interrupt_that_is_lost_ends_the_command_all_the_same(lines: tuple[str, ...]) -> None:
    """Of 51 submissions that were interrupted one went on to its end."""
    assert ended(*lines) == (130, "", "interrupted\n")


def test_what_tidies_up_after_an_interrupt_is_not_interrupted_itself() -> None:
    tidy = ("try: press()", "finally:", "    time.sleep(1.3)", "    print('tidied up', flush=True)")
    assert ended(*tidy) == (130, "tidied up\n", "interrupted\n")


def test_signals_that_come_together_are_one() -> None:
    """A terminal and a program around the command may both send one."""
    both = ("try: press()", "finally:", "    press()", "    print('tidied up', flush=True)")
    assert ended(*both) == (130, "tidied up\n", "interrupted\n")


def test_a_second_interrupt_ends_the_command_at_once() -> None:
    slow = (
        "try:", "    print('ready', flush=True)", "    time.sleep(20)",
        "finally:", "    print('tidying up', flush=True)", "    time.sleep(20)",
    )  # fmt: skip
    with started(*slow) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "tidying up\n"
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        assert process.returncode == 130
        assert process.stderr.read() == "interrupted again: ended without tidying up\n"


#: Commands that Ctrl-C finds waiting, each in a way of its own to say so.
WAITING = {
    "says nothing itself": ("print('ready', flush=True)", "time.sleep(20)"),
    "says that the job goes on": (
        "from producer import cli",
        "from producer.client.talk import Talk",
        "def follow():",
        "    print('ready', flush=True)",
        "    try: time.sleep(20)",
        "    except KeyboardInterrupt: Talk(stderr=True).print('the job goes on'); raise",
        "return cli.run(follow)",
    ),
    "has written data that nobody has read": (
        "print('ready', flush=True)",
        "sys.stdout.write('data')",
        "time.sleep(20)",
    ),
}


@pytest.mark.parametrize("lines", WAITING.values(), ids=list(WAITING))
def test_an_interrupt_ends_a_command_whose_output_has_nobody_to_read_it(lines: tuple[str, ...]) -> None:
    """Ctrl-C ends the `tee` of `gradcam … 2>&1 | tee log`, too."""
    with started(*lines) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.stdout.close()
        process.stderr.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_a_second_interrupt_ends_a_command_whose_stderr_has_nobody_to_read_it() -> None:
    slow = ("try:", "    press()", "finally:", "    print('tidying up', flush=True)", "    time.sleep(20)")
    with started(*slow) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "tidying up\n"
        process.stderr.close()
        time.sleep(0.5)  # signals that come together are one
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_what_is_ignored_where_a_command_is_started_stays_ignored() -> None:
    """`nohup`, and what a script runs in the background."""
    assert ended("press()", before="signal.SIG_IGN") == (0, "went on to its end\n", "")


@pytest.mark.parametrize("module", ["deploy.cli", "worker.cli"])
def test_the_commands_hear_an_interrupt_before_they_import_anything_that_takes_long(module: str) -> None:
    program = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "before = set(sys.modules)\n"
        f"from {module} import main\n"
        "assert not {'click', 'json', 'logging', 'subprocess', 'typing_extensions'} & (set(sys.modules) - before)\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "main()\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "interrupted\n")


#: What says something to a reader who has gone.
TOLD = {
    "by click": (
        "import click",
        "from producer import cli",
        "say = click.command()(lambda: [click.echo('x' * 1000) for _ in range(1000)])",
        "return cli.run(lambda: say([], standalone_mode=False))",
    ),
    "by rich": (
        "from producer import cli",
        "from producer.client.talk import Talk",
        "return cli.run(lambda: [Talk().print('x' * 1000) for _ in range(1000)])",
    ),
    "by nobody but Python": ("from producer import cli", "return cli.run(lambda: print('x' * 1_000_000, flush=True))"),
}


@pytest.mark.parametrize("lines", TOLD.values(), ids=list(TOLD))
def test_whoever_reads_no_more_is_not_told_that_images_failed(lines: tuple[str, ...]) -> None:
    with started("print('ready', flush=True)", "time.sleep(0.3)", *lines) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.stdout.close()
        assert process.wait(30) == 141
        assert process.stderr.read() == ""


@pytest.mark.parametrize("command", [("deploy.cli", "--help"), ("worker.cli", "networks")], ids=" ".join)
def test_every_command_says_so(command: tuple[str, ...]) -> None:
    run = subprocess.run(
        ["bash", "-c", '"$@" | true; echo "${PIPESTATUS[0]}"', "", sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.stdout, run.stderr) == ("141\n", "")


@pytest.mark.parametrize("code", [0, 1, 4])
def test_a_command_keeps_its_exit_code_where_a_library_has_put_a_stream_of_its_own_in_place_of_ours(code: int) -> None:
    """Celery does, in every worker: each ended with 141, and whoever had started it took it for a fault."""
    lines = (
        "import logging, sys",
        "from celery.utils.log import LoggingProxy",
        "from producer import cli",
        "def command():",
        "    sys.stdout = sys.stderr = LoggingProxy(logging.getLogger('worker'))",
        f"    sys.exit({code})",
        "return cli.run(command)",
    )
    with started(*lines) as process:
        assert process.wait(30) == code


def test_a_command_works_where_its_output_was_closed_before_it_began() -> None:
    program = PROGRAM.format(body="return 7 if sys.stdout.isatty() else 0", before="signal.default_int_handler")
    run = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, program], stderr=subprocess.PIPE, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
