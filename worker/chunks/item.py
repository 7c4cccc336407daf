"""One image on its way through the stages, and the record of its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from producer.jobs.fetch import addresses
from producer.jobs.model.errors import GradcamError, ItemError, ModelError
from producer.jobs.model.spec import ExplainedClass, Failure, Item, Result
from producer.jobs.model.waits import waiting
from worker.chunks.recorder import Ended
from worker.models.predictions import top_predictions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from worker.chunks.chunk import ChunkContext
    from worker.device.batches import Explained
    from worker.pictures.decode import Picture
    from worker.pictures.geometry import Frame

log = logging.getLogger(__name__)

#: Stages that talk to servers have limits of their own, with all their retries; this much later they hang.
_NETWORK_S = 600.0
_OF_SERVERS = frozenset({"fetch", "upload"})
#: What is said of stages that take long.
_WORK = {"decode": "an image to be decoded", "render": "pictures to be drawn", "encode": "pictures to be encoded"}


@dataclass(eq=False)
class ImageTask:
    """One item on its way through the stages; one thread at a time works at it."""

    chunk: ChunkContext
    offset: int
    item: Item
    #: stage → seconds of work
    seconds: dict[str, float] = field(default_factory=dict)
    #: stage → seconds that it waited for a thread, or for the device, to be free for it
    waits: dict[str, float] = field(default_factory=dict)
    #: Since when it waits for its next stage, in seconds of the monotonic clock.
    waiting_since: float | None = None
    #: The stage it is in and since when, in seconds of the monotonic clock.
    stage: tuple[str, float] | None = None
    #: The class asked for of this image alone, or several; -1 is the predicted one.
    asked: int | tuple[int, ...] | None = None
    #: The class that its label means.
    label: int | None = None
    #: What is drawn on: (H, W, 3) uint8 RGB, of the network's size or the original's.
    picture: Picture | None = None
    #: The way back to the original's geometry.
    frame: Frame | None = None
    #: What the network reads, (3, H, W).
    input: NDArray[np.float32] | None = None
    #: One a class, once explained.
    explained: list[Explained] = field(default_factory=list)
    #: Why it fails alone.
    error: ItemError | None = None
    #: Whether it left for the device: what has not is dropped when the process stops.
    left_for_device: bool = False

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measure one stage's work on this image."""
        started = time.monotonic()
        self.begun(stage, started)
        self.stage = (stage, started)
        try:
            # Where a server is waited for, it says so itself.
            with nullcontext() if stage in _OF_SERVERS else waiting(_WORK.get(stage, stage), server=False):
                yield
        finally:
            self.stage = None
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.monotonic() - started, 6)

    def waits_from_now(self) -> None:
        """It has been put into the row of its next stage."""
        self.waiting_since = time.monotonic()

    def begun(self, stage: str, at: float) -> None:
        """A stage took it out of its row, at a time of the monotonic clock."""
        if self.waiting_since is not None:
            self.waits[stage] = self.waits.get(stage, 0.0) + max(at - self.waiting_since, 0.0)
            self.waiting_since = None

    def computed(self, answer: list[Explained] | ModelError, began: float, seconds: float) -> None:
        """Take the device's answer.

        Args:
            answer: One explanation a class, or why there is none.
            began: When its batch began, in seconds of the monotonic clock.
            seconds: Its share of the batch's time.
        """
        self.begun("explain", began)
        self.seconds["explain"], self.input = round(seconds, 6), None
        if isinstance(answer, ModelError):
            self.error = answer
        else:
            # A label that was predicted is explained once.
            self.explained = list({each.class_id: each for each in answer}.values())
        self.waits_from_now()

    def overdue(self, limit_s: float) -> str | None:
        """The stage this image is in for longer than it may; None when it is not."""
        stage = self.stage
        if stage is None:
            return None
        name, since = stage
        allowed_s = limit_s + (_NETWORK_S if name in _OF_SERVERS else 0)
        return name if time.monotonic() - since > allowed_s else None


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
        log.exception("action=item_bug A stage failed on %s.", addresses.redact(task.item.uri))
        task.error = _Unexpected(f"a bug of gradcam-queue ({type(error).__name__}); the worker's log has the details")


def failed(task: ImageTask) -> Ended:
    """What is written down of an image that fails."""
    error = task.error or _Unexpected("nothing came of it, and nothing says why")
    claim = task.chunk.claim
    index, message = claim.index(task.offset), str(error)[:500]
    failure = Failure(index=index, item=task.item, reason=error.reason, message=message, attempts=claim.attempt)
    result = Result(
        index=index,
        uri=addresses.redact(task.item.uri),
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
    first = task.explained[0]
    chosen, top5 = top_predictions(first.logits, first.class_id, network.categories)
    several = [top_predictions(each.logits, each.class_id, network.categories)[0] for each in task.explained]
    result = Result(
        index=claim.index(task.offset),
        uri=addresses.redact(task.item.uri),
        id=task.item.id,
        state="done",
        keep=task.item.keep,
        class_id=chosen.class_id,
        class_name=chosen.class_name,
        probability=chosen.probability,
        top5=top5,
        label=task.item.label,
        predicted=str(top5[0].class_id) if top5[0].class_name is None else top5[0].class_name,
        predicted_probability=top5[0].probability,
        # Of one class alone there is nothing to choose.
        correct=None if task.label is None or network.classes == 1 else task.label == top5[0].class_id,
        classes=tuple(ExplainedClass(**each.model_dump(), flat=flat) for each, flat in zip(several, flats, strict=True))
        if len(several) > 1
        else (),
        network=claim.spec.network,
        layer=",".join(network.layer_names),
        flat=flats[0],
        guided_relus=first.guided_relus,
        random_weights=network.random,
        objects=objects,
        seconds=task.seconds,
    )
    return Ended(task.offset, result, None, files, task.waits)
