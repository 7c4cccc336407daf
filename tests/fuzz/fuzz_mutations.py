"""Broken inputs made of whole ones: the same seed makes the same inputs. Only what Python brings along is used."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

#: Parts that are repeated often make no longer input.
MOST_BYTES = 2**18
#: Numbers at which programs that count go wrong.
_NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x3FFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    2**31 - 1,
    2**31,
    2**32 - 1,
)


@dataclass(frozen=True)
class Structure:
    """Where a file's parts and its numbers are, so that mutations meet them."""

    #: Start and end of its chunks or segments.
    parts: Sequence[tuple[int, int]] = ()
    #: Place and bytes of lengths and dimensions.
    fields: Sequence[tuple[int, int]] = ()
    #: "little" or "big".
    order: str = "little"


def _nothing(data: bytes) -> bytes:
    return data


@dataclass(frozen=True)
class Format:
    """How inputs of a kind are understood while they are mutated."""

    structure: Callable[[bytes], Structure] = field(default=lambda data: Structure())
    #: Makes checksums right again, so that mutations come further than to them.
    repair: Callable[[bytes], bytes] = _nothing


def mutated(seeds: Sequence[bytes], format: Format, chance: random.Random) -> bytes:
    """One of the seeds with one to four mutations."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 4))):
        chance.choice(_MUTATIONS)(data, seeds, format, chance)
        del data[MOST_BYTES:]
    return format.repair(bytes(data)) if chance.random() < 0.7 else bytes(data)


def _flip(data: bytearray, seeds: Sequence[bytes], format: Format, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 8))):
        if data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _flip_in_head(data: bytearray, seeds: Sequence[bytes], format: Format, chance: random.Random) -> None:
    if data:
        data[chance.randrange(min(len(data), 128))] = chance.randrange(256)


def _number(data: bytearray, seeds: Sequence[bytes], format: Format, chance: random.Random) -> None:
    structure = format.structure(bytes(data))
    fields = [*structure.fields] or [(chance.randrange(max(len(data) - 4, 1)), chance.choice((1, 2, 4)))]
    at, size = chance.choice(fields)
    old = int.from_bytes(data[at : at + size], "big" if structure.order == "big" else "little")
    value = chance.choice((*_NUMBERS, old + 1, old - 1, old * 2, old // 2, chance.getrandbits(8 * size)))
    data[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, "big" if structure.order == "big" else "little")


def _cut(data: bytearray, seeds: Sequence[bytes], format: Format, chance: random.Random) -> None:
    del data[chance.randrange(len(data) + 1) :]


def _hole(data: bytearray, seeds: Sequence[bytes], format: Format, chance: random.Random) -> None:
    at = chance.randrange(len(data) + 1)
    length = chance.choice((1, 4, 64, 1024))
    data[at : at + length] = chance.choice((b"", bytes(length), b"\xff" * length, chance.randbytes(length)))


def _repeat(data: bytearray, seeds: Sequence[bytes], format: Format, chance: random.Random) -> None:
    at = chance.randrange(len(data) + 1)
    piece = bytes(data[at : at + chance.choice((1, 8, 200))])
    data[at:at] = piece * chance.choice((1, 3, 100))


def _splice(data: bytearray, seeds: Sequence[bytes], format: Format, chance: random.Random) -> None:
    """A part of another file is put in the place of one of this, or before it, or one is taken out or repeated."""
    other = chance.choice(seeds)
    mine, theirs = format.structure(bytes(data)).parts, format.structure(other).parts
    if not mine or not theirs:
        at = chance.randrange(len(data) + 1)
        data[at:] = other[chance.randrange(len(other) + 1) :]
        return
    start, end = chance.choice(mine)
    piece = other[slice(*chance.choice(theirs))]
    how = chance.randrange(4)
    if how == 0:
        data[start:end] = piece
    elif how == 1:
        data[start:start] = piece * chance.choice((1, 2, 300))
    elif how == 2:
        del data[start:end]
    else:
        data[start:start] = bytes(data[start:end]) * chance.choice((1, 2, 300))


_MUTATIONS = (_flip, _flip, _flip_in_head, _number, _number, _number, _cut, _hole, _repeat, _splice, _splice)
