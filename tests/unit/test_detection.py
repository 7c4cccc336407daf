"""Networks that give boxes: each is explained by its own score, and drawn with its box."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import reference
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from producer.input.read_options import ReadOptions
from producer.jobs.model.errors import JobError, UsageError
from producer.jobs.model.spec import JobSpec
from producer.submission.spec_builder import Request
from worker.chunks import drawing
from worker.device.batches import Explained, explain_classes
from worker.device.inputs import normalized
from worker.engine.detection import BOXES, COUNT, LABELS, Detection
from worker.engine.explain import View, as_they_are, explain_many
from worker.models import detectors
from worker.models.as_asked import _check_detection, boxed
from worker.models.layers import Reads, select_layers, survey
from worker.models.networks import Network, load
from worker.pictures.decode import decode
from worker.pictures.geometry import fit
from worker.pictures.render import BOX_COLOR, draw_box
from worker.trial import run_trial

CAT = Path(str(__import__("skimage").__file__)).parent / "data" / "chelsea.png"
SSDLITE, FASTER = "ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"
SIZE = (96, 128)


@cache
def ssdlite() -> Network:
    return load(SSDLITE, "random", size=SIZE)


def noise(count: int, size: tuple[int, int] = SIZE) -> Any:
    return np.random.default_rng(1).integers(0, 256, (count, *size, 3), np.uint8)


def answers(network: Network, pictures: Any) -> list[list[Explained]]:
    found = explain_classes(network, list(pictures), [None] * len(pictures)).answers()
    assert all(isinstance(each, list) for each in found)
    return found  # type: ignore[return-value]


def by_hand(model: nn.Module, layer: nn.Module, x: Tensor, number: int) -> tuple[Tensor, Tensor, Any]:
    """One box's map and plain gradient with nothing of ours: autograd from its score, written out."""
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    x = x.clone().requires_grad_()
    (found,) = model(x)
    handle.remove()
    on_layer, on_input = torch.autograd.grad(found["scores"][number], [kept[0], x])
    maps = (on_layer.mean((2, 3), keepdim=True) * kept[0]).sum(1).relu()[0].detach()
    return maps, on_input[0], {name: each.detach() for name, each in found.items()}


class Smooth(nn.Module):
    """Two boxes a picture, of features without a ReLU: the second scores more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        maps = torch.tanh(self.conv(x))
        scores = maps[:, :3].mean((2, 3)).sigmoid() * torch.tensor([0.5, 1, 0.1])
        boxes = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [0, 0, 9, 9]])
        return [{"boxes": boxes, "labels": torch.tensor([3, 1, 2]), "scores": row} for row in scores]


# --- the mathematics --------------------------------------------------------------------------------------------------


def test_each_box_is_explained_by_its_own_score_as_autograd_says() -> None:
    torch.manual_seed(0)
    model = Smooth().eval()
    x = torch.randn(2, 3, 12, 16)
    got = explain_many(model, [View(model.conv, as_they_are)], x, top_k=5, output=Detection(2, 0.1))
    assert got.class_ids.tolist() == [[0, 1], [0, 1]]
    assert got.beside[LABELS].tolist() == [[1, 3], [1, 3]]
    assert got.beside[BOXES][0].tolist() == [[5, 6, 7, 8], [1, 2, 3, 4]]
    for image in range(2):
        for column, number in enumerate([1, 0]):
            maps, gradient, found = by_hand(model, model.conv, x[image : image + 1], number)
            assert got.logits[image, column] == pytest.approx(float(found["scores"][number]))
            assert torch.allclose(got.maps[0][image, column], maps, atol=1e-7)
            assert torch.allclose(got.guided[image, column], gradient, atol=1e-7)


def test_a_batch_of_a_real_detector_is_explained_as_each_of_its_pictures_alone_by_torchvision() -> None:
    """The pictures come in the network's size and normalized: torchvision itself would do both."""
    network = boxed(ssdlite(), 2, 0.0)
    pictures = noise(2)
    theirs: Any = get_model(SSDLITE, weights=None, weights_backbone=None, num_classes=91).eval()
    theirs.load_state_dict(network.model.state_dict())
    theirs.transform.fixed_size = (SIZE[1], SIZE[0])
    found = answers(network, pictures)
    for picture, answer in zip(pictures, found, strict=True):
        x = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255  # what torchvision reads
        for column, explained in enumerate(answer):
            layer = theirs.get_submodule(network.layer_name)
            maps, _gradient, boxes = by_hand(theirs, layer, x, column)
            assert explained.logits[column] == pytest.approx(float(boxes["scores"][column]), abs=1e-5)
            assert explained.beside[BOXES][column] == pytest.approx(boxes["boxes"][column].tolist(), abs=0.05)
            assert explained.map == pytest.approx(maps.numpy(), abs=0.02 * float(maps.max()))


def test_boxes_that_score_less_are_left_out_and_images_of_a_batch_may_have_other_numbers_of_them() -> None:
    model = Smooth().eval()
    x = torch.randn(3, 3, 12, 16)
    with torch.no_grad():
        best = sorted(float(each["scores"].max()) for each in model(x))
    between = (best[0] + best[1]) / 2
    got = explain_many(model, [View(model.conv, as_they_are)], x, top_k=5, output=Detection(5, between))
    assert sorted(got.beside[COUNT].tolist()) == [0, 1, 1]
    none = explain_many(model, [View(model.conv, as_they_are)], x, top_k=5, output=Detection(5, 1.0))
    assert none.beside[COUNT].tolist() == [0, 0, 0]


def test_an_image_without_boxes_has_no_explanation_and_its_neighbors_have() -> None:
    everything = answers(boxed(ssdlite(), 1, 0.0), noise(3))
    best = sorted(float(each[0].logits[0]) for each in everything)
    found = answers(boxed(ssdlite(), 1, (best[0] + best[1]) / 2), noise(3))
    assert sorted(map(len, found)) == [0, 1, 1]


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "last_conv", "last_features"),
    [
        (SSDLITE, SIZE, "backbone.features.0.13.0", "backbone.features.0.13"),
        ("ssd300_vgg16", (300, 300), "backbone.features.21", "backbone.features.22"),
        (FASTER, SIZE, "backbone.body.16.0", "backbone.body.16"),
        ("fcos_resnet50_fpn", SIZE, "backbone.body.layer4.2.conv3", "backbone.body.layer4"),
        ("retinanet_resnet50_fpn", SIZE, "backbone.body.layer4.2.conv3", "backbone.body.layer4"),
    ],
)
def test_layers_are_the_last_that_all_boxes_come_from(name: str, size: Any, last_conv: str, last_features: str) -> None:
    model = detectors.build(name, 5, size).eval()
    assert detectors.classes_of(model) == 5
    seen = survey(name, model, size, Reads(output=Detection(), within=detectors.within(name)))
    assert list(select_layers(seen, "last-conv")) == [last_conv]
    assert list(select_layers(seen, "last-features")) == [last_features]


class FirstBoxes(nn.Module):
    """The scores of the first boxes as a tensor, for the second implementation."""

    def __init__(self, model: nn.Module, count: int) -> None:
        super().__init__()
        self.model, self.count = model, count

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([each["scores"][: self.count] for each in self.model(x)])


def test_a_level_of_the_pyramid_can_be_looked_at_with_weights_of_other_classes(tmp_path: Path) -> None:
    """ReLUs behind the cut-out of a box's region are guided, too."""
    state = get_model(FASTER, weights=None, weights_backbone=None, num_classes=4).state_dict()
    torch.save(state, tmp_path / "four.pth")
    network = load(FASTER, tmp_path / "four.pth", "backbone.fpn.layer_blocks.0.0", size=SIZE)
    assert (network.classes, network.categories, network.task) == (4, None, "detection")
    (answer,) = answers(boxed(network, 2, 0.0), noise(1))
    x = normalized(torch.from_numpy(noise(1)), network.mean, network.std)
    assert max(each.map.max() for each in answer) > 0
    for column, explained in enumerate(answer):
        maps, _gradient, found = by_hand(network.model, network.layer, x, column)
        assert explained.beside[LABELS][column] == found["labels"][column]
        assert explained.map == pytest.approx(maps.numpy(), abs=1e-4 * float(maps.max()))
        guided = reference.guided_gradient(FirstBoxes(network.model, 2), x, torch.tensor([column]))[0]
        assert explained.guided is not None
        assert explained.guided == pytest.approx(guided.permute(1, 2, 0).numpy(), abs=1e-4 * float(guided.abs().max()))
        assert guided.abs().max() > 0


@pytest.mark.parametrize("name", [SSDLITE, "fcos_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_weights_of_other_classes_fit(name: str, tmp_path: Path) -> None:
    state = detectors.build(name, 3, SIZE).state_dict()
    torch.save({"model": state}, tmp_path / "three.pth")
    network = load(name, tmp_path / "three.pth", size=SIZE)
    assert network.classes == 3
    own = network.model.state_dict()
    assert all(torch.equal(own[key], state[key]) for key in own)


def test_torchvisions_networks_for_outlines_and_joints_are_none_for_boxes() -> None:
    assert len(detectors.names()) == 9
    assert not {"maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"} & set(detectors.names())


@pytest.mark.parametrize("asked", [{"class_id": 1}, {"top_k": 2}, {"class_name": "cat"}, {"explain": "both"}])
def test_classes_are_not_chosen_where_boxes_are_explained(asked: Any) -> None:
    with pytest.raises(JobError, match=r"explains boxes, those that score most: leave --class-id, .* out"):
        _check_detection(ssdlite(), JobSpec(**asked))


def test_half_precision_is_refused_where_boxes_are_explained() -> None:
    with pytest.raises(JobError, match="gives boxes in fp32 alone: leave --precision bf16 out"):
        _check_detection(ssdlite(), JobSpec(precision="bf16"))


@pytest.mark.parametrize("output", [None, [1, 2], [{"boxes": torch.zeros(1, 4)}] * 2, torch.zeros(2, 3)])
def test_an_output_without_boxes_is_told(output: Any) -> None:
    with pytest.raises(ValueError, match="not a dict of boxes, labels and scores"):
        Detection()(output, 2)


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_a_box_is_drawn_as_an_outline_and_nothing_else_changes() -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    drawn = draw_box(picture, (10.4, 5.9, 30.0, 20.0))
    expected = picture.copy()
    expected[5:21, 10:31] = BOX_COLOR
    expected[6:20, 11:30] = 0
    assert np.array_equal(drawn, expected)
    assert not picture.any()
    assert draw_box(picture, (-5, -5, 100, 100))[[0, -1], 5].tolist() == [[255] * 3] * 2  # what sticks out is cut


@pytest.mark.parametrize("how", ["squash", "crop", "pad"])
def test_a_box_comes_back_to_the_originals_pixels(how: str) -> None:
    picture = np.zeros((200, 300, 3), np.uint8)
    picture[80:120, 110:190] = 255
    fitted, frame = fit(picture, (320, 320), how)
    rows, columns = np.nonzero(fitted[..., 0] == 255)
    box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert frame.box_to_original([float(at) for at in box]) == pytest.approx((110, 80, 190, 120), abs=1.5)
    assert frame.box_to_original((-500, -500, 900, 900)) == (0, 0, 300, 200)


def test_what_a_gpu_drew_gets_its_box_as_what_the_host_draws() -> None:
    network = boxed(ssdlite(), 2, 0.0)
    pixels, frame = fit(decode(CAT.read_bytes()), network.size, "squash")
    spec = JobSpec(network=SSDLITE, outputs=("cam", "gb"))
    drawn = explain_classes(network, [pixels], [None], draw=("cam", "gb"), numbers=False).answers()[0]
    for ours, theirs in zip(answers(network, pixels[None])[0], drawn, strict=True):  # type: ignore[arg-type]
        by_host, by_device = (drawing.drawn(pixels, frame, each, network, spec)[0] for each in (ours, theirs))
        assert list(by_host) == list(by_device) == ["cam", "gb"]
        x0, y0, _x1, _y1 = (int(at) for at in ours.beside[BOXES][ours.class_id])
        corner = min(y0, SIZE[0] - 1), min(x0, SIZE[1] - 1)
        for kind in ("cam", "gb"):
            assert by_host[kind][corner].tolist() == by_device[kind][corner].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("typed", "kept"), [("0.25", 0.25), (1, 1.0)])
def test_the_least_score_is_a_number_however_it_is_typed(typed: Any, kept: float) -> None:
    assert Request.read(ReadOptions(), network=SSDLITE, min_score=typed).draft.min_score == kept
    with pytest.raises(UsageError, match="--min-score must be a number from 0 to 1"):
        Request.read(ReadOptions(), network=SSDLITE, min_score="half")


def test_try_writes_the_pictures_of_each_box(tmp_path: Path) -> None:
    trial = run_trial(SSDLITE, CAT, tmp_path, weights="random")
    assert list(trial.pictures)[:4] == ["box1-heatmap", "box1-cam", "box1-gb", "box1-cam_gb"]
    assert trial.output == "the score of each box"
    assert json.loads(json.dumps(trial.as_json()))["explained"]["probability"] > 0.5
    assert trial.explained == trial.top5[0]
    cam = cv2.imread(trial.pictures["box1-cam"])
    assert cam is not None
    assert cam.shape == (320, 320, 3)
    with pytest.raises(Exception, match="leave --class-id, --class-name, --top-k and --explain out"):
        run_trial(SSDLITE, CAT, tmp_path, weights="random", how=JobSpec(class_id=3))
