"""What a job made, on a real store: read as a stream, downloaded, filtered, exported; pictures by a real worker."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import shlex
import stat
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from budget import either
from command import gradcam, gradcam_process
from s3_servers import proxied

from producer.client.client import Client
from producer.input.sources import Source
from producer.jobs.model import keys
from producer.jobs.model.errors import StoreError, UnknownJob, UsageError
from producer.jobs.model.results import Prediction, Result
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import JobState
from producer.output.objects import Objects

NETWORK = "efficientnet_lite0"
PHOTOS = Path(str(__import__("skimage").__file__)).parent / "data"
COFFEE, CAT, ROCKET = (str(PHOTOS / name) for name in ("coffee.png", "chelsea.png", "rocket.jpg"))
LINES, SMALL, CHUNK = either(10_000, 20_000), 2_000, 200


def line(index: int, objects: dict[str, str] | None = None) -> Result:
    """A line as long as a worker's."""
    guess = Prediction(class_id=index % 10, class_name=f"class number {index % 10}", probability=index % 100 / 100)
    if index % 50 == 0:
        return Result(index=index, uri=f"s3://photos/{index}.jpg", state="failed", reason="fetch", message="gone")
    return Result(
        index=index,
        uri=f"s3://photos/train/n02123045/n02123045_{index}.JPEG",
        id=f"photo {index}",
        state="done",
        class_id=guess.class_id,
        class_name=guess.class_name,
        probability=guess.probability,
        top5=(guess,) * 5,
        network=NETWORK,
        layer="conv_head",
        flat=False,
        guided_relus=49,
        random_weights=False,
        keep={"split": "val"} if index % 3 == 0 else None,
        objects=objects or {"cam": f"gradcam/x/images/{index:08d}/n02123045_{index}-{NETWORK}-cam.jpg"},
        seconds=dict.fromkeys(("fetch", "decode", "explain", "render", "encode", "upload"), 0.001234),
    )


def write_part(client: Client, job: str, chunk: int, results: Iterable[Result], *, token: int = 1) -> None:
    """As a worker does: a part of the manifest, then the bits."""
    written = list(results)
    text = "\n".join(result.line for result in written)
    client.storage.put(keys.manifest(client.storage.prefix, job, chunk, token, 0, 0), text.encode())
    bits = client.table.redis.bitfield(f"gradcam:job:{job}:bits")
    for result in written:
        bits.set("u2", f"#{result.index}", 1 if result.state == "done" else 2)
    bits.execute()


def make_job(client: Client, job: str, **spec: object) -> str:
    created = client.table.create(job, JobSpec(network=NETWORK, store=client.storage.place, **spec), lifetime_s=3600)
    client.table.adopt(job, created.life, 0)  # the tokens of these tests are small numbers
    return job


def fill(job: str, lines: int) -> str:
    """Lines of a job in chunks, within a chunk in no order; chunk 7 was explained a second time, in part."""
    client = Client.from_env()
    make_job(client, job, outputs=("cam",), chunk_size=CHUNK)
    for chunk in range(lines // CHUNK):
        indices = range(chunk * CHUNK, (chunk + 1) * CHUNK)
        write_part(client, job, chunk, (line(index) for index in sorted(indices, key=lambda n: n * 7919 % CHUNK)))
    again = line(1550).model_copy(update={"state": "done", "reason": None, "message": None})
    write_part(client, job, 7, [again, line(1551)], token=2)
    return job


@pytest.fixture(scope="module")
def volume(stack: object) -> str:
    return fill("volume", LINES)


@pytest.fixture(scope="module")
def small(stack: object) -> str:
    return fill("small", SMALL)


def test_millions_of_lines_come_in_order_and_memory_stays_flat(client: Client, volume: str) -> None:
    next(client.results(volume))  # what is imported and connected on the way is not counted
    tracemalloc.start()
    try:
        results = client.results(volume)
        count = sum(result.index == index for index, result in enumerate(results))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == LINES
    # All lines as objects take 65 MB, or 130.
    assert peak_bytes < 40e6


def test_the_command_prints_a_line_of_json_an_image(client: Client, small: str) -> None:
    printed = gradcam("results", small, "--jsonl").stdout
    assert [json.loads(text)["index"] for text in printed.splitlines()] == list(range(SMALL))
    assert [result.state for result in client.results(small, where=["index=1550"])] == ["done"]
    failed = gradcam("results", small, "--json", "--failed", "--where", "index<=200").stdout.splitlines()
    assert [json.loads(text)["index"] for text in failed] == [0, 50, 100, 150, 200]
    some = client.results(small, where=["class=class number 7", "probability>=0.9", "index<200"])
    assert [result.index for result in some] == [97, 197]


def test_a_table_goes_to_stdout_or_to_a_file_that_is_whole_or_not_there(
    client: Client, small: str, tmp_path: Path
) -> None:
    path = tmp_path / "results.csv"
    run = gradcam("results", small, "--csv", "--output", str(path))
    assert (run.stdout, run.stderr) == ("", f"{SMALL:,} images in {path}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(SMALL))
    assert rows[3]["cam"] == client.storage.uri(line(3).objects["cam"])
    assert (rows[3]["keep.split"], rows[4]["keep.split"], rows[50]["reason"]) == ("val", "", "fetch")
    printed = gradcam("results", small, "--csv", "--where", "index<1000").stdout
    assert list(csv.DictReader(io.StringIO(printed))) == rows[:1000]
    assert list(tmp_path.iterdir()) == [path]


def test_columns_that_one_image_alone_has_are_found_whatever_stands_in_its_texts(client: Client) -> None:
    job = make_job(client, "sparse", outputs=("cam",), chunk_size=100)
    texts = {"a } b": 'quoted "keep":{"no":"x"}', "keep": "}", "ü": ""}
    for chunk in range(20):
        write_part(client, job, chunk, [line(1 + chunk * 100).model_copy(update={"keep": None, "uri": '"keep":{'})])
    write_part(client, job, 20, [line(2001).model_copy(update={"keep": texts})])
    printed = io.BytesIO()
    assert client.export(job, printed, format="csv", where=["index>=1901"]) == 2
    first, last = csv.DictReader(io.StringIO(printed.getvalue().decode(), newline=""))
    assert {name: value for name, value in last.items() if name.startswith("keep.")} == {
        f"keep.{name}": value for name, value in texts.items()
    }
    assert first["keep.keep"] == ""


def test_a_parquet_file_has_types_and_groups_of_rows(client: Client, small: str, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "results.parquet"
    assert gradcam("results", small, "--parquet", str(path)).stderr == f"{SMALL:,} images in {path}\n"
    table = parquet.read_table(path)
    assert table["index"].to_pylist() == list(range(SMALL))
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        "index": "int64", "uri": "string", "id": "string", "state": "string", "class_id": "int64",
        "class_name": "string", "probability": "double", "layer": "string", "flat": "bool", "label": "string",
        "predicted": "string", "predicted_probability": "double", "correct": "bool", "reason": "string",
        "message": "string", "score": "double", "cam": "string", "keep.split": "string",
    }  # fmt: skip
    assert table.slice(99, 1).to_pylist()[0] == {
        "index": 99, "uri": line(99).uri, "id": "photo 99", "state": "done", "class_id": 9,
        "class_name": "class number 9", "probability": 0.99, "layer": "conv_head", "flat": False,
        "label": None, "predicted": None, "predicted_probability": None, "correct": None, "reason": None,
        "message": None, "score": None, "cam": client.storage.uri(line(99).objects["cam"]), "keep.split": "val",
    }  # fmt: skip
    assert client.export(small, tmp_path / "none.parquet", where=["class=nobody"]) == 0
    assert parquet.read_table(tmp_path / "none.parquet").num_rows == 0


def test_parquet_without_pyarrow_says_what_to_install_and_writes_nothing(small: str, tmp_path: Path) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "pyarrow.py").write_text("raise ImportError")
    path = tmp_path / "results.parquet"
    hidden = {"PYTHONPATH": str(tmp_path / "hidden")}
    run = gradcam_process("results", small, "--parquet", str(path), code=2, env=hidden)
    assert "pip install 'gradcam-queue[parquet]'" in run.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["hidden"]


def test_a_reader_that_has_enough_is_no_error(small: str) -> None:
    for option in ("--jsonl", "--csv"):
        command = f"{sys.executable} -m producer.cli results {small} {option} | head -n 2"
        run = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
        assert (run.returncode, run.stderr, len(run.stdout.splitlines())) == (0, "", 2)


def test_what_is_readable_is_read_and_the_rest_is_counted_and_named(client: Client, tmp_path: Path) -> None:
    """One torn line made every verb fail whole: "written by another version"."""
    job = make_job(client, "torn", outputs=("cam",))
    write_part(client, job, 0, [line(1), line(2), line(3)])
    write_part(client, job, 1, [line(64), line(65)])
    (first, second) = client.storage.keys(keys.manifest_prefix(client.storage.prefix, job))
    lines = client.storage.get(first).splitlines()
    client.storage.put(first, b"\n".join([lines[0], lines[1][:40], lines[2]]))
    client.storage.put(second, line(64).line[:-1].encode() + b',"color":"red"}\n' + lines[1].replace(b":2,", b":65,"))
    path = tmp_path / "results.csv"
    run = gradcam("results", job, "--csv", "--output", str(path), code=4)
    with path.open(newline="") as file:
        assert [row["index"] for row in csv.DictReader(file)] == ["1", "3", "65"]
    assert "of 2 images nothing is known: 1 line of the manifest cannot be read" in run.stderr
    assert "1 line of a newer version of gradcam-queue: update this one" in run.stderr
    assert f"(the first: {first} line 2)" in run.stderr.replace("\n", "")
    printed = gradcam("results", job, "--jsonl", code=4).stdout
    assert [json.loads(text)["index"] for text in printed.splitlines()] == [1, 3, 65]


@pytest.fixture(scope="module")
def counted(stack: object) -> str:
    """A job whose classes and reasons the table has counted."""
    client = Client.from_env()
    job = make_job(client, "counted", outputs=("cam",))
    write_part(client, job, 0, [line(n) for n in range(60)])
    failed = sum(line(n).state == "failed" for n in range(60))
    table, names = client.table.redis, f"gradcam:job:{job}"
    for n in range(60):
        if line(n).state == "done":
            table.hincrby(f"{names}:classes", f"{line(n).class_id} {line(n).class_name}", 1)
    table.hset(f"{names}:reasons", "fetch", str(failed))
    table.hset(names, mapping={"done": 60 - failed, "failed": failed, "total": 60})
    return job


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("probabilty<0.5", "the nearest are probability"),
        ("class=class number 77", "explained for a class 'class number 77'; the nearest are class number 7"),
        ("class_id!=12345", "explained for a class '12345'"),
        ("reason=fetsh", "'fetsh'; the nearest is fetch"),
        ("keep.splt=val", "no image of this job has a column 'splt'; the nearest is split"),
    ],
)
def test_what_the_job_does_not_know_is_an_error_that_names_the_nearest(
    client: Client, counted: str, tmp_path: Path, asked: str, words: str
) -> None:
    for option in (["--jsonl"], ["--csv"], ["--urls"], ["--output-dir", str(tmp_path / "new")]):
        run = gradcam("results", counted, *option, "--where", asked, code=2)
        assert words in run.stderr.replace("\n", " ")
        assert run.stdout == ""
    with pytest.raises(UsageError, match=r"nearest|explained"):
        client.export(counted, tmp_path / "none.jsonl", where=[asked])
    assert not (tmp_path / "none.jsonl").exists()


def test_no_match_is_said_and_is_no_error(counted: str, tmp_path: Path) -> None:
    for option in (["--jsonl"], ["--csv", "--output", str(tmp_path / "x.csv")], ["--output-dir", str(tmp_path)]):
        run = gradcam("results", counted, *option, "--where", "class=class number 7", "--where", "probability>5")
        assert f"no image of job {counted} matches" in run.stderr
    assert "matches" in gradcam("results", counted, "--jsonl", "--where", "reason=timeout").stderr
    assert "matches" not in gradcam("results", counted, "--jsonl", "--where", "reason=fetch").stderr
    assert "the nearest is fetch" in gradcam("failures", counted, "--only", "fetsh", code=2).stderr


def test_images_are_sorted_and_the_first_so_many_taken_in_every_format(
    client: Client, counted: str, tmp_path: Path
) -> None:
    expected = sorted((line(n) for n in range(60) if n % 50), key=lambda known: known.probability or 0)
    certain = [known.index for known in expected[::-1][:3]]
    printed = gradcam("results", counted, "--jsonl", "--sort", "-probability", "--limit", "3").stdout.splitlines()
    assert [json.loads(text)["index"] for text in printed] == certain
    table = gradcam("results", counted, "--csv", "--sort", "probability", "--limit", "2").stdout
    assert [int(row["index"]) for row in csv.DictReader(io.StringIO(table, newline=""))] == [
        known.index for known in expected[:2]
    ]
    assert [result.index for result in client.results(counted, where=["index>=10"], limit=2)] == [10, 11]
    # Pictures are chosen so, and keep the order and the names they have without the question.
    links = client.urls(counted, sort="-probability", limit=3)
    assert {link.index for link in links} <= set(certain)
    assert "give --limit with --sort" in gradcam("results", counted, "--urls", "--sort", "index", code=2).stderr
    assert "the nearest are prob" in gradcam("results", counted, "--jsonl", "--sort", "prob", code=2).stderr


def test_json_lines_and_tables_name_pictures_alike(client: Client, counted: str) -> None:
    printed = [json.loads(text) for text in gradcam("results", counted, "--jsonl").stdout.splitlines()]
    table = list(csv.DictReader(io.StringIO(gradcam("results", counted, "--csv").stdout, newline="")))
    assert [known["objects"].get("cam", "") for known in printed] == [row["cam"] for row in table]
    assert printed[1]["objects"]["cam"].startswith(f"s3://{client.storage.bucket}/")


def test_what_cannot_be_asked_is_one_sentence_before_anything_is_read(
    client: Client, small: str, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    asked: list[Callable[..., object]] = [
        lambda job, **what: client.export(job, tmp_path / "x.csv", **what),
        lambda job, **what: client.download(job, new, **what),
        client.urls,
    ]
    for ask in asked:
        with pytest.raises(UsageError, match="class=281"):
            ask(small, where=["color=red"])
        with pytest.raises(UsageError, match=r"^this job has no pictures called gb: it has cam$"):
            ask(small, only=["gb"])
        with pytest.raises(UnknownJob):
            ask("no-such-job")
    assert list(tmp_path.iterdir()) == []
    told = gradcam("results", small, "--csv", "--where", "probability!", code=2).stderr
    assert "class=281" in told
    assert len(told.splitlines()) == 1


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(module_worker: object, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A job of five images by a real worker: two of one name, one that fails."""
    client, folder = Client.from_env(), tmp_path_factory.mktemp("photos")
    (folder / "coffee.png").write_bytes(Path(CAT).read_bytes())
    images = [
        Source(path=Path(COFFEE), id="a cup"),
        Source(path=folder / "coffee.png"),
        Source(uri="http://127.0.0.1:9/lost.jpg?token=hunter2", class_name="tabby", id="lost"),
        Source(path=Path(ROCKET)),
        Source(path=Path(CAT), class_id=281),
    ]
    job = client.submit(images, network=NETWORK, outputs=("heatmap", "cam", "gb"), chunk_size=2)
    status = client.wait(job, timeout_s=90)
    assert (status.state, status.done, status.failed) == (JobState.COMPLETED_WITH_ERRORS, 4, 1)
    return job


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """What a file that was not written again keeps."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.glob("[!.]*"))
    }


def test_a_download_goes_on_where_it_stopped_and_fetches_nothing_twice(
    client: Client, photos: str, tmp_path: Path
) -> None:
    stems = ("coffee", "00000001-coffee", "rocket", "chelsea")
    run = gradcam("results", photos, "--output-dir", str(tmp_path), "--only", "cam,heatmap")
    assert run.stderr == f"8 pictures in {tmp_path}\n"
    first = state_of(tmp_path)
    assert set(first) == {f"{stem}-{NETWORK}-{kind}.jpg" for stem in stems for kind in ("cam", "heatmap")}

    cut, old, gone = (tmp_path / f"{stem}-{NETWORK}-cam.jpg" for stem in ("rocket", "chelsea", "coffee"))
    cut.write_bytes(cut.read_bytes()[:-1])
    os.utime(old, (0, 0))
    gone.unlink()
    run = gradcam("results", photos, "--output-dir", str(tmp_path))
    assert run.stderr == f"12 pictures in {tmp_path}, 5 of them were there already\n"
    second = state_of(tmp_path)
    assert {name: second[name][2] for name in first} == {name: content for name, (_, _, content) in first.items()}
    assert sum(second[name] == first[name] for name in first) == 5

    seen: list[Path] = []
    files = client.download(photos, tmp_path, progress=seen.append)
    assert (len(files), files.already, seen) == (12, 12, files)
    assert state_of(tmp_path) == second


def test_a_resumed_download_asks_the_store_for_nothing_but_listings(
    photos: str, tmp_path: Path, stack: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    Client.from_env().download(photos, tmp_path)
    asked: list[str] = []

    def note(method: str, path: str) -> bool:
        asked.append(f"{method} {path}")
        return False

    with proxied(stack.s3) as proxy:  # type: ignore[attr-defined]
        monkeypatch.setenv("GRADCAM_S3_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        proxy.lose_replies(1_000_000, only=note)
        assert Client.from_env().download(photos, tmp_path).already == 12
    assert [one for one in asked if "/images/" in one and "?" not in one] == []
    # One of the manifest, one of the pictures.
    assert sum("list-type=2" in one for one in asked) == 2


def test_names_do_not_depend_on_what_is_asked_for(client: Client, photos: str, tmp_path: Path) -> None:
    some = client.download(photos, tmp_path, only=["cam"], where=["index=1"])
    assert [path.name for path in some] == [f"00000001-coffee-{NETWORK}-cam.jpg"]
    classes = {result.index: result.class_name for result in client.results(photos)}
    assert classes[0] == "espresso"
    files = client.download(photos, tmp_path, only=["cam", "gb"], where=[f"class={classes[0]}"])
    assert [path.name for path in files] == [f"coffee-{NETWORK}-{kind}.jpg" for kind in ("cam", "gb")]
    assert client.download(photos, tmp_path / "none", where=["state=failed"]) == []


def test_presigned_addresses_work_for_anybody_and_run_out(client: Client, photos: str) -> None:
    links = list(client.urls(photos, only=["cam"], where=["index<=1"], expires_s=60))
    objects = [result.objects["cam"] for result in client.results(photos) if result.index <= 1]
    assert [(link.index, link.kind) for link in links] == [(0, "cam"), (1, "cam")]
    for link, key in zip(links, objects, strict=True):
        with urlopen(link.url, timeout=10) as answer:
            assert answer.read() == client.storage.get(key)
    with pytest.raises(HTTPError):
        urlopen(links[0].url.replace("cam.jpg", "gb.jpg"), timeout=10)
    (soon,) = client.urls(photos, only=["gb"], where=["index=0"], expires_s=1)
    time.sleep(2.1)
    with pytest.raises(HTTPError):
        urlopen(soon.url, timeout=10)


def test_addresses_are_printed_a_line_a_picture(client: Client, photos: str, tmp_path: Path) -> None:
    lines = gradcam("results", photos, "--urls", "--expires", "15m").stdout.splitlines()
    rows = [text.split("\t") for text in lines]
    assert [(index, kind) for index, kind, _ in rows] == [
        (str(index), kind) for index in (0, 1, 3, 4) for kind in ("heatmap", "cam", "gb")
    ]
    assert all("X-Amz-Expires=900" in url for _, _, url in rows)
    path = tmp_path / "urls.jsonl"
    gradcam("results", photos, "--urls", "--jsonl", "--only", "gb", "--output", str(path))
    assert [set(json.loads(text)) for text in path.read_text().splitlines()] == [{"index", "kind", "url"}] * 4
    # Who has the address has the picture.
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "7 days" in gradcam("results", photos, "--urls", "--expires", "8d", code=2).stderr


def test_failures_become_a_list_with_addresses_in_full_for_the_owner_alone(
    client: Client, photos: str, tmp_path: Path
) -> None:
    path = tmp_path / "failed.jsonl"
    told = gradcam("failures", photos, "--output", str(path)).stderr
    assert told.startswith(f"1 failed image in {path}; as a job of their own: gradcam submit {path} ")
    (row,) = (json.loads(text) for text in path.read_text().splitlines())
    message = row.pop("message")
    assert row == {
        "uri": "http://127.0.0.1:9/lost.jpg?token=hunter2",
        "id": "lost",
        "class": "tabby",
        "label": None,
        "reason": "fetch",
    }
    assert "hunter2" not in message
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert gradcam("failures", photos, "--only", "fetch").stdout.split("\t")[:3] == ["2", "fetch", "lost"]
    assert client.export_failures(photos, path, only="image") == 0
    assert path.read_text() == ""
    with pytest.raises(UsageError, match=r"\.jsonl"):
        client.export_failures(photos, tmp_path / "failed.txt")
    with pytest.raises(UnknownJob):
        client.export_failures("no-such-job", tmp_path / "none.jsonl")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["failed.jsonl", "failed.csv"])
def test_a_list_of_failures_is_submitted_as_it_is(client: Client, photos: str, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    told = gradcam("failures", photos, "--output", str(path)).stderr
    command = shlex.split(told.partition(": gradcam ")[2].splitlines()[0])
    again = gradcam(*command).stdout.strip()
    specs = [client.table.queries.spec(job) for job in (photos, again)]
    of_size = {"chunk_size": 64}
    first, second = (found[0].model_copy(update=of_size) for found in specs if found is not None)
    assert first == second
    assert client.wait(again, timeout_s=60).failed == 1
    items = [[failure.item for failure in client.failures(job)] for job in (photos, again)]
    assert items[0] == items[1]


def test_pictures_that_are_gone_stop_no_others(client: Client, tmp_path: Path) -> None:
    job = make_job(client, "gone", outputs=("cam",))
    addresses = [keys.picture(client.storage.prefix, job, n, f"{n}-{NETWORK}-cam.jpg") for n in range(1, 6)]
    for address in (addresses[0], *addresses[2:]):
        client.storage.put(address, b"picture")
    write_part(client, job, 0, [line(n, {"cam": address}) for n, address in enumerate(addresses, 1)])
    with pytest.raises(StoreError, match=r"1 picture could not be read.*gradcam audit gone"):
        client.download(job, tmp_path)
    assert len(list(tmp_path.glob("[!.]*"))) == 4
    assert "is not there" in gradcam("results", job, "--output-dir", str(tmp_path), code=4).stderr


def test_a_listing_is_read_a_page_at_a_time_in_whatever_order_it_is_asked(client: Client) -> None:
    objects = Objects(client.storage, "pages", page_size=3)
    ours = keys.job_prefix(client.storage.prefix, "pages")
    there = [f"{ours}images/{n:08d}/{kind}.jpg" for n in range(4) for kind in ("cam", "gb")]
    there += [f"{ours}images/00000009/{n}.jpg" for n in range(7)] + [f"{ours}shards/{n:08d}.tar" for n in range(6)]
    for n, key in enumerate(there):
        client.storage.put(key, b"x" * n)

    def size(address: str) -> int | None:
        entry = objects.entry(address)
        return None if entry is None else entry.size_bytes

    assert [size(key) for key in there] == list(range(len(there)))
    assert [size(key) for key in reversed(there)] == list(reversed(range(len(there))))
    assert [size(f"{ours}{key}") for key in ("images/00000003/heatmap.jpg", "images/00000005/cam.jpg", "zz")] == [
        None
    ] * 3
    shard, member = objects.entry(there[-2]), objects.entry(there[-2] + "#00000001.cam.jpg")
    assert shard is not None
    assert member is not None
    assert (member.size_bytes, member.modified) == (None, shard.modified)
    assert objects.entry(f"{ours}shards/00000077.tar#00000001.cam.jpg") is None


def test_a_terminal_shows_how_far_a_download_is(photos: str, tmp_path: Path) -> None:
    ours, its = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        command = [sys.executable, "-m", "producer.cli", "results", photos, "--output-dir", str(tmp_path)]
        run = subprocess.run(command, stderr=its, stdout=subprocess.PIPE, timeout=60, check=False)
        os.close(its)
        shown = screen.read(100_000).decode()
    assert (run.returncode, run.stdout) == (0, b"")
    assert "12 pictures" in shown
    assert "100%" in shown


@pytest.mark.parametrize(
    "make",
    [
        lambda ours: "other/secret.jpg",
        lambda ours: f"{ours}images/00000001/../../../other/secret.jpg",
        lambda ours: f"{ours[:-1]}-2/images/00000001/secret.jpg",
    ],
)
def test_a_manifest_names_neither_other_peoples_objects_nor_files_elsewhere(
    client: Client, tmp_path: Path, make: Callable[[str], str]
) -> None:
    job = make_job(client, "hostile", outputs=("cam", "gb"))
    ours = keys.job_prefix(client.storage.prefix, job)
    named, hidden = make(ours), f"{ours}images/00000001/%2e%2e"
    client.storage.put("other/secret.jpg", b"secret")
    client.storage.put(hidden, b"mine")
    write_part(client, job, 0, [line(1, {"cam": named, "gb": hidden})])
    folder = tmp_path / "folder"
    assert [path.parent for path in client.download(job, folder)] == [folder]
    assert [path.read_bytes() for path in tmp_path.rglob("[!.]*") if path.is_file()] == [b"mine"]
    assert [link.kind for link in client.urls(job)] == ["gb"]


def test_a_file_in_the_place_of_the_folder_is_one_sentence(small: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "cannot write to" in gradcam("results", small, "--output-dir", str(tmp_path / "file"), code=2).stderr


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
