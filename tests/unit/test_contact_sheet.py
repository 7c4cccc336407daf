from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageFont

from deploy.contact_sheet import CELL_PX, MARGIN_PX, TEXT_PX, TITLE_PX, Row, draw, size_px, wrap

KINDS = ("heatmap", "cam")
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def _picture(path: Path, color: tuple[int, ...], size: tuple[int, int] = (CELL_PX, CELL_PX), mode: str = "RGB") -> Path:
    Image.new(mode, size, color).save(path)
    return path


def _middle(row: int, column: int) -> tuple[int, int]:
    return (
        2 * MARGIN_PX + TEXT_PX + column * (CELL_PX + MARGIN_PX) + CELL_PX // 2,
        MARGIN_PX + TITLE_PX + row * (CELL_PX + MARGIN_PX) + CELL_PX // 2,
    )


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    wide = _picture(tmp_path / "wide.png", RED, (640, 100))
    heatmap, cam = _picture(tmp_path / "h.png", GREEN), _picture(tmp_path / "c.png", BLUE)
    return [
        Row(wide, "wide.png", ["tabby cat", "81.0%"], {"cam": cam, "heatmap": heatmap}),
        Row(wide, "second.png", ["failed: image"]),
    ]


def test_original_comes_first_and_kinds_in_their_order(rows: list[Row]) -> None:
    sheet = draw(rows, KINDS)
    assert [sheet.getpixel(_middle(0, column)) for column in range(3)] == [RED, GREEN, BLUE]


def test_size_depends_on_counts_alone(rows: list[Row]) -> None:
    assert draw(rows, KINDS).size == size_px(2, 2)
    assert size_px(3, 2)[1] - size_px(2, 2)[1] == CELL_PX + MARGIN_PX
    assert size_px(2, 3)[0] - size_px(2, 2)[0] == CELL_PX + MARGIN_PX


def test_original_is_squashed_to_fill_its_cell(rows: list[Row]) -> None:
    """The pictures are squashed squares: only a squashed original can be compared with them point by point."""
    sheet = draw(rows, KINDS)
    x, y = _middle(0, 0)
    half = CELL_PX // 2 - 1
    assert {sheet.getpixel((x + dx, y + dy)) for dx in (-half, half) for dy in (-half, half)} == {RED}


def test_missing_picture_leaves_a_grey_cell(rows: list[Row]) -> None:
    sheet = draw(rows, KINDS)
    assert sheet.getpixel(_middle(1, 1)) == sheet.getpixel(_middle(1, 2)) == (238, 238, 238)


def test_text_stands_in_its_own_column_of_each_row(rows: list[Row]) -> None:
    sheet = draw(rows, KINDS)
    for number in range(2):
        top = MARGIN_PX + TITLE_PX + number * (CELL_PX + MARGIN_PX)
        text = sheet.crop((MARGIN_PX, top, MARGIN_PX + TEXT_PX, top + CELL_PX)).convert("L")
        assert min(text.tobytes()) < 128


def test_endless_text_stays_in_its_row(rows: list[Row]) -> None:
    long = Row(rows[0].original, "n" * 400, ["word " * 400], {})
    sheet = draw([long, Row(rows[0].original, "")], KINDS)
    gap = MARGIN_PX + TITLE_PX + CELL_PX
    below = sheet.crop((0, gap + MARGIN_PX // 2, MARGIN_PX + TEXT_PX, sheet.height)).convert("L")
    right = sheet.crop((MARGIN_PX + TEXT_PX, 0, 2 * MARGIN_PX + TEXT_PX, sheet.height)).convert("L")
    assert below.getextrema() == right.getextrema() == (255, 255)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_pictures_of_any_mode_are_drawn(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (30, 20)).save(tmp_path / "photo.png")
    draw([Row(tmp_path / "photo.png", "photo.png")], KINDS)


def test_lines_break_between_words_and_lose_none() -> None:
    font = ImageFont.load_default(size=15)
    lines = wrap("Egyptian cat of considerable dignity", font, 120)
    assert len(lines) > 1
    assert " ".join(lines) == "Egyptian cat of considerable dignity"
    assert all(font.getlength(line) <= 120 for line in lines)


def test_word_wider_than_a_line_is_broken() -> None:
    font = ImageFont.load_default(size=15)
    lines = wrap("a " + "m" * 50, font, 100)
    assert "".join(lines) == "a" + "m" * 50
    assert all(font.getlength(line) <= 100 for line in lines)


def test_no_text_is_one_empty_line() -> None:
    assert wrap("", ImageFont.load_default(size=15), 100) == [""]
