"""What arguments become: addresses, files, folders, patterns and lists, all together and in their order."""

from __future__ import annotations

import gc
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.input.selection import describe_left_out, describe_no_files
from producer.input.sources import ReadOptions, Source, open_sources, printable
from producer.jobs.model.errors import UsageError

A, B, C = "s3://bucket/a.jpg", "https://example.org/b.jpg", "s3://bucket/c.jpg"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b.JPG", "a.png", "notes.md", "deep/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def named(arguments: Sequence[Any]) -> list[Source]:
    with open_sources(arguments) as sources:
        return list(sources)


def below(root: Path, arguments: Sequence[Any], reading: ReadOptions | None = None) -> list[str]:
    with open_sources(arguments, reading or ReadOptions()) as sources:
        found = [source.path.relative_to(root).as_posix() for source in sources if source.path]
        assert sources.count == len(found)
        return found


# --- single images ---------------------------------------------------------------------------------------------------


def test_addresses_stay_as_they_are() -> None:
    uris = ["s3://bucket/a.jpg", "https://example.org/a.jpg?size=2", "file:///data/a.jpg", "s3://bucket/ä b.jpg"]
    assert [source.uri for source in named(uris)] == uris


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("nonsense", "neither a file nor a folder"),
        ("ftp://host/a.jpg", "s3://"),
        ("s3://bucket/prefix/", "no object store"),
        ("s3://bucket", "key"),
        ("s3:///", "bucket"),
        ("s3://b/", "bucket's name"),
        ("s3://bucket/list.csv", "no object store"),
        ("http://user:word@host/a.jpg", "password|credentials|user"),
        ("http://user:word@host/list.csv", "password|credentials|user"),
        ("file:///data/list.csv", "a list on the workers' machines"),
        ("a\0b", "neither a file"),
        ("\ud800", "neither a file"),
        ("/dev/null", "a pipe or a device"),
        ("~nobody-of-that-name/a.jpg", "neither a file"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_sent(argument: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        named([argument])
    assert "word@" not in str(caught.value)
    str(caught.value).encode()


def test_a_file_that_is_no_image_is_an_error(photos: Path) -> None:
    with pytest.raises(UsageError, match=r"notes\.md is not an image: .*; lists are \.csv"):
        named([str(photos / "notes.md")])


def test_nothing_at_all_is_an_error() -> None:
    with pytest.raises(UsageError, match="nothing to explain"):
        named([])


def test_an_empty_name_is_an_error_and_not_the_folder_one_stands_in() -> None:
    """`gradcam submit "$UNSET"` would upload everything there is."""
    with pytest.raises(UsageError, match="empty name"):
        named([""])


def test_a_path_object_is_as_good_as_its_name_and_a_single_name_is_no_list(photos: Path) -> None:
    assert len(named([photos])) == 3
    for alone in (str(photos), photos, Source(path=photos)):
        with pytest.raises(UsageError, match="must be a list"):
            named(alone)  # type: ignore[arg-type]


def test_a_file_name_that_is_no_utf8_can_be_sent_and_shown(tmp_path: Path) -> None:
    (tmp_path / "bad\udcff.jpg").write_bytes(b"x")
    (source,) = named([tmp_path])
    assert source.path is not None
    assert printable(source.path.name) == "bad\ufffd.jpg"
    with pytest.raises(UsageError, match=r"other\\udcff\.jpg"):
        named([str(tmp_path / "other\udcff.jpg")])


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_images_sorted_and_nothing_else(photos: Path) -> None:
    assert below(photos, [str(photos)]) == ["a.png", "b.JPG", "deep/c.webp"]


def test_all_names_that_pictures_have_are_taken_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    taken = ["a.jpg", "b.jfif", "c.jpe", "d.mpo", "e.JPG", "f.apng", "g.jif", "h.JPEG"]
    tree(tmp_path, *taken, "x/1.heic", "x/2.HEIC", "notes.txt", "README", ".DS_Store", "clip.mp4")
    with open_sources([tmp_path]) as sources:
        assert sorted(source.path.name for source in sources if source.path) == sorted(taken)
        for _ in range(2):
            assert sources.left_out == {".heic": 2, "without a suffix": 2, ".txt": 1, ".mp4": 1}
            assert len(list(sources)) == len(taken)
    assert describe_left_out(sources.left_out) == "2 .heic, 2 without a suffix, 1 .mp4, 1 .txt"
    assert [source.path for source in named([tmp_path / "b.jfif"])] == [tmp_path / "b.jfif"]


def test_what_patterns_leave_out_is_not_counted_among_what_is_no_image(tmp_path: Path) -> None:
    tree(tmp_path, "a.jpg", "b.heic", "x/c.heic", "x/d.txt")
    for reading, pattern, left_out in (
        (ReadOptions(exclude=("x/*",)), "", {".heic": 1}),
        (ReadOptions(include=("a*",)), "", {}),
        (ReadOptions(), "/*", {".heic": 2, ".txt": 1}),
        (ReadOptions(), "/a*", {}),
    ):
        with open_sources([f"{tmp_path}{pattern}"], reading) as sources:
            assert sources.left_out == left_out


def test_a_folder_of_other_files_says_which_there_are(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{n}.heic" for n in range(1200)), *(f"x.{n}" for n in range(1200)))
    with pytest.raises(UsageError, match=r"; left out: 1,200 \.heic, 1 \.\d+, .*, [0-9,]+ others$") as caught:
        named([tmp_path])
    assert len(str(caught.value)) < 500


def test_a_folder_is_sorted_as_paths_are(tmp_path: Path) -> None:
    names = ["a b/1.jpg", "a/1.jpg", "a/b/2.jpg", "a.jpg", "a-b/1.jpg", "B.jpg", "a/b.jpg", "ä.jpg", ".h/1.jpg"]
    tree(tmp_path, *names)
    assert below(tmp_path, [tmp_path]) == [path.relative_to(tmp_path).as_posix() for path in sorted(
        path for path in tmp_path.rglob("*") if path.is_file()
    )]  # fmt: skip


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no images under .*: looked for \.apng, \.bmp"):
        named([str(tmp_path)])


def test_folders_in_a_circle_of_links_have_an_end(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.jpg", "b/2.jpg")
    for link, target in {
        "a/self": ".",
        "a/up": "..",
        "a/over": "../b",
        "b/over": "../a",
        "a/gone": "x",
        "a/l.jpg": "l.jpg",
    }.items():
        (tmp_path / link).symlink_to(target)
    assert below(tmp_path, [tmp_path]) == ["a/1.jpg", "a/over/2.jpg", "b/2.jpg", "b/over/1.jpg"]


def test_folders_that_are_all_linked_to_each_other_are_told(tmp_path: Path) -> None:
    """There are ten factorial paths; nobody wants to wait for them, nor for some of them to be left out."""
    for folder in "abcdefghij":
        tree(tmp_path, f"{folder}/1.jpg")
        for other in set("abcdefghij") - {folder}:
            (tmp_path / folder / other).symlink_to(f"../{other}")
    with pytest.raises(UsageError, match="behind 5 links to folders"):
        named([tmp_path])


def test_links_to_folders_and_images_are_followed(tmp_path: Path) -> None:
    """Data sets are often made of links."""
    tree(tmp_path, "store/1.jpg", "store/2.jpg", "set/x.jpg")
    (tmp_path / "set/cat").symlink_to("../store")
    (tmp_path / "set/dog").symlink_to("../store")
    (tmp_path / "set/y.jpg").symlink_to("../store/2.jpg")
    (tmp_path / "set/z.jpg").symlink_to("../store/gone.jpg")
    assert below(tmp_path / "set", [tmp_path / "set"], ReadOptions(follow_links=True)) == [
        *("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg", "x.jpg", "y.jpg")
    ]


def test_names_of_images_without_a_file_behind_them_are_counted(tmp_path: Path) -> None:
    """A checkout of DVC or git-annex without its data is links that lead nowhere."""
    for link in ("a.jpg", "b.jpg"):
        (tmp_path / link).symlink_to("objects/gone")
    (tmp_path / "notes").symlink_to("nowhere")
    os.mkfifo(tmp_path / "c.png")
    told = r"left out: 2 links that lead nowhere, 1 pipe, socket or device$"
    with pytest.raises(UsageError, match=told):
        named([tmp_path])
    tree(tmp_path, "d.jpg")
    with open_sources([tmp_path]) as sources:
        assert sources.count == 1
        assert describe_no_files(sources.left_out) == "2 links that lead nowhere, 1 pipe, socket or device"
        assert describe_left_out(sources.left_out) == ""


def test_what_is_deep_is_found_too(tmp_path: Path) -> None:
    folder = os.fspath(tmp_path)
    try:
        while len(folder) < 3000:
            folder += "/d"
            os.mkdir(folder)
        Path(folder, "a.jpg").write_bytes(b"x")
        assert len(named([tmp_path])) == 1
    finally:
        # pytest's own removal calls itself for each folder.
        Path(folder, "a.jpg").unlink()
        while folder != os.fspath(tmp_path):
            os.rmdir(folder)
            folder = os.path.dirname(folder)


def test_patterns_choose_from_a_folder(tmp_path: Path) -> None:
    tree(tmp_path, "train/a.png", "train/b.jpg", "train/deep/c.png", "val/a.png", "d.png", "mask")
    assert below(tmp_path, [tmp_path], ReadOptions(include=("train/*",))) == [
        "train/a.png",
        "train/b.jpg",
        "train/deep/c.png",
    ]
    assert below(tmp_path, [tmp_path], ReadOptions(include=("*.png",), exclude=("*/deep/*", "val/*"))) == [
        "d.png",
        "train/a.png",
    ]
    assert below(tmp_path, [tmp_path], ReadOptions(exclude=("*.png",))) == ["train/b.jpg"]
    assert below(tmp_path, [tmp_path], ReadOptions(include=("mask", "D*"))) == ["mask"]
    with pytest.raises(UsageError, match=r"no images under .*: looked for those of --include x --exclude y"):
        open_sources([tmp_path], ReadOptions(include=("x",), exclude=("y",)))
    with pytest.raises(UsageError, match="none of the arguments is one"):
        open_sources([A], ReadOptions(include=("x",)))


def test_a_folder_that_changed_since_it_was_checked_is_told(photos: Path) -> None:
    sources = open_sources([photos])
    (photos / "new.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="has changed since it was checked"):
        list(sources)


# --- patterns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["1.jpg", "a/.9.jpg", "a/2.jpg", "a/b/3.png", "a/b/c/4.jpg", "z/5.jpg", "z/b/6.jpg"]),
        ("*.jpg", ["1.jpg"]),
        ("*/*.jpg", ["a/2.jpg", "z/5.jpg"]),
        ("**", ["1.jpg", ".h/8.jpg", "a/.9.jpg", "a/2.jpg", "a/b/3.png", "a/b/c/4.jpg", "z/5.jpg", "z/b/6.jpg"]),
        ("**/*.jpg", ["1.jpg", "a/2.jpg", "a/b/c/4.jpg", "z/5.jpg", "z/b/6.jpg"]),
        ("a/**/*.jpg", ["a/2.jpg", "a/b/c/4.jpg"]),
        ("**/b/**/*", ["a/b/3.png", "a/b/c/4.jpg", "z/b/6.jpg"]),
        ("**/b", ["a/b/3.png", "a/b/c/4.jpg", "z/b/6.jpg"]),
        ("**/**/3.*", ["a/b/3.png"]),
        ("?/[0-9].jp*", ["a/2.jpg", "z/5.jpg"]),
        ("[!a]/*", ["z/5.jpg", "z/b/6.jpg"]),
        (".*/*", [".h/8.jpg"]),
        ("a/.*", ["a/.9.jpg"]),
        ("*/x[[]1].gif", ["q/x[1].gif"]),
    ],
)
def test_a_pattern_means_what_it_means_to_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: list[str]
) -> None:
    tree(
        tmp_path,
        "1.jpg",
        "a/2.jpg",
        "a/b/3.png",
        "a/b/c/4.jpg",
        "z/5.jpg",
        "z/b/6.jpg",
        "a/7.txt",
        ".h/8.jpg",
        "a/.9.jpg",
    )
    if "x" in pattern:
        tree(tmp_path, "q/x[1].gif")
    expected = sorted(expected, key=lambda name: name.split("/"))
    assert below(tmp_path, [f"{tmp_path}/{pattern}"]) == expected
    monkeypatch.chdir(tmp_path)
    assert [str(source.path) for source in named([pattern])] == expected


def test_a_name_that_is_there_is_no_pattern(tmp_path: Path) -> None:
    tree(tmp_path, "x[1].jpg", "x1.jpg")
    assert below(tmp_path, [f"{tmp_path}/x[1].jpg"]) == ["x[1].jpg"]


def test_a_pattern_that_nothing_matches_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no images match .*/\*\.jpg"):
        named([f"{tmp_path}/*.jpg"])
    with pytest.raises(UsageError, match=r"nothing/ cannot be searched|nothing cannot be searched"):
        named([f"{tmp_path}/nothing/*.jpg"])
    with pytest.raises(UsageError, match=r"no lists match"):
        named([f"{tmp_path}/*.csv"])


def test_a_pattern_of_lists_is_those_lists(tmp_path: Path) -> None:
    (tmp_path / "2.csv").write_text(f"uri\n{B}\n")
    (tmp_path / "1.csv").write_text(f"uri\n{A}\n")
    (tmp_path / "3.jpg").write_bytes(b"x")
    assert [source.uri for source in named([f"{tmp_path}/*.csv"])] == [A, B]


def test_a_pattern_enters_no_folder_that_it_cannot_mean(tmp_path: Path) -> None:
    tree(tmp_path, "2024/a.jpg")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "other").mkdir()
    for n in range(7):
        (tmp_path / "other" / f"{n}").symlink_to(tmp_path)
    assert below(tmp_path, [f"{tmp_path}/20*/*.jpg"]) == ["2024/a.jpg"]


# --- a class, an id and columns of one's own -------------------------------------------------------------------------


def test_what_is_said_of_a_folder_or_list_is_said_of_each_image(photos: Path) -> None:
    (photos / "list.csv").write_text(f"uri,label,id\n{A},1,x\n{B},,\n")
    own = [
        Source(path=photos / "deep", class_name="cat", keep={"split": "train"}),
        Source(path=photos / "list.csv", class_id=3),
        Source(path=photos / "list.csv"),
        Source(uri=C, id="mine", class_id=7),
    ]
    found = list(open_sources(own, ReadOptions(class_column="label", id_column="id")))
    assert found == [
        Source(path=photos / "deep/c.webp", class_name="cat", keep={"split": "train"}),
        Source(A, id="x", class_id=3),
        Source(B, class_id=3),
        Source(A, id="x", class_id=1),
        Source(B),
        Source(C, id="mine", class_id=7),
    ]


@pytest.mark.parametrize(
    "source",
    [
        Source(),
        Source(uri="ftp://x"),
        Source(path=Path("nothing.jpg")),
        Source(uri=A, class_id=-1),
        Source(uri=A, class_id=2**31),
        Source(uri=A, class_name=""),
        Source(uri=A, class_name="x" * 201),
        Source(uri=A, id="x" * 1025),
    ],
)
def test_a_source_is_checked_as_if_it_had_been_typed(source: Source) -> None:
    with pytest.raises(UsageError):
        open_sources([source])


# --- all arguments together ------------------------------------------------------------------------------------------


def test_arguments_keep_their_order(photos: Path) -> None:
    (photos / "list.txt").write_text(f"{B}\n{C}\n")
    arguments: list[str | Path | Source] = [
        A,
        str(photos / "list.txt"),
        B,
        photos / "a.png",
        photos / "deep",
        Source(uri=C),
    ]
    with open_sources(arguments) as sources:
        found = [source.uri or source.path for source in sources]
    assert found == [A, B, C, B, photos / "a.png", photos / "deep/c.webp", C]


def test_every_loop_begins_anew_whatever_became_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"s3://bucket/{n}.jpg\n" for n in range(50_000)))
    with open_sources([tmp_path / "list.txt", A]) as sources:
        assert sources.count == 50_001
        first, second = iter(sources), iter(sources)
        assert next(first) == next(second) == Source("s3://bucket/0.jpg")
        assert sum(1 for _ in second) == 50_000
        assert next(first) == Source("s3://bucket/1.jpg")
        assert sum(1 for _ in sources) == 50_001


@pytest.mark.parametrize("content", [f"{A}\n# no\n\nphotos/a.jpg\n", f'{{"uri":"{A}"}}\n{{"uri":"photos/a.jpg"}}\n'])
def test_standard_input_is_a_list_of_lines_or_of_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    tree(tmp_path, "photos/a.jpg")
    monkeypatch.chdir(tmp_path)
    reader, writer = os.pipe()
    os.write(writer, content.encode())
    os.close(writer)
    reading = ReadOptions(allow_local=True)
    with open(reader, "rb") as pipe, open_sources([B, "-"], reading, stdin=pipe) as sources:
        for _ in range(2):
            assert list(sources) == [Source(B), Source(A), Source(path=Path("photos/a.jpg"))]
        assert sources.count == 3


def test_what_is_wrong_with_standard_input_is_told_with_its_line() -> None:
    with pytest.raises(UsageError, match="standard input names no images"):
        open_sources(["-"], stdin=io.BytesIO())
    with pytest.raises(UsageError, match="standard input line 2: ftp://x is refused"):
        open_sources(["-"], stdin=io.BytesIO(f"{A}\nftp://x\n".encode()))
    with pytest.raises(UsageError, match="standard input can be read once only"):
        open_sources(["-", "-"], stdin=io.BytesIO(A.encode()))


def test_a_pipe_that_cannot_be_kept_says_where_room_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match=r"cannot be kept in .*nothing .*: name a folder with more room in TMPDIR"):
        open_sources(["-"], stdin=io.BytesIO(A.encode()))


def test_nothing_is_left_open_or_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gc.collect()  # what earlier tests left
    before = set(os.listdir("/proc/self/fd"))
    sources = open_sources(["-"], stdin=io.BytesIO(f"{A}\n".encode() * 100_000))
    iterator = iter(sources)
    next(iterator)
    assert not any(tmp_path.iterdir())
    del sources
    assert sum(1 for _ in iterator) == 99_999
    del iterator
    assert set(os.listdir("/proc/self/fd")) <= before  # another test's may be closed meanwhile
    with open_sources(["-"], stdin=io.BytesIO(A.encode())) as sources:
        pass
    assert set(os.listdir("/proc/self/fd")) <= before  # another test's may be closed meanwhile
    with pytest.raises(ValueError, match="closed"):
        list(sources)


# --- some of them ----------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> list[Any]:
    """A thousand and two images, in three arguments."""
    (tmp_path / "1.txt").write_text("".join(f"s3://bucket/{n}.jpg\n" for n in range(600)))
    (tmp_path / "2.csv").write_text("uri\n" + "".join(f"s3://bucket/{n}.jpg\n" for n in range(600, 1000)))
    return [tmp_path / "1.txt", A, tmp_path / "2.csv", B]


@pytest.mark.parametrize("limit", [1, 599, 600, 601, 602, 1001, 1002, 5000])
def test_a_limit_counts_over_all_arguments(many: list[Any], limit: int) -> None:
    everything = list(open_sources(many))
    with open_sources(many, ReadOptions(limit=limit)) as sources:
        assert sources.count == min(limit, 1002)
        assert list(sources) == everything[:limit]


def test_what_is_behind_the_limit_need_not_be_right(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{A}\n{B}\nftp://x\n")
    (tmp_path / "empty.csv").write_text("")
    arguments = [tmp_path / "list.txt", tmp_path / "empty.csv"]
    assert len(list(open_sources(arguments, ReadOptions(limit=2)))) == 2
    with pytest.raises(UsageError, match="line 3"):
        open_sources(arguments, ReadOptions(limit=3))


@pytest.mark.parametrize("count", [1, 10, 1001, 1002, 5000])
def test_a_sample_keeps_the_order_and_is_the_same_for_the_same_seed(many: list[Any], count: int) -> None:
    everything = list(open_sources(many))
    with open_sources(many, ReadOptions(sample=count)) as sources:
        drawn = list(sources)
        assert sources.count == len(drawn) == len(set(drawn)) == min(count, 1002)
        assert list(sources) == drawn
    assert [source for source in everything if source in set(drawn)] == drawn
    assert list(open_sources(many, ReadOptions(sample=count))) == drawn
    assert (list(open_sources(many, ReadOptions(sample=count, seed=1))) == drawn) == (count >= 1002)


def test_a_sample_is_drawn_evenly(many: list[Any]) -> None:
    times: dict[Source, int] = {}
    for seed in range(300):
        for source in open_sources(many, ReadOptions(sample=100, seed=seed)):
            times[source] = times.get(source, 0) + 1
    # Each of 1002 is expected 29.9 times, with a deviation of 5.2.
    assert len(times) == 1002
    assert min(times.values()) > 29.9 - 5 * 5.2
    assert max(times.values()) < 29.9 + 5 * 5.2


def test_a_sample_with_a_limit_is_drawn_from_the_first(many: list[Any]) -> None:
    drawn = list(open_sources(many, ReadOptions(limit=20, sample=10)))
    assert len(drawn) == 10
    assert set(drawn) < {Source(f"s3://bucket/{n}.jpg") for n in range(20)}


def test_a_limit_or_sample_beyond_64_bits_is_told() -> None:
    for reading in ({"limit": 10**23}, {"sample": 2**63}):
        with pytest.raises(UsageError, match="must be 9,223,372,036,854,775,807 or less"):
            ReadOptions(**reading)
    with open_sources([A, B], ReadOptions(limit=2**63 - 1, sample=2**63 - 1)) as sources:
        assert [source.uri for source in sources] == [A, B]


@pytest.mark.parametrize("number", [0, -1])
def test_a_limit_or_sample_of_nothing_is_told(number: int) -> None:
    with pytest.raises(UsageError, match="--limit must be 1 or more"):
        ReadOptions(limit=number)
    with pytest.raises(UsageError, match="--sample must be 1 or more"):
        ReadOptions(sample=number)


@given(st.lists(st.integers(0, 5), max_size=5), st.none() | st.integers(1, 12), st.none() | st.integers(1, 12))
@settings(deadline=None)
def test_count_says_how_many_there_will_be(sizes: list[int], limit: int | None, sample: int | None) -> None:
    arguments = [f"s3://bucket/{place}-{n}.jpg" for place, size in enumerate(sizes) for n in range(size)]
    if not arguments:
        return
    sources = open_sources(arguments, ReadOptions(limit=limit, sample=sample))
    expected = min(number for number in (len(arguments), limit, sample) if number is not None)
    assert sources.count == len(list(sources)) == expected
