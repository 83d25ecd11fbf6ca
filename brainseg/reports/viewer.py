"""viewer.html: patients, their slices, and the masks of people and networks over them, on one page that opens offline.

    page        viewer.html, with viewer.css and viewer.js inside it; nothing is fetched, and nothing but that script may run
    index       what the list of patients shows, as JSON; cases: one JSON each, parsed when that patient is opened
    images      one mosaic of all slices for each channel, JPEG at quality 80: 5 KB a slice of 256 x 256, 8-bit
    masks       each slice as runs of equal class, a uint32 each: class + 256 * length, row by row; base64

On the 61 real patients (38 slices, 3 channels) JPEG 80 took 1.0 MB of the page and 0.2 s a patient. WebP takes half of that, but
three to ten times as long; lossless PNG 4.5 MB and 3 s.
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
    from brainseg.data.store import Store

RUNS = 6  # predictions that the page has colours for
QUALITY = 80  # of JPEG
BLOCK = 8  # pixels: JPEG's blocks; a tile that fills them does not bleed into its neighbour
SPARSE = 4  # percentiles are over every fourth row and column
WHITE = 99.3  # percentile shown as white at first, as in the other pictures
ROLES = ("test", "unknown", "validation", "train")  # the most telling first


@dataclass(frozen=True)
class Case:
    """A patient to look at. Masks are (S, H, W) class indices, in the order of the page's runs; None: that run has none of this patient."""

    name: str
    images: np.ndarray  # (S, C, H, W); uint8 is shown as it is, other types are scaled by the channel's range in this volume
    channels: Sequence[str]
    truth: np.ndarray | None
    predictions: Sequence[np.ndarray | None]
    dice: Sequence[float | None]  # of each run, over the volume; None: not scored
    role: str = ""  # test, validation, train, unknown
    spacing: Sequence[float] | None = (
        None  # mm between slices, rows and columns; NaN or None: unknown
    )


def write_viewer(
    path: str | Path,
    cases: Iterable[Case],
    runs: Sequence[str],
    title: str = "Patients and their masks",
    notes: Sequence[str] = (),
    classes: Sequence[str] = (),
    left_out: Sequence[str] = (),
) -> None:
    """Write the page, atomically; `cases` are taken one at a time, so that a cohort need not lie in memory.

    `runs` name the predictions. `notes` are sentences on top, as which split; `classes` name the mask's indices, background first;
    `left_out` are the patients that were scored and are not on the page. All text is escaped. Raises OSError.
    """
    head, _, foot = _page(title).partition("<!-- cases -->")
    with writing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(head)
        patients = []
        for number, case in enumerate(cases):
            patients.append(_summary(case))
            file.write(_data(f"case-{number}", _content(case)))
        several = list(classes) if len(classes) > 2 else []
        index = {
            "title": title,
            "notes": list(notes),
            "runs": list(runs),
            "classes": several,
            "left_out": list(left_out),
        }
        file.write(_data("index", index | {"patients": patients}) + foot)


def choose_slices(scores: Sequence[tuple[str, float]], count: int) -> list[int]:
    """Indices of at most `count` of the (role, Dice), the most telling role first; of it half the worst, a quarter median, a quarter best.

    They come in the order of the scores; a Dice that is not known (NaN) counts as the best.
    """
    chosen: list[int] = []
    for role in (*ROLES, ""):
        order = sorted(
            (i for i, score in enumerate(scores) if score[0] == role),
            key=lambda i: (math.isnan(scores[i][1]), scores[i][1]),
        )
        room = count - len(chosen)
        if len(order) > room:
            worst, best = -(-room // 2), room // 4
            middle = room - worst - best
            start = min(max(worst, (len(order) - middle) // 2), len(order) - best - middle)
            order = [*order[:worst], *order[start : start + middle], *order[len(order) - best :]]
        chosen += order
    return sorted(chosen)


def case_of(
    store: "Store",
    volume: str,
    predictions: Sequence[np.ndarray | None],
    dice: Sequence[float | None],
    role: str,
) -> Case:
    """A volume of a cohort's file, with what each run predicted of it."""
    start, stop = store.rows_of(volume)
    index = store.volumes.index(volume)
    named = [
        f"{name} (missing: FLAIR)" if copy else name
        for name, copy in zip(store.channels, store.copies[index], strict=True)
    ]
    images, truth = store.images(start, stop), store.masks(start, stop)[:, 0]
    return Case(
        volume, images, named, truth, predictions, dice, role, store.spacing[index].tolist()
    )


def _page(title: str) -> str:
    """The template with style and script inside; a policy lets exactly that script run, whatever the data say."""
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


def _data(name: str, content: Any) -> str:
    """A block of JSON that HTML cannot end early: no `<` is left in it."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _summary(case: Case) -> dict[str, Any]:
    """The patient's line of the list: volumes are voxels of any class, truth first; `largest` is the slice that opens."""
    areas = [_areas(mask) for mask in _masks(case)]
    shown = next((area for area in areas if area is not None and area.any()), None)
    spacing = np.asarray(case.spacing if case.spacing is not None else (math.nan,) * 3, np.float64)
    return {
        "name": case.name,
        "role": case.role,
        "slices": len(case.images),
        "dice": [None if dice is None or math.isnan(dice) else float(dice) for dice in case.dice],
        "voxels": [None if area is None else int(area.sum()) for area in areas],
        "voxel_ml": float(spacing.prod()) / 1000 if np.isfinite(spacing).all() else None,
        "largest": len(case.images) // 2 if shown is None else int(shown.argmax()),
    }


def _content(case: Case) -> dict[str, Any]:
    """Pixels: a mosaic of each channel, each mask slice by slice, their areas, the boxes around the head and around all masks."""
    _, _, height, width = case.images.shape
    masks = _masks(case)
    columns = math.ceil(math.sqrt(len(case.images)))
    row_mm, column_mm = (
        float(side) for side in (case.spacing if case.spacing is not None else (1, 1, 1))[1:]
    )
    return {
        "height": height,
        "width": width,
        "aspect": row_mm / column_mm
        if math.isfinite(row_mm / column_mm)
        else 1.0,  # height of a pixel over its width
        "columns": columns,
        "tile": [_rounded(height), _rounded(width)],
        "channels": [
            _channel(name, case.images[:, index], columns)
            for index, name in enumerate(case.channels)
        ],
        "masks": [
            None if mask is None else [_runs(of_slice) for of_slice in mask] for mask in masks
        ],
        "areas": [None if mask is None else _areas(mask).tolist() for mask in masks],
        "head": _head(case.images),
        "box": _box([mask for mask in masks if mask is not None], height, width),
    }


def _masks(case: Case) -> list[np.ndarray | None]:
    return [case.truth, *case.predictions]


def _areas(mask: np.ndarray | None) -> Any:
    """Pixels above class 0 in each slice (S,)."""
    return None if mask is None else np.count_nonzero(mask, axis=(1, 2))


def _channel(name: str, slices: np.ndarray, columns: int) -> dict[str, Any]:
    """A mosaic (rows * columns tiles) of uint8 slices, and which grey value is shown as white at first."""
    from PIL import Image

    if slices.dtype != np.uint8:
        low, high = float(slices.min()), float(np.percentile(slices[:, ::SPARSE, ::SPARSE], 99.9))
        slices = np.clip(
            (slices.astype(np.float32) - low) / (high - low or 1.0) * 255, 0, 255
        ).astype(np.uint8)
    count, height, width = slices.shape
    rows, high, wide = -(-count // columns), _rounded(height), _rounded(width)
    tiles = np.zeros((rows * columns, high, wide), np.uint8)
    tiles[:count, :height, :width] = slices
    mosaic = (
        tiles.reshape(rows, columns, high, wide).swapaxes(1, 2).reshape(rows * high, columns * wide)
    )
    image = BytesIO()
    Image.fromarray(mosaic).save(image, "JPEG", quality=QUALITY)
    encoded = base64.b64encode(image.getvalue()).decode()
    white = float(np.percentile(slices[:, ::SPARSE, ::SPARSE], WHITE))
    return {"name": name, "white": max(white, 1.0), "image": f"data:image/jpeg;base64,{encoded}"}


def _rounded(side: int) -> int:
    return -(-side // BLOCK) * BLOCK


def _runs(mask: np.ndarray) -> str:
    """One slice as base64; nothing for an empty one. A run has at most 2**24 pixels."""
    if not mask.any():
        return ""
    flat = mask.reshape(-1).astype(np.uint32)
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] + 1))
    lengths = np.diff(starts, append=len(flat)).astype(np.uint32)
    return base64.b64encode((flat[starts] | lengths << 8).astype("<u4").tobytes()).decode()


def _head(images: np.ndarray) -> list[int]:
    """[top, bottom, left, right] around the head in (S, C, H, W), with a margin: rows and columns of which more than 1 % is bright."""
    height, width = images.shape[2:]
    white = np.percentile(images[:, :, ::SPARSE, ::SPARSE], WHITE, axis=(0, 2, 3))[:, None, None]
    bright = np.mean([(of_slice > 0.15 * white).any(axis=0) for of_slice in images], axis=0)
    rows, columns = (bright.mean(axis=axis) > 0.01 for axis in (1, 0))
    return _box([(rows[:, None] & columns)[None]], height, width, margin=4)


def _box(masks: Sequence[np.ndarray], height: int, width: int, margin: int = 0) -> list[int]:
    """[top, bottom, left, right] around every mask of the patient, in pixels; the whole image where there is none."""
    inside = np.zeros((height, width), bool)
    for mask in masks:
        inside |= mask.any(axis=0)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return [0, height, 0, width]
    sides = [(int(side[0]) - margin, int(side[-1]) + 1 + margin) for side in (rows, columns)]
    (top, bottom), (left, right) = sides
    return [max(top, 0), min(bottom, height), max(left, 0), min(right, width)]
