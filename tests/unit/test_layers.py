from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from built import without_numbers
from torch import nn
from torchvision import models
from torchvision.models import get_model

from producer.jobs.model.errors import JobError
from worker.models import layers
from worker.models.layers import last_conv, last_features, select_layers, shortcut_note, survey

LAST_FEATURES = {
    "alexnet": "features",
    "convnext_tiny": "features",
    "densenet121": "features",
    "efficientnet_b0": "features",
    "googlenet": "inception5b",
    "inception_v3": "Mixed_7c",
    "maxvit_t": "blocks.3",
    "mnasnet0_5": "layers",
    "mobilenet_v2": "features",
    "mobilenet_v3_small": "features",
    "regnet_y_400mf": "trunk_output",
    "resnet18": "layer4",
    "shufflenet_v2_x0_5": "conv5",
    "squeezenet1_1": "features",
    "swin_t": "norm",
    "swin_v2_t": "norm",
    "vgg11": "features",
    "vit_b_32": "encoder.layers.encoder_layer_11.ln_1",
}
TOKENS = {
    "vit_tiny_patch16_224": "blocks.11.norm1",
    "deit_tiny_distilled_patch16_224": "blocks.11.norm1",
    "mixer_s32_224": "blocks.7.norm1",
    "cait_xxs24_224": "blocks.23.norm1",
}


def _seen(model: nn.Module, size: tuple[int, int] = (224, 224)) -> layers.Survey:
    return survey("small", model.eval().requires_grad_(False), size)


# A few are asked for again and again.
@functools.lru_cache(maxsize=4)
def _torchvision(name: str) -> layers.Survey:
    options: dict[str, Any] = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    size = 299 if name == "inception_v3" else 256 if name == "swin_v2_t" else 224
    with without_numbers():
        return _seen(get_model(name, weights=None, **options), (size, size))


def _timm(name: str) -> layers.Survey:
    import timm

    with without_numbers():
        return _seen(timm.create_model(name, pretrained=False))


@pytest.mark.parametrize("name", LAST_FEATURES)
def test_the_last_features_of_each_family_are_in_the_table_and_carry_all_channels(name: str) -> None:
    seen = _torchvision(name)
    assert last_features(seen) == LAST_FEATURES[name]
    view = select_layers(seen, "last-features")[LAST_FEATURES[name]]
    run = next(run for run in seen.runs if run.module is view.module)
    channels = view.to_maps(torch.zeros(run.shape)).shape[1]
    heads = [module for module in seen.model.modules() if isinstance(module, nn.Linear)]
    flattened = {"alexnet": 6 * 6, "vgg11": 7 * 7}.get(name, 1)
    wide = {"mobilenet_v3_small": 576, "squeezenet1_1": 512, "alexnet": 9216, "vgg11": 25088}
    assert channels * flattened == wide.get(name, heads[-1].in_features if heads else None)


def test_every_family_of_torchvision_has_last_features() -> None:
    builders = [models.get_model_builder(name) for name in models.list_models(module=models)]
    names = [models.get_model_builder(name).__module__ for name in LAST_FEATURES]
    assert {builder.__module__ for builder in builders} == set(names)


@pytest.mark.parametrize("name", TOKENS)
def test_the_tokens_of_timms_transformers_are_found(name: str) -> None:
    seen = _timm(name)
    assert (last_features(seen), last_conv(seen)) == (TOKENS[name], TOKENS[name])
    (view,) = select_layers(seen, "last-features").values()
    run = next(run for run in seen.runs if run.module is view.module)
    assert view.to_maps(torch.zeros(run.shape)).shape[2:] == ((7, 7) if "32" in name else (14, 14))


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t"])
def test_the_last_convolution_of_a_transformer_is_never_its_first_layer(name: str) -> None:
    assert last_conv(_torchvision(name)) == LAST_FEATURES[name]


@pytest.mark.parametrize(("name", "main"), [("resnet10t", "layer4.0.conv2"), ("resnest14d", "layer4.0.conv3")])
def test_a_last_convolution_on_a_shortcut_is_told_with_what_to_name(name: str, main: str) -> None:
    """`last-conv` is the last convolution that runs, as in the original; there its map misses the block's own work."""
    seen = _timm(name)
    assert last_conv(seen) == "layer4.0.downsample.1"
    assert "The last convolution, layer4.0.downsample.1, lies on the shortcut" in shortcut_note(seen)
    assert f"(here {main})" in shortcut_note(seen)
    assert list(select_layers(seen, main)) == [main]


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "convnext_tiny", "vit_b_32"])
def test_networks_whose_last_convolution_is_the_blocks_own_have_no_note(name: str) -> None:
    assert shortcut_note(_torchvision(name)) == ""


def test_a_transformer_behind_a_long_entrance_has_no_last_convolution() -> None:
    with pytest.raises(JobError, match="the last maps of small are not recognized; name a layer"):
        last_conv(_timm("levit_128s"))


def test_tokens_in_another_order_than_the_patches_are_refused() -> None:
    seen = _timm("hiera_tiny_224")  # its tokens stand in an order of their own
    with pytest.raises(JobError, match="not recognized; name a layer"):
        select_layers(seen, "last-features")
    with pytest.raises(JobError, match=r"'blocks.0' of small gives \(1, 3136, 96\), not maps"):
        select_layers(seen, "blocks.0")


def test_class_tokens_are_dropped_and_patches_keep_their_places() -> None:
    (view,) = select_layers(_torchvision("vit_b_32"), "encoder.ln").values()
    tokens = torch.arange(2 * 50 * 768.0).view(2, 50, 768)
    maps = view.to_maps(tokens)  # (2, 768, 7, 7)
    assert maps.shape == (2, 768, 7, 7)
    assert torch.equal(maps[1, :, 3, 5], tokens[1, 1 + 3 * 7 + 5])


@pytest.mark.parametrize(
    ("name", "layer", "channels"), [("swin_t", "features.7", 768), ("convnext_tiny", "features.7.2.block.3", 3072)]
)
def test_channels_that_come_last_are_brought_to_the_front(name: str, layer: str, channels: int) -> None:
    (view,) = select_layers(_torchvision(name), layer).values()
    output = torch.arange(2 * 49 * channels).view(2, 7, 7, channels)
    assert torch.equal(view.to_maps(output)[1, :, 2, 6], output[1, 2, 6])


def test_attention_is_not_taken_for_maps() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 4, 4)
            self.qk = nn.Linear(8, 32)
            self.softmax = nn.Softmax(-1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            q, k = self.qk(tokens).unflatten(2, (2, 4, 4)).permute(2, 0, 3, 1, 4)
            weights: torch.Tensor = self.softmax(q @ k.transpose(-2, -1))  # (N, 4, 64, 64)
            return weights.mean(dim=(2, 3))

    with pytest.raises(JobError, match=r"gives \(1, 4, 64, 64\), not maps"):
        select_layers(_seen(Attention(), (32, 32)), "softmax")


@pytest.mark.parametrize(
    ("layer", "is_map"), [(nn.Conv2d(3, 9, 1, stride=4), True), (nn.Linear(8, 8), True), (nn.Identity(), False)]
)
def test_where_proportions_do_not_tell_the_kind_of_layer_does(layer: nn.Module, is_map: bool) -> None:
    """(1, 8, 8, 8) may be maps in two ways, and a layer without channels of its own may have either."""
    first = nn.Conv2d(3, 8, 4, 4) if not isinstance(layer, nn.Conv2d) else nn.Identity()
    seen = _seen(nn.Sequential(first, layer, nn.Flatten()), (32, 32))
    if is_map:
        maps = select_layers(seen, "1")["1"].to_maps(
            torch.zeros(next(run.shape for run in seen.runs if run.name == "1"))
        )
        assert maps.shape[2:] == (8, 8)
    else:
        with pytest.raises(JobError, match="not maps"):
            select_layers(seen, "1")


def test_several_layers_come_in_the_order_asked_for() -> None:
    chosen = select_layers(_torchvision("resnet18"), "layer4, last-conv,layer3,layer4")
    assert list(chosen) == ["layer4", "layer4.1.conv2", "layer3"]


@pytest.mark.parametrize("wanted", ["layer4,", "layer4,layer5", ",", "layer4;layer3"])
def test_one_wrong_layer_among_several_is_named(wanted: str) -> None:
    with pytest.raises(JobError, match="small has no layer '"):
        select_layers(_torchvision("resnet18"), wanted)


def test_a_network_without_maps_says_so() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    for wanted in ("last-conv", "last-features"):
        with pytest.raises(JobError, match="name a layer"):
            select_layers(_seen(flat, (8, 8)), wanted)


def test_a_survey_leaves_no_hook_behind_even_after_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(1, 1))
    with pytest.raises(RuntimeError):
        _seen(model, (8, 8))
    assert not any(module._forward_hooks for module in model.modules())
