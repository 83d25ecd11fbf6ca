"""Pictures of predictions: a strip of four slices a patient, and one contact sheet of all.

Drawn with Pillow: a matplotlib figure would take as long as the network.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from brainseg.core.files import writing
from brainseg.reports.figures import class_colour
from brainseg.reports.overlays import OVERLAP, PREDICTION, TRUTH, Case, draw_frame, paint

SIDE, THUMBNAIL, CAPTION = 300, 200, 34  # pixels
COLUMNS, MOST = 6, 240  # of the contact sheet
WHITE, INK, GREY = (255, 255, 255), (20, 20, 20), (110, 110, 110)


def write_pictures(case: Case, scored: bool, caption: str, folder: Path) -> list[Path]:
    """overlay.png and thumbnail.png of one study; without a truth (`scored`) the prediction stands in `case` for it, too."""
    shown, high, window = draw_frame(case)
    tiles = [_tile(case, index, high, window, SIDE) for index in shown]
    strip = Image.new("RGB", (len(tiles) * SIDE, SIDE + CAPTION), WHITE)
    for column, (index, tile) in enumerate(zip(shown, tiles, strict=True)):
        strip.paste(tile, (column * SIDE, CAPTION))
        _text(
            strip,
            (column * SIDE + 5, CAPTION + SIDE - 20),
            f"slice {index + 1} of {len(case.truth)}",
            WHITE,
            13,
        )
    _text(strip, (4, 3), _fitting(f"{case.name}   {caption}", strip.width), INK, 14)
    _legend(strip, 18, case.classes, scored)

    largest = max(shown, key=lambda index: np.count_nonzero(case.prediction[index]))
    small = Image.new("RGB", (THUMBNAIL, THUMBNAIL + CAPTION), WHITE)
    small.paste(_tile(case, largest, high, window, THUMBNAIL), (0, CAPTION))
    _text(small, (2, 2), _fitting(case.name, THUMBNAIL), INK, 12)
    _text(small, (2, 17), _fitting(caption, THUMBNAIL), GREY, 12)
    return [_save(strip, folder / "overlay.png"), _save(small, folder / "thumbnail.png")]


def contact_sheet(
    thumbnails: Sequence[Path], classes: Sequence[str], scored: bool, path: Path
) -> None:
    """One picture of all studies, six a row, in the order given; of more than 240 the first."""
    shown = thumbnails[:MOST]
    rows = -(-len(shown) // COLUMNS)
    height, gap = THUMBNAIL + CAPTION, 6
    sheet = Image.new(
        "RGB",
        (
            min(COLUMNS, max(len(shown), 3)) * (THUMBNAIL + gap) + gap,
            rows * (height + gap) + CAPTION,
        ),
        WHITE,
    )
    counted = (
        f"{len(shown)} of {len(thumbnails)} studies"
        if len(shown) < len(thumbnails)
        else f"{len(shown)} studies"
    )
    _text(sheet, (gap, 2), f"{counted}, each at the largest predicted area shown", INK, 13)
    _legend(sheet, 17, classes, scored)
    for index, thumbnail in enumerate(shown):
        row, column = divmod(index, COLUMNS)
        with Image.open(thumbnail) as tile:
            sheet.paste(tile, (gap + column * (THUMBNAIL + gap), CAPTION + row * (height + gap)))
    _save(sheet, path)


def _tile(
    case: Case, index: int, high: float, window: tuple[slice, slice], side: int
) -> Image.Image:
    """One slice, cut to the head, on a black square."""
    colours = np.rint(255 * paint(case, index, high)[window]).astype(np.uint8)
    picture = Image.fromarray(colours)
    scale = side / max(picture.size)
    picture = picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))),
        Image.Resampling.BICUBIC,
    )
    square = Image.new("RGB", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def _legend(picture: Image.Image, top: int, classes: Sequence[str], scored: bool) -> None:
    if len(classes) > 2:
        names = {name: class_colour(index) for index, name in enumerate(classes) if index}
    elif scored:
        names = {
            "both": OVERLAP,
            "truth only (missed)": TRUTH,
            "prediction only (false alarm)": PREDICTION,
        }
    else:
        names = {"prediction": OVERLAP}
    left = 6
    for name, colour in names.items():
        red, green, blue = (round(255 * part) for part in colour)
        ImageDraw.Draw(picture).rectangle((left, top + 3, left + 9, top + 12), (red, green, blue))
        _text(picture, (left + 14, top), name, GREY, 12)
        left += 26 + round(ImageFont.load_default(12).getlength(name))


def _text(
    picture: Image.Image, place: tuple[int, int], text: str, colour: tuple[int, int, int], size: int
) -> None:
    ImageDraw.Draw(picture).text(place, text, colour, ImageFont.load_default(size))


def _fitting(text: str, width: int) -> str:
    """The text, cut in its midst to what fits (7 pixels a letter)."""
    most = max(8, width // 7)
    return text if len(text) <= most else f"{text[: most // 2 - 1]}..{text[-(most // 2 - 1) :]}"


def _save(picture: Image.Image, path: Path) -> Path:
    with writing(path) as temporary:
        picture.save(temporary, format="PNG", compress_level=3)
    return path
