"""Settings of brainseg.prepare."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from brainseg.config.fields import check_choice, check_range, setting
from brainseg.core.errors import check


@dataclass
class PrepareConfig:
    """Settings of `brainseg.prepare`."""

    source: str = setting(MISSING, "folder of the dataset")
    output: str = setting(MISSING, "HDF5 file to write")
    reader: str | None = setting(
        None,
        "layout of the folder: kaggle_3m, nifti, nnunet, bids, brats, images, or a registered "
        "name; null: detected automatically",
    )
    sequences: dict[str, str] = setting(
        {},
        "for nifti, bids, images: file name pattern of each MRI sequence, for example "
        "sequences.FLAIR='*_flair.nii.gz'",
    )
    images: str | None = setting(
        None, "for images: file name pattern of the slices, such as 'images/{patient}_{slice}.png'"
    )
    mask: str | None = setting(
        None, "for nifti, bids, images: file name pattern of the masks, such as '*_seg.nii.gz'"
    )
    channels: list[str] | None = setting(
        None, "for images: channel names of the colours red, green, blue, or of grey"
    )
    classes: dict[str, Any] = setting(
        {},
        "mask values of each class, for example classes.tumour=[1,2,4]; {}: those of the format, "
        "or 0 and 1",
    )
    onto: str | None = setting(
        None,
        "MRI sequence to whose grid the others and the mask are resampled; null: different grids "
        "are errors",
    )
    spacing: float | None = setting(
        None, "in-plane pixel size in mm to which slices are resampled; null: unchanged"
    )
    size: Any = setting(
        None,
        "height and width in pixels to which slices are cropped or padded around the centre, "
        "such as 256 or [256,224]; null: unchanged",
    )
    on_fault: str = setting(
        "error", "if a patient has faults: error, or skip_patient (leave the patient out)"
    )
    on_duplicate: str = setting(
        "error",
        "if two patients have the same scan: error, or keep_together (treat them as one patient)",
    )
    workers: int | None = setting(None, "number of processes; null: all cores")

    def __post_init__(self) -> None:
        check_choice("on_fault", self.on_fault, ("error", "skip_patient"))
        check_choice("on_duplicate", self.on_duplicate, ("error", "keep_together"))
        check_range("workers", self.workers, 1)
        check_range("spacing", self.spacing, 0.05, 50)
        sides = self.size if isinstance(self.size, list) else [self.size] * 2
        # A setting of type Any holds a typed number as text.
        sides = [
            int(side) if isinstance(side, str) and side.isdecimal() else side for side in sides
        ]
        # bool is a subclass of int, so isinstance would accept true.
        fits = len(sides) == 2 and all(type(side) is int and 8 <= side <= 4096 for side in sides)
        rule = "must be a side from 8 to 4096, or two, height and width"
        check(
            self.size is None or fits, "size", self.size, rule, "write for example 256 or [256,224]"
        )
        self.size = None if self.size is None else sides
