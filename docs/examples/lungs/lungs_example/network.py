"""A network of one's own. Replace `Lungs` by yours; only `build_lungs` is known to workers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradcam_queue import NetworkSpec

CATEGORIES = ["clear", "opacity"]


class Lungs(nn.Module):
    """Three convolutions; it gives a dict, as many networks of research do."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Give the logits under `scores`, and the features beside them."""
        maps = self.features(x)  # (N, 16, H / 4, W / 4)
        pooled = maps.mean(dim=(2, 3))  # (N, 16)
        return {"features": pooled, "scores": self.head(pooled)}  # (N, num_classes)


def build_lungs(num_classes: int = 2) -> NetworkSpec:
    """Give the network to a worker, which calls this anew for each set of weights.

    `num_classes` lets jobs bring weights with another number of classes.
    """
    model = Lungs(num_classes)
    # Your trained weights come here, such as: model.load_state_dict(torch.load(…, weights_only=True)).
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return NetworkSpec(
        model,
        size=(96, 128),
        channels=1,
        mean=0.5,
        std=0.25,
        categories=CATEGORIES if num_classes == len(CATEGORIES) else None,
        layer="features.7",
        output="scores",
    )
