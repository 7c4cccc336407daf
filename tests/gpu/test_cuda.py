"""What only a GPU can show; skipped where there is none. `make gpu-check` runs these tests too, without servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from worker.device.batches import Explained, explain_classes, open_device
from worker.engine.precision import float32_products, has_tf32
from worker.models import networks
from worker.models.networks import Network

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.fixture(scope="module")
def resnet50() -> Network:
    return networks.load("resnet50", weights="random", device=open_device("cuda"))


def noise(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), np.uint8))


def explained(network: Network, batch: list[np.ndarray], **options: object) -> list[Explained]:
    answers = explain_classes(network, batch, [0] * len(batch), **options).answers()  # type: ignore[arg-type]
    return [answer[0] for answer in answers if isinstance(answer, list)]


def correlation(one: np.ndarray | None, other: np.ndarray | None) -> float:
    assert one is not None
    assert other is not None
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_a_gpu_gives_the_cpus_explanations(resnet50: Network) -> None:
    on_gpu = explained(resnet50, noise(4))
    on_cpu = explained(networks.load("resnet50", weights="random"), noise(4))
    for gpu, cpu in zip(on_gpu, on_cpu, strict=True):
        np.testing.assert_allclose(gpu.logits, cpu.logits, rtol=0, atol=1e-4 * np.abs(cpu.logits).max())
        assert correlation(gpu.guided, cpu.guided) > 0.999
        assert correlation(gpu.map, cpu.map) > 0.999


# --- precision --------------------------------------------------------------------------------------------------------


def _products(tf32: bool) -> list[float]:
    """How far a convolution and a matrix product of float32 are from float64, relative to the largest value."""
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.float64)

    x, weight, a, b = random(4, 64, 28, 28), random(64, 64, 3, 3), random(256, 512), random(512, 256)
    with float32_products(tf32=tf32):
        got = F.conv2d(x.float(), weight.float(), padding=1), a.float() @ b.float()
    right = F.conv2d(x, weight, padding=1), a @ b
    return [float((g - r).abs().max() / r.abs().max()) for g, r in zip(got, right, strict=True)]


def test_products_of_float32_are_exact_without_tf32() -> None:
    assert max(_products(tf32=False)) < 1e-5


def test_tf32_is_what_was_asked_for() -> None:
    if not has_tf32(torch.device("cuda")):
        pytest.skip("this GPU has no TF32")
    assert min(_products(tf32=True)) > 1e-5
    assert max(_products(tf32=True)) < 1e-2
    assert max(_products(tf32=False)) < 1e-5


def test_jobs_in_turn_have_the_precision_that_each_asked_for(resnet50: Network) -> None:
    """A job in TF32 must leave nothing behind that the next one in fp32 would compute with."""
    batch = noise(2)
    first = explained(resnet50, batch)
    others = ["bf16", "fp16", *(["tf32"] if has_tf32(resnet50.device) else [])]
    for precision in others:
        for other, full in zip(explained(resnet50, batch, precision=precision), first, strict=True):
            assert not np.array_equal(other.logits, full.logits)
            assert correlation(other.guided, full.guided) > 0.95
    again = explained(resnet50, batch)
    for one, other in zip(again, first, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, rtol=0, atol=1e-4 * np.abs(other.logits).max())


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_model_in_half_precision_sees_what_the_whole_one_sees(
    resnet50: Network, precision: str, dtype: torch.dtype
) -> None:
    own = networks.load("resnet50", "random", device="cuda", dtype=dtype)
    for half, full in zip(explained(own, noise(2), precision=precision), explained(resnet50, noise(2)), strict=True):
        assert half.guided is not None
        assert half.guided.dtype == half.map.dtype == half.logits.dtype == np.float32
        assert correlation(half.guided, full.guided) > 0.95


# --- memory -----------------------------------------------------------------------------------------------------------


def test_batches_from_pinned_memory_are_never_mixed_up(resnet50: Network) -> None:
    """Copies run beside the computation: a buffer filled again too soon would give an image another's answer."""
    batches = [noise(8)[n : n + 4] for n in (0, 4)] * 10
    right = [[each.logits for each in explained(resnet50, batch)] for batch in batches[:2]]
    launched = [explain_classes(resnet50, batch, [0] * len(batch)) for batch in batches]
    for number, computation in enumerate(launched):
        for answer, expected in zip(computation.answers(), right[number % 2], strict=True):
            assert isinstance(answer, list)
            np.testing.assert_allclose(answer[0].logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let this process have 200 MiB more than it has now."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 200 * 2**20) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


class Large(nn.Module):
    """Needs 32 MiB an image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True).expand(-1, -1, 1024, 2700).contiguous().mean((2, 3), keepdim=True) + x


@pytest.mark.usefixtures("little_memory")
def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3)
    model = nn.Sequential(Large(), conv, nn.Flatten(), nn.Linear(5 * 36, 4)).eval().requires_grad_(False).cuda()
    facts = dict(name="large", model=model, layer=conv, layer_name="1", size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    rest = dict(resize_px=8, classes=4, categories=None, weights_digest="random", random=True)
    network = Network(**facts, **rest, device=torch.device("cuda"))  # type: ignore[arg-type]
    batch = list(np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8))
    halved: list[int] = []
    together = explained(network, batch, halved=halved.append)
    assert halved[0] == 16
    assert len(together) == 16
    for array, one in zip(batch, together, strict=True):
        (alone,) = explained(network, [array])
        np.testing.assert_allclose(one.logits, alone.logits, rtol=1e-4, atol=1e-5)


def test_models_in_turn_leave_no_memory_behind(tmp_path: Path) -> None:
    pytest.importorskip("pydantic", reason="a worker's settings need pydantic")
    pytest.importorskip("pydantic_settings", reason="a worker's settings need pydantic-settings")
    from producer.jobs.fetch.fetcher import Fetcher
    from producer.jobs.fetch.policy import FetchPolicy
    from producer.jobs.model.spec import JobSpec
    from worker.models.loader import Models
    from worker.settings import WorkerSettings

    models = Models(
        Fetcher(FetchPolicy(), None),
        WorkerSettings(device="cuda", model_cache_bytes=120 * 2**20, weights_cache_dir=tmp_path),
        open_device("cuda"),
    )
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    allocated = []
    torch.cuda.reset_peak_memory_stats()
    for name in ("resnet50", "resnet34") * 3:  # 98 and 83 MB: both do not fit
        models.get(JobSpec(network=name, weights="random"))
        allocated.append(torch.cuda.memory_allocated() - before)
    assert allocated[4:] == allocated[2:4]
    assert torch.cuda.max_memory_allocated() - before < 130 * 2**20
    assert torch.cuda.memory_reserved() - before < 150 * 2**20
