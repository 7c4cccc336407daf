"""The command that makes a job of a spec: what somebody types who has the spec and the images, and not the command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any, Final

from producer.jobs.model.network_names import HF
from producer.jobs.model.options import Parameter, parameters
from producer.jobs.model.redaction import redact
from producer.jobs.model.spec import JobSpec

#: In the place of what no spec says.
IMAGES: Final = "IMAGES"
_BETWEEN: Final = {"input_size": "x"}


def command_of(job: str, spec: JobSpec) -> str:
    """Return the command that submits a job again under its name; `IMAGES` stands for what it was made from.

    What is a default is left out, and so is the size of chunks, which the name brings along. Secrets of an address of
    weights are `***`; files that only its user has are named in capitals.
    """
    words = ["gradcam", "submit", IMAGES, "--name", job, "--network", spec.network, *_weights(spec)]
    for parameter in parameters(JobSpec).values():
        value = getattr(spec, parameter.field)
        if parameter.field != "network" and value != parameter.default:
            words += _typed(parameter, value)
    if spec.labels is not None:
        words += ["--labels", "LABELS"]
    return shlex.join(words)


def _weights(spec: JobSpec) -> Iterator[str]:
    if spec.weights == "DEFAULT":
        return
    yield "--weight-path"
    if spec.network == HF and not spec.weights.endswith("/"):
        yield "FOLDER"
        return
    digest = f"#sha256={spec.weights_sha256}" if spec.weights_sha256 and "://" in spec.weights else ""
    yield redact(spec.weights) + digest


def _typed(parameter: Parameter, value: Any) -> list[str]:
    if parameter.kind == "flag":
        return [parameter.flag]
    if isinstance(value, tuple):
        return [parameter.flag, _BETWEEN.get(parameter.field, ",").join(map(str, value))]
    return [parameter.flag, str(value)]
