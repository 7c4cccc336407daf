"""Lists of every kind, also packed, and single addresses: each gives images, or is refused in a sentence."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO

import pyarrow as pa
import zstandard
from fuzz_mutations import Format, Structure
from fuzz_targets import Target
from pyarrow import parquet

from producer.input.lists import Kind, ListFile
from producer.input.read_options import ReadOptions
from producer.jobs.fetch import addresses
from producer.jobs.model import redaction
from producer.jobs.model.errors import FetchError, UsageError

#: The longest sentence: an address or a cell in it is shortened.
_LONGEST_SENTENCE = 2000
_OPTIONS = (
    ReadOptions(),
    ReadOptions(skip_bad=True),
    ReadOptions(class_column="label", id_column="name", keep_columns=("split",), skip_bad=True),
)
_ROWS = [
    {"url": "s3://bucket/a b?.jpg", "label": "281", "name": "cat, the first", "split": 'the "best"'},
    {"url": "https://example.org/b.jpg?size=2#top", "label": "tabby", "name": "zwei\nZeilen", "split": "ä"},
    {"url": "http://straße.example/c.jpg", "label": "", "name": "c", "split": ""},
    {"url": "file:///data/a%20b.jpg", "label": "7.0", "name": "\U0001f600", "split": "x" * 300},
]
_ADDRESSES = (
    *(row["url"] for row in _ROWS),
    *("http://user:SECRET@host.example/a.jpg", "https://host.example:8443/a;jsessionid=SECRET?X-Amz-Signature=SECRET"),
    *("http://127.0.0.1/", "http://[64:ff9b::808:808]:80/a", "http://[fe80::1%eth0]/", "http://2130706433/", "http://☕.example/"),
    *("s3://arn:aws:s3:eu:1:accesspoint/x", "s3://b/../../etc", "a.jpg", "C:\\a.jpg", "data:image/png;base64,AAAA", "file://localhost/x"),
)  # fmt: skip


def targets() -> Iterator[Target]:
    """A target for each kind of list, and one for addresses."""
    text = Format(_lines)
    for name, kind, seeds, format in (
        ("list txt", Kind("txt"), _texts(), text),
        ("list csv", Kind("csv"), _tables(","), text),
        ("list tsv", Kind("tsv"), _tables("\t"), text),
        ("list jsonl", Kind("jsonl"), _objects(), text),
        ("list parquet", Kind("parquet"), _parquets(), Format(_parquet_structure)),
        ("list csv.gz", Kind("csv", "gz"), map(gzip.compress, _tables(",")), Format(_gzip_structure, _gzip_repaired)),
        ("list jsonl.zst", Kind("jsonl", "zst"), _zstds(), Format(_zstd_structure)),
    ):
        yield Target(name, list(seeds), partial(_read, kind), format)
    yield Target("address", [address.encode() for address in _ADDRESSES], _parsed, Format(_address_structure))


class _InMemory:
    """The bytes of a list."""

    def __init__(self, data: bytes) -> None:
        self.name, self._data = "list", data

    def open(self) -> BinaryIO:
        return io.BytesIO(self._data)

    def close(self) -> None:
        """Nothing was kept."""


def _read(kind: Kind, data: bytes) -> str:
    found = ListFile(_InMemory(data), kind, None, _OPTIONS[zlib.crc32(data) % len(_OPTIONS)])
    try:
        found.check(None, whole=True)
        made = [source for batch in found.batches() for source in batch]
        bad = list(found.bad) if found.bad is not None else []
    except UsageError as error:
        _sentence(str(error))
        return "refused"
    finally:
        found.close()
    assert len(made) == found.count
    for row in bad:
        _sentence(row.sentence)
    return "some rows refused" if bad else "read"


def _sentence(text: str) -> None:
    assert not redaction.UNPRINTABLE.search(text), text
    assert 0 < len(text) < _LONGEST_SENTENCE, text


def _parsed(data: bytes) -> str:
    text = data.decode("utf-8", "surrogateescape")
    for shown in (redaction.redact(text), addresses.stem(text)):
        assert not redaction.UNPRINTABLE.search(shown), shown
    assert not {"/", "\\", "\0"} & {*addresses.stem(text)}
    try:
        address = addresses.parse(text)
    except FetchError as error:
        _sentence(str(error))
        return "refused"
    assert not redaction.UNPRINTABLE.search(address.shown)
    return address.scheme


# --- whole lists ------------------------------------------------------------------------------------------------------


def _texts() -> Iterator[bytes]:
    lines = [row["url"] for row in _ROWS]
    yield "\n".join(lines).encode()
    yield ("\ufeff# images\r\n\r\n" + "\r\n".join(lines)).encode()
    yield "\n".join(_ADDRESSES).encode()


def _tables(delimiter: str) -> Iterator[bytes]:
    import csv

    for newline in ("\n", "\r\n"):
        file = io.StringIO()
        writer = csv.DictWriter(file, _ROWS[0], delimiter=delimiter, lineterminator=newline)
        writer.writeheader()
        writer.writerows(_ROWS * 3)
        yield file.getvalue().encode()


def _objects() -> Iterator[bytes]:
    yield "\n".join(map(json.dumps, _ROWS)).encode()
    more = {"url": "s3://b/a.jpg", "label": 281, "name": None, "split": [1, {"a": None}], "n": 1e300}
    yield "\n\n".join(json.dumps(row, ensure_ascii=False) for row in [more, *_ROWS]).encode()


def _parquets() -> Iterator[bytes]:
    columns: dict[str, list[str | None]] = {name: [*(row[name] for row in _ROWS)] * 20 for name in _ROWS[0]}
    columns["label"] = [label or None for label in columns["label"]]
    table = pa.table(columns)
    for options in (
        {"compression": "none"}, {"compression": "zstd", "data_page_version": "2.0"}, {"row_group_size": 16},
        {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY", "compression": "none"},
        {"use_dictionary": False, "column_encoding": "DELTA_LENGTH_BYTE_ARRAY", "data_page_size": 64},
    ):  # fmt: skip
        buffer = io.BytesIO()
        parquet.write_table(table, buffer, **options)
        yield buffer.getvalue()
    others = {
        "label": pa.array([281.0, None] * 40),
        "split": pa.array([[1, 2], []] * 40),
        "name": pa.array([b"a"] * 80),
    }
    for name, values in others.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    buffer = io.BytesIO()
    parquet.write_table(table.set_column(0, "url", table["url"].dictionary_encode()), buffer)
    yield buffer.getvalue()


def _zstds() -> Iterator[bytes]:
    pack: Callable[[bytes], bytes] = zstandard.ZstdCompressor(write_checksum=True).compress
    plain = list(_objects())
    yield from map(pack, plain)
    yield b"".join(map(pack, plain))


# --- where their parts are --------------------------------------------------------------------------------------------


def _lines(data: bytes) -> Structure:
    ends = [at + 1 for at, byte in enumerate(data[:4096]) if byte == ord("\n")]
    return Structure(list(zip([0, *ends], [*ends, len(data)], strict=True)), [])


def _address_structure(data: bytes) -> Structure:
    marks = [at for at, byte in enumerate(data) if byte in b":/@?#.[]%;&="]
    return Structure(list(zip([0, *marks], [*marks, len(data)], strict=True)), [])


def _parquet_structure(data: bytes) -> Structure:
    """Its table of contents, whose length stands before the last four bytes, and its pages, whose heads begin alike."""
    length = int.from_bytes(data[-8:-4], "little")
    start = max(len(data) - 8 - length, 0)
    heads = [at for at in range(4, min(start, 8192)) if data[at : at + 2] in {b"\x15\x00", b"\x15\x04", b"\x15\x06"}]
    parts = [*zip(heads, [*heads[1:], start], strict=True), (start, len(data))] if heads else [(start, len(data))]
    # Numbers of a head are of one to five bytes: any of its first ones.
    fields = [(at + place, 1) for at in heads for place in range(1, 12)]
    return Structure(parts, [(max(len(data) - 8, 0), 4), *fields])


def _gzip_structure(data: bytes) -> Structure:
    return Structure([(0, 10), (10, max(len(data) - 8, 10))], [(3, 1), (len(data) - 8, 4), (len(data) - 4, 4)])


def _gzip_repaired(data: bytes) -> bytes:
    """The checksum of what really comes out."""
    try:
        engine = zlib.decompressobj(-zlib.MAX_WBITS)
        plain = engine.decompress(data[10:], 2**20)
    except zlib.error:
        return data
    if not engine.eof:
        return data
    tail = zlib.crc32(plain).to_bytes(4, "little") + len(plain).to_bytes(4, "little")
    return data[: len(data) - len(engine.unused_data)] + tail


def _zstd_structure(data: bytes) -> Structure:
    frames = [at for at in range(len(data)) if data[at : at + 4] == b"\x28\xb5\x2f\xfd"]
    return Structure(
        list(zip(frames, [*frames[1:], len(data)], strict=False)),
        [(at + place, size) for at in frames for place, size in ((4, 1), (5, 1), (5, 2), (6, 3), (9, 3))],
    )
