"""What is left out or refused on the way in: a name means the same images each time, and nothing is half-made."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from command import gradcam

from producer.client.client import Client
from producer.input.sources import ReadOptions, open_sources
from producer.jobs.model import keys
from producer.jobs.model.errors import UnknownJob, UsageError

NETWORK = "efficientnet_lite0"
PHOTOS = Path(str(__import__("skimage").__file__)).parent / "data"


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of 40 images, of which every fourth cannot be used, in the folder one stands in."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "list.csv"
    lines = [f"{'s3' if n % 4 else 'ftp'}://nowhere-{n}/a.jpg" for n in range(40)]
    path.write_text("url\n" + "\n".join(lines) + "\n")
    return path


def test_a_named_submission_without_its_bad_rows_is_continued_and_not_doubled(client: Client, rows: Path) -> None:
    command = ("submit", "list.csv", "--skip-bad", "--network", NETWORK, "--name", "skipping", "--chunk-size", "7")
    assert "list.csv line 2: ftp://nowhere-0/a.jpg is refused" in gradcam("submit", "list.csv", code=2).stderr
    first = gradcam(*command)
    assert first.stdout == "skipping\n"
    assert "left out: 10 rows that cannot be used" in first.stderr
    assert "bad-rows.jsonl; once corrected: gradcam submit bad-rows.jsonl" in first.stderr
    assert client.status("skipping").total == 30
    chunks = client.table.queries.chunks("skipping")
    gradcam(*command)
    assert client.status("skipping").total == 30
    assert client.table.queries.chunks("skipping") == chunks
    assert [path.name for path in rows.parent.glob("bad*")] == ["bad-rows.jsonl"]
    # What is corrected goes as a job of its own; in its old place it would shift all that follow.
    rows.write_text(rows.read_text().replace("ftp://nowhere-0/", "s3://nowhere-0/"))
    assert "from another source (or other rows of it were bad" in gradcam(*command, code=2).stderr
    corrected = rows.with_name("bad-rows.jsonl")
    corrected.write_text(corrected.read_text().replace('"ftp://', '"s3://'))
    gradcam("submit", "bad-rows.jsonl", "--network", NETWORK, "--name", "corrected", "--chunk-size", "7")
    assert client.status("corrected").total == 10
    for job in ("skipping", "corrected"):
        if not client.status(job).ended:
            client.cancel(job)


@pytest.mark.usefixtures("client")
def test_a_command_that_is_printed_is_whole_however_many_columns_it_keeps(rows: Path) -> None:
    """Cut in the middle it can be pasted as well, and keeps other columns."""
    kept = [f"measured_value_{number}" for number in range(120)]
    head, *lines = rows.read_text().splitlines()
    rows.write_text("\n".join([",".join([head, *kept]), *(line + ",1" * len(kept) for line in lines)]) + "\n")
    columns = ",".join(kept)
    options = ("--skip-bad", "--keep-columns", columns, "--bad-rows", "bad.jsonl", "--dry-run", "--network", NETWORK)
    said = gradcam("submit", "list.csv", *options).stderr
    (line,) = (line for line in said.splitlines() if "once corrected" in line)
    words = shlex.split(line.partition("once corrected: ")[2])
    assert words[:3] == ["gradcam", "submit", "bad.jsonl"]
    assert words[words.index("--keep-columns") + 1] == columns


def test_the_python_client_tells_what_it_left_out(client: Client, rows: Path) -> None:
    with open_sources([rows], ReadOptions(skip_bad=True)) as sources:
        plan = client.plan(sources, network=NETWORK, chunk_size=7)
        assert (plan.images, plan.bad_rows) == (30, 10)
        assert [row.number for row in sources.bad_rows()] == list(range(2, 42, 4))


@pytest.mark.parametrize(
    "options",
    [
        ("--limit", "1" + "0" * 23),
        ("--network", "resnet5O"),
        ("--class-column", "label", "--class-id", "1"),
        ("--output-dir", "weights.pth"),
    ],
    ids=lambda options: options[0],
)
def test_what_is_refused_leaves_nothing_behind(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.pth").write_bytes(repr(options).encode())
    Path("list.csv").write_text(f"image,label\n{PHOTOS / 'coffee.png'},1\n")
    before = set(client.storage.keys(client.storage.prefix))
    gradcam(
        "submit", "list.csv", "--allow-local", "--name", "refused", "--weight-path", "weights.pth", *options, code=2
    )
    assert not list(client.storage.keys(keys.job_prefix(client.storage.prefix, "refused")))
    assert not [key for key in set(client.storage.keys(client.storage.prefix)) - before if "weights" in key]
    with pytest.raises(UnknownJob):
        client.status("refused")


def test_the_python_client_refuses_the_same(client: Client) -> None:
    image = str(PHOTOS / "coffee.png")
    with pytest.raises(UsageError, match=r"no network is called 'resnet5O'.*resnet50"):
        client.submit([image], network="resnet5O")
    with pytest.raises(UsageError, match="leave --class-name out"):
        client.submit([image], network=NETWORK, class_name="tabby", reading=ReadOptions(class_column="label"))
    with pytest.raises(UsageError, match="--limit must be 9,223,372,036,854,775,807 or less"):
        client.submit([image], network=NETWORK, reading=ReadOptions(limit=10**23))
    refused: tuple[dict[str, Any], ...] = ({"limit": 10**23}, {"offset": 10**22}, {"offset": -1})
    for parameters in refused:
        with pytest.raises(UsageError, match="must be 0 to 9,223,372,036,854,775,807"):
            client.list(**parameters)
    assert client.list(offset=2**63 - 1, limit=2**63 - 1) == []
