"""Images with names in other scripts, from the folder to the pictures on disk: the names stay what they are."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import pytest
import skimage
from command import gradcam

from producer.client.client import Client

PHOTOS = Path(skimage.__file__).parent / "data"
NETWORK = "efficientnet_lite0"
STEMS = {"猫の写真", "🐱"}
NAMES = {f"{stem}-{NETWORK}-cam.jpg" for stem in STEMS}

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("写真")
    shutil.copy(PHOTOS / "rocket.jpg", made / "猫の写真.jpg")
    shutil.copy(PHOTOS / "chelsea.png", made / "🐱.png")
    return made


def explained(source: str, *options: str) -> str:
    asked = ("--network", NETWORK, "--outputs", "cam", "--wait")
    job = str(json.loads(gradcam("submit", source, *asked, *options, "--json").stdout.splitlines()[-1])["job"])
    assert Client.from_env().wait(job, timeout_s=60).done == 2
    return job


def listed(job: str, which: str) -> list[Mapping[str, str]]:
    text = gradcam("results", job, f"--{which}").stdout
    if which == "csv":
        return list(csv.DictReader(text.splitlines()))
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("pack", [(), ("--pack", "tar")])
def test_pictures_come_under_the_names_that_the_images_have(
    folder: Path, tmp_path: Path, pack: tuple[str, ...]
) -> None:
    job = explained(str(folder), *pack)
    gradcam("results", job, "--output-dir", str(tmp_path / "結果"))
    assert {path.name for path in (tmp_path / "結果").glob("[!.]*")} == NAMES
    assert "2 of them were there already" in gradcam("results", job, "--output-dir", str(tmp_path / "結果")).stderr
    for which in ("csv", "jsonl"):
        assert {Path(row["id"]).stem for row in listed(job, which)} == STEMS
        assert {Path(row["uri"]).stem for row in listed(job, which)} == STEMS
    gradcam("audit", job)
    gradcam("delete", job, "--objects", "--yes")
    storage = Client.from_env().storage
    assert list(storage.keys(f"{storage.prefix}/{job}/")) == []


def test_addresses_are_literal_on_s3_and_percent_encoded_on_the_web(folder: Path) -> None:
    job = explained(str(folder))
    assert {row["cam"].rpartition("/")[2] for row in listed(job, "csv")} == NAMES
    lines = gradcam("results", job, "--urls").stdout.splitlines()
    urls = [word for line in lines for word in line.split() if word.startswith("http")]
    assert len(urls) == 2
    for url in urls:
        assert url.isascii()
        assert unquote(urlsplit(url).path).rpartition("/")[2] in NAMES
        with urlopen(url) as answer:
            assert answer.read(2) == b"\xff\xd8"


def test_objects_under_such_names_are_found_by_their_prefix(folder: Path) -> None:
    storage = Client.from_env().storage
    for path in folder.iterdir():
        storage.put_file(f"動物/{path.name}", path)
    job = explained(storage.uri("動物/"))
    assert {row["uri"] for row in listed(job, "jsonl")} == {
        storage.uri(f"動物/{path.name}") for path in folder.iterdir()
    }
    assert {row["cam"].rpartition("/")[2] for row in listed(job, "csv")} == NAMES
