"""The command that makes a job of a spec: what somebody types who has the spec and the images, and not the command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from producer.jobs.model.network_names import HF
from producer.jobs.model.options import Parameter, parameters
from producer.jobs.model.redaction import hides, redact
from producer.jobs.model.spec import JobSpec
from producer.submission.options import SubmitOptions

#: In the place of what no spec says.
IMAGES: Final = "IMAGES"
_LABELS, _FOLDER = "LABELS", "FOLDER"
_BLANKS: Final = {_LABELS: "your file of class names", _FOLDER: "the folder of the network"}
_BETWEEN: Final = {"input_size": "x"}
_FIRST: Final = ("name", "network", "weight_path")


def submit_command(sources: Sequence[str], typed: Mapping[str, Any]) -> str:
    """Return a command that submits; what is a default is left out, except the network.

    Args:
        sources: What stands before the options of the job: images, and how they are read.
        typed: What `Client.submit` takes, by its names. Secrets of an address of weights become `***`.
    """
    known = parameters(JobSpec) | parameters(SubmitOptions)
    words = ["gradcam", "submit", *sources]
    for name in (*_FIRST, *(name for name in known if name not in _FIRST)):
        # What was typed may be text where the default is a number.
        default = list(_words(known[name], known[name].default))
        given = list(_words(known[name], typed[name])) if name in typed else default
        if name == "network" or given != default:
            words += given
    return shlex.join(words)


def command_of(spec: JobSpec, *, name: str | None = None, sources: Sequence[str] = (IMAGES,)) -> str:
    """Return the command that makes a job of this spec.

    The size of chunks is left out: a job that is continued under its name has it, and for another one it is found anew.
    What no spec says is named in capitals, see `blanks`.
    """
    typed = {each.name: getattr(spec, each.field) for each in parameters(JobSpec).values()}
    labels = None if spec.labels is None else _LABELS
    return submit_command(sources, {**typed, "name": name, "weight_path": _weights(spec), "labels": labels})


def blanks(command: str) -> str:
    """Say what has to be filled into a command before it is typed; empty where nothing has."""
    words = shlex.split(command)
    told = [f"{word} stands for {what}" for word, what in _BLANKS.items() if word in words]
    if any(hides(word) for word in words):
        told.append("*** stands for what is secret in the address of the weights")
    return ", ".join(told)


def _weights(spec: JobSpec) -> str | None:
    if spec.weights == "DEFAULT":
        return None
    if spec.network == HF and not spec.weights.endswith("/"):
        return _FOLDER
    return spec.weights + (f"#sha256={spec.weights_sha256}" if spec.weights_sha256 and "://" in spec.weights else "")


def _words(parameter: Parameter, value: Any) -> Iterator[str]:
    if value is None or value is False:
        return
    yield parameter.flag
    if value is True:
        return
    if isinstance(value, tuple):
        yield _BETWEEN.get(parameter.field, ",").join(map(str, value))
    elif parameter.name == "weight_path" and "://" in str(value):
        address, mark, digest = str(value).partition("#sha256=")
        yield redact(address) + mark + digest
    else:
        yield str(value)
