"""Rows that cannot be used are left out where that is asked for: all others go, and none is lost without a word."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from producer.cli import cli, run
from producer.input.sources import ReadOptions, Source, open_sources
from producer.jobs.model.errors import UsageError

A, B, C, D = (f"https://example.org/{name}.jpg" for name in "abcd")
SKIP = ReadOptions(skip_bad=True, class_column="label", keep_columns=("split",))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder one stands in, with settings of servers that nobody asks."""
    monkeypatch.setenv("GRADCAM_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("GRADCAM_S3_BUCKET", "pictures")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dry(*arguments: str) -> int:
    return run(lambda: cli(["submit", *arguments, "--dry-run", "--chunk-size", "10"], standalone_mode=False))


CONTENTS = {
    "list.csv": f'url,label,split\n{A},1,x\nftp://x,2,x\n{B}\n\n{B},99999999999,"y\n"\n"x"y,3,\n{C},cat,z\n{D},4,\n',
    "list.tsv": f'url\tlabel\tsplit\n{A}\t1\tx\nftp://x\t2\tx\n{B}\n\n{B}\t99999999999\t"y\n"\n"x"y\t3\t\n{C}\tcat\tz\n{D}\t4\t\n',
    "list.jsonl": f'{{"url":"{A}","label":1,"split":"x"}}\n{{"url":"ftp://x","label":2,"split":"x"}}\n"{B}"\n\n'
    f'{{"url":"{B}","label":99999999999,"split":"y"}}\n{{"url":3}}\n{{"url":"{C}","label":"cat","split":"z"}}\n'
    f'{{"url":"{D}","label":4,"split":""}}',
}


@pytest.mark.parametrize("name", CONTENTS)
def test_good_rows_go_and_bad_ones_are_kept_with_their_lines(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(CONTENTS[name])
    with pytest.raises(UsageError, match=r"(line 3|line 2): ftp://x is refused"):
        open_sources([tmp_path / name], ReadOptions(class_column="label"))
    with open_sources([tmp_path / name], SKIP) as sources:
        for _ in range(2):
            assert [(source.uri, source.class_id) for source in sources] == [(A, 1), (C, None), (D, 4)]
        assert sources.count == 3
        assert sources.bad_count == 4
        bad = list(sources.bad_rows())
    lines = [2, 3, 5, 6] if name == "list.jsonl" else [3, 4, 6, 8]
    assert [row.number for row in bad] == lines
    assert [bool(row.raw) for row in bad] == [False, True, False, True]
    assert bad[0].uri == "ftp://x"
    assert bad[0].of_class == "2"
    assert bad[0].keep == {"split": "x"}
    assert bad[2].keep == {"split": "y"}
    assert [row.raw for row in bad if row.raw] == [CONTENTS[name].split("\n")[number - 1] for number in lines[1::2]]


def test_bad_rows_of_text_and_parquet_are_left_out_too(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"# mine\n%s\nftp://x\n\xff\n%s\nno/such.jpg\n" % (A.encode(), B.encode()))
    with open_sources([tmp_path / "list.txt"], ReadOptions(skip_bad=True)) as sources:
        assert [source.uri for source in sources] == [A, B]
        bad = list(sources.bad_rows())
    assert [(row.number, row.uri) for row in bad][::2] == [(3, "ftp://x"), (6, str(tmp_path / "no/such.jpg"))]
    parquet.write_table(pa.table({"url": [A, None, "ftp://x", B]}), tmp_path / "list.parquet")
    with open_sources([tmp_path / "list.parquet"], ReadOptions(skip_bad=True)) as sources:
        assert [source.uri for source in sources] == [A, B]
        assert [row.sentence.partition(": ")[0] for row in sources.bad_rows()] == [
            f"{tmp_path}/list.parquet row 2", f"{tmp_path}/list.parquet row 3",
        ]  # fmt: skip


def test_a_limit_and_a_sample_count_good_rows_alone(tmp_path: Path) -> None:
    names = [f"s3://bucket/{n}.jpg" if n % 3 else f"ftp://{n}" for n in range(30_000)]
    path = tmp_path / "list.csv"
    path.write_text("url\n" + "\n".join(names))
    good = [name for name in names if name.startswith("s3")]
    for limit in (1, 2, 5000, 20_000, 30_000):
        with open_sources([path], ReadOptions(skip_bad=True, limit=limit)) as sources:
            assert [source.uri for source in sources] == good[:limit]
            assert sources.count == min(limit, 20_000)
            # What is behind the last good row is nobody's business.
            assert sources.bad_count == names.index(good[limit - 1]) + 1 - limit if limit < 20_000 else 10_000
    with open_sources([path], ReadOptions(skip_bad=True, sample=100)) as sources:
        drawn = [source.uri for source in sources]
        assert len(drawn) == sources.count == 100
        assert set(drawn) < set(good)


def test_a_file_that_comes_or_goes_meanwhile_does_not_shift_the_others(tmp_path: Path) -> None:
    """An image is known by its place: each time that a submission reads its list, it must give the same."""
    for name in ("a.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\nc.jpg\n")
    with open_sources([tmp_path / "list.txt"], ReadOptions(skip_bad=True)) as sources:
        (tmp_path / "b.jpg").write_bytes(b"x")
        (tmp_path / "c.jpg").unlink()
        assert list(sources) == [Source(path=tmp_path / "a.jpg"), Source(path=tmp_path / "c.jpg")]


def test_a_list_without_a_good_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("ftp://x\nftp://y\n")
    with pytest.raises(UsageError, match=r"none of the 2 rows can be used; the first: .*list\.txt line 1: ftp://x is"):
        open_sources([tmp_path / "list.txt"], ReadOptions(skip_bad=True))
    (tmp_path / "more.txt").write_text(A)
    with open_sources([tmp_path / "list.txt", tmp_path / "more.txt"], ReadOptions(skip_bad=True)) as sources:
        assert list(sources) == [Source(A)]
        assert sources.bad_count == 2


def test_what_is_wrong_with_the_list_as_a_whole_is_refused_as_ever(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"address\n{A}\n")
    with pytest.raises(UsageError, match="say with --uri-column"):
        open_sources([tmp_path / "list.csv"], ReadOptions(skip_bad=True))
    with pytest.raises(UsageError, match="--skip-bad leaves out rows of lists, and none of the arguments is a list"):
        open_sources([A], ReadOptions(skip_bad=True))


@pytest.mark.parametrize("name", ["bad.jsonl", "bad.csv"])
def test_bad_rows_are_a_list_that_is_read_again_once_it_is_corrected(
    here: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    Path("list.csv").write_text(f"url,label,split\nftp://x?token=abc,cat,train\n{A},1,test\n{B},2\n")
    read = ("--class-column", "label", "--keep-columns", "split", "--skip-bad", "--bad-rows", name)
    assert dry("list.csv", *read, "--network", "vgg16", "--mean", "0.5", "--name", "mine") == 0
    told = capsys.readouterr().err
    assert "left out: 2 rows that cannot be used" in told
    assert "list.csv line 2: ftp://x?*** is refused" in told
    assert "list.csv line 4: it has 2 cells where the header has 3" in told
    again = (
        f"gradcam submit {name} --class-column class --keep-columns split --network vgg16 --mean 0.5 --chunk-size 10\n"
    )
    assert again in told
    assert Path(name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match=r"line \d: ftp://x"):
        open_sources([name])
    corrected = Path(name).read_text().replace("ftp://x?token=abc", C)
    if name.endswith("csv"):
        rows = list(csv.DictReader(corrected.splitlines()))
    else:
        rows = [json.loads(line) for line in corrected.splitlines()]
    assert rows[1]["row"] == f"{B},2"
    rows[1] |= {"uri": B, "class": "2", "split": "test"}
    Path("corrected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open_sources(["corrected.jsonl"], ReadOptions(class_column="class", keep_columns=("split",))) as sources:
        assert list(sources) == [
            Source(C, class_name="cat", keep={"split": "train"}), Source(B, class_id=2, keep={"split": "test"}),
        ]  # fmt: skip


def test_a_file_of_bad_rows_that_was_corrected_is_never_written_over(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("list.txt").write_text(f"{A}\nftp://x\n")
    command = ("list.txt", "--skip-bad", "--bad-rows", "bad.jsonl")
    assert dry(*command) == 0
    written = Path("bad.jsonl").read_bytes()
    assert dry(*command) == 0  # the same again, as when a submission is continued
    assert Path("bad.jsonl").read_bytes() == written
    Path("bad.jsonl").write_text("corrected")
    capsys.readouterr()
    assert dry(*command) == 2
    assert "bad.jsonl is there already and holds something else: choose another --bad-rows" in capsys.readouterr().err
    assert Path("bad.jsonl").read_text() == "corrected"
    assert dry("list.txt", "--skip-bad") == 0
    assert sorted(path.name for path in here.iterdir()) == ["bad.jsonl", "list.txt"]  # a dry run changes nothing


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bad-rows", "x.jsonl"], "--bad-rows goes with --skip-bad"),
        (["--skip-bad", "--bad-rows", "x.parquet"], "as .jsonl or .csv, not as x.parquet"),
        (["--skip-bad", "--bad-rows", "x"], "x does not say what to write"),
        (["--skip-bad", "--bad-rows", "no/such/x.csv"], "cannot write no/such/x.csv"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_anything_is_sent(
    here: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    (here / "list.txt").write_text(f"{A}\nftp://x\n")
    assert dry("list.txt", *options) == 2
    assert words in capsys.readouterr().err


def test_many_bad_rows_are_kept_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("url,label\n" + "ftp://x,1\n" * 20_000 + f"{A},1\n")
    with open_sources([path], ReadOptions(skip_bad=True, class_column="label")) as sources:
        assert sources.bad_count == 20_000
        assert [row.number for row in sources.bad_rows()] == list(range(2, 20_002))
