"""What a run's parts share: what stays the same while training, and what the caller does besides."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from brainseg.config import TrainConfig
from brainseg.data.dataset import MRIDataset
from brainseg.device import Device
from brainseg.training.state import State


class Task(NamedTuple):
    """What stays the same over a run."""

    config: TrainConfig
    device: Device
    train: MRIDataset
    validation: MRIDataset
    criterion: nn.Module

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.train) / (self.config.batch_size * self.config.accumulate))


class Hooks(NamedTuple):
    """What the caller does besides: after each optimizer step, between validated patients, after each epoch."""

    after_step: Callable[[State], None] = lambda state: None
    between: Callable[[State], None] = lambda state: None
    after_epoch: Callable[[State, bool], None] = lambda state, improved: None
