"""Weights files that claim much, mean ill, or are no numbers: each with the words that its job ends with.

Makers give the bytes of a file for the network of `own_models.build_any`, or, with its state dict, for any other.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

State = dict[str, Tensor]
Make = Callable[[State, str], bytes]

# -- pickles, instruction by instruction -------------------------------------------------------------------------------


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def number(value: int) -> bytes:
    if abs(value) < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def row(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def mapping(entries: Mapping[bytes, bytes]) -> bytes:
    return b"}(" + b"".join(key + value for key, value in entries.items()) + b"u"


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + row(*arguments) + b"R"


def tensor(key: str, numel: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    storage = row(text("storage"), named("torch", "FloatStorage"), text(key), text("cpu"), number(numel)) + b"Q"
    hooks = named("collections", "OrderedDict") + b")R"
    sizes = row(*map(number, shape)), row(*map(number, stride))
    return called(named("torch._utils", "_rebuild_tensor_v2"), storage, number(0), *sizes, b"\x89", hooks)


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def zipped(pickle: bytes, entries: Mapping[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        archive.writestr("a/data.pkl", pickle)
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
        for name, content in (entries or {}).items():
            archive.writestr(f"a/data/{name}", content)
    return data.getvalue()


def tuples(depth: int) -> bytes:
    """Tuples of two that are one, so deep: the last has 2^depth parts. They are keys and values of a dict."""
    made = (
        b")q\x00"
        + b")"
        + b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(depth))
    )
    return b"}(" + made + b"u"


# -- files -------------------------------------------------------------------------------------------------------------


def saved(content: Any, *, old: bool = False) -> bytes:
    data = io.BytesIO()
    torch.save(content, data, _use_new_zipfile_serialization=not old)
    return data.getvalue()


def _with_head(make: Callable[[Tensor], Tensor]) -> Make:
    return lambda state, head: saved(state | {head: make(state[head])})


def _legacy(state: State, head: str) -> bytes:
    """A file from before torch 1.6 whose pickle is another one."""
    whole = saved({}, old=True)
    body = mapping({text(head): tensor("0", 2**40, (2**20, 2**20), (2**20, 1))})
    return whole.replace(b"\x80\x02}q\x00.\x80\x02]q\x00.", pickled(body) + b"\x80\x02]q\x00.")


def _directory_of(count: int) -> bytes:
    """An archive that says how many entries it has, and has one."""
    data = bytearray(zipped(pickled(b"}")))
    at = data.rfind(b"PK\x05\x06")
    large = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, 0, 0)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, at, 1)
    return bytes(data[:at]) + large + locator + bytes(data[at:])


def _unpacking_to(size: int, pickle: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle)
        archive.writestr("a/data/0", bytes(1000))
        archive.filelist[-1].file_size = size  # as its directory says; packing that much would take seconds here
    return data.getvalue()


def _safetensors(header: dict[str, Any], body: bytes = b"") -> bytes:
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + body


def _deep_mapping(depth: int) -> bytes:
    return zipped(pickled(b"".join(b"}" + text("a") for _ in range(depth)) + b"}" + b"s" * depth))


def _holds_itself(state: State, head: str) -> bytes:
    # A dict that is its own entry, and nothing else.
    return zipped(pickled(b"}q\x00" + text("state_dict") + b"h\x00s"))


def _dotted(state: State, head: str) -> bytes:
    one = torch.ones(1)
    return saved({".".join("a" * 30_000) + str(n): one for n in range(8)})


NAN, INF = float("nan"), float("inf")
#: Case → what makes the file, and words of the sentence.
CASES: Final[dict[str, tuple[Make, str]]] = {
    # What is claimed.
    "a head of 2^31 rows without columns": (
        lambda state, head: saved(state | {head: torch.zeros(2**31, *([0] * (state[head].ndim - 1)))}),
        r"is \(2147483648, 0",
    ),
    "a head of 2^31 rows that are one": (
        lambda state, head: saved(state | {head: state[head][:1].expand(2**31, *state[head].shape[1:])}),
        "claims more numbers than the file has",
    ),
    "a tensor that a call makes of nothing": (
        lambda state, head: zipped(
            pickled(mapping({text(head): called(named("torch", "FloatTensor"), number(2**21), number(512))}))
        ),
        "claim more numbers than the file has",
    ),
    "a storage that claims 2^40 numbers": (
        lambda state, head: zipped(
            pickled(mapping({text(head): tensor("0", 2**40, (2**20, 2**20), (2**20, 1))})), {"0": bytes(4)}
        ),
        "is broken or truncated|does not fit into this machine's memory",
    ),
    "the same in a file from before torch 1.6": (
        _legacy,
        "is broken or truncated|does not fit into this machine's memory",
    ),
    "a zip of 1 kB that unpacks to 1 GB": (
        lambda state, head: _unpacking_to(2**30, pickled(mapping({text(head): tensor("0", 2**28, (2**28,), (1,))}))),
        r"holds \d+ MB of numbers, and for this network at most \d+ MB are read",
    ),
    "a pickle that unpacks to 80 MB": (
        lambda state, head: zipped(pickled(b"}") + bytes(80 * 2**20), method=zipfile.ZIP_DEFLATED),
        "has more than 64 MiB beside the numbers",
    ),
    "a zip of a million entries": (lambda state, head: _directory_of(10**6), "has 1000000 entries, and 50000 at most"),
    "safetensors with a header of 5 MB": (
        lambda state, head: _safetensors({"__metadata__": {"a": "x" * (5 * 2**20)}}),
        "has a header of more than 4 MiB",
    ),
    "safetensors that claim 2^40 numbers": (
        lambda state, head: _safetensors(
            {head: {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}, bytes(4)
        ),
        "is broken or truncated",
    ),
    # What reading takes.
    "a state dict of a million keys": (
        lambda state, head: zipped(pickled(b"}(" + b"".join(b"X\7\0\0\0%07dN" % n for n in range(10**6)) + b"u")),
        "holds more than 500000 things",
    ),
    "a key of 2^60 tuples": (lambda state, head: zipped(pickled(tuples(61))), "take too long to look up"),
    "a key of 150,000 tuples within each other": (
        lambda state, head: zipped(pickled(b"})" + b"\x85" * 150_000 + b"Ns")),
        "has names that are no texts",
    ),
    "100,000 keys of one hash": (
        lambda state, head: zipped(pickled(mapping({number(n * (2**61 - 1)): b"N" for n in range(1, 100_000)}))),
        "has names that are no texts",
    ),
    "a set of all numbers of a tensor": (
        lambda state, head: zipped(
            pickled(mapping({text(head): called(named("builtins", "set"), tensor("0", 8, (8,), (1,)))})),
            {"0": bytes(32)},
        ),
        "makes a set of a tensor",
    ),
    "an array of 2^40 zeros": (
        lambda state, head: zipped(
            pickled(mapping({text(head): called(named("builtins", "bytearray"), number(2**40))}))
        ),
        "tells to copy things again and again",
    ),
    "texts encoded again and again": (
        lambda state, head: zipped(
            pickled(
                mapping(
                    {
                        text(str(n)): called(
                            named("_codecs", "encode"),
                            b"h\x01" if n else text("x" * 10**6) + b"q\x01",
                            text("utf8"),
                        )
                        for n in range(40_000)
                    }
                )
            )
        ),
        "tells to copy things again and again",
    ),
    "mappings 50,000 deep": (lambda state, head: _deep_mapping(50_000), "holds no state dict"),
    "a mapping that holds itself": (_holds_itself, "holds no state dict"),
    "names of 30,000 words": (_dotted, "holds no state dict"),
    # What is no plain number.
    "a quantized head": (
        _with_head(lambda head: torch.quantize_per_tensor(head, 0.1, 0, torch.qint8)),
        r"is quantized \(qint8\)",
    ),
    "a sparse head": (_with_head(lambda head: head.to_sparse()), r"is sparse \(sparse_coo\)"),
    "a sparse head in rows": (
        _with_head(lambda head: head.flatten(1).to_sparse_csr()),
        r"is sparse \(sparse_csr\)",
    ),
    "a nested head": (
        _with_head(lambda head: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
        "is nested, of several tensors",
    ),
    "a head without its numbers": (_with_head(lambda head: head.to("meta")), "is of the device meta"),
    "a complex head": (_with_head(lambda head: head.to(torch.complex64)), r"is complex \(complex64\)"),
    "a head of yes and no": (_with_head(lambda head: head > 0), "is of type bool, not floating point"),
    "a head of integers": (_with_head(lambda head: head.to(torch.int32)), "is of type int32, not floating point"),
    "a head with one NaN": (_with_head(lambda head: _spoiled(head, NAN)), "holds NaN"),
    "a head with infinity": (_with_head(lambda head: _spoiled(head, INF)), "holds infinity"),
    "a head of 1e300": (_with_head(lambda head: torch.full_like(head, 1e300, dtype=torch.float64)), "holds infinity"),
}  # fmt: skip


def _spoiled(head: Tensor, value: float) -> Tensor:
    head = head.clone()
    head.flatten()[-1] = value
    return head
