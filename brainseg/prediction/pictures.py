"""Pictures of predictions: a strip of four slices per patient, and a contact sheet of all patients.

The pictures are drawn with Pillow. A matplotlib figure would take as long as the network.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from brainseg.core.files import writing
from brainseg.reports.figures import class_colour
from brainseg.reports.overlays import OVERLAP, PREDICTION, TRUTH, Case, draw_frame, paint

# Sizes in pixels.
SIDE, THUMBNAIL, CAPTION = 300, 200, 34
# The columns of the contact sheet, and its maximum number of cases.
COLUMNS, MOST = 6, 240
WHITE, INK, GREY = (255, 255, 255), (20, 20, 20), (110, 110, 110)


def write_pictures(case: Case, scored: bool, caption: str, folder: Path) -> list[Path]:
    """Write overlay.png and thumbnail.png of one case and return their paths.

    If `scored` is False, there is no truth, and `case.truth` contains the prediction as well.
    """
    slices, high, window = draw_frame(case)
    tiles = [_draw_tile(case, index, high, window, SIDE) for index in slices]
    strip = Image.new("RGB", (len(tiles) * SIDE, SIDE + CAPTION), WHITE)
    for column, (index, tile) in enumerate(zip(slices, tiles, strict=True)):
        strip.paste(tile, (column * SIDE, CAPTION))
        place = (column * SIDE + 5, CAPTION + SIDE - 20)
        _draw_text(strip, place, f"slice {index + 1} of {len(case.truth)}", WHITE, 13)
    _draw_text(strip, (4, 3), _shorten(f"{case.name}   {caption}", strip.width), INK, 14)
    _draw_legend(strip, 18, case.classes, scored)

    largest = max(slices, key=lambda index: np.count_nonzero(case.prediction[index]))
    thumbnail = Image.new("RGB", (THUMBNAIL, THUMBNAIL + CAPTION), WHITE)
    thumbnail.paste(_draw_tile(case, largest, high, window, THUMBNAIL), (0, CAPTION))
    _draw_text(thumbnail, (2, 2), _shorten(case.name, THUMBNAIL), INK, 12)
    _draw_text(thumbnail, (2, 17), _shorten(caption, THUMBNAIL), GREY, 12)
    return [_save(strip, folder / "overlay.png"), _save(thumbnail, folder / "thumbnail.png")]


def write_contact_sheet(
    thumbnails: Sequence[Path], classes: Sequence[str], scored: bool, path: Path
) -> None:
    """Write one picture of all cases, six per row, in the order of `thumbnails`.

    The picture contains at most the first 240 cases.
    """
    first = thumbnails[:MOST]
    rows = -(-len(first) // COLUMNS)
    height, gap = THUMBNAIL + CAPTION, 6
    # The title and the legend need the width of three columns.
    columns = min(COLUMNS, max(len(first), 3))
    size = (columns * (THUMBNAIL + gap) + gap, rows * (height + gap) + CAPTION)
    sheet = Image.new("RGB", size, WHITE)
    count = (
        f"{len(first)} of {len(thumbnails)} cases"
        if len(first) < len(thumbnails)
        else f"{len(first)} {'case' if len(first) == 1 else 'cases'}"
    )
    title = f"{count}, each at the overlay slice with the largest prediction"
    _draw_text(sheet, (gap, 2), title, INK, 13)
    _draw_legend(sheet, 17, classes, scored)
    for index, thumbnail in enumerate(first):
        row, column = divmod(index, COLUMNS)
        with Image.open(thumbnail) as tile:
            sheet.paste(tile, (gap + column * (THUMBNAIL + gap), CAPTION + row * (height + gap)))
    _save(sheet, path)


def _draw_tile(
    case: Case, index: int, high: float, window: tuple[slice, slice], side: int
) -> Image.Image:
    """Return one slice, cropped to the head, on a black square."""
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


def _draw_legend(picture: Image.Image, top: int, classes: Sequence[str], scored: bool) -> None:
    if len(classes) > 2:
        names = {name: class_colour(index) for index, name in enumerate(classes) if index}
    elif scored:
        names = {
            "both": OVERLAP,
            "truth only (false negative)": TRUTH,
            "prediction only (false positive)": PREDICTION,
        }
    else:
        names = {"prediction": OVERLAP}
    left = 6
    for name, colour in names.items():
        red, green, blue = (round(255 * part) for part in colour)
        ImageDraw.Draw(picture).rectangle((left, top + 3, left + 9, top + 12), (red, green, blue))
        _draw_text(picture, (left + 14, top), name, GREY, 12)
        left += 26 + round(ImageFont.load_default(12).getlength(name))


def _draw_text(
    picture: Image.Image, place: tuple[int, int], text: str, colour: tuple[int, int, int], size: int
) -> None:
    ImageDraw.Draw(picture).text(place, text, colour, ImageFont.load_default(size))


def _shorten(text: str, width: int) -> str:
    """Return the text, shortened in its middle to fit a width in pixels (7 pixels per letter)."""
    longest = max(8, width // 7)
    half = longest // 2 - 1
    return text if len(text) <= longest else f"{text[:half]}..{text[-half:]}"


def _save(picture: Image.Image, path: Path) -> Path:
    with writing(path) as temporary:
        picture.save(temporary, format="PNG", compress_level=3)
    return path
