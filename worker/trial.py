"""Explain one image here, without Redis and a store: the first thing to do with a model of one's own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from producer.jobs.fetch.policy import FetchPolicy
from producer.jobs.model import keys
from producer.jobs.model.errors import ImageError, JobError, ModelError, UsageError
from producer.jobs.model.results import Prediction
from producer.jobs.model.spec import MASK, OUTPUTS, Direction, JobSpec, PictureFormat
from worker.chunks.drawing import Fitted, drawn, fitted
from worker.device.batches import Explained, explain_classes
from worker.engine.detection import BOXES, LABELS
from worker.models.as_asked import as_asked
from worker.models.classes import checked_class
from worker.models.networks import Network, load
from worker.models.own_model import SEGMENTATION
from worker.models.predictions import above, top_boxes, top_predictions
from worker.pictures.decode import Picture, decode
from worker.pictures.render import encode


@dataclass(frozen=True)
class Trial:
    """What came of one image."""

    network: str
    #: Where the weights are from, and what the network reads, in words.
    weights: str
    preprocessing: str
    #: Which part of the network's output is read; "" where the output is the logits.
    output: str
    layer: str
    #: The class explained, the most likely of several; and all of them.
    explained: Prediction
    classes: tuple[Prediction, ...]
    direction: str
    top5: tuple[Prediction, ...]
    guided_relus: int
    #: Kind → file; of several classes `class<ID>-<kind>`.
    pictures: dict[str, str]
    #: What works, and is perhaps not what was meant; sentences.
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        several = {"classes": self.classes, "top5": self.top5}
        predictions = {name: [each.model_dump() for each in those] for name, those in several.items()}
        return asdict(self) | predictions | {"explained": self.explained.model_dump()}


def run_trial(
    name: str,
    image: Path,
    output_dir: Path,
    *,
    weights: str | None = None,
    how: JobSpec | None = None,
) -> Trial:
    """Explain one image on the CPU as a worker would, and write its pictures.

    Args:
        name: The network's.
        image: The file.
        output_dir: Where the pictures are written; made if need be.
        weights: A file, a name of weights, or `random`; None for the network's own.
        how: All else: the layer, which classes, how the picture is read, what is drawn; as a job has it.

    Raises:
        UsageError: Network, image or folder cannot be used; says what does not fit, and what to do.
        WorkerError: Something is missing on this machine.
    """
    picture, how = _read(image), how or JobSpec()
    try:
        network = as_asked(load(name, weights, how.layer, size=how.input_size, weight_key=how.weight_key), how)
        if network.task == SEGMENTATION and how.outputs == OUTPUTS:
            how = how.model_copy(update={"outputs": (*OUTPUTS, MASK)})
        asked = checked_class(network, how.class_id, how.class_name)
        seen = fitted(picture, network, how)
        answers = _explained(network, seen, asked, how)
        pictures, flat = _drawn(network, seen, answers, how)
    except ImageError as error:
        raise UsageError(f"--image {image}: {error}") from None
    except (JobError, ModelError) as error:
        raise UsageError(str(error)) from None
    first = answers[0]
    if LABELS in first.beside:
        classes = top5 = top_boxes(first.logits, first.beside[LABELS], len(answers), network.categories)
    else:
        ids = [each.class_id for each in answers]
        classes, top5 = top_predictions(first.logits, ids, network.categories, network.activation, first.beside)
    files = _write(pictures, image, network.name, output_dir, how.format)
    return Trial(
        network=network.name,
        weights=network.weights_read,
        preprocessing=network.preprocessing,
        output=network.output_read,
        layer=",".join(network.layer_names),
        explained=classes[0],
        classes=classes,
        direction=how.direction,
        top5=top5,
        guided_relus=answers[0].guided_relus,
        pictures=files,
        notes=tuple(_notes(network, flat, answers[0].guided_relus, how.direction)),
    )


def _read(image: Path) -> Picture:
    limit = FetchPolicy().max_bytes
    try:
        with image.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise UsageError(f"--image {image} is larger than {limit:,} bytes, more than a worker takes")
        return decode(content)
    except OSError as error:
        raise UsageError(f"--image {image} cannot be read: {error.strerror or error}") from None
    except ImageError as error:
        raise UsageError(f"--image {image}: {error}") from None


def _explained(network: Network, seen: Fitted, asked: int | None, how: JobSpec) -> list[Explained]:
    """One explanation a class, or one a box."""
    where = f"{network.name} cannot be explained at {','.join(network.layer_names)}"
    (answer,) = explain_classes(
        network,
        [seen.input],
        [asked],
        top_k=how.top_k,
        method=how.method,
        precision=how.precision,
        down=how.direction == "down",
    ).answers()
    if isinstance(answer, ModelError):
        raise JobError(f"{where}: its answer is not finite (NaN or infinite): look at its weights, mean and std")
    if not answer:
        raise JobError(f"{network.name} finds no box here that scores {how.min_score:g} or more; try another picture")
    if how.threshold is None:
        return answer
    return above(answer, how.threshold, network.activation)[0]


def _drawn(network: Network, seen: Fitted, answers: list[Explained], how: JobSpec) -> tuple[dict[str, Picture], bool]:
    """The pictures, and whether the (first) map is the same everywhere."""
    pictures: dict[str, Picture] = {}
    flats = []
    for number, explained in enumerate(answers, 1):
        made, flat = drawn(seen.picture, seen.frame, explained, network, how)
        flats.append(flat)
        if BOXES in explained.beside:
            pictures |= {f"box{number}-{kind}": picture for kind, picture in made.items()}
        elif len(answers) > 1:
            pictures |= {f"class{explained.class_id}-{kind}": picture for kind, picture in made.items()}
        else:
            pictures = made
    return pictures, flats[0]


def _write(
    pictures: dict[str, Picture], image: Path, network: str, folder: Path, suffix: PictureFormat
) -> dict[str, str]:
    files = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, picture in pictures.items():
            path = folder / keys.picture_name(image.stem, network, kind, suffix)
            path.write_bytes(encode(picture, suffix))
            files[kind] = str(path)
    except OSError as error:
        raise UsageError(f"--output-dir {folder} cannot be written: {error.strerror or error}") from None
    return files


def _notes(network: Network, flat: bool, guided_relus: int, direction: Direction) -> list[str]:
    notes = list(network.remarks)
    if network.random:
        notes.append("The weights are random, so the pictures mean nothing.")
    if flat:
        speaks = "speaks for" if direction == "up" else "speaks against"
        notes.append(
            f"The map is the same everywhere: nothing at this layer {speaks} the class. Name another by "
            f"--layer-name; `gradcam-worker layers {network.name}` lists them."
        )
    if not guided_relus:
        notes.append(
            "No ReLU was seen, so gb is the plain gradient. Where the network has a ReLU of its own, write it with "
            "torch.relu or clamp(min=0)."
        )
    return notes
