"""All settings: their types, defaults, meanings and allowed values.

    data.py        the slices and the split of the patients
    model.py       network, loss, optimizer, augmentation
    scheduler.py   the learning rate schedule
    train.py       TrainConfig: the run, its device, masks and tracking
    search.py      brainseg.search
    prepare.py     brainseg.prepare
    evaluate.py    brainseg.evaluate and brainseg.verify
    predict.py     brainseg.predict and brainseg.export
    results.py     brainseg.compare, brainseg.register and brainseg.ui
    fields.py      building blocks of the settings
    schema.py      registration with Hydra, and restoring a stored config
    compose.py     one request as a dataclass, by way of Hydra
    overrides.py   names and values of overrides, and earlier names
    text.py        text settings, which Hydra's grammar would read otherwise
    launchers.py   the launchers of a sweep
    hydra_errors.py   Hydra's errors in one line, with "did you mean"

Hydra composes `conf/*.yaml` onto these dataclasses, and `OmegaConf.to_object` builds them. Each
`__post_init__` rejects an impossible value with a one-line error. Checks that need the data, for
example whether the file exists or the image allows this depth, are in `train.check_request`.
A setting that changes no number of a run is listed in `train.NOT_IDENTITY`.
"""

from brainseg.config.data import (
    DataConfig,
    FileSplitConfig,
    HoldoutConfig,
    KFoldConfig,
    PhantomConfig,
    SplitConfig,
)
from brainseg.config.evaluate import (
    DataOverride,
    EvaluateConfig,
    EvaluateTrackingConfig,
    PhantomOverride,
    VerifyConfig,
)
from brainseg.config.model import (
    AugmentConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    UNetConfig,
)
from brainseg.config.predict import ExportConfig, InferenceOverride, InputConfig, PredictConfig
from brainseg.config.prepare import PrepareConfig
from brainseg.config.results import (
    CompareConfig,
    CompareTrackingConfig,
    RegisterConfig,
    RegisterTrackingConfig,
    UiConfig,
    UiTrackingConfig,
)
from brainseg.config.scheduler import (
    CosineConfig,
    OneCycleConfig,
    PlateauConfig,
    SchedulerConfig,
    StepConfig,
)
from brainseg.config.schema import (
    CHOICES,
    TYPES,
    check_group_choices,
    flatten,
    register_schema,
    restore_config,
)
from brainseg.config.search import SearchConfig
from brainseg.config.train import (
    EXTENDED,
    NOT_IDENTITY,
    CheckpointConfig,
    DeviceConfig,
    InferenceConfig,
    PicturesConfig,
    TrackingConfig,
    TrainConfig,
)

__all__ = [
    "CHOICES",
    "EXTENDED",
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
    "EvaluateTrackingConfig",
    "ExportConfig",
    "FileSplitConfig",
    "HoldoutConfig",
    "InferenceConfig",
    "InferenceOverride",
    "InputConfig",
    "KFoldConfig",
    "LossConfig",
    "ModelConfig",
    "OneCycleConfig",
    "OptimizerConfig",
    "PhantomConfig",
    "PhantomOverride",
    "PicturesConfig",
    "PlateauConfig",
    "PredictConfig",
    "PrepareConfig",
    "RegisterConfig",
    "RegisterTrackingConfig",
    "SchedulerConfig",
    "SearchConfig",
    "SplitConfig",
    "StepConfig",
    "TrackingConfig",
    "TrainConfig",
    "UNetConfig",
    "UiConfig",
    "UiTrackingConfig",
    "VerifyConfig",
    "check_group_choices",
    "flatten",
    "register_schema",
    "restore_config",
]
