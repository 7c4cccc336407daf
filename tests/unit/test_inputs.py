from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms import functional as F  # noqa: N812 - as everybody calls it

from worker.device.inputs import normalized

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pictures(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def test_a_network_reads_what_torchvision_makes_of_the_picture() -> None:
    batch = pictures(3, 20, 30, 3)
    expected = [F.normalize(F.to_tensor(each.numpy()), MEAN, STD) for each in batch]
    torch.testing.assert_close(normalized(batch, MEAN, STD), torch.stack(expected), rtol=0, atol=2e-7)


def test_of_a_grey_picture_it_reads_one_channel() -> None:
    batch = pictures(2, 5, 4, 1)
    inputs = normalized(batch, (0.25,), (0.5,))
    assert inputs.shape == (2, 1, 5, 4)
    torch.testing.assert_close(inputs[:, 0], (batch[..., 0] / 255 - 0.25) / 0.5)


def test_its_values_lie_in_memory_as_the_bytes_did() -> None:
    assert normalized(pictures(2, 8, 8, 3), MEAN, STD).is_contiguous(memory_format=torch.channels_last)


def test_255_times_what_a_network_reads_without_mean_is_the_bytes() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    assert torch.equal(normalized(levels, (0, 0, 0), (1, 1, 1)).permute(0, 2, 3, 1) * 255, levels.float())
