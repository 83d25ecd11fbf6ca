"""Settings of brainseg.evaluate and brainseg.verify, which score a trained network again."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from brainseg.config.data import SplitConfig
from brainseg.config.fields import check_choice, check_names, check_range, setting
from brainseg.config.model import ModelConfig
from brainseg.config.predict import CHECKPOINT, InferenceOverride
from brainseg.config.train import PREDICTIONS, DeviceConfig
from brainseg.core.errors import check

# evaluate and compare share this help text.
CLINICAL = (
    "CSV file with a column Patient, such as data.csv of the public dataset; its columns are "
    "added to the failure analysis"
)


@dataclass
class PhantomOverride:
    """Settings of `PhantomConfig`. Null stands for the value of the checkpoint, or the default."""

    patients: int | None = setting(
        None, "number of synthetic patients; null: value of the checkpoint"
    )
    slices: int | None = setting(
        None, "number of slices per patient; null: value of the checkpoint"
    )
    size: int | None = setting(
        None, "height and width of a slice in pixels; null: value of the checkpoint"
    )
    seed: int | None = setting(
        None, "random seed of the synthetic dataset; null: value of the checkpoint"
    )
    folder: str | None = setting(
        None, "folder in which the dataset is stored and reused; null: value of the checkpoint"
    )


@dataclass
class DataOverride:
    """Settings of `DataConfig`, in which null stands for the value of the checkpoint."""

    name: str | None = setting(
        None,
        "phantom, or hdf5 for a file written by brainseg.prepare; null: value of the checkpoint",
    )
    path: str | None = setting(
        None, "HDF5 file written by brainseg.prepare; null: the data of the checkpoint"
    )
    channel: str | None = setting(
        None, "MRI sequence to use, such as FLAIR, for weights stored without it"
    )
    context: int | None = setting(
        None, "adjacent slices on each side, for weights stored without this number"
    )
    limit_patients: int | None = setting(
        None,
        "use only the first N patients in order of their names; null: as in training, or all "
        "patients of other data",
    )
    resident: str = setting(
        "auto", "keep the slices in memory: auto, yes, no; here only yes keeps them"
    )
    phantom: PhantomOverride = setting(PhantomOverride, "the synthetic dataset")

    def __post_init__(self) -> None:
        if self.name is not None:
            check_choice("data.name", self.name, ("phantom", "hdf5"))
        needs_path = self.name == "hdf5" and self.path is None
        remedy = "set data.path=FILE, a file written by brainseg.prepare"
        check(not needs_path, "data.path", "null", "data=hdf5 needs a file", remedy)
        check_range("data.context", self.context, 0, 16)
        check_range("data.limit_patients", self.limit_patients, 1)
        check_choice("data.resident", self.resident, ("auto", "yes", "no"))


@dataclass
class EvaluateTrackingConfig:
    """Settings of experiment tracking in `brainseg.evaluate`."""

    name: str = setting("mlflow", "mlflow, none")
    uri: str | None = setting(
        None,
        "URI of the MLflow server or database; null: the one that the evaluated run is in, and "
        "none if it is in none",
    )

    def __post_init__(self) -> None:
        check_choice("tracking.name", self.name, ("mlflow", "none"))


@dataclass
class EvaluateConfig:
    """Settings of `brainseg.evaluate`."""

    checkpoint: Any = setting(MISSING, f"{CHECKPOINT}; a list is an ensemble")
    output: str | None = setting(
        None, "folder to write to; null: evaluations/ and the name of the checkpoint"
    )
    parts: list[str] = setting(
        ["test"], "subsets of the split to evaluate: train, validation, test"
    )
    batch_size: int = setting(8, "number of slices per batch")
    clinical: str | None = setting(None, CLINICAL)
    leaky: bool = setting(
        False,
        "score an ensemble also on patients on which some of its members were trained; the "
        "summary reports this",
    )
    overlays: bool = setting(True, "draw the best, median and worst patient")
    viewer: int = setting(
        20, "number of patients in viewer.html: worst, median and best cases; 0: no viewer"
    )
    predictions: str = setting(
        "masks", "content of predictions.h5 for each patient: none, masks, probabilities"
    )
    data: DataOverride = setting(
        DataOverride, "the slices; null: the data on which the checkpoint was trained"
    )
    split: SplitConfig | None = setting(
        None, "null: the split with which the checkpoint was trained"
    )
    model: ModelConfig = setting(ModelConfig, "the network, for weights stored without it")
    device: DeviceConfig = setting(DeviceConfig, "device and precision")
    inference: InferenceOverride = setting(InferenceOverride, "null: as in the checkpoint")
    tracking: EvaluateTrackingConfig = setting(EvaluateTrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        check_range("batch_size", self.batch_size, 1)
        check_range("viewer", self.viewer, 0, 1000)
        check_choice("predictions", self.predictions, PREDICTIONS)
        self.checkpoint = check_names("checkpoint", self.checkpoint)
        for subset in self.parts:
            check_choice("parts", subset, ("train", "validation", "test"))


@dataclass
class VerifyDataConfig:
    """Settings of the data in `brainseg.verify`."""

    path: str | None = setting(
        None, "HDF5 file written by brainseg.prepare; null: the data of the run, at their place"
    )


@dataclass
class VerifyConfig:
    """Settings of `brainseg.verify`."""

    run: str = setting(MISSING, "folder or MLflow ID of a finished run")
    tolerance: float = setting(
        0.0,
        "largest accepted difference of a score from the stored one; 0 on the same machine with "
        "the same number of threads, about 0.001 on another one",
    )
    data: VerifyDataConfig = setting(VerifyDataConfig, "the slices")

    def __post_init__(self) -> None:
        check_range("tolerance", self.tolerance, 0, 1)
