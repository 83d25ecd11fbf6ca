"""Cases of TIFF stacks, and the writer of masks as TIFF.

A stack holds slices with all sequences as channels, or with one sequence in grey. The dimensions
are named by OME-XML or by the description of ImageJ or tifffile. Without a description, pages are
slices and the samples of a pixel are channels. Time points are refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tifffile import PHOTOMETRIC, TiffFile, TiffPage, TiffPageSeries, imwrite

from brainseg.core.errors import DataError, check
from brainseg.core.files import writing
from brainseg.data.cases.input_case import check_sequences, compose
from brainseg.data.imageio.base import check_finite, check_volume
from brainseg.data.imageio.tiff import UNREADABLE, fault_of, has_lost_pages
from brainseg.data.readers.base import Scan

SUFFIXES = (".tif", ".tiff")
MOST_PAGES = 4096
TYPES = ("uint8", "uint16", "int16", "float32")
# Letters of the dimensions that may hold slices. Q is a dimension without a name.
SLICES = "ZIQ"
# Letters of the dimensions that may hold channels: C for channels, S for samples of a pixel.
CHANNELS = "CS"
DIMENSION_NAMES = {"T": "time points", "R": "tiles", "P": "positions", "A": "angles", "V": "views"}


@dataclass
class TiffCase:
    """A case of TIFF stacks of one size by sequence, or of one stack with all channels under ""."""

    name: str
    channels: Sequence[str]
    stacks: Mapping[str, Path]
    notes: Sequence[str] = ()

    @property
    def files(self) -> Sequence[Path]:
        return list(self.stacks.values())

    @property
    def assignment(self) -> Mapping[str, str]:
        if "" not in self.stacks:
            return {channel: str(path) for channel, path in self.stacks.items()}
        path = self.stacks[""]
        return {channel: f"{path}, channel {n}" for n, channel in enumerate(self.channels, 1)}

    @property
    def voxel_millilitres(self) -> float | None:
        return None

    def read(self) -> Scan:
        stacks = {channel: read_stack(path) for channel, path in self.stacks.items()}
        if "" in stacks:
            stack = stacks[""]
            sequences = {channel: stack[..., n] for n, channel in enumerate(self.channels)}
        else:
            sequences = {channel: stack[..., 0] for channel, stack in stacks.items()}
        return Scan(compose(sequences, self.channels), None)

    def write(
        self, folder: Path, mask: np.ndarray, probability: np.ndarray | None, is_multiclass: bool
    ) -> list[Path]:
        written = [write_mask(folder / f"{self.name}_mask.tif", mask, is_multiclass)]
        if probability is not None:
            path = folder / f"{self.name}_probability.tif"
            written.append(write_probability(path, probability))
        return written


def find_stack(name: str, paths: Mapping[str, Path], channels: Sequence[str]) -> TiffCase:
    """Return the case of one stack for each sequence, or of a single stack with all sequences.

    Raises RequestError for stacks that do not fit the channels or one another, and DataError for
    faulty headers.
    """
    shapes = {sequence: stack_shape(path) for sequence, path in paths.items()}
    (first_path, *_), (first, *_) = list(paths.values()), list(shapes.values())
    # A single stack with several channels must hold those of the checkpoint, in their order.
    if len(paths) == 1 and first[3] > 1:
        rule = f"{first[3]} channels; the checkpoint needs {len(channels)}: {', '.join(channels)}"
        check(first[3] == len(channels), "input", first_path, rule)
        return TiffCase(name, channels, {"": first_path})
    for sequence, shape in shapes.items():
        rule = f"{shape[3]} channels; must be grey, one file for each sequence"
        check(shape[3] == 1, "input", paths[sequence], rule)
        rule = f"{_describe_shape(shape)}, the first has {_describe_shape(first)}"
        check(shape == first, "input", paths[sequence], rule, "all sequences must lie on one grid")
    check_sequences(list(paths), channels)
    return TiffCase(name, channels, dict(paths))


def stack_shape(path: Path) -> tuple[int, int, int, int]:
    """Return (S, H, W, C) from the headers of all pages. Raises DataError naming the file."""
    return _open(path, pixels=False)[0]


def read_stack(path: Path) -> np.ndarray:
    """Return pixels (S, H, W, C) with white as high values. Raises DataError naming the file."""
    return _open(path, pixels=True)[1]


def _open(path: Path, pixels: bool) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """Return the shape (S, H, W, C), and the pixels if asked for. Raises DataError."""
    try:
        size = path.stat().st_size
        # A damaged tag overflows in tifffile, and NumPy warns.
        with np.errstate(over="ignore"), TiffFile(path) as file:
            inverted = _check_pages(file, path, size)
            axes, sides, series = _dimensions(file, path)
            shape = _shape(axes, sides, path)
            stack = np.empty(0)
            if pixels:
                stack = np.stack([image.asarray(maxworkers=1) for image in series])
                stack = _slices_first(stack.reshape(sides), axes).reshape(shape)
                check_finite(stack, path)
                # The bitwise complement reverses the range of an integer type.
                if inverted:
                    stack = -stack if stack.dtype.kind == "f" else np.invert(stack)
            return shape, stack
    except DataError:
        raise
    except UNREADABLE as error:
        # tifffile trusts the header, so a damaged one makes it raise any of these errors.
        rule = "unreadable, damaged or truncated; copy it again, or save it anew as TIFF"
        raise DataError(f"{path}: {rule}") from error


def _check_pages(file: TiffFile, path: Path, size: int) -> bool:
    """Return True if 0 stands for white.

    Raises DataError for a faulty page, or if the pages differ in size or type.
    """
    kinds: set[tuple] = set()
    for number, page_or_frame in enumerate(file.pages, 1):
        # tifffile keeps a short form of the pages after the first.
        page = page_or_frame if isinstance(page_or_frame, TiffPage) else page_or_frame.aspage()
        if number > MOST_PAGES:
            raise DataError(f"{path}: more than {MOST_PAGES} pages")
        fault = fault_of(page, size, TYPES)
        if page.photometric == PHOTOMETRIC.PALETTE:
            fault = "colours of a palette; save it in grey"
        if fault:
            raise DataError(f"{path}, page {number}: {fault}")
        size_and_type = page.imagelength, page.imagewidth, page.samplesperpixel, str(page.dtype)
        kinds.add((*size_and_type, page.photometric))
        if len(kinds) > 1:
            rule = "another size or type than the pages before"
            remedy = "all slices must have one size and one type"
            raise DataError(f"{path}, page {number}: {rule}; {remedy}")
    if has_lost_pages(file):
        raise DataError(f"{path}: truncated: a page behind the last is missing; copy it again")
    check_volume((len(file.pages), *next(iter(kinds))[:2]), path)
    return next(iter(kinds))[-1] == PHOTOMETRIC.MINISWHITE


def _dimensions(
    file: TiffFile, path: Path
) -> tuple[str, tuple[int, ...], Sequence[TiffPageSeries]]:
    """Return the letters and lengths of a stack's dimensions, and its images.

    Raises DataError if the description contradicts the pages, or for several different images.
    """
    series = file.series
    first = series[0]
    for kind in ("ome", "imagej"):
        if getattr(file, f"is_{kind}") and first.kind != kind:
            name = {"ome": "OME", "imagej": "ImageJ"}[kind]
            raise DataError(f"{path}: its {name} description cannot be read; save it anew")
    if any(image.is_multifile for image in series):
        raise DataError(f"{path}: its slices lie in several files; save them as one file")
    axes, sides = first.get_axes(False), tuple(map(int, first.get_shape(False)))
    pages = sum(len(image) for image in series)
    if any(page is None for image in series for page in image.pages) or pages != len(file.pages):
        rule = f"its description gives {pages} pages, and it has {len(file.pages)}; save it anew"
        raise DataError(f"{path}: {rule}")
    # A file may store each slice as an image of its own, which tifffile calls a series.
    is_uniform = all(
        image.get_axes(False) == axes and image.get_shape(False) == sides for image in series
    )
    is_two_dimensional = all(
        side == 1 for axis, side in zip(axes, sides, strict=True) if axis not in "YXCS"
    )
    if len(series) > 1 and not (is_uniform and is_two_dimensional):
        raise DataError(f"{path}: holds {len(series)} images; save the one to segment by itself")
    return (f"I{axes}", (len(series), *sides), series)


def _shape(axes: str, sides: Sequence[int], path: Path) -> tuple[int, int, int, int]:
    """Return the shape (S, H, W, C). Raises DataError for any other dimension."""
    lengths = [(axis, side) for axis, side in zip(axes, sides, strict=True) if side > 1]
    for axis, side in lengths:
        if axis not in SLICES + CHANNELS + "YX":
            name = DIMENSION_NAMES.get(axis, f"images along dimension {axis}")
            rule = f"holds {side} {name}; save one of them, with its slices along Z"
            raise DataError(f"{path}: {rule}")
    for kind, group in (("slices", SLICES), ("channels", CHANNELS)):
        group_sides = [side for axis, side in lengths if axis in group]
        if len(group_sides) > 1:
            product = " x ".join(map(str, group_sides))
            rule = f"holds {product} {kind}, and does not say which dimension is which"
            raise DataError(f"{path}: {rule}; save it with named axes, such as ZCYX")
    by_axis = dict(zip(axes, sides, strict=True))
    slices, channels = (
        int(np.prod([side for axis, side in zip(axes, sides, strict=True) if axis in group]))
        for group in (SLICES, CHANNELS)
    )
    return slices, by_axis["Y"], by_axis["X"], channels


def _slices_first(stack: np.ndarray, axes: str) -> np.ndarray:
    """Return the array with its dimensions in the order slices, Y, X, channels.

    Dimensions of other kinds have length 1 and come first.
    """
    rank = {**dict.fromkeys(SLICES, 1), "Y": 2, "X": 3, **dict.fromkeys(CHANNELS, 4)}
    return stack.transpose(sorted(range(len(axes)), key=lambda index: rank.get(axes[index], 0)))


def _describe_shape(shape: tuple[int, int, int, int]) -> str:
    """Return a shape in words, for messages."""
    return f"{shape[0]} slices of {shape[1]}x{shape[2]}"


def write_mask(path: Path, mask: np.ndarray, is_multiclass: bool) -> Path:
    """Write class indices uint8 (S, H, W) with one page for each slice.

    A single foreground class is written as 0 and 255, like the masks of the public set.
    """
    return _write(path, mask if is_multiclass else 255 * mask)


def write_probability(path: Path, probability: np.ndarray) -> Path:
    """Write float32 (S, K, H, W) with one page for each slice, and the K outputs as samples."""
    if probability.shape[1] == 1:
        return _write(path, probability[:, 0])
    return _write(path, np.ascontiguousarray(np.moveaxis(probability, 1, -1)), samples=True)


def _write(path: Path, pages: np.ndarray, samples: bool = False) -> Path:
    """Write pages as a compressed TIFF, and return the path."""
    planes = "contig" if samples else None
    # Deflate is lossless, and a mask of 65 KB takes 0.3 KB.
    with writing(path) as temporary:
        imwrite(
            temporary,
            pages,
            photometric="minisblack",
            planarconfig=planes,
            compression="deflate",
            metadata=None,
        )
    return path
