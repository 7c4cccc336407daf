from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from producer.jobs.fetch.fetcher import Fetcher
from producer.jobs.fetch.policy import FetchPolicy
from producer.jobs.model.digests import sha256_of
from producer.jobs.model.errors import JobError
from producer.jobs.model.spec import JobSpec
from worker.models import networks
from worker.models.as_asked import preprocessed
from worker.models.loader import Models, model_key
from worker.settings import WorkerSettings

#: Small and quick to load: 5 MB.
NETWORK = "squeezenet1_1"
RANDOM = JobSpec(network=NETWORK, weights="random")

Make = Callable[..., Models]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))

    def made(**settings: Any) -> Models:
        fetcher = Fetcher(FetchPolicy(file_roots=(tmp_path,)), None)
        return Models(fetcher, WorkerSettings(weights_cache_dir=tmp_path / "kept", **settings), torch.device("cpu"))

    return made


def _saved(path: Path, network: str = NETWORK) -> str:
    """Save weights as a user would have them, and give their address."""
    torch.save(networks.load(network, "random", prepared=False).model.state_dict(), path)
    return path.as_uri()


# --- which jobs share a model -----------------------------------------------------------------------------------------


def test_jobs_that_differ_in_classes_labels_or_pictures_share_a_model(make: Make) -> None:
    models = make()
    model = models.get(RANDOM).model
    labels = tuple(f"kind {n}" for n in range(1000))
    for different in (
        {"class_id": 3},
        {"class_name": "tabby"},
        {"labels": labels, "class_name": "kind 7"},
        {"method": "layercam", "precision": "bf16", "outputs": ("cam",), "store": "b/p"},
    ):
        network = models.get(RANDOM.model_copy(update=different))
        assert network.model is model
        assert network.categories is not None
        assert network.categories[0] == ("kind 0" if "labels" in different else "tench")


def test_short_and_full_name_share_a_model() -> None:
    assert model_key(JobSpec(network="vgg")) == model_key(JobSpec(network="vgg16"))


def test_with_the_engine_half_a_job_in_half_precision_has_a_model_of_its_own(make: Make) -> None:
    models, half = make(engine="half"), RANDOM.model_copy(update={"precision": "bf16"})
    full = models.get(RANDOM)
    assert not models.at_hand(half)
    assert {each.dtype for each in models.get(half).model.parameters()} == {torch.bfloat16}
    assert models.get(RANDOM).model is models.get(RANDOM.model_copy(update={"precision": "tf32"})).model is full.model
    assert {each.dtype for each in full.model.parameters()} == {torch.float32}


def test_jobs_that_look_at_other_layers_do_not_share_a_model(make: Make) -> None:
    models = make()
    other = models.get(RANDOM.model_copy(update={"layer": "features.3"}))
    assert other.model is not models.get(RANDOM).model


def test_jobs_that_differ_in_mean_and_deviation_share_a_model_and_other_sizes_do_not(make: Make) -> None:
    models = make()
    usual = models.get(RANDOM)
    other = models.get(RANDOM.model_copy(update={"mean": (0.5, 0.4, 0.3), "std": (1.0, 1.0, 0.25)}))
    assert other.model is usual.model
    assert (other.mean, other.std) == ((0.5, 0.4, 0.3), (1.0, 1.0, 0.25))
    assert (usual.mean, usual.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    small = models.get(RANDOM.model_copy(update={"input_size": (96, 128)}))
    assert small.model is not usual.model
    assert small.preprocessing == "96 x 128 px, mean 0.485 0.456 0.406, std 0.229 0.224 0.225, resized bilinear"


def test_a_job_names_the_filter_or_takes_that_of_the_weights(make: Make) -> None:
    models = make()
    usual = models.get(RANDOM)
    named = models.get(RANDOM.model_copy(update={"resize_filter": "bicubic-antialias"}))
    own = models.get(RANDOM.model_copy(update={"resize_filter": "own"}))
    assert named.model is own.model is usual.model
    filters = (usual.resize_filter, named.resize_filter, own.resize_filter)
    assert filters == ("bilinear", "bicubic-antialias", "bilinear-antialias")
    assert own.preprocessing.endswith(", resized bilinear-antialias")
    unknown = replace(usual, own_filter="lanczos")
    with pytest.raises(JobError, match=r"not known here \(lanczos\): give --resize-filter one of bilinear, "):
        preprocessed(unknown, resize_filter="own")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"class_id": 1000}, "class 1000 is out of range"),
        ({"class_name": "tabbi"}, "called 'tabbi'.*tabby"),
        ({"labels": ("a", "b")}, "there are 2 labels, but squeezenet1_1 has 1000 classes"),
        ({"labels": tuple(map(str, range(1000))), "class_name": "tabby"}, "called 'tabby'"),
    ],
)
def test_classes_and_labels_are_checked_also_for_a_model_that_is_kept(
    make: Make, wrong: dict[str, Any], words: str
) -> None:
    models = make()
    models.get(RANDOM)
    with pytest.raises(JobError, match=words):
        models.get(RANDOM.model_copy(update=wrong))


# --- weights files ----------------------------------------------------------------------------------------------------


def test_uploaded_weights_are_kept_on_disk_for_other_processes(make: Make, tmp_path: Path) -> None:
    uri = _saved(tmp_path / "w.pth")
    digest = sha256_of(tmp_path / "w.pth")
    spec = JobSpec(network=NETWORK, weights=uri, weights_sha256=digest)
    assert make().get(spec).weights_digest == digest
    (tmp_path / "w.pth").unlink()
    assert make().get(spec).weights_digest == digest


def test_weights_that_do_not_fit_are_told_by_their_address(make: Make, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"no weights")
    uri = (tmp_path / "w.pth").as_uri()
    with pytest.raises(JobError, match=f"^{uri} is not a weights file"):
        make().get(JobSpec(network=NETWORK, weights=uri))
    digest = sha256_of(tmp_path / "w.pth")
    (tmp_path / "weights").mkdir()
    uri = (tmp_path / "w.pth").rename(tmp_path / "weights" / digest).as_uri()
    with pytest.raises(JobError, match=r"^the file given with --weight-path is not a weights file"):
        make().get(JobSpec(network=NETWORK, weights=uri, weights_sha256=digest))


def test_a_checkpoint_that_is_refused_is_told_by_its_address_and_one_that_is_read_in_the_log(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    uri = _saved(tmp_path / "w.pth")
    content = {"net": torch.load(tmp_path / "w.pth", weights_only=True), "acc": 93.1}
    torch.save({"net": torch.nn.Linear(1, 1)}, tmp_path / "w.pth")
    with pytest.raises(JobError, match=f'^the weights file {uri} is refused: .*torch.load."FILE"'):
        make().get(JobSpec(network=NETWORK, weights=uri))
    torch.save(content, tmp_path / "w.pth")
    make().get(JobSpec(network=NETWORK, weights=uri))
    lines = [record.getMessage() for record in caplog.records]
    assert f"action=weights_read network={NETWORK} The weights: taken: net.*." in lines


def test_weights_that_are_gone_are_the_jobs_fault(make: Make, tmp_path: Path) -> None:
    uri = (tmp_path / "w.pth").as_uri()
    with pytest.raises(JobError, match=r"^the weights cannot be fetched: .*; correct --weight-path$"):
        make().get(JobSpec(network=NETWORK, weights=uri))


def test_no_job_opens_a_file_of_the_workers_machine(make: Make, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "w.pth")
    for weights in (str(tmp_path / "w.pth"), "/etc/passwd", "~/.bashrc", "w.pth", str(tmp_path / "nothing.pth")):
        with pytest.raises(JobError, match=r"^the weights are a file of the worker's machine: give a file of yours"):
            make().get(JobSpec(network=NETWORK, weights=weights))


# --- preloading -------------------------------------------------------------------------------------------------------


def _no_load(*_: object, **__: object) -> None:
    raise AssertionError("this model should have been there")


def test_a_preloaded_model_is_the_one_that_jobs_ask_for(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    _saved(tmp_path / "w.pth")
    digest = sha256_of(tmp_path / "w.pth")
    uploaded = (tmp_path / "w.pth").rename(tmp_path / "weights" / digest).as_uri()
    models = make()
    models.preload([f"{NETWORK}=random", f"{NETWORK}={uploaded}"])
    monkeypatch.setattr(networks, "load", _no_load)
    assert models.get(RANDOM.model_copy(update={"class_id": 3})).random
    # As the producer sends it.
    assert models.get(JobSpec(network=NETWORK, weights=uploaded, weights_sha256=digest)).weights_digest == digest


def test_what_cannot_be_preloaded_is_warned_of(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = make()
    models.preload(["resnet5000", f"{NETWORK}={(tmp_path / 'nowhere').as_uri()}", f"{NETWORK}=random"])
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert ["resnet5000" in warnings[0], "nowhere" in warnings[1]] == [True, True]
    assert all(warning.startswith("action=not_preloaded ") for warning in warnings)
    assert models.get(RANDOM).random


# --- memory -----------------------------------------------------------------------------------------------------------


_PROGRAM = """
import sys, weakref
from pathlib import Path

import psutil

from producer.jobs.fetch.fetcher import Fetcher
from producer.jobs.model.spec import JobSpec
from producer.jobs.fetch.policy import FetchPolicy
from worker.device.batches import open_device
from worker.models.loader import Models
from worker.settings import WorkerSettings

settings = WorkerSettings(weights_cache_dir=Path(sys.argv[1]), model_cache_bytes=1)
models = Models(Fetcher(FetchPolicy(), None), settings, open_device(settings.device))
last = None
for network in sys.argv[2:]:
    model = models.get(JobSpec(network=network, weights="random")).model
    assert last is None or last() is None, "the model before is still there"
    last = weakref.ref(model)
    del model
    print(psutil.Process().memory_info().rss / 2**20)
"""


def test_networks_in_turn_do_not_add_up(tmp_path: Path) -> None:
    """One is of 233 MiB, one of 50 times less; loading takes a multiple of that, and all of it comes back."""
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAM, str(tmp_path), "alexnet", NETWORK, "alexnet", NETWORK]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    large, small, large_again, small_again = map(float, done.stdout.split())
    assert large - small > 180
    assert abs(large_again - large) < 50
    assert abs(small_again - small) < 50


def test_a_model_at_work_outlives_its_place_in_the_cache(make: Make) -> None:
    models = make(model_cache_bytes=1)
    at_work = models.get(RANDOM)
    ref = weakref.ref(at_work.model)
    models.get(JobSpec(network="squeezenet1_0", weights="random"))
    assert ref() is at_work.model
    del at_work
    gc.collect()
    assert ref() is None


def test_models_are_loaded_one_at_a_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once: list[int] = []
    loading = threading.Semaphore(0)
    load, count = networks.load, threading.Lock()

    def watched(*arguments: Any, **options: Any) -> networks.Network:
        at_once.append(0 if count.acquire(blocking=False) else 1)
        try:
            loading.acquire(timeout=0.1)
            return load(*arguments, **options)
        finally:
            if at_once[-1] == 0:
                count.release()

    monkeypatch.setattr(networks, "load", watched)
    specs = [RANDOM, RANDOM, JobSpec(network="squeezenet1_0", weights="random"), RANDOM]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(make().get, specs))
    assert at_once == [0, 0]
    assert got[0] is got[1] is got[3]


def test_after_a_model_that_did_not_fit_there_is_more_room(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    models, load = make(), networks.load
    kept = weakref.ref(models.get(RANDOM).model)

    def too_large(*arguments: Any, **options: Any) -> networks.Network:
        torch.empty(2**60)
        return load(*arguments, **options)

    monkeypatch.setattr(networks, "load", too_large)
    with pytest.raises(Exception, match="does not fit into the device's memory"):
        models.get(JobSpec(network="squeezenet1_0", weights="random"))
    assert kept() is None
