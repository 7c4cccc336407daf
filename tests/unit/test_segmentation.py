"""Networks that tell the class of each pixel: what is explained of them, and what is drawn."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from built import network as network_of
from captum.attr import GuidedBackprop, LayerGradCam
from own_models import Colors
from torch import Tensor, nn
from torchvision.models import get_model

from producer.input.read_options import ReadOptions
from producer.jobs.model.errors import JobError, UsageError
from producer.jobs.model.spec import MASK, OUTPUTS, JobSpec
from producer.submission.spec_builder import Request
from worker.chunks import drawing
from worker.chunks.chunk import ChunkContext
from worker.device.batches import Explained, explain_classes
from worker.engine.explain import View, as_they_are, explain_many
from worker.engine.segmentation import PREDICTED, SHARES, Segmentation
from worker.models.as_asked import masked, preprocessed
from worker.models.layers import Reads, select_layers, survey
from worker.models.networks import Network, load
from worker.models.predictions import top_predictions
from worker.pictures.decode import decode
from worker.pictures.geometry import fit
from worker.pictures.render import MASK_COLOR, draw_mask
from worker.trial import run_trial

CAT = Path(str(__import__("skimage").__file__)).parent / "data" / "chelsea.png"


class Summed(nn.Module):
    """The scores as a model with one tensor as its output, for captum: written out pixel by pixel class."""

    def __init__(self, model: nn.Module, mask_class: int | None = None) -> None:
        super().__init__()
        self.model, self.mask_class = model, mask_class

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)["out"]
        best = out.max(dim=1).indices
        columns = [
            torch.where(best == (k if self.mask_class is None else self.mask_class), out[:, k], 0).sum((1, 2))
            for k in range(out.shape[1])
        ]
        return torch.stack(columns, dim=1)


def captums(model: nn.Module, layer: nn.Module, x: Tensor, target: list[int]) -> tuple[Tensor, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum says that it sets hooks
        maps = LayerGradCam(model, layer).attribute(x, target=target, relu_attributions=True)
        guided = GuidedBackprop(model).attribute(x.clone().requires_grad_(), target=target)
    return maps[:, 0].detach(), guided.detach()


@pytest.fixture
def colors(monkeypatch: pytest.MonkeyPatch) -> Network:
    monkeypatch.setenv("GRADCAM_WORKER_NETWORKS", "colors=own_models:build_colors")
    return load("colors")


def answered(network: Network, picture: Any, class_id: int | None = None, top_k: int = 1) -> list[Explained]:
    (answer,) = explain_classes(network, [picture], [class_id], top_k=top_k).answers()
    assert isinstance(answer, list)
    return answer


def halves(left: tuple[int, int, int], right: tuple[int, int, int]) -> Any:
    """A picture of two colors, the left one on a quarter of it."""
    picture = np.empty((96, 128, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = left, right
    return picture


# --- the mathematics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_class", [None, 1])
def test_a_class_is_explained_by_its_pixels_as_captum_does(mask_class: int | None) -> None:
    torch.manual_seed(2)
    model = Colors().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    layer = model.get_submodule("backbone.0")
    x = torch.randn(2, 3, 24, 32, dtype=torch.float64)
    got = explain_many(model, [View(layer, as_they_are)], x, [1, 2], output=Segmentation(mask_class=mask_class))
    summed = Summed(model, mask_class)
    maps, guided = captums(summed, layer, x, [1, 2])
    assert got.maps[0].max() > 0
    assert torch.allclose(got.logits, summed(x).detach())
    assert torch.allclose(got.maps[0][:, 0], maps)
    assert torch.allclose(got.guided[:, 0], guided)


def test_a_network_of_torchvision_is_explained_as_captum_does_with_its_batchnorms_folded(tmp_path: Path) -> None:
    """Its file has the auxiliary head of training, and other classes than the usual ones."""
    made = get_model("fcn_resnet50", weights=None, weights_backbone=None, num_classes=4, aux_loss=True).eval()
    torch.save(made.state_dict(), tmp_path / "four.pth")
    network = load("fcn_resnet50", tmp_path / "four.pth", size=(64, 64))
    assert (network.classes, network.categories, network.task) == (4, None, "segmentation")
    assert network.layer_name == "backbone.layer4.2.conv3"
    x = torch.randn(1, 3, 64, 64)
    got = explain_many(network.model, network.views, x, [2], output=network.output)
    maps, guided = captums(Summed(made), made.get_submodule(network.layer_name), x, [2])
    assert torch.allclose(got.maps[0][:, 0], maps, rtol=1e-3, atol=1e-3 * float(maps.max()))
    assert torch.allclose(got.guided[:, 0], guided, rtol=1e-2, atol=1e-2 * float(guided.abs().max()))


def test_one_class_is_where_its_logit_is_above_0() -> None:
    maps = torch.tensor([[[[2.0, -3.0], [0.5, 0.0]]]], requires_grad=True)
    scores = Segmentation()(maps, 1)
    assert scores.logits.tolist() == [[2.5]]
    assert scores.beside[PREDICTED].tolist() == [[[0, -1], [0, -1]]]
    assert scores.beside[SHARES].tolist() == [[0.5]]


# --- which class ------------------------------------------------------------------------------------------------------


def test_the_class_with_the_most_pixels_but_the_background_is_predicted(colors: Network) -> None:
    """Nobody asks why three quarters of a photo are grass."""
    red, rest = answered(colors, halves((200, 0, 0), (90, 90, 90)), top_k=2)
    assert (red.class_id, rest.class_id) == (1, 0)
    assert red.beside[SHARES] == pytest.approx([0.75, 0.25, 0], abs=0.02)
    (_, _), top = top_predictions(red.logits, [1, 0], colors.categories, beside=red.beside)
    assert [each.class_name for each in top] == ["red", "background"]
    assert [each.probability for each in top] == pytest.approx([0.25, 0.75], abs=0.02)


def test_the_background_is_predicted_where_nothing_else_is(colors: Network) -> None:
    (answer,) = answered(colors, halves((90, 90, 90), (90, 90, 90)))
    assert answer.class_id == 0
    (only,), top = top_predictions(answer.logits, [0], colors.categories, beside=answer.beside)
    assert top == (only,)
    assert (only.class_name, only.probability) == ("background", 1.0)


def test_a_class_without_pixels_has_a_flat_map_unless_other_pixels_are_named(colors: Network) -> None:
    picture = halves((200, 0, 60), (90, 90, 90))
    picture[40:60, 100:, 2] = 150  # a little blue, not where red is
    red = answered(colors, halves((200, 0, 60), (0, 200, 0)), class_id=2)[0]
    assert red.map.max() == red.map.min() == 0
    by_red = answered(masked(colors, 1), picture, class_id=2)[0]
    assert by_red.logits[1] == pytest.approx(answered(colors, picture, class_id=1)[0].logits[1])


@pytest.mark.parametrize(
    ("name", "layer", "found"),
    [
        ("lraspp_mobilenet_v3_large", "last-conv", "backbone.16.0"),
        ("deeplabv3_mobilenet_v3_large", "last-features", "backbone.16"),
        ("fcn_resnet101", "last-conv", "backbone.layer4.2.conv3"),
        ("deeplabv3_resnet50", "last-features", "backbone.layer4"),
    ],
)
def test_layers_are_those_of_the_backbone(name: str, layer: str, found: str) -> None:
    """Behind it come the scores of the classes themselves, whose maps say nothing new."""
    network = network_of(name, size=(64, 64))
    seen = survey(name, network.model, network.size, Reads(output=network.output, within="backbone"))
    assert list(select_layers(seen, layer)) == [found]
    assert network.layer_name.startswith("backbone.")
    assert network.categories is not None
    assert network.categories[:2] == ["__background__", "aeroplane"]


def test_of_a_network_without_a_backbone_the_scores_of_pixels_are_not_its_last_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    seen = survey("mine", model, (32, 32), Reads(output=Segmentation()))
    assert list(select_layers(seen, "last-conv")) == ["0"]


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_a_mask_is_drawn_half_red_over_the_picture_and_nothing_else_changes() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    mask = np.zeros((3, 4), bool)
    mask[1, 2:] = True
    drawn = draw_mask(picture, mask)
    large = mask.repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(drawn[~large], picture[~large])
    assert np.array_equal(drawn[large], (picture[large].astype(int) + MASK_COLOR) // 2)


@pytest.mark.parametrize("how", ["squash", "crop", "pad"])
def test_a_mask_comes_back_to_the_originals_geometry(how: str) -> None:
    rows, columns = np.mgrid[:60, :90]
    round_one = (rows - 30) ** 2 + (columns - 45) ** 2 < 300
    picture, frame = fit(np.repeat(round_one[..., None], 3, axis=2).astype(np.uint8) * 255, (64, 64), how)
    back = frame.mask_to_original(picture[..., 0] > 127)
    assert back.shape == (60, 90)
    assert (back ^ round_one).mean() < 0.02


def test_try_writes_the_mask(tmp_path: Path, colors: Network) -> None:
    trial = run_trial("colors", CAT, tmp_path, how=JobSpec(class_name="red"))
    assert list(trial.pictures) == [*OUTPUTS, MASK]
    assert (trial.layer, trial.output) == ("backbone.0", "sums over pixels of 'out'")
    assert json.loads(json.dumps(trial.as_json()))["explained"]["class_name"] == "red"
    mask = cv2.imread(trial.pictures[MASK])
    assert mask is not None
    assert mask.shape == (96, 128, 3)


@pytest.mark.parametrize("size", ["input", "original"])
def test_what_a_gpu_drew_gets_its_mask_as_what_the_host_draws(colors: Network, size: Any) -> None:
    original = decode(CAT.read_bytes())
    fitted, frame = fit(original, colors.size, "squash")
    spec = JobSpec(network="colors", outputs=("cam", MASK), output_size=size)
    picture = fitted if size == "input" else original
    made = []
    for drawn in (False, True):
        computed = explain_classes(colors, [fitted], [None], draw=("cam",) if drawn else (), numbers=not drawn)
        ((explained,),) = computed.answers()  # type: ignore[misc]
        made.append(drawing.drawn(picture, frame, explained, colors, spec)[0])
    assert list(made[0]) == list(made[1]) == ["cam", MASK]
    assert np.array_equal(made[0][MASK], made[1][MASK])
    assert made[0][MASK].shape == picture.shape


def test_half_precision_sums_in_single(colors: Network) -> None:
    """The sum of twelve thousand logits is above what 16 bits can tell apart."""
    picture = halves((200, 0, 0), (90, 90, 90))
    full, half = (
        explain_classes(colors, [picture], [1], precision=precision).answers()[0] for precision in ("fp32", "bf16")
    )
    assert isinstance(full, list)
    assert isinstance(half, list)
    assert half[0].logits.dtype == np.float32
    assert half[0].logits[1] == pytest.approx(full[0].logits[1], rel=0.02)
    assert half[0].beside[SHARES] == pytest.approx(full[0].beside[SHARES], abs=0.02)


# --- what is asked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "outputs", "made"),
    [
        ("fcn_resnet50", OUTPUTS, (*OUTPUTS, MASK)),
        ("mine", OUTPUTS, (*OUTPUTS, MASK)),
        ("fcn_resnet50", ("cam",), ("cam",)),
        ("resnet50", OUTPUTS, OUTPUTS),
    ],
)
def test_a_mask_is_made_by_default_where_there_may_be_one(network: str, outputs: Any, made: Any) -> None:
    request = Request.read(ReadOptions(), network=network, outputs=outputs, any_network=True)
    assert request.draft.outputs == made


@pytest.mark.parametrize("typed", [{"mask_class": "cat"}, {"outputs": ("cam", MASK)}])
def test_masks_of_a_network_that_has_none_are_refused_before_anything_is_sent(typed: Any) -> None:
    with pytest.raises(UsageError, match=r"^resnet50 tells the class of a picture, not of its pixels: leave --.* out$"):
        Request.read(ReadOptions(), network="resnet50", **typed)


def test_a_worker_refuses_a_mask_class_that_its_network_cannot_have() -> None:
    with pytest.raises(JobError, match="leave --mask-class out"):
        masked(network_of("resnet18"), 3)


def test_images_that_are_read_in_other_ways_share_no_batch(colors: Network) -> None:
    """A batch is read as its first image's job says."""

    def key(network: Network) -> Any:
        claim = type("Claim", (), {"spec": JobSpec(network="colors")})
        return ChunkContext(claim, network, None, 0, 0.0).batch_key()  # type: ignore[arg-type]

    assert key(colors) != key(masked(colors, 1))
    assert key(colors) == key(masked(colors, None))
    assert key(colors) != key(preprocessed(colors, mean=(0.5, 0.5, 0.5)))
