from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from budget import either
from built import network as network_of
from built import without_numbers
from safetensors.torch import save_file
from torchvision import models
from torchvision.models import ResNet18_Weights, get_model, list_models

from producer.jobs.model.errors import JobError, NotHere
from worker.models import architectures, candidates, construction, networks, weights
from worker.models.classes import class_id_of
from worker.models.networks import Network, load

LAST_CONVS = {
    "vgg16": "features.28",
    "vgg19": "features.34",
    "resnet50": "layer4.2.conv3",
    "resnet101": "layer4.2.conv3",
    "densenet121": "features.denseblock4.denselayer16.conv2",
    "inception_v3": "Mixed_7c.branch_pool.conv",
}
#: Short names mean the commonest of their kind.
SHORT = {"vgg16": "vgg", "resnet50": "resnet", "densenet121": "densenet", "inception_v3": "inception"}


def _no_download(url: str, path: Path) -> None:
    raise AssertionError(f"downloaded {url}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def _saved(tmp_path: Path, name: str, classes: int = 7, **options: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = get_model(name, weights=None, num_classes=classes, **options).state_dict()
    torch.save(state, tmp_path / f"{name}.pth")
    return tmp_path / f"{name}.pth", state


def read(name: str, weights: str | Path | None = None, **options: Any) -> Network:
    """Load weights of a file into a network that has no numbers of its own."""
    with without_numbers():
        return load(name, weights, prepared=False, **options)


def _assert_holds(network: Network, state: dict[str, torch.Tensor]) -> None:
    own = network.model.state_dict()
    assert set(own) <= set(state)
    assert all(torch.equal(own[key], state[key]) for key in own)


# --- names and what comes with them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAST_CONVS)
def test_the_last_convolution_that_runs_is_found(name: str) -> None:
    network = load(SHORT.get(name, name), "random", download=_no_download, prepared=False)
    assert network.name == name
    assert network.layer_name == LAST_CONVS[name]
    assert network.model.get_submodule(network.layer_name) is network.layer
    assert network.size == ((299, 299) if name == "inception_v3" else (224, 224))
    assert (network.mean, network.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert network.categories is not None
    assert network.classes == len(network.categories) == 1000
    assert (network.categories[281], network.categories[282]) == ("tabby", "tiger cat")


def test_a_loaded_model_is_ready_to_be_explained_and_clean() -> None:
    network = load("resnet18", "random")
    assert not any(module.training for module in network.model.modules())
    assert not any(p.requires_grad for p in network.model.parameters())
    assert not any(module._forward_hooks for module in network.model.modules())
    assert network.device == torch.device("cpu")


def test_random_weights_are_the_same_every_time_and_disturb_nobody() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = load("mobilenet_v2", "random", prepared=False)
    assert torch.equal(torch.rand(3), expected)
    second = load("mobilenet_v2", "random", prepared=False)
    _assert_holds(first, second.model.state_dict())
    assert (first.weights_digest, first.random) == ("random", True)


def test_a_model_loaded_in_inference_mode_can_be_explained() -> None:
    with torch.inference_mode():
        network = load("resnet18", "random")
    assert not any(tensor.is_inference() for tensor in network.model.state_dict().values())


@pytest.mark.parametrize(
    ("wrong", "right"), [("resnet5", "resnet50"), ("vgg_16", "vgg16"), ("timm/resnet5", "timm/resnet50")]
)
def test_a_wrong_name_is_told_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(JobError, match=f"^no network is called '{wrong}'; the nearest are .*{right}"):
        load(wrong, "random")


def test_without_timm_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    for name in ("efficientnet_lite0", "timm/resnet18"):
        with pytest.raises(NotHere, match=r"timm is missing here; run: pip install 'gradcam-queue\[timm\]'"):
            load(name, "random")
    assert load("resnet18", "random").name == "resnet18"


def test_networks_of_timm_bring_their_own_preprocessing() -> None:
    network = load("timm/tf_efficientnet_lite0", "random")
    assert network.name == "timm/tf_efficientnet_lite0"
    assert (network.size, network.mean, network.std) == ((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert network.categories is not None


# --- layers -----------------------------------------------------------------------------------------------------------


def test_any_module_can_be_the_layer() -> None:
    network = load("resnet18", "random", "layer4", prepared=False)
    assert network.layer is network.model.get_submodule("layer4")


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("resnet18", "layer4.1.conv3", "has no layer 'layer4.1.conv3'; the nearest are layer4.1.conv2, layer4.1.conv1"),
        ("resnet18", "", "has no layer ''"),
        ("resnet18", "avgpool", r"gives \(1, 512, 1, 1\), not maps"),
        ("resnet18", "fc", r"gives \(1, 1000\), not maps"),
        ("resnet18", "layer4.1.relu", "runs 2 times in a forward pass, not once"),
        ("vit_b_32", "encoder.layers.encoder_layer_11.self_attention", "gives no tensor, not maps"),
    ],
)
def test_a_layer_without_maps_is_told_why(name: str, layer: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        load(name, "random", layer, prepared=False)


def test_several_layers_come_with_a_view_each() -> None:
    network = load("resnet18", "random", "layer3,last-features", prepared=False)
    assert network.layer_names == ("layer3", "layer4")
    assert [view.module for view in network.views] == [network.model.layer3, network.model.layer4]
    assert (network.layer_name, network.layer) == ("layer3", network.model.layer3)


def test_the_layer_of_a_transformer_is_one_of_tokens_and_its_name_says_so() -> None:
    network = network_of("vit_b_32")
    assert network.layer_names == (network.layer_name,) == ("encoder.layers.encoder_layer_11.ln_1",)
    assert network.views[0].to_maps(torch.zeros(2, 50, 768)).shape == (2, 768, 7, 7)


def test_a_layer_that_never_runs_is_refused() -> None:
    with pytest.raises(JobError, match="runs 0 times in a forward pass"):
        load(
            "swin_t", "random", "features.1.0.attn.qkv", prepared=False
        )  # its weight is used, the module is not called


def test_a_convolution_behind_the_pooling_is_not_the_last_with_a_map() -> None:
    assert load("timm/mobilenetv3_small_050", "random").layer_name == "blocks.5.0.conv"


# --- classes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet18() -> Network:
    return network_of("resnet18")


@pytest.mark.parametrize(("name", "class_id"), [("tabby", 281), ("TABBY", 281), ("Cardigan", 264), ("cardigan", 474)])
def test_a_class_is_found_by_its_name(resnet18: Network, name: str, class_id: int) -> None:
    assert class_id_of(resnet18, name) == class_id


def test_a_name_that_only_capitals_tell_apart_is_ambiguous_in_other_spellings(resnet18: Network) -> None:
    with pytest.raises(JobError, match="'CARDIGAN' is the name of classes 264 and 474; give a class id"):
        class_id_of(resnet18, "CARDIGAN")


def test_a_name_that_two_classes_have_is_ambiguous(resnet18: Network) -> None:
    assert resnet18.categories is not None
    network = replace(resnet18, categories=["crane", "cat", "crane"])
    with pytest.raises(JobError, match="'crane' is the name of classes 0 and 2; give a class id"):
        class_id_of(network, "crane")
    with pytest.raises(JobError, match="'Crane' is the name of classes 0 and 2"):
        class_id_of(network, "Crane")


def test_a_wrong_class_name_is_told_the_nearest(resnet18: Network) -> None:
    with pytest.raises(JobError, match=r"no class of resnet18 is called 'taby'; the nearest are .*tabby"):
        class_id_of(resnet18, "taby")


def test_classes_without_names_say_so(resnet18: Network) -> None:
    with pytest.raises(JobError, match="the classes of these weights of resnet18 have no names"):
        class_id_of(replace(resnet18, categories=None), "tabby")


def test_labels_name_the_classes_of_a_file(tmp_path: Path) -> None:
    path, _ = _saved(tmp_path, "resnet18", 3)
    network = read("resnet18", path, labels=("ant", "bee", "cow"))
    assert network.categories == ["ant", "bee", "cow"]
    assert class_id_of(network, "Bee") == 1
    with pytest.raises(JobError, match="there are 2 labels, but resnet18 has 3 classes here"):
        read("resnet18", path, labels=["ant", "bee"])


# --- weights from files -----------------------------------------------------------------------------------------------


def test_a_file_brings_its_own_number_of_classes(tmp_path: Path) -> None:
    path, state = _saved(tmp_path, "resnet18")
    network = read("resnet18", path)
    _assert_holds(network, state)
    assert (network.classes, network.categories, network.random) == (7, None, False)
    assert network.weights_digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert network.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2", "googlenet", "densenet121", "regnet_y_400mf"])
def test_heads_of_every_kind_are_found(tmp_path: Path, name: str) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    path, state = _saved(tmp_path, name, **options)
    network = read(name, str(path))
    _assert_holds(network, state)
    assert network.classes == 7


def test_the_head_is_found_in_every_family_of_torchvision() -> None:
    """With another number of classes the weight and bias of the head have another shape, nothing else."""
    classifiers = list_models(module=models)
    families = {line.family: line.name for line in architectures.catalog() if line.name in classifiers}
    assert len(families) >= 17
    families["regnet"] = "regnet_y_400mf"  # needs numbers while it is built
    for family, name in families.items():
        build = architectures.find(name, None).build
        with without_numbers(), torch.device("cpu" if family == "regnet" else "meta"):
            model, other = build(1000), build(7).state_dict()
        head = weights.head_of(model, 1000)
        differing = {key for key, tensor in model.state_dict().items() if tensor.shape != other[key].shape}
        assert head in differing <= {head, head.replace("weight", "bias")}, name


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "mobilenetv3_small_050"])
def test_heads_of_timms_networks_are_found(tmp_path: Path, name: str) -> None:
    import timm

    torch.save(timm.create_model(name, num_classes=7).state_dict(), tmp_path / "weights.pth")
    assert read(f"timm/{name}", tmp_path / "weights.pth").classes == 7


@pytest.mark.parametrize("safetensors", [False, True])
def test_a_mnasnet_loads_from_its_own_state_dict(tmp_path: Path, safetensors: bool) -> None:
    """It asks for the version of its format, which torch keeps beside the tensors and safetensors does not."""
    path, state = _saved(tmp_path, "mnasnet0_5")
    if safetensors:
        save_file(state, path)
    _assert_holds(read("mnasnet0_5", path), state)


@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_every_network_of_torchvision_takes_its_own_state_dict() -> None:
    """Names, shapes and versions, without numbers; `make sweep` does it with numbers."""
    networks_ = list_models(module=models)
    assert len(networks_) >= 80
    for name in networks_[:: either(3, 1)]:
        # Needs numbers while it is built.
        with without_numbers(), torch.device("cpu" if name.startswith("regnet") else "meta"):
            saved = io.BytesIO()
            torch.save(get_model(name, weights=None).to("meta").state_dict(), saved)
            # One transformer's own weights are for larger pictures than it is built for.
            size = (224, 224) if name.startswith("vit") else None
            model = architectures.find(name, None, size).build(1000).to("meta")
        saved.seek(0)
        content = torch.load(saved, weights_only=True)
        own, auxiliary = model.state_dict(), construction.AUXILIARY.get(name, ())
        choice = candidates.choose_state_dict({"net": content}, own, classes=1000, auxiliary=auxiliary)
        assert choice is not None
        assert choice.taken.fits, name
        weights.fit(model, choice.taken.state, name, choice.taken.unexpected)


def test_a_densenet_with_the_names_of_old_is_loaded(tmp_path: Path) -> None:
    _, state = _saved(tmp_path, "densenet121")
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value for key, value in state.items()}
    assert set(old) != set(state)
    torch.save({"state_dict": {f"module.{key}": value for key, value in old.items()}}, tmp_path / "old.pth.tar")
    _assert_holds(read("densenet121", tmp_path / "old.pth.tar"), state)


def test_weights_without_classes_are_not_offered() -> None:
    assert "IMAGENET1K_FEATURES" not in architectures.weights_names("vgg16")


def test_a_file_with_a_thousand_classes_keeps_their_names(tmp_path: Path) -> None:
    path, _ = _saved(tmp_path, "resnet18", 1000)
    network = read("resnet18", path)
    assert network.categories is not None
    assert network.categories[0] == "tench"


def test_a_wrapped_safetensors_file_works_too(tmp_path: Path) -> None:
    _, state = _saved(tmp_path, "resnet18")
    save_file({f"module.{key}": value for key, value in state.items()}, tmp_path / "net.bin")
    _assert_holds(read("resnet18", tmp_path / "net.bin"), state)


def test_weights_of_another_network_are_one_sentence(tmp_path: Path) -> None:
    path, _ = _saved(tmp_path, "resnet18")
    with pytest.raises(
        JobError, match=r"^the weights do not fit resnet34: layer1\.2\.conv1\.weight is missing"
    ) as caught:
        load("resnet34", path)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("aux_logits", [True, False])
def test_inception_is_the_same_with_and_without_its_auxiliary_head(tmp_path: Path, aux_logits: bool) -> None:
    path, state = _saved(tmp_path, "inception_v3", aux_logits=aux_logits, init_weights=False)
    network = read("inception_v3", path)
    _assert_holds(network, state)
    assert network.classes == 7
    # As torchvision builds it for its own weights.
    for model in (network.model, network_of("inception_v3").model):
        assert vars(model)["transform_input"] is True


@pytest.mark.parametrize("shallow", ["resnet18", "densenet121"])
def test_the_weights_of_a_deeper_network_are_refused(tmp_path: Path, shallow: str) -> None:
    deep = {"resnet18": "resnet34", "densenet121": "densenet169"}[shallow]
    with torch.device("meta"):
        state = get_model(deep, weights=None, num_classes=3).state_dict()
    torch.save(
        {"net": {key: torch.zeros_like(value, device="cpu") for key, value in state.items()}}, tmp_path / "deep.pth"
    )
    with pytest.raises(JobError, match=f"^the weights do not fit {shallow}: "):
        load(shallow, tmp_path / "deep.pth")


def test_a_checkpoint_says_what_was_taken_of_it(tmp_path: Path) -> None:
    _, state = _saved(tmp_path, "squeezenet1_1", 3)
    average = {key: torch.zeros_like(value) for key, value in state.items()}
    content = {"epoch": 3, "state_dict_ema": average, "net": {f"module.{key}": value for key, value in state.items()}}
    torch.save(content | {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, tmp_path / "checkpoint.pth")
    network = read("squeezenet1_1", tmp_path / "checkpoint.pth")
    _assert_holds(network, state)
    assert network.weights_read.startswith("taken: net.module.*; as well would fit: state_dict_ema.*; left: ")


def test_a_file_without_a_state_dict_is_one_sentence(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "weights.pth")
    with pytest.raises(JobError, match=r"^the weights file .*weights\.pth holds no state dict$"):
        load("squeezenet1_1", tmp_path / "weights.pth")


def test_a_small_file_cannot_ask_for_a_huge_network(tmp_path: Path) -> None:
    _, state = _saved(tmp_path, "squeezenet1_1", 3)
    state["classifier.1.weight"] = torch.zeros(1).expand(10**12, 512, 1, 1)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(JobError, match="claims more numbers than the file has"):
        load("squeezenet1_1", tmp_path / "weights.pth")


# --- without a classifier ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights_name", [None, "random"])
@pytest.mark.parametrize(
    "name", ["vit_small_patch16_224.dino", "vit_base_patch16_clip_224.openai", "resnet50_clip.yfcc15m"]
)
def test_a_network_of_features_is_refused_and_one_with_classes_named(name: str, weights_name: str | None) -> None:
    words = r"has no classifier: it puts out features of a picture, .* by --weight-path$"
    with pytest.raises(JobError, match=f"^timm/{re.escape(name)} {words}") as caught:
        load(f"timm/{name}", weights_name, download=_no_download)
    if name.startswith("vit"):
        (instead,) = re.findall(r"such as (\S+),", str(caught.value))
        assert architectures.find(instead, None).classes >= 1000
    with pytest.raises(JobError, match=words):
        networks.check_names(f"timm/{name}", weights_name)


def test_networks_of_timm_have_classes_where_they_were_trained_with_labels() -> None:
    import timm

    labelled, towers = 0, 0
    for name in timm.list_pretrained():
        config = timm.get_pretrained_cfg(name)
        assert config is not None
        is_labelled = re.search(r"in1k|in12k|in21k|in22k|inat|imagenet", str(config.tag)) and config.num_classes
        is_tower = re.search(r"_clip|openai$|laion2b$|datacomp\w*$|mclip|siglip|dino|mae$", name) and not is_labelled
        # timm says that those of this one have a head.
        is_tower = is_tower and not name.startswith("resmlp")
        if is_tower:
            assert architectures.find(f"timm/{name}", None).classes == 0, name
        elif is_labelled:
            assert architectures.find(f"timm/{name}", None).classes == config.num_classes >= 1000, name
        labelled, towers = labelled + bool(is_labelled), towers + bool(is_tower)
    assert labelled > 700
    assert towers > 100


def test_a_network_of_features_is_explained_with_a_head_of_ones_own(tmp_path: Path) -> None:
    import timm

    name = "mobilenetv4_conv_small"
    torch.save({"net": timm.create_model(name, num_classes=5).state_dict()}, tmp_path / "five.pth")
    assert read(f"timm/{name}", tmp_path / "five.pth").classes == 5
    vit = "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m"
    if timm.get_pretrained_cfg(vit) is None:
        vit = "vit_small_patch16_224.dino"
    state = timm.create_model(vit, num_classes=3).state_dict()
    torch.save(state, tmp_path / "three.pth")
    network = read(f"timm/{vit}", tmp_path / "three.pth")
    assert (network.classes, network.categories) == (3, None)
    for key in ("head.weight", "head.bias"):
        del state[key]
    torch.save(state, tmp_path / "none.pth")
    with pytest.raises(JobError, match=r"have no classifier \(head\.weight is missing\); give weights with a head"):
        load(f"timm/{vit}", tmp_path / "none.pth")


@pytest.mark.parametrize("head", ["missing", "identity", "empty"])
def test_weights_of_a_backbone_alone_are_refused_as_such(tmp_path: Path, head: str) -> None:
    path, state = _saved(tmp_path, "resnet18")
    if head == "empty":
        state |= {"fc.weight": torch.ones(0, 512), "fc.bias": torch.ones(0)}
    else:
        del state["fc.weight"], state["fc.bias"]
    torch.save({"model": state} if head == "identity" else state, path)
    with pytest.raises(
        JobError, match=r"^these weights of resnet18 have no classifier \(fc\.weight (is missing|has no rows)\)"
    ):
        load("resnet18", path)


# --- preprocessing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("resnet50", "bilinear-antialias"),
        ("efficientnet_b0", "bicubic-antialias"),
        ("timm/convnext_tiny.in12k_ft_in1k", "bicubic-antialias"),
        ("timm/resnet18.tv_in1k", "bilinear-antialias"),
    ],
)
def test_pictures_are_resized_bilinearly_until_a_job_asks_for_the_filter_of_the_weights(name: str, own: str) -> None:
    found = architectures.find(name, None)
    assert (found.resize_filter, found.own_filter) == ("bilinear", own)


def test_a_network_is_built_for_inputs_of_another_size() -> None:
    network = load("squeezenet1_1", "random", size=(160, 160))
    assert (network.size, network.resize_px) == ((160, 160), round(256 * 160 / 224))
    assert network.preprocessing == "160 x 160 px, mean 0.485 0.456 0.406, std 0.229 0.224 0.225, resized bilinear"
    wide = load("squeezenet1_1", "random", size=(96, 160))
    assert (wide.size, wide.resize_px) == ((96, 160), None)
    vit = load("vit_b_32", "random", size=(96, 96), prepared=False)
    assert vit.views[0].to_maps(torch.zeros(2, 10, 768)).shape == (2, 768, 3, 3)
    timms = load("timm/vit_tiny_patch16_224", "random", size=(96, 64))
    assert timms.views[0].to_maps(torch.zeros(2, 25, 192)).shape == (2, 192, 6, 4)


@pytest.mark.parametrize("name", ["vit_b_32", "timm/vit_tiny_patch16_224"])
def test_weights_of_a_transformer_say_for_which_size_they_are(tmp_path: Path, name: str) -> None:
    import timm

    if name.startswith("timm"):
        state = timm.create_model(name[5:], img_size=96, num_classes=3).state_dict()
    else:
        state = get_model(name, weights=None, image_size=96, num_classes=3).state_dict()
    torch.save({"model": state}, tmp_path / "small.pth")
    network = read(name, tmp_path / "small.pth")
    _assert_holds(network, state)
    assert (network.size, network.classes) == ((96, 96), 3)
    with pytest.raises(JobError, match=r"pos_embed\w* is \(1, \d+, \d+\), not \(1, \d+, \d+\)"):
        read(name, tmp_path / "small.pth", size=(64, 64))


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("inception_v3", (32, 32), "^inception_v3 cannot read pictures of 32 x 32 px: "),
        ("vit_b_32", (96, 64), "^vit_b_32 reads square pictures only"),
        ("vit_b_32", (100, 100), "^vit_b_32 cannot be built: "),
    ],
)
def test_a_size_that_a_network_cannot_read_is_the_jobs_fault(name: str, size: tuple[int, int], words: str) -> None:
    with pytest.raises(JobError, match=words) as caught:
        load(name, "random", size=size)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_neither_weights_nor_file_lists_the_names() -> None:
    with pytest.raises(JobError, match=r"neither a file nor .* of resnet50 \(DEFAULT, IMAGENET1K_V1, .*, random\)"):
        load("resnet50", "IMAGENET1K_V9")


# --- the networks' own weights ----------------------------------------------------------------------------------------


def test_weights_that_torch_hub_has_are_not_downloaded_again(hub: Path) -> None:
    hub.mkdir(parents=True)
    path = hub / ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    state = get_model("resnet18", weights=None).state_dict()
    torch.save(state, path)
    for name in (None, "DEFAULT", "IMAGENET1K_V1"):
        network = read("resnet18", name, download=_no_download)
        _assert_holds(network, state)
        assert network.weights_digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_named_weights_bring_their_own_preprocessing(hub: Path) -> None:
    asked = []

    def download(url: str, path: Path) -> None:
        asked.append(url)
        raise OSError("offline")

    with pytest.raises(JobError, match=r"^the weights of regnet_y_16gf could not be .*offline.*--weight-path$"):
        load("regnet_y_16gf", "IMAGENET1K_SWAG_E2E_V1", download=download)
    assert asked == ["https://download.pytorch.org/models/regnet_y_16gf_swag-43afe44d.pth"]


def test_timm_asks_for_the_file_that_belongs_to_the_network(hub: Path, tmp_path: Path) -> None:
    import timm

    state = timm.create_model("resnet18", pretrained=False).state_dict()
    asked = []

    def download(url: str, path: Path) -> None:
        asked.append(url)
        save_file(state, path)

    network = read("timm/resnet18", download=download)
    _assert_holds(network, state)
    assert asked == ["https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors"]


def test_efficientnet_lite0_comes_with_real_weights(tmp_path: Path) -> None:
    network = read("efficientnet_lite0", download=_no_download)
    assert network.weights_digest.startswith("57934424")  # the package's file names its own digest
    assert (network.size, network.mean, network.std) == ((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert network.layer_name == "conv_head"
    # The same weights under timm's own names.
    torch.save(network.model.state_dict(), tmp_path / "timm.pth")
    _assert_holds(read("efficientnet_lite0", tmp_path / "timm.pth"), network.model.state_dict())


def test_networks_can_be_named_without_any_optional_package() -> None:
    program = (
        "import sys; sys.modules['timm'] = sys.modules['cv2'] = None; import worker.models.networks\n"
        "from worker.models.architectures import names; print(*names())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert {"resnet", "resnet50", "efficientnet_lite0", "inception_v3"} <= set(run.stdout.split())
    assert run.stdout.split() == architectures.names()
