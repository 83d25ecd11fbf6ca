"""What a run's parts share: what stays the same while training, and what the caller does besides."""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from brainseg.config import TrainConfig
from brainseg.data.dataset import MRIDataset
from brainseg.device import Device
from brainseg.training.state import State


class TrainingContext(NamedTuple):
    """What stays the same over a run."""

    config: TrainConfig
    device: Device
    train: MRIDataset
    validation: MRIDataset
    criterion: nn.Module

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.train) / (self.config.batch_size * self.config.accumulate))

    @property
    def criterion_on_cpu(self) -> nn.Module:
        """For whole patients, whose logits are gathered there: a loss may hold weights of its own."""
        return (
            self.criterion
            if self.device.torch.type == "cpu"
            else copy.deepcopy(self.criterion).cpu()
        )


class Callbacks(NamedTuple):
    """What the caller does besides: after each optimizer step, between validated patients, after each epoch."""

    after_step: Callable[[State], None] = lambda state: None
    after_patient: Callable[[State], None] = lambda state: None
    after_epoch: Callable[[State, bool], None] = lambda state, improved: None
