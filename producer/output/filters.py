"""Which images are asked for: expressions such as `class=281` and `probability<0.5`, all of which must hold."""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from producer.jobs.model.errors import UsageError
from producer.jobs.model.results import Result
from producer.jobs.model.suggestions import nearest
from producer.jobs.model.text import quoted

Test = Callable[[Result], bool]

CAN_BE_ASKED = (
    "class=281 or class=tabby (also class_id=, class_name=), id=…, uri=…/cats/*.jpg, state=done|failed, "
    "flat=true|false, correct=true|false|unknown, label=…, predicted=…, reason=fetch, keep.COLUMN=…, "
    "each also with !=, and with <, <=, >, >=, = or !=: probability<0.5, "
    "index>=1000; * and ? stand for any characters"
)
KEEP = "keep."
_EXPRESSION = re.compile(r"\s*([a-z_]+|keep\..+?)\s*(<=|>=|!=|==?|<|>)(.*)", re.DOTALL)
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}
_NUMBERS = frozenset({"probability", "predicted_probability", "score", "index"})


@dataclass(frozen=True)
class Condition:
    """One expression."""

    #: What was typed.
    expression: str
    #: `class`, `probability`, `keep.split`, …
    field: str
    value: str
    test: Test

    @property
    def is_pattern(self) -> bool:
        """Whether the value stands for many."""
        return any(char in self.value for char in "*?[")


class ResultFilter:
    """Conditions that must all hold of an image; called with its result."""

    def __init__(self, conditions: Iterable[Condition], *, failed: bool = False) -> None:
        self.conditions = tuple(conditions)
        self._failed = failed
        #: Kept columns that are asked for and that no image had yet, and some that they have.
        self._unseen = {one.field.removeprefix(KEEP): one for one in self.conditions if one.field.startswith(KEEP)}
        self._kept: dict[str, None] = {}

    def __call__(self, result: Result) -> bool:
        """Whether all of it holds of an image."""
        if self._unseen and result.keep:
            self._saw(result.keep)
        return not (self._failed and result.state != "failed") and all(one.test(result) for one in self.conditions)

    def __bool__(self) -> bool:
        """Whether anything is asked."""
        return self._failed or bool(self.conditions)

    def _saw(self, kept: Iterable[str]) -> None:
        self._kept.update(dict.fromkeys(kept))
        for column in self._unseen.keys() & self._kept.keys():
            del self._unseen[column]

    def check_columns(self, kept: Iterable[str] = ()) -> None:
        """Make sure that some image has each kept column that is asked for, once all were looked at.

        Raises:
            UsageError: There is no such column; names the nearest.
        """
        self._saw(kept)
        for column, condition in self._unseen.items():
            there = f"it has {', '.join(self._kept)}"[:500] if self._kept else "it kept none (--keep-columns)"
            raise UsageError(
                f"{quoted(condition.expression)}: no image of this job has a column {quoted(column)}"
                f"{nearest(column, self._kept)}; {there}"
            )


def parse_where(expressions: Iterable[str], *, failed: bool = False) -> ResultFilter:
    """Make one question of expressions.

    Args:
        expressions: All must hold of an image.
        failed: And it failed.

    Raises:
        UsageError: One cannot be asked; lists what can be.
    """
    if isinstance(expressions, str):
        raise UsageError("where must be a list of expressions, not one alone")
    return ResultFilter([_condition(expression) for expression in expressions], failed=failed)


def _condition(expression: str) -> Condition:
    found = _EXPRESSION.fullmatch(expression)
    test = found and _test_of(found[1], found[2].replace("==", "="), found[3])
    if not found or not test:
        near = nearest(found[1], FIELDS) if found and not found[1].startswith(KEEP) and found[1] not in FIELDS else ""
        raise UsageError(f"{quoted(expression)} cannot be asked{near}: ask {CAN_BE_ASKED}")
    return Condition(expression, found[1], found[3].strip(), test)


def _test_of(field: str, comparison: str, value: str) -> Test | None:
    if field in _NUMBERS:
        return _number(field, comparison, value)
    value = value.strip()
    make = _MAKE.get("keep" if field.startswith(KEEP) else field)
    return make(field, value, comparison == "=") if make and comparison in {"=", "!="} and value else None


def _number(field: str, comparison: str, value: str) -> Test | None:
    try:
        limit = float(value)
    except ValueError:
        return None
    read, compare = operator.attrgetter(field), _COMPARISONS[comparison]

    def test(result: Result) -> bool:
        number = read(result)
        return number is not None and compare(number, limit)

    return test


# Each test is of a value that is there: `reason!=fetch` asks for images that failed for something else.


def _class(field: str, value: str, wanted: bool) -> Test | None:
    number = int(value) if value.isdecimal() and field != "class_name" else None
    if field == "class_id" and number is None:
        return None
    named = _pattern(value.casefold())

    def is_it(class_id: int | None, class_name: str | None) -> bool:
        by_name = field != "class_id" and class_name is not None and named(class_name.casefold())
        return by_name or (number is not None and class_id == number)

    def test(result: Result) -> bool:
        return result.class_id is not None and any(is_it(*one) for one in _explained(result)) is wanted

    return test


def _explained(result: Result) -> Iterator[tuple[int | None, str | None]]:
    """Each class that was explained of an image."""
    yield result.class_id, result.class_name
    yield from ((one.class_id, one.class_name) for one in result.classes)


def _text(field: str, value: str, wanted: bool) -> Test:
    return _matching(operator.attrgetter(field), value, wanted)


def _kept(field: str, value: str, wanted: bool) -> Test:
    column = field.removeprefix(KEEP)
    return _matching(lambda result: (result.keep or {}).get(column), value, wanted)


def _matching(read: Callable[[Result], str | None], value: str, wanted: bool) -> Test:
    matches = _pattern(value)

    def test(result: Result) -> bool:
        text = read(result)
        return text is not None and matches(text) is wanted

    return test


def _state(_field: str, value: str, wanted: bool) -> Test | None:
    return (lambda result: (result.state == value) is wanted) if value in {"done", "failed"} else None


def _yes_or_no(field: str, value: str, wanted: bool) -> Test | None:
    if value not in {"true", "false"}:
        return None
    read, asked = operator.attrgetter(field), (value == "true") is wanted
    return lambda result: read(result) is asked


def _correct(field: str, value: str, wanted: bool) -> Test | None:
    if value == "unknown":
        return lambda result: result.label is not None and result.label_unknown is wanted
    return _yes_or_no(field, value, wanted)


def _pattern(value: str) -> Callable[[str], bool]:
    # As it stands, too: names of files may hold brackets.
    globbed = re.compile(fnmatch.translate(value)).match
    return lambda text: text == value or globbed(text) is not None


#: field → what makes a test of its name, a value, and whether it is to hold; none where that is no value of it.
_MAKE: dict[str, Callable[[str, str, bool], Test | None]] = {
    "class": _class,
    "class_id": _class,
    "class_name": _class,
    "id": _text,
    "uri": _text,
    "reason": _text,
    "keep": _kept,
    "state": _state,
    "flat": _yes_or_no,
    "correct": _correct,
    "label": _text,
    "predicted": _text,
}
FIELDS = (*_NUMBERS, *_MAKE)
