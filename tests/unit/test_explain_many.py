"""Several classes, layers and kinds of output in one call; and ReLUs that are written in other ways."""

from __future__ import annotations

import copy
import gc
import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from built import network as network_of
from captum.attr import GuidedBackprop, LayerGradCam
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from worker.engine.explain import View, as_they_are, explain, explain_many
from worker.engine.methods import METHODS
from worker.models.batchnorm import make_fast
from worker.pictures.min_max import min_max_scaled
from worker.pictures.render import render


def _inputs(n: int = 2, side: int = 16) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def _close(got: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * expected.abs().max().item())


class _Net(nn.Module):
    def __init__(self, between: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.between(4 * self.first(x))).relu_().mean((2, 3)))


def _net(between: Callable[[Tensor], Tensor] = F.relu) -> _Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return _Net(between).double().eval()


# --- classes and layers -----------------------------------------------------------------------------------------------


def test_several_classes_and_layers_equal_one_call_each() -> None:
    net, inputs = _net(), _inputs()
    class_ids = [[0, 3, 2], [1, 1, 0]]
    answer = explain_many(net, [View(net.first, as_they_are), View(net.second, as_they_are)], inputs, class_ids)
    assert answer.class_ids.tolist() == class_ids
    assert [maps.shape for maps in answer.maps] == [(2, 3, 16, 16)] * 2
    assert answer.guided.shape == (2, 3, 3, 16, 16)
    for k in range(3):
        for view, layer in enumerate([net.first, net.second]):
            single = explain(net, layer, inputs, [row[k] for row in class_ids])
            assert torch.equal(answer.maps[view][:, k], single.maps)
        assert torch.equal(answer.guided[:, k], single.guided)
        assert answer.guided_relus == single.guided_relus


def test_the_most_likely_classes_come_in_their_order() -> None:
    net = _net()
    answer = explain_many(net, [View(net.second, as_they_are)], _inputs(3), top_k=3)
    assert torch.equal(answer.class_ids, answer.logits.topk(3).indices)


def test_what_is_not_asked_for_is_the_next_most_likely() -> None:
    net = _net()
    view = View(net.second, as_they_are)
    likely = explain_many(net, [view], _inputs(), top_k=4).class_ids
    asked: list[list[int | None]] = [[2, None], [-1, -1]]
    answer = explain_many(net, [view], _inputs(), asked)
    assert answer.class_ids.tolist() == [[2, likely[0, 1]], [likely[1, 0], likely[1, 1]]]


@pytest.mark.parametrize("method", METHODS)
def test_down_is_the_network_with_all_its_outputs_negated(method: str) -> None:
    """But the most likely classes are those of the network itself."""

    class Negated(_Net):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    net, negated = _net(), Negated().double().eval()
    negated.load_state_dict(net.state_dict())
    down = explain_many(net, [View(net.second, as_they_are)], _inputs(), top_k=2, method=method, down=True)
    assert torch.equal(down.class_ids, down.logits.topk(2).indices)
    view = View(negated.second, as_they_are)
    of_negated = explain_many(negated, [view], _inputs(), down.class_ids, method=method)
    assert torch.equal(down.maps[0], of_negated.maps[0])
    assert torch.equal(down.guided, of_negated.guided)
    up = explain_many(net, [View(net.second, as_they_are)], _inputs(), down.class_ids, method=method)
    assert torch.equal(up.logits, down.logits)
    assert not torch.equal(up.guided, -down.guided)  # ReLUs are guided by the sign of what comes back


@pytest.mark.parametrize("layer", ["first", "second"])
def test_down_is_what_captum_says_of_the_negated_network(layer: str) -> None:
    class Negated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            self.between, self.behind, self.fc = nn.ReLU(), nn.ReLU(), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return -self.fc(self.behind(self.second(self.between(4 * self.first(x)))).mean((2, 3)))

    net, negated = _net(), Negated().double().eval()
    negated.load_state_dict(net.state_dict())
    down = explain_many(net, [View(getattr(net, layer), as_they_are)], _inputs(), [3, 1], down=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum says that it sets hooks
        maps = LayerGradCam(negated, getattr(negated, layer)).attribute(
            _inputs(), target=[3, 1], relu_attributions=True
        )
        guided = GuidedBackprop(negated).attribute(_inputs().requires_grad_(), target=[3, 1])
    assert maps.max() > 0
    _close(down.maps[0][:, 0], maps[:, 0].detach())
    _close(down.guided[:, 0], guided.detach())


@pytest.mark.parametrize("class_ids", [[[4, 0], [0, 0]], [[0, 0]], torch.zeros(2, 0, dtype=torch.int64), [[0] * 5] * 2])
def test_classes_that_cannot_be_are_refused(class_ids: Any) -> None:
    net = _net()
    with pytest.raises(ValueError, match="class_ids must be"):
        explain_many(net, [View(net.second, as_they_are)], _inputs(), class_ids)


def test_an_unknown_method_is_refused() -> None:
    net = _net()
    with pytest.raises(ValueError, match=r"unknown method 'cam'; known are gradcam, gradcam\+\+, hirescam"):
        explain_many(net, [View(net.second, as_they_are)], _inputs(), method="cam")


@pytest.mark.parametrize("method", METHODS)
def test_tokens_are_a_grid_without_the_class_token(method: str) -> None:
    """The same network as convolutions and as tokens (N, 1 + h * w, C): the map is the same."""

    class Tokens(_Net):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            maps = self.second(F.relu(4 * self.first(x)))  # (N, C, h, w)
            tokens = maps.flatten(2).transpose(1, 2)  # (N, h * w, C)
            tokens = self.tokens(torch.cat([torch.ones_like(tokens[:, :1]), tokens], dim=1))
            return self.fc(tokens[:, 1:].relu().mean(1))

    def grid(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (16, 16))

    plain, tokens = _net(), Tokens().double().eval()
    tokens.load_state_dict(plain.state_dict())
    ours = explain_many(tokens, [View(tokens.tokens, grid)], _inputs(), [1, 2], method=method)
    theirs = explain_many(plain, [View(plain.second, as_they_are)], _inputs(), [1, 2], method=method)
    _close(ours.maps[0], theirs.maps[0])
    _close(ours.guided, theirs.guided)


def test_a_view_that_gives_no_maps_is_refused() -> None:
    net = _net()
    with pytest.raises(ValueError, match=r"gives \(2, 6, 256\) for 2 images, not \(N, C, h, w\)"):
        explain_many(net, [View(net.second, lambda output: output.flatten(2))], _inputs())


def test_half_precision_gives_float32_and_nearly_the_same() -> None:
    net = _net().float()
    views = [View(net.second, as_they_are)]
    full = explain_many(net, views, _inputs().float(), [3, 1])
    half = explain_many(net, views, _inputs().float(), [3, 1], autocast=torch.bfloat16)
    assert not torch.equal(half.logits, full.logits)
    assert {half.logits.dtype, half.maps[0].dtype, half.guided.dtype} == {torch.float32}
    assert F.cosine_similarity(half.guided.flatten(1), full.guided.flatten(1)).min() > 0.98
    _close(half.maps[0], full.maps[0], 0.05)
    assert not torch.is_autocast_enabled("cpu")


def test_eight_images_of_eight_classes_are_eight_runs_of_one() -> None:
    """Within one gray level in each of the four pictures, of a model prepared as workers have it."""
    network = network_of("resnet18")
    model = make_fast(network.model, [network.layer], (64, 64)).model
    inputs = _inputs(8, 64).float().contiguous(memory_format=torch.channels_last)
    class_ids = list(range(0, 800, 100))
    batch = explain(model, network.layer, inputs, class_ids)
    picture = np.random.default_rng(0).random((64, 64, 3), np.float32)
    for i, class_id in enumerate(class_ids):
        single = explain(model, network.layer, inputs[i : i + 1], [class_id])
        ours, alone = (
            render(picture, answer.maps[at].numpy(), answer.guided[at].permute(1, 2, 0).numpy())
            for answer, at in ((batch, i), (single, 0))
        )
        for name, drawn in ours.items():
            if name == "heatmap":  # a color map: its colors are further apart than its levels
                continue
            assert np.abs(drawn.astype(int) - alone[name].astype(int)).max() <= (5 if name == "cam" else 1), name
        levels = [255 * min_max_scaled(answer.maps[at].numpy())[0] for answer, at in ((batch, i), (single, 0))]
        assert np.abs(levels[0] - levels[1]).max() <= 1


# --- ReLUs written in other ways --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "same_as"),
    [
        (lambda x: x.clamp(min=0), F.relu),
        (lambda x: torch.clamp_(x, min=0), F.relu),
        (lambda x: F.threshold(x, 0, 0), F.relu),
        (lambda x: x.clamp(0, 6), F.relu6),
        (lambda x: F.relu6(x) / 6 * 6, F.relu6),
        (lambda x: F.relu6(x + x) / 6 * 6, lambda x: F.relu6(2 * x)),
    ],
)
def test_relus_in_other_words_are_guided(
    other: Callable[[Tensor], Tensor], same_as: Callable[[Tensor], Tensor]
) -> None:
    ours, theirs = (explain(net, net.second, _inputs(), [1, 2]) for net in (_net(other), _net(same_as)))
    assert ours.guided_relus == theirs.guided_relus == 2
    _close(ours.guided, theirs.guided)


@pytest.mark.parametrize(
    ("gate", "same_as"),
    [
        (lambda x: x * F.relu6(x + 3) / 6, F.hardswish),
        (lambda x: x * (F.relu6(x + 3.0) / 6), F.hardswish),
        (lambda x: x * F.relu6(x + 3.0).div_(6.0), F.hardswish),
        (lambda x: F.relu6(x + 3, inplace=True) * (1 / 6), F.hardsigmoid),
        (lambda x: (x + 3).clamp(0, 6) / 6, F.hardsigmoid),
        (lambda x: F.hardtanh(x + 3, 0, 6) / 6, F.hardsigmoid),
    ],
)
def test_gates_written_out_are_no_relus(gate: Callable[[Tensor], Tensor], same_as: Callable[[Tensor], Tensor]) -> None:
    """Guided, the picture of an old MobileNetV3 would be no gradient of anything."""
    ours, theirs = (explain(net, net.second, _inputs(), [1, 2]) for net in (_net(gate), _net(same_as)))
    assert ours.guided_relus == theirs.guided_relus == 1  # the one behind `second`
    _close(ours.guided, theirs.guided, 1e-6)  # torch has 1/6 in float32


@pytest.mark.parametrize("hidden", [lambda y: F.relu(y.view(-1), inplace=True), lambda y: y[:, :3].clamp_(0, 6)])
def test_a_relu_hidden_in_a_view_is_refused(hidden: Callable[[Tensor], Tensor]) -> None:
    """What is done to a view in place is one node in the graph, whatever it was."""

    def between(x: Tensor) -> Tensor:
        y = x.clone()
        hidden(y)
        return y

    net = _net(between)
    with pytest.raises(ValueError, match=r"hides its ReLUs .*CopySlices"):
        explain(net, net.second, _inputs())


def test_a_sum_in_place_in_a_view_hides_nothing() -> None:
    def between(x: Tensor) -> Tensor:
        y = x.relu() + 0
        y[:, :3] += 1
        y[:, 3:] = x[:, :3]
        y.view(-1).mul_(2)
        return y

    net = _net(between)
    assert explain(net, net.second, _inputs()).guided_relus == 2


# --- nothing is left behind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gradcam", "not one"])
def test_the_model_is_bit_for_bit_what_it_was(method: str) -> None:
    net = _net()
    state, training = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    try:
        explain_many(net, [View(net.second, as_they_are)], _inputs(), top_k=2, method=method)
    except ValueError:
        assert method == "not one"
    assert all(torch.equal(net.state_dict()[key], state[key]) for key in state)
    assert [module.training for module in net.modules()] == training
    assert not any(module._forward_hooks or module._backward_hooks for module in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_a_hundred_batches_leave_memory_flat() -> None:
    net, inputs = _net().float(), _inputs(8, 64).float()
    views = [View(net.first, as_they_are), View(net.second, as_they_are)]
    process = psutil.Process(os.getpid())
    used_mib = []
    for i in range(100):
        explain_many(net, views, inputs, top_k=2)
        if i % 20 == 19:
            gc.collect()
            used_mib.append(process.memory_info().rss / 2**20)
    # One batch's tensors are 6 MiB: were one in ten kept, 48 MiB would be left.
    assert used_mib[-1] - used_mib[0] < 20
