"""A synthetic cohort in the layout of the real data, so that the package runs without a download.

A patient is drawn in three dimensions by `anatomy.py`, and then scanned slice by slice with the
properties of its institution.
"""

import hashlib
import json
import math
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from brainseg.config import PhantomConfig
from brainseg.core.errors import DataError, RequestError
from brainseg.data.phantom import anatomy
from brainseg.data.phantom.anatomy import Array, Random, smooth_noise

# Raise this number with any change of a pixel or of what the file stores, so that files of other
# versions are not used again.
VERSION = 2

# Signal of each tissue in pre-contrast, FLAIR and post-contrast.
SIGNAL = {
    "bone": (0.07, 0.09, 0.08),
    "marrow": (0.30, 0.24, 0.32),
    "muscle": (0.30, 0.26, 0.40),
    "fat": (0.86, 0.70, 0.84),
    "air": (0.01, 0.01, 0.01),
    "csf": (0.11, 0.08, 0.12),
    "grey": (0.38, 0.45, 0.41),
    "white": (0.50, 0.37, 0.51),
    "vessel": (0.20, 0.15, 0.95),
    "choroid": (0.36, 0.60, 0.85),
    "gliosis": (0.45, 0.66, 0.46),
    "tumour": (0.34, 0.70, 0.36),
    "necrosis": (0.19, 0.40, 0.21),
    "enhancing": (0.36, 0.66, 0.98),
}


@dataclass(frozen=True)
class Institution:
    """Image properties of an institution."""

    # Factor on each channel.
    gain: tuple[float, float, float]
    # Exponent on the signal. Values above 1 make dark tissue darker.
    contrast: float
    # Standard deviation of the noise, where white matter is about 0.4.
    noise: float
    # Standard deviation of the logarithm of the coil's sensitivity.
    bias: float
    # Standard deviation of the blur in head units.
    blur: float


INSTITUTIONS = {
    "A": Institution((0.62, 0.72, 0.64), 1.20, 0.010, 0.05, 0.004),
    "B": Institution((0.50, 0.52, 0.48), 1.14, 0.013, 0.08, 0.007),
    "C": Institution((0.75, 0.76, 0.70), 1.12, 0.012, 0.06, 0.010),
    "D": Institution((0.55, 0.60, 0.66), 1.24, 0.014, 0.09, 0.005),
}


def institution(index: int) -> str:
    """Return the institution of patient `index`.

    Four consecutive patients come from four institutions, in an order that rotates.
    """
    return "ABCD"[(index + index // 4) % 4]


def patient_names(config: PhantomConfig) -> list[str]:
    """Return the folder names of all patients in the order of their index.

    As in the real data, the second part of a name is the institution and the last part the date.
    """
    return [f"PHANTOM_{institution(i)}_{i:04d}_20000101" for i in range(config.patients)]


def place_head(random: Random, config: PhantomConfig) -> tuple[Array, float]:
    """Return the position of every voxel (3, S, H, W) and the width of a pixel, in head units.

    Size, position and rotation of the head are random.
    """
    length, angle = random.uniform(0.72, 0.90), math.radians(random.normal(0, 6))
    shift, tilt, height = (
        random.normal(0, 0.02, 2),
        random.normal(0, 0.06),
        random.uniform(-0.03, 0.03),
    )
    side = (np.arange(config.size) + 0.5) / config.size * 2 - 1
    z, v, u = np.meshgrid(
        np.linspace(-0.98, 1, config.slices) + height,
        side - shift[0],
        side - shift[1],
        indexing="ij",
    )
    x, y = np.cos(angle) * u + np.sin(angle) * v, np.sin(angle) * u - np.cos(angle) * v
    return np.stack([x / length, y / length + tilt * z, z]).astype(
        np.float32
    ), 2 / config.size / length


def simulate_scan(
    random: Random, look: Institution, signal: Array, pixel: float
) -> NDArray[np.uint8]:
    """Return images uint8 (S, H, W, 3) of a signal (3, S, H, W).

    The scan simulates coil, contrast, blur and Rician noise (Gudbjartsson 1995).
    """
    from scipy.ndimage import gaussian_filter1d

    signal = signal * (1 + 0.03 * smooth_noise(random, signal.shape[1:], (8, 24, 24)))
    channels = []
    for channel, gain in zip(signal, look.gain, strict=True):
        coil = np.exp(
            look.bias * random.uniform(0.5, 1.2) * smooth_noise(random, channel.shape, (1, 2, 2))
        )
        sharp = (
            channel ** (look.contrast * random.uniform(0.95, 1.05))
            * coil
            * gain
            * math.exp(random.normal(0, 0.12))
        )
        for axis in (1, 2):
            sharp = gaussian_filter1d(sharp, max(look.blur / pixel, 0.35), axis)
        real, imaginary = look.noise * random.standard_normal((2, *channel.shape), dtype=np.float32)
        channels.append(np.hypot(sharp + real, imaginary))
    return np.clip(255 * np.stack(channels, -1), 0, 255).round().astype(np.uint8)


def make_patient(config: PhantomConfig, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the images (S, H, W, 3) and masks (S, H, W) of patient `index`, both uint8.

    Masks contain 0 and 255. The patient depends on (config.seed, index, config.size, config.slices)
    alone, so that a larger cohort begins with the same patients.
    """
    random = np.random.default_rng((config.seed, index))
    point, pixel = place_head(random, config)
    centre, radius = anatomy.tumour_centre(random, point)
    outside, inside = anatomy.skull_and_face(random, point, pixel)
    layers, cerebrum, white = anatomy.brain(
        random, anatomy.displace(random, point, centre, radius), inside, pixel
    )
    mask, level = anatomy.tumour(random, point, pixel, centre, radius, cerebrum, white)
    layers += [
        ("gliosis", anatomy.lesions(random, point, pixel) * cerebrum * white),
        *anatomy.tumour_layers(random, mask, level),
    ]
    signal = np.full((3, *mask.shape), 0.004, np.float32)
    for tissue, share in outside + layers:
        for channel, value in zip(signal, SIGNAL[tissue], strict=True):
            channel += share * (value - channel)
    images = simulate_scan(random, INSTITUTIONS[institution(index)], signal, pixel)
    # In every fifth patient a sequence is missing and FLAIR replaces it. Post-contrast is missing
    # twice as often as pre-contrast.
    if index % 5 == 3:
        images[..., 0 if index // 5 % 3 == 1 else 2] = images[..., 1]
    return images, mask.astype(np.uint8) * 255


def write_cohort(config: PhantomConfig, folder: str | Path) -> Path:
    """Write the cohort as `<folder>/<name>/<name>_<n>.tif` and `..._<n>_mask.tif`, n from 1.

    The folder appears only when all files are written. Raises DataError if `folder` already exists.
    """
    import tifffile

    folder = Path(folder)
    if folder.exists():
        raise DataError(f"{folder}: the folder is already there; choose a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent
    ) as partial:
        root = Path(partial) / folder.name
        for index, name in enumerate(
            tqdm(patient_names(config), "phantom cohort", unit="patient", disable=None)
        ):
            (root / name).mkdir(parents=True)
            for n, (image, mask) in enumerate(
                zip(*make_patient(config, index), strict=True), start=1
            ):
                tifffile.imwrite(
                    root / name / f"{name}_{n}.tif",
                    image,
                    photometric="rgb",
                    metadata=None,
                    software=False,
                )
                tifffile.imwrite(
                    root / name / f"{name}_{n}_mask.tif",
                    mask,
                    photometric="minisblack",
                    metadata=None,
                    software=False,
                )
        os.replace(root, folder)
    return folder


def cohort_file(config: PhantomConfig) -> Path:
    """Return the path of the cohort's HDF5 file, which need not exist.

    The key in its name is a hash of VERSION and of every setting but the folder.
    """
    settings = {name: value for name, value in asdict(config).items() if name != "folder"}
    key = hashlib.sha256(
        json.dumps({**settings, "version": VERSION}, sort_keys=True).encode()
    ).hexdigest()[:10]
    return Path(config.folder) / f"phantom-{key}.h5"


def ensure_cohort(config: PhantomConfig) -> Path:
    """Return the path of the cohort's HDF5 file, which is made on first use.

    If several processes call this function at once, one of them makes the file. Its slices are
    beside the file in `phantom-<key>/kaggle_3m`. Raises RequestError if the folder cannot be
    written.
    """
    output = cohort_file(config)
    if output.is_file():
        return output
    # Readers of other formats take half a second to import, and only the first use needs them.
    from brainseg.data.conversion import convert

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(output.with_suffix(".lock")):
            source = output.with_suffix("") / "kaggle_3m"
            if not source.is_dir():
                write_cohort(config, source)
            if not output.is_file():
                convert(source, output, workers=1)
    except OSError as error:
        reason = f"{error.strerror}; choose a folder that can be written"
        raise RequestError(
            f"data.phantom.folder={config.folder}: the cohort cannot be written there: {reason}"
        ) from error
    return output
