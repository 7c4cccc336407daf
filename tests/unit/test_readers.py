"""Lists of images: what each kind gives, and which sentence says what is wrong with it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from budget import either
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from producer.input.rows import PLAIN, PLAIN_ADDRESS
from producer.input.sources import ReadOptions, Source, open_sources
from producer.jobs.fetch import addresses
from producer.jobs.model.errors import UsageError

A, B, C = "s3://bucket/a.jpg", "https://example.org/b.jpg", "s3://bucket/c c.jpg"
ALL = ReadOptions(class_column="label", id_column="name", keep_columns=("split", "n"))


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, reading: ReadOptions | None = None) -> list[Source]:
    with open_sources([path], reading or ReadOptions()) as sources:
        found = list(sources)
        assert sources.count == len(found)
        assert list(sources) == found
        return found


def uris(path: Path, reading: ReadOptions | None = None) -> list[str | None]:
    return [source.uri for source in read(path, reading)]


def refused(path: Path, reading: ReadOptions | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        open_sources([path], reading or ReadOptions())
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


# --- what the kinds give ---------------------------------------------------------------------------------------------


def test_a_text_list_is_an_address_a_line_without_blanks_and_comments(tmp_path: Path) -> None:
    content = f"\ufeff# my images\r\n{A}\r\n\r\n  {B}\t\r\n   # not this one\n{C}"
    assert uris(written(tmp_path / "list.txt", content)) == [A, B, C]


def test_separators_of_unicode_do_not_end_a_line(tmp_path: Path) -> None:
    names = [f"s3://bucket/{name}.jpg" for name in ("a\u00a0b", "\u3000ä", "日本\u1680")]
    assert uris(written(tmp_path / "list.txt", "\n".join(names))) == names
    assert uris(written(tmp_path / "list.csv", "url\n" + "\n".join(names))) == names
    assert "line 1: s3://bucket/a\ufffdb.jpg is refused: it holds control" in refused(
        written(tmp_path / "two.txt", "s3://bucket/a\u2028b.jpg")
    )


TABLE: list[dict[str, Any]] = [
    {"uri": A, "label": 281, "name": "cat, the first", "split": 'the "best"', "n": 1},
    {"uri": B, "label": None, "name": None, "split": "zwei\nZeilen", "n": None},
    {"uri": C, "label": "tabby", "name": "c", "split": "ä", "n": 3},
]
EXPECTED = [
    Source(A, None, "cat, the first", 281, None, {"split": 'the "best"', "n": "1"}),
    Source(B, None, None, None, None, {"split": "zwei\nZeilen"}),
    Source(C, None, "c", None, "tabby", {"split": "ä", "n": "3"}),
]


def as_csv(path: Path, delimiter: str) -> Path:
    file = io.StringIO()
    writer = csv.DictWriter(file, TABLE[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(TABLE)
    return written(path, "\ufeff" + file.getvalue())


def as_parquet(path: Path) -> Path:
    columns = {name: [row[name] for row in TABLE] for name in TABLE[0]}
    columns["label"] = [None if label is None else str(label) for label in columns["label"]]
    parquet.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_a_table_has_a_class_an_id_and_columns_carried_along(tmp_path: Path, delimiter: str) -> None:
    found = read(as_csv(tmp_path / ("list.csv" if delimiter == "," else "list.tsv"), delimiter), ALL)
    # A cell of CSV that is empty is there.
    assert found == [EXPECTED[0], EXPECTED[1]._replace(keep={"split": "zwei\nZeilen", "n": ""}), EXPECTED[2]]


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "JSONL"])
def test_an_object_a_line_has_them_too(tmp_path: Path, suffix: str) -> None:
    lines = "\n\n".join(json.dumps(row) for row in TABLE)
    assert read(written(tmp_path / f"list.{suffix}", lines + "\r\n"), ALL) == EXPECTED


def test_parquet_has_them_too(tmp_path: Path) -> None:
    assert read(as_parquet(tmp_path / "list.parquet"), ALL) == EXPECTED


def test_values_that_are_no_text_are_carried_along_as_json_has_them(tmp_path: Path) -> None:
    row = {"uri": A, "a": True, "b": 1.5, "c": [1, {"ä": None}], "d": 10**30, "e": None, "id": 7}
    (source,) = read(
        written(tmp_path / "list.jsonl", json.dumps(row)), ReadOptions(id_column="id", keep_columns=tuple("abcde"))
    )
    assert source.keep == {"a": "true", "b": "1.5", "c": '[1, {"ä": null}]', "d": "1" + "0" * 30}
    assert source.id == "7"


def test_columns_of_parquet_that_pandas_makes_are_understood(tmp_path: Path) -> None:
    """Integers become floats as soon as one is missing; few different strings become a dictionary."""
    table = pa.table(
        {
            "image": pa.array([A, B, A]).dictionary_encode(),
            "label": pa.array([281.0, float("nan"), None]),
            "when": pa.array([0, None, 86400], pa.timestamp("s")),
        }
    )
    parquet.write_table(table, tmp_path / "list.parquet")
    found = read(tmp_path / "list.parquet", ReadOptions(class_column="label", keep_columns=("when",)))
    assert [source.uri for source in found] == [A, B, A]
    assert [source.class_id for source in found] == [281, None, None]
    assert [source.keep for source in found] == [{"when": "1970-01-01 00:00:00"}, {}, {"when": "1970-01-02 00:00:00"}]


@pytest.mark.parametrize("column", ["uri", "url", "image", "path", "file", "filename"])
def test_the_column_of_addresses_is_found_by_its_usual_names(tmp_path: Path, column: str) -> None:
    assert uris(written(tmp_path / "list.csv", f"x,{column}\n1,{A}\n")) == [A]
    assert uris(written(tmp_path / "list.jsonl", json.dumps({"x": 1, column: A}))) == [A]


def test_the_first_usual_name_wins_unless_one_is_given(tmp_path: Path) -> None:
    path = written(tmp_path / "list.csv", f"path,uri\n{A},{B}\n")
    assert uris(path) == [B]
    assert uris(path, ReadOptions(uri_column="path")) == [A]


def test_a_class_is_a_number_or_a_name_or_nothing(tmp_path: Path) -> None:
    cells = ["281", " 007 ", "", "  ", "tabby cat", "n02123045", "1e3", "²"]
    path = written(tmp_path / "list.csv", "uri,label\n" + "".join(f"{A},{cell}\n" for cell in cells))
    found = read(path, ReadOptions(class_column="label"))
    assert [source.class_id for source in found] == [281, 7, None, None, None, None, None, None]
    assert [source.class_name for source in found[4:]] == ["tabby cat", "n02123045", "1e3", "²"]


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.jsonl", "list.parquet"])
@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_compressed_lists_are_read_like_others(tmp_path: Path, name: str, packing: str) -> None:
    plain = {
        "list.txt": lambda path: written(path, f"{A}\n{B}\n{C}\n"),
        "list.csv": lambda path: as_csv(path, ","),
        "list.jsonl": lambda path: written(path, "\n".join(map(json.dumps, TABLE))),
        "list.parquet": as_parquet,
    }[name](tmp_path / name)
    packed = packed_as(packing)(plain.read_bytes())
    # Files that were appended to, or made by several threads, hold more than one stream.
    parts = packed_as(packing)(plain.read_bytes()[:30]) + packed_as(packing)(plain.read_bytes()[30:])
    for content in (packed, parts):
        assert uris(written(tmp_path / f"{name}.{packing}", content)) == [A, B, C]


def packed_as(packing: str) -> Callable[[bytes], bytes]:
    return gzip.compress if packing == "gz" else zstandard.ZstdCompressor().compress


def test_relative_paths_begin_at_the_folder_of_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data/photos/a.jpg", "data/b.png"):
        written(Path(name), b"x")
    for name, content in {
        "list.txt": f"photos/a.jpg\n{tmp_path}/data/b.png\n{A}\n",
        "list.csv": f"path\nphotos/a.jpg\n{tmp_path}/data/b.png\n{A}\n",
    }.items():
        found = read(written(Path("data") / name, content))
        assert [source.path for source in found] == [Path("data/photos/a.jpg"), tmp_path / "data/b.png", None]
        assert [source.uri for source in found] == [None, None, A]


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 20_000])
def test_nothing_is_lost_or_doubled_where_one_block_ends_and_the_next_begins(tmp_path: Path, count: int) -> None:
    names = [f"s3://bucket/{'x' * (n * 7919 % 900)}{n}.jpg" for n in range(count)]
    for n in range(0, count, 1499):
        names[n] = f"s3://bucket/{n}é日.jpg"
    assert uris(written(tmp_path / "list.txt", "\n".join(names))) == names
    assert uris(written(tmp_path / "list.csv", "n,uri\n" + "\n".join(f'"{n}\n",{n}' for n in names))) == names
    assert uris(written(tmp_path / "list.jsonl", "\n".join(json.dumps({"uri": name}) for name in names))) == names
    parquet.write_table(pa.table({"uri": names}), tmp_path / "list.parquet", row_group_size=777)
    assert uris(tmp_path / "list.parquet") == names


# --- what is refused -------------------------------------------------------------------------------------------------

GOOD = "".join(f"s3://bucket/{n}.jpg\n" for n in range(30_000))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("list.txt", "", "list.txt names no images"),
        ("list.txt", "\n# nothing\n\n", "list.txt names no images"),
        ("list.txt", f"{A}\nftp://host/a.jpg\n", "line 2: ftp://host/a.jpg is refused: an address begins with"),
        ("list.txt", f"# one\n\n{A}\nhttp://user:hunter2@host/a.jpg\n", "line 4: http://.{3}@host/a.jpg is refused"),
        ("list.txt", f"{A}\ns3://bucket/folder/\n", "line 2: s3://bucket/folder/ is a prefix, not an image"),
        ("list.txt", "s3://bucket\n", "line 1: s3://bucket is refused: it names no key"),
        ("list.txt", f"{GOOD}nothing.jpg\n", "line 30001: 'nothing.jpg' is neither a file"),
        ("list.txt", ".\n", "line 1: .* is no file"),
        ("list.txt", "list.txt\n", "line 1: .*list.txt is not an image"),
        ("list.txt", "a\0b.jpg\n", "line 1: 'a.x00b.jpg' is neither a file"),
        ("list.txt", GOOD.encode() + b"s3://bucket/\xff.jpg\n", "line 30001: it is no UTF-8 text"),
        ("list.txt", f"{A}\n".encode("utf-16"), "list.txt is UTF-16 text: save it as UTF-8"),
        ("list.csv", b"\xfe\xff" + f"uri\n{A}\n".encode("utf-16-be"), "list.csv is UTF-16 text: save it as UTF-8"),
        ("list.tsv.gz", gzip.compress(f"uri\n{A}\n".encode("utf-16")), "is UTF-16 text: save it as UTF-8"),
        ("list.csv", f"{A},1\n{B},2\n", "Its first line is read as names of columns and holds an image: put"),
        ("list.csv", "a.JPG\nb.jpg\n", "holds an image: .* or name a list of addresses alone .txt$"),
        ("list.csv", f"{A};1\n{B};2\n", "holds an image"),
        ("list.txt", "x" * 2_000_000, "line 1 is longer than 1,048,576 bytes"),
        ("list.csv", "", "names no images"),
        ("list.csv", "uri,label\n", "names no images"),
        ("list.csv", f"{A}\n{B}\n", "list.csv has no column uri, url, image, path, file or filename; its columns are"),
        ("list.csv", f"address,label\n{A},1\n", "its columns are address, label: say with --uri-column"),
        ("list.csv", f"uri,uri\n{A},{A}\n", "several columns named 'uri'"),
        ("list.csv", f"uri,label\n\n{A},1\n{A}\n", "list.csv line 4: it has 1 cells where the header has 2"),
        ("list.csv", f'uri,label\n{A},"1\n2"\n{A},1,2\n', "line 4: it has 3 cells where the header has 2"),
        ("list.csv", f'uri,label\n{A},"1\n2"\nftp://x,1\n', "line 4: ftp://x is refused"),
        ("list.csv", f'uri,label\n{A},"1\n', "line 2: unexpected end of data"),
        ("list.csv", f'uri,label\n{A},"1"2\n', "line 2: ',' expected after '\"'"),
        ("list.csv", f"uri\r{A}\r", "line 1: new-line character seen in unquoted field"),
        ("list.csv", b"uri\n" + GOOD.encode() + b"\xff\n", "line 30002: it is no UTF-8 text"),
        ("list.csv", "uri,label\n,1\n", "line 2: there is no address"),
        ("list.csv", f"uri\n{A}\n{'x' * 200_000}\n", "line 3: .* is neither a file"),
        ("list.jsonl", "", "names no images"),
        ("list.jsonl", f'{{"uri":"{A}"}}\n\n{{"uri":\n', "line 3: it is no JSON object .EOF while parsing"),
        ("list.jsonl", f'{{"uri":"{A}"}}\n["{A}"]\n', "line 2: it is no JSON object"),
        ("list.jsonl", "17\n", "line 1: it is no JSON object"),
        ("list.jsonl", f'{{"uri":"{A}"}}\n{{"url":"{A}"}}\n', "line 2: there is no text in 'uri'"),
        ("list.jsonl", f'{{"uri":"{A}"}}\n{{"uri":17}}\n', "line 2: there is no text in 'uri'"),
        ("list.jsonl", f'{{"uri":"{A}"}}{{"uri":"{A}"}}\n', "line 1: it is no JSON object .trailing characters"),
        ("list.jsonl", f'{{"a":"{A}"}}\n', "no column uri, url.* its columns are a: say with --uri-column"),
        ("list.jsonl", b'{"uri":"s3://bucket/a.jpg"}\n{"uri":"\xff"}\n', "line 2: it is no UTF-8 text"),
        ("list.jsonl", '{"uri":"s3://bucket/\\ud800"}\n', "line 1: it is no UTF-8 text"),
        ("list.jsonl", '{"uri":"s3://bucket/\\u0000"}\n', "line 1: .* is refused: it holds control characters"),
        ("list.parquet", b"", "is no Parquet file"),
        ("list.parquet", b"PAR1" + b"x" * 100 + b"PAR1", "is no Parquet file"),
        ("list.csv.gz", f"uri\n{A}\n", "cannot be read: its compressed data is broken"),
        ("list.csv.gz", gzip.compress(b"uri\n" + GOOD.encode(), mtime=0)[:-20], "its compressed data breaks off"),
        ("list.txt.gz", gzip.compress(GOOD.encode(), mtime=0)[:-20], "after line [0-9]{5}: .* breaks off"),
        ("list.txt.gz", gzip.compress(GOOD.encode(), mtime=0)[:-8] + bytes(8), "its compressed data is broken"),
        ("list.txt.zst", f"{A}\n", "cannot be read: its compressed data is broken"),
        ("list.txt.zst", zstandard.compress(GOOD.encode())[:-20], "cannot be read.*: its compressed data breaks off"),
        ("list.txt.zst", zstandard.compress(GOOD.encode())[:20], "cannot be read.*: its compressed data breaks off"),
        ("list.txt.zst", b"", "names no images"),
        ("list.txt.gz", gzip.compress(bytes(100_000_000), mtime=0), "line 1 is longer"),
        ("list.txt.zst", zstandard.compress(bytes(100_000_000)), "line 1 is longer"),
        ("list.parquet.gz", b"x", "cannot be read: its compressed data is broken"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told_with_its_line_before_anything_is_sent(
    tmp_path: Path, name: str, content: str | bytes, words: str
) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(UsageError, match=words) as caught:
        open_sources([path])
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert "hunter2" not in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("column", "reading"),
    [
        ("x", ReadOptions(uri_column="x")),
        ("x", ReadOptions(class_column="x")),
        ("x", ReadOptions(id_column="x")),
        ("x", ReadOptions(keep_columns=("split", "x"))),
    ],
)
def test_a_column_that_is_not_there_is_told(tmp_path: Path, column: str, reading: ReadOptions) -> None:
    there = "has no column 'x'; its columns are uri, label, name, split, n"
    assert there in refused(as_csv(tmp_path / "list.csv", ","), reading)
    assert there in refused(as_parquet(tmp_path / "list.parquet"), reading)
    if reading.uri_column is None:
        message = refused(written(tmp_path / "list.jsonl", json.dumps(TABLE[0])), reading)
        assert "has no column 'x' in any of its 1 lines" in message


def test_a_column_of_json_lines_may_be_missing_in_some(tmp_path: Path) -> None:
    path = written(tmp_path / "list.jsonl", f'{{"uri":"{A}"}}\n{{"uri":"{A}","label":"cat"}}\n')
    assert [source.class_name for source in read(path, ReadOptions(class_column="label"))] == [None, "cat"]


def test_columns_without_a_table_are_told(tmp_path: Path) -> None:
    path = written(tmp_path / "list.txt", f"{A}\n")
    with pytest.raises(UsageError, match="no column 'label': none of the arguments is a list with columns"):
        open_sources([path, A], ReadOptions(class_column="label"))


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("2147483648", "line 3: the class '2147483648' is not between 0 and 2,147,483,647"),
        ("9" * 5000, "line 3: the class '999.* is not between 0 and"),
        ("x" * 201, "line 3: the class has a name of 201 characters"),
    ],
)
def test_a_class_that_cannot_be_one_is_told_with_its_line(tmp_path: Path, cell: str, words: str) -> None:
    path = written(tmp_path / "list.csv", f"uri,label\n{A},1\n{A},{cell}\n")
    with pytest.raises(UsageError, match=words):
        open_sources([path], ReadOptions(class_column="label"))


@pytest.mark.parametrize("value", [-1, 1.5, True, [1], {"a": 1}, 2**31])
def test_a_class_of_json_is_a_number_or_a_name(tmp_path: Path, value: object) -> None:
    path = written(tmp_path / "list.jsonl", "".join(json.dumps({"uri": A, "c": c}) + "\n" for c in (1, 2.0, value)))
    with pytest.raises(UsageError, match="line 3: the class"):
        open_sources([path], ReadOptions(class_column="c"))


def test_an_id_that_is_too_long_is_told_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path / "list.csv", f"uri,id\n{A},ok\n{A},{'x' * 1025}\n")
    with pytest.raises(UsageError, match="line 3: the id has 1,025 characters"):
        open_sources([path], ReadOptions(id_column="id"))


def test_a_column_of_parquet_that_is_no_text_is_told(tmp_path: Path) -> None:
    """Data sets of Hugging Face hold the pictures themselves in `image`."""
    parquet.write_table(pa.table({"image": [{"bytes": b"x", "path": "a.jpg"}]}), tmp_path / "list.parquet")
    assert "holds struct<bytes: binary, path: string> in 'image': addresses are text" in refused(
        tmp_path / "list.parquet"
    )
    parquet.write_table(pa.table({"uri": [A] * 5000 + [None]}), tmp_path / "list.parquet")
    assert "row 5001: there is nothing in 'uri'" in refused(tmp_path / "list.parquet")
    parquet.write_table(pa.table({"uri": [A] * 5000 + ["ftp://x"]}), tmp_path / "list.parquet")
    assert "row 5001: ftp://x is refused" in refused(tmp_path / "list.parquet")


def test_parquet_that_is_broken_in_the_middle_is_told(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    parquet.write_table(pa.table({"uri": [f"s3://bucket/{n}.jpg" for n in range(50_000)]}), path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 1000] = bytes(1000)
    path.write_bytes(content)
    assert "is no Parquet file that can be read" in refused(path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path) -> None:
    """In a process of its own, where there is no pyarrow."""
    path = as_parquet(tmp_path / "list.parquet")
    code = (
        "import sys; sys.modules['pyarrow'] = None\nfrom producer.input.sources import open_sources\n"
        "from producer.jobs.model.errors import UsageError\n"
        "try:\n    open_sources([sys.argv[1]])\nexcept UsageError as error:\n    print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == f"{path} cannot be read: Parquet needs pyarrow (pip install 'gradcam-queue[parquet]')\n"


def test_a_list_that_changed_since_it_was_checked_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "list.txt", f"{A}\n")
    sources = open_sources([path])
    with path.open("a") as file:
        file.write("ftp://not-checked\n")
    with pytest.raises(UsageError, match=r"list\.txt has changed since it was checked"):
        list(sources)
    path.unlink()
    with pytest.raises(UsageError, match=r"list\.txt cannot be read: No such file"):
        list(sources)


# --- for every input -------------------------------------------------------------------------------------------------

ONCE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@given(st.from_regex(PLAIN_ADDRESS, fullmatch=True))
@settings(ONCE, max_examples=either(200, 1000))
@example(f"s3://{'b' * 63}/{'k' * 1024}")
@example("s3://bucket/" + "\U0001f600" * 256)
@example(f"https://{('a' * 40 + '.') * 5}{'z' * 24}:9999/{'x' * 4000}")
def test_what_is_harmless_at_a_glance_is_accepted_at_a_closer_look(uri: str) -> None:
    address = addresses.parse(uri)
    assert not (address.scheme == "s3" and uri.endswith("/"))
    assert uri == uri.strip(" \t\r\f\v")
    uri.encode()


_PIECES = st.sampled_from(
    [
        *("s3://", "http://", "https://", "bucket", "/", "//", ".", "..", "-", "_", "a", "A", "0", "0x7f", "127.1"),
        *(
            "@",
            ":",
            "80",
            "99999",
            "[",
            "]",
            "%",
            "?",
            "#",
            "\\",
            " ",
            "\n",
            "\x00",
            "\x7f",
            "\x85",
            "\u2028",
            "\ud800",
        ),
        *("ä", "x" * 70),
    ]
)


@given(st.lists(_PIECES | st.characters(), max_size=12).map("".join))
@settings(ONCE, max_examples=either(400, 3000))
def test_no_address_that_is_refused_is_harmless_at_a_glance(uri: str) -> None:
    if PLAIN(uri):
        addresses.parse(uri)


_CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(
    st.lists(st.tuples(_CELLS, _CELLS, _CELLS), min_size=1, max_size=20), st.booleans(), st.sampled_from([",", "\t"])
)
@settings(ONCE)
def test_any_text_passes_through_csv_unchanged_but_for_white_space_around_it(
    tmp_path: Path, cells: list[tuple[str, str, str]], all_quoted: bool, delimiter: str
) -> None:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL)
    writer.writerows([("uri", "id", "a", "b"), *((A, *row) for row in cells)])
    path = written(tmp_path / ("list.csv" if delimiter == "," else "list.tsv"), file.getvalue())
    found = read(path, ReadOptions(id_column="id", keep_columns=("a", "b")))
    assert [(source.id or "", *(source.keep or {}).values()) for source in found] == [
        tuple(map(str.strip, row)) for row in cells
    ]


@given(st.lists(st.tuples(_CELLS, _CELLS), min_size=1, max_size=20), st.booleans())
@settings(ONCE)
def test_any_text_passes_through_json_lines_unchanged_but_for_white_space_around_it(
    tmp_path: Path, cells: list[tuple[str, str]], ascii_only: bool
) -> None:
    lines = [json.dumps({"uri": A, "id": id, "a": a}, ensure_ascii=ascii_only) for id, a in cells]
    found = read(written(tmp_path / "list.jsonl", "\n".join(lines)), ReadOptions(id_column="id", keep_columns=("a",)))
    assert [(source.id or "", (source.keep or {})["a"]) for source in found] == [
        (id.strip(), a.strip()) for id, a in cells
    ]


def read_or_refused(path: Path, reading: ReadOptions) -> list[Source]:
    words: list[str] = []
    try:
        return read(path, reading)
    except UsageError as error:
        words = str(error).splitlines()
    assert len(words) == 1
    assert words[0].startswith(str(path))
    return []


_BYTES = st.binary(max_size=200) | st.lists(
    st.sampled_from([b"uri", A.encode(), b",", b"\n", b'"', b"{", b"}", b":", b"\r", b"#", b"\xff", b"\0", b"[", b"\t"])
).map(b"".join)


@given(_BYTES, st.sampled_from(["txt", "csv", "tsv", "jsonl"]), st.sampled_from(["", ".gz", ".zst"]), st.booleans())
@settings(ONCE, max_examples=either(100, 500))
def test_no_bytes_cause_anything_but_sources_or_a_sentence(
    tmp_path: Path, content: bytes, kind: str, packing: str, is_packed: bool
) -> None:
    if packing and is_packed:
        content = packed_as(packing[1:])(content)
    path = written(tmp_path / f"list.{kind}{packing}", content)
    found = read_or_refused(path, ReadOptions())
    assert all(addresses.parse(source.uri) for source in found if source.uri)


@given(st.data())
@settings(ONCE, max_examples=either(60, 200))
def test_no_damage_to_parquet_causes_anything_but_sources_or_a_sentence(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(as_parquet(tmp_path / "list.parquet").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path / "list.parquet", bytes(content))
    read_or_refused(path, ALL)


def test_memory_stays_flat_however_long_a_list_is(tmp_path: Path) -> None:
    code = (
        "import resource, sys\nfrom producer.input.sources import open_sources\n"
        "for path in sys.argv[1:]:\n"
        "    count = sum(1 for _ in open_sources([path]))\n"
        "    print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    paths = []
    for count in (20_000, 400_000):
        lines = [f"s3://bucket/{n:040}.jpg" for n in range(count)]
        paths.append(written(tmp_path / f"{count}.txt", "\n".join(lines)))
        paths.append(written(tmp_path / f"{count}.csv", "uri\n" + "\n".join(lines)))
        paths.append(written(tmp_path / f"{count}.jsonl", "\n".join(f'{{"uri":"{line}"}}' for line in lines)))
    run = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True, timeout=120)
    found = [tuple(map(int, line.split())) for line in run.stdout.splitlines()]
    assert [count for count, _ in found] == [20_000] * 3 + [400_000] * 3
    # The long lists are 60 MB of addresses.
    assert found[-1][1] - found[2][1] < 8
