"""A few networks of each family against the reference; `make sweep` does all."""

from __future__ import annotations

import pytest
from budget import either
from sweep_check import check

#: Networks, and how many of their ReLUs are guided.
SAMPLE = {
    "alexnet": 7,
    "convnext_tiny": 0,
    "densenet121": 121,
    "efficientnet_b0": 0,
    "googlenet": 57,
    "inception_v3": 94,
    "mnasnet0_5": 35,
    "mobilenet_v2": 35,
    "mobilenet_v3_small": 14,
    "regnet_y_400mf": 65,
    "resnet18": 17,
    "resnet50": 49,
    "shufflenet_v2_x0_5": 37,
    "squeezenet1_1": 26,
    "swin_t": 0,
    "swin_v2_t": 0,
    "vgg11_bn": 10,
    "vit_b_32": 0,
    "timm/mixer_s32_224": 0,
    "timm/tf_efficientnet_lite0": 33,
    "timm/vit_small_patch32_224": 0,
}


#: These take longest, and have a like among the others.
LONG = {"alexnet", "convnext_tiny", "densenet121", "resnet50", "swin_v2_t", "vgg11_bn"}


@pytest.mark.parametrize("name", [name for name in SAMPLE if name not in either(LONG, set[str]())])
def test_a_network_of_each_family_equals_the_reference(name: str) -> None:
    for row in check(name):
        assert (row.refused, row.faults) == ("", [])
        assert row.relus == SAMPLE[name]


@pytest.mark.parametrize("name", ["timm/levit_128s", "timm/hiera_tiny_224"])
def test_networks_whose_maps_are_not_recognised_are_refused_in_one_sentence(name: str) -> None:
    assert {row.refused for row in check(name)} == {f"the last maps of {name} are not recognized; name a layer"}
