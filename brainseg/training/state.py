"""The state of a training run: all that a training step changes, and that a checkpoint stores."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from brainseg.config import PlateauConfig, TrainConfig
from brainseg.device import Device
from brainseg.training.plan import Plan, restore_plans
from brainseg.training.progressive_resizing import ProgressiveResizing
from brainseg.training.schedules import Plateau

# An epoch of the history: {"epoch", "step", "time", "metrics": {name: number}}.
Row = dict[str, Any]


class Window(NamedTuple):
    """The steps since the pace was last measured."""

    # Optimizer steps at the start of the window.
    step: int
    # Seconds of the run at the start of the window.
    elapsed: float
    # Seconds of the window that were spent on validation.
    validating: float = 0.0


class StepResult(NamedTuple):
    """Result of a training step that the host has not read yet."""

    # Number of the step within its epoch.
    step: int
    # Positions of the slices in the training set.
    positions: np.ndarray
    # Shape (), on the device.
    loss: Tensor
    # Shape (), on the device.
    gradient_norm: Tensor


@dataclass
class State:
    """All that changes during training.

    `state_dict` returns it as containers, numbers, strings and tensors. The fields from
    `predicts_nothing` on are not part of a checkpoint.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    total_steps: int
    # Number of steps, from the first one, that use images of half the size.
    half_steps: int = 0
    average: AveragedModel | None = None
    plateau: Plateau | None = None
    # The current epoch, counted from 0.
    epoch: int = 0
    # Optimizer steps done.
    step: int = 0
    # Sum of the loss over the slices of this epoch so far.
    loss_sum: float = 0.0
    slices_seen: int = 0
    # Seconds spent on the steps of this epoch.
    seconds: float = 0.0
    # Highest val/dice so far.
    best: float = -1.0
    # val/loss of the best epoch: among epochs of equal val/dice the lowest.
    best_loss: float = math.inf
    best_epoch: int = -1
    # The last epoch whose val/dice was above all earlier ones. Patience counts from it.
    risen_epoch: int = -1
    bad_epochs: int = 0
    # Steps of this epoch that were left out because loss or gradient was not finite.
    skipped: int = 0
    history: list[Row] = field(default_factory=list)
    # The plans of a time budget, ordered by step.
    plans: list[Plan] = field(default_factory=list)
    # Seconds of the run up to the last `tick`, validations and saving included.
    elapsed: float = 0.0
    # Seconds of the last validation.
    validation_seconds: float = 0.0
    # Time of a step at full size divided by that of a step at half size.
    full_to_half: float = 1.0
    # True if no pixel was predicted in the last validation.
    predicts_nothing: bool = False
    # The steps since the last plan.
    window: Window | None = None
    # Time of the last `tick`, None while the run is not active.
    last_tick: float | None = None
    # `collect_step_results` empties this list before a checkpoint is written.
    pending_steps: list[StepResult] = field(default_factory=list)
    # Loss of the last step that was read, for the progress bar.
    last_loss: float = float("nan")

    NUMBERS = (
        "total_steps",
        "half_steps",
        "epoch",
        "step",
        "loss_sum",
        "slices_seen",
        "seconds",
        "best",
        "best_epoch",
        "bad_epochs",
        "skipped",
    )
    # Checkpoints of version 1.0 do not contain these numbers.
    LATER_NUMBERS = ("best_loss", "elapsed", "validation_seconds", "full_to_half", "risen_epoch")

    @classmethod
    def create(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        device: Device,
        total_steps: int,
    ) -> "State":
        """Return the state before the first step."""
        average = None
        if config.ema_decay is not None:
            # The statistics of the norms are averaged together with the weights they belong to.
            average = AveragedModel(
                model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True
            )
        plateau = Plateau(config.scheduler) if isinstance(config.scheduler, PlateauConfig) else None
        return cls(
            model,
            optimizer,
            device.scaler(),
            *ProgressiveResizing.from_fraction(config.half_resolution, total_steps),
            average,
            plateau,
        )

    @property
    def resizing(self) -> ProgressiveResizing:
        """Return the number of steps of each size."""
        return ProgressiveResizing(self.total_steps, self.half_steps)

    @property
    def epoch_began(self) -> int:
        """Return the step at which the current epoch began."""
        return self.history[-1]["step"] if self.history else 0

    def adopt_plans(self, plans: Sequence[Plan]) -> None:
        """Adopt `plans`, the last of which determines the number of steps."""
        self.plans = list(plans)
        self.total_steps, self.half_steps = plans[-1].resizing

    def tick(self) -> None:
        """Add the time since the last call to `elapsed`, or nothing if `last_tick` is None."""
        if self.last_tick is not None:
            now = time.monotonic()
            self.elapsed += now - self.last_tick
            self.last_tick = now

    @property
    def evaluated_model(self) -> nn.Module:
        """Return the model that is validated, stored and tested, averaged under `ema_decay`."""
        return self.average.module if self.average is not None else self.model

    def state_dict(self) -> dict[str, Any]:
        """Return the content of a checkpoint. Call `collect_step_results` before this."""
        self.tick()
        assert not self.pending_steps, (
            "pending steps may be not finite, and their losses would be lost"
        )
        return {
            "model": self.evaluated_model.state_dict(),
            "training_model": self.model.state_dict() if self.average is not None else None,
            "averaged": int(self.average.n_averaged) if self.average is not None else 0,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "plateau": self.plateau.state_dict() if self.plateau is not None else None,
            "history": self.history,
            "plans": [list(plan) for plan in self.plans],
            **{name: getattr(self, name) for name in (*self.NUMBERS, *self.LATER_NUMBERS)},
        }

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Load a stored state. Torch raises RuntimeError if the weights are of another model."""
        self.model.load_state_dict(stored["training_model"] or stored["model"])
        if self.average is not None:
            self.average.module.load_state_dict(stored["model"])
            self.average.n_averaged.fill_(stored["averaged"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.scaler.load_state_dict(stored["scaler"])
        if self.plateau is not None:
            self.plateau.load_state_dict(stored["plateau"])
        self.history = list(stored["history"])
        for name in self.NUMBERS:
            setattr(self, name, stored[name])
        # A checkpoint of version 1.0 has no `risen_epoch`.
        self.risen_epoch = self.best_epoch
        for name in self.LATER_NUMBERS:
            setattr(self, name, stored.get(name, getattr(self, name)))
        self.plans = restore_plans(stored)
