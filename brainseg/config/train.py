"""Settings of a run as a whole, of its device, its masks, its checkpoints and its tracking."""

from dataclasses import dataclass

from brainseg.config.data import DataConfig, SplitConfig
from brainseg.config.fields import check_choice, check_range, setting
from brainseg.config.model import AugmentConfig, LossConfig, ModelConfig, OptimizerConfig
from brainseg.config.scheduler import SchedulerConfig
from brainseg.core.errors import check

NOT_IDENTITY = (
    "output",
    "resume",
    "force",
    "dry_run",
    "test",
    "predictions",
    "tracking",
    "checkpoint",
    "data.path",
    "data.resident",
    "data.phantom.folder",
    "rerun",
    "device.on_missing",
    "allow_empty",
    "steps_of",
)
PREDICTIONS = ("none", "masks", "probabilities")


@dataclass
class DeviceConfig:
    name: str = setting("auto", "auto, cpu, cuda (as cuda:1), mps")
    precision: str = setting("auto", "auto, float32, bfloat16, float16")
    channels_last: bool = setting(
        True, "memory format NHWC: the faster one for convolutions on these devices"
    )
    compile: bool = setting(False, "torch.compile the model")
    threads: int | None = setting(
        None,
        "CPU threads; bits depend on their number; null: torch's choice, or a parallel launcher's share",
    )
    on_missing: str = setting(
        "error",
        "a device that is not there: error refuses the request, skip leaves that job of a sweep out",
    )

    def __post_init__(self) -> None:
        check_choice("device.precision", self.precision, ("auto", "float32", "bfloat16", "float16"))
        check_range("device.threads", self.threads, 1, 1024)
        check_choice("device.on_missing", self.on_missing, ("error", "skip"))


@dataclass
class InferenceConfig:
    threshold: float = setting(
        0.5,
        "probability from which a pixel is tumour; of several classes the most probable one is taken",
    )
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
    every_minutes: float | None = setting(
        10.0, "save in the middle of an epoch after so many minutes"
    )
    every_steps: int | None = setting(None, "save in the middle of an epoch after so many steps")
    keep: str = setting("best", "what a finished run keeps: best, all")

    def __post_init__(self) -> None:
        check_range("checkpoint.every_minutes", self.every_minutes, 0)
        check_range("checkpoint.every_steps", self.every_steps, 1)
        check_choice("checkpoint.keep", self.keep, ("best", "all"))


@dataclass
class TrackingConfig:
    name: str = setting("mlflow", "mlflow, none")
    uri: str | None = setting(
        None, "tracking server; null: MLFLOW_TRACKING_URI, else mlflow.db here"
    )
    artifacts: str = setting(
        "mlartifacts", "folder of the artifacts beside mlflow.db; a server has its own"
    )
    experiment: str = setting("brainseg", "MLflow experiment")

    def __post_init__(self) -> None:
        check_choice("tracking.name", self.name, ("mlflow", "none"))


@dataclass
class TrainConfig:
    output: str | None = setting(
        None, "run folder; under -m the root of the jobs' folders; null: runs/"
    )
    epochs: int = setting(30, "passes over the training slices")
    max_minutes: float | None = setting(
        None,
        "time budget; replaces epochs: as many steps as fit, estimated at the start and on the way",
    )
    steps_of: str | None = setting(
        None, "under max_minutes the steps of this run are taken, not measured; from=RUN sets it"
    )
    half_resolution: float = setting(
        0.0, "share of the run, its first part, on images of half the size (progressive resizing)"
    )
    validate_every: int = setting(1, "validate after every so many epochs, and after the last")
    batch_size: int = setting(8, "slices of a forward pass")
    accumulate: int = setting(1, "forward passes added up for one step")
    seed: int = setting(0, "initial weights, order, dropout, augmentation")
    clip_norm: float | None = setting(None, "largest norm of the gradient")
    ema_decay: float | None = setting(
        None, "decay of averaged weights, as 0.999: they are then validated and kept"
    )
    patience: int | None = setting(
        None,
        "stop after so many epochs without a rise of val/dice; those at half resolution do not count",
    )
    test: str = setting("auto", "auto: test unless a sweep chooses between settings; yes, no")
    predictions: str = setting(
        "masks",
        "kept of each patient scored at the end, in predictions.h5: none, masks, probabilities",
    )
    resume: str | None = setting(
        None, "auto, never, or a run's folder or MLflow id; null: never, auto under -m"
    )
    force: bool = setting(
        False, "resume although the bits, or the curve of the schedule, will differ"
    )
    on_nonfinite: str = setting(
        "error",
        "a loss or gradient that is not finite: error stops the run, skip leaves the step out",
    )
    allow_empty: bool = setting(
        False, "train although a part of the split has no tumour, or its masks look inverted"
    )
    rerun: bool = setting(
        False,
        "a sweep repeats also its finished jobs, each once, in a numbered sibling of its folder",
    )
    dry_run: str = setting(
        "false",
        "false: run; true: print what would run, and stop; measure: also seconds and memory, from a few steps",
    )
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
        check(
            not (self.rerun and named),
            "rerun",
            "true",
            f"repeats runs, resume={self.resume} goes on with one",
            "leave one of them out",
        )
        check_range("epochs", self.epochs, 1)
        check_range("max_minutes", self.max_minutes, 0)
        check(self.max_minutes != 0, "max_minutes", self.max_minutes, "must be above 0")
        check_range(
            "half_resolution",
            self.half_resolution,
            0,
            0.95,
            remedy="patients are scored at full size, so train at that too",
        )
        check_range("validate_every", self.validate_every, 1)
        check_range("batch_size", self.batch_size, 1)
        check_range("accumulate", self.accumulate, 1)
        check_range("seed", self.seed, 0, 2**32 - 1)
        check(
            self.clip_norm is None or self.clip_norm > 0,
            "clip_norm",
            self.clip_norm,
            "must be above 0",
        )
        check(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            "ema_decay",
            self.ema_decay,
            "must lie between 0 and 1",
        )
        check_range("patience", self.patience, 1)
        check_choice("test", self.test, ("auto", "yes", "no"))
        check_choice("predictions", self.predictions, PREDICTIONS)
        check_choice("on_nonfinite", self.on_nonfinite, ("error", "skip"))
        no_training = self.split.name == "all"
        check(
            not no_training,
            "split",
            "all",
            "leaves no patient to train on",
            "split=all is for brainseg.evaluate",
        )
