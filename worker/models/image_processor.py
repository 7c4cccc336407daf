"""What a `preprocessor_config.json` of Hugging Face says of the pictures that a network reads.

Only what is written there counts: the defaults of transformers' classes are their own. A number that is missing must be
given with the job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from producer.jobs.model.errors import JobError
from producer.jobs.store.bundle import PREPROCESSOR

#: Pillow's numbers of its filters, which transformers writes.
_FILTERS: Final = {0: "nearest", 1: "lanczos", 2: "bilinear-antialias", 3: "bicubic-antialias", 4: "box", 5: "hamming"}
#: From this size on ConvNeXt's pictures are squashed, not cropped.
_SQUASHED_FROM_PX: Final = 384

_Px = Annotated[int, Field(ge=8, le=2048)]
_Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
_Three = Annotated[list[_Number], Field(min_length=3, max_length=3)]
_Positive = Annotated[float, Field(allow_inf_nan=False, gt=1e-6, le=1e6)]


class _Size(BaseModel):
    model_config = ConfigDict(extra="ignore")

    height: _Px | None = None
    width: _Px | None = None
    shortest_edge: _Px | None = None

    def sides(self) -> tuple[int, int] | None:
        """(height, width); of a shortest edge a square."""
        if self.height is not None and self.width is not None:
            return self.height, self.width
        return (self.shortest_edge, self.shortest_edge) if self.shortest_edge is not None else None


class _File(BaseModel):
    """What is read of the file; a value may also be null."""

    model_config = ConfigDict(extra="ignore")

    image_processor_type: Annotated[str, Field(max_length=200)] | None = None
    feature_extractor_type: Annotated[str, Field(max_length=200)] | None = None
    size: _Size | _Px | Annotated[list[_Px], Field(min_length=2, max_length=2)] | None = None
    resample: int | None = None
    do_center_crop: bool | None = None
    crop_size: _Size | _Px | None = None
    crop_pct: Annotated[float, Field(gt=0.1, le=1)] | None = None
    do_rescale: bool | None = None
    rescale_factor: _Positive | None = None
    rescale_offset: bool | None = None
    do_normalize: bool | None = None
    image_mean: _Three | None = None
    image_std: Annotated[list[_Positive], Field(min_length=3, max_length=3)] | None = None
    include_top: bool | None = None
    do_flip_channel_order: bool | None = None


@dataclass(frozen=True)
class Preprocessing:
    """What a network reads, as `Architecture` has it."""

    #: None where the file does not say.
    size: tuple[int, int] | None = None
    #: Of RGB in [0, 1]; () where the file does not say.
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize_px: int | None = None
    resize_filter: str | None = None


def read_preprocessing(content: dict[str, Any] | None) -> Preprocessing:
    """Read what the file holds; None where there is no file.

    Raises:
        JobError: It says what no picture can be, or what is not done here.
    """
    if content is None:
        return Preprocessing()
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"][:1])
        raise JobError(f"{PREPROCESSOR} cannot be used: {where} is not what it may be") from None
    if file.do_flip_channel_order:
        raise JobError(f"{PREPROCESSOR} cannot be used: the network reads blue before red, which is not done here")
    size, resize_px = _size(file)
    mean, std = _numbers(file)
    resize_filter = None if file.resample is None else _FILTERS.get(file.resample, str(file.resample))
    return Preprocessing(size, mean, std, resize_px, resize_filter)


def _size(file: _File) -> tuple[tuple[int, int] | None, int | None]:
    """Return (height, width) of what the network reads, and the shorter side before a crop."""
    size, crop = _sides(file.size), _sides(file.crop_size)
    if file.do_center_crop and crop is not None:
        shortest = isinstance(file.size, int) or (isinstance(file.size, _Size) and file.size.shortest_edge is not None)
        return crop, size[0] if size is not None and shortest else None
    if size is not None and file.crop_pct is not None and size[0] < _SQUASHED_FROM_PX:
        return size, int(size[0] / file.crop_pct)
    return size, None


def _sides(size: _Size | int | list[int] | None) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, list):
        return size[0], size[1]
    return size.sides() if size is not None else None


def _numbers(file: _File) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of RGB in [0, 1]: a byte times the factor, less 1 or nothing, is normalized."""
    factor = 255 * (file.rescale_factor if file.rescale_factor is not None else 1 / 255)
    if file.do_rescale is False:
        factor = 255.0
    offset = 1.0 if file.rescale_offset and file.do_rescale is not False else 0.0
    mean, std = [0.0] * 3, [1.0] * 3
    if file.do_normalize is not False:
        if file.image_mean is None or file.image_std is None:
            return (), ()
        mean, std = file.image_mean, file.image_std
    kind = file.image_processor_type or file.feature_extractor_type or ""
    again = file.include_top if file.include_top is not None else kind.startswith("EfficientNet")
    if again and file.image_std is not None:
        std = [a * b for a, b in zip(std, file.image_std, strict=True)]  # EfficientNet divides twice
    return tuple((m + offset) / factor for m in mean), tuple(s / factor for s in std)
