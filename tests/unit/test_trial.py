"""`gradcam-worker try`: one image, no servers, and a sentence for what does not fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from own_models import Net

from worker.commands import run
from worker.device.inputs import normalized
from worker.models.networks import load
from worker.networks import explain, render
from worker.pictures.decode import decode
from worker.pictures.geometry import fit

CAT = Path(str(__import__("skimage").__file__)).parent / "data" / "chelsea.png"


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    def tried(function: str, *arguments: str, image: Path = CAT) -> tuple[int, str, str]:
        monkeypatch.setenv("GRADCAM_WORKER_NETWORKS", f"mine=own_models:{function}")
        command = ["try", "mine", "--image", str(image), "--output-dir", str(tmp_path / "out"), *arguments]
        monkeypatch.setattr(sys, "argv", ["gradcam-worker", *command])
        with pytest.raises(SystemExit) as ended:
            sys.exit(run())
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return int(ended.value.code or 0), captured.out, captured.err

    return tried


def test_one_image_is_explained_as_by_the_functions_that_other_programs_use(tried: Any) -> None:
    code, out, _ = tried("build_any", "--layer-name", "conv2", "--class-id", "1", "--json")
    assert code == 0
    found = json.loads(out)
    network = load("mine", layer="conv2")
    picture, _frame = fit(decode(CAT.read_bytes()), network.size, "squash")
    batch = normalized(torch.from_numpy(picture)[None], network.mean, network.std)
    answer = explain(network.model, network.layer, batch, [1])
    expected = render(picture / np.float32(255), answer.maps[0].numpy(), answer.guided[0].numpy().transpose(1, 2, 0))
    assert set(found["pictures"]) == set(expected)
    for kind, path in found["pictures"].items():
        assert Path(path).name == f"chelsea-mine-{kind}.jpg"
        written = cv2.imread(path)
        assert written is not None
        got = cv2.cvtColor(written, cv2.COLOR_BGR2RGB)
        assert np.abs(got.astype(int) - expected[kind]).mean() < 6  # JPEG
    assert found["explained"]["class_id"] == 1
    assert found["explained"]["probability"] == pytest.approx(float(answer.logits.softmax(1)[0, 1]), abs=1e-6)
    assert (found["layer"], found["guided_relus"], len(found["top5"])) == ("conv2", 2, 3)


def test_a_grey_network_draws_on_grey(tried: Any) -> None:
    code, out, _ = tried("build_grey", "--class-name", "opacity")
    assert code == 0
    assert "reads    32 x 48 px, grey, mean 0.5, std 0.25, resized bilinear" in out
    assert "class    opacity, " in out
    assert "Explained is 'logits' of a dict of 2; NetworkSpec(output=…) takes another part" in out
    (gb,) = [line.split(maxsplit=1)[1] for line in out.splitlines() if line.endswith("-gb.jpg")]
    picture = cv2.imread(gb)
    assert picture is not None
    assert picture.shape == (32, 48, 3)
    assert np.ptp(picture.astype(int), axis=2).max() <= 2
    assert picture.std() > 5


def test_classes_above_a_threshold_each_have_pictures(tried: Any) -> None:
    code, out, _ = tried("build_findings", "--classes", "above:0.5", "--json")
    assert code == 0
    found = json.loads(out)
    likely = [each for each in found["top5"] if each["probability"] > 0.5]
    assert len(likely) > 1
    assert found["classes"] == likely
    assert found["explained"] == likely[0]
    assert set(found["pictures"]) == {
        f"class{each['class_id']}-{kind}" for each in likely for kind in ("heatmap", "cam", "gb", "cam_gb")
    }


def test_an_output_that_is_no_probability_is_told_and_what_lowers_it_is_another_picture(tried: Any) -> None:
    up, down = (tried("build_age", "--direction", which) for which in ("up", "down"))
    assert (up[0], down[0]) == (0, 0)
    (age,) = [line.split(", ")[1] for line in down[1].splitlines() if line.startswith("class ")]
    assert float(age) < 0
    assert "explains  what lowers the output of the class" in down[1]
    assert "explains" not in up[1]
    told = tried("build_age", "--activation", "sigmoid", "--json")[1]
    assert json.loads(told)["explained"]["probability"] == pytest.approx(1 / (1 + np.exp(-float(age))), abs=1e-5)


def test_what_decides_a_picture_is_typed_as_for_a_job(tried: Any, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\nbird\n")
    named = ("--labels", str(tmp_path / "classes.txt"), "--class-name", "dog")
    drawn = ("--outputs", "cam,gb", "--format", "png", "--output-size", "original", "--method", "gradcam++")
    code, out, error = tried("build_any", *named, *drawn, "--json")
    assert (code, error) == (0, "")
    found = json.loads(out)
    assert found["explained"]["class_name"] == "dog"
    assert list(found["pictures"]) == ["cam", "gb"]
    assert Path(found["pictures"]["cam"]).suffix == ".png"
    picture, original = cv2.imread(found["pictures"]["cam"]), cv2.imread(str(CAT))
    assert picture is not None
    assert original is not None
    assert picture.shape == original.shape
    probability = {
        how: json.loads(tried("build_any", *how, "--class-id", "1", "--json")[1])["explained"]["probability"]
        for how in ((), ("--fit", "crop"), ("--resize-filter", "bicubic-antialias"), ("--mean", "0.1"))
    }
    assert len(set(probability.values())) == 4


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("build_own_relu", "No ReLU was seen, so gb is the plain gradient."),
    ],
)
def test_what_works_and_was_perhaps_not_meant_is_noted(tried: Any, function: str, words: str) -> None:
    code, out, _ = tried(function)
    assert code == 0
    assert words in out


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        ("build_any", ("--layer-name", "conv9"), "has no layer 'conv9'; the nearest are conv2, conv1"),
        (
            "build_any",
            ("--layer-name", "fc"),
            "gives (1, 3), not maps (images, channels, height, width); maps come from relu2",
        ),
        ("build_grey", ("--class-name", "opasity"), "no class of mine is called 'opasity'; the nearest is opacity"),
        ("build_any", ("--class-id", "3"), "class 3 is out of range: mine has classes 0 to 2"),
        ("build_any", ("--weight-path", "s3://bucket/a.pth"), "try reads weights of this machine"),
        ("build_any", ("--weight-path", "/nowhere.pth"), "neither a file nor a name of weights of mine"),
        ("build_any", ("--class-id", "1", "--class-name", "a"), "give --class-id or --class-name, not both"),
        ("build_findings", ("--classes", "above:50"), "a probability lies between 0 and 1"),
        ("build_findings", ("--classes", "likely"), "--classes must be above: and a number, such as above:0.5"),
        ("build_findings", ("--classes", "above:0.5", "--class-id", "1"), "leave --class-id and --class-name out"),
        ("build_age", ("--activation", "softmax"), "mine has one output, whose softmax is always 1"),
        ("build_four", (), "reads 4 channels; pictures have 1 (grey) or 3"),
        ("build_maps", (), "gives (2, 3, 1, 1) for 2 images, not one tensor of (N, K) logits"),
        ("build_always_training", (), "the model is in training mode"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    tried: Any, function: str, arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    code, out, error = tried(function, *arguments)
    assert (code in (2, 4), out) == (True, "")
    assert words in error
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_picture_that_cannot_be_read_is_told(tried: Any, tmp_path: Path) -> None:
    assert "cannot be read: No such file" in tried("build_any", image=tmp_path / "no.png")[2]
    (tmp_path / "text.png").write_text("cat")
    assert "not a picture" in tried("build_any", image=tmp_path / "text.png")[2]
    assert "/dev/zero is larger than 67,108,864 bytes" in tried("build_any", image=Path("/dev/zero"))[2]


def test_weights_of_a_file_are_tried(tried: Any, tmp_path: Path) -> None:
    torch.save({"model": Net(classes=4).state_dict(), "model_ema": Net(classes=4).state_dict()}, tmp_path / "w.pth")
    code, out, _ = tried("build_any", "--weight-path", str(tmp_path / "w.pth"), "--weight-key", "model_ema")
    assert code == 0
    assert "weights  taken: model_ema.*" in out
