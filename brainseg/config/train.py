"""Settings of a training run: duration, device, masks, checkpoints and tracking."""

from dataclasses import dataclass

from brainseg.config.data import DataConfig, SplitConfig
from brainseg.config.fields import check_choice, check_range, check_tags, setting
from brainseg.config.model import AugmentConfig, LossConfig, ModelConfig, OptimizerConfig
from brainseg.config.scheduler import SchedulerConfig
from brainseg.core.errors import check

# These settings change no number of a run, so they are left out of its identity. Two requests
# that differ only in these settings name the same run.
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
    "wait",
    "device.on_missing",
    "allow_empty",
    "leaky",
    "steps_of",
    "note",
    "tags",
    "pictures",
)
# The settings of which a resumed run may be given more.
EXTENDED = ("epochs", "max_steps", "max_minutes", "patience")
PREDICTIONS = ("none", "masks", "probabilities")
LARGEST_HALF_RESOLUTION = 0.95


@dataclass
class DeviceConfig:
    """Settings of the device and its precision."""

    name: str = setting("auto", "auto, cpu, cuda (or a certain GPU, such as cuda:1), mps")
    precision: str = setting("auto", "auto, float32, bfloat16, float16")
    channels_last: bool = setting(
        True, "use the memory format NHWC, which is faster for convolutions on these devices"
    )
    compile: bool = setting(False, "compile the model with torch.compile")
    graphs: str = setting(
        "auto",
        "record the training step as a CUDA graph, which is faster for small networks: auto (for "
        "unet on a GPU), yes, no",
    )
    # Sums are rounded differently with another number of threads, so the number is part of a
    # run's identity.
    threads: int | None = setting(
        None,
        "number of CPU threads; results depend on it in the last bits; null: torch's default, or "
        "the job's share under a parallel launcher",
    )
    on_missing: str = setting(
        "error", "if the device is not available: error, or skip (skip this job of a sweep)"
    )

    def __post_init__(self) -> None:
        check_choice("device.precision", self.precision, ("auto", "float32", "bfloat16", "float16"))
        check_choice("device.graphs", self.graphs, ("auto", "yes", "no"))
        check_range("device.threads", self.threads, 1, 1024)
        check_choice("device.on_missing", self.on_missing, ("error", "skip"))


@dataclass
class InferenceConfig:
    """Settings of inference: how logits become masks."""

    threshold: float = setting(
        0.5,
        "probability from which a pixel is tumour; with several classes the most probable class "
        "is taken",
    )
    flips: str = setting(
        "none",
        "test-time augmentation, the average over flipped copies: none, horizontal, vertical, both",
    )
    components: str = setting(
        "all", "3-D connected components kept per class: all, largest, min_volume"
    )
    min_volume: int = setting(0, "smallest component kept by components=min_volume, in voxels")

    def __post_init__(self) -> None:
        check_range("inference.threshold", self.threshold, 0, 1)
        check_choice("inference.flips", self.flips, ("none", "horizontal", "vertical", "both"))
        check_choice("inference.components", self.components, ("all", "largest", "min_volume"))
        check_range("inference.min_volume", self.min_volume, 0)


@dataclass
class CheckpointConfig:
    """Settings of checkpoints."""

    every_minutes: float | None = setting(
        10.0, "minutes between checkpoints within an epoch; null: none by time"
    )
    every_steps: int | None = setting(
        None, "steps between checkpoints within an epoch; null: none by steps"
    )
    keep: str = setting("best", "checkpoints that a finished run keeps: best, all")

    def __post_init__(self) -> None:
        check_range("checkpoint.every_minutes", self.every_minutes, 0)
        check_range("checkpoint.every_steps", self.every_steps, 1)
        check_choice("checkpoint.keep", self.keep, ("best", "all"))


@dataclass
class PicturesConfig:
    """Settings of the pictures that show a run's progress."""

    every_minutes: float | None = setting(
        1.0,
        "smallest number of minutes between two drawings of curves.png and validation.png while "
        "the run trains, which take at most 1 % of the time; null: curves.png at the end alone",
    )

    def __post_init__(self) -> None:
        check_range("pictures.every_minutes", self.every_minutes, 0)


@dataclass
class TrackingConfig:
    """Settings of experiment tracking."""

    name: str = setting("mlflow", "mlflow, none")
    uri: str | None = setting(
        None,
        "URI of the MLflow server or database; null: MLFLOW_TRACKING_URI, or mlflow.db in the "
        "current folder",
    )
    artifacts: str = setting(
        "mlartifacts", "folder for artifacts beside mlflow.db; a server uses its own"
    )
    experiment: str = setting("brainseg", "name of the MLflow experiment")

    def __post_init__(self) -> None:
        check_choice("tracking.name", self.name, ("mlflow", "none"))


@dataclass
class TrainConfig:
    """Settings of `brainseg.train`."""

    note: str | None = setting(
        None, "free text about the run, shown by MLflow, brainseg.runs and brainseg.compare"
    )
    tags: list[str] = setting([], "words by which to find the run again, such as [pilot,paper]")
    output: str | None = setting(
        None, "run folder, or with -m the parent folder of all runs; null: a folder in runs/"
    )
    epochs: int = setting(30, "number of passes over the training slices")
    max_steps: int | None = setting(
        None, "exact number of optimizer steps; replaces epochs; null: count epochs or minutes"
    )
    max_minutes: float | None = setting(
        None,
        "time budget in minutes; replaces epochs; the number of steps is estimated from a few "
        "timed steps at the start and corrected during the run",
    )
    steps_of: str | None = setting(
        None,
        "with max_minutes: run whose number of steps is reused instead of timing steps; "
        "from=RUN sets it",
    )
    initial: str | None = setting(
        None,
        "fine-tuning: weights to begin with, as far as they fit: run folder, file, runs:/ID or "
        "models:/NAME@ALIAS; null: random weights",
    )
    leaky: bool = setting(
        False,
        "accept initial weights that have seen validation or test patients of this run; all its "
        "scores are then tagged leaky",
    )
    half_resolution: float = setting(
        0.0,
        "progressive resizing: fraction of the run, from its start, on images of half the height "
        "and width; a fraction of the time under max_minutes, else of the steps",
    )
    validate_every: int = setting(1, "validate after every N epochs, and after the last one")
    batch_size: int = setting(8, "number of slices per batch")
    accumulate: int = setting(1, "gradient accumulation: batches per optimizer step")
    seed: int = setting(
        0, "random seed of initial weights, order of slices, dropout and augmentation"
    )
    clip_norm: float | None = setting(None, "clip gradients to this L2 norm; null: no clipping")
    ema_decay: float | None = setting(
        None,
        "decay of the moving average of the weights, such as 0.999; the averaged weights are "
        "validated and saved; null: no averaging",
    )
    patience: int | None = setting(
        None,
        "early stopping after this many epochs without a better val/dice; epochs at half "
        "resolution do not count; null: no early stopping",
    )
    test: str = setting(
        "auto",
        "score the test set at the end: yes, no, or auto (no in sweeps over settings other than "
        "seed or split.fold)",
    )
    predictions: str = setting(
        "masks",
        "content of predictions.h5 for each patient scored at the end: none, masks, probabilities",
    )
    resume: str | None = setting(
        None,
        "auto, never, or the folder or MLflow ID of a run to resume; null: never, or auto with -m",
    )
    force: bool = setting(
        False, "resume although the results or the learning rate curve will differ"
    )
    on_nonfinite: str = setting(
        "error", "if a loss or gradient is not finite: error, or skip (skip the optimizer step)"
    )
    allow_empty: bool = setting(
        False, "train although a subset of the split has no tumour, or masks look inverted"
    )
    rerun: bool = setting(
        False, "run finished jobs of a sweep again, each once, in a new folder NAME-2, NAME-3, ..."
    )
    wait: bool = setting(
        True,
        "with hydra/launcher=submitit_slurm: wait for the jobs; false: submit them and exit; the "
        "same command with wait=true collects the results",
    )
    dry_run: str = setting(
        "false",
        "false: run; true: print the plan and exit; measure: also time a few steps and report "
        "seconds and memory",
    )
    data: DataConfig = setting(DataConfig, "the slices")
    split: SplitConfig = setting(SplitConfig, "training, validation and test patients")
    model: ModelConfig = setting(ModelConfig, "the network")
    loss: LossConfig = setting(LossConfig, "the loss function")
    optimizer: OptimizerConfig = setting(OptimizerConfig, "the optimizer")
    scheduler: SchedulerConfig = setting(SchedulerConfig, "the learning rate schedule")
    augment: AugmentConfig = setting(AugmentConfig, "random changes of the training slices")
    device: DeviceConfig = setting(DeviceConfig, "device and precision")
    inference: InferenceConfig = setting(InferenceConfig, "how logits become masks")
    checkpoint: CheckpointConfig = setting(CheckpointConfig, "when checkpoints are saved and kept")
    pictures: PicturesConfig = setting(PicturesConfig, "pictures of a run's progress")
    tracking: TrackingConfig = setting(TrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        check_tags(self.tags)
        # YAML reads true and false as booleans, while this setting holds text.
        self.dry_run = str(self.dry_run).lower()
        check_choice("dry_run", self.dry_run, ("false", "true", "measure"))
        is_named = self.resume not in (None, "auto", "never")
        check(
            not (self.rerun and is_named),
            "rerun",
            "true",
            f"starts a new run, but resume={self.resume} continues an existing one",
            "leave out one of the two",
        )
        check_range("epochs", self.epochs, 1)
        check(
            not self.leaky or self.initial is not None,
            "leaky",
            "true",
            "accepts initial weights, and initial is not set",
            "leave it out",
        )
        check_range("max_steps", self.max_steps, 1)
        check(
            self.max_steps is None or self.max_minutes is None,
            "max_steps",
            self.max_steps,
            f"a run has one limit, and max_minutes={self.max_minutes} is another",
            "add max_minutes=null to count steps, or max_steps=null to count minutes",
        )
        check_range("max_minutes", self.max_minutes, 0)
        # check_range accepts its limits, but a budget of 0 minutes has no steps.
        check(self.max_minutes != 0, "max_minutes", self.max_minutes, "must be above 0")
        check_range(
            "half_resolution",
            self.half_resolution,
            0,
            LARGEST_HALF_RESOLUTION,
            remedy="patients are scored at full size, so the last part of the run must train at it",
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
        has_training = self.split.name != "all"
        check(
            has_training,
            "split",
            "all",
            "leaves no patient to train on",
            "choose another split; split=all is for brainseg.evaluate",
        )
