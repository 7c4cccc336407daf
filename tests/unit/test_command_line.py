"""The command that is shown to whoever has a job's spec and not its command."""

from __future__ import annotations

import pytest

from producer.jobs.model.spec import JobSpec
from producer.output.failures import how_to_read
from producer.submission.command_line import blanks, command_of, submit_command

DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ""),
        ({"raw": True, "outputs": ("cam", "gb")}, " --raw --outputs cam,gb"),
        ({"input_size": (224, 320), "mean": (0.5, 0.5, 0.5)}, " --input-size 224x320 --mean 0.5,0.5,0.5"),
        ({"class_name": "tabby cat"}, " --class-name 'tabby cat'"),
        ({"chunk_size": 7}, ""),
        ({"labels": ("a", "b")}, " --labels LABELS"),
        ({"network": "hf", "weights": "s3://b/x", "weights_sha256": DIGEST}, " --weight-path FOLDER"),
        ({"network": "hf", "weights": "s3://b/vit/"}, " --weight-path s3://b/vit/"),
        ({"weights": "s3://b/w", "weights_sha256": DIGEST}, f" --weight-path 's3://b/w#sha256={DIGEST}'"),
        ({"weights": "https://e.org/w?token=secret"}, " --weight-path 'https://e.org/w?***'"),
    ],
)
def test_what_is_no_default_is_typed_and_secrets_are_not(fields: dict[str, object], words: str) -> None:
    spec = JobSpec.model_validate(fields)
    assert command_of(spec, name="audit-7") == f"gradcam submit IMAGES --name audit-7 --network {spec.network}{words}"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ""),
        ({"labels": ("a", "b")}, "LABELS stands for your file of class names"),
        ({"network": "hf", "weights": "s3://b/x"}, "FOLDER stands for the folder of the network"),
        ({"weights": "https://e.org/w?sig=secret"}, "*** stands for what is secret in the address of the weights"),
    ],
)
def test_what_a_command_leaves_open_is_said(fields: dict[str, object], words: str) -> None:
    assert blanks(command_of(JobSpec.model_validate(fields))) == words


def test_what_was_typed_is_typed_again_without_defaults() -> None:
    typed = {
        "network": "vgg16",
        "input_size": "224x320",
        "weight_path": "my best.pth",
        "labels": "c",
        "min_score": "0.5",
    }
    again = submit_command(["a.csv", "--allow-local"], typed)
    assert again == (
        "gradcam submit a.csv --allow-local --network vgg16 --weight-path 'my best.pth' --input-size 224x320 --labels c"
    )


@pytest.mark.parametrize(
    ("fields", "has_class"), [({}, True), ({"top_k": 2}, True), ({"explain": "both"}, False), ({"class_id": 3}, False)]
)
def test_a_list_of_failures_is_never_read_by_options_that_contradict_its_job(
    fields: dict[str, object], has_class: bool
) -> None:
    options = how_to_read(JobSpec.model_validate(fields), {"split": "train", "uri": "x"})
    assert ("--class-column" in options) is has_class
    assert options[-2:] == ["--keep-columns", "split,keep.uri"]
