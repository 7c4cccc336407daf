"""All pictures of a small job on one sheet: a row an image, a column a kind, the original first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from producer.jobs.model.text import shown

CELL_PX = 224
MARGIN_PX = 16
TITLE_PX = 40
TEXT_PX = 216

_PAPER, _INK, _FAINT, _EMPTY = "#ffffff", "#1a1a1a", "#6b6b6b", "#eeeeee"
_LARGE_PX, _SMALL_PX, _LINE_SPACING = 18, 15, 1.35


@dataclass(frozen=True)
class Row:
    """One image, and the pictures made of it."""

    #: The photo; the sheet shows it squashed to a square, as the network sees it.
    original: Path
    #: The row's heading.
    name: str
    #: The lines below; long ones are wrapped, and what does not fit beside the pictures is left out.
    lines: Sequence[str] = ()
    #: kind → picture; one that is missing leaves its cell empty.
    pictures: Mapping[str, Path] = field(default_factory=dict)


def draw(rows: Sequence[Row], kinds: Sequence[str]) -> Image.Image:
    """Draw the sheet; its size depends on the numbers of rows and kinds alone."""
    sheet = Image.new("RGB", size_px(len(rows), len(kinds)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(("original", *kinds)):
        middle = (_left(column) + CELL_PX // 2, MARGIN_PX + TITLE_PX // 2)
        pen.text(middle, title, fill=_INK, font=_font(_LARGE_PX), anchor="mm")
    for number, row in enumerate(rows):
        top = MARGIN_PX + TITLE_PX + number * (CELL_PX + MARGIN_PX)
        _write(pen, row, top)
        for column, path in enumerate((row.original, *(row.pictures.get(kind) for kind in kinds))):
            _place(sheet, pen, path, (_left(column), top))
    return sheet


def size_px(rows: int, kinds: int) -> tuple[int, int]:
    """Width and height of a sheet."""
    width = _left(kinds + 1)
    return width, MARGIN_PX + TITLE_PX + rows * (CELL_PX + MARGIN_PX)


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> list[str]:
    """Break a text into lines of at most that width: between words, or in a word that is wider than a line."""
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") <= width_px:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width_px:
                lines.append("")
            lines[-1] += letter
    return lines


def _left(column: int) -> int:
    return MARGIN_PX + TEXT_PX + MARGIN_PX + column * (CELL_PX + MARGIN_PX)


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size_px)


def _write(pen: ImageDraw.ImageDraw, row: Row, top: int) -> None:
    texts = [(shown(row.name), _font(_LARGE_PX), _LARGE_PX, _INK)]
    texts += [(shown(line), _font(_SMALL_PX), _SMALL_PX, _FAINT) for line in row.lines]
    y = float(top)
    for text, font, height_px, color in texts:
        for line in wrap(text, font, TEXT_PX):
            if y + height_px > top + CELL_PX:
                return
            pen.text((MARGIN_PX, y), line, fill=color, font=font)
            y += height_px * _LINE_SPACING


def _place(sheet: Image.Image, pen: ImageDraw.ImageDraw, path: Path | None, corner: tuple[int, int]) -> None:
    if path is None:
        pen.rectangle((*corner, corner[0] + CELL_PX - 1, corner[1] + CELL_PX - 1), fill=_EMPTY)
        return
    with Image.open(path) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    sheet.paste(upright.resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS), corner)
