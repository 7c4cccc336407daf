from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from built import network as network_of
from torch import Tensor, nn

from worker.engine.explain import explain
from worker.models.batchnorm import fold_batch_norms, make_fast
from worker.models.networks import load


def _noise(n: int = 2, side: int = 16) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(3))


class _Net(nn.Module):
    """Two convolutions with a BatchNorm each, put together by `middle`."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.second, self.norm2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6, affine=False)
        self.last = nn.Conv2d(6, 5, 3)
        self.fc = nn.Linear(5, 4)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.middle(self, x).relu_()).relu().mean((2, 3)))


def _net(middle: Callable[[Any, Tensor], Tensor]) -> _Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = _Net(middle).eval().requires_grad_(False)
        for norm in (net.norm, net.norm2):
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        net.norm.weight.data.normal_()
        net.norm.bias.data.normal_()
        return net


def _plain(net: _Net, x: Tensor) -> Tensor:
    return net.norm2(net.second(net.norm(net.first(x)).relu()))


def _run_twice(net: _Net, x: Tensor) -> Tensor:
    x = net.norm(net.first(x)).relu()
    return net.norm2(net.second(net.norm2(net.second(x))))


def _read_twice(net: _Net, x: Tensor) -> Tensor:
    before = net.first(x)
    return net.norm2(net.second(net.norm(before).relu() + before))


def _before_the_convolution(net: _Net, x: Tensor) -> Tensor:
    return net.second(net.norm(net.first(x).relu()))


def _read_unseen(net: _Net, x: Tensor) -> Tensor:
    """The graph does not show this reader: only the logits tell."""
    before = net.first(x)
    return net.norm(before) + before.detach()


@pytest.mark.parametrize(
    ("middle", "folded"),
    [(_plain, 2), (_run_twice, 1), (_read_twice, 1), (_before_the_convolution, 0), (_read_unseen, 0)],
)
def test_a_batch_norm_that_alone_reads_a_convolution_is_folded(middle: Callable[..., Tensor], folded: int) -> None:
    net, reference = _net(middle), _net(middle)
    names = set(net.state_dict())
    model, count = fold_batch_norms(net, [net.last], _noise())
    assert (model, count) == (net, folded)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in net.parameters())
    if not folded:
        assert set(net.state_dict()) == names
        assert all(
            torch.equal(a, b) for a, b in zip(net.state_dict().values(), reference.state_dict().values(), strict=True)
        )
    _explains_alike(net, net.last, reference, reference.last, _noise(3))


def _explains_alike(model: nn.Module, layer: nn.Module, other: nn.Module, other_layer: nn.Module, x: Tensor) -> None:
    """In float64, where only the rounding of the folded weights to float32 is left."""
    ours = explain(model.double(), layer, x.double(), [1] * len(x))
    theirs = explain(other.double(), other_layer, x.double(), [1] * len(x))
    assert ours.guided_relus == theirs.guided_relus > 0
    for field in ("logits", "maps", "guided"):
        a, b = getattr(ours, field), getattr(theirs, field)
        assert (a - b).abs().max() <= 2e-5 * b.abs().max(), field


@pytest.mark.parametrize("chosen", ["second", "norm2", "first"])
def test_nothing_is_folded_behind_the_layer_looked_at(chosen: str) -> None:
    """Its map would change: folding multiplies the convolution's output and adds to it."""
    net, reference = _net(_plain), _net(_plain)
    layer = net.get_submodule(chosen)
    assert fold_batch_norms(net, [layer], _noise())[1] == 1
    assert net.get_submodule(chosen) is layer
    _explains_alike(net, layer, reference, reference.get_submodule(chosen), _noise())


def test_nothing_is_folded_behind_a_container_that_ends_in_a_convolution() -> None:
    box = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    model = nn.Sequential(box, nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    assert fold_batch_norms(model.requires_grad_(False), [box], _noise())[1] == 0


class _Standardised(nn.Conv2d):
    """A weight that is changed on its way would change a folded one too."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight / self.weight.std(), self.bias)


def test_a_convolution_that_changes_its_weight_is_left_alone() -> None:
    model = nn.Sequential(_Standardised(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    assert fold_batch_norms(model.requires_grad_(False), [], _noise())[1] == 0


def test_a_model_that_cannot_be_checked_is_not_folded() -> None:
    """It adds a float32 tensor of its own to float64, or gives what is not finite."""
    for odd in (lambda net, x: _plain(net, x) @ torch.eye(16), lambda net, x: _plain(net, x) / 0):
        net = _net(odd)
        assert fold_batch_norms(net, [], _noise())[1] == 0
        assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in net.state_dict().values())


@pytest.mark.parametrize(
    ("name", "left"), [("resnet18", 1), ("efficientnet_lite0", 1), ("inception_v3", 1), ("timm/resnet26t", 1)]
)
def test_real_networks_keep_what_they_say(name: str, left: int) -> None:
    """All but the BatchNorm behind the last convolution is folded, timm's with an activation in it as well."""
    network = load(name, "random", prepared=False)
    reference = copy.deepcopy(network.model)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in reference.modules())
    prepared = make_fast(network.model, [network.layer], (96, 96))
    assert prepared.folded == norms - left
    assert network.layer in list(prepared.model.modules())
    _explains_alike(
        prepared.model, network.layer, reference, reference.get_submodule(network.layer_name), _noise(1, 96)
    )


def test_a_prepared_model_has_its_channels_last_and_its_own_dtype() -> None:
    network = network_of("resnet18")
    prepared = make_fast(network.model, [network.layer], (64, 64), "cpu")
    weight = prepared.model.get_submodule("layer1.0.conv1").weight
    assert isinstance(weight, Tensor)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.dtype == torch.float32
    assert not any(module.training for module in prepared.model.modules())
    assert not any(module._forward_hooks for module in prepared.model.modules())


def test_a_model_without_batch_norms_is_not_even_run() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    model.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    assert fold_batch_norms(model, [], _noise()) == (model, 0)
