"""Multi-page TIFF: a page a slice, either all sequences as its samples (RGB) or one sequence in grey; and the writer of masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tifffile import TiffFile, TiffPage, imwrite

from brainseg.data.reader import Scan
from brainseg.data.studies.study import check_sequences, check_volume, compose
from brainseg.data.tiff import UNREADABLE, fault_of
from brainseg.errors import DataError, check
from brainseg.files import writing

SUFFIXES = (".tif", ".tiff")
TYPES = ("uint8", "uint16", "int16", "float32")
MOST_PAGES = 4096


@dataclass
class TiffStudy:
    """Stacks of one size, by sequence; or one stack (under "") that holds every channel in its samples."""

    name: str
    channels: Sequence[str]
    stacks: Mapping[str, Path]
    notes: Sequence[str] = ()

    @property
    def files(self) -> Sequence[Path]:
        return list(self.stacks.values())

    @property
    def given(self) -> Sequence[str]:
        return list(self.stacks)

    def read(self) -> Scan:
        pixels = {name: read_stack(path) for name, path in self.stacks.items()}
        if "" in pixels:
            whole = pixels[""]
            return Scan(compose({name: whole[..., index] for index, name in enumerate(self.channels)}, self.channels), None)
        return Scan(compose({name: stack[..., 0] for name, stack in pixels.items()}, self.channels), None)

    def write(self, folder: Path, mask: np.ndarray, probability: np.ndarray | None, several: bool) -> list[Path]:
        written = [write_mask(folder / f"{self.name}_mask.tif", mask, several)]
        if probability is not None:
            written.append(write_probability(folder / f"{self.name}_probability.tif", probability))
        return written


def find(name: str, paths: Mapping[str, Path], channels: Sequence[str]) -> TiffStudy:
    """A study of one stack a sequence; a single one may hold all of them. Raises RequestError for what the headers say against it."""
    shapes = {sequence: outline(path) for sequence, path in paths.items()}
    first = next(iter(shapes.values()))
    if len(paths) == 1 and first[3] > 1:
        check(first[3] == len(channels), "input", next(iter(paths.values())),
              f"{first[3]} samples a pixel; the checkpoint needs {len(channels)}: {', '.join(channels)}")
        return TiffStudy(name, channels, {"": next(iter(paths.values()))})
    for sequence, shape in shapes.items():
        check(shape[3] == 1, "input", paths[sequence], f"{shape[3]} samples a pixel; must be grey, one file a sequence")
        rule = f"{shape[0]} slices of {shape[1]}x{shape[2]}, the first has {first[0]} of {first[1]}x{first[2]}"
        check(shape == first, "input", paths[sequence], rule, "all sequences must lie on one grid")
    check_sequences(list(paths), channels)
    return TiffStudy(name, channels, dict(paths))


def outline(path: Path) -> tuple[int, int, int, int]:
    """(S, H, W, samples) as the headers of all pages say. Raises DataError naming the file."""
    return _open(path, pixels=False)[0]


def read_stack(path: Path) -> np.ndarray:
    """Pixels (S, H, W, samples). Raises DataError naming the file."""
    return _open(path, pixels=True)[1]


def _open(path: Path, pixels: bool) -> tuple[tuple[int, int, int, int], np.ndarray]:
    try:
        size = path.stat().st_size
        with np.errstate(over="ignore"), TiffFile(path) as file:  # by pages: a series may lie in other files
            if file.is_imagej and int((file.imagej_metadata or {}).get("channels", 1)) > 1:
                raise DataError(f"{path}: its pages are slices and channels in turn; save one file a channel")
            shape = _shape(file, path, size)
            stack = np.empty(0)
            if pixels:
                stack = np.stack([page.asarray(maxworkers=1).reshape(shape[1:]) for page in file.pages])
            return shape, stack
    except DataError:
        raise
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:200]
        raise DataError(f"{path}: unreadable or truncated ({type(error).__name__}: {reason})") from error


def _shape(file: TiffFile, path: Path, size: int) -> tuple[int, int, int, int]:
    """(S, H, W, samples) if no page's header is at fault. Raises DataError."""
    found: set[tuple] = set()
    for number, found_page in enumerate(file.pages):
        page = found_page if isinstance(found_page, TiffPage) else found_page.aspage()  # tifffile's short form of it
        if number == MOST_PAGES:
            raise DataError(f"{path}: more than {MOST_PAGES} pages")
        if fault := fault_of(page, size, TYPES):
            raise DataError(f"{path}, page {number + 1}: {fault}")
        found.add((page.imagelength, page.imagewidth, page.samplesperpixel, str(page.dtype)))
        if len(found) > 1:
            raise DataError(f"{path}, page {number + 1}: another size or type than the pages before; all slices must be alike")
    height, width, samples, _ = found.pop()
    check_volume((len(file.pages), height, width), path)
    return len(file.pages), height, width, samples


def write_mask(path: Path, mask: np.ndarray, several: bool) -> Path:
    """Write class indices uint8 (S, H, W), a page each; one class as 0 and 255, like the public set's."""
    return _write(path, mask if several else 255 * mask)


def write_probability(path: Path, probability: np.ndarray) -> Path:
    """Write float32 (S, K, H, W), a page a slice, the K outputs as its samples."""
    several = probability.shape[1] > 1
    return _write(path, np.ascontiguousarray(np.moveaxis(probability, 1, -1)) if several else probability[:, 0], several)


def _write(path: Path, pages: np.ndarray, samples: bool = False) -> Path:
    planes = "contig" if samples else None
    with writing(path) as temporary:  # without loss; a mask of 65 KB takes 0.3 KB
        imwrite(temporary, pages, photometric="minisblack", planarconfig=planes, compression="deflate", metadata=None)
    return path
