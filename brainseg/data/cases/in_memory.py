"""Studies of images in memory: arrays, tensors and nibabel images, as `brainseg.segment` takes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.spatialimages import SpatialImage

from brainseg.core.errors import DataError, RequestError, check
from brainseg.data.cases.find import check_input, find_cases, image_at
from brainseg.data.cases.study import InputCase, check_sequences, compose, make_case
from brainseg.data.imageio.base import check_finite, check_shear, check_volume, spans_volume
from brainseg.data.imageio.grid import Grid
from brainseg.data.readers.base import Scan
from brainseg.data.volume import main_channel

Image = str | Path | np.ndarray | torch.Tensor | SpatialImage | None
Images = Image | Sequence[Image] | Mapping[str, Image]
KINDS = "a path, an array, a torch tensor or a nibabel image"


@dataclass(frozen=True)
class NibabelVolume:
    """A nibabel image in memory, or not yet read from its file."""

    image: Any
    files: Sequence[Path] = ()
    names: Sequence[str] = ("image",)
    notes: Sequence[str] = ()

    @cached_property
    def grid(self) -> Grid:
        shape = tuple(int(side) for side in self.image.shape)
        spatial, further = (*shape, 1, 1)[:3], shape[3:]
        if any(side != 1 for side in further):
            raise DataError(
                f"an image of shape {shape}: must have three dimensions; slice it to one volume"
            )
        if (kind := np.dtype(self.image.get_data_dtype())).kind not in "buif":
            raise DataError(f"an image of {kind}: must hold real numbers")
        check_volume(spatial, "image")
        if self.image.affine is None or not spans_volume(np.asarray(self.image.affine)):
            raise DataError(
                "an image without a usable affine: give its array of axial slices instead"
            )
        affine = np.array(self.image.affine, np.float64)
        check_shear(affine, "image")
        i, j, k = spatial
        return Grid((i, j, k), affine)

    def read(self) -> np.ndarray:
        voxels = np.asanyarray(self.image.dataobj)
        check_finite(voxels, "image")
        return voxels.reshape(self.grid.shape)


@dataclass
class ArrayCase:
    """Axial slices (S, H, W) by sequence."""

    arrays: Mapping[str, np.ndarray]
    channels: Sequence[str]
    name: str = "volume"
    notes: Sequence[str] = ()
    files: Sequence[Path] = ()
    voxel_millilitres: float | None = None
    assignment: Mapping[str, str] = field(default_factory=dict)

    def read(self) -> Scan:
        return Scan(compose(self.arrays, self.channels), None)

    def write(
        self, folder: Path, mask: np.ndarray, probability: np.ndarray | None, several: bool
    ) -> list[Path]:
        raise NotImplementedError("arrays have no format of their own")


def case_in_memory(images: Images, channels: Sequence[str]) -> InputCase:
    """Return the study of what a caller of `segment` gives. Raises RequestError."""
    try:
        return _study(images, channels)
    except DataError as error:
        raise RequestError(f"images: {error}") from error


def _study(images: Images, channels: Sequence[str]) -> InputCase:
    if isinstance(images, str | Path):
        return _only(str(images), channels)
    if isinstance(images, SpatialImage):
        main = channels[main_channel(channels)]
        return make_case("volume", {main: NibabelVolume(images)}, channels)
    if isinstance(images, np.ndarray | torch.Tensor):
        return ArrayCase(_by_channel(_array(images), channels), channels)
    if isinstance(images, Mapping):
        return _named(images, channels)
    check(
        isinstance(images, Sequence) and not isinstance(images, bytes),
        "images",
        type(images).__name__,
        f"must be {KINDS}, or a list or mapping of these",
    )
    assert isinstance(images, Sequence)
    if len(images) == 1 and isinstance(images[0], str | Path):
        return _only(str(images[0]), channels)
    rule = f"must hold one for each sequence: {', '.join(channels)}"
    check(
        len(images) == len(channels),
        "images",
        f"a list of {len(images)}",
        rule,
        "None stands for a missing one",
    )
    pairs = zip(channels, images, strict=True)
    return _named({name: image for name, image in pairs if image is not None}, channels)


def _only(path: str, channels: Sequence[str]) -> InputCase:
    """Return the one study that a path means."""
    check_input(path)
    studies = find_cases(path, {}, channels)
    check(
        len(studies) == 1,
        "images",
        path,
        f"holds {len(studies)} patients",
        "give the folder of one",
    )
    return studies[0]


def _named(images: Mapping[Any, Any], channels: Sequence[str]) -> InputCase:
    """Return the study of one image for each named sequence, all arrays or all images with a position."""
    check_sequences([str(name) for name in images], channels)
    placed = {
        name: image
        for name, image in images.items()
        if isinstance(image, str | Path | SpatialImage)
    }
    if not placed:
        arrays = {str(name): _array(image) for name, image in images.items()}
        shapes = {array.shape for array in arrays.values()}
        alike = len(shapes) == 1 and len(next(iter(shapes))) == 3
        rule = "must be (slices, height, width), all of one shape"
        check(alike, "images", ", ".join(map(str, sorted(shapes))), rule)
        return ArrayCase(arrays, channels)
    rule = "arrays, and images with a position in the patient; all must be of one kind"
    check(len(placed) == len(images), "images", ", ".join(map(str, images)), rule)
    if all(isinstance(image, str | Path) for image in placed.values()):
        for path in placed.values():
            check_input(str(path))
        return find_cases(
            [str(placed[name]) if name in placed else None for name in channels], {}, channels
        )[0]
    volumes = {
        str(name): NibabelVolume(image, names=(str(name),))
        if isinstance(image, SpatialImage)
        else image_at(Path(image))
        for name, image in placed.items()
    }
    return make_case("volume", volumes, channels)


def _by_channel(array: np.ndarray, channels: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the sequences of an array (S, C, H, W), or (S, H, W) of a checkpoint of one sequence."""
    if array.ndim == 3 and len(channels) == 1:
        array = array[:, None]
    fits = array.ndim == 4 and array.shape[1] == len(channels)
    rule = f"must be (slices, {len(channels)} channels, height, width): {', '.join(channels)}"
    check(fits, "images", array.shape, rule)
    return {name: array[:, index] for index, name in enumerate(channels)}


def _array(image: object) -> np.ndarray:
    """Return an array of real numbers. Raises RequestError for anything else."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        # NumPy has no bfloat16.
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    check(isinstance(image, np.ndarray), "images", type(image).__name__, f"must be {KINDS}")
    assert isinstance(image, np.ndarray)
    check(image.dtype.kind in "buif", "images", image.dtype, "must hold real numbers")
    check(image.size > 0, "images", image.shape, "holds no pixel")
    return image
