"""Write the volumes of a prepared file in the layout of nnU-Net v2."""

from pathlib import Path

import nibabel
import numpy as np

from brainseg.core.files import write_json
from brainseg.data.split import Split
from brainseg.data.store import Store

DATASET = "Dataset001_LGG"
# The archive has no pixel sizes. Slices lie much further apart than pixels, so that nnU-Net takes
# the slices for its 2-D network.
SPACING = (1.0, 1.0, 5.0)


def export(store: Store, split: Split, raw: Path) -> None:
    """Write training volumes with masks, and test volumes without, below `raw`/DATASET."""
    folder = raw / DATASET
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    count = 0
    for volume, patient in zip(store.volumes, store.patients, strict=True):
        rows = store.rows_of(volume)
        is_training = patient in split.train
        if not is_training and patient not in split.test:
            continue
        images = folder / ("imagesTr" if is_training else "imagesTs")
        pixels = store.images(*rows)
        for channel in range(len(store.channels)):
            write_volume(images / f"{volume}_{channel:04d}.nii.gz", pixels[:, channel])
        if is_training:
            write_volume(folder / "labelsTr" / f"{volume}.nii.gz", store.masks(*rows)[:, 0])
            count += 1
    names = {str(index): name for index, name in enumerate(store.channels)}
    labels = {"background": 0, "tumour": 1}
    facts = {"channel_names": names, "labels": labels, "numTraining": count}
    write_json(folder / "dataset.json", {**facts, "file_ending": ".nii.gz"})


def write_volume(path: Path, slices: np.ndarray) -> None:
    """Write slices (S, H, W) as a NIfTI file with the axes (W, H, S)."""
    nibabel.save(nibabel.Nifti1Image(slices.T, np.diag([*SPACING, 1.0])), path)
