"""Explain one image here, without Redis and a store: the first thing to do with a model of one's own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from producer.jobs.model import keys
from producer.jobs.model.errors import ImageError, JobError, ModelError, UsageError
from producer.jobs.model.results import Prediction
from worker.engine.explain import Explanations, explain_many
from worker.models.classes import PREDICTED, checked_class
from worker.models.networks import Network, load
from worker.models.predictions import top_predictions
from worker.pictures import channels
from worker.pictures.decode import Picture, decode, normalize
from worker.pictures.geometry import average_maps, fit
from worker.pictures.min_max import min_max_scaled
from worker.pictures.render import draw, encode

_FORMAT: Final = "jpg"
#: How a job that says nothing brings pictures to the network's size.
_FIT: Final = "squash"


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
    explained: Prediction
    top5: tuple[Prediction, ...]
    guided_relus: int
    #: Kind → file.
    pictures: dict[str, str]
    #: What works, and is perhaps not what was meant; sentences.
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        predictions = {"explained": self.explained.model_dump(), "top5": [each.model_dump() for each in self.top5]}
        return asdict(self) | predictions


def run_trial(
    name: str,
    image: Path,
    output_dir: Path,
    *,
    weights: str | None = None,
    weight_key: str | None = None,
    layer: str,
    class_id: int | None = None,
    class_name: str | None = None,
) -> Trial:
    """Explain one image on the CPU as a worker would, and write its pictures.

    Args:
        name: The network's.
        image: The file.
        output_dir: Where the pictures are written; made if need be.
        weights: A file, a name of weights, or `random`; None for the network's own.
        weight_key: As in a job.
        layer: As in a job.
        class_id: The class to explain; None for `class_name`, or the predicted one.
        class_name: The same by its name.

    Raises:
        UsageError: Network, image or folder cannot be used; says what does not fit, and what to do.
        WorkerError: Something is missing on this machine.
    """
    picture = _read(image)
    try:
        network = load(name, weights, layer, weight_key=weight_key)
        asked = checked_class(network, class_id, class_name)
        fitted, _frame = fit(picture, network.size, _FIT, network.resize_px)
        seen = channels.as_read(fitted, network.channels)
        answer = _explained(network, seen, asked)
        maps = tuple(each[0, 0].numpy() for each in answer.maps)
        drawn = _drawn(seen, maps, answer.guided[0, 0].numpy())
    except (JobError, ModelError) as error:
        raise UsageError(str(error)) from None
    explained, top5 = top_predictions(answer.logits[0].numpy(), int(answer.class_ids[0, 0]), network.categories)
    files = _write(drawn, image, network.name, output_dir)
    return Trial(
        network=network.name,
        weights=network.weights_read,
        preprocessing=network.preprocessing,
        output=network.output_read,
        layer=",".join(network.layer_names),
        explained=explained,
        top5=top5,
        guided_relus=answer.guided_relus,
        pictures=files,
        notes=tuple(_notes(network, maps, answer.guided_relus)),
    )


def _read(image: Path) -> Picture:
    try:
        return decode(image.read_bytes())
    except OSError as error:
        raise UsageError(f"--image {image} cannot be read: {error.strerror or error}") from None
    except ImageError as error:
        raise UsageError(f"--image {image}: {error}") from None


def _explained(network: Network, seen: Picture, asked: int | None) -> Explanations:
    inputs = normalize(seen, network.mean, network.std)[: network.channels]
    batch = torch.from_numpy(inputs[None]).contiguous(memory_format=torch.channels_last)
    where = f"{network.name} cannot be explained at {','.join(network.layer_names)}"
    try:
        answer = explain_many(
            network.model, network.views, batch, [PREDICTED if asked is None else asked], output=network.output
        )
    except (ValueError, RuntimeError) as error:
        raise JobError(f"{where}: {(str(error).splitlines() or [''])[0]}") from None
    if not bool(answer.logits.isfinite().all()):
        raise JobError(f"{where}: its answer is not finite (NaN or infinite): look at its weights, mean and std")
    return answer


def _drawn(seen: Picture, maps: tuple[np.ndarray[Any, Any], ...], guided: np.ndarray[Any, Any]) -> dict[str, Picture]:
    heat = average_maps(maps, seen.shape[:2])
    if len(maps) > 1:
        heat, _ = min_max_scaled(heat)
    return draw(seen / np.float32(255), heat, channels.as_drawn(np.moveaxis(guided, 0, -1)))


def _write(pictures: dict[str, Picture], image: Path, network: str, folder: Path) -> dict[str, str]:
    files = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, picture in pictures.items():
            path = folder / keys.picture_name(image.stem, network, kind, _FORMAT)
            path.write_bytes(encode(picture, _FORMAT))
            files[kind] = str(path)
    except OSError as error:
        raise UsageError(f"--output-dir {folder} cannot be written: {error.strerror or error}") from None
    return files


def _notes(network: Network, maps: tuple[np.ndarray[Any, Any], ...], guided_relus: int) -> list[str]:
    notes = list(network.remarks)
    if network.random:
        notes.append("The weights are random, so the pictures mean nothing.")
    if all(min_max_scaled(each)[1] for each in maps):
        notes.append(
            "The map is the same everywhere: nothing at this layer speaks for the class. Name another by --layer-name; "
            f"`gradcam-worker layers {network.name}` lists them."
        )
    if not guided_relus:
        notes.append(
            "No ReLU was seen, so gb is the plain gradient. Where the network has a ReLU of its own, write it with "
            "torch.relu or clamp(min=0)."
        )
    return notes
