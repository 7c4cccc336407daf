from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from producer.jobs.model.errors import DeviceError, JobError, ModelError, NotHere, WorkerError
from worker.device import batches
from worker.device.batches import Answers, Explained, explain_classes, open_device
from worker.device.draw import Drawn, draw_batch
from worker.engine.explain import View, as_they_are
from worker.engine.precision import _switches, float32_products
from worker.models.networks import Network


def network_of(model: nn.Module, layer: nn.Module) -> Network:
    return Network(
        name="small",
        model=model.eval().requires_grad_(False),
        layer=layer,
        layer_name="0",
        size=(8, 8),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        resize_px=8,
        classes=4,
        categories=None,
        weights_digest="random",
        random=True,
        device=torch.device("cpu"),
    )


class NotFinite(nn.Module):
    """Makes white pictures infinite."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.amin(dim=(1, 2, 3), keepdim=True) < 1)


@pytest.fixture
def small() -> Network:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3)
    return network_of(nn.Sequential(NotFinite(), conv, nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 4)), conv)


def explain_each(
    network: Network, inputs: Sequence[np.ndarray], class_ids: Sequence[int | None], **options: Any
) -> list[Explained | ModelError]:
    """One class of each image."""
    answers = explain_classes(network, inputs, class_ids, **options).answers()
    return [answer if isinstance(answer, ModelError) else answer[0] for answer in answers]


def images(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 255, (count, 8, 8, 3), np.uint8))


def guided(explained: Explained | ModelError) -> np.ndarray:
    assert isinstance(explained, Explained)
    assert explained.guided is not None
    return explained.guided


def test_a_batch_gives_an_explanation_an_image(small: Network) -> None:
    answers = explain_each(small, images(3), [None, 2, 0])
    assert all(isinstance(answer, Explained) for answer in answers)
    explained = [answer for answer in answers if isinstance(answer, Explained)]
    assert [answer.class_id for answer in explained[1:]] == [2, 0]
    assert (explained[0].map.shape, guided(explained[0]).shape) == ((6, 6), (8, 8, 3))


def test_an_image_whose_logits_are_not_finite_fails_alone(small: Network) -> None:
    batch = images(3)
    batch[1][:] = 255
    first, second, third = explain_each(small, batch, [0, 0, 0])
    assert isinstance(second, ModelError)
    alone = explain_each(small, [batch[2]], [0])[0]
    assert isinstance(first, Explained)
    np.testing.assert_allclose(guided(third), guided(alone), rtol=1e-5, atol=1e-7)


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
    for ours, theirs in zip(explain_each(halved, batch, classes), explain_each(wide, batch, classes), strict=True):
        assert isinstance(ours, Explained)
        assert isinstance(theirs, Explained)
        assert ours.class_id == theirs.class_id
        np.testing.assert_allclose(guided(ours), guided(theirs), rtol=1e-5, atol=1e-7)
    assert narrow.largest == 2


def test_pictures_that_do_not_fit_are_drawn_in_halves(small: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(pictures: torch.Tensor, *rest: Any) -> Drawn:
        if len(pictures) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw_batch(pictures, *rest)

    monkeypatch.setattr(batches, "draw_batch", narrow)
    halved: list[int] = []
    answers = of(
        explain_classes(small, images(5), [None] * 5, draw=["cam"], numbers=False, halved=halved.append).answers()
    )
    assert halved == [5, 3]
    assert [list(answer[0].drawn.pictures) for answer in answers if answer[0].drawn] == [["cam"]] * 5
    assert all(answer[0].guided is None for answer in answers)


def test_one_image_that_does_not_fit_is_the_workers_fault() -> None:
    class Full(nn.Module):
        def forward(self, _x: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model = nn.Sequential(Full(), nn.Conv2d(3, 5, 3))
    with pytest.raises(WorkerError, match="not even one image"):
        explain_each(network_of(model, model[1]), images(2), [0, 0])


def test_a_layer_that_cannot_be_explained_is_the_jobs_fault(small: Network) -> None:
    broken = network_of(small.model, small.model.get_submodule("4"))
    with pytest.raises(JobError, match="cannot be explained at"):
        explain_each(broken, images(1), [0])


def test_an_error_of_the_model_is_the_jobs_and_one_of_the_gpu_the_devices() -> None:
    class Wrong(nn.Module):
        def __init__(self, words: str) -> None:
            super().__init__()
            self.words = words

        def forward(self, _x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError(self.words)

    conv = nn.Conv2d(3, 5, 3)
    for words, kind in (
        ("shape '[1, 3]' is invalid for input of size 6\nmore", JobError),
        ("CUDA error: an illegal memory access was encountered\nmore", DeviceError),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", DeviceError),
    ):
        with pytest.raises(kind, match=re.escape(words.splitlines()[0])):
            explain_each(network_of(nn.Sequential(Wrong(words), conv), conv), images(2), [0, 0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_sentence() -> None:
    assert open_device("cpu").type == "cpu"
    with pytest.raises(WorkerError, match="no CUDA device"):
        open_device("cuda")


# --- classes, layers, methods, precision ------------------------------------------------------------------------------


def of(answers: Answers) -> list[list[Explained]]:
    assert not any(isinstance(answer, ModelError) for answer in answers)
    return [answer for answer in answers if not isinstance(answer, ModelError)]


def test_each_image_gets_as_many_classes_as_it_asked_for(small: Network) -> None:
    batch = images(4)
    answers = of(explain_classes(small, batch, [None, 2, [3, 0, 1], None], top_k=2).answers())
    classes = [[one.class_id for one in answer] for answer in answers]
    assert [len(row) for row in classes] == [2, 1, 3, 2]
    assert classes[1:3] == [[2], [3, 0, 1]]
    assert classes[0] == np.argsort(-answers[0][0].logits)[:2].tolist()
    for array, answer in zip(batch, answers, strict=True):
        for one in answer:
            alone = explain_each(small, [array], [one.class_id])[0]
            assert isinstance(alone, Explained)
            np.testing.assert_allclose(one.map, alone.map, rtol=1e-4, atol=1e-7)
            np.testing.assert_allclose(guided(one), guided(alone), rtol=1e-4, atol=1e-7)


def test_more_classes_than_there_are_is_all_of_them(small: Network) -> None:
    (answer,) = of(explain_classes(small, images(1), [None], top_k=9).answers())
    assert sorted(one.class_id for one in answer) == [0, 1, 2, 3]


def test_an_image_that_is_not_finite_fails_with_all_its_classes(small: Network) -> None:
    batch = images(2)
    batch[0][:] = 255
    bad, good = explain_classes(small, batch, [None, None], top_k=3).answers()
    assert isinstance(bad, ModelError)
    assert isinstance(good, list)
    assert len(good) == 3


@dataclass(frozen=True)
class Viewed(Network):
    views: tuple[View, ...] = ()


def test_each_layer_looked_at_gives_a_map(small: Network) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.MaxPool2d(2), nn.Conv2d(5, 4, 1), nn.Flatten(), nn.Linear(36, 4))
    views = tuple(View(model[i], as_they_are) for i in (0, 2))
    network = Viewed(**{**vars(network_of(model, model[2])), "views": views})
    (answer,) = of(explain_classes(network, images(1), [1]).answers())
    assert [map_.shape for map_ in answer[0].maps] == [(6, 6), (3, 3)]
    assert answer[0].map is answer[0].maps[0]


def test_a_method_changes_the_map_alone(small: Network) -> None:
    one, other = (explain_each(small, images(1), [1], method=method)[0] for method in ("gradcam", "layercam"))
    assert isinstance(one, Explained)
    assert isinstance(other, Explained)
    assert not np.array_equal(one.map, other.map)
    assert np.array_equal(guided(one), guided(other))
    with pytest.raises(JobError, match="unknown method"):
        explain_each(small, images(1), [1], method="cam")


def test_precision_is_of_the_pass_not_of_the_answer(small: Network) -> None:
    full, half = (explain_each(small, images(1), [1], precision=name)[0] for name in ("fp32", "bf16"))
    assert isinstance(full, Explained)
    assert isinstance(half, Explained)
    assert {half.logits.dtype, half.map.dtype, guided(half).dtype} == {np.dtype(np.float32)}
    assert 0 < np.abs(half.logits - full.logits).max() < 0.05
    with pytest.raises(JobError, match="fp16 needs a CUDA device"):
        explain_each(small, images(1), [1], precision="fp16")
    with pytest.raises(JobError, match="unknown precision 'fp8'; known are fp32, tf32, bf16, fp16"):
        explain_each(small, images(1), [1], precision="fp8")


def test_a_device_without_tf32_refuses_it_here_and_not_everywhere(small: Network) -> None:
    with pytest.raises(NotHere, match="tf32 needs an NVIDIA GPU of Ampere or later, and this is the CPU; use fp32"):
        explain_each(small, images(1), [1], precision="tf32")


class Asks(nn.Module):
    """Takes note of torch's switches while it runs."""

    seen: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        self.seen = switches()
        return x


def switches() -> tuple[str, ...]:
    backends: Any = torch.backends
    return tuple(each.fp32_precision for each in (backends.cudnn.conv, backends.cuda.matmul))


def test_fp32_is_fp32_while_a_batch_is_computed_and_torch_is_as_before_afterwards() -> None:
    """torch would compute convolutions in TF32, where there is any."""
    before = switches()
    asks, conv = Asks(), nn.Conv2d(3, 5, 3)
    network = network_of(nn.Sequential(asks, conv, nn.Flatten(), nn.Linear(5 * 36, 4)), conv)
    explain_each(network, images(1), [1])
    assert before[0] == "tf32"
    assert asks.seen == ("ieee", "ieee")
    with float32_products(tf32=True):
        assert switches() == ("tf32", "tf32")
    with pytest.raises(JobError, match="class_ids"):
        explain_each(network, images(1), [9])
    assert switches() == before


def test_older_torch_is_told_by_its_own_names() -> None:
    """Before 2.9 there were no others, and newer ones raise where both are used."""
    older = SimpleNamespace(allow_tf32=True)
    assert [(each.name, each.without, each.allowed) for each in _switches(older, older)] == [
        ("allow_tf32", False, True)
    ] * 2


def test_halvings_are_counted() -> None:
    conv = nn.Conv2d(3, 5, 3)
    network = network_of(nn.Sequential(Narrow(), conv, nn.Flatten(), nn.Linear(5 * 36, 4)), conv)
    halved: list[int] = []
    assert len(of(explain_classes(network, images(7), [None] * 7, top_k=2, halved=halved.append).answers())) == 7
    assert len(halved) == 3  # 7 -> 3 + 4 -> 1 + 2 + 2 + 2
