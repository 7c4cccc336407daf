"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from producer.jobs.fetch.fetcher import Fetcher
from producer.jobs.fetch.policy import FetchPolicy
from producer.jobs.model.spec import JobSpec
from worker.device.batches import explain_classes, open_device
from worker.models import networks
from worker.models.loader import Models
from worker.settings import WorkerSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def test_a_gpu_gives_the_cpus_explanations() -> None:
    batch = list(np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), np.uint8))
    on_gpu = explain_classes(
        networks.load("resnet50", weights="random", device=open_device("cuda")), batch, [0, 1, 2, 3]
    ).answers()
    on_cpu = explain_classes(networks.load("resnet50", weights="random"), batch, [0, 1, 2, 3]).answers()
    for gpu, cpu in zip(on_gpu, on_cpu, strict=True):
        assert isinstance(gpu, list)
        assert isinstance(cpu, list)
        assert gpu[0].guided is not None
        assert cpu[0].guided is not None
        assert np.corrcoef(gpu[0].guided.ravel(), cpu[0].guided.ravel())[0, 1] > 0.999


def test_models_in_turn_leave_no_memory_behind(tmp_path: Path) -> None:
    models = Models(
        Fetcher(FetchPolicy(), None),
        WorkerSettings(device="cuda", model_cache_bytes=120 * 2**20, weights_cache_dir=tmp_path),
        open_device("cuda"),
    )
    allocated = []
    torch.cuda.reset_peak_memory_stats()
    for name in ("resnet50", "resnet34") * 3:  # 98 and 83 MB: both do not fit
        models.get(JobSpec(network=name, weights="random"))
        allocated.append(torch.cuda.memory_allocated())
    assert allocated[4:] == allocated[2:4]
    assert torch.cuda.max_memory_allocated() < 130 * 2**20
    assert torch.cuda.memory_reserved() < 150 * 2**20
