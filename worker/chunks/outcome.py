"""What comes of an image: the record of its end, and whose fault it is when a stage fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from producer.jobs.model.errors import GradcamError, ItemError
from producer.jobs.model.redaction import redact, redact_text
from producer.jobs.model.results import MESSAGE_CHARS, Box, ExplainedClass, Failure, Prediction, Result
from producer.jobs.model.text import shown
from worker.chunks.chunk import Ended
from worker.engine.detection import BOXES, LABELS
from worker.models.own_model import DETECTION
from worker.models.predictions import MOST, top_boxes, top_predictions, usual

if TYPE_CHECKING:
    from worker.chunks.chunk import ImageTask

log = logging.getLogger(__name__)


class _Unexpected(ItemError):
    """Something went wrong that nobody thought of; the worker's log has the details."""

    reason = "internal"


@contextmanager
def own_fault(task: ImageTask) -> Iterator[None]:
    """What goes wrong with one image stays with it; other people's faults go on."""
    try:
        yield
    except ItemError as error:
        task.error = error
    except GradcamError:
        raise
    except Exception as error:
        # The edge of an item: a bug that one picture brings out must not take its neighbors along.
        log.exception("action=item_bug A stage failed on %s.", redact(task.item.uri))
        task.error = _Unexpected(f"a bug of gradcam-queue ({type(error).__name__}); the worker's log has the details")


def failed(task: ImageTask) -> Ended:
    """What is written down of an image that fails."""
    error = task.error or _Unexpected("nothing came of it, and nothing says why")
    claim = task.chunk.claim
    index, message = claim.index(task.offset), shown(redact_text(str(error)), MESSAGE_CHARS)
    failure = Failure(index=index, item=task.item, reason=error.reason, message=message, attempts=claim.attempt)
    result = Result(
        index=index,
        uri=task.item.uri,
        id=task.item.id,
        state="failed",
        label=task.item.label,
        keep=task.item.keep,
        network=claim.spec.network,
        seconds=task.seconds,
        reason=error.reason,
        message=message,
    )
    return Ended(task.offset, result, failure, waits=task.waits)


def done(task: ImageTask, flats: list[bool], objects: dict[str, str], files: dict[str, bytes]) -> Ended:
    """What is written down of an image whose pictures are in the object store.

    Args:
        task: What was explained.
        flats: Of each class explained, whether its map is flat.
        objects: kind → address.
        files: Where pictures are packed: member name → content, until they are in the shard.
    """
    claim, network = task.chunk.claim, task.chunk.network
    if network.task == DETECTION:
        return _detected(task, flats, objects, files)
    first = task.explained[0]  # all have the logits of the one image
    ids = [each.class_id for each in task.explained]
    chosen, top5 = top_predictions(first.logits, ids, network.categories, network.activation, first.beside)
    several = zip(chosen, flats, strict=True) if len(chosen) > 1 else ()
    result = _done(
        task,
        objects,
        class_id=chosen[0].class_id,
        class_name=chosen[0].class_name,
        probability=chosen[0].probability,
        score=chosen[0].score,
        activation=None if network.activation == usual(network.classes) else network.activation,
        direction=None if claim.spec.direction == "up" else claim.spec.direction,
        above=task.above,
        top5=top5,
        predicted=str(top5[0].class_id) if top5[0].class_name is None else top5[0].class_name,
        predicted_probability=top5[0].probability,
        # Of one class alone there is nothing to choose.
        correct=None if task.label is None or network.classes == 1 else task.label == top5[0].class_id,
        classes=tuple(ExplainedClass(**each.model_dump(), flat=flat) for each, flat in several),
        flat=flats[0],
        guided_relus=first.guided_relus,
    )
    return Ended(task.offset, result, None, files, task.waits, task.label_problem if result.label_unknown else None)


def _done(task: ImageTask, objects: dict[str, str], **found: Any) -> Result:
    """The record of an image that is done: what holds for every kind of network, and what this one has found."""
    claim, network = task.chunk.claim, task.chunk.network
    return Result(
        index=claim.index(task.offset),
        uri=task.item.uri,
        id=task.item.id,
        state="done",
        keep=task.item.keep,
        label=task.item.label,
        network=claim.spec.network,
        layer=",".join(network.layer_names),
        random_weights=network.random,
        objects=objects,
        seconds=task.seconds,
        **found,
    )


def _detected(task: ImageTask, flats: list[bool], objects: dict[str, str], files: dict[str, bytes]) -> Ended:
    """The same of an image's boxes; it is done as well where there are none."""
    network = task.chunk.network
    if task.frame is None:
        raise AssertionError("an image was explained that was never decoded")
    first = task.explained[0] if task.explained else None
    found: tuple[Prediction, ...] = ()
    boxes: list[Box] = []
    if first is not None:
        found = top_boxes(first.logits, first.beside[LABELS], len(task.explained), network.categories)
        for prediction, flat, box in zip(found, flats, first.beside[BOXES], strict=False):
            x0, y0, x1, y1 = (round(at, 2) for at in task.frame.box_to_original(box.tolist()))
            named = prediction.model_dump(exclude={"probability", "score"})
            boxes.append(Box(**named, score=prediction.probability, x0=x0, y0=y0, x1=x1, y1=y1, flat=flat))
    best = found[0] if found else None
    result = _done(
        task,
        objects,
        class_id=None if best is None else best.class_id,
        class_name=None if best is None else best.class_name,
        probability=None if best is None else best.probability,
        top5=found[:MOST],
        predicted=None if best is None else best.class_name,
        predicted_probability=None if best is None else best.probability,
        boxes=tuple(boxes),
        flat=flats[0] if flats else None,
        guided_relus=None if first is None else first.guided_relus,
    )
    return Ended(task.offset, result, None, files, task.waits)
