from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from budget import either
from built import network as network_of
from reference import guided_gradient
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from producer.jobs.model.errors import WorkerError
from worker.device.inputs import normalized
from worker.engine.explain import Explanation, OutOfMemory, explain
from worker.models.networks import Network, load
from worker.pictures.geometry import fit
from worker.pictures.min_max import min_max_scaled

NETWORKS = ["vgg16", "resnet50", "densenet121", "inception_v3", "efficientnet_lite0"]
#: The same with more layers.
DEEPER = ["vgg19", "resnet101"]


def _inputs(n: int = 2, side: int = 16, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(7), dtype=dtype)


def _close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal within `tolerance` of the largest value: gradients have no scale of their own."""
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * expected.abs().max().item())


# --- against independent implementations ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=either(NETWORKS, NETWORKS + DEEPER))
def explained(request: pytest.FixtureRequest) -> tuple[Network, Tensor, Explanation]:
    # Smaller than the networks' own size, for speed; inception needs 75 px.
    network = network_of(request.param, size=(96, 96), prepared=True)
    inputs = _inputs(2, 96, torch.float32)
    return network, inputs, explain(network.model, network.layer, inputs, [281, None])


def test_guided_gradients_equal_those_of_a_guided_relu(explained: tuple[Network, Tensor, Explanation]) -> None:
    network, inputs, answer = explained
    assert answer.guided_relus > 0
    assert answer.guided.abs().max() > 0
    _close(answer.guided, guided_gradient(network.model, inputs, answer.class_ids))


@pytest.mark.filterwarnings("ignore::UserWarning:captum")
def test_maps_equal_captums(explained: tuple[Network, Tensor, Explanation]) -> None:
    """Captum keeps the tensor that an in-place ReLU behind the layer overwrites, so none is in place for it."""
    from captum.attr import LayerGradCam

    network, inputs, answer = explained
    in_place = [m for m in network.model.modules() if getattr(m, "inplace", False)]
    try:
        for module in in_place:
            vars(module)["inplace"] = False
        theirs = LayerGradCam(network.model, network.layer).attribute(inputs, answer.class_ids, relu_attributions=True)
    finally:
        for module in in_place:
            vars(module)["inplace"] = True
    assert answer.maps.max() > 0
    # Float32, and other orders of summation through up to 100 layers.
    _close(answer.maps, theirs[:, 0].detach(), 1e-4)


def test_maps_equal_those_of_pytorch_grad_cam() -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network = network_of("resnet18", prepared=True)
    model, inputs = network.model.double(), _inputs(2, 64)
    answer = explain(model, network.layer, inputs, [3, 5])
    model.requires_grad_()  # theirs cannot do without
    with GradCAM(model, [network.layer]) as cam:
        theirs = cam(
            inputs, [ClassifierOutputTarget(3), ClassifierOutputTarget(5)]
        )  # normalized and resized: (N, H, W)
    for ours, other in zip(answer.maps, theirs, strict=True):
        small, flat = min_max_scaled(ours.numpy())
        assert not flat
        resized = F.interpolate(torch.tensor(small)[None, None], (64, 64), mode="bilinear")[0, 0]
        _close(resized, torch.tensor(other), 1e-5)


# --- every kind of ReLU -----------------------------------------------------------------------------------------------


class _Net(nn.Module):
    """Convolution, something with ReLUs, pooling, logits."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU()
        self.relu6 = nn.ReLU6(inplace=True)
        self.fc = nn.Linear(6, 4)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.middle(self, x).mean((2, 3)))


def _net(middle: Callable[[Any, Tensor], Tensor]) -> _Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return _Net(middle).double().eval()


def _shared_input(net: _Net, x: Tensor) -> Tensor:
    before = net.first(x)
    return net.second(F.relu(before)) * before.sigmoid()


KINDS: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {
    "module": (lambda net, x: net.second(net.relu(net.first(x))), 1),
    "functional": (lambda net, x: net.second(F.relu(net.first(x))), 1),
    "method": (lambda net, x: net.second(net.first(x).relu()), 1),
    "in place": (lambda net, x: net.second(F.relu(net.first(x), inplace=True)), 1),
    "in place behind the layer": (lambda net, x: F.relu(net.second(net.first(x).relu_()), inplace=True), 2),
    "reused": (lambda net, x: net.relu(net.second(net.relu(net.first(x)))), 2),
    "shared input": (_shared_input, 1),
    "relu6": (lambda net, x: net.second(net.relu6(8 * net.first(x))), 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_relu_is_guided(kind: str) -> None:
    middle, relus = KINDS[kind]
    net, inputs = _net(middle), _inputs(3)
    answer = explain(net, net.second, inputs)
    assert answer.guided_relus == relus
    _close(answer.guided, guided_gradient(net, inputs, answer.class_ids), 1e-12)
    plain = torch.autograd.grad(net(inputs.requires_grad_()).amax(1).sum(), inputs)[0]
    assert not torch.allclose(answer.guided, plain)


def test_an_in_place_relu_behind_the_layer_does_not_change_the_map() -> None:
    answer = explain(*_with_layer(KINDS["in place behind the layer"][0]), _inputs())
    other = explain(*_with_layer(lambda net, x: F.relu(net.second(net.first(x).relu()))), _inputs())
    assert torch.equal(answer.maps, other.maps)


def _with_layer(middle: Callable[[Any, Tensor], Tensor]) -> tuple[_Net, nn.Module]:
    net = _net(middle)
    return net, net.second


@pytest.mark.parametrize("other", [F.leaky_relu, F.silu, F.gelu, lambda x: F.hardtanh(x, -1, 1)])
def test_what_is_no_relu_is_not_guided(other: Callable[[Tensor], Tensor]) -> None:
    net, layer = _with_layer(lambda net, x: net.second(other(net.first(x))))
    inputs = _inputs()
    answer = explain(net, layer, inputs, [1, 1])
    plain = torch.autograd.grad(net(inputs.requires_grad_())[:, 1].sum(), inputs)[0]
    assert answer.guided_relus == 0
    assert torch.equal(answer.guided, plain)


def test_the_map_is_the_formula_of_the_paper() -> None:
    """One channel by hand: logit = w * mean(A), so dlogit/dA = w / (h * w) and the map is relu(w / (h * w) * A)."""
    layer = nn.Conv2d(3, 1, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))
    head = nn.Linear(1, 2).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0], [-2.0]]))
    model = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()
    inputs = _inputs(2, 4)
    answer = explain(model, layer, inputs, [0, 1])
    _close(answer.maps[0], (inputs[0, 0] * 2 / 16).relu(), 1e-12)
    _close(answer.maps[1], (inputs[1, 0] * -2 / 16).relu(), 1e-12)


# --- batches and classes ----------------------------------------------------------------------------------------------


def test_a_batch_equals_its_images_one_by_one() -> None:
    network = network_of("resnet18", prepared=True)
    model, inputs = network.model.double(), _inputs(3, 64)
    batch = explain(model, network.layer, inputs, [1, None, 900])
    for i, class_id in enumerate([1, None, 900]):
        single = explain(model, network.layer, inputs[i : i + 1], [class_id])
        for field in ("logits", "class_ids", "maps", "guided"):
            _close(getattr(batch, field)[i : i + 1], getattr(single, field), 1e-10)


def test_one_class_drives_map_and_guided_gradient() -> None:
    net, layer = _with_layer(KINDS["module"][0])
    answers = [explain(net, layer, _inputs(1), [class_id]) for class_id in range(4)]
    for i, answer in enumerate(answers):
        assert answer.class_ids.tolist() == [i]
        for other in answers[:i]:
            assert not torch.equal(answer.maps, other.maps)
            assert not torch.equal(answer.guided, other.guided)


def test_a_single_logit_is_explained_by_its_own_gradient() -> None:
    """Its probability may be near 0: what speaks for the one class is explained all the same."""
    net, layer = _with_layer(KINDS["module"][0])
    net.fc = nn.Linear(6, 1).double().eval()
    answer = explain(net, layer, _inputs(), None)
    assert answer.class_ids.tolist() == [0, 0]
    assert answer.guided.abs().max() > 0
    _close(answer.guided, guided_gradient(net, _inputs(), answer.class_ids))


@pytest.mark.parametrize("class_ids", [None, [None, -1], torch.tensor([-1, -1])])
def test_no_class_means_the_predicted_one(class_ids: Any) -> None:
    net, layer = _with_layer(KINDS["module"][0])
    answer = explain(net, layer, _inputs(), class_ids)
    assert answer.class_ids.dtype == torch.int64
    assert torch.equal(answer.class_ids, answer.logits.argmax(1))


@pytest.mark.parametrize("class_ids", [[4, 0], [-2, 0], [0], torch.tensor([0.0, 1.0])])
def test_class_ids_that_cannot_be_are_refused(class_ids: Any) -> None:
    net, layer = _with_layer(KINDS["module"][0])
    with pytest.raises(ValueError, match="class_ids must be"):
        explain(net, layer, _inputs(), class_ids)


def test_logits_that_are_not_finite_are_the_callers_to_judge() -> None:
    net, layer = _with_layer(KINDS["module"][0])
    inputs = _inputs()
    inputs[1] = float("nan")
    answer = explain(net, layer, inputs)
    assert answer.logits.isfinite().all(1).tolist() == [True, False]
    assert answer.guided[0].isfinite().all()


# --- nothing is touched -----------------------------------------------------------------------------------------------


def _state(model: nn.Module) -> tuple[dict[str, Tensor], int, list[Any]]:
    hooks = sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in model.modules()
    )
    return copy.deepcopy(model.state_dict()), hooks, [(p.grad, p.requires_grad) for p in model.parameters()]


def _assert_untouched(model: nn.Module, before: tuple[dict[str, Tensor], int, list[Any]]) -> None:
    state, hooks, gradients = _state(model)
    assert all(torch.equal(state[key], before[0][key]) for key in before[0])
    assert hooks == before[1] == 0
    assert gradients == before[2]


@pytest.mark.parametrize("frozen", [True, False])
def test_the_model_is_left_as_it_was(frozen: bool) -> None:
    network = network_of("mobilenet_v2", prepared=True)
    network.model.requires_grad_(not frozen)
    before, inputs = _state(network.model), _inputs(2, 64, torch.float32)
    kept = inputs.clone()
    explain(network.model, network.layer, inputs)
    _assert_untouched(network.model, before)
    assert torch.equal(inputs, kept)
    assert not inputs.requires_grad


@pytest.mark.parametrize("where", ["forward", "map", "guided"])
def test_the_model_is_left_as_it_was_after_an_error(where: str) -> None:
    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            if where == "forward":
                raise RuntimeError("broken")
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            raise RuntimeError("broken")

    def middle(net: Any, x: Tensor) -> Tensor:
        x = F.relu(net.first(x) if where == "map" else Breaks.apply(net.first(x)))
        return Breaks.apply(net.second(x)) if where == "map" else net.second(x)

    net, layer = _with_layer(middle)
    before = _state(net)
    with pytest.raises(RuntimeError, match="broken"):
        explain(net, layer, _inputs())
    _assert_untouched(net, before)


def test_no_hook_stays_in_a_graph_that_somebody_keeps() -> None:
    """After an error in front of the ReLU the graph behind it is whole, and must give plain gradients again."""

    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            raise RuntimeError("broken")

    kept: list[Tensor] = []

    def middle(net: Any, x: Tensor) -> Tensor:
        kept.append(net.first(x))
        kept.append(F.relu(kept[0]))
        return net.second(Breaks.apply(kept[1]))

    with pytest.raises(RuntimeError, match="broken"):
        explain(*_with_layer(middle), _inputs())
    before, after = kept
    (gradient,) = torch.autograd.grad(-after.sum(), before)
    assert torch.equal(gradient, -(before > 0).to(gradient))


def test_an_explanation_does_not_depend_on_those_before() -> None:
    network = network_of("mobilenet_v2", prepared=True)
    a, b = _inputs(4, 64, torch.float32).chunk(2)
    first, _, again = (explain(network.model, network.layer, x) for x in (a, b, a))
    for field in ("logits", "class_ids", "maps", "guided"):
        assert torch.equal(getattr(first, field), getattr(again, field))


def test_answers_hold_no_graph() -> None:
    answer = explain(*_with_layer(KINDS["module"][0]), _inputs())
    for field in (answer.logits, answer.class_ids, answer.maps, answer.guided):
        assert not field.requires_grad


@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(surrounding: Callable[[], Any]) -> None:
    net, layer = _with_layer(KINDS["module"][0])
    expected = explain(net, layer, _inputs())
    with surrounding():
        answer = explain(net, layer, _inputs())
    assert torch.equal(answer.guided, expected.guided)
    assert torch.equal(answer.maps, expected.maps)


def test_channels_last_gives_the_same() -> None:
    net, layer = _with_layer(KINDS["module"][0])
    expected = explain(net, layer, _inputs())
    net.to(memory_format=torch.channels_last)
    answer = explain(net, layer, _inputs().contiguous(memory_format=torch.channels_last))
    _close(answer.guided, expected.guided, 1e-12)
    _close(answer.maps, expected.maps, 1e-12)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_model_in_training_is_refused() -> None:
    net, layer = _with_layer(KINDS["module"][0])
    net.relu.train()
    with pytest.raises(ValueError, match="training mode"):
        explain(net, layer, _inputs())


def test_a_model_that_hides_its_relus_is_refused() -> None:
    """Its guided picture would silently be the plain gradient."""
    net, layer = _with_layer(KINDS["module"][0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        scripted = torch.jit.trace(nn.Sequential(net.first, net.relu).eval(), _inputs())
    in_place = copy.deepcopy(net)
    in_place.compile()
    for hidden in (torch.compile(net), nn.Sequential(scripted, nn.Flatten()).eval(), in_place):
        with pytest.raises(ValueError, match="compiled or scripted"):
            explain(hidden, layer, _inputs())  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::UserWarning:torch.utils.checkpoint")
def test_a_reentrant_checkpoint_is_refused() -> None:
    from torch.utils.checkpoint import checkpoint

    net, layer = _with_layer(
        lambda net, x: net.second(checkpoint(lambda y: F.relu(net.first(y)), x, use_reentrant=True))
    )
    with pytest.raises(ValueError, match="hides its ReLUs"):
        explain(net, layer, _inputs())


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (lambda net, x: net.first(x), "ran 0 times"),
        (lambda net, x: net.second(net.second(net.first(x))), "ran 2 times"),
        (lambda net, x: net.first(x) + 0 * net.second(net.first(x)).detach(), "do not depend"),
    ],
)
def test_a_layer_without_one_gradient_is_refused(middle: Callable[[Any, Tensor], Tensor], message: str) -> None:
    net, layer = _with_layer(middle)
    with pytest.raises(ValueError, match=message):
        explain(net, layer, _inputs())


def test_a_layer_without_maps_is_refused() -> None:
    net, _ = _with_layer(KINDS["module"][0])
    with pytest.raises(ValueError, match=r"gives \(2, 4\) for 2 images, not \(N, C, h, w\)"):
        explain(net, net.fc, _inputs())


def test_a_model_without_one_tensor_of_logits_is_refused() -> None:
    class Named(_Net):
        def forward(self, x: Tensor) -> Any:
            return {"out": super().forward(x)}

    net = Named(KINDS["module"][0]).double().eval()
    with pytest.raises(ValueError, match="gives a dict for 2 images"):
        explain(net, net.second, _inputs())


@pytest.mark.parametrize("inputs", [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)])
def test_inputs_that_are_no_batch_are_refused(inputs: Tensor) -> None:
    net, layer = _with_layer(KINDS["module"][0])
    with pytest.raises(ValueError, match="inputs must be"):
        explain(net, layer, inputs)


def test_out_of_memory_is_an_error_of_our_own_that_holds_no_tensors() -> None:
    net, layer = _with_layer(lambda net, x: net.second(torch.empty(2**62, dtype=torch.uint8) + x))
    with pytest.raises(OutOfMemory, match="a batch of 2 images does not fit") as caught:
        explain(net, layer, _inputs())
    assert issubclass(OutOfMemory, WorkerError)
    assert caught.value.__context__ is None


# --- the real network -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lite0() -> Network:
    return load("efficientnet_lite0")


def _explain_picture(network: Network, picture: Any) -> tuple[list[str], Explanation]:
    fitted, _frame = fit(picture, network.size, "squash")
    inputs = normalized(torch.from_numpy(fitted)[None], network.mean, network.std)
    answer = explain(network.model, network.layer, inputs)
    assert network.categories is not None
    return [network.categories[i] for i in answer.logits[0].topk(2).indices], answer


def test_a_real_network_looks_at_the_cat(lite0: Network) -> None:
    """The cat's face fills rows 35 to 190 and columns 30 to 175 of the squashed 224 px picture."""
    from skimage.data import chelsea

    names, answer = _explain_picture(lite0, chelsea())
    assert set(names) == {"tiger cat", "Egyptian cat"}
    heat = F.interpolate(
        torch.tensor(min_max_scaled(answer.maps[0].numpy())[0])[None, None], (224, 224), mode="bilinear"
    )
    face = torch.zeros(224, 224, dtype=torch.bool)
    face[35:190, 30:175] = True
    share, area = (heat[0, 0][face].sum() / heat.sum()).item(), face.float().mean().item()
    assert share > 1.3 * area
    # The strongest hundredth of the guided gradient is in its face, most of it in eyes and nose.
    strength = answer.guided[0].abs().sum(0)
    strongest = strength >= strength.quantile(0.99)
    assert face[strongest].float().mean().item() > 0.75


def test_a_real_network_knows_the_coffee(lite0: Network) -> None:
    from skimage.data import coffee

    names, answer = _explain_picture(lite0, coffee())
    assert names[0] == "espresso"
    assert answer.logits.softmax(1).max() > 0.85


def test_each_call_costs_one_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    net, layer = _with_layer(KINDS["module"][0])
    calls: list[str] = []
    real = torch.autograd.grad

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append("grad")
        return real(*arguments, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    middle = net.middle
    net.middle = lambda *a: calls.append("forward") or middle(*a)  # type: ignore[func-returns-value]
    explain(net, layer, _inputs())
    assert calls == ["forward", "grad", "grad"]
