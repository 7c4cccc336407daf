from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from producer.jobs.errors import JobError, ModelError, WorkerError
from worker.device import Explained, choose, explain_arrays
from worker.networks import Network


def network_of(model: nn.Module, layer: nn.Module) -> Network:
    return Network(
        name="small",
        model=model.eval().requires_grad_(False),
        layer=layer,
        layer_name="0",
        size=(8, 8),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        classes=4,
        categories=None,
        weights_digest="random",
        random=True,
        device=torch.device("cpu"),
    )


@pytest.fixture
def small() -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 4))
    return network_of(model, model[0])


def images(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32))


def test_a_batch_gives_an_explanation_an_image(small: Network) -> None:
    answers = explain_arrays(small, images(3), [None, 2, 0])
    assert all(isinstance(answer, Explained) for answer in answers)
    explained = [answer for answer in answers if isinstance(answer, Explained)]
    assert [answer.class_id for answer in explained[1:]] == [2, 0]
    assert (explained[0].map.shape, explained[0].guided.shape) == ((6, 6), (8, 8, 3))


def test_an_image_whose_logits_are_not_finite_fails_alone(small: Network) -> None:
    batch = images(3)
    batch[1][:] = np.nan
    first, second, third = explain_arrays(small, batch, [0, 0, 0])
    assert isinstance(second, ModelError)
    alone = explain_arrays(small, [batch[2]], [0])[0]
    assert isinstance(first, Explained)
    assert isinstance(third, Explained)
    assert isinstance(alone, Explained)
    np.testing.assert_allclose(third.guided, alone.guided, rtol=1e-5, atol=1e-7)


class Narrow(nn.Module):
    """A device's memory: more than two images at once do not fit."""

    largest = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.largest = max(self.largest, len(x))
        return x


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    torch.manual_seed(0)
    conv, head = nn.Conv2d(3, 5, 3), nn.Linear(5 * 36, 4)
    wide = network_of(nn.Sequential(conv, nn.ReLU(), nn.Flatten(), head), conv)
    narrow = Narrow()
    halved = network_of(nn.Sequential(narrow, conv, nn.ReLU(), nn.Flatten(), head), conv)
    batch, classes = images(7), [0, 1, 2, 3, 0, 1, 2]
    for ours, theirs in zip(explain_arrays(halved, batch, classes), explain_arrays(wide, batch, classes), strict=True):
        assert isinstance(ours, Explained)
        assert isinstance(theirs, Explained)
        assert ours.class_id == theirs.class_id
        np.testing.assert_allclose(ours.guided, theirs.guided, rtol=1e-5, atol=1e-7)
    assert narrow.largest == 2


def test_one_image_that_does_not_fit_is_the_workers_fault() -> None:
    class Full(nn.Module):
        def forward(self, _x: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model = nn.Sequential(Full(), nn.Conv2d(3, 5, 3))
    with pytest.raises(WorkerError, match="not even one image"):
        explain_arrays(network_of(model, model[1]), images(2), [0, 0])


def test_a_layer_that_cannot_be_explained_is_the_jobs_fault(small: Network) -> None:
    broken = network_of(small.model, small.model.get_submodule("3"))
    with pytest.raises(JobError, match="cannot be explained at"):
        explain_arrays(broken, images(1), [0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_sentence() -> None:
    assert choose("cpu").type == "cpu"
    with pytest.raises(WorkerError, match="no CUDA device"):
        choose("cuda")
