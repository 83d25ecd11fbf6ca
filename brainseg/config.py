"""Every setting: its type, its default, what it means and which values it takes.

Hydra composes `conf/*.yaml` onto these dataclasses; `OmegaConf.to_object` then builds them, and each `__post_init__` refuses
an impossible value in one line. Checks that need the data (does the file exist, can the image take this depth) are in
`train.check`. A setting that changes no number of a run is listed in `NOT_IDENTITY`.
"""

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from brainseg.errors import RequestError, check

NOT_IDENTITY = ("output", "resume", "force", "dry_run", "test", "predictions", "tracking", "checkpoint", "data.path", "data.resident",
                "data.phantom.folder", "rerun", "device.on_missing")
SPLITS = ("holdout", "kfold", "file", "all", "reference")
PREDICTIONS = ("none", "masks", "probabilities")
SCHEDULERS = ("none", "step", "cosine", "one_cycle", "plateau")


def setting(default: Any, meaning: str) -> Any:
    """A dataclass field with its help text; lists and dicts are copied for each instance."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata={"help": meaning})
    if isinstance(default, type):
        return field(default_factory=default, metadata={"help": meaning})
    return field(default=default, metadata={"help": meaning})


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    check(value in choices, name, value, f"must be one of {', '.join(choices)}")


def check_range(name: str, value: float | None, low: float, high: float = math.inf, remedy: str = "") -> None:
    """Refuse a number outside [low, high] or not finite; None (not set) passes."""
    if value is None:
        return
    finite = isinstance(value, int) or math.isfinite(value)  # math.isfinite fails on a whole number of 400 digits
    rule = f"must be at least {low}{'' if finite else ' and finite'}" if high == math.inf else f"must lie between {low} and {high}"
    check(finite and low <= value <= high, name, value, rule, remedy)


def check_names(setting: str, value: Any) -> list[str]:
    """A name, or a list of names, as a list; anything else is refused."""
    names = value if isinstance(value, list) else [value]
    check(bool(names) and all(isinstance(name, str) and name for name in names), setting, value, "must be a name, or a list of names")
    return names


@dataclass
class PhantomConfig:
    patients: int = setting(32, "number of synthetic patients")
    slices: int = setting(16, "slices of each patient")
    size: int = setting(128, "height and width of a slice in pixels")
    seed: int = setting(0, "which cohort is drawn")
    folder: str = setting("data", "where the cohort is written once and found again")

    def __post_init__(self) -> None:
        check_range("data.phantom.patients", self.patients, 3, 10_000, remedy="each part of a split needs a patient")
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
    tumour_share: float | None = setting(None, "share of tumour slices in an epoch; null: every slice once")
    resident: str = setting("auto", "hold the part's slices in memory: auto, yes, no (the same batches either way)")
    phantom: PhantomConfig = setting(PhantomConfig, "the synthetic cohort")

    def __post_init__(self) -> None:
        check_choice("data.name", self.name, ("phantom", "hdf5"))
        needs_path = self.name == "hdf5" and self.path is None
        check(not needs_path, "data.path", "null", "data=hdf5 needs a file", "set data.path=FILE, made by brainseg.prepare")
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
        check(abs(total - 1) < 1e-6, "split.train+validation+test", round(total, 6), "the shares must add up to 1")


@dataclass
class KFoldConfig(SplitConfig):
    name: str = setting("kfold", "cross-validation: test = fold, validation = the next fold")
    folds: int = setting(5, "number of folds")
    fold: int = setting(0, "the fold tested, counted from 0")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("split.folds", self.folds, 3, remedy="training, validation and test need a fold each")
        check_range("split.fold", self.fold, 0, self.folds - 1, "folds are counted from 0")


@dataclass
class FileSplitConfig(SplitConfig):
    name: str = setting("file", "names from a JSON file with the lists train, validation, test")
    path: str = setting(MISSING, "the JSON file")


@dataclass
class ModelConfig:
    name: str = setting("unet", "unet, a class of monai.networks.nets, or a name registered under brainseg.models")
    options: dict[str, Any] = setting({}, "further arguments of a model that is not unet")


@dataclass
class UNetConfig(ModelConfig):
    name: str = setting("unet", "U-Net of any depth and width")
    depth: int = setting(4, "resolution levels; depth - 1 poolings")
    width: int = setting(32, "features of the first level")
    growth: int = setting(1, "factor on the features from level to level: 1 or 2")
    max_width: int | None = setting(None, "cap on the features of a level")
    norm: str = setting("batch", "batch, instance, group or none")
    dropout: float = setting(0.0, "probability that a feature map is dropped, at every level")

    def __post_init__(self) -> None:
        check_range("model.depth", self.depth, 1, 12)
        check_range("model.width", self.width, 1, 4096)
        check_choice("model.growth", str(self.growth), ("1", "2"))
        check_range("model.max_width", self.max_width, self.width, remedy="a cap below model.width would cut the first level")
        check_choice("model.norm", self.norm, ("batch", "instance", "group", "none"))
        check(0 <= self.dropout < 1, "model.dropout", self.dropout, "must lie in [0, 1)")


@dataclass
class LossConfig:
    name: str = setting("bce_dice", "dice, bce_dice, a class of monai.losses, or a name registered under brainseg.losses")
    options: dict[str, Any] = setting({}, "arguments of the loss, as smooth or per_sample")


@dataclass
class OptimizerConfig:
    name: str = setting("adamw", "a class of torch.optim by its name in any case, as adamw")
    lr: float = setting(1e-3, "learning rate, before the schedule")
    weight_decay: float | None = setting(None, "weight decay; null: torch's default")
    options: dict[str, Any] = setting({}, "further arguments, as momentum or betas")

    def __post_init__(self) -> None:
        check_range("optimizer.lr", self.lr, 0, remedy="1e-4 is the reference's")
        check_range("optimizer.weight_decay", self.weight_decay, 0)


@dataclass
class SchedulerConfig:
    name: str = setting("none", "how the learning rate goes over the run")

    def __post_init__(self) -> None:
        check_choice("scheduler.name", self.name, SCHEDULERS)


@dataclass
class StepConfig(SchedulerConfig):
    name: str = setting("step", "drops at given epochs")
    epochs: list[int] = setting([30], "epochs from which the rate is dropped")
    factor: float = setting(0.1, "factor of each drop")

    def __post_init__(self) -> None:
        super().__post_init__()
        for epoch in self.epochs:
            check_range("scheduler.epochs", epoch, 1)
        check_range("scheduler.factor", self.factor, 0, 1)


@dataclass
class CosineConfig(SchedulerConfig):
    name: str = setting("cosine", "half a cosine down, after a linear warm-up")
    warmup: float = setting(0.05, "share of the steps spent warming up")
    final: float = setting(0.0, "last rate as a share of optimizer.lr")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("scheduler.warmup", self.warmup, 0, 0.9)
        check_range("scheduler.final", self.final, 0, 1)


@dataclass
class OneCycleConfig(SchedulerConfig):
    name: str = setting("one_cycle", "up, then far down (Smith 2018)")
    warmup: float = setting(0.3, "share of the steps spent rising")
    start: float = setting(0.04, "first rate as a share of optimizer.lr")
    final: float = setting(4e-6, "last rate as a share of optimizer.lr")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("warmup", "start", "final"):
            check_range(f"scheduler.{name}", getattr(self, name), 0, 1)


@dataclass
class PlateauConfig(SchedulerConfig):
    name: str = setting("plateau", "drops when val/dice has not risen")
    patience: int = setting(5, "validations without a rise before a drop")
    factor: float = setting(0.1, "factor of each drop")
    final: float = setting(1e-3, "lowest rate as a share of optimizer.lr")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("scheduler.patience", self.patience, 0)
        check_range("scheduler.factor", self.factor, 0, 1)
        check_range("scheduler.final", self.final, 0, 1)


@dataclass
class AugmentConfig:
    flip: float = setting(0.0, "probability of a left-right flip")
    rotate: float = setting(0.0, "largest rotation in degrees")
    scale: float = setting(0.0, "largest relative change of size, as 0.1")
    shift: float = setting(0.0, "largest shift as a share of the image")
    gamma: float = setting(0.0, "largest change of the logarithm of gamma, as 0.2")
    contrast: float = setting(0.0, "largest relative change of contrast, per channel")
    brightness: float = setting(0.0, "largest shift of intensity, per channel")
    noise: float = setting(0.0, "largest standard deviation of Gaussian noise")
    missing: float = setting(0.0, "probability that a sequence is missing, each by itself; FLAIR then stands in, as in such patients")

    def __post_init__(self) -> None:
        check_range("augment.flip", self.flip, 0, 1)
        check_range("augment.missing", self.missing, 0, 1)
        check_range("augment.rotate", self.rotate, 0, 180)
        for name in ("scale", "shift", "gamma", "contrast", "brightness", "noise"):
            check_range(f"augment.{name}", getattr(self, name), 0, 0.9)


@dataclass
class DeviceConfig:
    name: str = setting("auto", "auto, cpu, cuda (as cuda:1), mps")
    precision: str = setting("auto", "auto, float32, bfloat16, float16")
    channels_last: bool = setting(True, "memory format NHWC: the faster one for convolutions on these devices")
    compile: bool = setting(False, "torch.compile the model")
    threads: int | None = setting(None, "CPU threads; bits depend on their number; null: torch's choice, or a parallel launcher's share")
    on_missing: str = setting("error", "a device that is not there: error refuses the request, skip leaves that job of a sweep out")

    def __post_init__(self) -> None:
        check_choice("device.precision", self.precision, ("auto", "float32", "bfloat16", "float16"))
        check_range("device.threads", self.threads, 1, 1024)
        check_choice("device.on_missing", self.on_missing, ("error", "skip"))


@dataclass
class InferenceConfig:
    threshold: float = setting(0.5, "probability from which a pixel is tumour; of several classes the most probable one is taken")
    flips: str = setting("none", "average with mirrored images: none, horizontal, vertical, both")
    components: str = setting("all", "3-D components kept of each class: all, largest, min_volume")
    min_volume: int = setting(0, "voxels that a component needs under components=min_volume")

    def __post_init__(self) -> None:
        check_range("inference.threshold", self.threshold, 0, 1)
        check_choice("inference.flips", self.flips, ("none", "horizontal", "vertical", "both"))
        check_choice("inference.components", self.components, ("all", "largest", "min_volume"))
        check_range("inference.min_volume", self.min_volume, 0)


@dataclass
class CheckpointConfig:
    every_minutes: float | None = setting(10.0, "save in the middle of an epoch after so many minutes")
    every_steps: int | None = setting(None, "save in the middle of an epoch after so many steps")
    keep: str = setting("best", "what a finished run keeps: best, all")

    def __post_init__(self) -> None:
        check_range("checkpoint.every_minutes", self.every_minutes, 0)
        check_range("checkpoint.every_steps", self.every_steps, 1)
        check_choice("checkpoint.keep", self.keep, ("best", "all"))


@dataclass
class TrackingConfig:
    name: str = setting("mlflow", "mlflow, none")
    uri: str | None = setting(None, "tracking server; null: MLFLOW_TRACKING_URI, else mlflow.db here")
    artifacts: str = setting("mlartifacts", "folder of the artifacts beside mlflow.db; a server has its own")
    experiment: str = setting("brainseg", "MLflow experiment")

    def __post_init__(self) -> None:
        check_choice("tracking.name", self.name, ("mlflow", "none"))


@dataclass
class TrainConfig:
    output: str | None = setting(None, "run folder; under -m the root of the jobs' folders; null: runs/")
    epochs: int = setting(30, "passes over the training slices")
    max_minutes: float | None = setting(None, "time instead of epochs: turned into a number of steps at the start")
    half_resolution: float = setting(0.0, "share of the run, its first part, on images of half the size (progressive resizing)")
    validate_every: int = setting(1, "validate after every so many epochs, and after the last")
    batch_size: int = setting(8, "slices of a forward pass")
    accumulate: int = setting(1, "forward passes added up for one step")
    seed: int = setting(0, "initial weights, order, dropout, augmentation")
    clip_norm: float | None = setting(None, "largest norm of the gradient")
    ema_decay: float | None = setting(None, "decay of averaged weights, as 0.999: they are then validated and kept")
    patience: int | None = setting(None, "stop after so many epochs without a rise of val/dice")
    test: str = setting("auto", "auto: test unless a sweep chooses between settings; yes, no")
    predictions: str = setting("masks", "kept of each patient scored at the end, in predictions.h5: none, masks, probabilities")
    resume: str | None = setting(None, "auto, never, or a run's folder or MLflow id; null: never, auto under -m")
    force: bool = setting(False, "resume although the bits, or the curve of the schedule, will differ")
    on_nonfinite: str = setting("error", "a loss or gradient that is not finite: error stops the run, skip leaves the step out")
    rerun: bool = setting(False, "a sweep repeats also its finished jobs, each once, in a numbered sibling of its folder")
    dry_run: str = setting("false", "false: run; true: print what would run, and stop; measure: also seconds and memory, from a few steps")
    data: DataConfig = setting(DataConfig, "the slices")
    split: SplitConfig = setting(SplitConfig, "training, validation and test patients")
    model: ModelConfig = setting(ModelConfig, "the network")
    loss: LossConfig = setting(LossConfig, "the criterion")
    optimizer: OptimizerConfig = setting(OptimizerConfig, "the optimizer")
    scheduler: SchedulerConfig = setting(SchedulerConfig, "the learning rate over the run")
    augment: AugmentConfig = setting(AugmentConfig, "random changes of the training slices")
    device: DeviceConfig = setting(DeviceConfig, "where and in which precision")
    inference: InferenceConfig = setting(InferenceConfig, "from logits to masks")
    checkpoint: CheckpointConfig = setting(CheckpointConfig, "what is saved when")
    tracking: TrackingConfig = setting(TrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        self.dry_run = str(self.dry_run).lower()  # YAML reads true as a truth value
        check_choice("dry_run", self.dry_run, ("false", "true", "measure"))
        named = self.resume not in (None, "auto", "never")
        check(not (self.rerun and named), "rerun", "true", f"repeats runs, resume={self.resume} goes on with one", "leave one of them out")
        check_range("epochs", self.epochs, 1)
        check_range("max_minutes", self.max_minutes, 0)
        check(self.max_minutes != 0, "max_minutes", self.max_minutes, "must be above 0")
        check_range("half_resolution", self.half_resolution, 0, 0.95, remedy="patients are scored at full size, so train at that too")
        check_range("validate_every", self.validate_every, 1)
        check_range("batch_size", self.batch_size, 1)
        check_range("accumulate", self.accumulate, 1)
        check_range("seed", self.seed, 0, 2**32 - 1)
        check(self.clip_norm is None or self.clip_norm > 0, "clip_norm", self.clip_norm, "must be above 0")
        check(self.ema_decay is None or 0 < self.ema_decay < 1, "ema_decay", self.ema_decay, "must lie between 0 and 1")
        check_range("patience", self.patience, 1)
        check_choice("test", self.test, ("auto", "yes", "no"))
        check_choice("predictions", self.predictions, PREDICTIONS)
        check_choice("on_nonfinite", self.on_nonfinite, ("error", "skip"))
        no_training = self.split.name == "all"
        check(not no_training, "split", "all", "leaves no patient to train on", "split=all is for brainseg.evaluate")


@dataclass
class SearchConfig:
    """What every other name on the command line means, `TrainConfig` says; so no name may be in both."""

    study: str | None = setting(None, "name of the study; null: that of the space")
    space: str | None = setting(None, "what is varied: a file of conf/search, or a YAML file of your own; null: what is typed, else quick")
    trials: int = setting(20, "trials in all, earlier starts and other processes included")
    random_trials: int = setting(10, "trials drawn at random before those found good guide the next (TPE)")
    sampler_seed: int = setting(0, "seed of the proposals; apart from seed, which is that of the runs")
    prune: str = setting("median", "median: end a trial whose val/dice stays below the median of the others at its epoch; none")
    prune_after: int = setting(5, "trials that must have finished before one is pruned")
    prune_warmup: int = setting(3, "epochs of each trial before it may be pruned: the first say little")

    def __post_init__(self) -> None:
        named = self.study is None or (self.study.isascii() and self.study.replace("-", "").replace("_", "").isalnum())
        check(named, "study", self.study, "names files, so letters, digits, - and _ only")
        check_range("trials", self.trials, 1)
        check_range("random_trials", self.random_trials, 1)
        check_range("sampler_seed", self.sampler_seed, 0, 2**32 - 1)
        check_choice("prune", self.prune, ("median", "none"))
        check_range("prune_after", self.prune_after, 1)
        check_range("prune_warmup", self.prune_warmup, 1)


@dataclass
class PrepareConfig:
    source: str = setting(MISSING, "folder of patients' folders")
    output: str = setting(MISSING, "HDF5 file to write")
    reader: str = setting("kaggle_3m", "layout of the source: kaggle_3m, or a name registered under brainseg.readers")
    on_fault: str = setting("error", "error, or skip_patient to leave patients with faults out, by name")
    workers: int | None = setting(None, "processes; null: all cores")

    def __post_init__(self) -> None:
        check_choice("on_fault", self.on_fault, ("error", "skip_patient"))
        check_range("workers", self.workers, 1)


@dataclass
class InferenceOverride:
    """As InferenceConfig, but null keeps what the checkpoint was selected with."""

    threshold: float | None = setting(None, "probability from which a pixel is tumour; null: the checkpoint's")
    flips: str | None = setting(None, "average with mirrored images; null: the checkpoint's")
    components: str | None = setting(None, "3-D components kept; null: the checkpoint's")
    min_volume: int | None = setting(None, "voxels that a component needs; null: the checkpoint's")


@dataclass
class EvaluateConfig:
    checkpoint: Any = setting(MISSING, "path of a checkpoint or run folder, runs:/ID or models:/NAME@ALIAS; a list is an ensemble")
    output: str = setting("evaluations", "folder to write to")
    parts: list[str] = setting(["test"], "which parts of the split are evaluated: train, validation, test")
    batch_size: int = setting(8, "slices of a forward pass")
    clinical: str | None = setting(None, "CSV with a column Patient, as data.csv of the public set: its columns join the failure analysis")
    leaky: bool = setting(False, "score an ensemble also on patients that some of its members saw; the summary says so")
    overlays: bool = setting(True, "draw the best, median and worst patient")
    viewer: int = setting(20, "patients in viewer.html, the most telling ones; 0: no such page")
    predictions: str = setting("masks", "kept of each patient, in predictions.h5: none, masks, probabilities")
    data: DataConfig = setting(DataConfig, "the slices")
    split: SplitConfig | None = setting(None, "null: the split that the checkpoint was trained under")
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
    volume: str | None = setting(None, "the one channel that it takes, by name; null: all three of the public set")
    context: int = setting(0, "neighbouring slices on each side, as further channels")

    def __post_init__(self) -> None:
        check_range("data.context", self.context, 0, 16)


@dataclass
class PredictConfig:
    checkpoint: Any = setting(MISSING, "path of a checkpoint or run folder, runs:/ID or models:/NAME@ALIAS; a list is an ensemble")
    input: Any = setting(MISSING, "folder of slices, TIFF stack, NIfTI, DICOM folder; a list: one a sequence, in the checkpoint's order")
    output: str = setting("predictions", "folder to write to")
    sequences: dict[str, Any] = setting({}, "in a folder: which file, subfolder or DICOM series is which, as sequences.FLAIR=NAME")
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
        check(named, "input", self.input, "must be a path, or a list of paths", "as input=[pre.nii.gz,flair.nii.gz,post.nii.gz]")
        check(isinstance(self.sequences, dict), "sequences", self.sequences, "must name sequences", "as sequences.FLAIR=flair.nii.gz")
        for name, path in self.sequences.items():
            check(isinstance(path, str) and bool(path), f"sequences.{name}", path, "must be the name of a file, subfolder or series")

    @property
    def paths(self) -> list[str]:
        """Files and folders of `input`, less what is missing."""
        return [path for path in self.input if path is not None] if isinstance(self.input, list) else [self.input]

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
    runs: list[str] | None = setting(None, "run folders, folders of them, or MLflow ids; the first is the baseline")
    sweep: str | None = setting(None, "a sweep's id as it was printed, or last")
    baseline: str | None = setting(None, "compare with the configuration of this run; null: the first of runs, else the best")
    root: str = setting("runs", "where runs and sweeps are looked for")
    clinical: str | None = setting(None, "CSV with a column Patient, as data.csv of the public set: its columns join the failure analysis")
    output: str | None = setting(None, "folder to write to; null: that of the sweep, else comparisons/NAME")
    viewer: int = setting(20, "patients in viewer.html, the most telling ones; 0: no such page")
    tracking: CompareTrackingConfig = setting(CompareTrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        names = all(isinstance(run, str) for run in self.runs or ())  # OmegaConf lets lists in lists through
        check(names, "runs", self.runs, "must be a list of names", "as runs=[runs/A,runs/B]")
        check_range("viewer", self.viewer, 0, 1000)


@dataclass
class RegisterTrackingConfig:
    uri: str | None = setting(None, "tracking server; null: that of the run, else MLFLOW_TRACKING_URI, else mlflow.db here")


@dataclass
class RegisterConfig:
    run: str = setting(MISSING, "folder or MLflow id of a finished run, or runs:/ID")
    name: str = setting(MISSING, "name in MLflow's model registry; the first run registered under it is version 1")
    alias: str | None = setting("best", "alias that the version gets, and another loses; null: none")
    tracking: RegisterTrackingConfig = setting(RegisterTrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        for setting_name, value in (("name", self.name), ("alias", self.alias or "x")):
            plain = value.isascii() and value.replace("-", "").replace("_", "").replace(".", "").isalnum()
            check(plain or value == MISSING, setting_name, value, "is part of models:/NAME@ALIAS, so letters, digits, -, _ and . only")
        alias = self.alias or ""
        free = alias.lower() != "latest" and not (alias[:1] in "vV" and alias[1:].isdigit())
        check(free, "alias", alias, "MLflow keeps latest, v1, v2 ... for itself", "choose another, as best")


@dataclass
class ExportConfig:
    checkpoint: str = setting(MISSING, "path of a checkpoint or run folder, runs:/ID or models:/NAME@ALIAS")
    format: str = setting("onnx", "onnx, or pt2: torch's exported program")
    output: str = setting(MISSING, "file to write, as unet.onnx or unet.pt2")
    data: SeenConfig = setting(SeenConfig, "what the network takes in, for weights that do not carry it")
    model: ModelConfig = setting(ModelConfig, "the network, for weights that do not carry it")

    def __post_init__(self) -> None:
        check_choice("format", self.format, ("onnx", "pt2"))
        named = self.output == MISSING or self.output.endswith(f".{self.format}")
        check(named, "output", self.output, f"format={self.format} is a file that ends in .{self.format}")


CHOICES: dict[str, dict[str, type]] = {
    "split": {"holdout": HoldoutConfig, "kfold": KFoldConfig, "file": FileSplitConfig, "any": SplitConfig},
    "model": {"unet": UNetConfig, "any": ModelConfig},
    "scheduler": {"any": SchedulerConfig, "none": SchedulerConfig, "step": StepConfig, "cosine": CosineConfig,
                  "one_cycle": OneCycleConfig, "plateau": PlateauConfig},
}


@cache
def register() -> None:
    """Give Hydra the schemas: conf/<command>.yaml starts from `schema/<command>`, a choice from `schema/<group>/<choice>`."""
    store = ConfigStore.instance()
    commands = {"train": TrainConfig, "search": SearchConfig, "prepare": PrepareConfig, "evaluate": EvaluateConfig,
                "predict": PredictConfig, "compare": CompareConfig, "register": RegisterConfig, "export": ExportConfig}
    for command, node in commands.items():
        store.store(group="schema", name=command, node=node, package="_global_")
    for group, nodes in CHOICES.items():
        for name, node in nodes.items():
            store.store(group=f"schema/{group}", name=name, node=node)


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as {dotted name: value}; lists stay values, an empty dict vanishes."""
    if not isinstance(settings, dict):
        return {prefix[:-1]: settings}
    return {name: leaf for key, value in settings.items() for name, leaf in flatten(value, f"{prefix}{key}.").items()}


def restore(stored: Any) -> TrainConfig:
    """The dataclass of a config stored as plain containers, in a run's folder or a checkpoint; every check runs again.

    Raises RequestError in one line if it is no such config: it may come from a file that nobody vouches for.
    """
    rule = "not what brainseg.train stores"
    check(isinstance(stored, dict), "config", type(stored).__name__, rule)
    text = repr(stored)
    check("${" not in text and "_target_" not in text, "config", "a reference or _target_ is in it", rule)  # resolved when it was stored
    try:
        base = OmegaConf.structured(TrainConfig)
        for group, nodes in CHOICES.items():
            name = stored.get(group, {}).get("name")
            OmegaConf.update(base, group, OmegaConf.structured(nodes.get(name, nodes["any"])), merge=False)
        return cast(TrainConfig, OmegaConf.to_object(OmegaConf.merge(base, stored)))
    except (OmegaConfBaseException, AttributeError, TypeError, RecursionError) as error:  # what OmegaConf raises for other shapes and types
        raise RequestError(f"config: {rule} ({str(error).splitlines()[0][:200]})") from error
