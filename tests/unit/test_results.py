"""Filters, file names, tables and files that are whole or not there: what needs no server."""

from __future__ import annotations

import csv
import io
import stat
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from producer.jobs.model.errors import ServiceError, UsageError
from producer.jobs.model.items import Item
from producer.jobs.model.results import ExplainedClass, Failure, Prediction, Result, class_key
from producer.jobs.model.spec import JobSpec
from producer.output.atomic_file import atomic_file
from producer.output.checks import check_classes, check_reason
from producer.output.export import columns, write_csv, write_jsonl
from producer.output.failures import write_failures
from producer.output.filters import CAN_BE_ASKED, parse_where
from producer.output.ordering import ordered, parse_order
from producer.output.pictures import LocalNames, chosen_kinds, file_name

CAT = Result(
    index=3,
    uri="s3://photos/cats/kitten[1].jpg",
    id="cat 3",
    state="done",
    class_id=281,
    class_name="tabby",
    probability=0.5,
    layer="conv_head",
    flat=False,
    keep={"split": "val", "site": "=A1"},
    objects={"cam": "gradcam/job/images/00000003/kitten-n-cam.jpg"},
)
LOST = Result(index=4, uri="http://a.example/dogs/1.png", state="failed", reason="fetch", message='gone, "404"')
TWO = Result(
    index=5,
    uri="s3://photos/two.jpg",
    state="done",
    class_id=281,
    class_name="tabby",
    probability=0.5,
    flat=False,
    classes=(
        ExplainedClass(class_id=281, class_name="tabby", probability=0.5, flat=False),
        ExplainedClass(class_id=282, class_name="tiger cat", probability=0.25, flat=True),
    ),
    objects={"class281-cam": "p/class281-cam.jpg", "class282-cam": "p/class282-cam.jpg"},
)


@pytest.mark.parametrize(
    ("expressions", "indices"),
    [
        ([], [3, 4, 5]),
        (["class=281"], [3, 5]),
        (["class=282"], [5]),
        (["class=Tabby"], [3, 5]),
        (["class=tiger*"], [5]),
        (["class_name=281"], []),
        (["class_id=281"], [3, 5]),
        (["id=cat 3"], [3]),
        (["uri=*/cats/*.jpg"], [3]),
        (["uri=s3://photos/cats/kitten[1].jpg"], [3]),
        (["uri=s3://*"], [3, 5]),
        (["state=failed"], [4]),
        (["flat=false"], [3, 5]),
        (["flat=true"], []),
        (["reason=fetch"], [4]),
        (["keep.split=val"], [3]),
        (["keep.other=val"], []),
        (["probability<0.5"], []),
        (["probability<=0.5"], [3, 5]),
        (["probability >= .5"], [3, 5]),
        (["probability>0.4", "class=282"], [5]),
        (["probability==0.5"], [3, 5]),
        (["index>=4"], [4, 5]),
        (["index=4"], [4]),
        (["index!=4"], [3, 5]),
        (["probability!=0.5"], []),
        (["class!=282"], [3]),
        (["class!=tabby"], []),
        (["class!=tiger*"], [3]),
        (["uri!=*.jpg"], [4]),
        (["reason!=fetch"], []),
        (["reason != image"], [4]),
        (["state!=done"], [4]),
        (["flat!=true"], [3, 5]),
        (["keep.split!=train"], [3]),
    ],
)
def test_conditions_hold_of_the_images_they_name(expressions: list[str], indices: list[int]) -> None:
    where = parse_where(expressions)
    assert [result.index for result in (CAT, LOST, TWO) if where(result)] == indices


def test_failed_is_a_condition_beside_the_others() -> None:
    where = parse_where(["uri=*.png"], failed=True)
    assert [where(result) for result in (CAT, LOST)] == [False, True]


@pytest.mark.parametrize(
    "expression",
    [
        *("", "class", "zzz=red", "state=pending", "flat=maybe", "probability=high", "class>3"),
        *("id=", "class_id=tabby", "uri<3", "=3", "keep.=3"),
    ],
)
def test_a_wrong_condition_is_one_sentence_that_lists_what_can_be_asked(expression: str) -> None:
    with pytest.raises(UsageError) as told:
        parse_where([expression])
    assert str(told.value) == f"{expression!r} cannot be asked: ask {CAN_BE_ASKED}"


def test_a_mistyped_column_is_told_with_the_nearest() -> None:
    for expression, near in (("probabilty<0.5", "probability"), ("clas=tabby", "class"), ("resaon=fetch", "reason")):
        with pytest.raises(UsageError, match=rf"cannot be asked; the nearest (is|are) {near}"):
            parse_where([expression])


def test_a_kept_column_that_no_image_has_is_told_once_all_were_looked_at() -> None:
    where = parse_where(["keep.splt=val", "class=nobody"])
    assert [where(result) for result in (CAT, LOST, TWO)] == [False] * 3
    with pytest.raises(UsageError, match=r"column 'splt'; the nearest are split, site; it has split, site"):
        where.check_columns()
    where = parse_where(["keep.split=val", "class=nobody"])
    assert not where(CAT)
    where.check_columns()
    with pytest.raises(UsageError, match="it kept none"):
        parse_where(["keep.split=val"]).check_columns()


SPEC = JobSpec()
PRIORITIES = {"281 tabby": 3, "282 tiger cat": 2, "7": 1}


@pytest.mark.parametrize(
    "asked", ["class=281", "class=Tabby", "class_name=tiger cat", "class_id!=7", "class=7", "class=tab*", "class=z?"]
)
def test_classes_that_images_were_explained_for_can_be_asked(asked: str) -> None:
    check_classes(parse_where([asked]), SPEC, PRIORITIES, 6)


@pytest.mark.parametrize(
    ("asked", "near"),
    [("class=taby", "tabby"), ("class!=tiger cats", "tiger cat"), ("class_id=28", "28"), ("class_name=281", "281")],
)
def test_a_class_that_no_image_was_explained_for_is_told_with_the_nearest(asked: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"no image of this job was explained for a class.*{near}"):
        check_classes(parse_where([asked]), SPEC, PRIORITIES, 6)
    # The table does not know all of several classes an image, nor what Redis lost; labels name all classes there are.
    check_classes(parse_where([asked]), JobSpec(top_k=2), PRIORITIES, 6)
    check_classes(parse_where([asked]), SPEC, PRIORITIES, 7)
    labelled = JobSpec(labels=tuple(f"kind {n}" for n in range(30)))
    check_classes(parse_where(["class=28", "class=kind 3"]), labelled, PRIORITIES, 6)


def test_a_reason_that_nothing_fails_for_is_told_with_the_nearest() -> None:
    check_reason("fetch", {"fetch": 1})
    check_reason("timeout", {})  # a reason of ours, though none of this job's failed for it
    check_reason("crashed_worker", {})
    with pytest.raises(UsageError, match=r"'fetsh'; the nearest is fetch.*of this job: fetch \(1\)"):
        check_reason("fetsh", {"fetch": 1})


IMAGES = [
    CAT.model_copy(update={"index": n, "probability": p, "uri": f"s3://b/{9 - n}"})
    for n, p in enumerate([0.5, None, 0.9, 0.1, 0.5])
]


@pytest.mark.parametrize("at_once", [2, 100])
@pytest.mark.parametrize(
    ("sort", "limit", "indices"),
    [
        (None, None, [0, 1, 2, 3, 4]),
        (None, 2, [0, 1]),
        ("probability", None, [3, 0, 4, 2, 1]),
        ("-probability", None, [2, 0, 4, 3, 1]),
        ("probability", 3, [3, 0, 4]),
        ("-probability", 1, [2]),
        ("uri", None, [4, 3, 2, 1, 0]),
        ("-index", 9, [4, 3, 2, 1, 0]),
        ("keep.split", 2, [0, 1]),
        ("-keep.nothing", None, [0, 1, 2, 3, 4]),
    ],
)
def test_images_come_in_the_order_of_a_column_what_is_not_known_last(
    sort: str | None, limit: int | None, indices: list[int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.output.ordering._AT_ONCE", at_once)  # more lie on the disk, and are merged
    assert [result.index for result in ordered(iter(IMAGES), parse_order(sort), limit)] == indices


def test_a_column_that_nothing_is_sorted_by_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"the nearest (is|are) probability"):
        parse_order("probabilty")
    with pytest.raises(UsageError, match="sort by index"):
        parse_order("keep.")


def test_one_condition_that_is_no_list_is_told() -> None:
    with pytest.raises(UsageError, match="a list"):
        parse_where("class=281")


def names_of(*images: list[str]) -> list[list[str]]:
    names, given = LocalNames(), []
    for index, addresses in enumerate(images):
        result = CAT.model_copy(update={"index": index})
        given.append([names.of(result, "cam", address) for address in addresses])
        names.next_image()
    return given


def test_a_name_that_an_earlier_image_has_gets_the_index_with_all_its_kinds() -> None:
    first, second, other = names_of(["a/0/x-n-cam.jpg"], ["a/1/x-n-gb.jpg", "a/1/x-n-cam.jpg"], ["a/2/y-n-cam.jpg"])
    assert first == ["x-n-cam.jpg"]
    assert second == ["00000001-x-n-gb.jpg", "00000001-x-n-cam.jpg"]
    assert other == ["y-n-cam.jpg"]


def test_names_that_differ_in_case_alone_are_one_name() -> None:
    """Some file systems think so: the second would overwrite the first."""
    assert names_of(["Cat-n-cam.jpg"], ["cat-n-cam.jpg"]) == [["Cat-n-cam.jpg"], ["00000001-cat-n-cam.jpg"]]


def test_a_name_that_looks_like_one_with_an_index_is_not_overwritten() -> None:
    given = names_of(["00000002-x-n-cam.jpg"], ["x-n-cam.jpg"], ["x-n-cam.jpg"])
    assert given == [["00000002-x-n-cam.jpg"], ["x-n-cam.jpg"], ["00000002-00000002-x-n-cam.jpg"]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a-n-cam.jpg", "A-n-cam.JPG"),
        ("straße-n-cam.jpg", "STRASSE-n-cam.jpg"),
        ("\u017f-n-cam.jpg", "S-n-cam.jpg"),
        ("\u0131-n-cam.jpg", "I-n-cam.jpg"),
        ("é-n-cam.jpg", "É-n-cam.jpg"),
        ("x.jpg", "X.JPG"),
        ("x.jpg", "x.jpg"),
    ],
)
def test_names_that_some_system_takes_for_one_are_made_two(one: str, other: str) -> None:
    """Of two images, and of two pictures of one image, as only a forged manifest has them; each time the same."""
    for images in (
        [[one], [other]],
        [[one, other]],
        [["00000000-" + one], [one, other]],
        [["00000001-x.jpg"], [one, other]],
    ):
        given = [name for names in names_of(*images) for name in names]
        assert len({name.upper() for name in given} | {name.casefold() for name in given}) >= len(given)
        assert len({unicodedata.normalize("NFD", name.upper()).casefold() for name in given}) == len(given)
        assert [name for names in names_of(*images) for name in names] == given


@pytest.mark.parametrize("address", ["a/..", "a/../../etc/passwd", "/etc/passwd", "a/.bashrc", "a/", "a/" + "x" * 999])
def test_a_name_is_never_a_path_whatever_the_address_says(address: str) -> None:
    ((name,),) = names_of([address])
    assert "/" not in name
    assert not name.startswith(".")
    assert 0 < len(name) < 250


def test_a_picture_in_a_shard_gets_the_name_it_would_have_outside() -> None:
    address = "p/job/shards/00000003.tar#00000012.class281-cam.jpg"
    result = CAT.model_copy(update={"uri": "https://a.example/my%20cat.jpeg?x=1", "network": "timm/vgg16"})
    assert file_name(result, "class281-cam", address) == "my_cat-timm_vgg16-class281-cam.jpg"


def test_kinds_that_a_job_does_not_make_are_told_with_those_it_makes() -> None:
    spec = JobSpec(outputs=("cam", "gb"), raw=True)
    assert chosen_kinds(spec, ["raw", "cam"]) == ("cam", "raw")
    assert chosen_kinds(spec, []) == ("cam", "gb", "raw")
    with pytest.raises(UsageError, match="heatmap: it has cam, gb, raw"):
        chosen_kinds(spec, ["heatmap", "cam"])
    with pytest.raises(UsageError, match="a list"):
        chosen_kinds(spec, "cam")


def table_of(*results: Result, spec: JobSpec, keep: tuple[str, ...] = ()) -> list[dict[str, str]]:
    file = io.BytesIO()
    table = columns(spec, spec.outputs, keep, lambda key: f"s3://bucket/{key}")
    assert write_csv(results, table, file) == len(results)
    return list(csv.DictReader(io.StringIO(file.getvalue().decode(), newline="")))


def test_a_table_has_flat_columns_and_nothing_where_nothing_is_known() -> None:
    cat, lost = table_of(CAT, LOST, spec=JobSpec(outputs=("cam", "gb")), keep=("split", "site"))
    assert cat == {
        "index": "3", "uri": CAT.uri, "id": "cat 3", "state": "done", "class_id": "281", "class_name": "tabby",
        "probability": "0.5", "layer": "conv_head", "flat": "false", "label": "", "predicted": "",
        "predicted_probability": "", "correct": "", "reason": "", "message": "", "score": "",
        "cam": "s3://bucket/gradcam/job/images/00000003/kitten-n-cam.jpg", "gb": "",
        "keep.split": "val", "keep.site": "'=A1",  # no formula for a spreadsheet
    }  # fmt: skip
    assert {name: value for name, value in lost.items() if value} == {
        "index": "4", "uri": LOST.uri, "state": "failed", "reason": "fetch", "message": 'gone, "404"'
    }  # fmt: skip


def test_of_several_classes_each_has_its_columns() -> None:
    (two,) = table_of(TWO, spec=JobSpec(outputs=("cam",), top_k=3))
    assert (two["class_id"], two["cam"]) == ("281", "s3://bucket/p/class281-cam.jpg")
    second = ("282", "tiger cat", "0.25", "true", "s3://bucket/p/class282-cam.jpg")
    assert tuple(two[f"{name}.2"] for name in ("class_id", "class_name", "probability", "flat", "cam")) == second
    assert (two["class_id.3"], two["cam.3"]) == ("", "")


WRONG = CAT.model_copy(
    update={"label": "tiger cat", "predicted": "tabby", "predicted_probability": 0.9, "correct": False}
)


def test_a_table_has_the_truth_beside_the_prediction_and_what_was_explained() -> None:
    (row,) = table_of(WRONG, spec=JobSpec(outputs=("cam",)), keep=("split", "site"))
    names = ("label", "predicted", "predicted_probability", "correct", "class_name", "probability")
    assert [row[name] for name in names] == ["tiger cat", "tabby", "0.9", "false", "tabby", "0.5"]
    (row,) = table_of(TWO, spec=JobSpec(outputs=("cam",), explain="both"))
    assert (row["class_name.2"], row["cam.2"]) == ("tiger cat", "s3://bucket/p/class282-cam.jpg")


@pytest.mark.parametrize(
    ("asked", "holds"),
    [
        ("correct=false", True),
        ("correct!=false", False),
        ("correct=true", False),
        ("label=tiger*", True),
        ("label!=tabby", True),
        ("predicted=tabby", True),
        ("predicted_probability>0.8", True),
    ],
)
def test_images_are_asked_for_by_what_they_show_and_were_taken_for(asked: str, holds: bool) -> None:
    assert [parse_where([asked])(result) for result in (WRONG, LOST, TWO)] == [holds, False, False]


UNKNOWN = WRONG.model_copy(
    update={"correct": None, "label": "tigre", "top5": (Prediction(class_id=281, probability=0.9),) * 2}
)


def test_labels_that_are_no_class_are_asked_for_and_counted_apart() -> None:
    """Else an audit whose labels are misspelt says that all of them are right."""
    one_class = UNKNOWN.model_copy(update={"top5": UNKNOWN.top5[:1]})
    boxes = UNKNOWN.model_copy(update={"boxes": ()})
    images = (UNKNOWN, WRONG, LOST, TWO, one_class, boxes)
    assert [parse_where(["correct=unknown"])(result) for result in images] == [True] + [False] * 5
    assert [class_key(result)[0] for result in (UNKNOWN, one_class, boxes)] == ["?", "2", "2"]


@pytest.mark.parametrize(("correct", "key"), [(None, "281 tabby"), (True, "+281 tabby"), (False, "-281 tabby")])
def test_what_an_image_counts_as_says_whether_it_is_correct(correct: bool | None, key: str) -> None:
    assert class_key(CAT.model_copy(update={"correct": correct})) == key


def test_kept_columns_that_come_late_are_never_left_out_silently() -> None:
    with pytest.raises(UsageError, match="--jsonl"):
        table_of(LOST, CAT, spec=JobSpec())


def test_lines_of_json_name_the_pictures_that_are_asked_for() -> None:
    file = io.BytesIO()
    write_jsonl([CAT, TWO], file, lambda key: key, kinds=["gb"])
    assert [Result.model_validate_json(line).objects for line in file.getvalue().splitlines()] == [{}, {}]


def test_lines_of_json_and_tables_name_pictures_alike() -> None:
    file = io.BytesIO()
    write_jsonl([CAT], file, lambda key: f"s3://bucket/{key}")
    (cat,) = table_of(CAT, spec=JobSpec(outputs=("cam",)), keep=("split", "site"))
    assert Result.model_validate_json(file.getvalue()).objects == {"cam": cat["cam"]}


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(TypeError), atomic_file(path) as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert path.read_bytes() == b"before"
    with atomic_file(path) as file:
        file.write(b"all of it")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"all of it"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_goes_on_pointing_to_the_file_and_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    with atomic_file(tmp_path / "link") as file:
        file.write(b"all")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"all"
    with atomic_file(Path("/dev/null")) as file:
        file.write(b"all")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_full_disk_is_told_from_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """What was typed is right: with room the same command goes on."""
    full = "disk is full or broken; make room, then the same command goes on"
    with pytest.raises(ServiceError, match=full), atomic_file(Path("/dev/full")) as file:
        file.write(b"a picture")
    with pytest.raises(UsageError, match="cannot write"), atomic_file(tmp_path / "nowhere" / "file"):
        pass


@pytest.mark.parametrize("name", ["nowhere/file", "folder"])
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="cannot write"), atomic_file(tmp_path / name) as file:
        file.write(b"x")


FAILURES = [
    Failure(
        index=1,
        item=Item(uri="https://u:word@a.example/1.png", class_id=7, label="cat"),
        reason="fetch",
        message="gone",
    ),
    Failure(
        index=2,
        item=Item(uri="s3://b/2", id="two", class_name="tabby", keep={"split": "val", "reason": "mine"}),
        reason="image",
        message="broken",
    ),
]


def test_failures_as_a_table_are_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "failed.csv"
    path.write_text("open to all")
    assert write_failures(lambda: iter(FAILURES), path) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    assert list(rows[0]) == ["uri", "id", "class", "label", "reason", "message", "split", "keep.reason"]
    assert list(rows[0].values()) == ["https://u:word@a.example/1.png", "", "7", "cat", "fetch", "gone", "", ""]
    assert list(rows[1].values()) == ["s3://b/2", "two", "tabby", "", "image", "broken", "val", "mine"]


@pytest.mark.parametrize("name", ["failed.parquet", "failed.txt", "failed"])
def test_failures_are_written_as_lists_that_can_be_submitted(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.jsonl"):
        write_failures(lambda: iter(FAILURES), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--csv", "--jsonl"], "choose one"),
        (["--csv", "--urls"], "choose one"),
        (["--output", "x.csv"], "--output goes with"),
        (["--parquet", "x.parquet", "--output", "x"], "--output goes with"),
        (["--expires", "1h"], "--expires goes with --urls"),
        (["--failed"], "have no pictures"),
        (["--output-dir", ""], "needs the name of a folder"),
        (["--urls", "--expires", "soon"], "write 90s, 15m"),
    ],
)
def test_options_that_do_not_go_together_are_told_before_settings_are_read(arguments: list[str], words: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "producer.cli", "results", "job", *arguments],
        capture_output=True, text=True, check=False, timeout=60, env={},
    )  # fmt: skip
    assert run.returncode == 2
    assert words in run.stderr


def test_help_loads_nothing_heavy_and_shows_examples() -> None:
    heavy = ("boto3", "pydantic", "rich", "pyarrow", "redis", "celery")
    code = (
        "import sys\nfrom producer.cli import cli\n"
        "for verb in ('results', 'failures'):\n    try:\n        cli([verb, '--help'])\n    except SystemExit:\n"
        f"        pass\nprint(*(name for name in {heavy!r} if name in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    *lines, loaded = run.stdout.splitlines()
    assert loaded == ""
    assert sum(line == "Examples:" for line in lines) == 2
