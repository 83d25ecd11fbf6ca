"""Cases of images in memory (arrays, tensors and nibabel images) for `brainseg.segment`."""

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
from brainseg.data.cases.input_case import InputCase, check_sequences, compose, make_case
from brainseg.data.imageio.base import check_finite, check_shear, check_volume, spans_volume
from brainseg.data.imageio.grid import Grid
from brainseg.data.readers.base import Scan
from brainseg.data.volume import main_channel

Image = str | Path | np.ndarray | torch.Tensor | SpatialImage | None
Images = Image | Sequence[Image] | Mapping[str, Image]
KINDS = "a path, an array, a torch tensor or a nibabel image"


@dataclass(frozen=True)
class NibabelVolume:
    """An `ImageVolume` of a nibabel image, in memory or not yet read from its file."""

    image: Any
    files: Sequence[Path] = ()
    names: Sequence[str] = ("image",)
    notes: Sequence[str] = ()

    @cached_property
    def grid(self) -> Grid:
        """Return the grid of the image. Raises DataError."""
        shape = tuple(int(side) for side in self.image.shape)
        # Trailing dimensions of length 1 are dropped. An image of one slice may have only two.
        spatial, extra_sides = (*shape, 1, 1)[:3], shape[3:]
        if any(side != 1 for side in extra_sides):
            raise DataError(
                f"an image of shape {shape}: must have three dimensions; slice it to one volume"
            )
        if (kind := np.dtype(self.image.get_data_dtype())).kind not in "buif":
            raise DataError(f"an image of {kind}: must hold real numbers")
        check_volume(spatial, "image")
        if self.image.affine is None or not spans_volume(np.asarray(self.image.affine)):
            raise DataError(
                "an image without a usable affine; give its array of axial slices instead"
            )
        affine = np.array(self.image.affine, np.float64)
        check_shear(affine, "image")
        i, j, k = spatial
        return Grid((i, j, k), affine)

    def read(self) -> np.ndarray:
        """Return finite real numbers (i, j, k). Raises DataError."""
        voxels = np.asanyarray(self.image.dataobj)
        check_finite(voxels, "image")
        return voxels.reshape(self.grid.shape)


@dataclass
class ArrayCase:
    """A case of arrays: axial slices (S, H, W) of each sequence."""

    arrays: Mapping[str, np.ndarray]
    channels: Sequence[str]
    name: str = "volume"
    notes: Sequence[str] = ()
    files: Sequence[Path] = ()
    voxel_millilitres: float | None = None
    assignment: Mapping[str, str] = field(default_factory=dict)

    def read(self) -> Scan:
        """Return images uint8 (S, C, H, W). Raises DataError."""
        return Scan(compose(self.arrays, self.channels), None)

    def write(
        self, folder: Path, mask: np.ndarray, probability: np.ndarray | None, is_multiclass: bool
    ) -> list[Path]:
        """Raise NotImplementedError, because arrays belong to no file format."""
        raise NotImplementedError("arrays have no format of their own")


def case_in_memory(images: Images, channels: Sequence[str]) -> InputCase:
    """Return the case of the images that a caller of `segment` passes. Raises RequestError."""
    try:
        return _make_case(images, channels)
    except DataError as error:
        raise RequestError(f"images: {error}") from error


def _make_case(images: Images, channels: Sequence[str]) -> InputCase:
    """Return the case of `images`. Raises RequestError, DataError."""
    if isinstance(images, str | Path):
        return _case_at_path(str(images), channels)
    if isinstance(images, SpatialImage):
        main = channels[main_channel(channels)]
        return make_case("volume", {main: NibabelVolume(images)}, channels)
    if isinstance(images, np.ndarray | torch.Tensor):
        return ArrayCase(_by_channel(_array(images), channels), channels)
    if isinstance(images, Mapping):
        return _case_by_sequence(images, channels)
    check(
        isinstance(images, Sequence) and not isinstance(images, bytes),
        "images",
        type(images).__name__,
        f"must be {KINDS}, or a list or mapping of these",
    )
    assert isinstance(images, Sequence)
    if len(images) == 1 and isinstance(images[0], str | Path):
        return _case_at_path(str(images[0]), channels)
    rule = f"must hold one for each sequence: {', '.join(channels)}"
    check(
        len(images) == len(channels),
        "images",
        f"a list of {len(images)}",
        rule,
        "None stands for a missing one",
    )
    pairs = zip(channels, images, strict=True)
    images_by_name = {name: image for name, image in pairs if image is not None}
    return _case_by_sequence(images_by_name, channels)


def _case_at_path(path: str, channels: Sequence[str]) -> InputCase:
    """Return the only case at a path. Raises RequestError if there are several."""
    check_input(path)
    cases = find_cases(path, {}, channels)
    rule = f"holds {len(cases)} patients"
    check(len(cases) == 1, "images", path, rule, "give the folder of one patient")
    return cases[0]


def _case_by_sequence(images: Mapping[Any, Any], channels: Sequence[str]) -> InputCase:
    """Return the case of images by sequence, which are all arrays or all placed in the patient.

    Raises RequestError, DataError.
    """
    check_sequences([str(name) for name in images], channels)
    placed = {
        name: image
        for name, image in images.items()
        if isinstance(image, str | Path | SpatialImage)
    }
    if not placed:
        arrays = {str(name): _array(image) for name, image in images.items()}
        shapes = {array.shape for array in arrays.values()}
        has_one_shape = len(shapes) == 1 and len(next(iter(shapes))) == 3
        rule = "must be (slices, height, width), all of one shape"
        check(has_one_shape, "images", ", ".join(map(str, sorted(shapes))), rule)
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
    """Return the sequences of an array (S, C, H, W), or (S, H, W) for a single channel.

    Raises RequestError.
    """
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
    check(image.size > 0, "images", image.shape, "holds no pixels")
    return image
