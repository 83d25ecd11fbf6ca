"""Settings of the commands other than train."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from brainseg.config.data import DataConfig, SplitConfig
from brainseg.config.fields import check_choice, check_names, check_range, setting
from brainseg.config.model import ModelConfig
from brainseg.config.train import PREDICTIONS, DeviceConfig
from brainseg.core.errors import check
from brainseg.core.uris import contains_password, split_uri
from brainseg.weights import DEFAULT

# Several commands share these help texts.
CHECKPOINT = (
    "checkpoint file, run folder, runs:/ID, models:/NAME@ALIAS, or lgg, the trained network of "
    "this package"
)
CLINICAL = (
    "CSV file with a column Patient, such as data.csv of the public dataset; its columns are "
    "added to the failure analysis"
)


def check_storage(storage: str) -> None:
    """Raise RequestError unless a study can be stored there. Nothing is opened."""
    rule = "must be sqlite, journal:FILE or postgresql://USER@HOST/DATABASE"
    parts = split_uri("storage", storage, rule)
    has_password, hidden = contains_password(parts), f"{parts.scheme}://..."
    is_complete = (
        storage == "sqlite"
        or (storage.startswith("journal:") and len(storage) > len("journal:"))
        or (storage.startswith("postgresql://") and len(parts.path) > 1)
    )
    check(is_complete, "storage", hidden if has_password else storage, rule)
    check(
        not has_password,
        "storage",
        hidden,
        "must not contain a password, which other users of this machine could read",
        "write it to the password file of PostgreSQL, ~/.pgpass or PGPASSFILE",
    )


@dataclass
class SearchConfig:
    """Settings of `brainseg.search`.

    All other overrides are passed to `TrainConfig`, so the two may have no field name in common.
    """

    study: str | None = setting(None, "name of the Optuna study; null: the name of the space")
    space: str | None = setting(
        None,
        "search space: a file of conf/search or your own YAML file; null: the space given by "
        "overrides, or quick",
    )
    storage: str = setting(
        "sqlite",
        "where the study is kept: sqlite (runs/search/STUDY.db), journal:FILE on a disk that "
        "several machines share, or postgresql://USER@HOST/DATABASE",
    )
    workers: int = setting(
        1,
        "number of processes that share the trials; with hydra/launcher=submitit_slurm each is a "
        "job of the cluster",
    )
    trials: int = setting(20, "total number of trials of the study, over all starts and processes")
    hours: float | None = setting(
        None, "hours after which this command begins no further trial; null: no limit"
    )
    random_trials: int = setting(
        10, "number of random trials before TPE proposes settings from earlier results"
    )
    # The sampler has a seed of its own, because `seed` is the seed of the runs.
    sampler_seed: int = setting(
        0, "random seed of the proposals; independent of seed, which is used by the runs"
    )
    prune: str = setting(
        "median",
        "median: stop a trial whose val/dice stays below the median of the others at the same "
        "epoch; none: no pruning",
    )
    prune_after: int = setting(5, "number of finished trials before pruning starts")
    # The first epochs say little about the final score.
    prune_warmup: int = setting(
        3,
        "epochs, or tenths of the run with max_minutes or max_steps, before a trial can be pruned",
    )

    def __post_init__(self) -> None:
        is_plain = self.study is None or (
            self.study.isascii() and self.study.replace("-", "").replace("_", "").isalnum()
        )
        rule = "is part of file names, so only letters, digits, - and _ are allowed"
        check(is_plain, "study", self.study, rule)
        check_storage(self.storage)
        check_range("workers", self.workers, 1, 1024)
        check_range("trials", self.trials, 1)
        check_range("hours", self.hours, 0)
        check_range("random_trials", self.random_trials, 1)
        check_range("sampler_seed", self.sampler_seed, 0, 2**32 - 1)
        check_choice("prune", self.prune, ("median", "none"))
        check_range("prune_after", self.prune_after, 1)
        check_range("prune_warmup", self.prune_warmup, 1)


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


@dataclass
class InferenceOverride:
    """Settings of `InferenceConfig`, in which null stands for the value of the checkpoint."""

    threshold: float | None = setting(
        None, "probability from which a pixel is tumour; null: value of the checkpoint"
    )
    flips: str | None = setting(
        None,
        "test-time augmentation: none, horizontal, vertical, both; null: value of the checkpoint",
    )
    components: str | None = setting(
        None,
        "3-D connected components kept: all, largest, min_volume; null: value of the checkpoint",
    )
    min_volume: int | None = setting(
        None, "smallest component kept, in voxels; null: value of the checkpoint"
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


@dataclass
class InputConfig:
    """Settings of the network's input, for weights stored without a config."""

    channel: str | None = setting(
        None,
        "MRI sequence that the network takes, such as FLAIR; null: all three of the public dataset",
    )
    context: int = setting(0, "adjacent slices on each side, as additional channels (2.5D)")

    def __post_init__(self) -> None:
        check_range("data.context", self.context, 0, 16)


@dataclass
class PredictConfig:
    """Settings of `brainseg.predict`."""

    checkpoint: Any = setting(DEFAULT, f"{CHECKPOINT}; a list is an ensemble")
    input: Any = setting(
        MISSING,
        "slices, TIFF stack, image file, or folder of them; a list gives one file per MRI "
        "sequence, in the order of the checkpoint",
    )
    output: str = setting("predictions", "folder to write to")
    sequences: dict[str, str] = setting(
        {},
        "file, subfolder, DICOM series or pattern of each MRI sequence, for example "
        "sequences.FLAIR=NAME",
    )
    volume: int | None = setting(
        None, "number of the volume to read from files with several volumes, counted from 1"
    )
    probabilities: bool = setting(False, "also write the probabilities")
    overlays: bool = setting(True, "draw each study, and a contact sheet of all studies")
    viewer: int = setting(
        20,
        "number of studies in viewer.html: worst, median and best cases, or without scores the "
        "largest tumours; 0: no viewer",
    )
    batch_size: int = setting(8, "number of slices per batch")
    data: InputConfig = setting(InputConfig, "the network's input, for weights stored without it")
    model: ModelConfig = setting(ModelConfig, "the network, for weights stored without it")
    device: DeviceConfig = setting(DeviceConfig, "device and precision")
    inference: InferenceOverride = setting(InferenceOverride, "null: as in the checkpoint")

    def __post_init__(self) -> None:
        check_range("batch_size", self.batch_size, 1)
        check_range("viewer", self.viewer, 0, 1000)
        self.checkpoint = check_names("checkpoint", self.checkpoint)
        is_valid = bool(self.paths) and all(isinstance(path, str) and path for path in self.paths)
        check(
            is_valid,
            "input",
            self.input,
            "must be a path, or a list of paths",
            "write for example input=[pre.nii.gz,flair.nii.gz,post.nii.gz]",
        )
        check(
            isinstance(self.sequences, dict),
            "sequences",
            self.sequences,
            "must assign files to the names of sequences",
            "write for example sequences.FLAIR=flair.nii.gz",
        )
        for name, path in self.sequences.items():
            # YAML reads a folder name such as 5 as a number, while paths are text.
            is_text = isinstance(path, str | int | float) and str(path) != ""
            check(
                is_text,
                f"sequences.{name}",
                path,
                "must be the name of a file, subfolder or series",
            )
            self.sequences[name] = str(path)
        check(
            self.volume is None or self.volume >= 1,
            "volume",
            self.volume,
            "must be at least 1",
            "volumes are counted from 1",
        )

    @property
    def paths(self) -> list[str]:
        """Files and folders of `input`, without the nulls that stand for missing sequences."""
        return (
            [path for path in self.input if path is not None]
            if isinstance(self.input, list)
            else [self.input]
        )

    @property
    def data_config(self) -> DataConfig:
        """The input settings as a `DataConfig`."""
        return DataConfig(channel=self.data.channel, context=self.data.context)


@dataclass
class CompareTrackingConfig:
    """Settings of experiment tracking in `brainseg.compare`."""

    name: str = setting("mlflow", "mlflow, none")
    uri: str | None = setting(
        None, "URI of the MLflow server or database; null: the one that the runs used"
    )
    experiment: str | None = setting(None, "MLflow experiment of which all runs are compared")

    def __post_init__(self) -> None:
        check_choice("tracking.name", self.name, ("mlflow", "none"))


@dataclass
class CompareConfig:
    """Settings of `brainseg.compare`."""

    runs: list[str] | None = setting(
        None, "run folders, parent folders of runs, or MLflow IDs; the first run is the baseline"
    )
    sweep: str | None = setting(None, "ID of a sweep as it was printed, or last")
    baseline: str | None = setting(
        None,
        "run, or name in the table, with which the others are compared; null: the first of runs, "
        "or the best run",
    )
    root: str = setting("runs", "folder in which runs and sweeps are searched for")
    clinical: str | None = setting(None, CLINICAL)
    output: str | None = setting(
        None, "folder to write to; null: the folder of the sweep, or comparisons/NAME"
    )
    viewer: int = setting(
        20, "number of patients in viewer.html: worst, median and best cases; 0: no viewer"
    )
    tracking: CompareTrackingConfig = setting(CompareTrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        # OmegaConf accepts a list within a list here.
        is_flat = all(isinstance(run, str) for run in self.runs or ())
        check(
            is_flat,
            "runs",
            self.runs,
            "must be a list of names",
            "write for example runs=[runs/A,runs/B]",
        )
        check_range("viewer", self.viewer, 0, 1000)


@dataclass
class RegisterTrackingConfig:
    """Settings of experiment tracking in `brainseg.register`."""

    uri: str | None = setting(
        None,
        "URI of the MLflow server or database; null: the one that the run used, or "
        "MLFLOW_TRACKING_URI, or mlflow.db in the current folder",
    )


@dataclass
class RegisterConfig:
    """Settings of `brainseg.register`."""

    run: str = setting(MISSING, "folder or MLflow ID of a finished run, or runs:/ID")
    name: str = setting(
        MISSING, "name in MLflow's model registry; the first run registered there is version 1"
    )
    alias: str | None = setting(
        "best", "alias for this version, taken away from any other version; null: none"
    )
    tracking: RegisterTrackingConfig = setting(RegisterTrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        for setting_name, value in (("name", self.name), ("alias", self.alias or "x")):
            is_plain = (
                value.isascii()
                and value.replace("-", "").replace("_", "").replace(".", "").isalnum()
            )
            check(
                is_plain or value == MISSING,
                setting_name,
                value,
                "is part of models:/NAME@ALIAS, so only letters, digits, -, _ and . are allowed",
            )
        alias = self.alias or ""
        is_reserved = alias.lower() == "latest" or (alias[:1] in "vV" and alias[1:].isdigit())
        check(
            not is_reserved,
            "alias",
            alias,
            "MLflow reserves latest, v1, v2 ...",
            "choose another alias, such as best",
        )


@dataclass
class UiTrackingConfig:
    """Settings of experiment tracking in `brainseg.ui`."""

    uri: str | None = setting(
        None,
        "URI of the MLflow server or database; null: MLFLOW_TRACKING_URI, or mlflow.db in the "
        "current folder",
    )


@dataclass
class UiConfig:
    """Settings of `brainseg.ui`."""

    port: int = setting(5000, "first port to try; the next free port is used")
    browser: bool = setting(True, "open the page in a browser, if this machine has a display")
    tracking: UiTrackingConfig = setting(UiTrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        check_range("port", self.port, 1, 65535)


@dataclass
class ExportConfig:
    """Settings of `brainseg.export`."""

    checkpoint: str = setting(MISSING, CHECKPOINT)
    format: str = setting("onnx", "onnx, or pt2 (torch.export)")
    output: str = setting(MISSING, "file to write, such as unet.onnx or unet.pt2")
    data: InputConfig = setting(InputConfig, "the network's input, for weights stored without it")
    model: ModelConfig = setting(ModelConfig, "the network, for weights stored without it")

    def __post_init__(self) -> None:
        check_choice("format", self.format, ("onnx", "pt2"))
        has_suffix = self.output == MISSING or self.output.endswith(f".{self.format}")
        check(
            has_suffix,
            "output",
            self.output,
            f"format={self.format} writes a file that ends in .{self.format}",
            "choose another name, or another format",
        )
