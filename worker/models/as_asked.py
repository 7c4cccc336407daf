"""A network as one job asks for it: other labels, numbers, scores or boxes, on a model that jobs share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from producer.jobs.model.activations import Activation
from producer.jobs.model.errors import JobError
from producer.jobs.model.spec import MASK, JobSpec
from worker.engine.detection import Detection
from worker.engine.segmentation import Segmentation
from worker.models.classes import checked_class, class_called
from worker.models.networks import Network, checked_labels
from worker.models.own_model import CLASSIFICATION, DETECTION, SEGMENTATION
from worker.pictures.geometry import FILTERS


def as_asked(network: Network, spec: JobSpec) -> Network:
    """Return a loaded network as a job asks for it; the model is the same one.

    Raises:
        JobError: It cannot be asked so; says what to leave out, or to give.
    """
    network = preprocessed(network, spec.mean, spec.std, spec.resize_filter)
    _check_scores(network, spec.activation, spec.threshold)
    network = activated(network, spec.activation)
    if spec.labels is not None:
        network = labelled(network, spec.labels)
    checked_class(network, spec.class_id, spec.class_name)
    if network.task == DETECTION:
        network = boxed(network, spec.max_boxes, spec.min_score)
        _check_detection(network, spec)
    if spec.mask_class is not None:
        network = masked(network, class_called(network, spec.mask_class))
    if spec.outputs == (MASK,) and network.task != SEGMENTATION:
        raise JobError(f"{network.name} tells the class of a picture, not of its pixels: name other --outputs")
    return network


def labelled(network: Network, labels: Sequence[str]) -> Network:
    """Return the network with other names of its classes; the model is the same one.

    Raises:
        JobError: there are more or fewer names than classes.
    """
    return replace(network, categories=checked_labels(labels, network.name, network.classes))


def masked(network: Network, mask_class: int | None) -> Network:
    """Return the network with all classes explained by the pixels of one, if given; the model is the same one.

    Raises:
        JobError: It does not tell the class of each pixel.
    """
    if mask_class is None:
        return network
    if not isinstance(network.output, Segmentation):
        raise JobError(f"{network.name} tells the class of a picture, not of its pixels: leave --mask-class out")
    return replace(network, output=replace(network.output, mask_class=mask_class))


def boxed(network: Network, max_boxes: int, min_score: float) -> Network:
    """Return the network with so many boxes explained as a job asks for; others as they are."""
    is_detector = isinstance(network.output, Detection)
    return replace(network, output=Detection(max_boxes, min_score)) if is_detector else network


def preprocessed(
    network: Network,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    resize_filter: str | None = None,
) -> Network:
    """Return the network with another mean, standard deviation or filter, if given; the model is the same one.

    Raises:
        JobError: nobody says its mean and deviation, or its pictures are resized in a way that is not known here.
    """
    if not ((mean or network.mean) and (std or network.std)):
        raise JobError(
            f"nothing says with which mean and standard deviation {network.name} was trained: give --mean and --std, "
            "such as 0.485,0.456,0.406 and 0.229,0.224,0.225"
        )
    if resize_filter is None:
        resize_filter = network.resize_filter
    elif resize_filter == "own":
        resize_filter = network.own_filter
    if resize_filter not in FILTERS:
        raise JobError(
            f"the pictures of {network.name} are resized by a filter that is not known here ({resize_filter}): "
            f"give --resize-filter one of {', '.join(FILTERS)}"
        )
    if mean is None and std is None and resize_filter == network.resize_filter:
        return network
    return replace(
        network,
        mean=_of_channels(network, mean) or network.mean,
        std=_of_channels(network, std) or network.std,
        resize_filter=resize_filter,
    )


def _check_scores(network: Network, activation: Activation | None, threshold: float | None) -> None:
    """Refuse what has no meaning where pixels or boxes have scores of their own.

    Raises:
        JobError: Says what to leave out.
    """
    if network.task != CLASSIFICATION and (activation is not None or threshold is not None):
        what = "boxes" if network.task == DETECTION else "pixels"
        raise JobError(f"{network.name} scores {what}, not pictures: leave --activation and --classes out")


def activated(network: Network, activation: Activation | None) -> Network:
    """Return the network with another activation, if given; the model is the same one.

    Raises:
        JobError: The softmax of its one output would always be 1.
    """
    if activation == "softmax" and network.classes == 1:
        raise JobError(f"{network.name} has one output, whose softmax is always 1: use --activation sigmoid or none")
    return network if activation is None else replace(network, activation=activation)


def _of_channels(network: Network, numbers: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """Return a number a channel; a grey network takes one.

    Raises:
        JobError: There are several numbers for one channel.
    """
    if numbers is None or len(numbers) == network.channels:
        return numbers
    if len(set(numbers)) > 1:
        raise JobError(f"{network.name} reads grey pictures: give --mean and --std one number each")
    return numbers[: network.channels]


def _check_detection(network: Network, spec: JobSpec) -> None:
    """Refuse what has no meaning where boxes are explained.

    Raises:
        JobError: Says what to leave out.
    """
    chooses = spec.class_id is not None or spec.class_name is not None or spec.top_k > 1 or spec.explain != "predicted"
    if chooses:
        raise JobError(
            f"{network.name} explains boxes, those that score most: leave --class-id, --class-name, --top-k and "
            "--explain out; --max-boxes says how many"
        )
    if spec.precision != "fp32":
        raise JobError(f"{network.name} gives boxes in fp32 alone: leave --precision {spec.precision} out")
