"""A cohort in a layout of one's own: 4 channels, 3 classes, a folder of arrays a patient; and what registers code by entry points."""

import tomllib
from pathlib import Path

import numpy as np

CHANNELS = ("T1", "T1c", "T2", "FLAIR")
CLASSES = ("background", "oedema", "core")
SPACING = (5.0, 1.0, 0.5)


def volume(index: int, slices: int = 4, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Images int16 (S, 4, H, W), from -300 to 4,000 or so, and masks (S, H, W): a disc of oedema with a core, bright in T2 and T1c."""
    random = np.random.default_rng(index)
    z, y, x = np.meshgrid(np.arange(slices), *[np.arange(size)] * 2, indexing="ij")
    centre, radius = random.uniform(0.35, 0.65, 2) * size, random.uniform(0.16, 0.24) * size
    distance = np.hypot(y - centre[0], x - centre[1]) + 3 * abs(z - slices // 2)
    masks = (distance < radius).astype(np.int64) + (distance < radius / 2)
    bright = np.array(
        [[0, 0, 0], [0, 0, 1500], [0, 1500, 1500], [0, 1200, 600]]
    )  # channel by class
    images = 1000 + bright[:, masks].swapaxes(0, 1) + random.normal(0, 200, (slices, 4, size, size))
    return images.astype(np.int16), masks


def write_arrays(source: Path, patients: int = 6, **options: int) -> Path:
    """`<source>/case_<n>/{T1,T1c,T2,FLAIR,mask}.npy`, each (S, H, W)."""
    for index in range(patients):
        folder = source / f"case_{index:03d}"
        folder.mkdir(parents=True)
        images, masks = volume(index, **options)
        for channel, name in enumerate(CHANNELS):
            np.save(folder / f"{name}.npy", images[:, channel])
        np.save(folder / "mask.npy", masks)
    return source


def write_niftis(arrays: Path, target: Path) -> Path:
    """The same volumes as NIfTI, by nibabel: `<target>/case_<n>/{T1,...,mask}.nii.gz`, axes (x, y, z), `SPACING` in the affine.

    Every second patient is stored the other way round: x to the right and y to the front (RAS) instead of left and back (LPS).
    """
    import nibabel

    for path in sorted(arrays.glob("*/*.npy")):
        out = target / path.parent.name / f"{path.stem}.nii.gz"
        out.parent.mkdir(parents=True, exist_ok=True)
        values = np.load(path).astype(np.int16).transpose(2, 1, 0)
        x, y, z = SPACING[::-1]
        turned = int(path.parent.name.rsplit("_", 1)[-1]) % 2 == 1
        values, affine = (
            (values[::-1, ::-1], [x, y, z, 1.0]) if turned else (values, [-x, -y, z, 1.0])
        )
        nibabel.save(nibabel.Nifti1Image(values, np.diag(affine)), out)
    return target


def install(folder: Path, pyproject: str) -> None:
    """Register the entry points of a pyproject.toml as `pip install` would, for modules that lie in `folder`, which must be on the path."""
    project = tomllib.loads(pyproject)["project"]
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
