"""Tiny image classifiers in the layout of Hugging Face, with random weights, saved as transformers saves them."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import torch

#: Small ones of each kind; a last stage of two blocks, so that no shortcut is the last convolution.
CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [16, 24, 32], "depths": [1, 1, 2]},
    "convnext": {"num_stages": 3, "hidden_sizes": [8, 16, 24], "depths": [1, 1, 2]},
    "convnextv2": {"num_stages": 3, "hidden_sizes": [8, 16, 24], "depths": [1, 1, 2]},
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 2], "groups_width": 8},
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320, "image_size": 96},
    "vit": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
            "image_size": 48, "patch_size": 8},
    "deit": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
             "image_size": 48, "patch_size": 8},
    "swin": {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4, "image_size": 64},
}  # fmt: skip
IMAGENET: Final = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def transformers() -> Any:
    """Its import takes a second."""
    package = import_module("transformers")
    package.logging.disable_progress_bar()
    return package


def saved(folder: Path, kind: str, *, labels: tuple[str, ...] = ("cat", "dog", "cup"), side: int = 96) -> Any:
    """Save a model with its pictures' preprocessing, and return it in eval mode."""
    package = transformers()
    config = package.AutoConfig.for_model(kind, id2label=dict(enumerate(labels)), **CONFIGS[kind])
    if kind == "deit":
        config.architectures = ["DeiTForImageClassification"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = package.AutoModelForImageClassification.from_config(config).eval()
        for name, parameter in model.named_parameters():
            # As after training: gradients that are no noise, and closed branches that are open.
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
            if name.endswith("layer_scale_parameter"):
                torch.nn.init.uniform_(parameter, 0.5, 1.0)
        with torch.no_grad():
            # BatchNorms learn what comes, so that signals do not vanish.
            model.train()(torch.randn(4, 3, *2 * (CONFIGS[kind].get("image_size", side),)))
    model.eval().save_pretrained(folder)
    sides = CONFIGS[kind].get("image_size", side)
    package.ViTImageProcessor(size={"height": sides, "width": sides}, **IMAGENET).save_pretrained(folder)
    return model


def changed(folder: Path, name: str = "config.json", **values: Any) -> None:
    """Change a JSON file of a folder; a value of None takes its key out."""
    content = json.loads((folder / name).read_text()) | values
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
