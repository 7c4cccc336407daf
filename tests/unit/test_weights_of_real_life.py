"""Weights as training programs leave them give the answers of the network that was saved."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from own_models import Net
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from producer.jobs.model.errors import JobError
from worker.models.networks import Network, load

Save = Callable[[Net, Path], object]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADCAM_WORKER_NETWORKS", "mine=own_models:build_any")


def net_of(classes: int = 5, seed: int = 7) -> Net:
    torch.manual_seed(seed)
    return Net(classes=classes).eval()


def answers(network: Network, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network.model(x)


def named(prefix: str, net: nn.Module) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in net.state_dict().items()}


def _part_in_dataparallel(net: Net, path: Path) -> None:
    state = net.state_dict()
    torch.save({key.replace("conv2.", "conv2.module.", 1): value for key, value in state.items()}, path)


def _ema(net: Net) -> AveragedModel:
    average = AveragedModel(net)
    average.update_parameters(net)
    return average


@pytest.mark.parametrize(
    ("save", "words"),
    [
        (lambda n, p: torch.save({"net": n.state_dict(), "acc": 93.1, "epoch": 5}, p), "taken: net.*"),
        (
            lambda n, p: torch.save(
                {
                    "state_dict": named("model.", n) | {"criterion.weight": torch.ones(5)},
                    "pytorch-lightning_version": "2.5",
                    "hyper_parameters": {"loss": nn.CrossEntropyLoss(), "lr": 0.1},
                    "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.9)}},
                    "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}}}],
                },
                p,
            ),
            "taken: state_dict.model.*; left: ",
        ),
        (
            lambda n, p: torch.save({"state_dict": named("backbone._orig_mod.", n)}, p),
            "taken: state_dict.backbone._orig",
        ),
        (lambda n, p: torch.save(named("_fsdp_wrapped_module.", n), p), "taken: _fsdp_wrapped_module.*"),
        (_part_in_dataparallel, "taken: all names as they are"),
        (lambda n, p: torch.save(_ema(n).state_dict(), p), "taken: module.*; left: n_averaged"),
        (lambda n, p: torch.save(n.state_dict() | {"total_ops": torch.zeros(1)}, p), "; left: total_ops"),
        (
            lambda n, p: torch.save({"model": n.state_dict(), "args": argparse.Namespace(lr=0.1), "scaler": None}, p),
            "taken: model.*",
        ),
        (lambda n, p: save_file(n.state_dict(), p, metadata={"format": "pt"}), "taken: all names as they are"),
    ],
)
def test_weights_are_found_whatever_is_around_them(tmp_path: Path, save: Save, words: str) -> None:
    net, x = net_of(), torch.randn(2, 3, 32, 32)
    save(net, tmp_path / "weights")
    network = load("mine", tmp_path / "weights")
    assert network.weights_read.startswith(words) or words in network.weights_read
    assert torch.allclose(answers(network, x), net(x), atol=1e-5)


@pytest.mark.parametrize("classes", [1, 2, 21_841])
def test_any_number_of_classes_is_read_from_the_head(tmp_path: Path, classes: int) -> None:
    net, x = net_of(classes), torch.randn(1, 3, 32, 32)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    network = load("mine", tmp_path / "weights.pth")
    assert network.classes == classes
    assert torch.allclose(answers(network, x), net(x), atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_are_computed_in_float32(tmp_path: Path, kind: torch.dtype) -> None:
    torch.save(net_of().to(kind).state_dict(), tmp_path / "weights.pth")
    network = load("mine", tmp_path / "weights.pth")
    assert {each.dtype for each in network.model.parameters()} == {torch.float32}
    expected = net_of().to(kind).float()
    x = torch.randn(1, 3, 32, 32)
    assert torch.allclose(answers(network, x), expected(x), atol=1e-4)


@pytest.mark.parametrize(
    "content",
    [
        lambda plain, average: {"model": plain.state_dict(), "model_ema": average.state_dict()},
        lambda plain, average: {"state_dict": named("net.", plain) | named("model_ema.module.", average)},
        lambda plain, average: {"model_ema": _ema(average).state_dict(), "model": plain.state_dict()},
    ],
)
def test_an_average_is_taken_where_it_is_named_and_the_plain_weights_where_not(
    tmp_path: Path, content: Callable[[Net, Net], Any]
) -> None:
    plain, average, x = net_of(seed=1), net_of(seed=2), torch.randn(1, 3, 32, 32)
    torch.save(content(plain, average), tmp_path / "weights.pth")
    usual = load("mine", tmp_path / "weights.pth")
    assert torch.allclose(answers(usual, x), plain(x), atol=1e-5)
    assert "as well would fit: " in usual.weights_read
    named_one = load("mine", tmp_path / "weights.pth", weight_key="model_ema")
    assert torch.allclose(answers(named_one, x), average(x), atol=1e-5)
    with pytest.raises(JobError, match=r"--weight-key ema_model: .* it has ") as caught:
        load("mine", tmp_path / "weights.pth", weight_key="ema_model")
    assert "model_ema." in str(caught.value)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (
            {"fc.1": nn.Linear(8, 5)},
            "its head is fc, and the head in the file is fc.1; where it is the same layer, rename",
        ),
        (
            {"classifier": nn.Linear(8, 5)},
            r"its head is fc, and the head in the file is classifier; .* rename classifier",
        ),
        ({"fc.0": nn.Linear(8, 16), "fc.2": nn.Linear(16, 5)}, "is fc.0, fc.2; register the network with this head"),
        ({}, "have no classifier .fc.weight is missing."),
    ],
)
def test_a_head_of_another_name_is_told_with_both_names(tmp_path: Path, head: dict[str, nn.Linear], words: str) -> None:
    """Fine-tuning often puts layers before the head: what they do, no name says."""
    state = {name: tensor for name, tensor in net_of().state_dict().items() if not name.startswith("fc.")}
    for name, layer in head.items():
        state |= named(f"{name}.", layer)
    torch.save({"model": state}, tmp_path / "weights.pth")
    with pytest.raises(JobError, match=words):
        load("mine", tmp_path / "weights.pth")
