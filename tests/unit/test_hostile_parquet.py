"""Parquet files that strangers made to take memory or time: refused in a sentence, or read in little of both."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from producer.input.parquet_pages import MAX_PAGE_BYTES, Chunk, PageError, groups, longest_text, pages
from producer.input.sources import ReadOptions, open_sources
from producer.jobs.model.errors import UsageError

URI = "s3://bucket/a.jpg"
LONG = "x" * (2**20 - 1)
_READ = """
import json, resource, sys
import pyarrow.parquet
from producer.input.sources import ReadOptions, open_sources
from producer.jobs.model.errors import UsageError
# Not ru_maxrss: a new process has it of the one that started it.
peak = lambda: next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before, used = peak(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
try:
    with open_sources([sys.argv[1]], ReadOptions(keep_columns=("text",))) as sources:
        said = sum(1 for _ in sources)
except UsageError as error:
    said = str(error)
print(json.dumps([said, peak() - before, resource.getrusage(resource.RUSAGE_SELF).ru_utime - used]))
"""


def _repeated(rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([LONG]))


def _with(rows: int, text: pa.Array) -> pa.Table:
    return pa.table({"url": pa.array([URI] * rows), "text": text})


#: Name → the table, how it is written, what comes of it, and the most memory in megabytes.
CASES: dict[str, tuple[Callable[[], pa.Table], dict[str, Any], int | str, int]] = {
    "one text of 1 MB in 4,000 rows": (lambda: _with(4000, _repeated(4000)), {}, 4000, 150),
    "one text of 1 MB in 100,000 rows": (
        lambda: _with(100_000, _repeated(100_000)), {"row_group_size": 100_000}, 100_000, 150,
    ),
    "150 texts of 1 MB in a page": (
        lambda: _with(150, pa.array([LONG] * 150)),
        {"use_dictionary": False, "data_page_size": 2**30}, "a page unpacks to 157,286,", 60,
    ),
    "300 texts of 1 MB in pages of 30": (
        lambda: _with(300, pa.array([LONG] * 300)),
        {"use_dictionary": False, "write_batch_size": 30}, 300, 300,
    ),
    "texts of 1 MB that share their beginnings": (
        lambda: _with(400, pa.array([LONG] * 400)),
        {"use_dictionary": False, "column_encoding": {"url": "PLAIN", "text": "DELTA_BYTE_ARRAY"}}, 400, 400,
    ),
    "20 million values in a page": (
        lambda: _with(1, _list_of(20_000_000)), {"data_page_size": 2**30}, "20,000,000 values", 60,
    ),
    "a list of 20 million values in pages of some": (
        lambda: _with(1, _list_of(20_000_000)), {"data_page_size": 2**20, "write_batch_size": 2**16},
        "of 20,000,000 values", 60,
    ),
}  # fmt: skip


def _list_of(values: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, values], pa.int32()), pa.nulls(values, pa.int8()))


def _refused(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        open_sources([path], ReadOptions(keep_columns=("text",)))
    return str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_a_small_parquet_file_takes_little_memory(tmp_path: Path, case: str) -> None:
    make, options, expected, most_mb = CASES[case]
    parquet.write_table(make(), tmp_path / "list.parquet", compression="zstd", **options)
    assert (tmp_path / "list.parquet").stat().st_size < 200_000
    # In a process of its own: the peak is of its whole life.
    run = subprocess.run(
        [sys.executable, "-c", _READ, str(tmp_path / "list.parquet")], capture_output=True, text=True, check=True
    )
    said, peak_bytes, used_s = json.loads(run.stdout)
    if isinstance(expected, str):
        assert expected in said
        assert "\n" not in said
    else:
        assert said == expected
    assert peak_bytes < most_mb * 1e6
    assert used_s < 10


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_pages_say_what_writers_wrote(tmp_path: Path, compression: str, version: str) -> None:
    path = tmp_path / "list.parquet"
    table = pa.table({"a": [f"{number % 50}" for number in range(50_000)], "b": range(50_000)})
    parquet.write_table(table, path, compression=compression, data_page_version=version, data_page_size=2**12)
    group = parquet.read_metadata(path).row_group(0)
    with path.open("rb") as file:
        (ours,) = groups(file)
        for place, chunk in enumerate(ours):
            theirs = group.column(place)
            assert (chunk.name, chunk.values, chunk.rows) == (theirs.path_in_schema, theirs.num_values, group.num_rows)
            assert chunk.is_text == (theirs.physical_type == "BYTE_ARRAY")
            found = list(pages(file, chunk))
            assert sum(page.values for page in found if not page.is_dictionary) == 50_000
            assert found[-1].at + found[-1].packed_bytes == chunk.at + theirs.total_compressed_size
            longest = [longest_text(file, page, chunk.codec) for page in found if page.is_dictionary and chunk.is_text]
            assert longest == ([2] if chunk.is_text else [])


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _header(unpacked: int, packed: int = 0, values: int = 1) -> bytes:
    """A data page's header: type, sizes, and how many values; numbers are in zigzag."""
    inner = b"\x15" + _varint(2 * values) + b"\x15\0\x15\0\x15\0\0"
    return b"\x15\0\x15" + _varint(2 * unpacked) + b"\x15" + _varint(2 * packed) + b"\x2c" + inner + b"\0"


ALONE = Chunk("a", True, False, 0, 1, 1, 4)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (_header(2**31 - 1), "a page unpacks to 2,147,483,647 bytes"),
        (_header(MAX_PAGE_BYTES + 1), "a page unpacks to"),
        (_header(8, values=2**31 - 1), "a page has 2,147,483,647 values"),
        (_header(8, values=0), "a page has nothing in it"),
        (b"", "broken or truncated"),
        (b"\x15", "broken or truncated"),
        (b"\x15" + b"\xff" * 20, "broken or truncated"),
        (b"\x1c" * 100, "broken or truncated"),
        (b"\x19\xf5" + b"\xff" * 9, "broken or truncated"),
        (b"\x18" + b"\xff\xff\xff\xff\x7f", "broken or truncated"),
        (b"\x15\0\x15\x01\x15\x01\0", "broken or truncated"),
        (b"\0", "broken or truncated"),
    ],
)
def test_a_page_that_claims_too_much_is_not_unpacked(tmp_path: Path, head: bytes, why: str) -> None:
    """Sizes that the file's own table of contents does not tell, and headers that break off, loop or go deep."""
    (tmp_path / "pages").write_bytes(b"PAR1" + head)
    with (tmp_path / "pages").open("rb") as file, pytest.raises(PageError, match=why):
        list(pages(file, ALONE))


def test_a_header_that_lies_is_a_sentence(tmp_path: Path) -> None:
    """Arrow would make room for two gigabytes."""
    path = tmp_path / "list.parquet"
    parquet.write_table(pa.table({"url": [URI] * 99, "text": ["abc"] * 99}), path, use_dictionary=False)
    chunk = parquet.read_metadata(path).row_group(0).column(1)
    data = bytearray(path.read_bytes())
    header = _header(2**31 - 1, values=99)
    data[chunk.data_page_offset : chunk.data_page_offset + len(header)] = header
    path.write_bytes(data)
    assert "a page unpacks to 2,147,483,647 bytes: the largest that is read has" in _refused(path)


@pytest.mark.parametrize(
    "broken", [b"\x19" + b"\xfc" + b"\xff" * 9, b"\x0c" * 900, b"\x1c" * 900, b"\x49\x1c\x00\x00", b""]
)
def test_a_broken_table_of_contents_is_a_sentence(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "list.parquet"
    path.write_bytes(b"PAR1" + broken + len(broken).to_bytes(4, "little") + b"PAR1")
    with path.open("rb") as file, pytest.raises(PageError, match="its table of contents"):
        groups(file)
    assert "is no Parquet file that can be read" in _refused(path)


def test_long_texts_of_a_dictionary_are_the_same_as_short_ones(tmp_path: Path) -> None:
    """They go another way: left in their dictionary by Arrow, missing ones among them."""
    texts = [None if number % 5 == 0 else f"{number % 3}" + "y" * 100_000 * (number % 2) for number in range(9000)]
    table = _with(9000, pa.array(texts).dictionary_encode())
    parquet.write_table(table, tmp_path / "list.parquet", row_group_size=5000)
    with open_sources([tmp_path / "list.parquet"], ReadOptions(keep_columns=("text",))) as sources:
        assert [(source.keep or {}).get("text") for source in sources] == texts
