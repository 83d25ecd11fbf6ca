"""Reader of single pictures (PNG, JPEG, TIFF, BMP or PPM) with Pillow.

TIFF files that Pillow cannot read are read by `brainseg.data.imageio.tiff`.
"""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from brainseg.core.errors import DataError
from brainseg.data.imageio.tiff import LARGEST, read_tiff

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM")
GREY = ("1", "L", "I;16", "I;16B", "I", "F")


def has_colour(path: Path) -> bool:
    """Return True if the red, green and blue of any pixel differ.

    A picture that cannot be read counts as grey. Its fault is reported when it is loaded.
    """
    try:
        pixels = _decode(path)
    except DataError:
        return False
    return pixels.ndim == 3 and bool((pixels != pixels[..., :1]).any())


def read_picture(path: Path, colour: bool) -> np.ndarray:
    """Return a picture as (3, H, W) in colour or (1, H, W) in grey.

    Raises DataError naming the file.
    """
    pixels = _decode(path)
    if colour:
        return (
            np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else np.repeat(pixels[None], 3, axis=0)
        )
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise DataError(
                f"{path}: is in colour, unlike the first pictures; "
                "channels=[A,B,C] reads all in colour"
            )
        pixels = pixels[..., 0]
    return pixels[None]


def read_indices(path: Path) -> np.ndarray:
    """Return the values (H, W) of a mask. Raises DataError naming the file.

    For a palette of colours, the values are its indices. For a palette of greys, they are the
    greys, because programs that save space choose new indices for each file.
    """
    pixels = _decode(path, keep_indices=True)
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise DataError(f"{path}: a mask in colour; save it in grey, with one value per class")
        pixels = pixels[..., 0]
    # White is 255 in a picture of one bit, too, because programs that save space choose the number
    # of bits anew for each file.
    return 255 * pixels.astype(np.uint8) if pixels.dtype == bool else pixels


def _decode(path: Path, keep_indices: bool = False) -> np.ndarray:
    """Return the pixels (H, W), or (H, W, 3) of a picture in colour.

    Raises DataError naming the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as picture:
                return _pixels(picture, path, keep_indices)
    # DataError is a ValueError, which Pillow raises for damaged files, too.
    except DataError:
        raise
    except UnidentifiedImageError as error:
        if path.suffix.lower() in (".tif", ".tiff"):
            pixels = read_tiff(path)
            return pixels[..., 0] if pixels.shape[2] == 1 else pixels
        raise DataError(f"{path}: is no PNG, JPEG, TIFF, BMP or PPM; convert it to PNG") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{path}: its header says more than {LARGEST} pixels to a side; split it"
        ) from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: does not exist any more; start again") from error
    # Pillow raises these for damaged files, and SyntaxError for invalid chunks of a PNG file.
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: unreadable or truncated; copy or download it again") from error


def _pixels(picture: Image.Image, path: Path, keep_indices: bool) -> np.ndarray:
    """Return the pixels of an opened picture, shape (H, W), or (H, W, 3) for colours.

    The indices of a palette of colours are kept if `keep_indices`, as masks need them. Raises
    DataError, which names the file, for a picture that is too large, has several frames, is
    transparent, or stores its colours in another way than RGB.
    """
    if max(picture.size) > LARGEST:
        raise DataError(
            f"{path}: {picture.height}x{picture.width} pixels; a side has at most {LARGEST}"
        )
    if (frames := getattr(picture, "n_frames", 1)) > 1:
        raise DataError(f"{path}: holds {frames} pictures; save each slice in a file of its own")
    if picture.mode in ("LA", "RGBA", "PA"):
        alpha = np.asarray(picture.getchannel("A"))
        if alpha.min() < 255:
            raise DataError(f"{path}: is transparent in places; save it without an alpha channel")
        picture = picture.convert({"LA": "L", "RGBA": "RGB"}.get(picture.mode, "P"))
    if picture.mode == "P" and not (keep_indices and _is_colour_coded(picture)):
        picture = picture.convert("RGB")
    if picture.mode not in (*GREY, "P", "RGB"):
        raise DataError(f"{path}: colours are stored as {picture.mode}; save it in grey or RGB")
    return np.asarray(picture)


def _is_colour_coded(picture: Image.Image) -> bool:
    """Return True if a picture with a palette uses any colour that is no grey."""
    colours = np.reshape(picture.getpalette("RGB") or [], (-1, 3))
    used_colours = colours[np.unique(np.asarray(picture))]
    return bool((used_colours != used_colours[:, :1]).any())
