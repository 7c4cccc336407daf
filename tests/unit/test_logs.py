"""What a process of a worker writes: its own lines, those of libraries, and what nobody logged."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BEGIN = "import logging, sys, threading, time, warnings\nfrom worker import logs\n"
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z w1 [A-Z]+ action=\w+ .+")


def written(program: str, log_format: str = "text") -> list[str]:
    """The lines of a process of its own: what is set up holds for a whole process."""
    set_up = f"logs.set_up('w1', {log_format!r})\n"
    run = subprocess.run(
        [sys.executable, "-c", BEGIN + set_up + program], capture_output=True, text=True, check=False, timeout=60
    )
    assert run.stdout == ""
    return run.stderr.splitlines()


def records(program: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written(program, "json")]


def said(line: str) -> str:
    """A line without its time."""
    assert LINE.fullmatch(line), line
    return line.partition(" ")[2]


OURS = "log = logging.getLogger('worker.somewhere')\n"


def test_a_line_has_time_worker_level_action_and_a_sentence() -> None:
    program = OURS + "log.info('action=reclaimed job=%s chunk=%d Given to %s.', 'cats', 3, 'others')"
    (line,) = written(program)
    assert said(line) == "w1 INFO action=reclaimed job=cats chunk=3 Given to others."


def test_json_has_job_and_chunk_by_name() -> None:
    (record,) = records(OURS + "log.info('action=reclaimed job=%s chunk=%d Given to %s.', 'cats', 3, 'others')")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record.pop("time"))
    assert list(record.items()) == [
        ("worker", "w1"),
        ("level", "INFO"),
        ("action", "reclaimed"),
        ("job", "cats"),
        ("chunk", 3),
        ("message", "Given to others."),
    ]


def test_json_has_the_trace_that_a_thread_works_for() -> None:
    program = OURS + (
        "from producer.jobs.tracing.traces import at_work_for\n"
        "with at_work_for('ab' * 16):\n    log.info('action=committed job=cats chunk=3 2 images done, 0 failed.')\n"
        "log.info('action=ready The worker is ready.')\n"
    )
    committed, ready = records(program)
    assert (committed["trace_id"], committed["job"]) == ("ab" * 16, "cats")
    assert "trace_id" not in ready


STRANGE = r"'a\nb\r\x1b[2Jc\u2028d\u202ee\ud800f'"


def test_a_strangers_text_stays_on_its_line() -> None:
    program = OURS + f"log.warning('action=job_failed job=x It says: %s', {STRANGE})"
    (line,) = written(program)
    text = r"It says: a\nb\r\x1b[2Jc\u2028d\u202ee\ud800f"
    assert said(line) == f"w1 WARNING action=job_failed job=x {text}"
    assert records(program)[0]["message"] == text


def test_a_strangers_text_sets_no_field() -> None:
    """Which words are fields says the template alone."""
    (record,) = records(OURS + "log.error('action=given_up %s', 'job=other action=ready level=INFO x')")
    assert (record["action"], record["level"], "job" in record) == ("given_up", "ERROR", False)
    assert record["message"] == "job=other action=ready level=INFO x"


def test_a_librarys_record_says_whose_it_is() -> None:
    program = "logging.getLogger('celery.worker').warning('action=ready\\nTrying again')"
    (line,) = written(program)
    assert said(line) == r"w1 WARNING action=library from=celery.worker action=ready\nTrying again"
    (record,) = records(program)
    assert (record["action"], record["from"], record["message"]) == (
        "library",
        "celery.worker",
        r"action=ready\nTrying again",
    )


def test_addresses_in_records_of_libraries_and_in_tracebacks_are_redacted() -> None:
    program = (
        "try:\n    raise ValueError('Failed to parse: http://u:sesame@h/a?token=sesame')\n"
        "except ValueError:\n    logging.getLogger('urllib3').exception('Retrying %s', '/a.jpg?token=sesame')\n"
    )
    lines = written(program)
    assert said(lines[0]) == "w1 ERROR action=library from=urllib3 Retrying /a.jpg?***"
    assert lines[-1] == "  ValueError: Failed to parse: http://***@h/a?***"
    (record,) = records(program)
    assert record["traceback"].endswith("ValueError: Failed to parse: http://***@h/a?***")
    assert "sesame" not in json.dumps(record).replace("raise ValueError('Failed to parse: http://***@h/a?***", "")


def test_warnings_are_records() -> None:
    (line,) = written("warnings.warn('first\\n\\n  second', UserWarning)")
    assert said(line).startswith("w1 WARNING action=library from=py.warnings UserWarning: first second (<string>:")


def test_loggers_with_handlers_of_their_own_get_ours() -> None:
    """As torch and multiprocessing have; also one that comes later, and keeps its records from all others."""
    program = (
        "theirs = logging.getLogger('multiprocessing'); theirs.propagate = False\n"
        "theirs.addHandler(logging.StreamHandler(sys.__stderr__))\n"
        "logs.set_up('w1')\n"
        "theirs.warning('one')\n"
        "later = logging.getLogger('later'); later.propagate = False\n"
        "later.warning('two')\n"
    )
    assert [said(line) for line in written(program)] == [
        "w1 WARNING action=library from=multiprocessing one",
        "w1 WARNING action=library from=later two",
    ]


def test_what_is_printed_becomes_records_line_by_line() -> None:
    program = (
        "print('to', 'stdout')\n"
        "sys.stderr.write('half ')\n"
        "sys.stderr.write('a line\\n\\n')\n"
        "for part in range(3):\n    print(f'\\r{part} of 3', end='', file=sys.stderr, flush=True)\n"
        "print('\\rdone', file=sys.stderr)\n"
    )
    assert [said(line) for line in written(program)] == [
        "w1 INFO action=library from=stdout to stdout",
        "w1 WARNING action=library from=stderr half a line",
        "w1 WARNING action=library from=stderr done",
    ]


def test_a_traceback_belongs_to_its_record() -> None:
    program = OURS + (
        "try:\n    raise ValueError('one\\n2026-01-01T00:00:00.000Z w1 INFO action=ready forged\\x1b')\n"
        "except ValueError:\n    log.exception('action=bug job=x Something went wrong.')\n"
    )
    first, *rest = written(program)
    assert said(first) == "w1 ERROR action=bug job=x Something went wrong."
    assert rest[0] == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") for line in rest)
    assert r"forged\x1b" in rest[-1]
    (record,) = records(program)
    assert record["traceback"].splitlines()[0] == "Traceback (most recent call last):"
    assert record["message"] == "Something went wrong."


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("raise ValueError('x')", "w1 CRITICAL action=bug Something unexpected ends this process."),
        (
            "def fail(): raise ValueError('x')\n"
            "thread = threading.Thread(target=fail, name='reader'); thread.start(); thread.join()",
            "w1 ERROR action=bug Something unexpected ended the thread reader.",
        ),
        (
            "class Broken:\n    def __del__(self): raise ValueError('x')\nBroken()",
            "w1 WARNING action=library from=python Exception ignored in <function Broken.__del__",
        ),
    ],
)
def test_errors_that_nobody_catches_are_records(program: str, sentence: str) -> None:
    first, *rest = written(program)
    assert said(first).startswith(sentence)
    assert rest[0] == "  Traceback (most recent call last):"
    assert rest[-1] == "  ValueError: x"


def test_a_template_that_does_not_fit_is_shown_all_the_same() -> None:
    (line,) = written("logging.getLogger('lib').warning('%d of %d', 'one')")
    assert said(line) == "w1 WARNING action=library from=lib %d of %d ('one',)"


def test_a_long_text_is_cut() -> None:
    (line,) = written(OURS + "log.info('action=x %s', 'y' * 100_000)")
    assert len(line) < 2200


def test_a_log_that_nobody_reads_stops_no_work() -> None:
    set_up = "logs.set_up('w1')\n"
    program = BEGIN + set_up + OURS + "import os\nos.close(2)\nlog.info('action=x y')\nprint('z')\nos._exit(7)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 7


def templates() -> list[tuple[str, str]]:
    """The first argument of each log call of ours."""
    found = []
    for path in [*(ROOT / "worker").rglob("*.py"), *(ROOT / "producer").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            call = node.func if isinstance(node, ast.Call) else None
            if (
                isinstance(call, ast.Attribute)
                and isinstance(call.value, ast.Name)
                and call.value.id == "log"
                and call.attr in {"debug", "info", "warning", "error", "exception", "critical"}
            ):
                assert isinstance(node, ast.Call)
                found.append((path.name, ast.literal_eval(node.args[0])))
    return found


def test_every_record_of_ours_begins_with_its_action() -> None:
    found = templates()
    assert len(found) > 40
    assert [one for one in found if not re.match(r"action=[a-z_]+ \S", one[1])] == []


def test_every_action_is_in_the_documentation() -> None:
    told = (ROOT / "docs" / "operations.md").read_text()
    actions = {re.match(r"action=([a-z_]+)", template)[1] for _, template in templates()}  # type: ignore[index]
    assert sorted(action for action in actions if f"`{action}`" not in told) == []
