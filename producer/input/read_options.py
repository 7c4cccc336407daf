"""How lists, folders and prefixes are read; each option is a field of one model."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from producer.jobs.model.errors import UsageError
from producer.jobs.model.frozen import Frozen
from producer.jobs.model.limits import MAX_COUNT
from producer.jobs.model.options import Option, advice


class ReadOptions(Frozen):
    """How lists, folders and prefixes are read, and how much of them.

    Raises:
        UsageError: A value cannot be used; names every such option.
    """

    uri_column: Annotated[str | None, Option(absent="uri, url, image_url, image, path, file, …")] = Field(
        default=None, description="Column of the address or path."
    )
    class_column: Annotated[str | None, Option()] = Field(
        default=None, description="Column of each image's own class, by number or name."
    )
    id_column: Annotated[str | None, Option()] = Field(
        default=None, description="Column of what you call an image; kept in results."
    )
    keep_columns: Annotated[tuple[str, ...], Option(by_commas=True)] = Field(
        default=(), description="Further columns to carry along into the results, by commas."
    )
    label_column: Annotated[str | None, Option()] = Field(
        default=None, description="Column of what each image shows, by number or name: results say what is correct."
    )
    label_from: Annotated[Literal["folder"] | None, Option()] = Field(
        default=None, description="The same by the name of the folder that an image lies in."
    )
    include: Annotated[tuple[str, ...], Option(repeatable=True)] = Field(
        default=(), description="Of a folder or prefix, only what matches, such as 'train/*.png'."
    )
    exclude: Annotated[tuple[str, ...], Option(repeatable=True)] = Field(
        default=(), description="Of a folder or prefix, not what matches."
    )
    follow_links: Annotated[bool, Option()] = Field(
        default=False, description="Of a folder, take also what links lead to outside of it."
    )
    allow_local: Annotated[bool, Option()] = Field(
        default=False,
        description="Let lists name files outside of their folders, and standard input name files at all.",
    )
    limit: Annotated[Annotated[int, Field(ge=1, le=MAX_COUNT)] | None, Option()] = Field(
        default=None, description="Only the first so many images."
    )
    sample: Annotated[Annotated[int, Field(ge=1, le=MAX_COUNT)] | None, Option()] = Field(
        default=None, description="Only so many images, drawn at random, in their order."
    )
    seed: Annotated[int, Field(ge=-MAX_COUNT, le=MAX_COUNT), Option()] = Field(
        default=0, description="Another number draws other images."
    )
    skip_bad: Annotated[bool, Option()] = Field(
        default=False, description="Leave out rows of lists that cannot be used, list them in a file."
    )

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_in_a_sentence(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            raise UsageError("; ".join(advice(cls, error))) from None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that were asked for by name."""
        named = (self.uri_column, self.class_column, self.id_column, self.label_column, *self.keep_columns)
        return tuple(dict.fromkeys(name for name in named if name is not None))
