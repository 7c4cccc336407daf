"""Break the program on purpose, one small mistake at a time, and say which mistakes no test sees.

A mutant is the program with one mistake. Tests that fail, or do not end, kill it. One that survives shows a line that
no test needs: write the test, or put the mutant on the list below with the reason why it changes nothing.

python tests/mutants/mutants.py lua --sample 30
python tests/mutants/mutants.py python worker/chunks/lease.py --tests tests/unit/test_lease.py
"""

from __future__ import annotations

import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click

sys.path.insert(0, str(Path(__file__).parent))
import lua_mutations
import python_mutations

ROOT = Path(__file__).parents[2]
#: What tests need of the tree.
PARTS = ("deploy", "docs", "gradcam_queue", "producer", "tests", "worker", "pyproject.toml", "README.md", "Makefile")
#: The fastest first: the first failure ends a mutant.
LUA_TESTS = tuple(
    f"tests/integration/test_{name}.py"
    for name in ("scripts", "troubles", "reconciler", "job_table", "verbs", "lives", "job_table_model")
)
PYTHON_TESTS = (
    *("tests/unit/test_slots.py", "tests/unit/test_batch_queue.py", "tests/integration/test_chunk_core.py"),
    *("tests/integration/test_blame.py", "tests/integration/test_two_chunks.py", "tests/integration/test_pack.py"),
)
#: Mutants that may live: `file: the line => the line with the mistake`, and why it changes nothing that counts.
ALLOWED: dict[str, str] = {
    "missing_messages.lua: redis.call('EXPIRE', KEYS[4], 3600) => redis.call('EXPIRE', KEYS[4], 3601)": (
        "the note is written anew every few seconds; any long lifetime will do"
    ),
    "reopen.lua: local state = read_bits(KEYS[6], index, 1)[1] => local state = read_bits(KEYS[6], index, 2)[1]": (
        "one more item is read, and only the first is looked at"
    ),
}


@dataclass(frozen=True)
class Mutant:
    """One mistake in one file."""

    file: Path
    mutation: lua_mutations.Mutation

    @property
    def text(self) -> str:
        """The file with the mistake."""
        text, (start, end, new, _) = self.file.read_text(), self.mutation
        return text[:start] + new + text[end:]

    @property
    def line(self) -> int:
        """Where the mistake begins."""
        return self.file.read_text().count("\n", 0, self.mutation.start) + 1

    @property
    def key(self) -> str:
        """How the list of allowed ones names it: it stays when lines move."""
        old, new = (text.splitlines()[self.line - 1].strip() for text in (self.file.read_text(), self.text))
        return f"{self.file.name}: {old} => {new}"

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: {self.mutation.what}"


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant."""

    mutant: Mutant
    #: The test that failed, `hangs`, or nothing: it survived.
    killer: str
    seconds: float


def copy_of(folder: Path) -> Path:
    """The tree, as far as tests need it, where a mistake hurts nobody."""
    leave = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=leave)
        elif (ROOT / part).exists():
            shutil.copy(ROOT / part, folder / part)
    return folder


class Verdict(NamedTuple):
    """What tests say of a tree."""

    #: The first that failed, `hangs` where they did not end, nothing where all passed.
    killer: str
    said: str


def run_tests(tree: Path, tests: Sequence[str], limit_s: float) -> Verdict:
    """Run tests in a tree until one fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--hypothesis-seed=1", "-p", "quick_failure"]
    command += ["-p", "no:cacheprovider", f"--basetemp={tree / 'tmp'}", *tests]
    paths = os.pathsep.join([str(tree), str(tree / "tests" / "mutants")])
    # The copy is not what `make coverage` measures.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment |= {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as started:  # fmt: skip
        try:
            said, _ = started.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return Verdict("hangs", "")
        finally:
            # Servers and workers that it started end with it.
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
    if started.returncode == 0:
        return Verdict("", said)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    return Verdict(failed[1].rpartition("/")[2] if failed else f"exit code {started.returncode}", said)


def outcomes(mutants: Sequence[Mutant], tests: Sequence[str], limit_s: float, at_once: int) -> Iterator[Outcome]:
    """Let tests loose on mutants, so many at a time, each in a tree of its own."""
    with tempfile.TemporaryDirectory(prefix="gradcam-mutants-") as name, ThreadPoolExecutor(at_once) as pool:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(at_once):
            (folder := Path(name) / str(number)).mkdir()
            trees.put(copy_of(folder))
        whole = trees.get()
        unbroken = run_tests(whole, tests, limit_s)
        if unbroken.killer:
            raise click.ClickException(
                f"nothing is broken yet, and a test fails: {unbroken.killer}\n{unbroken.said[-3000:]}"
            )
        trees.put(whole)

        def judge(mutant: Mutant) -> Outcome:
            tree, started = trees.get(), time.monotonic()
            place = tree / mutant.file.relative_to(ROOT)
            try:
                place.write_text(mutant.text)
                killer = run_tests(tree, tests, limit_s).killer
            finally:
                shutil.copy(mutant.file, place)
                trees.put(tree)
            return Outcome(mutant, killer, time.monotonic() - started)

        yield from pool.map(judge, mutants)


def judge_all(
    files: Sequence[Path],
    find: Callable[[str], Iterator[lua_mutations.Mutation]],
    tests: Sequence[str],
    sample: int | None,
    seed: int,
    limit_s: float,
    at_once: int,
) -> None:
    """Print what became of each mutant; exit code 1 where one survives that may not."""
    every = [Mutant(file, mutation) for file in files for mutation in find(file.read_text())]
    chosen = every if sample is None or sample >= len(every) else random.Random(seed).sample(every, sample)
    click.echo(f"{len(chosen)} of {len(every)} mutants of {len(files)} files, seed {seed}; {', '.join(tests)}")
    survivors, allowed = [], 0
    for outcome in outcomes(chosen, tests, limit_s, at_once):
        reason = ALLOWED.get(outcome.mutant.key)
        word = outcome.killer or (f"may live: {reason}" if reason else "SURVIVES")
        click.echo(f"{outcome.mutant}  ->  {word} ({outcome.seconds:.0f} s)")
        allowed += not outcome.killer and reason is not None
        if not outcome.killer and reason is None:
            survivors.append(outcome.mutant)
    killed = len(chosen) - len(survivors) - allowed
    click.echo(f"\n{killed} killed, {allowed} may live, {len(survivors)} survive{':' if survivors else ''}")
    for mutant in survivors:
        click.echo(f"{mutant}\n    {mutant.key}")
    sys.exit(bool(survivors))


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--sample", type=click.IntRange(1), help="Only so many, drawn at random.  [default: all]"),
        click.option("--seed", type=int, default=1, show_default=True, help="Another one draws others."),
        click.option("--limit-s", default=300.0, show_default=True, help="Tests that take longer have found it."),
        click.option("--at-once", type=click.IntRange(1), default=2, show_default=True, help="Mutants at a time."),
        click.option("--tests", multiple=True, help="Test files, the fastest first."),
    ):
        command = option(command)
    return command


def _paths(files: Sequence[str], default: str) -> list[Path]:
    found = [ROOT / file for file in files] or sorted(ROOT.glob(default))
    if missing := [str(file) for file in found if not file.is_file()]:
        raise click.ClickException(f"there is no {', '.join(missing)}")
    if not found:
        raise click.ClickException(f"there is no {default}: name files")
    return found


@click.group()
def cli() -> None:
    """Break the program on purpose; which mistakes does no test see?"""


@cli.command()
@click.argument("files", nargs=-1)
@_options
def lua(files: tuple[str, ...], tests: tuple[str, ...], **options: Any) -> None:
    """Break the scripts of the job table."""
    judge_all(_paths(files, "producer/jobs/**/lua/*.lua"), lua_mutations.mutations, tests or LUA_TESTS, **options)


@cli.command()
@click.argument("files", nargs=-1)
@_options
def python(files: tuple[str, ...], tests: tuple[str, ...], **options: Any) -> None:
    """Break Python modules; without any, those that bring a chunk from claim to commit."""
    judge_all(_paths(files, "worker/chunks/*.py"), python_mutations.mutations, tests or PYTHON_TESTS, **options)


if __name__ == "__main__":
    cli()
