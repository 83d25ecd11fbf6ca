"""Every setting: its type, its default, what it means and which values it takes.

    data.py        the slices and who is in which part      model.py     network, loss, optimizer, augmentation
    scheduler.py   the learning rate                        run.py       TrainConfig: the run, its device, masks, tracking
    commands.py    the other commands                       schema.py    what Hydra is told, and a stored config read back

Hydra composes `conf/*.yaml` onto these dataclasses; `OmegaConf.to_object` then builds them, and each `__post_init__` refuses
an impossible value in one line. Checks that need the data (does the file exist, can the image take this depth) are in
`train.check`. A setting that changes no number of a run is listed in `run.NOT_IDENTITY`.
"""

from brainseg.config.commands import (
    CompareConfig,
    CompareTrackingConfig,
    DataOverride,
    EvaluateConfig,
    ExportConfig,
    InferenceOverride,
    PhantomOverride,
    PredictConfig,
    PrepareConfig,
    RegisterConfig,
    RegisterTrackingConfig,
    SearchConfig,
    SeenConfig,
)
from brainseg.config.data import (
    DataConfig,
    FileSplitConfig,
    HoldoutConfig,
    KFoldConfig,
    PhantomConfig,
    SplitConfig,
)
from brainseg.config.model import (
    AugmentConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    UNetConfig,
)
from brainseg.config.scheduler import (
    CosineConfig,
    OneCycleConfig,
    PlateauConfig,
    SchedulerConfig,
    StepConfig,
)
from brainseg.config.schema import CHOICES, TYPES, check_chosen, flatten, register_schema, restore
from brainseg.config.train import (
    NOT_IDENTITY,
    CheckpointConfig,
    DeviceConfig,
    InferenceConfig,
    TrackingConfig,
    TrainConfig,
)

__all__ = [
    "CHOICES",
    "NOT_IDENTITY",
    "TYPES",
    "AugmentConfig",
    "CheckpointConfig",
    "CompareConfig",
    "CompareTrackingConfig",
    "CosineConfig",
    "DataConfig",
    "DataOverride",
    "DeviceConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FileSplitConfig",
    "HoldoutConfig",
    "InferenceConfig",
    "InferenceOverride",
    "KFoldConfig",
    "LossConfig",
    "ModelConfig",
    "OneCycleConfig",
    "OptimizerConfig",
    "PhantomConfig",
    "PhantomOverride",
    "PlateauConfig",
    "PredictConfig",
    "PrepareConfig",
    "RegisterConfig",
    "RegisterTrackingConfig",
    "SchedulerConfig",
    "SearchConfig",
    "SeenConfig",
    "SplitConfig",
    "StepConfig",
    "TrackingConfig",
    "TrainConfig",
    "UNetConfig",
    "check_chosen",
    "flatten",
    "register_schema",
    "restore",
]
