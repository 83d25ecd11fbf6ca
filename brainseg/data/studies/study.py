"""What the readers of single scans share: a study is what one mask belongs to.

Axes: S slices from bottom to top, C channels, H W height and width, K outputs of the network. Whatever the source's own
orientation is, `read` gives axial slices with the face up, as in the public set, and `write` puts the mask back on the source's grid.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from brainseg.data.intensity import to_uint8
from brainseg.data.reader import Scan, check_images
from brainseg.errors import DataError, check

LARGEST_VOLUME = 2**28  # voxels of a sequence, as 1024 slices of 512 x 512: 2 GB while it is stretched to eight bits


class Study(Protocol):
    """One scan, found and judged by its headers, not yet read."""

    @property
    def name(self) -> str:
        """Of its folder of results."""

    @property
    def channels(self) -> Sequence[str]:
        """Of what `read` gives."""

    @property
    def notes(self) -> Sequence[str]:
        """What its user should know, a line each."""

    @property
    def files(self) -> Sequence[Path]:
        """All that a prediction and its score depend on."""

    @property
    def given(self) -> Sequence[str]:
        """The sequences that the files hold, in the files' order: the same files may be taken for others."""

    def read(self) -> Scan:
        """Images uint8 (S, C, H, W), masks (S, H, W) or None, spacing in mm or None. Raises DataError, OSError."""

    def write(self, folder: Path, mask: np.ndarray, probability: np.ndarray | None, several: bool) -> list[Path]:
        """Write class indices uint8 (S, H, W), and a probability float32 (S, K, H, W) if given, in the source's format.

        `several`: there is more than one foreground class. Returns the files. Raises OSError.
        """


def compose(sequences: Mapping[str, np.ndarray], channels: Sequence[str]) -> np.ndarray:
    """Images uint8 (S, C, H, W) from one array (S, H, W) a sequence; FLAIR stands in for a missing one, as in the public set.

    Each is stretched to eight bits by itself, as `prepare` does it. Raises DataError for values that are not finite.
    """
    stretched = {}
    for name, images in sequences.items():
        check_images(images[:, None], [name])
        stretched[name] = to_uint8(images[:, None])
    return np.concatenate([stretched[name] if name in stretched else stretched["FLAIR"] for name in channels], axis=1)


def check_sequences(given: Sequence[str], channels: Sequence[str]) -> None:
    """Raise RequestError for a sequence that the checkpoint does not know, or a missing one that nothing can stand in for."""
    known = ", ".join(channels)
    for name in given:
        check(name in channels, "sequences", name, "the checkpoint knows no such sequence", f"known: {known}")
    stands_in = "FLAIR" in given or set(channels) <= set(given)
    check(stands_in, "input", ", ".join(given), f"the checkpoint needs {known}, and only FLAIR can stand in for another",
          "give FLAIR at least, as sequences.FLAIR=FILE")


def check_volume(shape: Sequence[int], place: object) -> None:
    """Refuse a size that a header claims before a pixel is read. Raises DataError."""
    voxels = int(np.prod([int(side) for side in shape], dtype=object))
    if not 0 < voxels <= LARGEST_VOLUME:
        size = " x ".join(map(str, shape))
        raise DataError(f"{place}: its header says {size} voxels; at most {LARGEST_VOLUME:,} are read")
