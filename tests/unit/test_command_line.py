"""The command that is shown to whoever has a job's spec and not its command."""

from __future__ import annotations

import pytest

from producer.jobs.model.spec import JobSpec
from producer.submission.command_line import command_of

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
    assert command_of("audit-7", spec) == f"gradcam submit IMAGES --name audit-7 --network {spec.network}{words}"
