"""Networks of one's own: registered by whoever runs a worker, and read whatever their output looks like."""

from __future__ import annotations

import re
import sys
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import own_models
import pytest
import torch
from captum.attr import GuidedBackprop, LayerGradCam
from own_models import ENTRIES, Net, Plain
from pydantic import ValidationError
from torch import Tensor, nn

from producer.jobs.model.errors import JobError, NotHere, SettingsError, UsageError
from producer.jobs.model.network_names import check_network
from producer.jobs.model.spec import JobSpec
from worker.engine.explain import explain
from worker.engine.output import logits_of
from worker.models import registered
from worker.models.architectures import catalog
from worker.models.as_asked import activated, preprocessed
from worker.models.networks import Network, load, survey_of
from worker.pictures import channels

RIGHT = (
    "tensor",
    "tuple",
    "list",
    "tuple with text",
    "named tuple",
    "dict",
    "object",
    "second",
    "other key",
    "attribute",
)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Any:
    def register(**functions: str) -> None:
        lines = [f"{name}=own_models:{function}" for name, function in functions.items()]
        monkeypatch.setenv("GRADCAM_WORKER_NETWORKS", ",".join(lines))

    return register


def captums(net: Net, layer: nn.Module, x: Tensor, classes: list[int]) -> tuple[Tensor, Tensor]:
    """Maps and guided gradients of the same network, with one tensor as its output."""
    plain = Plain(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum says that it sets hooks
        maps = LayerGradCam(plain, layer).attribute(x, target=classes, relu_attributions=True)
        guided = GuidedBackprop(plain).attribute(x.clone().requires_grad_(), target=classes)
    return maps[:, 0].detach(), guided.detach()


# --- outputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", RIGHT)
def test_maps_and_gradients_are_those_of_captum_whatever_the_output_is(shape: str) -> None:
    torch.manual_seed(1)
    net = Net(shape=shape).double().eval()
    x = torch.randn(3, 3, 20, 20, dtype=torch.float64)
    got = explain(net, net.conv2, x, [2, 0, 1], output=ENTRIES.get(shape))
    maps, guided = captums(net, net.conv2, x, [2, 0, 1])
    assert torch.equal(got.logits, Plain(net)(x).detach())
    assert torch.allclose(got.maps, maps, atol=1e-12)
    assert torch.allclose(got.guided, guided, atol=1e-12)
    assert got.guided_relus == 2


@pytest.mark.parametrize(
    ("output", "entry", "words"),
    [
        (
            {"out": torch.zeros(2, 3), "aux": 1},
            None,
            "a dict .* name its logits by NetworkSpec.output=….: there are out, aux",
        ),
        ({"out": torch.zeros(2, 3)}, "scores", "it has no entry 'scores': there is out"),
        ((torch.zeros(2, 3),), 1, "a tuple .*it has no entry 1: it has 1"),
        (torch.zeros(2, 3, 4, 4), None, r"\(2, 3, 4, 4\) for 2 images"),
        ((torch.zeros(1, 3), 5), None, r"\(1, 3\) as the first tensor of a tuple of 2 for 2 images"),
        (None, None, "a NoneType for 2 images"),
        (torch.zeros(2), None, r"\(2,\) for 2 images"),
    ],
)
def test_an_output_without_logits_is_told_with_what_there_is(output: Any, entry: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        logits_of(output, 2, entry)


# --- registered networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", [True, False])
def test_a_grey_network_is_explained_as_captum_does(register: Any, prepared: bool) -> None:
    register(lungs="build_grey")
    network = load("lungs", layer="conv2", prepared=prepared)
    assert (network.channels, network.size, network.mean, network.std) == (1, (32, 48), (0.5,), (0.25,))
    assert network.categories == ["clear", "opacity"]
    assert network.preprocessing == "32 x 48 px, grey, mean 0.5, std 0.25, resized bilinear"
    assert network.output_read == "'logits' of a dict of 2"
    assert isinstance(network.model, Net)
    x = torch.randn(2, 1, 32, 48)
    got = explain(network.model, network.layer, x, [0, 1])
    reference = load_plain()
    maps, guided = captums(reference, reference.conv2, x, [0, 1])
    assert torch.allclose(got.maps, maps, atol=1e-5)
    assert torch.allclose(got.guided, guided, atol=1e-5)
    assert got.guided.shape == (2, 1, 32, 48)
    if prepared:
        assert isinstance(network.model.norm, nn.Identity)


def load_plain() -> Net:
    """The same network as the worker loads, unchanged: its function is called under the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = own_models.build_grey().model
    assert isinstance(model, Net)
    return model.eval()


def test_a_bare_module_is_read_as_one_of_imagenets_kind(register: Any) -> None:
    register(mine="build_bare")
    network = load("mine")
    assert (network.size, network.channels, network.classes) == ((224, 224), 3, 3)
    assert network.mean == (0.485, 0.456, 0.406)
    assert network.categories is None
    assert network.layer_name == "conv2"
    assert not network.remarks
    assert not network.model.training


def test_what_makes_a_probability_is_said_by_the_network_and_by_the_job(register: Any) -> None:
    register(findings="build_findings", age="build_age", mine="build_any", odd="build_wrong_activation")
    findings, age = load("findings"), load("age")
    assert (findings.activation, age.activation, load("mine").activation) == ("sigmoid", "none", None)
    assert activated(findings, None) is findings
    assert activated(findings, "softmax").activation == "softmax"
    with pytest.raises(JobError, match=r"age has one output, whose softmax is always 1: use .*sigmoid or none"):
        activated(age, "softmax")
    with pytest.raises(JobError, match="the activation of odd must be softmax, sigmoid, none or None, not 'tanh'"):
        load("odd")


def test_the_layer_that_it_names_is_looked_at_where_the_job_names_none(register: Any) -> None:
    register(mine="build_any")
    assert load("mine").layer_name == "conv1"
    assert load("mine", layer="conv2").layer_name == "conv2"
    assert load("mine", layer="last-features").layer_name == "relu2"


def test_its_own_weights_have_a_digest_that_tells_them_from_others(register: Any, tmp_path: Path) -> None:
    register(mine="build_any")
    first, second = load("mine"), load("mine", "DEFAULT")
    assert first.weights_digest == second.weights_digest
    assert first.weights_read == "those it came with, of own_models:build_any"
    torch.save(Net(classes=5).state_dict(), tmp_path / "five.pth")
    other = load("mine", tmp_path / "five.pth")
    assert other.classes == 5
    assert other.weights_digest != first.weights_digest
    assert load("mine", "random").random


def test_weights_with_other_classes_need_a_function_that_takes_their_number(register: Any, tmp_path: Path) -> None:
    register(lungs="build_grey")
    torch.save(Net(1, 5, "dict").state_dict(), tmp_path / "five.pth")
    with pytest.raises(JobError, match=r"have 5 classes, and its function builds it for 2: let .* take num_classes"):
        load("lungs", tmp_path / "five.pth")


@pytest.mark.parametrize(
    ("function", "kind", "words"),
    [
        ("build_four", JobError, r"reads 4 channels; pictures have 1 \(grey\) or 3"),
        ("build_maps", JobError, r"gives \(2, 3, 1, 1\) for 2 images.*say so by NetworkSpec\(task="),
        ("build_odd_task", JobError, "task of mine must be classification or segmentation, not 'captions'"),
        (
            "build_no_pixels",
            JobError,
            r"gives \(2, 3\) for 2 images, not .*\(N, K, h, w\) scores of pixels",
        ),
        ("build_other_key", JobError, "name its logits by NetworkSpec.output=….: there are features, scores"),
        ("build_wrong_key", JobError, "it has no entry 'scores': it has 2"),
        ("build_text", JobError, "gives a str, not an nn.Module or a NetworkSpec"),
        ("build_detached", JobError, r"its output has no gradient; leave detach\(\)"),
        ("build_for_one", JobError, "cannot read a picture of 3 x 32 x 32"),
        ("build_odd_types", JobError, "the NetworkSpec of mine .* cannot be read: could not convert string to float"),
        ("build_no_size", JobError, "the NetworkSpec of mine .* cannot be read: .*correct its values"),
        ("build_nan", JobError, "the std of mine must be a number above 0"),
        ("build_leak", JobError, r"cannot fetch https://\*\*\*@models.example/net.pth\?\*\*\*$"),
        ("build_missing_file", NotHere, "cannot be built by its function .*No such file"),
        ("build_bug", JobError, "cannot be built by its function own_models:build_bug: 'head'"),
        ("build_wrong_size", JobError, r"cannot read a picture of 3 x 32 x 32 .*; correct size and channels"),
        ("build_mean", JobError, "the mean of mine must be a number for each of its 3 channels"),
        ("build_categories", JobError, "names 1 categories, but puts out 3 classes"),
        ("build_nothing", NotHere, "cannot be imported: module 'own_models' has no attribute 'build_nothing'"),
        ("CALLS", NotHere, "is no function"),
    ],
)
def test_what_does_not_fit_is_one_sentence(register: Any, function: str, kind: type[Exception], words: str) -> None:
    register(mine=function)
    with pytest.raises(kind, match=words) as caught:
        load("mine")
    assert "\n" not in str(caught.value)
    (line,) = [line for line in catalog() if line.name == "mine"]
    assert line.problem == str(caught.value)
    assert (line.source, line.size) == (f"own_models:{function} (GRADCAM_WORKER_NETWORKS)", None)


def test_a_function_that_gives_one_model_again_is_told(register: Any) -> None:
    """Loading folds BatchNorms: a second load of the same model would explain something else."""
    register(mine="build_shared")
    with pytest.raises(JobError, match="cannot be explained"):
        load("mine")
    with pytest.raises(JobError, match="gave the same model twice; make a new one each time"):
        load("mine")


def test_mean_and_deviation_of_a_job_for_grey_are_one_number(register: Any) -> None:
    register(lungs="build_grey")
    network = load("lungs")
    assert preprocessed(network, mean=(0.1, 0.1, 0.1)).mean == (0.1,)
    with pytest.raises(JobError, match="reads grey pictures: give --mean and --std one number each"):
        preprocessed(network, mean=(0.1, 0.2, 0.3))


def test_grey_is_the_luminance_of_rec_601() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    grey = channels.as_read(picture, 1)
    expected = picture @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey - expected[..., None]).max() <= 0.51
    assert channels.as_read(picture, 3) is picture
    assert channels.as_drawn(np.ones((4, 5, 1))).shape == (4, 5, 3)


def test_the_function_of_the_documentation_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "own-model.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "documented_model.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("GRADCAM_WORKER_NETWORKS", "lungs=documented_model:build_lungs")
    network = load("lungs")
    assert (network.classes, network.channels, network.categories) == (2, 1, ["clear", "opacity"])


# --- who may register -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("lungs", "must be NAME=MODULE:FUNCTION"),
        ("lungs=mylab.models", "must be NAME=MODULE:FUNCTION"),
        ("my/lungs=a:b", "must be NAME=MODULE:FUNCTION"),
        ("a=b:c,a=d:e", "names a twice"),
        ("resnet50=mylab:build", "must not give the known network resnet50 another meaning"),
    ],
)
def test_a_wrong_setting_is_told(monkeypatch: pytest.MonkeyPatch, setting: str, words: str) -> None:
    monkeypatch.setenv("GRADCAM_WORKER_NETWORKS", setting)
    with pytest.raises(SettingsError, match=f"GRADCAM_WORKER_NETWORKS {words}"):
        registered.registered()


def test_entry_points_register_networks_and_two_of_one_name_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    group = registered.GROUP
    points = [
        EntryPoint("mine", "own_models:build_bare", group),
        EntryPoint("twice", "own_models:build_bare", group),
        EntryPoint("twice", "own_models:build_any", group),
        EntryPoint("resnet50", "own_models:build_any", group),
        EntryPoint("chosen", "nowhere:build", group),
    ]
    monkeypatch.setattr(registered, "entry_points", lambda group: points)
    monkeypatch.setenv("GRADCAM_WORKER_NETWORKS", "chosen=own_models:build_any")
    assert registered.usable_names() == ["chosen", "mine"]
    assert load("mine").classes == 3
    assert load("chosen").layer_name == "conv1"
    with pytest.raises(NotHere, match="both register it; say which by GRADCAM_WORKER_NETWORKS=twice=…"):
        load("twice")
    assert survey_of("resnet50").classes == 1000  # it means what it means everywhere
    problems = {line.name: line.problem for line in catalog() if line.source.startswith("own_models")}
    assert "under the name of a known network" in problems["resnet50"]


@pytest.mark.parametrize(
    "name", ["evil_of_mine:build", "evil_of_mine.build", "os:system", "os.system", "os", "lungs=evil_of_mine:build"]
)
def test_no_name_in_a_message_reaches_code(
    register: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A name is looked up among those that were registered; it is never imported."""
    register(lungs="build_grey")
    (tmp_path / "evil_of_mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef build(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        spec = JobSpec(network=name)
    except ValidationError:
        pass
    else:
        with pytest.raises(NotHere, match="no network is called"):
            load(spec.network, spec.weights)
    for weights in (f"{name}", str(tmp_path / "evil_of_mine.py")):
        with pytest.raises((JobError, NotHere)):
            load("lungs", weights)
    with pytest.raises(JobError, match="has no layer"):
        load("lungs", layer="__class__")
    assert not (tmp_path / "ran").exists()
    assert "evil_of_mine" not in sys.modules


def test_a_name_that_a_live_worker_has_registered_is_known_to_submissions() -> None:
    check_network("lungs", lambda: {"lungs"})
    with pytest.raises(UsageError, match="no worker that could be asked has registered one; the nearest is lungs"):
        check_network("lungz", lambda: {"lungs"})

    def never() -> set[str]:
        raise AssertionError("a known name needs no question")

    check_network("resnet50", never)


def test_a_network_is_made_once_a_load(register: Any) -> None:
    """Its function may read a large file."""
    register(lungs="build_grey")
    own_models.CALLS.clear()
    network: Network = load("lungs")
    assert network.classes == 2
    assert own_models.CALLS == ["grey"]


def test_what_a_function_prints_is_no_answer(register: Any, capfd: pytest.CaptureFixture[str]) -> None:
    register(mine="build_leak")
    with pytest.raises(JobError):
        load("mine")
    assert capfd.readouterr().out == ""


def test_models_of_ones_own_have_batches_of_their_own_size(register: Any) -> None:
    register(mine="build_any", age="build_age")
    mine, age = load("mine"), load("age")
    assert mine.weights_digest[:12] in mine.workload
    assert mine.workload != age.workload
    assert load("resnet18", weights="random").workload == "resnet18"
