"""Settings of the slices, and of the split into training, validation and test patients."""

import re
from dataclasses import dataclass

from omegaconf import MISSING

from brainseg.config.fields import check_choice, check_range, setting
from brainseg.core.errors import check

SPLITS = ("holdout", "kfold", "file", "all", "reference")


@dataclass
class PhantomConfig:
    """Settings of the synthetic dataset."""

    patients: int = setting(32, "number of synthetic patients")
    slices: int = setting(16, "number of slices per patient")
    size: int = setting(128, "height and width of a slice in pixels")
    seed: int = setting(0, "random seed of the synthetic dataset")
    folder: str = setting("data", "folder in which the dataset is stored and reused")

    def __post_init__(self) -> None:
        check_range(
            "data.phantom.patients",
            self.patients,
            3,
            10_000,
            remedy="training, validation and test need a patient each",
        )
        check_range("data.phantom.slices", self.slices, 4, 1000)
        check_range("data.phantom.size", self.size, 32, 1024)
        check_range("data.phantom.seed", self.seed, 0)


@dataclass
class DataConfig:
    """Settings of the dataset and of the slices that a run uses."""

    name: str = setting("phantom", "phantom, or hdf5 for a file written by brainseg.prepare")
    path: str | None = setting(None, "HDF5 file written by brainseg.prepare; replaces the phantom")
    channel: str | None = setting(
        None, "MRI sequence to use, such as FLAIR; null: all sequences of the file"
    )
    context: int = setting(0, "adjacent slices on each side, as additional channels (2.5D)")
    context_step: str = setting(
        "1", "distance of these slices: a number of slices, or auto for about 1/24 of the volume"
    )
    intensity: str = setting(
        "percentile",
        "intensity that becomes 1: percentile (99th of the volume) or median (three times that of "
        "the head); 0 is the 10th percentile",
    )
    window: str = setting(
        "none",
        "part of each slice that is trained on, centred on the patient's head: none, auto, or "
        "HEIGHTxWIDTH in pixels; validation, test and prediction use complete slices",
    )
    limit_patients: int | None = setting(
        None, "use only the first N patients in order of their names; null: all"
    )
    tumour_share: float | None = setting(
        None,
        "foreground oversampling: fraction of slices with tumour in an epoch; null: "
        "each slice once per epoch",
    )
    even_patients: bool = setting(
        False, "draw equally many slices from each patient, instead of each slice equally often"
    )
    resident: str = setting(
        "auto",
        "keep the slices in memory: yes, no, or auto (if they fit); the results are identical; "
        "evaluate keeps them only with yes",
    )
    phantom: PhantomConfig = setting(PhantomConfig, "the synthetic dataset")

    def __post_init__(self) -> None:
        check_choice("data.name", self.name, ("phantom", "hdf5"))
        needs_path = self.name == "hdf5" and self.path is None
        check(
            not needs_path,
            "data.path",
            "null",
            "data=hdf5 needs a file",
            "set data.path=FILE, a file written by brainseg.prepare",
        )
        check_range("data.context", self.context, 0, 16)
        check(
            self.context_step == "auto" or self.context_step in map(str, range(1, 17)),
            "data.context_step",
            self.context_step,
            "must be auto or a whole number from 1 to 16",
        )
        check_choice("data.intensity", self.intensity, ("percentile", "median"))
        check(
            self.window in ("none", "auto")
            or re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.window) is not None,
            "data.window",
            self.window,
            "must be none, auto or HEIGHTxWIDTH in pixels",
            "for example data.window=224x192",
        )
        check_range("data.limit_patients", self.limit_patients, 1)
        check_range("data.tumour_share", self.tumour_share, 0, 1)
        check_choice("data.resident", self.resident, ("auto", "yes", "no"))


@dataclass
class SplitConfig:
    """Settings that all splits share."""

    name: str = setting("holdout", "how patients are assigned to training, validation and test")
    # The split has a seed of its own, so that repeats with other values of `seed` train and test
    # on the same patients.
    seed: int = setting(
        0, "random seed of the split; independent of seed, so that repeats keep their patients"
    )

    def __post_init__(self) -> None:
        check_choice("split.name", self.name, SPLITS)
        check_range("split.seed", self.seed, 0)


@dataclass
class HoldoutConfig(SplitConfig):
    """Settings of a single split."""

    name: str = setting("holdout", "one split by patient, stratified by institution")
    train: float = setting(0.70, "fraction of patients used for training")
    validation: float = setting(
        0.15, "fraction of patients used to select the best epoch; 0: keep the last epoch"
    )
    test: float = setting(0.15, "fraction of patients held out for the final score")

    def __post_init__(self) -> None:
        super().__post_init__()
        for subset in ("train", "validation", "test"):
            check_range(f"split.{subset}", getattr(self, subset), 0, 1)
        total = self.train + self.validation + self.test
        # Decimal fractions such as 0.7 + 0.15 + 0.15 do not add up to 1 exactly.
        check(
            abs(total - 1) < 1e-6,
            "split.train+validation+test",
            round(total, 6),
            "the shares must add up to 1",
            "set all three, for example split.train=0.7 split.validation=0.15 split.test=0.15",
        )


@dataclass
class KFoldConfig(SplitConfig):
    """Settings of a cross-validation."""

    name: str = setting("kfold", "cross-validation: each fold in turn is the test set")
    folds: int = setting(5, "number of folds")
    fold: int = setting(0, "fold used as test set, counted from 0")
    validation: str = setting(
        "next",
        "next: the next fold selects the best epoch; none: train on all other folds and keep the "
        "last epoch",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(
            "split.folds",
            self.folds,
            2 if self.validation == "none" else 3,
            remedy="training, validation and test need a fold each",
        )
        check_range("split.fold", self.fold, 0, self.folds - 1, "folds are counted from 0")
        check_choice("split.validation", self.validation, ("next", "none"))


@dataclass
class FileSplitConfig(SplitConfig):
    """Settings of a split that is listed in a file."""

    name: str = setting("file", "patients listed in a JSON file under train, validation and test")
    path: str = setting(MISSING, "JSON file with the lists train, validation and test")
    unlisted: str = setting(
        "error", "patients of the data that are in no list: error or leave_out, which uses none"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("split.unlisted", self.unlisted, ("error", "leave_out"))
