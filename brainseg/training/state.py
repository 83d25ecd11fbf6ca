"""Everything that a training step changes, in one object: what a checkpoint keeps and a resume takes over."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from brainseg.config import PlateauConfig, TrainConfig
from brainseg.device import Device
from brainseg.training.schedules import Plateau

Row = dict[str, Any]  # one epoch of the history: {"epoch", "step", "time", "metrics": {name: number}}


class Given(NamedTuple):
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
    best: float = -1.0  # highest val/dice, the earliest on a tie
    best_epoch: int = -1
    bad_epochs: int = 0
    skipped: int = 0  # steps of this epoch left out because the loss or the gradient was not finite
    history: list[Row] = field(default_factory=list)
    unseen: list[Given] = field(default_factory=list)  # never in a checkpoint: `faults.look` comes first
    last_loss: float = float("nan")  # of the last step looked at, for the progress bar

    NUMBERS = ("total_steps", "half_steps", "epoch", "step", "loss_sum", "slices_seen", "seconds", "best", "best_epoch", "bad_epochs",
               "skipped")

    @classmethod
    def create(cls, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, device: Device, total_steps: int) -> "State":
        """A state before the first step."""
        average = None
        if config.ema_decay is not None:  # the normalisation's statistics are averaged with the weights they belong to
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
        plateau = Plateau(config.scheduler) if isinstance(config.scheduler, PlateauConfig) else None
        return cls(model, optimizer, device.scaler(), total_steps, round(config.half_resolution * total_steps), average, plateau)

    @property
    def epoch_began(self) -> int:
        """The step at which the epoch under way began."""
        return self.history[-1]["step"] if self.history else 0

    @property
    def validated(self) -> nn.Module:
        """The weights that are validated, kept and tested: the average if there is one."""
        return self.average.module if self.average is not None else self.model

    def state_dict(self) -> dict[str, Any]:
        assert not self.unseen, "steps that nobody has looked at may be not finite, and their losses would be lost"
        return {
            "model": self.validated.state_dict(),
            "training_model": self.model.state_dict() if self.average is not None else None,
            "averaged": int(self.average.n_averaged) if self.average is not None else 0,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "plateau": self.plateau.state_dict() if self.plateau is not None else None,
            "history": self.history,
            **{name: getattr(self, name) for name in self.NUMBERS},
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
