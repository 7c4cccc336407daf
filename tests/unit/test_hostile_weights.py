"""Weights that claim much or mean ill end as one sentence, in seconds, with little memory."""

from __future__ import annotations

import resource
import time
import zipfile
from pathlib import Path
from typing import Any

import own_models
import pytest
import torch
from hostile_weights import CASES, saved
from torch import Tensor, nn

from producer.jobs.model.errors import JobError
from worker.models import bounds, candidates, checkpoint, weights
from worker.models.networks import load

#: Of processor time, on a busy machine; and of memory, much of which reads the largest pickles.
MOST_S, MOST_BYTES = 20.0, 500_000_000


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADCAM_WORKER_NETWORKS", "mine=own_models:build_any")


def state_of() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return own_models.Net(classes=5).state_dict()


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.filterwarnings("ignore")  # of torch, about kinds of tensors that it calls a beta
@pytest.mark.parametrize("case", CASES)
def test_hostile_weights_end_as_one_sentence_in_seconds(tmp_path: Path, case: str) -> None:
    make, words = CASES[case]
    path = tmp_path / "weights.pth"
    path.write_bytes(make(state_of(), "fc.weight"))
    before, started = peak_bytes(), time.process_time()
    with pytest.raises(JobError, match=words) as caught:
        load("mine", path)
    assert time.process_time() - started < MOST_S
    assert peak_bytes() - before < MOST_BYTES
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


# --- what stays read --------------------------------------------------------------------------------------------------


def _training(state: dict[str, Tensor]) -> dict[Any, Any]:
    moments = {n: {"step": 9, "exp_avg": tensor, "exp_avg_sq": tensor} for n, tensor in enumerate(state.values())}
    return {
        "model": state,
        "model_ema": {key: tensor.clone() for key, tensor in state.items()},
        # Old optimizers name parameters by their places in memory.
        "optimizer": {"state": {140_000_000_000_000 + n: each for n, each in moments.items()}, "param_groups": []},
        "losses": [0.5] * 50_000,
        "seen": {"a", "b"},
        ("a", 1): 2,
    }


@pytest.mark.parametrize("old", [True, False])
def test_a_training_checkpoint_stays_read(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(saved(_training(state_of()), old=old))
    assert load("mine", path).weights_read.startswith("taken: model.*")


@pytest.mark.filterwarnings("ignore")  # as above
def test_odd_tensors_beside_the_weights_are_no_matter(tmp_path: Path) -> None:
    beside = {
        "mask": torch.ones(2, 2).to_sparse(),
        "table": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "spectrum": torch.ones(2, dtype=torch.complex64),
        "ragged": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "lost": torch.full((3,), float("nan")),
        "best": torch.tensor(float("inf")),
    }
    path = tmp_path / "weights.pth"
    path.write_bytes(saved({"net": state_of(), "beside": beside}))
    assert load("mine", path).classes == 5


def test_the_numbers_of_a_file_are_held_against_those_of_its_network(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(saved({"net": state_of(), "more": torch.zeros(10**6)}))
    assert checkpoint.read(path, 5_000_000)
    for old in (True, False):
        path.write_bytes(saved({"net": state_of(), "more": torch.zeros(10**6)}, old=old))
        with pytest.raises(
            JobError, match=r"holds [45] MB of numbers, and for this network at most 3 MB are read; save"
        ):
            checkpoint.read(path, 3_000_000)
    # Weights, an average, gradients and an optimizer's moments in float64.
    assert bounds.most_bytes(100_000_000) >= 10 * 100_000_000


def test_the_entries_of_an_archive_are_counted_behind_its_own_last_mark(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(saved(state_of()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/extra", CASES["a zip of a million entries"][0]({}, ""))
        archive.comment = b"a comment of any length" * 100
    bounds.check_entries(path)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_a_variance_of_infinity_shuts_a_channel_and_nan_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    variance = net.get_buffer("1.running_var")
    variance[0] = float("inf")
    weights.check_finite(net, "tiny")
    variance[0] = float("nan")
    with pytest.raises(JobError, match=r"1\.running_var holds NaN; give weights from before"):
        weights.check_finite(net, "tiny")


def test_masks_of_infinity_are_no_weights() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("mask", torch.full((2, 2), float("-inf")))
    weights.check_finite(net, "tiny")


# --- names ------------------------------------------------------------------------------------------------------------


def test_many_candidates_among_many_tensors_are_not_all_looked_at() -> None:
    own = {"weight": torch.ones(1), "bias": torch.ones(1)}
    one = torch.ones(1)
    content = {f"{n}.{name}": one for n in range(5_000) for name in own}
    started = time.process_time()
    choice = candidates.choose_state_dict(content, own)
    assert choice is not None
    assert choice.taken.fits
    assert time.process_time() - started < MOST_S
    with pytest.raises(JobError, match="more than 100000 tensors"):
        candidates.choose_state_dict({str(n): one for n in range(100_001)}, own)


def test_weights_for_pictures_of_thousands_of_pixels_are_refused(tmp_path: Path) -> None:
    """Nothing but the table of places is large: what would be computed with it is."""
    timm = pytest.importorskip("timm")
    name = "vit_tiny_patch16_224"
    state = timm.create_model(name).state_dict()
    path = tmp_path / "weights.pth"
    for side, channels, words in (
        (200, 192, "are for pictures of 3200 px, and 2048 px at most"),
        (1000, 0, r"pos_embed is \(1, 1000001, 0\), not \(1, 197, 192\)"),
    ):
        path.write_bytes(saved(state | {"pos_embed": torch.zeros(1, side**2 + 1, channels)}))
        with pytest.raises(JobError, match=words):
            load(f"timm/{name}", path)
