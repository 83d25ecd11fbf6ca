"""The constant objects of a training run, and the callbacks of its loop."""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from brainseg.config import TrainConfig
from brainseg.data.dataset import MRIDataset
from brainseg.device import Device
from brainseg.evaluation.evaluate import PatientResult
from brainseg.training.state import State


class TrainingContext(NamedTuple):
    """The objects that stay the same during a run."""

    config: TrainConfig
    device: Device
    train: MRIDataset
    validation: MRIDataset
    criterion: nn.Module

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of optimizer steps per epoch."""
        return math.ceil(len(self.train) / (self.config.batch_size * self.config.accumulate))

    @property
    def criterion_on_cpu(self) -> nn.Module:
        """Return the criterion for whole patients, whose logits are gathered on the CPU."""
        # A loss may have weights of its own, so that a copy of it has to be moved.
        return (
            self.criterion
            if self.device.torch.type == "cpu"
            else copy.deepcopy(self.criterion).cpu()
        )


class Callbacks(NamedTuple):
    """Functions that the loop calls after each step, validated patient and epoch.

    `epoch_metrics` returns metrics of the epoch that the loop does not measure itself.
    """

    after_step: Callable[[State], None] = lambda state: None
    after_patient: Callable[[State], None] = lambda state: None
    see_result: Callable[[PatientResult], None] = lambda result: None
    epoch_metrics: Callable[[], dict[str, float]] = dict
    # The second argument is True if the epoch is the best so far.
    after_epoch: Callable[[State, bool], None] = lambda state, improved: None
