"""Jobs with models in the layout of Hugging Face, on real parts: an uploaded folder, and a prefix in the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import gradcam
from hf_models import saved

from producer.client.client import Client
from producer.jobs.fetch.fetcher import Fetcher
from producer.jobs.fetch.policy import FetchPolicy
from producer.jobs.model import keys
from producer.jobs.model.errors import JobError, UsageError
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import JobState
from producer.jobs.store.bundle import read_folder
from producer.submission.weights import place_weights
from worker.models.loader import Models
from worker.settings import WorkerSettings

PHOTOS = Path(str(__import__("skimage").__file__)).parent / "data"
IMAGES = [str(PHOTOS / name) for name in ("chelsea.png", "coffee.png")]


def _summary(client: Client, job: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(client.storage.get(keys.summary(client.storage.prefix, job)))
    return found


@pytest.mark.usefixtures("worker")
def test_a_folder_and_a_prefix_are_explained(client: Client, tmp_path: Path) -> None:
    folders = {kind: tmp_path / kind for kind in ("resnet", "vit")}
    for kind, folder in folders.items():
        saved(folder, kind)
    prefix = "models/my-vit/"
    for path in folders["vit"].iterdir():
        client.storage.put(prefix + path.name, path.read_bytes())
    resnet = client.submit(IMAGES, network="hf", weight_path=folders["resnet"], output_size="original")
    vit = client.submit(IMAGES, network="hf", weight_path=client.storage.uri(prefix), input_size=48)
    layers = {"resnet": "resnet.encoder.stages.2.layers.1.layer.2.convolution", "vit": "vit.layers.1.layernorm_before"}
    for kind, job in {"resnet": resnet, "vit": vit}.items():
        status = client.wait(job, timeout_s=120)
        assert (status.state, status.error) == (JobState.SUCCEEDED, None)
        results = list(client.results(job))
        assert {result.layer for result in results} == {layers[kind]}
        assert {guess.class_name for result in results for guess in result.top5} == {"cat", "dog", "cup"}
        assert all(len(result.objects) == 4 and not result.random_weights for result in results)
        assert [bool(result.guided_relus) for result in results] == [kind == "resnet"] * 2
        found = _summary(client, job)["found"]
        assert found["weights_sha256"] == read_folder(folders[kind]).sha256
        assert "of transformers " in found["weights_read"]
        assert found["preprocessing"].endswith(", resized bilinear-antialias")


@pytest.mark.usefixtures("worker")
def test_a_model_that_lacks_a_file_fails_its_job_with_a_sentence(client: Client) -> None:
    client.storage.put("models/empty/config.json", b"{}")
    job = client.submit(IMAGES[:1], network="hf", weight_path=client.storage.uri("models/empty/"))
    status = client.wait(job, timeout_s=90)
    assert status.state is JobState.FAILED
    assert "there is no object" in (status.error or "")
    assert "models/empty/model.safetensors" in (status.error or "")
    assert gradcam("status", job, "--json", code=3)


def test_a_folder_is_uploaded_as_two_objects_once_and_both_are_held_against_their_names(
    client: Client, tmp_path: Path
) -> None:
    storage = client.storage
    saved(tmp_path / "regnet", "regnet")
    before = set(storage.keys(f"{storage.prefix}/_system/weights/"))
    uri, digest = place_weights(str(tmp_path / "regnet"), storage, "hf")
    assert place_weights(str(tmp_path / "regnet"), storage, "hf") == (uri, digest)
    assert digest is not None
    assert len(set(storage.keys(f"{storage.prefix}/_system/weights/")) - before) == 2
    fetcher = Fetcher(FetchPolicy(), storage.client)
    models = Models(fetcher, WorkerSettings(weights_cache_dir=tmp_path / "kept"), torch.device("cpu"))
    spec = JobSpec(network="hf", weights=uri, weights_sha256=digest)
    assert models.get(spec).weights_digest == digest
    assert models.get(spec.model_copy(update={"weights_sha256": None})).weights_digest == digest
    key = keys.weights(storage.prefix, digest)
    storage.put(key, storage.get(key).replace(b"cat", b"cow"))
    with pytest.raises(JobError, match="are not those that were uploaded"):
        models.get(spec.model_copy(update={"input_size": (64, 64)}))


@pytest.mark.parametrize(
    ("network", "weights", "words"),
    [
        ("hf", None, "--network hf needs --weight-path with a folder"),
        ("hf", "random", "'random' is neither"),
        ("hf", "s3://bucket/model.safetensors", "an address of one that ends with a slash"),
        ("hf", "ftp://host/vit/", "--weight-path: "),
        ("hf", "{folder}", r"--weight-path: there is no model\.safetensors in "),
        ("resnet50", "{folder}", "is a folder: give --network hf"),
    ],
)
def test_what_is_no_folder_is_refused_before_anything_is_sent(
    client: Client, tmp_path: Path, network: str, weights: str | None, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        client.submit(IMAGES, network=network, weight_path=weights and weights.format(folder=tmp_path))
