"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worker import networks
from worker.device import Explained, choose, explain_arrays

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def test_a_gpu_gives_the_cpus_explanations() -> None:
    batch = list(np.random.default_rng(0).standard_normal((4, 3, 224, 224)).astype(np.float32))
    on_gpu = explain_arrays(networks.load("resnet50", weights="random", device=choose("cuda")), batch, [0, 1, 2, 3])
    on_cpu = explain_arrays(networks.load("resnet50", weights="random"), batch, [0, 1, 2, 3])
    for gpu, cpu in zip(on_gpu, on_cpu, strict=True):
        assert isinstance(gpu, Explained)
        assert isinstance(cpu, Explained)
        assert np.corrcoef(gpu.guided.ravel(), cpu.guided.ravel())[0, 1] > 0.999
