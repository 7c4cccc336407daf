"""torchvision's detectors, prepared for pictures that have their size and are normalized already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor, nn

from worker.models.vision import models

#: Networks for boxes; those for the outlines and the joints of bodies are left out.
_FAMILIES: Final = ("fasterrcnn_", "retinanet_", "fcos_", "ssd")
_IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: Mean and standard deviation of those that have others.
_NORMALIZED: Final = {
    "ssd300_vgg16": ((0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255)),
    "ssdlite320_mobilenet_v3_large": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
#: Side of their inputs in px.
_SIDES_PX: Final = {
    "ssd300_vgg16": 300,
    "ssdlite320_mobilenet_v3_large": 320,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 320,
}
_SIDE_PX: Final = 800
#: How the layers of the scores of RetinaNet and SSD are named.
_HEAD: Final = "head.classification_head."
#: Where layers are looked for: the last part that all boxes come from. In SSD large boxes come from later layers.
_WITHIN: Final = {"ssd300_vgg16": "backbone.features", "ssdlite320_mobilenet_v3_large": "backbone.features.0"}
#: The first weights of these were trained with BatchNorms that add nothing to the variance.
_WITHOUT_EPS: Final = ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn")


def names() -> list[str]:
    """Return the names of torchvision's networks that give boxes."""
    return [name for name in models.list_models(module=models.detection) if _is_box(name)]


def _is_box(name: str) -> bool:
    return name.startswith(_FAMILIES)


def side_px(name: str) -> int:
    """Return the side of a network's own inputs in px."""
    return _SIDES_PX.get(name, _SIDE_PX)


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of what a network reads."""
    return _NORMALIZED.get(name, _IMAGENET)


def within(name: str) -> str:
    """Return the module within which `last-conv` and `last-features` are looked for."""
    return _WITHIN.get(name, "backbone.body")


def build(name: str, classes: int, size: tuple[int, int]) -> nn.Module:
    """Build a network that takes a batch of (N, 3, H, W), normalized, of one size, as it is."""
    model: Any = models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
    if name in _WITHOUT_EPS:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
    transform, (height, width) = model.transform, size
    transform.image_mean, transform.image_std = [0.0] * 3, [1.0] * 3
    # A resize to its own size changes no number; sides are not filled up, so that maps lie on the whole picture.
    transform.fixed_size, transform.size_divisible = (width, height), 1
    return model  # type: ignore[no-any-return]


def classes_in(state: Mapping[str, Tensor], own: Mapping[str, Tensor], classes: int) -> int | None:
    """Return for how many classes weights are, where the layers of the scores have rows for each shape of box.

    Args:
        state: The weights.
        own: Those of the network, built for so many `classes`.
        classes: As said.
    """
    heads = [name for name in own if name.startswith(_HEAD) and name.endswith(".weight") and name in state]
    for name in heads:
        shapes, left = divmod(len(own[name]), classes)
        fits = state[name].shape[1:] == own[name].shape[1:]  # else nothing of its shape is built
        if fits and not left and len(state[name]) % shapes == 0:
            return len(state[name]) // shapes
    return None


def classes_of(model: Any) -> int:
    """Return how many classes a built network has, that of the background included."""
    if hasattr(model, "roi_heads"):
        return int(model.roi_heads.box_predictor.cls_score.out_features)
    head = model.head.classification_head
    return int(getattr(head, "num_classes", None) or head.num_columns)
