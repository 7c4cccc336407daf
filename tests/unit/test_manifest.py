"""Records of images: whatever a worker can write is read, which of several counts, and what is damaged is told."""

from __future__ import annotations

import csv
import io
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from producer.jobs.model import keys
from producer.jobs.model.items import MAX_LINES
from producer.jobs.model.results import ExplainedClass, Result
from producer.jobs.model.spec import JobSpec
from producer.output.export import columns, write_csv, write_jsonl, write_parquet
from producer.output.filters import parse_where
from producer.output.manifest import ChunkRecords, Damage, Damages
from worker.models.predictions import top_predictions

SIZE = 64
#: As 0.1.0 wrote them: with names, without names (which it could not read back), several classes, failed ones.
OF_0_1_0 = (
    b'{"index":0,"uri":"s3://b/a.png","state":"done","class_id":967,"class_name":"espresso","probability":0.55,"top5":'
    b'[{"class_id":967,"class_name":"espresso","probability":0.55}],"classes":[],"network":"vgg16","layer":"features.'
    b'28","flat":false,"guided_relus":15,"random_weights":false,"objects":{"cam":"p/j/images/00000000/a-vgg16-cam.jpg"}'
    b',"seconds":{"fetch":0.002}}',
    b'{"index":1,"uri":"s3://b/b.png","id":"b","state":"done","class_id":3,"probability":0.9,"top5":[{"class_id":3,'
    b'"probability":0.9},{"class_id":1,"probability":0.1}],"classes":[{"class_id":3,"probability":0.9,"flat":false},'
    b'{"class_id":1,"probability":0.1,"flat":true}],"network":"vgg16","layer":"features.28","flat":false,'
    b'"guided_relus":15,"random_weights":true,"keep":{"split":"val"},"objects":{"class3-cam":'
    b'"p/j/shards/00000000.tar#00000001.class3-cam.jpg"},"seconds":{}}',
    b'{"index":2,"uri":"https://a.example/c.png","state":"failed","top5":[],"classes":[],"network":"vgg16","objects":{}'
    b',"seconds":{"fetch":0.1},"reason":"fetch","message":"the server answered 404"}',
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
kinds = st.sampled_from(["cam", "gb", "class3-cam", "raw"])


@st.composite
def done(draw: st.DrawFn, index: int) -> Result:
    """A done image's record, as `worker.chunks.outcome.done` puts it together of what the network answered."""
    logits = np.array(draw(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=7)), np.float32)
    names = draw(st.none() | st.lists(texts, min_size=len(logits), max_size=len(logits)))
    explained = draw(st.lists(st.integers(0, len(logits) - 1), min_size=1, max_size=3, unique=True))
    chosen, top5 = top_predictions(logits, explained, names)
    flats = [draw(st.booleans()) for _ in explained]
    several = [ExplainedClass(**each.model_dump(), flat=flat) for each, flat in zip(chosen, flats, strict=True)]
    return Result(
        index=index,
        uri=draw(texts),
        id=draw(st.none() | texts),
        state="done",
        keep=draw(st.none() | st.dictionaries(texts, texts, max_size=3)),
        class_id=chosen[0].class_id,
        class_name=chosen[0].class_name,
        probability=chosen[0].probability,
        top5=top5,
        label=draw(st.none() | texts),
        predicted=str(top5[0].class_name),
        predicted_probability=top5[0].probability,
        correct=draw(st.none() | st.booleans()),
        classes=tuple(several) if len(several) > 1 else (),
        network="vgg16",
        layer=draw(texts),
        flat=flats[0],
        guided_relus=draw(st.integers(0, 50)),
        random_weights=draw(st.booleans()),
        objects=draw(st.dictionaries(kinds, texts, max_size=3)),
        seconds=draw(st.dictionaries(texts, st.floats(0, 1e6), max_size=3)),
    )


def failed(index: int) -> st.SearchStrategy[Result]:
    return st.builds(
        Result,
        index=st.just(index),
        uri=texts,
        id=st.none() | texts,
        state=st.just("failed"),
        keep=st.none() | st.dictionaries(texts, texts, max_size=3),
        network=st.just("vgg16"),
        seconds=st.dictionaries(texts, st.floats(0, 1e6), max_size=3),
        reason=st.sampled_from(["fetch", "image"]),
        message=texts,
    )


written = st.integers(1, 5).flatmap(lambda count: st.tuples(*[done(n) | failed(n) for n in range(count)]))


def part(token: int, generation: int = 1) -> tuple[str, keys.ManifestPart]:
    key = keys.manifest("p", "job", 0, token, 0, generation)
    named = keys.manifest_part(key)
    assert named is not None
    return key, named


def chunk_of(*lines: bytes, states: bytes | None = None) -> ChunkRecords:
    chunk = ChunkRecords(0, 0, states)
    chunk.add(*part(1), b"\n".join(lines), SIZE)
    return chunk


@given(written)
@settings(deadline=None)
def test_whatever_a_worker_can_write_every_reader_reads(results: tuple[Result, ...]) -> None:
    """Classes without names were left out of lines, and demanded by every reader."""
    chunk = chunk_of(*(result.line.encode() for result in results))
    assert (list(chunk.results()), chunk.damage) == (list(results), [])
    known = [Result.model_validate_json(result.line) for result in results]  # as a shard's member is read
    assert known == list(results)
    kept = list(dict.fromkeys(name for result in results for name in result.keep or {}))
    table = columns(JobSpec(top_k=3), ["cam"], kept, lambda key: key)
    file = io.BytesIO()
    assert write_csv(known, table, file) == len(results)
    assert len(list(csv.reader(io.StringIO(file.getvalue().decode(), newline="")))) == len(results) + 1
    assert write_jsonl(known, io.BytesIO(), lambda key: key) == len(results)
    asked = parse_where(["class=3", "class_name=*", "probability<0.5", "flat=true"])
    assert all(asked(result) in {True, False} for result in known)


def test_a_parquet_file_takes_classes_without_names() -> None:
    pytest.importorskip("pyarrow")
    results = [Result.model_validate_json(line) for line in OF_0_1_0]
    table = columns(JobSpec(top_k=2), ["cam"], ["split"], lambda key: key)
    assert write_parquet(results, table, io.BytesIO()) == 3


def test_records_of_the_last_release_are_read() -> None:
    chunk = chunk_of(*OF_0_1_0)
    first, second, third = chunk.results()
    assert chunk.damage == []
    assert (first.class_name, first.top5[0].class_name) == ("espresso", "espresso")
    assert (second.class_name, second.top5[1].class_name, second.classes[1].flat) == (None, None, True)
    assert (third.state, third.reason) == ("failed", "fetch")


def record(state: str, *, index: int = 0, mark: str = "") -> bytes:
    return json.dumps({"index": index, "uri": f"s3://b/{index}", "state": state, "id": mark}).encode()


@pytest.mark.parametrize(
    ("records", "alone", "of_bits"),
    [
        # generation, token, state; then what counts by the records alone, and where the bit says done and failed
        ([(1, 1, "failed"), (1, 2, "done")], "1/2", {1: "1/2", 2: "1/1"}),
        ([(1, 1, "done"), (1, 2, "failed")], "1/1", {1: "1/1", 2: "1/2"}),  # a stale holder may still say done
        ([(1, 1, "done"), (2, 5, "failed")], "2/5", {1: "1/1", 2: "2/5"}),  # reopened, and its input is gone
        ([(1, 9, "done"), (2, 5, "failed")], "2/5", {1: "1/9", 2: "2/5"}),
        ([(1, 1, "failed"), (2, 2, "done"), (2, 3, "failed")], "2/2", {1: "2/2", 2: "2/3"}),
        ([(1, 1, "done"), (2, 2, "done")], "2/2", {1: "2/2", 2: None}),
        ([], None, {1: None, 2: None}),
    ],
)
def test_the_latest_record_counts_and_the_bits_where_they_are_known(
    records: list[tuple[int, int, str]], alone: str | None, of_bits: dict[int, str | None]
) -> None:
    expected: list[tuple[int | None, str | None]] = [(None, alone), (0, None), *of_bits.items()]
    for bit, mark in expected:
        chunk = ChunkRecords(0, 0, None if bit is None else bytes([bit]))
        parts = [(*part(token, generation), state) for generation, token, state in records]
        for key, named, state in sorted(parts, key=lambda entry: entry[1]):
            chunk.add(key, named, record(state, mark=f"{named.epoch}/{named.token}"), SIZE)
        found = chunk.result(0)
        assert (None if found is None else found.id) == mark, bit
        assert chunk.unknown() == (bit not in {None, 0} and mark is None)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9), st.sampled_from(["done", "failed"])), max_size=8))
def test_a_record_counts_only_if_its_state_is_that_of_the_bit(records: list[tuple[int, int, str]]) -> None:
    for bit in (0, 1, 2):
        chunk = ChunkRecords(0, 0, bytes([bit]))
        for generation, token, state in sorted(records):
            chunk.add(*part(token, generation), record(state), SIZE)
        fitting = [one for one in records if one[2] == {1: "done", 2: "failed"}.get(bit)]
        found = chunk.result(0)
        assert (found is None) == (not fitting)
        assert chunk.unknown() == (bit != 0 and not fitting)


def test_names_of_parts_say_whose_they_are() -> None:
    for chunk, token, number, generation in itertools.product((0, 123456789), (1, 1764150000000), (0, 12345), (1, 2)):
        key = keys.manifest("p", "a-b-1.jsonl", chunk, token, number, generation)
        assert keys.manifest_part(key) == (chunk, generation, token, number)
    for strange in (
        "p/job/manifest/notes.jsonl",
        "p/job/manifest/00000001-2.jsonl",
        "p/job/manifest/1-2-3.json",
        "٣-1-1.jsonl",
    ):
        assert keys.manifest_part(strange) is None


@pytest.mark.parametrize(
    ("line", "index", "newer"),
    [
        (record("done", index=7)[:25], 7, False),
        (b"\0" * 40, None, False),
        (b"\xff\xfe{", None, False),
        (b"null", None, False),
        (record("done", index=SIZE), None, False),  # of another chunk
        (record("lost", index=7), 7, False),
        (record("done", index=7)[:-1] + b',"color":"red"}', 7, True),
        (record("done", index=7)[:-1] + b',"version":2}', 7, True),
        (record("done", index=7)[:-1] + b',"top5":[{"class_id":1,"probability":0.5,"why":"x"}]}', 7, True),
        (record("lost", index=7)[:-1] + b',"color":"red"}', 7, False),
    ],
)
def test_a_torn_line_is_told_from_one_of_a_newer_version_and_stops_no_other(
    line: bytes, index: int | None, newer: bool
) -> None:
    line = line.replace(b'"index": ', b'"index":')
    chunk = chunk_of(record("done", index=1), line, record("done", index=2))
    assert [result.index for result in chunk.results()] == [1, 2]
    assert chunk.damage == [Damage(part(1)[0], 2, index, newer)]
    damages = Damages()
    damages.note(chunk.damage)
    words = "1 line of a newer version of gradcam-queue: update this one" if newer else "1 line of the manifest cannot"
    assert words in str(damages)
    assert "line 2" in str(damages)


def test_a_part_whose_lines_cannot_be_read_costs_little_and_hides_no_other_line() -> None:
    first = record("done", index=1)
    bad = [
        *(
            b"[]",
            b"1",
            b"null",
            b'"x"',
            b"{}",
            b"[" * 1_000_000,
            b'{"index":' + b"9" * 5000 + b"}",
            b"{" * 9,
            b"\x1f\x8b",
        ),
        *(
            first[:-1] + b',"class_id":' + number + b"}"
            for number in (b"1e400", b"9" * 400, b"-1", b"4294967296", b"[1]")
        ),
        *(first[:-1] + b',"guided_relus":' + number + b"}" for number in (b"9" * 40, b"-1")),
        *(first[:-1] + b',"above":' + number + b"}" for number in (b"9" * 40, b"1.5")),
    ]
    chunk = chunk_of(first, *bad, record("done", index=2))
    assert [result.index for result in chunk.results()] == [1, 2]
    assert [one.line for one in chunk.damage] == list(range(2, len(bad) + 2))
    many = chunk_of(first, *[b"x"] * 100_000)
    assert [result.index for result in many.results()] == [1]
    assert len(many.damage) == MAX_LINES


def test_a_part_with_nothing_in_it_is_damaged_as_a_whole() -> None:
    assert chunk_of(b"").damage == [Damage(part(1)[0], None, None)]


def test_a_result_has_no_unknown_fields() -> None:
    with pytest.raises(ValidationError):
        Result.model_validate_json(record("done")[:-1] + b',"color":"red"}')
