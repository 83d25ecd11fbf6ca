"""Properties of each volume that determine how its slices become the input of a network."""

import numpy as np

from brainseg.core.errors import DataError, check
from brainseg.data.store import REMEDY, SliceStore

# Height and width in pixels.
Size = tuple[int, int]
# Three times the median of the head becomes 1. On FLAIR the median lies in normal brain, and the
# tumours of the 88 public patients have 0.9 to 2.2 times its intensity.
MEDIAN_FACTOR = 3
# A neighbour under context_step=auto is about this part of the volume away, some 6 mm.
PARTS_OF_VOLUME = 24
# Side lengths of an automatic window are multiples of this number, which the poolings of a U-Net
# of depth 6 divide.
WINDOW_MULTIPLE = 32


def intensity_limits(store: SliceStore, intensity: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the intensities that become 0 and 1, two arrays float32 (V, C).

    Raises DataError if the file does not contain the medians that intensity=median needs.
    """
    if intensity != "median":
        return store.low, store.high
    return store.low, MEDIAN_FACTOR * _of_head(store, "head_median", "data.intensity=median")


def context_steps(store: SliceStore, step: str) -> np.ndarray:
    """Return the distance of neighbouring slices for each volume in slices, int64 (V,)."""
    slices = np.diff(store.first_slice)
    if step == "auto":
        return np.maximum(1, np.rint(slices / PARTS_OF_VOLUME)).astype(np.int64)
    return np.full(len(slices), int(step))


def window_size(
    store: SliceStore, setting: str, patients: tuple[str, ...]
) -> tuple[int, int] | None:
    """Return height and width of the training window in pixels, or None for complete slices.

    `setting` is data.window: none, auto or HEIGHTxWIDTH. The automatic size is the median of the
    heads of `patients`, rounded up to a multiple of 32. Most heads then lie in the window, and the
    others lose scalp: of the 88 public patients 0.01 % of the tumour. A side is never longer than
    the image. Raises RequestError for a larger window, and DataError if the file does not contain
    the boxes.
    """
    size = int(store.shape[2]), int(store.shape[3])
    if setting == "auto":
        boxes = _of_head(store, "head_box", "data.window=auto")
        boxes = boxes[np.isin(store.patients, patients)]
        sides = np.median(np.stack([boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]]), axis=1)
        rows, columns = (
            min(int(-(-side // WINDOW_MULTIPLE)) * WINDOW_MULTIPLE, limit)
            for side, limit in zip(sides, size, strict=True)
        )
    else:
        rows, columns = typed_window_size(setting, size) or size
    return None if (rows, columns) == size else (rows, columns)


def typed_window_size(setting: str, size: Size) -> Size | None:
    """Return the window HEIGHTxWIDTH of slices of this size, or None for auto and none.

    Raises RequestError for a window that is larger than the slices.
    """
    if setting in ("auto", "none"):
        return None
    rows, columns = map(int, setting.split("x"))
    check(
        rows <= size[0] and columns <= size[1],
        "data.window",
        setting,
        f"is larger than the slices of {size[0]}x{size[1]} pixels",
        "use auto, none or a smaller window",
    )
    return rows, columns


def window_corners(store: SliceStore, window: Size) -> np.ndarray:
    """Return the first row and column of each volume's window, int64 (V, 2).

    The centre of the head is the centre of the window, unless the window would leave the image.
    """
    boxes = _of_head(store, "head_box", "data.window")
    centres = np.stack([boxes[:, 0] + boxes[:, 1], boxes[:, 2] + boxes[:, 3]], axis=1) / 2
    corners = np.rint(centres - np.array(window) / 2).astype(np.int64)
    return np.clip(corners, 0, np.array(store.shape[2:]) - window)


def _of_head(store: SliceStore, name: str, setting: str) -> np.ndarray:
    """Return an array of the store that files of earlier versions lack. Raises DataError."""
    values = getattr(store, name)
    if values is None:
        raise DataError(
            f"{store.path}: an earlier version made this file, and {setting} needs {name}; {REMEDY}"
        )
    return values
