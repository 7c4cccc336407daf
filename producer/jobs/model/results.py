"""What became of one image: its line in the manifest, or why it failed."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from producer.jobs.model.activations import Activation
from producer.jobs.model.frozen import Frozen
from producer.jobs.model.items import Item
from producer.jobs.model.limits import MAX_CLASS_ID, MAX_COUNT
from producer.jobs.model.redaction import redact
from producer.jobs.model.spec import Direction
from producer.jobs.model.text import shown

#: A failure's sentence: there may be one an image in Redis, whoever wrote it.
Message = Annotated[str, AfterValidator(lambda text: shown(text, MESSAGE_CHARS))]
MESSAGE_CHARS: Final = 500

#: Numbers that tables and databases take; a line with another one is damaged.
ClassId = Annotated[int, Field(ge=0, le=MAX_CLASS_ID)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]


class Failure(Frozen):
    """Why an item failed, as the job table keeps it."""

    index: Count
    item: Item
    #: The word it is counted under: `fetch`, `image`, `model`, `store`, …
    reason: str
    message: Message
    #: How many times its chunk had been handed out.
    attempts: int = 1

    def shown(self) -> Failure:
        """The same for everybody's eyes: the address without its secrets."""
        return self.model_copy(update={"item": self.item.model_copy(update={"uri": redact(self.item.uri)})})


class Prediction(Frozen):
    """One of the network's most likely classes."""

    class_id: ClassId
    #: None where nobody named the classes; lines leave it out then.
    class_name: str | None = None
    #: By the job's activation; under `none` there is none, but the output itself as `score`.
    probability: float | None = None
    score: float | None = None


class ExplainedClass(Frozen):
    """One of several classes that were explained of one image."""

    class_id: ClassId
    class_name: str | None = None
    probability: float | None = None
    score: float | None = None
    flat: bool


class Box(Frozen):
    """A box that was explained, in pixels of the original from its left upper corner."""

    class_id: ClassId
    class_name: str | None = None
    score: float
    x0: float
    y0: float
    x1: float
    y1: float
    flat: bool


class Result(Frozen):
    """One image's line in the manifest."""

    index: Count
    #: Without its secrets, whoever makes the record or reads it.
    uri: Annotated[str, AfterValidator(redact)]
    id: str | None = None
    state: Literal["done", "failed"]
    class_id: ClassId | None = None
    class_name: str | None = None
    #: Softmax of the explained class; of a network with one logit, its sigmoid; else what `activation` says. Of
    #: segmentation its share of the pixels, of detection the best box's score.
    probability: float | None = None
    #: The output of the explained class as it is, in place of a probability: `activation` is `none`.
    score: float | None = None
    #: What made the probabilities, where it is not the usual.
    activation: Activation | None = None
    #: `down`: explained is what lowers the class's output.
    direction: Direction | None = None
    #: How many classes lie above the job's threshold: 0 where the most likely one is explained though it does not, more
    #: than were explained where there were too many.
    above: Count | None = None
    top5: tuple[Prediction, ...] = ()
    #: What the user says that it shows, as given.
    label: str | None = None
    #: The most likely class, whatever was explained: its name, or its number where it has none; and its probability.
    predicted: str | None = None
    predicted_probability: float | None = None
    #: Whether that is the label's; none where there is no label, or it is no class of the network: `label_unknown`.
    correct: bool | None = None
    #: Where several classes were explained: each, the most likely first; `class_id` and `flat` are the first's.
    classes: tuple[ExplainedClass, ...] = ()
    #: Of a network that detects: the boxes that were explained, the best first; none where nothing scores enough.
    boxes: tuple[Box, ...] | None = None
    network: str | None = None
    layer: str | None = None
    #: The map was zero everywhere: nothing spoke for this class at this layer.
    flat: bool | None = None
    #: Guided ReLUs; 0 means that `gb` is the plain gradient.
    guided_relus: Count | None = None
    #: The weights were seeded random numbers: a picture of nothing, for tests and benchmarks.
    random_weights: bool | None = None
    #: Columns of the user's list that were carried along.
    keep: dict[str, str] | None = None
    #: kind → object key; with several classes `class<ID>-<kind>`, with boxes `box<N>-<kind>`, from 1
    objects: dict[str, str] = Field(default_factory=dict)
    #: stage → seconds of work
    seconds: dict[str, float] = Field(default_factory=dict)
    reason: str | None = None
    message: str | None = None

    @property
    def label_unknown(self) -> bool:
        """Whether its label is no class of its network; labels are not compared where there are boxes, or one class."""
        compared = self.state == "done" and self.boxes is None and len(self.top5) > 1
        return compared and self.label is not None and self.correct is None

    @property
    def line(self) -> str:
        """The result as it stands in the manifest."""
        return self.model_dump_json(exclude_none=True)


def class_key(result: Result) -> str:
    """Under what an image counts among its job's classes: id and name, behind a sign of what its label says.

    The signs are + where that is predicted, - where it is not, and ? where the label is no class of the network.
    """
    if result.class_id is None:
        return ""
    sign = "?" if result.label_unknown else {None: "", True: "+", False: "-"}[result.correct]
    return f"{sign}{result.class_id} {result.class_name or ''}".rstrip()
