"""What was typed for a submission becomes the spec of a job."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from producer.input.read_options import ReadOptions
from producer.jobs.model.errors import UsageError
from producer.jobs.model.network_names import check_network, may_segment
from producer.jobs.model.options import parameters
from producer.jobs.model.spec import MASK, MAX_CHUNK_SIZE, OUTPUTS, JobSpec, check_threshold, checked_name
from producer.jobs.model.typed_spec import checked_model, make_spec, read_labels, spec_fields
from producer.submission.options import SubmitOptions

#: What a chunk of fitting size takes, the smallest, and one where nobody knows how fast the network is.
_CHUNK_S, _SMALLEST_SIZE, _UNKNOWN_SIZE = 10.0, 16, 64


@dataclass(frozen=True)
class Request:
    """What was typed for a submission, checked; no server was asked yet."""

    options: SubmitOptions
    #: The job's spec, but for where its weights lie and how large its chunks are.
    draft: JobSpec

    @classmethod
    def read(
        cls, reading: ReadOptions, *, registered: Callable[[], Collection[str]] = frozenset, **typed: Any
    ) -> Request:
        """Check what was typed.

        Args:
            reading: How the images are read.
            registered: As in `check_network`.
            typed: What `Client.submit` takes, by its names.

        Raises:
            UsageError: Names everything that contradicts itself or cannot be used.
        """
        check_typed(reading, registered=registered, **typed)
        own = {name: typed.pop(name) for name in parameters(SubmitOptions) if name in typed}
        labels = own.get("labels")
        fields = spec_fields(**typed) | {"labels": read_labels(None if labels is None else Path(labels))}
        if may_segment(str(typed.get("network", ""))) and fields.get("outputs", OUTPUTS) == OUTPUTS:
            fields["outputs"] = (*OUTPUTS, MASK)
        options, wrong = checked_model(SubmitOptions, own)
        draft, more_wrong = checked_model(JobSpec, fields)
        if options is None or draft is None:
            raise UsageError("; ".join([*more_wrong, *wrong]))
        check_threshold(draft)
        if options.name is not None:
            checked_name(options.name)
        return cls(options, draft)

    def spec(self, *, chunk_size: int, weights: str, weights_sha256: str | None = None, store: str = "") -> JobSpec:
        """Make the job's spec. Raises UsageError."""
        found = {"chunk_size": chunk_size, "weights": weights, "weights_sha256": weights_sha256, "store": store}
        return make_spec(**(dict(self.draft) | found))


def check_typed(reading: ReadOptions, *, registered: Callable[[], Collection[str]] = frozenset, **typed: Any) -> None:
    """Refuse what contradicts itself, and a network that nobody knows, before anything is read or sent.

    Args:
        reading: How the images are read.
        registered: As in `check_network`.
        typed: What `Client.submit` takes, by its names.

    Raises:
        UsageError: Says which, and what to do.
    """
    defaults = {name: each.default for name, each in (parameters(JobSpec) | parameters(SubmitOptions)).items()}
    given = defaults | typed
    class_id, class_name, top_k, explain = (given[name] for name in ("class_id", "class_name", "top_k", "explain"))
    if class_id is not None and class_name is not None:
        raise UsageError("give --class-id or --class-name, not both")
    one = "--class-id" if class_id is not None else "--class-name" if class_name is not None else None
    if one and top_k > 1:
        raise UsageError("--top-k takes the most likely classes: leave --class-id and --class-name out")
    if one and reading.class_column is not None:
        raise UsageError(f"--class-column gives each image a class of its own: leave {one} out")
    if given["classes"] is not None:
        own = one or ("--class-column" if reading.class_column is not None else None)
        own = own or ("--explain" if explain != defaults["explain"] else None)
        if own:
            raise UsageError(f"--classes chooses among all classes of the network: leave {own} out")
    if explain != defaults["explain"]:
        other = one or ("--class-column" if reading.class_column is not None else "--top-k" if top_k > 1 else None)
        if other:
            raise UsageError(f"--explain {explain} explains the class of each image's label: leave {other} out")
    if reading.label_column is not None and reading.label_from is not None:
        raise UsageError("give --label-column or --label-from, not both")
    if given["weight_key"] is not None and given["weight_path"] in (None, "random"):
        raise UsageError("--weight-key names weights in a file: give the file by --weight-path")
    if not may_segment(str(given["network"])):
        pixels = "--mask-class" if given["mask_class"] is not None else MASK in given["outputs"] and f"--outputs {MASK}"
        if pixels:
            raise UsageError(f"{given['network']} tells the class of a picture, not of its pixels: leave {pixels} out")
    if not given["any_network"]:
        check_network(str(given["network"]), registered)


def fitting_size(images_per_s: float | None) -> int:
    """Images a chunk that make about ten seconds of work, from the measured speed of one process.

    Smaller ones are redone quickly when a process dies and share workers more evenly; larger ones cost fewer messages.
    """
    if images_per_s is None:
        return _UNKNOWN_SIZE
    return min(MAX_CHUNK_SIZE, max(_SMALLEST_SIZE, round(_CHUNK_S * images_per_s)))
