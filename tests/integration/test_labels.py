"""Truth beside prediction: what images show, as the user says, stands in each result, and what is right is counted."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import pytest
from command import gradcam

from producer.client.client import Client
from producer.input.sources import ReadOptions, Source, open_sources
from producer.jobs.model import keys
from producer.jobs.model.results import Result

NETWORK = "efficientnet_lite0"
PHOTOS = Path(str(__import__("skimage").__file__)).parent / "data"
COFFEE, CAT, ROCKET = (str(PHOTOS / name) for name in ("coffee.png", "chelsea.png", "rocket.jpg"))
TRUTH = [(COFFEE, "espresso", True), (CAT, "282", False), (ROCKET, "misile", None), (COFFEE, "", None)]


@pytest.fixture
def labelled(tmp_path: Path) -> str:
    path = tmp_path / "list.csv"
    path.write_text("path,truth\n" + "".join(f"{image},{label}\n" for image, label, _ in TRUTH))
    return str(path)


def submitted(client: Client, labelled: str, *options: str, code: int = 0) -> str:
    command = (
        "submit",
        labelled,
        "--allow-local",
        "--label-column",
        "truth",
        "--network",
        NETWORK,
        "--outputs",
        "cam",
        "--wait",
    )
    return str(json.loads(gradcam(*command, "--json", *options, code=code).stdout.splitlines()[-1])["job"])


@pytest.mark.usefixtures("worker")
def test_labels_stand_beside_predictions_in_every_format_and_right_and_wrong_are_counted(
    client: Client, labelled: str, tmp_path: Path
) -> None:
    job = submitted(client, labelled, "--pack", "tar", "--name", "labelled")
    results = list(client.results(job))
    assert [(result.label, result.correct) for result in results] == [
        (label or None, is_so) for _, label, is_so in TRUTH
    ]
    assert [result.predicted for result in results] == [result.top5[0].class_name for result in results]
    assert [result.class_id for result in results] == [result.top5[0].class_id for result in results]
    status = client.status(job)
    assert (status.correct, status.wrong) == (1, 1)
    assert status.unknown_labels == 1
    told = " ".join(gradcam("status", job).stdout.split())
    assert "1 predicted as labelled, 1 not: 50.0% correct of 2 labels that are classes" in told
    assert "1 label is no class of this network" in told
    assert f"no class of {NETWORK} is called 'misile'; the nearest are missile" in told
    summary = json.loads(client.storage.get(keys.summary(client.storage.prefix, job)))
    counts = ("correct", "wrong", "unknown_labels", "label_problem")
    assert [summary["status"][name] for name in counts] == [1, 1, 1, status.label_problem]
    assert sum(row["count"] for row in summary["classes"]) == 4

    lines = [json.loads(text) for text in gradcam("results", job, "--jsonl").stdout.splitlines()]
    rows = list(csv.DictReader(io.StringIO(gradcam("results", job, "--csv").stdout, newline="")))
    words = {True: "true", False: "false", None: ""}
    for line, row, (_, label, is_so) in zip(lines, rows, TRUTH, strict=True):
        assert (line.get("label"), line.get("correct")) == (label or None, is_so)
        assert (row["label"], row["correct"]) == (label, words[is_so])
        assert row["predicted"] == line["predicted"]
        assert float(row["predicted_probability"]) == line["predicted_probability"] == line["top5"][0]["probability"]
    parquet = pytest.importorskip("pyarrow.parquet")
    client.export(job, tmp_path / "results.parquet")
    assert parquet.read_table(tmp_path / "results.parquet")["correct"].to_pylist() == [is_so for *_, is_so in TRUTH]
    (shard,) = client.storage.keys(keys.shards_prefix(client.storage.prefix, job))
    with tarfile.open(fileobj=io.BytesIO(client.storage.get(shard))) as tar:
        member = tar.extractfile("00000001.json")
        assert member is not None
        assert json.loads(member.read())["correct"] is False

    wrong = gradcam("results", job, "--jsonl", "--where", "correct=false").stdout.splitlines()
    assert [json.loads(text)["index"] for text in wrong] == [1]
    unknown = gradcam("results", job, "--jsonl", "--where", "correct=unknown").stdout.splitlines()
    assert [json.loads(text)["label"] for text in unknown] == ["misile"]
    # Counted again by what is recorded; and taken back where an image is explained again.
    client.table.redis.flushall()
    submitted(client, labelled, "--pack", "tar", "--name", "labelled")
    status = client.status(job)
    assert (status.correct, status.wrong, status.unknown_labels) == (1, 1, 1)
    client.storage.delete([shard])
    list(client.audit(job, repair=True))
    status = client.wait(job, timeout_s=60)
    assert (status.done, status.correct, status.wrong, status.unknown_labels) == (4, 1, 1, 1)
    assert [result.label for result in client.results(job)] == [label or None for _, label, _ in TRUTH]


def explained(result: Result) -> list[int]:
    return [one.class_id for one in result.classes] or [result.class_id or 0]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("explain", ["label", "both"])
def test_the_labels_class_is_explained_in_place_of_the_predicted_one_or_beside_it(
    client: Client, labelled: str, explain: str
) -> None:
    job = submitted(client, labelled, "--explain", explain, code=1)
    coffee, cat, rocket, plain = client.results(job)
    predicted = cat.top5[0].class_id
    assert explained(cat) == ([282] if explain == "label" else [predicted, 282])
    assert (cat.predicted, cat.correct) == (cat.top5[0].class_name, False)
    assert len(cat.objects) == len(explained(cat))
    assert explained(coffee) == explained(plain) == [coffee.top5[0].class_id]  # once, where it is the predicted one
    assert list(coffee.objects) == ["cam"]
    assert (rocket.state, rocket.reason) == ("failed", "model")
    assert "no class" in (rocket.message or "")
    status = client.status(job)
    assert (status.done, status.correct, status.wrong) == (3, 1, 1)
    if explain == "both":
        rows = list(csv.DictReader(io.StringIO(gradcam("results", job, "--csv").stdout, newline="")))
        assert rows[1]["class_id.2"] == "282"
        assert rows[1]["cam.2"].endswith("class282-cam.jpg")
        assert rows[0]["class_id.2"] == ""


def test_folders_name_what_their_images_show(tmp_path: Path) -> None:
    for folder in ("tabby", "281"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(Path(COFFEE).read_bytes())
    reading = ReadOptions(label_from="folder")
    images: list[str | Path | Source] = [
        tmp_path, "s3://bucket/train/tiger cat/1.jpg", "https://a.example/Egyptian%20cat/1.jpg?x=/y", "s3://bucket/1.jpg",
        Source(uri="s3://bucket/train/tabby/1.jpg", label="mine"),
    ]  # fmt: skip
    with open_sources(images, reading) as sources:
        assert [source.label for source in sources] == ["281", "tabby", "tiger cat", "Egyptian cat", None, "mine"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--explain", "label"], "--explain label needs labels"),
        (["--explain", "both", "--label-column", "truth", "--class-id", "1"], "leave --class-id out"),
        (["--explain", "both", "--label-column", "truth", "--top-k", "2"], "leave --top-k out"),
        (["--explain", "label", "--label-column", "truth", "--class-column", "truth"], "leave --class-column out"),
        (["--label-from", "folder", "--label-column", "truth"], "not both"),
        (["--label-column", "nothing"], "no column 'nothing'"),
    ],
)
def test_options_of_labels_that_do_not_go_together_are_told(
    stack: object, labelled: str, options: list[str], words: str
) -> None:
    assert words in gradcam("submit", labelled, *options, code=2).stderr.replace("\n", " ")
