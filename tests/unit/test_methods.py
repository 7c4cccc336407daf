from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from worker.engine.explain import View, as_they_are, explain_many
from worker.engine.methods import METHODS, gradcam_plus_plus, xgradcam
from worker.pictures.render import heat_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pytorch_grad_cam as theirs
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

THEIRS = {
    "gradcam": theirs.GradCAM,
    "gradcam++": theirs.GradCAMPlusPlus,
    "hirescam": theirs.HiResCAM,
    "layercam": theirs.LayerCAM,
    "xgradcam": theirs.XGradCAM,
}


def _model() -> tuple[nn.Sequential, Tensor]:
    """Two convolutions behind ReLUs, and a head that is not mean pooling: G differs from place to place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * 64, 5),
        )  # fmt: skip
        # Logits in the hundreds: what pytorch-grad-cam adds to denominators, 1e-6, is little beside such gradients.
        model.get_parameter("6.weight").data *= 300
        return model.double().eval(), torch.randn(2, 3, 16, 16, dtype=torch.float64)


def _ours(method: str, layers: list[int]) -> list[np.ndarray]:
    """For each image the average of its maps at the layers, stretched once more, as pytorch-grad-cam does."""
    model, inputs = _model()
    answer = explain_many(model, [View(model[i], as_they_are) for i in layers], inputs, [3, 1], method=method)
    heats = [heat_of([maps[n, 0].numpy() for maps in answer.maps], (16, 16))[0] for n in range(2)]
    # It stretches the map of one layer again, too, after it was resized.
    return [(a - a.min()) / (a - a.min()).max() for a in heats]


def _reference(method: str, layers: list[int]) -> Any:
    model, inputs = _model()
    with THEIRS[method](model, [model[i] for i in layers]) as cam:
        return cam(inputs, [ClassifierOutputTarget(3), ClassifierOutputTarget(1)])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layers", [[4], [1, 4]])
def test_every_method_equals_pytorch_grad_cams(method: str, layers: list[int]) -> None:
    for ours, other in zip(_ours(method, layers), _reference(method, layers), strict=True):
        np.testing.assert_allclose(ours, other, atol=2e-5 if method != "gradcam++" else 2e-3)


def test_grad_cam_plus_plus_is_equation_19_by_hand() -> None:
    """Two channels of 1 x 2: sum(A) is 3 and 1; alpha = g^2 / (2 g^2 + g^3 sum(A)) where g is not 0."""
    A = torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]], dtype=torch.float64)
    G = torch.tensor([[[[1.0, -1.0]], [[2.0, 0.0]]]], dtype=torch.float64)
    first = 1 / (2 + 1 * 3) * 1  # the second place has a negative gradient
    second = 4 / (2 * 4 + 8 * 1) * 2
    expected = torch.tensor([[[first * 1, first * 2 + second * 1]]], dtype=torch.float64)
    torch.testing.assert_close(gradcam_plus_plus(A, G), expected, rtol=1e-14, atol=0)


def test_grad_cam_plus_plus_equals_the_derivatives_of_the_exponential() -> None:
    """The paper's Y is exp(score): its second and third derivative by autograd, put into the equation as printed."""
    A = torch.rand(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alpha, slope = torch.zeros_like(A), torch.zeros_like(A)
    for place in np.ndindex(4, 3):
        value = A[place].clone().requires_grad_()
        rest = (weights * A).sum() - weights[place] * A[place]
        derivatives = [torch.exp(rest + weights[place] * value)]
        for _ in range(3):
            derivatives += torch.autograd.grad(derivatives[-1], value, create_graph=True)
        slope[place] = derivatives[1].detach()
        alpha[place] = (derivatives[2] / (2 * derivatives[2] + A.sum() * derivatives[3])).detach()
    by_the_paper = ((alpha * slope.relu()).sum() * A).relu() / torch.exp((weights * A).sum())
    torch.testing.assert_close(gradcam_plus_plus(A[None, None], weights[None, None])[0], by_the_paper)


@pytest.mark.parametrize("method", METHODS)
def test_a_map_without_evidence_is_zero_and_finite(method: str) -> None:
    A = torch.tensor([[[[1.0, -1.0]]]])  # sums to 0
    for G in (torch.zeros_like(A), torch.full_like(A, -1.0)):
        maps = METHODS[method](A, G)
        assert maps.isfinite().all()
        assert (maps >= 0).all()
    assert xgradcam(A, torch.ones_like(A)).tolist() == [[[0, 0]]]


def test_a_denominator_of_zero_weighs_nothing() -> None:
    A, G = torch.tensor([[[[-3.0, 1.0]]]]), torch.tensor([[[[1.0, 1.0]]]])  # 2 + 1 * (-2)
    assert gradcam_plus_plus(A, G).tolist() == [[[0, 0]]]


def test_averaged_maps_are_normalised_each_by_itself() -> None:
    """A layer whose values are a thousand times as large weighs no more."""
    small, large = np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([[5000.0, 3000.0], [3000.0, 3000.0]])
    heat, flat = heat_of([small, large, np.full((3, 3), 7.0)], (2, 2))
    assert (heat.tolist(), flat) == ([[1, 1], [0, 0]], False)


def test_averaged_maps_are_resized_as_torch_does() -> None:
    map_ = np.random.default_rng(0).random((7, 7))
    stretched = torch.tensor((map_ - map_.min()) / (map_.max() - map_.min()))[None, None]
    expected = F.interpolate(stretched, (30, 20), mode="bilinear")[0, 0]
    np.testing.assert_allclose(heat_of([map_], (30, 20))[0], expected, atol=1e-5)
