"""Networks of one's own, for tests: functions that workers can be told of, right and wrong ones."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_queue import NetworkSpec

#: How often a function here was called.
CALLS: list[str] = []
Pair = namedtuple("Pair", ["score", "features"])
_SHARED = nn.Conv2d(3, 2, 3)


class Net(nn.Module):
    """Two convolutions with a BatchNorm; `shape` makes its output of logits and features."""

    def __init__(self, channels: int = 3, classes: int = 3, shape: str = "tensor") -> None:
        super().__init__()
        self.conv1, self.norm, self.relu1 = nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU()
        self.fc = nn.Linear(8, classes)
        self.shape = shape
        with torch.no_grad():
            self.norm.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            self.norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.relu2(self.conv2(self.relu1(self.norm(self.conv1(x))))).mean(dim=(2, 3))
        return self.fc(features), features

    def forward(self, x: Tensor) -> Any:
        logits, features = self.logits(x)
        return SHAPES[self.shape](logits, features)


#: What a network may give, by name; where the logits are if that must be said.
SHAPES: dict[str, Any] = {
    "tensor": lambda logits, _: logits,
    "tuple": lambda logits, features: (logits, features),
    "list": lambda logits, features: [logits, features],
    "tuple with text": lambda logits, features: ("epoch 3", logits, features),
    "named tuple": Pair,
    "dict": lambda logits, features: {"features": features, "logits": logits},
    "object": lambda logits, features: SimpleNamespace(features=features, logits=logits),
    "second": lambda logits, features: (features, logits),
    "other key": lambda logits, features: {"features": features, "scores": logits},
    "attribute": lambda logits, features: SimpleNamespace(features=features, scores=logits),
    "nothing": lambda _logits, _features: None,
    "maps": lambda logits, _: logits[:, :, None, None],
    "detached": lambda logits, _: logits.detach(),
    "one image": lambda logits, _: logits.view(1, -1) if len(logits) == 1 else logits.view(1, 3),
}
ENTRIES: dict[str, str | int] = {"second": 1, "other key": "scores", "attribute": "scores"}


class Plain(nn.Module):
    """The same network with one tensor as its output: for other programs."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net.logits(x)[0]


class Colors(nn.Module):
    """Tells red and blue pixels from others by two convolutions made by hand; its output is torchvision's."""

    def __init__(self) -> None:
        super().__init__()
        edges = nn.Conv2d(3, 2, 5, padding=2, stride=2, bias=False)
        # Red minus green, and blue minus red: the mean of 5 x 5 pixels.
        colors = torch.tensor([[1.0, -1, 0], [-1, 0, 1]])[..., None, None] / 25
        edges.weight = nn.Parameter(colors.expand(2, 3, 5, 5).clone())
        self.backbone, self.head = nn.Sequential(edges, nn.ReLU()), nn.Conv2d(2, 3, 1)
        self.head.weight = nn.Parameter(torch.tensor([[0.0, 0], [5, 0], [0, 5]])[..., None, None])
        self.head.bias = nn.Parameter(torch.tensor([0.75, 0, 0]))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scores = self.head(self.backbone(x))
        return {"aux": scores[:, :1], "out": nn.functional.interpolate(scores, x.shape[2:], mode="bilinear")}


def build_colors() -> NetworkSpec:
    return NetworkSpec(
        Colors(), size=(96, 128), mean=0, std=1, task="segmentation", categories=["background", "red", "blue"]
    )


def build_odd_task() -> NetworkSpec:
    return NetworkSpec(Net(), size=32, task="captions")  # type: ignore[arg-type]


def build_no_pixels() -> NetworkSpec:
    return NetworkSpec(Net(), size=32, task="segmentation")


def build_grey() -> NetworkSpec:
    CALLS.append("grey")
    return NetworkSpec(Net(1, 2, "dict"), size=(32, 48), mean=0.5, std=0.25, categories=["clear", "opacity"])


class Findings(nn.Module):
    """A network of six findings, of which a picture may have several; what it puts out differs from class to class."""

    def __init__(self, outputs: int = 6) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
            self.fc = nn.Linear(8, outputs)
            nn.init.normal_(self.fc.weight, std=6)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv2(self.conv1(x).relu()).relu().mean(dim=(2, 3)))
        return logits


FINDINGS = ["edema", "effusion", "nodule", "opacity", "fracture", "hernia"]


def build_findings() -> NetworkSpec:
    return NetworkSpec(Findings(), size=32, mean=0.5, std=0.25, categories=FINDINGS, activation="sigmoid")


def build_age() -> NetworkSpec:
    return NetworkSpec(Findings(1), size=32, mean=0.5, std=0.25, categories=["age"], activation="none")


def build_wrong_activation() -> NetworkSpec:
    return NetworkSpec(Net(), size=32, activation="tanh")


def build_any(num_classes: int = 3) -> NetworkSpec:
    return NetworkSpec(Net(classes=num_classes), size=32, layer="conv1")


def build_bare() -> nn.Module:
    return Net()


def build_detached() -> NetworkSpec:
    return NetworkSpec(Net(shape="detached"), size=32)


def build_for_one() -> NetworkSpec:
    return NetworkSpec(Net(shape="one image"), size=32)


def build_odd_types() -> NetworkSpec:
    return NetworkSpec(Net(), size=32, mean="grey")  # type: ignore[arg-type]


def build_no_size() -> NetworkSpec:
    return NetworkSpec(Net(), size=None)  # type: ignore[arg-type]


def build_nan() -> NetworkSpec:
    return NetworkSpec(Net(), size=32, std=float("nan"))


def build_leak() -> nn.Module:
    print("downloading …")
    raise RuntimeError("cannot fetch https://me:word@models.example/net.pth?token=abc")


def build_four() -> nn.Module:
    return Net(4)


def build_maps() -> NetworkSpec:
    return NetworkSpec(Net(shape="maps"), size=32)


def build_other_key() -> NetworkSpec:
    return NetworkSpec(Net(shape="other key"), size=32)


def build_wrong_key() -> NetworkSpec:
    return NetworkSpec(Net(shape="tuple"), size=32, output="scores")


def build_text() -> Any:
    return "resnet50"


def build_missing_file() -> nn.Module:
    torch.load("/nowhere/lungs.pth")
    return Net()


def build_bug() -> nn.Module:
    raise KeyError("head")


def build_shared() -> nn.Module:
    return _SHARED


def build_wrong_size() -> NetworkSpec:
    return NetworkSpec(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(9, 2)), size=32)


def build_mean() -> NetworkSpec:
    return NetworkSpec(Net(), size=32, mean=[0.5, 0.5])


def build_categories() -> NetworkSpec:
    return NetworkSpec(Net(), size=32, categories=["a"])


class OwnRelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (x > 0)


def build_own_relu() -> NetworkSpec:
    return NetworkSpec(
        nn.Sequential(nn.Conv2d(3, 4, 3), OwnRelu(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)), size=32
    )


def build_always_training() -> NetworkSpec:
    class AlwaysTraining(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def train(self, mode: bool = True) -> AlwaysTraining:
            return super().train(True)  # it never leaves training mode

        def forward(self, x: Tensor) -> Tensor:
            maps: Tensor = self.conv(x)
            return maps.mean(dim=(2, 3))

    return NetworkSpec(AlwaysTraining(), size=32)
