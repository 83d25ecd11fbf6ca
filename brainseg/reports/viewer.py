"""The page viewer.html, which shows the slices of patients with manual and predicted masks.

The page opens offline.

    page        viewer.html, which contains viewer.css and viewer.js. It fetches nothing and runs no
                other script.
    index       the list of patients, as JSON
    cases       a JSON for each patient, parsed when that patient is opened
    images      a mosaic of all slices for each channel, as 8-bit JPEG at quality 80, which takes
                5 KB per slice of 256 x 256
    masks       each slice as runs of equal class, row by row. A run is a uint32 of
                class + 256 * length, in base64.

On the 61 real patients (38 slices, 3 channels) JPEG 80 took 1.0 MB of the page and 0.2 s per
patient. WebP takes half of that space, but three to ten times as long. Lossless PNG takes 4.5 MB
and 3 s.
"""

import base64
import hashlib
import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brainseg.core.files import writing

if TYPE_CHECKING:
    from brainseg.data.store import SliceStore

# The number of predictions for which the page has colours.
MAX_RUNS = 6
# The JPEG quality.
JPEG_QUALITY = 80
# The side of a JPEG block in pixels. A tile of whole blocks does not bleed into its neighbour.
JPEG_BLOCK = 8
# Percentiles are computed over every fourth row and column.
PERCENTILE_STEP = 4
# The percentile that is white when the page opens. The other pictures use the same value.
WHITE_PERCENTILE = 99.3
# The most informative role comes first.
ROLES = ("test", "unknown", "validation", "train")


@dataclass(frozen=True)
class Case:
    """The images and masks of a patient to show.

    Masks are class indices (S, H, W).
    """

    name: str
    # (S, C, H, W). uint8 stays unchanged, other types are scaled by the channel's range in the
    # volume.
    images: np.ndarray
    channels: Sequence[str]
    truth: np.ndarray | None
    # The mask of each run of the page, in the order of the runs, or None if a run has no mask of
    # the patient.
    predictions: Sequence[np.ndarray | None]
    # The volume's Dice in each run, or None if it was not scored.
    dice: Sequence[float | None]
    # test, validation, train or unknown
    role: str = ""
    # The distances between slices, rows and columns in mm. NaN or None means unknown.
    spacing: Sequence[float] | None = None


def write_viewer(
    path: str | Path,
    cases: Iterable[Case],
    runs: Sequence[str],
    title: str = "Patients and their masks",
    notes: Sequence[str] = (),
    classes: Sequence[str] = (),
    left_out: Sequence[str] = (),
) -> None:
    """Write the page atomically.

    `cases` are read one at a time, so the cohort need not fit in memory. `runs` are the names of
    the predictions. `notes` are sentences at the top of the page, such as the name of the split.
    `classes` are the names of the class indices, background first. `left_out` are the scored
    patients that are not on the page. All text is escaped. Raises OSError.
    """
    head, _, foot = _fill_template(title).partition("<!-- cases -->")
    with writing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(head)
        patients = []
        for number, case in enumerate(cases):
            patients.append(_summarise_case(case))
            file.write(_json_block(f"case-{number}", _encode_case(case)))
        index = {
            "title": title,
            "notes": list(notes),
            "runs": list(runs),
            # With a single foreground class the page needs no choice of classes.
            "classes": list(classes) if len(classes) > 2 else [],
            "left_out": list(left_out),
        }
        file.write(_json_block("index", index | {"patients": patients}) + foot)


def choose_patients(scores: Sequence[tuple[str, float]], count: int) -> list[int]:
    """Return the indices of at most `count` patients, given their (role, Dice).

    The patients of the most informative roles are taken first. If a role has too many patients,
    half of those taken are the worst, a quarter are around the median, and a quarter are the best.
    A Dice of NaN, which is unknown, counts as the best. The indices are in ascending order.
    """
    chosen: list[int] = []
    for role in (*ROLES, ""):
        order = sorted(
            (i for i, score in enumerate(scores) if score[0] == role),
            key=lambda i: (math.isnan(scores[i][1]), scores[i][1]),
        )
        free_places = count - len(chosen)
        if len(order) > free_places:
            worst, best = -(-free_places // 2), free_places // 4
            middle = free_places - worst - best
            # The middle patients are moved if they would overlap with the worst or the best.
            start = min(max(worst, (len(order) - middle) // 2), len(order) - best - middle)
            order = [*order[:worst], *order[start : start + middle], *order[len(order) - best :]]
        chosen += order
    return sorted(chosen)


def build_case(
    store: "SliceStore",
    volume: str,
    predictions: Sequence[np.ndarray | None],
    dice: Sequence[float | None],
    role: str,
) -> Case:
    """Return the case of a volume of `store`, with the predictions of each run."""
    start, stop = store.rows_of(volume)
    index = store.volumes.index(volume)
    channels = [
        f"{name} (missing: FLAIR)" if copy else name
        for name, copy in zip(store.channels, store.copies[index], strict=True)
    ]
    images, truth = store.images(start, stop), store.masks(start, stop)[:, 0]
    return Case(
        volume, images, channels, truth, predictions, dice, role, store.spacing[index].tolist()
    )


def _fill_template(title: str) -> str:
    """Return the HTML template with its style and its script.

    The page's content security policy contains the digests of both. Browsers then run no other
    script, whatever the data contain.
    """
    template, style, script = (
        (files("brainseg.reports") / f"viewer.{kind}").read_text("utf-8")
        for kind in ("html", "css", "js")
    )
    for name, content in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        template = template.replace(f"{{{{{name} digest}}}}", digest).replace(
            f"{{{{{name}}}}}", content
        )
    return template.replace("{{title}}", html.escape(title))


def _json_block(name: str, content: Any) -> str:
    """Return an HTML element with JSON in which `<` is escaped, so that no text can end it."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _summarise_case(case: Case) -> dict[str, Any]:
    """Return the patient's line of the list.

    `voxels` counts the voxels of any class in each mask, truth first. `largest` is the slice that
    is shown when the patient is opened.
    """
    areas = [_count_pixels(mask) for mask in _list_masks(case)]
    first_area = next((area for area in areas if area is not None and area.any()), None)
    spacing = np.asarray(case.spacing if case.spacing is not None else (math.nan,) * 3, np.float64)
    return {
        "name": case.name,
        "role": case.role,
        "slices": len(case.images),
        "dice": [None if dice is None or math.isnan(dice) else float(dice) for dice in case.dice],
        "voxels": [None if area is None else int(area.sum()) for area in areas],
        "voxel_ml": float(spacing.prod()) / 1000 if np.isfinite(spacing).all() else None,
        "largest": len(case.images) // 2 if first_area is None else int(first_area.argmax()),
    }


def _encode_case(case: Case) -> dict[str, Any]:
    """Return what the page draws of a patient.

    This is a mosaic of each channel, the run lengths and areas of each mask in every slice, and the
    boxes around the head and around all masks.
    """
    _, _, height, width = case.images.shape
    masks = _list_masks(case)
    columns = math.ceil(math.sqrt(len(case.images)))
    row_mm, column_mm = (
        float(side) for side in (case.spacing if case.spacing is not None else (1, 1, 1))[1:]
    )
    return {
        "height": height,
        "width": width,
        # The height of a pixel divided by its width.
        "aspect": row_mm / column_mm if math.isfinite(row_mm / column_mm) else 1.0,
        "columns": columns,
        "tile": [_round_to_blocks(height), _round_to_blocks(width)],
        "channels": [
            _encode_channel(name, case.images[:, index], columns)
            for index, name in enumerate(case.channels)
        ],
        "masks": [
            None if mask is None else [_encode_runs(slice_mask) for slice_mask in mask]
            for mask in masks
        ],
        "areas": [None if mask is None else _count_pixels(mask).tolist() for mask in masks],
        "head": _find_head(case.images),
        "box": _bounding_box([mask for mask in masks if mask is not None], height, width),
    }


def _list_masks(case: Case) -> list[np.ndarray | None]:
    """Return the truth, followed by the prediction of each run."""
    return [case.truth, *case.predictions]


def _count_pixels(mask: np.ndarray | None) -> Any:
    """Return the number of pixels above class 0 in each slice (S,)."""
    return None if mask is None else np.count_nonzero(mask, axis=(1, 2))


def _encode_channel(name: str, slices: np.ndarray, columns: int) -> dict[str, Any]:
    """Return a channel's name, its mosaic of slices, and the grey value that is white at first.

    The mosaic is an image of rows * columns tiles.
    """
    from PIL import Image

    if slices.dtype != np.uint8:
        low, high = (
            float(slices.min()),
            float(np.percentile(slices[:, ::PERCENTILE_STEP, ::PERCENTILE_STEP], 99.9)),
        )
        slices = np.clip(
            (slices.astype(np.float32) - low) / (high - low or 1.0) * 255, 0, 255
        ).astype(np.uint8)
    count, height, width = slices.shape
    rows = -(-count // columns)
    tile_height, tile_width = _round_to_blocks(height), _round_to_blocks(width)
    tiles = np.zeros((rows * columns, tile_height, tile_width), np.uint8)
    tiles[:count, :height, :width] = slices
    grid = tiles.reshape(rows, columns, tile_height, tile_width).swapaxes(1, 2)
    mosaic = grid.reshape(rows * tile_height, columns * tile_width)
    image = BytesIO()
    Image.fromarray(mosaic).save(image, "JPEG", quality=JPEG_QUALITY)
    encoded = base64.b64encode(image.getvalue()).decode()
    white = float(np.percentile(slices[:, ::PERCENTILE_STEP, ::PERCENTILE_STEP], WHITE_PERCENTILE))
    return {"name": name, "white": max(white, 1.0), "image": f"data:image/jpeg;base64,{encoded}"}


def _round_to_blocks(side: int) -> int:
    """Return a side in pixels, rounded up to whole JPEG blocks."""
    return -(-side // JPEG_BLOCK) * JPEG_BLOCK


def _encode_runs(mask: np.ndarray) -> str:
    """Return the runs of a slice as base64, or an empty text if the slice has no mask.

    A run has at most 2**24 pixels.
    """
    if not mask.any():
        return ""
    flat = mask.reshape(-1).astype(np.uint32)
    # The value before the first pixel differs from it, so that the first pixel starts a run.
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] + 1))
    lengths = np.diff(starts, append=len(flat)).astype(np.uint32)
    return base64.b64encode((flat[starts] | lengths << 8).astype("<u4").tobytes()).decode()


def _find_head(images: np.ndarray) -> list[int]:
    """Return [top, bottom, left, right] around the head in images (S, C, H, W), with a margin.

    The head covers the rows and columns in which more than 1 % of the pixels are bright.
    """
    height, width = images.shape[2:]
    white = np.percentile(
        images[:, :, ::PERCENTILE_STEP, ::PERCENTILE_STEP], WHITE_PERCENTILE, axis=(0, 2, 3)
    )[:, None, None]
    bright = np.mean([(channels > 0.15 * white).any(axis=0) for channels in images], axis=0)
    rows, columns = (bright.mean(axis=axis) > 0.01 for axis in (1, 0))
    return _bounding_box([(rows[:, None] & columns)[None]], height, width, margin=4)


def _bounding_box(
    masks: Sequence[np.ndarray], height: int, width: int, margin: int = 0
) -> list[int]:
    """Return [top, bottom, left, right] in pixels around all masks, or of the whole image.

    The whole image is returned if all masks are empty.
    """
    inside = np.zeros((height, width), bool)
    for mask in masks:
        inside |= mask.any(axis=0)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return [0, height, 0, width]
    sides = [(int(side[0]) - margin, int(side[-1]) + 1 + margin) for side in (rows, columns)]
    (top, bottom), (first_column, last_column) = sides
    return [max(top, 0), min(bottom, height), max(first_column, 0), min(last_column, width)]
