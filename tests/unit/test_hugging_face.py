"""Models in the layout of Hugging Face: what they are, that their maps are right, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hf_models
import numpy as np
import pytest
import torch
from hf_models import changed, saved
from reference import guided_gradient
from torch import Tensor, nn

from producer.jobs.fetch.fetcher import Fetcher
from producer.jobs.fetch.policy import FetchPolicy
from producer.jobs.model.errors import JobError, NotHere
from producer.jobs.model.spec import JobSpec
from producer.jobs.store.bundle import read_folder
from worker.device.inputs import normalized
from worker.engine.explain import explain_many
from worker.models import hugging_face
from worker.models.as_asked import preprocessed
from worker.models.loader import Models
from worker.models.networks import Network, load
from worker.settings import WorkerSettings

#: The layers of `last-conv` and `last-features`.
LAYERS = {
    "resnet": ("resnet.encoder.stages.2.layers.1.layer.2.convolution", "resnet.encoder.stages.2"),
    "convnext": ("convnext.encoder.stages.2.layers.1.dwconv", "convnext.encoder.stages.2"),
    "convnextv2": ("convnextv2.encoder.stages.2.layers.1.dwconv", "convnextv2.encoder.stages.2"),
    "regnet": ("regnet.encoder.stages.3.layers.1.layer.3.convolution", "regnet.encoder.stages.3"),
    "mobilenet_v1": ("mobilenet_v1.layer.25.convolution", "mobilenet_v1.layer.25"),
    "mobilenet_v2": ("mobilenet_v2.conv_1x1.convolution", "mobilenet_v2.conv_1x1"),
    "efficientnet": ("efficientnet.encoder.top_conv", "efficientnet.encoder.top_activation"),
    "vit": ("vit.layers.1.layernorm_before",) * 2,
    "deit": ("deit.layers.1.layernorm_before",) * 2,
    "swin": ("swin.layernorm",) * 2,
}
#: Tokens before those of the patches, and the side of the grid.
TOKENS = {"vit": (1, 6), "deit": (2, 6), "swin": (0, 8)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """A folder and its model a kind."""
    made = {kind: tmp_path_factory.mktemp(kind) for kind in LAYERS}
    return {kind: (folder, saved(folder, kind)) for kind, folder in made.items()}


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    saved(tmp_path / "vit", "vit")
    return tmp_path / "vit"


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    saved(tmp_path / "resnet", "resnet")
    return tmp_path / "resnet"


class _Logits(nn.Module):
    """What transformers' model says, as one tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x).logits
        return logits


def _close(got: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert expected.abs().max() > 0
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * expected.abs().max().item())


# --- maps and gradients -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning:captum")
@pytest.mark.parametrize("wanted", [0, 1], ids=["last-conv", "last-features"])
@pytest.mark.parametrize("kind", LAYERS)
def test_map_and_guided_gradient_equal_those_of_another_program_on_transformers_own_model(
    folders: dict[str, tuple[Path, Any]], kind: str, wanted: int
) -> None:
    """Captum's map of a convolution; that of tokens by hand. Our BatchNorms are folded."""
    from captum.attr import LayerGradCam

    folder, theirs = folders[kind]
    network = load("hf", folder, ("last-conv", "last-features")[wanted])
    assert network.layer_name == LAYERS[kind][wanted]
    assert network.name == f"hf/{kind}"
    x = torch.randn(2, 3, *network.size, generator=torch.Generator().manual_seed(1))
    answer = explain_many(network.model, network.views, x, [1, 2])
    model = _Logits(theirs)
    layer = theirs.get_submodule(network.layer_name)
    _close(answer.logits, model(x).detach())
    _close(answer.guided[:, 0], guided_gradient(model, x, torch.tensor([1, 2])))
    if kind in TOKENS:
        expected = _map_of_tokens(model, layer, x, [1, 2], *TOKENS[kind])
    else:
        expected = LayerGradCam(model, layer).attribute(x, torch.tensor([1, 2]), relu_attributions=True)[:, 0].detach()
    _close(answer.maps[0][:, 0], expected)


def _map_of_tokens(model: nn.Module, layer: nn.Module, x: Tensor, classes: list[int], prefix: int, side: int) -> Tensor:
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    score = model(x)[range(len(x)), classes].sum()
    handle.remove()
    tokens = kept[0]  # (N, prefix + side * side, C)
    (gradient,) = torch.autograd.grad(score, tokens)
    weights = gradient[:, prefix:].mean(1, keepdim=True)  # (N, 1, C)
    return (weights * tokens[:, prefix:]).sum(2).relu().view(len(x), side, side).detach()


def test_the_blocks_layers_of_swin_become_maps_of_their_own_grids(folders: dict[str, tuple[Path, Any]]) -> None:
    folder, _ = folders["swin"]
    early = load("hf", folder, "swin.embeddings.norm,swin.layernorm")
    answer = explain_many(early.model, early.views, torch.zeros(1, 3, 64, 64), [0])
    assert [tuple(maps.shape[2:]) for maps in answer.maps] == [(16, 16), (8, 8)]


# --- what the files say -----------------------------------------------------------------------------------------------


def test_the_files_say_classes_names_and_preprocessing(vit: Path) -> None:
    network = load("hf", vit)
    assert (network.classes, network.categories, network.size) == (3, ["cat", "dog", "cup"], (48, 48))
    assert network.mean == pytest.approx((0.485, 0.456, 0.406))
    assert network.std == pytest.approx((0.229, 0.224, 0.225))
    assert network.preprocessing.endswith(", resized bilinear-antialias")
    assert network.weights_read.startswith("ViTForImageClassification of transformers ")
    changed(vit, id2label={str(n): f"LABEL_{n}" for n in range(3)})
    assert load("hf", vit).categories is None
    assert load("hf", vit, labels=["a", "b", "c"]).categories == ["a", "b", "c"]


def test_every_file_is_a_part_of_the_models_identity(vit: Path) -> None:
    digests = {load("hf", vit).weights_digest, read_folder(vit).sha256}
    assert len(digests) == 1
    changed(vit, layer_norm_eps=1e-5)
    digests.add(load("hf", vit).weights_digest)
    changed(vit, "preprocessor_config.json", resample=3)
    digests.add(load("hf", vit).weights_digest)
    from safetensors.torch import load_file, save_file

    weights = vit / "model.safetensors"
    save_file({key: 2 * tensor for key, tensor in load_file(weights).items()}, weights)
    digests.add(load("hf", vit).weights_digest)
    (vit / "preprocessor_config.json").unlink()
    digests.add(load("hf", vit).weights_digest)
    assert len(digests) == 5
    (vit / "README.md").write_text("no part of the model")
    assert load("hf", vit).weights_digest in digests


@pytest.mark.parametrize(
    ("processor", "options"),
    [
        ("ViTImageProcessor", {"size": {"height": 40, "width": 56}}),
        ("ViTImageProcessor", {"size": {"height": 40, "width": 40}, "do_normalize": False}),
        ("ViTImageProcessor", {"size": {"height": 40, "width": 40}, "rescale_factor": 1 / 127.5}),
        ("ViTImageProcessor", {"size": {"height": 40, "width": 40}, "do_rescale": False, "image_mean": [127.0] * 3,
                               "image_std": [60.0, 70.0, 80.0]}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
        ("EfficientNetImageProcessor", {"size": {"height": 40, "width": 40}, "include_top": True}),
        ("EfficientNetImageProcessor", {"size": {"height": 40, "width": 40}, "include_top": False,
                                        "rescale_offset": True, "rescale_factor": 1 / 127.5}),
        ("BitImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
    ],
)  # fmt: skip
def test_a_picture_of_the_networks_size_becomes_what_transformers_makes_of_it(
    resnet: Path, processor: str, options: dict[str, Any]
) -> None:
    made = getattr(hf_models.transformers(), processor)(**hf_models.IMAGENET | options)
    made.save_pretrained(resnet)
    network = load("hf", resnet)
    picture = np.random.default_rng(0).integers(0, 256, (*network.size, 3), np.uint8)
    (theirs,) = made(picture, return_tensors="np", input_data_format="channels_last")["pixel_values"]
    assert theirs.shape == (3, *network.size)
    (ours,) = normalized(torch.from_numpy(picture)[None], network.mean, network.std)
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


def test_the_side_before_a_crop_is_read(resnet: Path) -> None:
    made = hf_models.transformers()
    made.ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875).save_pretrained(resnet)
    network = load("hf", resnet)
    assert (network.size, network.resize_px, network.resize_filter) == ((224, 224), 256, "bicubic-antialias")
    made.BitImageProcessor(size={"shortest_edge": 232}, crop_size={"height": 200, "width": 200}).save_pretrained(resnet)
    network = load("hf", resnet)
    assert (network.size, network.resize_px) == ((200, 200), 232)
    small = load("hf", resnet, size=(100, 100))
    assert (small.size, small.resize_px) == ((100, 100), 116)


def test_without_a_mean_the_job_must_give_it(resnet: Path) -> None:
    (resnet / "preprocessor_config.json").unlink()
    network = load("hf", resnet)
    assert network.size == (224, 224)
    with pytest.raises(JobError, match=r"hf/resnet was trained: give --mean and --std, such as 0\.485,"):
        preprocessed(network)
    given = preprocessed(network, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert given.preprocessing == "224 x 224 px, mean 0.5 0.5 0.5, std 0.2 0.2 0.2, resized bilinear"


def test_a_filter_that_is_not_known_here_must_be_named(vit: Path) -> None:
    changed(vit, "preprocessor_config.json", resample=1)
    network = load("hf", vit)
    with pytest.raises(JobError, match=r"\(lanczos\): give --resize-filter one of bilinear, "):
        preprocessed(network)
    assert preprocessed(network, resize_filter="bicubic-antialias").resize_filter == "bicubic-antialias"


def test_convolutional_networks_take_any_size_and_a_vit_that_of_its_places(resnet: Path, vit: Path) -> None:
    assert load("hf", resnet, size=(96, 160)).size == (96, 160)
    with pytest.raises(JobError, match=r"^hf/vit cannot read pictures of 64 x 64 px: .*doesn't match model \(48\*48\)"):
        load("hf", vit, size=(64, 64))


def test_what_a_base_model_had_beside_is_left_and_what_another_had_is_refused(vit: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(vit / "model.safetensors")
    pooler = {"vit.pooler.dense.weight": torch.zeros(32, 32), "vit.pooler.dense.bias": torch.zeros(32)}
    save_file(state | pooler, vit / "model.safetensors")
    assert load("hf", vit).classes == 3
    save_file(state | {"vit.encoder.layer.2.output.dense.bias": torch.zeros(32)}, vit / "model.safetensors")
    with pytest.raises(
        JobError, match=r"^the weights do not fit hf/vit: layers\.2\.mlp\.fc2\.bias is unexpected|unexpected"
    ):
        load("hf", vit)
    # The same by the names of today, which a later transformers may save.
    old, new = ("encoder.layer.", "attention.attention.query"), ("layers.", "attention.q_proj")
    renamed = {key.replace(old[0], new[0]).replace(old[1], new[1]): tensor for key, tensor in state.items()}
    assert renamed.keys() != state.keys()
    save_file(renamed, vit / "model.safetensors")
    assert load("hf", vit).classes == 3


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "bert"}, r"of the kind 'bert', which is no image classifier of transformers; the nearest are "),
        ({"model_type": "clip"}, "'clip', which is not built here"),
        ({"model_type": "imagegpt"}, "'imagegpt', which is not built here"),
        ({"model_type": None}, "says neither model_type nor architecture"),
        ({"model_type": "../vit"}, "model_type is not what it may be"),
        ({"num_channels": 1}, "pictures of 1 channels; only those of 3"),
        ({"hidden_size": 10**9}, "hidden_size is 1000000000, more than any network"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, more than any network"),
        ({"num_hidden_layers": 60_000}, r"it is of a network with more than \d+ weights"),
        ({"hidden_size": 60_000, "num_attention_heads": 10}, r"would be \(.*60000.*\), more than any weight there"),
        ({"image_size": 60_000}, "image_size is 60000, more than any network has"),
        ({"image_size": 2048}, r"position_embeddings would be \(1, 65537, 32\), more than any weight there"),
        ({"image_size": [48] * 65}, r"image_size is \[48, 48, .*more than any network has"),
        ({"image_size": [[[[48]]]]}, "image_size is "),
        ({"hidden_size": "a" * 1000}, "hidden_size is aaaa"),
        ({"hidden_size": "wide"}, "config.json cannot be used: "),
        ({"hidden_size": float("inf")}, "hidden_size is inf"),
        ({"hidden_act": "nonsense"}, "hf/vit cannot be built: "),
        ({"patch_size": 0}, "hf/vit cannot be built: "),
        ({"num_attention_heads": 0}, "hf/vit cannot be built: "),
        ({"hidden_size": 16}, r"the weights do not fit hf/vit: .* is \(.*32.*\), not \(.*16.*\)"),
        ({"id2label": {"0": "cat", "1": "dog"}}, r"classifier\.weight is \(3, 32\), not \(2, 32\)"),
        ({"id2label": {"0": "cat", "1": "dog", "7": "cup"}}, "id2label leaves numbers out"),
        ({"id2label": {}}, "id2label is not what it may be"),
        ({"id2label": ["cat"]}, "id2label is not what it may be"),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_a_sentence_at_once(
    vit: Path, values: dict[str, Any], words: str
) -> None:
    changed(vit, **values)
    since = time.monotonic()
    with pytest.raises(JobError, match=words) as caught:
        load("hf", vit)
    assert time.monotonic() - since < 10
    assert len(str(caught.value)) < 400


def test_a_config_whose_layers_would_put_out_too_much_is_refused_before_it_runs(tmp_path: Path) -> None:
    saved(tmp_path, "resnet")
    made = hf_models.transformers()
    made.ViTImageProcessor(size={"height": 2048, "width": 2048}, **hf_models.IMAGENET).save_pretrained(tmp_path)
    assert hugging_face._MAX_OUTPUT > 2048 * 2048 * 64  # what a real network puts out
    model = made.PoolFormerForImageClassification(
        made.PoolFormerConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], id2label={0: "cat", 1: "dog"})
    )
    model.save_pretrained(tmp_path)
    changed(tmp_path, padding=[60_000, 1, 1, 1])
    with pytest.raises(JobError, match=r"a layer would put out \(1, 8, \d+, \d+\) for one picture"):
        load("hf", tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("config.json", b"{", "config.json is broken: it is no JSON"),
        ("config.json", b"[" * 100_000, "config.json is broken: it is no JSON"),
        ("config.json", b"[1]", "config.json is broken: it is no JSON object"),
        ("config.json", b"\xff\xfe", "config.json is no UTF-8 text"),
        ("config.json", b" " * 2**22, "config.json has more than 2097152 bytes"),
        ("config.json", None, "there is no config.json in "),
        ("preprocessor_config.json", b'{"size": {"height": 1e9, "width": 8}}', "size is not what it may be"),
        ("preprocessor_config.json", b'{"image_std": [0, 1, 1]}', "image_std is not what it may be"),
        ("preprocessor_config.json", b'{"do_flip_channel_order": true}', "blue before red"),
        (
            "model.safetensors",
            b"\x80\x02}q\x00.",
            "model.safetensors is no safetensors file, or is broken or truncated",
        ),
        ("model.safetensors", None, "there is no model.safetensors in "),
    ],
)
def test_a_file_that_is_none_is_refused_in_a_sentence(vit: Path, name: str, data: bytes | None, words: str) -> None:
    (vit / name).unlink() if data is None else (vit / name).write_bytes(data)
    with pytest.raises(JobError, match=words):
        load("hf", vit)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "pytorch_model.bin may hold code and is not read; save the model"),
        ("model.safetensors.index.json", "its weights lie in several files"),
    ],
)
def test_other_weights_are_called_what_they_are(vit: Path, name: str, words: str) -> None:
    (vit / "model.safetensors").rename(vit / name)
    with pytest.raises(JobError, match=words):
        load("hf", vit)


def test_no_code_of_a_folder_runs_and_no_field_of_the_base_class_counts(vit: Path, tmp_path: Path) -> None:
    program = f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import ViTForImageClassification as Mine\n"
    (vit / "mine.py").write_text(program)
    before = load("hf", vit)
    changed(
        vit,
        auto_map={"AutoModelForImageClassification": "mine.Mine", "AutoConfig": "mine.Mine"},
        _attn_implementation="somebody/kernel",
        attn_implementation="somebody/kernel",
        quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True},
        dtype="nonsense",
        return_dict=False,
        output_hidden_states=True,
    )
    network = load("hf", vit)
    assert not (tmp_path / "ran").exists()
    assert type(network.model) is type(before.model)
    x = torch.ones(1, 3, 48, 48)
    assert torch.equal(network.model(x), before.model(x))


@pytest.mark.parametrize("weights", [None, "random", "DEFAULT", "/no/folder"])
def test_a_model_needs_its_folder(weights: str | None) -> None:
    with pytest.raises(JobError, match=r"are a folder of config\.json and model.safetensors"):
        load("hf", weights)


def test_without_transformers_the_sentence_says_what_to_install(vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NotHere, match=r"pip install 'gradcam-queue\[hf\]'"):
        load("hf", vit)


# --- no network, no cost for others -----------------------------------------------------------------------------------

_PROGRAM = """
import os, sys, traceback
os.environ.pop("HF_HUB_OFFLINE", None)

def watch(event, arguments):
    # Nothing gets around it, and nothing can catch it.
    if event in {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}:
        traceback.print_stack()
        os._exit(7)

sys.addaudithook(watch)
from worker.models.networks import load
load("squeezenet1_1", "random", prepared=False)
assert not {"transformers", "huggingface_hub"} & set(sys.modules), "a worker without such a job pays for it"
for folder in sys.argv[1:]:
    print(load("hf", folder).name)
from huggingface_hub import is_offline_mode
assert is_offline_mode()
"""


def test_a_process_that_may_reach_no_network_loads_a_model_and_one_without_such_jobs_never_imports_transformers(
    folders: dict[str, tuple[Path, Any]],
) -> None:
    asked = [str(folders[kind][0]) for kind in ("resnet", "vit")]
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *asked], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.stdout.split() == ["hf/resnet", "hf/vit"], run.stderr


# --- from an address --------------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path) -> Models:
    fetcher = Fetcher(FetchPolicy(file_roots=(tmp_path,)), None)
    return Models(fetcher, WorkerSettings(weights_cache_dir=tmp_path / "kept"), torch.device("cpu"))


def _spec(weights: str, **more: Any) -> JobSpec:
    return JobSpec(network="hf", weights=weights, **more)


def test_a_prefix_is_fetched_file_by_file_and_has_the_identity_of_the_folder(models: Models, resnet: Path) -> None:
    spec = _spec(resnet.as_uri() + "/", input_size=(64, 64))
    network = models.get(spec)
    assert network.weights_digest == read_folder(resnet).sha256
    assert network is models.get(spec)
    assert network.workload == f"hf/resnet {network.weights_digest[:12]}"
    (resnet / "preprocessor_config.json").unlink()
    given = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    assert models.get(_spec(resnet.as_uri() + "/", input_size=(96, 96), **given)).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("weights", ["/etc/", "/etc", "random", "DEFAULT"])
def test_no_message_opens_a_folder_of_a_worker(models: Models, weights: str) -> None:
    with pytest.raises(JobError, match="are a folder, or an address that ends with a slash"):
        models.get(_spec(weights))


def test_what_is_no_bundle_is_refused(models: Models, resnet: Path) -> None:
    with pytest.raises(JobError, match="no model of Hugging Face that was uploaded here"):
        models.get(_spec((resnet / "config.json").as_uri()))


# --- timm -------------------------------------------------------------------------------------------------------------


def _timm(folder: Path, name: str, labels: list[str] | None = None, **options: Any) -> nn.Module:
    import timm
    from timm.models import save_for_hf

    with torch.random.fork_rng(devices=[]):
        model: nn.Module = timm.create_model(name, **options).eval()
    save_for_hf(model, str(folder), model_config={"label_names": labels} if labels else None, safe_serialization=True)
    return model


def test_a_checkpoint_of_timm_is_that_network_with_what_its_file_says(tmp_path: Path) -> None:
    theirs = _timm(tmp_path, "resnet18", ["ant", "bee"], num_classes=2)
    content = json.loads((tmp_path / "config.json").read_text())
    cfg = content["pretrained_cfg"] | {"input_size": [3, 64, 96], "mean": [0.4] * 3, "crop_pct": 0.8}
    changed(tmp_path, pretrained_cfg=cfg)
    network: Network = load("hf", tmp_path, prepared=False)
    assert (network.name, network.size, network.resize_px) == ("timm/resnet18", (64, 96), 80)
    assert (network.categories, network.mean, network.resize_filter) == (
        ["ant", "bee"],
        (0.4,) * 3,
        "bicubic-antialias",
    )
    x = torch.randn(1, 3, 64, 96)
    assert torch.equal(network.model(x), theirs(x))
    assert network.weights_read.startswith("resnet18 of timm; ")


def test_a_transformer_of_timm_is_built_for_the_size_in_its_file(tmp_path: Path) -> None:
    theirs = _timm(tmp_path, "vit_tiny_patch16_224", num_classes=4, img_size=64, global_pool="avg")
    network = load("hf", tmp_path, prepared=False)
    assert (network.size, network.classes, network.layer_name) == ((64, 64), 4, "blocks.11.norm1")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(network.model(x), theirs(x))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"architecture": "hf-hub:timm/resnet18"}, "architecture is not what it may be"),
        ({"architecture": "resnet1800"}, "no network is called 'timm/resnet1800'"),
        ({"model_args": {"depth": 10**9}}, "its network is built with depth, which is not done here"),
        ({"model_args": {"in_chans": 1}}, "pictures of 1 channels; only those of 3"),
        ({"pretrained_cfg": {"input_size": [3, 10**9, 8]}}, "input_size is not what it may be"),
        ({"pretrained_cfg": {"std": [0, 1, 1]}}, "std is not what it may be"),
    ],
)
def test_a_file_of_timm_that_cannot_be_is_refused_in_a_sentence(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    _timm(tmp_path, "test_resnet", num_classes=2)
    changed(tmp_path, **values)
    with pytest.raises(JobError, match=words):
        load("hf", tmp_path)


def test_what_the_names_of_layers_end_with_is_what_transformers_has() -> None:
    """A newer transformers may rename them."""
    assert set(TOKENS) <= set(hugging_face._TRANSFORMERS)
