"""Everything that a training step changes, in one object: what a checkpoint keeps and a resume takes over."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from brainseg.config import PlateauConfig, TrainConfig
from brainseg.device import Device
from brainseg.training.plan import Plan
from brainseg.training.schedules import Plateau

Row = dict[
    str, Any
]  # one epoch of the history: {"epoch", "step", "time", "metrics": {name: number}}


class Window(NamedTuple):
    """The steps since the pace was last looked at."""

    step: int  # at its begin
    elapsed: float  # seconds of the run at its begin
    validating: float = 0.0  # seconds of it that were spent on validation


class StepResult(NamedTuple):
    """What a step gave, as long as the host has not looked at it."""

    step: int  # within its epoch
    chosen: np.ndarray  # positions of its slices
    loss: Tensor  # (), on the device
    norm: Tensor  # (), of the gradient


@dataclass
class State:
    """Everything that changes while training; `state_dict` has all of it, as containers, numbers, strings and tensors."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    total_steps: int
    half_steps: int = 0  # the first so many of them see images of half the size
    average: AveragedModel | None = None
    plateau: Plateau | None = None
    epoch: int = 0  # the epoch under way, counted from 0
    step: int = 0  # optimizer steps done
    loss_sum: float = 0.0  # over the slices of this epoch seen so far
    slices_seen: int = 0
    seconds: float = 0.0  # spent on the steps of this epoch
    best: float = -1.0  # highest val/dice
    best_loss: float = math.inf  # its val/loss, the lowest on a tie of val/dice
    best_epoch: int = -1
    risen_epoch: int = (
        -1
    )  # the last one whose val/dice was above all before it: patience counts from it
    bad_epochs: int = 0
    skipped: int = 0  # steps of this epoch left out because the loss or the gradient was not finite
    history: list[Row] = field(default_factory=list)
    plans: list[Plan] = field(
        default_factory=list
    )  # of a run that is counted in minutes, by their step
    elapsed: float = 0.0  # seconds of the run, validations and saving included, as far as `tick` has counted them
    validation_seconds: float = 0.0  # of the last validation
    full_to_half: float = 1.0  # how much longer a step at full size takes than one at half size
    predicts_nothing: bool = False  # in the last validation no pixel was predicted; never in a checkpoint, as what follows
    window: Window | None = None  # the steps since the last plan
    ticked: float | None = None  # when `tick` last counted; None while the run is not under way
    pending_steps: list[StepResult] = field(
        default_factory=list
    )  # never in a checkpoint: `faults.look` comes first
    last_loss: float = float("nan")  # of the last step looked at, for the progress bar

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
    LATER_NUMBERS = (
        "best_loss",
        "elapsed",
        "validation_seconds",
        "full_to_half",
        "risen_epoch",
    )  # which checkpoints of 1.0 lack

    @classmethod
    def create(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        device: Device,
        total_steps: int,
    ) -> "State":
        """A state before the first step."""
        average = None
        if (
            config.ema_decay is not None
        ):  # the normalisation's statistics are averaged with the weights they belong to
            average = AveragedModel(
                model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True
            )
        plateau = Plateau(config.scheduler) if isinstance(config.scheduler, PlateauConfig) else None
        return cls(
            model,
            optimizer,
            device.scaler(),
            total_steps,
            round(config.half_resolution * total_steps),
            average,
            plateau,
        )

    @property
    def epoch_began(self) -> int:
        """The step at which the epoch under way began."""
        return self.history[-1]["step"] if self.history else 0

    def follow(self, plans: Sequence[Plan]) -> None:
        """Take the steps of `plans`; its last one says how many there are."""
        self.plans = list(plans)
        self.total_steps, self.half_steps = plans[-1].total, plans[-1].half_steps

    def tick(self) -> None:
        """Count the time since the last call as time of the run. Before `ticked` is set nothing is counted."""
        if self.ticked is not None:
            now = time.monotonic()
            self.elapsed += now - self.ticked
            self.ticked = now

    @property
    def validated(self) -> nn.Module:
        """The weights that are validated, kept and tested: the average if there is one."""
        return self.average.module if self.average is not None else self.model

    def state_dict(self) -> dict[str, Any]:
        self.tick()
        assert not self.pending_steps, (
            "steps that nobody has looked at may be not finite, and their losses would be lost"
        )
        return {
            "model": self.validated.state_dict(),
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
        """Take over a stored state. Raises RuntimeError (torch's) if the weights are those of another model."""
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
        self.risen_epoch = self.best_epoch
        for name in self.LATER_NUMBERS:
            setattr(self, name, stored.get(name, getattr(self, name)))
        self.plans = plans_of(stored)


def plans_of(stored: Mapping[str, Any]) -> list[Plan]:
    """Return the plans that a checkpoint's content holds; none for a run that is counted in epochs."""
    return [
        Plan(int(step), float(share), int(total), int(half))
        for step, share, total, half in stored.get("plans", [])
    ]
