"""Which weights a job means: a digest behind their address, or the one that its first worker found."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hf_models import saved

from producer.jobs.fetch.fetcher import Fetcher
from producer.jobs.fetch.pace import interruptible
from producer.jobs.fetch.policy import FetchPolicy
from producer.jobs.model.digests import sha256_of
from producer.jobs.model.errors import Interrupted, JobError, OtherWeights, UsageError
from producer.jobs.model.spec import JobSpec
from producer.jobs.store.bundle import read_folder
from producer.submission.weights import place_weights
from worker.models import networks
from worker.models.loader import Models, is_pinned
from worker.settings import WorkerSettings

NETWORK = "squeezenet1_1"
DIGEST = "0123456789abcdef" * 4
MISSING = "0" * 64
NO_STORE = cast("Any", None)

Make = Callable[[], Models]


# --- as typed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["https://host.test/w.pth?a=b", "http://host.test/w", "s3://bucket/w%23.pth", "s3://bucket/a#b", "file:///w.pth"],
)
def test_a_digest_behind_an_address_goes_into_the_job(address: str) -> None:
    """It was dropped of web addresses without a word, and part of an object's key of the others."""
    assert place_weights(f"{address}#sha256={DIGEST}", NO_STORE) == (address, DIGEST)
    assert place_weights(f"{address}#sha256={DIGEST.upper()}", NO_STORE) == (address, DIGEST)
    assert place_weights(address, NO_STORE) == (address, None)


def test_a_digest_behind_a_prefix_is_of_all_files_of_its_model() -> None:
    assert place_weights(f"s3://bucket/vit/#sha256={DIGEST}", NO_STORE, "hf") == ("s3://bucket/vit/", DIGEST)


@pytest.mark.parametrize("network", ["resnet50", "hf"])
@pytest.mark.parametrize(
    "address",
    [
        "https://host.test/w/#sha256=",
        "https://host.test/w/#sha256=abc",
        f"https://host.test/w/#sha256={DIGEST}0",
        f"https://host.test/w/#sha256={DIGEST[:-1]}g",
        f"https://host.test/w/#sha256={DIGEST}#top",
        f"s3://bucket/w/#sha256= {DIGEST}",
        "file:///w/#sha256=sha256",
    ],
)
def test_a_malformed_digest_is_a_usage_error(address: str, network: str) -> None:
    with pytest.raises(UsageError, match=r"^--weight-path: .*behind #sha256= stand 64 hexadecimal digits, and nothing"):
        place_weights(address, NO_STORE, network)


@pytest.mark.parametrize("fragment", ["top", f"md5={DIGEST[:32]}", f"SHA256={DIGEST}", f"sha256:{DIGEST}", DIGEST])
def test_another_fragment_of_a_web_address_of_weights_is_a_usage_error(fragment: str) -> None:
    """It would be dropped without a word, and whoever wrote it believe that something was checked."""
    with pytest.raises(UsageError, match=r"has a fragment that means nothing: behind # stands sha256= and the digest$"):
        place_weights(f"https://host.test/w.pth?token=sesame#{fragment}", NO_STORE)


# --- as loaded --------------------------------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made() -> Models:
        fetcher = Fetcher(FetchPolicy(file_roots=(tmp_path,)), None)
        return Models(fetcher, WorkerSettings(weights_cache_dir=tmp_path / "kept"), torch.device("cpu"))

    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(networks.load(NETWORK, "random", prepared=False).model.state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth"


def test_weights_with_a_digest_are_the_same_model_however_it_is_said(make: Make, file: Path) -> None:
    models, digest = make(), sha256_of(file)
    first = models.get(JobSpec(network=NETWORK, weights=f"{file.as_uri()}#sha256={digest}"))
    beside = JobSpec(network=NETWORK, weights=file.as_uri(), weights_sha256=digest)
    assert models.at_hand(beside)
    file.unlink()
    assert models.get(beside).model is first.model
    assert make().get(beside).weights_digest == digest  # from the disk


def test_an_address_whose_content_has_changed_is_another_model(make: Make, file: Path) -> None:
    """A new job has what lies there now; one that has begun has what it began with, or fails."""
    models, spec, before = make(), JobSpec(network=NETWORK, weights=file.as_uri()), sha256_of(file)
    assert is_pinned(spec)
    assert not is_pinned(JobSpec(network=NETWORK, weights=f"{file.as_uri()}#sha256={before}"))
    assert not is_pinned(JobSpec(network=NETWORK))
    assert models.get(spec).weights_digest == before
    assert not models.at_hand(spec)
    assert models.at_hand(spec, before)
    state = torch.load(file, weights_only=True)
    torch.save({name: 2 * tensor for name, tensor in state.items()}, file)
    after = sha256_of(file)
    assert models.get(spec).weights_digest == after
    assert models.get(spec, pinned=before).weights_digest == before
    with pytest.raises(OtherWeights, match=rf"have changed: .* SHA-256 {MISSING}, and there are now those of {after};"):
        models.get(spec, pinned=MISSING)


@pytest.mark.parametrize(
    ("behind", "beside", "words"),
    [
        (f"#sha256={MISSING}", None, rf"^the weights at file:\S+ have the SHA-256 [0-9a-f]{{64}}, not {MISSING}, "),
        ("#sha256=abc", None, r"^the weights file:\S+ are refused: behind #sha256= stand 64"),
        (f"#sha256={MISSING}", DIGEST, "are refused: the job has two digests of them$"),
    ],
)  # fmt: skip
def test_weights_that_are_not_the_named_ones_are_the_jobs_fault(
    make: Make, file: Path, behind: str, beside: str | None, words: str
) -> None:
    with pytest.raises(JobError, match=words):
        make().get(JobSpec(network=NETWORK, weights=file.as_uri() + behind, weights_sha256=beside))


def test_the_files_of_a_prefix_are_pinned_together(make: Make, tmp_path: Path) -> None:
    """Also where only the JSON beside the weights has changed: other classes, other means."""
    saved(tmp_path / "vit", "vit")
    spec, digest = (
        JobSpec(network="hf", weights=f"{(tmp_path / 'vit').as_uri()}/"),
        read_folder(tmp_path / "vit").sha256,
    )
    with make().fetched(spec) as found:
        assert found.key.weights_sha256 == digest
    with make().fetched(spec, digest) as found:
        assert found.key.weights_sha256 == digest
    config = tmp_path / "vit" / "config.json"
    config.write_text(config.read_text().replace("cat", "cow"))
    with pytest.raises(OtherWeights, match=f"have changed: the job is explained by those of SHA-256 {digest}"):
        make().fetched(spec, digest).__enter__()


def test_whoever_waits_for_another_process_that_fetches_can_be_interrupted(make: Make, file: Path) -> None:
    name = hashlib.sha256(file.as_uri().encode()).hexdigest()[:2]
    (file.parent / "kept").mkdir(mode=0o700)
    asked: list[None] = []

    def check() -> None:
        asked.append(None)
        if len(asked) > 1:
            raise Interrupted("enough")

    with (file.parent / "kept" / f"{name}.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with interruptible(check), pytest.raises(Interrupted):
            make().get(JobSpec(network=NETWORK, weights=file.as_uri()))
