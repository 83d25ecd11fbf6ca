"""Settings of the slices, and of who is in which part."""

from dataclasses import dataclass

from omegaconf import MISSING

from brainseg.config.fields import check_choice, check_range, setting
from brainseg.core.errors import check

SPLITS = ("holdout", "kfold", "file", "all", "reference")


@dataclass
class PhantomConfig:
    patients: int = setting(32, "number of synthetic patients")
    slices: int = setting(16, "slices of each patient")
    size: int = setting(128, "height and width of a slice in pixels")
    seed: int = setting(0, "which cohort is drawn")
    folder: str = setting("data", "where the cohort is written once and found again")

    def __post_init__(self) -> None:
        check_range(
            "data.phantom.patients",
            self.patients,
            3,
            10_000,
            remedy="each part of a split needs a patient",
        )
        check_range("data.phantom.slices", self.slices, 4, 1000)
        check_range("data.phantom.size", self.size, 32, 1024)
        check_range("data.phantom.seed", self.seed, 0)


@dataclass
class DataConfig:
    name: str = setting("phantom", "phantom, or hdf5 for a file made by brainseg.prepare")
    path: str | None = setting(None, "HDF5 file made by brainseg.prepare; overrides the phantom")
    volume: str | None = setting(None, "one channel by name (as FLAIR), or null for all")
    context: int = setting(0, "neighbouring slices on each side, as further channels")
    limit_patients: int | None = setting(None, "use only the first patients by name")
    tumour_share: float | None = setting(
        None, "share of tumour slices in an epoch; null: every slice once"
    )
    resident: str = setting(
        "auto",
        "slices are held in memory: auto, yes, no (the same batches either way); evaluate: under yes alone",
    )
    phantom: PhantomConfig = setting(PhantomConfig, "the synthetic cohort")

    def __post_init__(self) -> None:
        check_choice("data.name", self.name, ("phantom", "hdf5"))
        needs_path = self.name == "hdf5" and self.path is None
        check(
            not needs_path,
            "data.path",
            "null",
            "data=hdf5 needs a file",
            "set data.path=FILE, made by brainseg.prepare",
        )
        check_range("data.context", self.context, 0, 16)
        check_range("data.limit_patients", self.limit_patients, 1)
        check_range("data.tumour_share", self.tumour_share, 0, 1)
        check_choice("data.resident", self.resident, ("auto", "yes", "no"))


@dataclass
class SplitConfig:
    name: str = setting("holdout", "how patients are dealt to training, validation and test")
    seed: int = setting(0, "seed of the draw; apart from seed, so that repeats keep their patients")

    def __post_init__(self) -> None:
        check_choice("split.name", self.name, SPLITS)
        check_range("split.seed", self.seed, 0)


@dataclass
class HoldoutConfig(SplitConfig):
    name: str = setting("holdout", "one split by patient, balanced over institutions")
    train: float = setting(0.70, "share of patients trained on")
    validation: float = setting(0.15, "share of patients that select the best epoch")
    test: float = setting(0.15, "share of patients held back for the score")

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in ("train", "validation", "test"):
            check_range(f"split.{part}", getattr(self, part), 0, 1)
        total = self.train + self.validation + self.test
        check(
            abs(total - 1) < 1e-6,
            "split.train+validation+test",
            round(total, 6),
            "the shares must add up to 1",
            "set all three, as split.train=0.7 split.validation=0.15 split.test=0.15",
        )


@dataclass
class KFoldConfig(SplitConfig):
    name: str = setting("kfold", "cross-validation: test = fold, validation = the next fold")
    folds: int = setting(5, "number of folds")
    fold: int = setting(0, "the fold tested, counted from 0")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(
            "split.folds", self.folds, 3, remedy="training, validation and test need a fold each"
        )
        check_range("split.fold", self.fold, 0, self.folds - 1, "folds are counted from 0")


@dataclass
class FileSplitConfig(SplitConfig):
    name: str = setting("file", "names from a JSON file with the lists train, validation, test")
    path: str = setting(MISSING, "the JSON file")
