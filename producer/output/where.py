"""Which images are asked for: expressions such as `class=281` and `probability<0.5`, all of which must hold."""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Iterable, Iterator

from producer.jobs.errors import UsageError
from producer.jobs.spec import Result

Where = Callable[[Result], bool]

CAN_BE_ASKED = (
    "class=281 or class=tabby (also class_id=, class_name=), id=…, uri=…/cats/*.jpg, state=done|failed, "
    "flat=true|false, reason=fetch, keep.COLUMN=…, and with <, <=, >, >= or =: probability<0.5, index>=1000; "
    "* and ? stand for any characters"
)
_EXPRESSION = re.compile(r"\s*([a-z_]+|keep\..+?)\s*(<=|>=|==?|<|>)(.*)", re.DOTALL)
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
}


def parse_where(expressions: Iterable[str], *, failed: bool = False) -> Where:
    """Make one question of expressions.

    Args:
        expressions: All must hold of an image.
        failed: And it failed.

    Raises:
        UsageError: One cannot be asked; lists what can be.
    """
    if isinstance(expressions, str):
        raise UsageError("where must be a list of expressions, not one alone")
    tests = [_test(expression) for expression in expressions]
    if failed:
        tests.append(lambda result: result.state == "failed")
    return lambda result: all(test(result) for test in tests)


def _test(expression: str) -> Where:
    found = _EXPRESSION.fullmatch(expression)
    test = found and _test_of(found[1], found[2].replace("==", "="), found[3])
    if not test:
        raise UsageError(f"{expression[:200]!r} cannot be asked: ask {CAN_BE_ASKED}")
    return test


def _test_of(field: str, comparison: str, value: str) -> Where | None:
    if field in {"probability", "index"}:
        return _number(field, comparison, value)
    value = value.strip()
    make = _MAKE.get("keep" if field.startswith("keep.") else field)
    return make(field, value) if make and comparison == "=" and value else None


def _number(field: str, comparison: str, value: str) -> Where | None:
    try:
        limit = float(value)
    except ValueError:
        return None
    read, compare = operator.attrgetter(field), _COMPARISONS[comparison]

    def test(result: Result) -> bool:
        number = read(result)
        return number is not None and compare(number, limit)

    return test


def _class(field: str, value: str) -> Where | None:
    number = int(value) if value.isdecimal() and field != "class_name" else None
    if field == "class_id" and number is None:
        return None
    named = _pattern(value.casefold())

    def test(result: Result) -> bool:
        return any(
            (number is not None and class_id == number)
            or (field != "class_id" and class_name is not None and named(class_name.casefold()))
            for class_id, class_name in _explained(result)
        )

    return test


def _explained(result: Result) -> Iterator[tuple[int | None, str | None]]:
    """Each class that was explained of an image."""
    yield result.class_id, result.class_name
    yield from ((one.class_id, one.class_name) for one in result.classes)


def _text(field: str, value: str) -> Where:
    read, matches = operator.attrgetter(field), _pattern(value)
    return lambda result: matches(read(result))


def _kept(field: str, value: str) -> Where:
    column, matches = field.removeprefix("keep."), _pattern(value)
    return lambda result: matches((result.keep or {}).get(column))


def _state(_field: str, value: str) -> Where | None:
    return (lambda result: result.state == value) if value in {"done", "failed"} else None


def _flat(_field: str, value: str) -> Where | None:
    wanted = {"true": True, "false": False}.get(value)
    return None if wanted is None else lambda result: result.flat is wanted


def _pattern(value: str) -> Callable[[str | None], bool]:
    # As it stands, too: names of files may hold brackets.
    globbed = re.compile(fnmatch.translate(value)).match
    return lambda text: text is not None and (text == value or globbed(text) is not None)


#: field → what makes a test of its name and a value; none where that is no value of it.
_MAKE: dict[str, Callable[[str, str], Where | None]] = {
    "class": _class,
    "class_id": _class,
    "class_name": _class,
    "id": _text,
    "uri": _text,
    "reason": _text,
    "keep": _kept,
    "state": _state,
    "flat": _flat,
}
