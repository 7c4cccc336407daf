"""What unpickling would cost: this follows a pickle's instructions, and keeps sizes in place of things.

torch's restricted unpickler runs no code of strangers, but it does what a pickle says. A few hundred bytes can tell it
to hash a tuple of 2^60 parts, or one so deep that the process crashes. A few megabytes can fill a dict with numbers of
one hash. This goes through the instructions that torch knows, the same way, and stops at the first that torch refuses.
"""

from __future__ import annotations

import pickletools
from collections.abc import Sequence
from typing import IO, Any, Final

#: A training checkpoint of a large network, with averages and an optimizer's state, has 200,000.
MOST_INSTRUCTIONS: Final = 500_000
#: Without the numbers of the tensors, which lie elsewhere.
MOST_BYTES: Final = 64 * 2**20
#: How many things calls and hashes may go through in all.
_MOST_COPIED, _MOST_HASHED = 20_000_000, 1_000_000
#: A key that is neither text nor a small number can be made to collide with others: so many cost as much as the limit.
_ODD_KEY: Final = 100
#: Weights end here, so that doubling them goes on being quick.
_HEAVIEST: Final = 10**12
#: Integers below have hashes of their own.
_SMALL: Final = 2**32
#: So many characters of a text weigh as much as one thing.
_TEXT: Final = 100
#: What these call for goes through all that they are given, and hashes it.
_HASHING: Final = frozenset({"set", "Counter", "OrderedDict"})
_GOING_THROUGH: Final = _HASHING | {"Size", "bytearray"}
#: At most, an encoding makes ten bytes of a character.
_ENCODING: Final = 10

_NOTHING: Final = frozenset({"NONE", "NEWFALSE", "NEWTRUE", "BINFLOAT"})
_NUMBERS: Final = frozenset({"BININT", "BININT1", "BININT2", "LONG1"})
_TEXTS: Final = frozenset({"BINUNICODE", "SHORT_BINSTRING"})
_EMPTY: Final = frozenset({"EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "EMPTY_TUPLE"})
_GETS, _PUTS = frozenset({"BINGET", "LONG_BINGET"}), frozenset({"BINPUT", "LONG_BINPUT"})
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class TooMuch(Exception):
    """Reading it would take too much; the text says what, as the end of a sentence about the file."""


class BoundedReader:
    """The beginning of a file, for those who would read as much as the file says.

    Args:
        file: Where to read from.

    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, MOST_BYTES

    def read(self, count: int) -> bytes:
        """Read so many bytes. Raises TooMuch: Those are too many."""
        return self._counted(self._file.read(min(count, self._left + 1)))

    def readline(self) -> bytes:
        """Read up to the end of a line. Raises TooMuch: It is too long."""
        return self._counted(self._file.readline(self._left + 1))

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._file.tell()

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise TooMuch(f"has more than {MOST_BYTES // 2**20} MiB beside the numbers of its tensors")
        return data


class _Thing:
    """What stands for an object on the unpickler's stack."""

    __slots__ = ("name", "number", "parts", "plain", "tensor", "weight")

    def __init__(
        self, weight: int = 0, *, number: int = 0, name: str = "", parts: Sequence[_Thing] = (), plain: bool = False
    ) -> None:
        #: How many things are met by what goes through all of it; things in it twice are met twice.
        self.weight = min(weight, _HEAVIEST)
        #: An integer's value; the name of a class or a function; what a tuple holds.
        self.number, self.name, self.parts = number, name, parts
        #: Whether nobody can make many such keys that collide.
        self.plain = plain
        #: Whether it is a tensor or a storage: going through it makes an object of each number.
        self.tensor = False

    def take(self, things: Sequence[_Thing]) -> None:
        self.weight = min(self.weight + sum(1 + thing.weight for thing in things), _HEAVIEST)


_PLAIN: Final = _Thing(plain=True)


class Costs:
    """Adds up what the pickles of one file cost."""

    def __init__(self) -> None:
        self._instructions = self._copied = self._hashed = 0
        self._begin()

    def follow(self, file: IO[bytes] | BoundedReader) -> bool:
        """Go through one pickle; the file stands behind it then.

        Returns:
            Whether it comes to its end; if not, torch does not get further either.

        Raises:
            TooMuch: Reading it would take too much.
        """
        self._begin()
        try:
            for code, argument, _position in pickletools.genops(file):  # type: ignore[arg-type]
                self._instructions += 1
                if self._instructions > MOST_INSTRUCTIONS:
                    raise TooMuch(f"holds more than {MOST_INSTRUCTIONS} things beside the numbers of its tensors")
                if not self._step(code.name, argument):
                    return code.name == "STOP"
        except (ValueError, IndexError, KeyError, UnicodeError):  # of broken instructions, or an empty stack
            return False
        return False

    def _begin(self) -> None:
        self._stack: list[_Thing] = []
        self._below: list[list[_Thing]] = []
        self._memo: dict[int, _Thing] = {}

    def _step(self, name: str, argument: Any) -> bool:
        """Do as one instruction says; False at the end, and where it is none that torch knows."""
        if name in _PUTS:
            self._memo[argument] = self._stack[-1]
        elif name in _GETS:
            self._stack.append(self._memo[argument])
        elif name in _NUMBERS:
            little = abs(argument) < _TEXT
            self._stack.append(_PLAIN if little else _Thing(number=argument, plain=abs(argument) < _SMALL))
        elif name in _TEXTS:
            weight = len(argument) // _TEXT
            self._stack.append(_Thing(weight, plain=True) if weight else _PLAIN)
        elif name in _NOTHING:
            self._stack.append(_PLAIN)
        elif name in _EMPTY:
            self._stack.append(_Thing())
        elif name == "GLOBAL":
            self._stack.append(_Thing(name=argument.rpartition(" ")[2]))
        elif name == "MARK":
            self._below.append(self._stack)
            self._stack = []
        elif name in _TUPLES:
            self._tuple(self._popped(_TUPLES[name]))
        elif name == "TUPLE":
            self._tuple(self._pop_mark())
        else:
            return self._change(name)
        return True

    def _change(self, name: str) -> bool:
        match name:
            case "SETITEM":
                self._set(self._popped(2))
            case "SETITEMS":
                self._set(self._pop_mark())
            case "APPEND":
                self._stack[-2].take(self._popped(1))
            case "APPENDS":
                items = self._pop_mark()
                self._stack[-1].take(items)
            case "REDUCE" | "NEWOBJ":
                self._call(*self._popped(2))
            case "BUILD":
                state = self._stack.pop()
                self._hash(state.weight)
                self._stack[-1].take([state])
            case "BINPERSID":
                self._copy(self._stack.pop().weight)
                self._stack.append(_Thing())
                self._stack[-1].tensor = True
            case "PROTO":
                pass
            case _:
                return False
        return True

    def _popped(self, count: int) -> list[_Thing]:
        return [self._stack.pop() for _ in range(count)][::-1]

    def _pop_mark(self) -> list[_Thing]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _tuple(self, parts: list[_Thing]) -> None:
        made = _Thing(1, parts=parts)
        made.take(parts)
        self._stack.append(made)

    def _set(self, items: list[_Thing]) -> None:
        for key in items[::2]:
            if not key.plain:
                # Hashing what is deep overflows the stack of the process.
                self._hash(_ODD_KEY * max(key.weight, 1))
        self._stack[-1].take(items)

    def _call(self, function: _Thing, arguments: _Thing) -> None:
        if function.name in _GOING_THROUGH:
            # What goes through a large tensor makes an object of each of its numbers.
            if any(part.tensor for part in arguments.parts):
                raise TooMuch(f"makes a {function.name} of a tensor, as no state dict does")
            self._copy(sum(abs(part.number) for part in arguments.parts) // _TEXT)
        if function.name in _HASHING:
            self._hash(_ODD_KEY * arguments.weight)
        self._copy(arguments.weight)
        made = _Thing(arguments.weight)
        if function.name == "encode":
            made.weight = _ENCODING * arguments.weight + 1
        made.tensor = function.name not in _GOING_THROUGH and any(part.tensor for part in arguments.parts)
        # Calls of tensor classes make tensors of nothing.
        made.tensor |= function.name.endswith(("Tensor", "Storage"))
        self._stack.append(made)

    def _copy(self, count: int) -> None:
        self._copied += count
        if self._copied > _MOST_COPIED:
            raise TooMuch("tells to copy things again and again, as no state dict does")

    def _hash(self, count: int) -> None:
        self._hashed += count
        if self._hashed > _MOST_HASHED:
            raise TooMuch("has names that are no texts, and take too long to look up")
