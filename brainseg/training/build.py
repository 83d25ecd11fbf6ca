"""Network, loss and optimizer of a run, built from its settings."""

import torch

from brainseg.config import TrainConfig
from brainseg.core.seeds import seed_for
from brainseg.data.open import RunData
from brainseg.device import Device
from brainseg.models import networks
from brainseg.training import losses, optimizers
from brainseg.training.context import TrainingContext
from brainseg.training.state import State


def build_task(config: TrainConfig, device: Device, data: RunData) -> TrainingContext:
    """Return the objects that stay the same during a run. Raises RequestError."""
    outputs = networks.num_outputs(data.store.classes)
    criterion = losses.build_loss(config.loss, outputs).to(device.torch)
    return TrainingContext(config, device, data.train, data.validation, criterion)


def build_state(task: TrainingContext) -> State:
    """Return model, optimizer and schedule before the first step.

    The initial weights are a function of `seed`.
    """
    config = task.config
    torch.manual_seed(seed_for(config.seed, "weights"))
    outputs = networks.num_outputs(task.train.store.classes)
    model = task.device.place(
        networks.build_network(config.model, task.train.channels, outputs, task.train.size)
    )
    optimizer = optimizers.build_optimizer(config.optimizer, model.parameters())
    total_steps = config.max_steps or config.epochs * task.steps_per_epoch
    return State.create(model, optimizer, config, task.device, total_steps)
