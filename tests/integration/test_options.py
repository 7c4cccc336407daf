"""What can be asked of a job beside the defaults, end to end."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage

from producer.client.client import Client
from producer.input.sources import Source
from producer.jobs.model.errors import UsageError
from producer.jobs.model.results import Result
from producer.jobs.model.states import JobState

NETWORK = "efficientnet_lite0"
PHOTOS = Path(skimage.__file__).parent / "data"
CAT, COFFEE = str(PHOTOS / "chelsea.png"), str(PHOTOS / "coffee.png")

pytestmark = pytest.mark.usefixtures("worker")


def explained(client: Client, images: list[Any], **parameters: Any) -> list[Result]:
    job = client.submit(images, network=NETWORK, **parameters)
    status = client.wait(job, timeout_s=90)
    assert status.state is JobState.SUCCEEDED, status
    return list(client.results(job))


def picture(client: Client, result: Result, kind: str) -> np.ndarray:
    stored = np.frombuffer(client.storage.get(result.objects[kind]), np.uint8)
    decoded = cv2.imdecode(stored, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded


def test_the_most_likely_classes_each_get_pictures_of_their_own(client: Client) -> None:
    (result,) = explained(client, [CAT], top_k=3, outputs=["cam", "gb"], format="png")
    assert [each.class_name for each in result.classes] == [guess.class_name for guess in result.top5[:3]]
    assert set(result.objects) == {f"class{c.class_id}-{kind}" for c in result.classes for kind in ("cam", "gb")}
    first, second = (picture(client, result, f"class{each.class_id}-cam") for each in result.classes[:2])
    assert (first != second).any()
    (alone,) = explained(client, [CAT], class_id=result.classes[1].class_id, outputs=["cam"], format="png")
    assert np.abs(picture(client, alone, "cam").astype(int) - second).max() <= 1


def test_classes_are_named_for_the_job_or_for_one_image(client: Client) -> None:
    cat, coffee, plain = explained(
        client,
        [CAT, Source(path=Path(COFFEE), class_name="cup", id="mine"), Source(path=Path(COFFEE), class_id=967)],
        class_name="tabby",
    )
    assert [cat.class_name, coffee.class_name, plain.class_name] == ["tabby", "cup", "espresso"]
    assert coffee.id == "mine"


def test_a_class_that_one_image_cannot_have_is_that_images_error(client: Client) -> None:
    job = client.submit(
        [CAT, Source(path=Path(CAT), class_id=1000), Source(path=Path(CAT), class_name="tabbi")], network=NETWORK
    )
    status = client.wait(job, timeout_s=90)
    assert (status.state, status.failures) == (JobState.COMPLETED_WITH_ERRORS, {"model": 2})
    messages = {failure.index: failure.message for failure in client.failures(job)}
    assert "out of range" in messages[1]
    assert "tabby" in messages[2]


@pytest.mark.parametrize("method", ["gradcam++", "hirescam", "layercam", "xgradcam"])
def test_every_method_puts_the_heat_of_the_cat_on_the_cat(client: Client, method: str) -> None:
    (result,) = explained(client, [CAT], method=method, raw=True, outputs=["cam"])
    with np.load(io.BytesIO(client.storage.get(result.objects["raw"]))) as stored:
        maps = stored["map"]
    center = maps[1:5, 1:5].mean()
    assert center > 1.3 * maps.mean()


def test_several_layers_are_averaged_and_named(client: Client) -> None:
    (result,) = explained(client, [CAT], layer_name="last-conv,blocks.5", outputs=["heatmap"])
    assert result.layer == "conv_head,blocks.5"


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_pictures_of_the_originals_size_show_the_original(client: Client, fit: str) -> None:
    (result,) = explained(client, [CAT], fit=fit, output_size="original", format="png")
    original = cv2.imread(CAT)
    assert original is not None
    for kind in ("heatmap", "cam", "gb", "cam_gb"):
        assert picture(client, result, kind).shape == original.shape
    # Outside of a crop there is no heat, and blue lies over the picture.
    assert np.corrcoef(picture(client, result, "cam").ravel(), original.ravel())[0, 1] > 0.15


def test_half_precision_sees_what_single_precision_sees(client: Client) -> None:
    (half,) = explained(client, [COFFEE], precision="bf16")
    assert half.class_name == "espresso"


def test_labels_of_the_user_replace_those_of_the_weights(client: Client, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"kind {number}" for number in range(1000)))
    (result,) = explained(client, [COFFEE], labels=labels)
    assert result.class_name == f"kind {result.class_id}"
    labels.write_text("too\nfew")
    job = client.submit([COFFEE], network=NETWORK, labels=labels)
    status = client.wait(job, timeout_s=90)
    assert status.state is JobState.FAILED
    assert "1000" in (status.error or "")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"class_id": 1, "class_name": "tabby"}, "not both"),
        ({"class_id": 1, "top_k": 2}, "--top-k"),
        ({"method": "magic"}, "--method"),
        ({"class_id": 1, "classes": "above:0.5"}, "--classes .*leave --class-id out"),
        ({"explain": "both", "classes": "above:0.5"}, "--classes .*leave --explain out"),
        ({"classes": "above:1"}, "between 0 and 1"),
        ({"classes": "below:0.5"}, "--classes must be above: and a number"),
        ({"fit": "stretch", "precision": "fp8"}, "--precision.*--fit|--fit.*--precision"),
        ({"labels": "/no/such/file"}, "--labels"),
    ],
)
def test_what_does_not_go_together_is_told_before_anything_is_sent(
    client: Client, parameters: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        client.submit([CAT], **parameters)
