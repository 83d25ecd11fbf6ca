"""Settings of the commands besides train."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from brainseg.config.data import DataConfig, SplitConfig
from brainseg.config.fields import check_choice, check_names, check_range, setting
from brainseg.config.model import ModelConfig
from brainseg.config.train import PREDICTIONS, DeviceConfig
from brainseg.core.errors import check


@dataclass
class SearchConfig:
    """What every other name on the command line means, `TrainConfig` says; so no name may be in both."""

    study: str | None = setting(None, "name of the study; null: that of the space")
    space: str | None = setting(
        None,
        "what is varied: a file of conf/search, or a YAML file of your own; null: what is typed, else quick",
    )
    trials: int = setting(20, "trials in all, earlier starts and other processes included")
    random_trials: int = setting(
        10, "trials drawn at random before those found good guide the next (TPE)"
    )
    sampler_seed: int = setting(
        0, "seed of the proposals; apart from seed, which is that of the runs"
    )
    prune: str = setting(
        "median",
        "median: end a trial whose val/dice stays below the median of the others at its epoch; none",
    )
    prune_after: int = setting(5, "trials that must have finished before one is pruned")
    prune_warmup: int = setting(
        3,
        "epochs of each trial, under max_minutes tenths of it, before it may be pruned: the first say little",
    )

    def __post_init__(self) -> None:
        named = self.study is None or (
            self.study.isascii() and self.study.replace("-", "").replace("_", "").isalnum()
        )
        check(named, "study", self.study, "names files, so letters, digits, - and _ only")
        check_range("trials", self.trials, 1)
        check_range("random_trials", self.random_trials, 1)
        check_range("sampler_seed", self.sampler_seed, 0, 2**32 - 1)
        check_choice("prune", self.prune, ("median", "none"))
        check_range("prune_after", self.prune_after, 1)
        check_range("prune_warmup", self.prune_warmup, 1)


@dataclass
class PrepareConfig:
    source: str = setting(MISSING, "folder of the cohort")
    output: str = setting(MISSING, "HDF5 file to write")
    reader: str | None = setting(
        None,
        "layout: kaggle_3m, nifti, nnunet, bids, brats, images, or a registered name; null: recognised",
    )
    sequences: dict[str, str] = setting(
        {},
        "nifti, bids, images: pattern of each sequence's files, as sequences.FLAIR='*_flair.nii.gz'",
    )
    images: str | None = setting(
        None, "images: pattern of the slices, as 'images/{patient}_{slice}.png'"
    )
    mask: str | None = setting(None, "nifti, bids, images: pattern of the masks, as '*_seg.nii.gz'")
    channels: list[str] | None = setting(
        None, "images: names of the colours red, green, blue, or of grey, as channels"
    )
    classes: dict[str, Any] = setting(
        {},
        "values in the masks of each class, as classes.tumour=[1,2,4]; {}: the format's, else 0 and 1",
    )
    onto: str | None = setting(
        None,
        "sequence onto whose grid others and the mask are resampled; null: other grids are faults",
    )
    spacing: float | None = setting(
        None, "pixel size in mm that slices are resampled to in plane; null: as they are"
    )
    size: Any = setting(
        None,
        "pixels that slices are cut or padded to at the centre, as 256 or [256,224]; null: as they are",
    )
    on_fault: str = setting(
        "error", "error, or skip_patient to leave patients with faults out, by name"
    )
    on_duplicate: str = setting(
        "error",
        "the same scan under two patients' names: error, or keep_together to make them one patient",
    )
    workers: int | None = setting(None, "processes; null: all cores")

    def __post_init__(self) -> None:
        check_choice("on_fault", self.on_fault, ("error", "skip_patient"))
        check_choice("on_duplicate", self.on_duplicate, ("error", "keep_together"))
        check_range("workers", self.workers, 1)
        check_range("spacing", self.spacing, 0.05, 50)
        sides = self.size if isinstance(self.size, list) else [self.size] * 2
        # A setting of any type holds a number as the text that was typed.
        sides = [
            int(side) if isinstance(side, str) and side.isdecimal() else side for side in sides
        ]
        fits = len(sides) == 2 and all(type(side) is int and 8 <= side <= 4096 for side in sides)
        rule = "must be a side from 8 to 4096, or two, height and width"
        check(self.size is None or fits, "size", self.size, rule, "as 256 or [256,224]")
        self.size = None if self.size is None else sides


@dataclass
class InferenceOverride:
    """As InferenceConfig, but null keeps what the checkpoint was selected with."""

    threshold: float | None = setting(
        None, "probability from which a pixel is tumour; null: the checkpoint's"
    )
    flips: str | None = setting(None, "average with mirrored images; null: the checkpoint's")
    components: str | None = setting(None, "3-D components kept; null: the checkpoint's")
    min_volume: int | None = setting(None, "voxels that a component needs; null: the checkpoint's")


@dataclass
class PhantomOverride:
    """The settings of `PhantomConfig`, where null stands for the checkpoint's own, or for the default."""

    patients: int | None = setting(None, "number of synthetic patients; null: the checkpoint's")
    slices: int | None = setting(None, "slices of each patient; null: the checkpoint's")
    size: int | None = setting(
        None, "height and width of a slice in pixels; null: the checkpoint's"
    )
    seed: int | None = setting(None, "which cohort is drawn; null: the checkpoint's")
    folder: str | None = setting(
        None, "where the cohort is written once and found again; null: the checkpoint's"
    )


@dataclass
class DataOverride:
    """The settings of `DataConfig`, where null stands for the checkpoint's own."""

    name: str | None = setting(
        None, "phantom, or hdf5 for a file made by brainseg.prepare; null: the checkpoint's"
    )
    path: str | None = setting(
        None, "HDF5 file made by brainseg.prepare; null: the checkpoint's data"
    )
    volume: str | None = setting(
        None, "one channel by name (as FLAIR), for weights that do not carry it"
    )
    context: int | None = setting(
        None, "neighbouring slices on each side, for weights that do not carry it"
    )
    limit_patients: int | None = setting(
        None, "use only the first patients by name; null: as in training, and of other data all"
    )
    resident: str = setting("auto", "slices are held in memory: under yes alone (auto, yes, no)")
    phantom: PhantomOverride = setting(PhantomOverride, "the synthetic cohort")

    def __post_init__(self) -> None:
        if self.name is not None:
            check_choice("data.name", self.name, ("phantom", "hdf5"))
        needs_path = self.name == "hdf5" and self.path is None
        remedy = "set data.path=FILE, made by brainseg.prepare"
        check(not needs_path, "data.path", "null", "data=hdf5 needs a file", remedy)
        check_range("data.context", self.context, 0, 16)
        check_range("data.limit_patients", self.limit_patients, 1)
        check_choice("data.resident", self.resident, ("auto", "yes", "no"))


@dataclass
class EvaluateConfig:
    checkpoint: Any = setting(
        MISSING,
        "path of a checkpoint or run folder, runs:/ID or models:/NAME@ALIAS; a list is an ensemble",
    )
    output: str | None = setting(
        None, "folder to write to; null: evaluations/ and the checkpoint's name"
    )
    parts: list[str] = setting(
        ["test"], "which parts of the split are evaluated: train, validation, test"
    )
    batch_size: int = setting(8, "slices of a forward pass")
    clinical: str | None = setting(
        None,
        "CSV with a column Patient, as data.csv of the public set: its columns join the failure analysis",
    )
    leaky: bool = setting(
        False,
        "score an ensemble also on patients that some of its members saw; the summary says so",
    )
    overlays: bool = setting(True, "draw the best, median and worst patient")
    viewer: int = setting(20, "patients in viewer.html, the most telling ones; 0: no such page")
    predictions: str = setting(
        "masks", "kept of each patient, in predictions.h5: none, masks, probabilities"
    )
    data: DataOverride = setting(
        DataOverride, "the slices; null: those that the checkpoint was trained on"
    )
    split: SplitConfig | None = setting(
        None, "null: the split that the checkpoint was trained under"
    )
    model: ModelConfig = setting(ModelConfig, "the network, for weights that do not carry it")
    device: DeviceConfig = setting(DeviceConfig, "where and in which precision")
    inference: InferenceOverride = setting(InferenceOverride, "null: as in the checkpoint")

    def __post_init__(self) -> None:
        check_range("batch_size", self.batch_size, 1)
        check_range("viewer", self.viewer, 0, 1000)
        check_choice("predictions", self.predictions, PREDICTIONS)
        self.checkpoint = check_names("checkpoint", self.checkpoint)
        for part in self.parts:
            check_choice("parts", part, ("train", "validation", "test"))


@dataclass
class SeenConfig:
    volume: str | None = setting(
        None, "the one channel that it takes, by name; null: all three of the public set"
    )
    context: int = setting(0, "neighbouring slices on each side, as further channels")

    def __post_init__(self) -> None:
        check_range("data.context", self.context, 0, 16)


@dataclass
class PredictConfig:
    checkpoint: Any = setting(
        MISSING,
        "path of a checkpoint or run folder, runs:/ID or models:/NAME@ALIAS; a list is an ensemble",
    )
    input: Any = setting(
        MISSING,
        "slices, TIFF stack, image file, or folder of them; a list: one a sequence, in the checkpoint's order",
    )
    output: str = setting("predictions", "folder to write to")
    sequences: dict[str, str] = setting(
        {}, "which file, subfolder or DICOM series is which, as sequences.FLAIR=NAME, or a pattern"
    )
    volume: int | None = setting(
        None, "of files that hold several volumes the one with this number, from 1"
    )
    probabilities: bool = setting(False, "write the probabilities, too")
    overlays: bool = setting(True, "draw each study, and a contact sheet of all")
    viewer: int = setting(20, "studies in viewer.html, the most telling ones; 0: no such page")
    batch_size: int = setting(8, "slices of a forward pass")
    data: SeenConfig = setting(SeenConfig, "what the network sees, for weights that do not say it")
    model: ModelConfig = setting(ModelConfig, "the network, for weights that do not carry it")
    device: DeviceConfig = setting(DeviceConfig, "where and in which precision")
    inference: InferenceOverride = setting(InferenceOverride, "null: as in the checkpoint")

    def __post_init__(self) -> None:
        check_range("batch_size", self.batch_size, 1)
        check_range("viewer", self.viewer, 0, 1000)
        self.checkpoint = check_names("checkpoint", self.checkpoint)
        named = bool(self.paths) and all(isinstance(path, str) and path for path in self.paths)
        check(
            named,
            "input",
            self.input,
            "must be a path, or a list of paths",
            "as input=[pre.nii.gz,flair.nii.gz,post.nii.gz]",
        )
        check(
            isinstance(self.sequences, dict),
            "sequences",
            self.sequences,
            "must name sequences",
            "as sequences.FLAIR=flair.nii.gz",
        )
        for name, path in self.sequences.items():
            # A folder named by a number is text, whatever YAML takes it for.
            text = isinstance(path, str | int | float) and str(path)
            check(
                bool(text),
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
        """Files and folders of `input`, less what is missing."""
        return (
            [path for path in self.input if path is not None]
            if isinstance(self.input, list)
            else [self.input]
        )

    @property
    def data_config(self) -> DataConfig:
        return DataConfig(volume=self.data.volume, context=self.data.context)


@dataclass
class CompareTrackingConfig:
    name: str = setting("mlflow", "mlflow, none")
    uri: str | None = setting(None, "tracking server; null: that of the runs")
    experiment: str | None = setting(None, "compare all runs of this MLflow experiment")

    def __post_init__(self) -> None:
        check_choice("tracking.name", self.name, ("mlflow", "none"))


@dataclass
class CompareConfig:
    runs: list[str] | None = setting(
        None, "run folders, folders of them, or MLflow ids; the first is the baseline"
    )
    sweep: str | None = setting(None, "a sweep's id as it was printed, or last")
    baseline: str | None = setting(
        None, "run, or name in the table, to compare with; null: the first of runs, else the best"
    )
    root: str = setting("runs", "where runs and sweeps are looked for")
    clinical: str | None = setting(
        None,
        "CSV with a column Patient, as data.csv of the public set: its columns join the failure analysis",
    )
    output: str | None = setting(
        None, "folder to write to; null: that of the sweep, else comparisons/NAME"
    )
    viewer: int = setting(20, "patients in viewer.html, the most telling ones; 0: no such page")
    tracking: CompareTrackingConfig = setting(CompareTrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        names = all(
            isinstance(run, str) for run in self.runs or ()
        )  # OmegaConf lets lists in lists through
        check(names, "runs", self.runs, "must be a list of names", "as runs=[runs/A,runs/B]")
        check_range("viewer", self.viewer, 0, 1000)


@dataclass
class RegisterTrackingConfig:
    uri: str | None = setting(
        None,
        "tracking server; null: that of the run, else MLFLOW_TRACKING_URI, else mlflow.db here",
    )


@dataclass
class RegisterConfig:
    run: str = setting(MISSING, "folder or MLflow id of a finished run, or runs:/ID")
    name: str = setting(
        MISSING, "name in MLflow's model registry; the first run registered under it is version 1"
    )
    alias: str | None = setting(
        "best", "alias that the version gets, and another loses; null: none"
    )
    tracking: RegisterTrackingConfig = setting(RegisterTrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        for setting_name, value in (("name", self.name), ("alias", self.alias or "x")):
            plain = (
                value.isascii()
                and value.replace("-", "").replace("_", "").replace(".", "").isalnum()
            )
            check(
                plain or value == MISSING,
                setting_name,
                value,
                "is part of models:/NAME@ALIAS, so letters, digits, -, _ and . only",
            )
        alias = self.alias or ""
        free = alias.lower() != "latest" and not (alias[:1] in "vV" and alias[1:].isdigit())
        check(
            free,
            "alias",
            alias,
            "MLflow keeps latest, v1, v2 ... for itself",
            "choose another, as best",
        )


@dataclass
class ExportConfig:
    checkpoint: str = setting(
        MISSING, "path of a checkpoint or run folder, runs:/ID or models:/NAME@ALIAS"
    )
    format: str = setting("onnx", "onnx, or pt2: torch's exported program")
    output: str = setting(MISSING, "file to write, as unet.onnx or unet.pt2")
    data: SeenConfig = setting(
        SeenConfig, "what the network takes in, for weights that do not carry it"
    )
    model: ModelConfig = setting(ModelConfig, "the network, for weights that do not carry it")

    def __post_init__(self) -> None:
        check_choice("format", self.format, ("onnx", "pt2"))
        named = self.output == MISSING or self.output.endswith(f".{self.format}")
        check(
            named,
            "output",
            self.output,
            f"format={self.format} is a file that ends in .{self.format}",
        )
