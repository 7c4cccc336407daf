"""The example package of the documentation, installed as a user does it, and a real worker that explains with it."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import own_models
import pytest
import torch
from captum.attr import GuidedBackprop, LayerGradCam
from click.testing import CliRunner
from command import gradcam
from own_models import FINDINGS, Findings
from stacks import asleep, eventually, own_stack
from torch import nn

from producer.client.client import Client
from producer.jobs.model import keys
from producer.jobs.model.states import JobState
from worker.commands import cli
from worker.models.networks import load
from worker.pictures.decode import decode
from worker.pictures.geometry import fit

if TYPE_CHECKING:
    from deploy.stack import Stack

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "lungs"
_OWN = ("colors", "findings", "age")
NETWORKS = ",".join(["broken=evil_not_there:build", *(f"{name}=own_models:build_{name}" for name in _OWN)])
CAT = Path(str(__import__("skimage").__file__)).parent / "data" / "chelsea.png"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example package, its entry point among it."""
    folder = tmp_path_factory.mktemp("installed")
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", folder)
    copy = tmp_path_factory.mktemp("source") / "lungs"
    subprocess.run(["cp", "-r", EXAMPLE, copy], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", *options, copy], check=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def stack(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A worker that finds the package, and code that nobody has registered."""
    evil = tmp_path_factory.mktemp("evil")
    (evil / "evil_of_mine.py").write_text(f"open({str(evil / 'ran')!r}, 'w').close()\n\n\ndef build():\n    pass\n")
    folders = map(str, (installed, evil, ROOT / "tests" / "support"))
    path = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {"PYTHONPATH": path, "GRADCAM_WORKER_NETWORKS": NETWORKS}
    with own_stack(tmp_path_factory.mktemp("stack"), settings) as running:
        running.evil = evil  # type: ignore[attr-defined]
        running.start_worker()
        yield running


@pytest.fixture
def client(stack: Stack) -> Client:
    made = Client.from_env()
    eventually(made.registered_networks)
    return made


class Scores(nn.Module):
    """The example's network with its scores alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)["scores"]


def test_the_example_is_explained_end_to_end_as_captum_does(
    client: Client, installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(installed)
    network: Any = __import__("lungs_example.network", fromlist=["network"])
    torch.manual_seed(3)
    net = network.Lungs().eval()
    torch.save({"state_dict": {f"net.{name}": value for name, value in net.state_dict().items()}}, tmp_path / "w.ckpt")
    run = gradcam(
        "submit", str(CAT), "--network", "lungs", "--weight-path", str(tmp_path / "w.ckpt"), "--raw", "--format", "png",
        "--class-name", "opacity", "--wait", "--json",
    )  # fmt: skip
    job = json.loads(run.stdout)["job"]
    (result,) = client.results(job)

    picture, _frame = fit(decode(CAT.read_bytes()), (96, 128), "squash")
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    x = ((torch.from_numpy(grey)[None, None] / 255) - 0.5) / 0.25
    scores = Scores(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum says that it sets hooks
        maps = (
            LayerGradCam(scores, net.features[7]).attribute(x, target=1, relu_attributions=True)[0, 0].detach().numpy()
        )
        guided = GuidedBackprop(scores).attribute(x.clone().requires_grad_(), target=1)
    assert (result.class_name, result.layer) == ("opacity", "features.7")
    assert result.probability == pytest.approx(float(scores(x).detach().softmax(1)[0, 1]), abs=1e-5)

    (tmp_path / "raw.npz").write_bytes(client.storage.get(result.objects["raw"]))
    with np.load(tmp_path / "raw.npz") as raw:
        (name,) = [name for name in raw.files if name.startswith("map")]
        np.testing.assert_allclose(raw[name], maps, atol=2e-3 * maps.max())
        gradient = raw["guided"].astype(np.float32) * raw["guided_scale"]
    expected = guided[0, 0].detach().numpy()
    np.testing.assert_allclose(gradient[..., 0], expected, atol=2e-3 * np.abs(expected).max())

    gb = cv2.imdecode(np.frombuffer(client.storage.get(result.objects["gb"]), np.uint8), cv2.IMREAD_COLOR)
    assert gb is not None
    stretched = (expected - expected.min()) / np.ptp(expected) * 255
    assert gb.shape == (96, 128, 3)
    assert np.abs(gb.astype(int) - stretched[..., None]).max() <= 2
    found = json.loads(client.storage.get(keys.summary(client.storage.prefix, job)))["found"]
    assert found["preprocessing"] == "96 x 128 px, grey, mean 0.5, std 0.25, resized bilinear"
    assert found["weights_read"] == "taken: state_dict.net.*"


class Negated(nn.Module):
    """A network with all its outputs negated."""

    def __init__(self, net: Findings) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = net.conv1, net.conv2, net.fc
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        negated: torch.Tensor = -self.fc(self.relu2(self.conv2(self.relu1(self.conv1(x)))).mean(dim=(2, 3)))
        return negated


def test_what_speaks_against_each_finding_above_a_threshold_is_explained_as_captum_does(
    client: Client, tmp_path: Path
) -> None:
    asked = ("--classes", "above:0.5", "--direction", "down", "--raw", "--outputs", "cam")
    run = gradcam("submit", str(CAT), "--network", "findings", *asked, "--wait", "--json")
    job = json.loads(run.stdout)["job"]
    (result,) = client.results(job)

    picture, _frame = fit(decode(CAT.read_bytes()), (32, 32), "squash")
    x = ((torch.from_numpy(picture).permute(2, 0, 1)[None] / 255) - 0.5) / 0.25
    net = Findings().eval()
    likely = net(x).detach()[0].sigmoid()
    order = [number for number in likely.argsort(descending=True).tolist() if likely[number] > 0.5]
    assert 1 < len(order) < 6
    assert [each.class_name for each in result.classes] == [FINDINGS[number] for number in order]
    assert [each.probability for each in result.classes] == pytest.approx(likely[order].tolist(), abs=1e-5)
    assert (result.activation, result.direction, result.above) == ("sigmoid", "down", len(order))
    assert set(result.objects) == {f"class{number}-{kind}" for number in order for kind in ("cam", "raw")}

    negated = Negated(net)
    for number in order:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # captum says that it sets hooks
            attributed = LayerGradCam(negated, negated.conv2).attribute(x, target=number, relu_attributions=True)
            maps = attributed[0, 0].detach().numpy()
            guided = GuidedBackprop(negated).attribute(x.clone().requires_grad_(), target=number)
        (tmp_path / "raw.npz").write_bytes(client.storage.get(result.objects[f"class{number}-raw"]))
        with np.load(tmp_path / "raw.npz") as raw:
            np.testing.assert_allclose(raw["map"], maps, atol=2e-3 * maps.max())
            gradient = raw["guided"].astype(np.float32) * raw["guided_scale"]
        expected = guided[0].permute(1, 2, 0).detach().numpy()
        np.testing.assert_allclose(gradient, expected, atol=2e-3 * np.abs(expected).max())

    # A table has a place for as many as there may be.
    (row,) = csv.DictReader(io.StringIO(gradcam("results", job, "--csv").stdout, newline=""))
    assert (row["class_name.2"], row["class_name.5"]) == (FINDINGS[order[1]], "")


def test_the_most_likely_finding_is_explained_where_none_is_above_the_threshold(client: Client) -> None:
    job = client.submit([CAT], network="findings", classes="above:0.9999", outputs=["cam"])
    status = client.wait(job, timeout_s=90)
    assert status.state is JobState.SUCCEEDED, status.error
    (result,) = client.results(job)
    assert (result.above, result.classes, list(result.objects)) == (0, (), ["cam"])
    assert (result.class_id, result.probability) == (result.top5[0].class_id, result.top5[0].probability)


def test_an_output_that_is_no_probability_is_a_score_that_can_be_asked_for(client: Client) -> None:
    jobs = [client.submit([CAT], network="age", activation=which, outputs=["cam"]) for which in (None, "sigmoid")]
    for job in jobs:
        status = client.wait(job, timeout_s=90)
    assert status.state is JobState.SUCCEEDED, status.error
    ((age,), (other,)) = (list(client.results(job)) for job in jobs)
    assert age.score is not None
    assert (age.class_name, age.probability, age.activation, age.direction) == ("age", None, "none", None)
    assert (other.score, other.activation) == (None, None)  # the usual of one output
    assert other.probability == pytest.approx(1 / (1 + np.exp(-age.score)), abs=1e-6)
    job, _ = jobs
    assert "probability" not in json.loads(age.line)
    assert len(list(client.results(job, where=[f"score>{age.score - 1}"], sort="-score"))) == 1
    assert list(client.results(job, where=[f"score>{age.score + 1}"])) == []
    (row,) = csv.DictReader(io.StringIO(gradcam("results", job, "--csv").stdout, newline=""))
    assert (row["probability"], float(row["score"])) == ("", age.score)


def test_a_registered_network_needs_no_weights(client: Client) -> None:
    status = client.wait(client.submit([CAT], network="lungs", outputs=["cam"]), timeout_s=90)
    assert (status.state, status.done) == (JobState.SUCCEEDED, 1)


def test_a_network_of_pixels_is_explained_end_to_end_with_its_mask(client: Client, tmp_path: Path) -> None:
    """By its own pixels, and by those of another class."""
    parameters = {"network": "colors", "format": "png", "output_size": "original"}
    job = client.submit([CAT], **parameters)  # type: ignore[arg-type]
    status = client.wait(job, timeout_s=90)
    assert status.state is JobState.SUCCEEDED, status.error
    (result,) = client.results(job)
    original = decode(CAT.read_bytes())
    picture, frame = fit(original, (96, 128), "squash")
    scores = own_models.Colors()(torch.from_numpy(picture.transpose(2, 0, 1))[None] / 255)["out"][0]
    share = (scores.argmax(0) == 1).float().mean()
    assert (result.class_name, result.layer, result.predicted) == ("red", "backbone.0", "red")
    assert 0.2 < result.probability < 0.8  # type: ignore[operator]
    assert result.probability == pytest.approx(float(share), abs=1e-4)
    assert set(result.objects) == {"heatmap", "cam", "gb", "cam_gb", "mask"}
    drawn = cv2.imdecode(np.frombuffer(client.storage.get(result.objects["mask"]), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert drawn is not None
    red = frame.mask_to_original((scores.argmax(0) == 1).numpy())
    assert np.array_equal(drawn[~red], original[~red])
    assert np.array_equal(drawn[red], (original[red].astype(int) + np.array([255, 0, 0])) // 2)

    (tmp_path / "pictures").mkdir()
    run = gradcam("results", job, "--only", "mask", "--output-dir", str(tmp_path / "pictures"))
    assert [path.name for path in (tmp_path / "pictures").glob("[!.]*")] == ["chelsea-colors-mask.png"], run.stderr

    other = client.submit([CAT], network="colors", class_name="background", mask_class="red", raw=True, outputs=["cam"])
    wrong = client.submit([CAT], network="lungs", mask_class="clear", outputs=["cam"])
    assert client.wait(other, timeout_s=90).state is JobState.SUCCEEDED
    (result,) = client.results(other)
    assert set(result.objects) == {"cam", "raw"}
    assert result.flat  # the background's score is a constant
    assert "leave --mask-class out" in (client.wait(wrong, timeout_s=90).error or "")


def test_boxes_are_explained_end_to_end_and_an_image_without_any_is_done(client: Client, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((80, 120, 3), np.uint8))
    random_boxes: dict[str, Any] = {
        "network": "ssdlite320_mobilenet_v3_large",
        "weight_path": "random",
        "input_size": (96, 128),
    }
    job = client.submit(
        [CAT, tmp_path / "black.png"], **random_boxes, max_boxes=3, min_score=0.01, format="png",
        outputs=["cam", "gb"], output_size="original",
    )  # fmt: skip
    status = client.wait(job, timeout_s=90)
    assert status.state is JobState.SUCCEEDED, status.error
    cat, _black = client.results(job)
    assert cat.boxes is not None
    assert len(cat.boxes) == 3
    assert set(cat.objects) == {f"box{number}-{kind}" for number in (1, 2, 3) for kind in ("cam", "gb")}
    best = cat.boxes[0]
    assert (cat.class_id, cat.class_name, cat.probability) == (best.class_id, best.class_name, best.score)
    assert [each.score for each in cat.boxes] == sorted((each.score for each in cat.boxes), reverse=True)
    original = decode(CAT.read_bytes())
    height, width = original.shape[:2]
    assert all(0 <= each.x0 <= each.x1 <= width and 0 <= each.y0 <= each.y1 <= height for each in cat.boxes)

    # The same by torchvision itself, with the worker's random weights.
    network = load("ssdlite320_mobilenet_v3_large", "random", size=(96, 128))
    picture, _frame = fit(original, (96, 128), "squash")
    x = (torch.from_numpy(picture.transpose(2, 0, 1))[None] / 255 - 0.5) / 0.5
    found = network.model(list(x))[0]
    assert best.class_id == int(found["labels"][0])
    scale = np.array([width / 128, height / 96] * 2)
    assert (best.x0, best.y0, best.x1, best.y1) == pytest.approx(found["boxes"][0].detach().numpy() * scale, abs=0.5)
    gb = cv2.imdecode(np.frombuffer(client.storage.get(cat.objects["box1-gb"]), np.uint8), cv2.IMREAD_COLOR)
    assert gb is not None
    assert (gb[int(min(best.y1, height - 1)), int((best.x0 + best.x1) / 2)] == 255).all()  # the line of the box

    gradcam("results", job, "--only", "cam", "--output-dir", str(tmp_path / "pictures"))
    assert "chelsea-ssdlite320_mobilenet_v3_large-box3-cam.png" in os.listdir(tmp_path / "pictures")
    table = gradcam("results", job, "--csv").stdout.splitlines()
    assert "box1-cam.png" in table[1]

    nothing = client.submit([CAT], **random_boxes, min_score=1, pack="tar")
    status = client.wait(nothing, timeout_s=90)
    assert (status.state, status.done) == (JobState.SUCCEEDED, 1)
    (result,) = client.results(nothing)
    assert (result.boxes, result.objects, result.class_id) == ((), {}, None)
    assert list(client.audit(nothing)) == []
    refused = client.submit([CAT], **random_boxes, top_k=2)
    assert "leave --class-id, --class-name, --top-k and --explain out" in (
        client.wait(refused, timeout_s=90).error or ""
    )


def test_names_are_known_where_a_live_worker_has_registered_them(client: Client) -> None:
    assert client.registered_networks() == {"lungs", "broken", "findings", "age", "colors"}
    error = gradcam("submit", str(CAT), "--network", "lungz", code=2).stderr
    assert "no worker that could be asked has registered one; the nearest is lungs" in error


@pytest.mark.parametrize(
    ("network", "weights", "words"),
    [
        ("evil_of_mine.build", None, "no network is called 'evil_of_mine.build'"),
        ("os.system", None, "no network is called 'os.system'"),
        ("lungz", None, "no network is called 'lungz'; the nearest is lungs"),
        ("broken", None, "network 'broken' cannot be used: evil_not_there:build (GRADCAM_WORKER_NETWORKS)"),
    ],
)
def test_a_job_reaches_no_code_that_is_not_registered(
    stack: Stack, client: Client, network: str, weights: str | None, words: str
) -> None:
    job = client.submit([CAT], network=network, weight_path=weights, any_network=True)
    status = client.wait(job, timeout_s=90)
    assert status.state is JobState.FAILED
    assert words in (status.error or "")
    assert not (stack.evil / "ran").exists()  # type: ignore[attr-defined]


def test_a_forged_job_reaches_no_code_either(stack: Stack, client: Client) -> None:
    """Whoever can write to Redis can write any spec."""
    forged = {
        "network": "evil_of_mine:build",
        "weights": "evil_of_mine:build",
        "layer": "os:system",
        "weight_key": "a:b",
    }
    jobs = []
    with asleep(stack):
        for field, value in forged.items():
            job = client.submit([CAT], network="lungs", outputs=["cam"])
            key = keys.JobKeys(job).hash
            spec = json.loads(client.table.redis.hget(key, "spec") or b"{}")
            assert field in spec
            client.table.redis.hset(key, "spec", json.dumps(spec | {field: value}))
            jobs.append(job)
    for job in jobs:
        eventually(partial(refused, client, job), within_s=60)
    assert not (stack.evil / "ran").exists()  # type: ignore[attr-defined]


def refused(client: Client, job: str) -> bool:
    outline = client.table.queries.existing_outline(job)
    return outline.state is JobState.FAILED or bool(client.table.redis.hgetall(keys.JobKeys(job).part("troubles")))


def test_networks_are_listed_with_where_they_come_from(
    stack: Stack, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(installed)
    lines = {line["name"]: line for line in json.loads(CliRunner().invoke(cli, ["networks", "--json"]).stdout)}
    assert lines["lungs"]["source"] == "lungs_example.network:build_lungs (lungs-example 1.0)"
    assert (lines["lungs"]["size"], lines["lungs"]["classes"]) == ([96, 128], 2)
    assert "cannot be imported: No module named 'evil_not_there'" in lines["broken"]["problem"]
    assert lines["resnet50"]["source"] == "torchvision"
