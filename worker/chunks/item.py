"""One image on its way through the stages, and what is written down of it at its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from producer.jobs.fetch import addresses
from producer.jobs.model.errors import GradcamError, ItemError
from producer.jobs.model.items import Item
from producer.jobs.model.results import ExplainedClass, Failure, Result
from producer.jobs.model.waits import waiting
from worker.chunks.recorder import Ended
from worker.models.predictions import top_predictions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from producer.jobs.table.claims import Claim
    from worker.device.batches import Explained
    from worker.models.networks import Network
    from worker.pictures.decode import Picture
    from worker.pictures.geometry import Frame

log = logging.getLogger(__name__)

#: Stages that talk to servers have limits of their own, with all their retries; this much later they hang.
_NETWORK_S = 600.0
_OF_SERVERS = frozenset({"fetch", "upload"})
#: What is said of stages that take long.
_WORK = {"decode": "an image to be decoded", "render": "pictures to be drawn", "encode": "pictures to be encoded"}


@dataclass
class Image:
    """One item on its way through the stages."""

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
def own_fault(image: Image) -> Iterator[None]:
    """What goes wrong with one image stays with it; other people's faults go on."""
    try:
        yield
    except ItemError as error:
        image.error = error
    except GradcamError:
        raise
    except Exception as error:
        # The edge of an item: a bug that one picture brings out must not take its neighbors along.
        log.exception("action=item_bug A stage failed on %s.", addresses.redact(image.item.uri))
        image.error = _Unexpected(f"a bug of gradcam-queue ({type(error).__name__}); the worker's log has the details")


def failed(image: Image, claim: Claim) -> Ended:
    """What is written down of an image that fails."""
    error = image.error or _Unexpected("nothing came of it, and nothing says why")
    index, message = claim.index(image.offset), str(error)[:500]
    failure = Failure(index=index, item=image.item, reason=error.reason, message=message, attempts=claim.attempt)
    result = Result(
        index=index,
        uri=addresses.redact(image.item.uri),
        id=image.item.id,
        state="failed",
        label=image.item.label,
        keep=image.item.keep,
        network=claim.spec.network,
        seconds=image.seconds,
        reason=error.reason,
        message=message,
    )
    return Ended(image.offset, result, failure, waits=image.waits)


def done(
    image: Image,
    claim: Claim,
    network: Network,
    flats: list[bool],
    objects: dict[str, str],
    files: dict[str, bytes],
) -> Ended:
    """What is written down of an image whose pictures are in the object store."""
    first = image.explained[0]
    chosen, top5 = top_predictions(first.logits, first.class_id, network.categories)
    several = [top_predictions(each.logits, each.class_id, network.categories)[0] for each in image.explained]
    result = Result(
        index=claim.index(image.offset),
        uri=addresses.redact(image.item.uri),
        id=image.item.id,
        state="done",
        keep=image.item.keep,
        class_id=chosen.class_id,
        class_name=chosen.class_name,
        probability=chosen.probability,
        top5=top5,
        label=image.item.label,
        predicted=str(top5[0].class_id) if top5[0].class_name is None else top5[0].class_name,
        predicted_probability=top5[0].probability,
        # Of one class alone there is nothing to choose.
        correct=None if image.label is None or network.classes == 1 else image.label == top5[0].class_id,
        classes=tuple(
            ExplainedClass(**guess.model_dump(), flat=flat) for guess, flat in zip(several, flats, strict=True)
        )
        if len(several) > 1
        else (),
        network=claim.spec.network,
        layer=",".join(network.layer_names),
        flat=flats[0],
        guided_relus=first.guided_relus,
        random_weights=network.random,
        objects=objects,
        seconds=image.seconds,
    )
    return Ended(image.offset, result, None, files, image.waits)
