"""Small inputs that unpack to much: lists, items of chunks, and texts on a terminal cost what they are worth."""

from __future__ import annotations

import gzip
import time
import zlib
from pathlib import Path

import pytest
import zstandard

from producer.commands.console import make_talk
from producer.input import decompression
from producer.input.decompression import pieces
from producer.input.spooled import LocalFile
from producer.jobs.model.errors import UsageError
from producer.jobs.model.items import MAX_LINES, MAX_UNPACKED_BYTES, Chunk, Item, decompress_items


@pytest.mark.parametrize(
    "payload",
    [
        zlib.compress(bytes(MAX_UNPACKED_BYTES + 1), 1),
        zlib.compress(b"\n" * MAX_LINES),
        zlib.compress(b'{"uri": "s3://b/a.jpg"}')[:-5],
    ],
    ids=["long", "many lines", "broken off"],
)
def test_items_of_a_chunk_that_unpack_to_too_much_are_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="unpack to more than a chunk has"):
        decompress_items(payload)


def test_items_that_nobody_could_read_back_are_not_written() -> None:
    line = Item(uri="s3://b/a.jpg", keep={"thumbnail": "x" * 2**20}).line
    assert len(decompress_items(Chunk.compress(0, [line] * 60).payload)) == 60
    with pytest.raises(UsageError, match="take fewer columns along, or a smaller --chunk-size"):
        Chunk.compress(0, [line] * 64)


@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_a_list_that_unpacks_to_too_much_is_told(tmp_path: Path, packing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompression, "MAX_UNPACKED_BYTES", 2**22)
    path = tmp_path / f"list.txt.{packing}"
    pack = gzip.compress if packing == "gz" else zstandard.ZstdCompressor().compress
    path.write_bytes(pack(b"s3://b/a.jpg\n" * 10**6))
    with pytest.raises(UsageError, match=r"list.txt.\w+ unpacks to more than 250 times its size"):
        for _ in pieces(LocalFile(str(path)), packing):
            pass
    different = b"".join(b"s3://bucket/folder/%09d.jpg\n" % number for number in range(300_000))
    path.write_bytes(pack(different))
    assert b"".join(pieces(LocalFile(str(path)), packing)) == different


def test_many_small_frames_of_zstandard_cost_no_time(tmp_path: Path) -> None:
    """What a block of packed bytes unpacked to was copied anew for each frame in it."""
    frame = zstandard.ZstdCompressor(write_checksum=False).compress(bytes(2**17))
    path = tmp_path / "list.txt.zst"
    path.write_bytes(frame * 6000)
    start = time.process_time()
    assert sum(map(len, pieces(LocalFile(str(path)), "zst"))) == 6000 * 2**17
    assert time.process_time() - start < 1.5


def test_long_texts_of_strangers_are_printed_at_once_and_never_read(capsys: pytest.CaptureFixture[str]) -> None:
    """They were searched for numbers, paths and addresses to be colored, and for names of emojis."""
    text = "<" * 100_000 + ":smile: [bold]"
    start = time.process_time()
    make_talk().print(text)
    assert time.process_time() - start < 3
    said = capsys.readouterr().err
    assert len(said) < 2100
    assert "…(100,014 characters)…" in said
    assert said.endswith("<:smile: [bold]\n")
