"""Sheets of images with captions, for people to look at."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

_GAP = 4  # pixels between images
_CAPTION = 14  # pixels of a line of text


def in_rows(cells: list, columns: int) -> list[list]:
    """Cells in rows of so many."""
    return [cells[start:start + columns] for start in range(0, len(cells), columns)]


def draw(rows: list[list[np.ndarray]], captions: list[list[list[str]]], *, shorten: bool = False) -> Image.Image:
    """Rows of images, uint8 [height, width, 3], all of one size.

    Each is below its caption, of as many lines as the first has; one that is too long runs on, or is shortened.
    """
    height, width = rows[0][0].shape[:2]
    text, columns = len(captions[0][0]) * _CAPTION, max(map(len, rows))
    sheet = Image.new('RGB', (columns * (width + _GAP) + _GAP, len(rows) * (height + text + _GAP)), 'white')
    pen = ImageDraw.Draw(sheet)
    for row, (cells, lines_of_cells) in enumerate(zip(rows, captions, strict=True)):
        top = row * (height + text + _GAP)
        for place, lines in enumerate(lines_of_cells):
            for number, line in enumerate(lines):
                line = _shortened(pen, line, width) if shorten else line
                pen.text((_GAP + place * (width + _GAP), top + number * _CAPTION + 1), line, fill='black')
        for place, pixels in enumerate(cells):
            sheet.paste(Image.fromarray(pixels), (_GAP + place * (width + _GAP), top + text))
    return sheet


def printable(text: str) -> str:
    """The text without control characters, to stand on one line."""
    return text if text.isprintable() else ascii(text)


def _shortened(pen: Any, line: str, width: int) -> str:
    """A line that fits, without its beginning if need be: the end of a path tells more."""
    return next(short for short in _shorter(line) if pen.textlength(short) <= width or len(short) <= 2)


def _shorter(line: str) -> Iterable[str]:
    yield line
    yield from (f'..{line[start:]}' for start in range(2, len(line) + 1))
