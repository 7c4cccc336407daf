"""Weights of one's own, as training programs write them, end to end."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from command import gradcam
from torchvision.models import shufflenet_v2_x0_5

from producer.client.client import Client
from producer.jobs.model import keys
from producer.jobs.model.states import JobState
from worker.device.inputs import normalized
from worker.pictures.decode import decode
from worker.pictures.geometry import fit

NETWORK = "shufflenet_v2_x0_5"
CAT = Path(str(__import__("skimage").__file__)).parent / "data" / "chelsea.png"
MEAN, STD, SIZE = (0.5, 0.4, 0.3), (0.25, 0.5, 1.0), (96, 128)

pytestmark = pytest.mark.usefixtures("worker")


def test_a_network_with_one_logit_is_explained_from_a_checkpoint_with_its_own_preprocessing(
    client: Client, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = shufflenet_v2_x0_5(num_classes=1).eval()
    torch.nn.init.constant_(net.fc.bias, -2.0)
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    average = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({"ema": average, "net": state, "acc": 93.1, "epoch": 5}, tmp_path / "checkpoint.pth")
    (tmp_path / "labels.txt").write_text("ill\n")
    run = gradcam(
        "submit", str(CAT), "--network", NETWORK, "--weight-path", str(tmp_path / "checkpoint.pth"),
        "--labels", str(tmp_path / "labels.txt"), "--mean", "0.5,0.4,0.3", "--std", "0.25,0.5,1",
        "--input-size", "96x128", "--wait", "--output-dir", str(tmp_path / "results"), "--json",
    )  # fmt: skip
    status = json.loads(run.stdout)
    assert (status["state"], status["done"]) == ("succeeded", 1)

    picture, _frame = fit(decode(CAT.read_bytes()), SIZE, "squash")
    with torch.no_grad():
        expected = float(net(normalized(torch.from_numpy(picture)[None], MEAN, STD)).sigmoid())
    (result,) = client.results(status["job"])
    assert (result.class_id, result.class_name) == (0, "ill")
    assert 0.01 < expected < 0.4
    assert result.probability == pytest.approx(expected, abs=1e-5)
    heatmap = cv2.imdecode(np.frombuffer(client.storage.get(result.objects["heatmap"]), np.uint8), cv2.IMREAD_COLOR)
    assert heatmap is not None
    assert heatmap.shape == (*SIZE, 3)

    found = json.loads(client.storage.get(keys.summary(client.storage.prefix, status["job"])))["found"]
    assert found["weights_read"].startswith("taken: net.module.*; as well would fit: ema.module.*")
    assert found["preprocessing"] == "96 x 128 px, mean 0.5 0.4 0.3, std 0.25 0.5 1, resized bilinear"


@pytest.mark.parametrize(
    ("network", "content", "words"),
    [
        (
            NETWORK,
            {"model": torch.nn.Linear(1, 1), "args": argparse.Namespace(lr=0.1)},
            r"if you trust it, save its",
        ),
        (NETWORK, {"model": {"a.weight": torch.ones(1)}}, "the weights do not fit shufflenet_v2_x0_5: "),
        ("timm/vit_small_patch16_224.dino", None, "has no classifier"),
    ],
)
def test_weights_that_cannot_be_used_fail_the_job_in_a_sentence(
    client: Client, tmp_path: Path, network: str, content: Any, words: str
) -> None:
    weights: str | Path = "random"
    if content is not None:
        weights = tmp_path / "checkpoint.pth"
        torch.save(content, weights)
    status = client.wait(client.submit([CAT], network=network, weight_path=weights), timeout_s=90)
    assert status.state is JobState.FAILED
    assert words in (status.error or "")
