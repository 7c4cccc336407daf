"""The mistakes that `make mutants` makes."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import lua_mutations
import mutants
import pytest
import python_mutations

SCRIPT = """\
-- A comment: x == 1
if state ~= 'running' then return {state} end
local n = redis.call('HGET', KEYS[1], 'n') or 0
if n <= 3 then redis.call('HSET', KEYS[1],
  'n', f(n)) end
write(KEYS[2])
"""
MODULE = '''\
"""A docstring: 1 and 2."""
import logging
log = logging.getLogger()
def f(a: int = 1) -> None:
    log.info("no promise")
    if a < 2 and b:
        é = g() or h()
        call(a)
'''


def texts(text: str, find: Callable[[str], Iterator[lua_mutations.Mutation]]) -> dict[str, str]:
    return {what: text[:start] + new + text[end:] for start, end, new, what in find(text)}


def test_a_script_gets_each_kind_of_mistake_and_comments_and_keys_none() -> None:
    made = texts(SCRIPT, lua_mutations.mutations)
    assert list(made) == [
        "`~=` is `==`", "'running' is 'paused'", "`or` is `and`", "0 is 1", "`<=` is `<`", "3 is 4",
        "no `redis.call('HSET', KEYS[1], 'n', f(n))`", "no `write(KEYS[2])`",
        "no `if state ~= 'running' then return {state} end`",
    ]  # fmt: skip
    assert "if n <= 3 then  end\nwrite" in made["no `redis.call('HSET', KEYS[1], 'n', f(n))`"]


def test_a_module_gets_each_kind_of_mistake_and_logs_none() -> None:
    made = texts(MODULE, python_mutations.mutations)
    assert list(made) == [
        "1 is one more", "not `a < 2 and b`", "`and` is `or`", "`<` is `<=`", "2 is one more", "`or` is `and`",
        "no `call(a)`",
    ]  # fmt: skip
    assert "é = g() and h()" in made["`or` is `and`"]
    assert "if (not (a < 2 and b)):" in made["not `a < 2 and b`"]


@pytest.mark.parametrize(
    "path", [*mutants.ROOT.glob("producer/jobs/**/lua/*.lua"), *mutants.ROOT.glob("worker/**/*.py")]
)
def test_every_mistake_in_our_own_files_changes_them_and_modules_can_still_be_read(path: Path) -> None:
    text = path.read_text()
    find = lua_mutations.mutations if path.suffix == ".lua" else python_mutations.mutations
    for number, (start, end, new, what) in enumerate(find(text)):
        broken = text[:start] + new + text[end:]
        assert broken != text, what
        if path.suffix == ".py" and number % 10 == 0:
            ast.parse(broken)


def test_what_may_live_has_a_reason_and_is_a_mistake_that_can_be_made() -> None:
    finders = {"*.lua": lua_mutations.mutations, "*.py": python_mutations.mutations}
    every = {
        mutants.Mutant(path, mutation).key
        for pattern, find in finders.items()
        for folder in ("producer", "worker")
        for path in mutants.ROOT.glob(f"{folder}/**/{pattern}")
        if any(key.startswith(f"{path.name}: ") for key in mutants.ALLOWED)
        for mutation in find(path.read_text())
    }
    assert set(mutants.ALLOWED) <= every
    assert all(len(reason) > 20 for reason in mutants.ALLOWED.values())


def test_a_mistake_is_made_in_a_copy_and_kills_or_survives(tmp_path: Path) -> None:
    """One that a test sees, one that it does not, and one with which it does not end."""
    tree = mutants.copy_of(tmp_path)
    test = tree / "tests" / "unit" / "test_one.py"
    test.write_text(
        "import time\nfrom gradcam_queue.one import NUMBER\n"
        "def test_it() -> None:\n    time.sleep(60 * (NUMBER == 1))\n    assert NUMBER > 0\n"
    )
    module = tree / "gradcam_queue" / "one.py"
    found = {}
    for number, limit_s in (("7", 60), ("0", 60), ("1", 5), ("(", 60)):
        module.write_text(f"NUMBER = {number}\n")
        found[number] = mutants.run_tests(tree, [str(test)], limit_s=limit_s).killer
    assert found == {"7": "", "0": "test_one.py::test_it", "1": "hangs", "(": "test_one.py"}
