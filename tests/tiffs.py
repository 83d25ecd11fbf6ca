"""Tiny folders of TIFF slices in the layout of the real data."""

from pathlib import Path

import numpy as np
import tifffile


def write_volume(source: Path, name: str, slices: int = 3, size: int = 16, seed: int = 0) -> Path:
    """A sound volume whose middle slices have tumour; returns its folder."""
    rng = np.random.default_rng([seed, *name.encode()])
    for number in range(1, slices + 1):
        mask = np.zeros((size, size), np.uint8)
        mask[4:8, 5:11] = 255 * (1 < number < slices)
        write_slice(source, name, number, rng.integers(0, 256, (size, size, 3), np.uint8), mask)
    return source / name


def write_slice(
    source: Path,
    name: str,
    number: int | str,
    image: np.ndarray | None,
    mask: np.ndarray | None,
    **options: object,
) -> None:
    """One slice (H, W, 3) and its mask (H, W); None leaves the file out."""
    folder = source / name
    folder.mkdir(parents=True, exist_ok=True)
    if image is not None:
        colours = "rgb" if image.ndim == 3 and image.shape[2] == 3 else "minisblack"
        tifffile.imwrite(
            folder / f"{name}_{number}.tif", image, photometric=colours, metadata=None, **options
        )
    if mask is not None:
        tifffile.imwrite(folder / f"{name}_{number}_mask.tif", mask, metadata=None, **options)


def write_cohort(source: Path, patients: int = 3) -> Path:
    """A sound cohort; returns its folder."""
    for patient in range(patients):
        write_volume(source, f"TCGA_AA_{patient:04d}_2001010{patient + 1}", slices=3 + patient % 2)
    return source


def write_clinical(source: Path) -> None:
    """A data.csv as the public set's, for the patients of a folder."""
    names = sorted(folder.name.rsplit("_", 1)[0] for folder in source.iterdir() if folder.is_dir())
    rows = [f"{name},{1 + number % 2},{30 + number}" for number, name in enumerate(names)]
    (source / "data.csv").write_text(
        "\n".join(["Patient,neoplasm_histologic_grade,age_at_initial_pathologic", *rows]) + "\n"
    )
