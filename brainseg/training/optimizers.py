"""Optimizers by name, from torch.optim and from the entry points `brainseg.optimizers`."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from brainseg.config import OptimizerConfig
from brainseg.core.errors import check
from brainseg.core.extensions import (
    call_with_options,
    known_names,
    load_extension,
    registered_names,
)

OPTIMIZERS = {
    name.lower(): value
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value)
    and issubclass(value, torch.optim.Optimizer)
    and value is not torch.optim.Optimizer
}
# Fused optimizers pass over weight, gradient and moments once instead of once per operation. They
# take less than half the time.
FUSED_OPTIMIZERS = ("adam", "adamw", "sgd")
FUSED_DEVICES = ("cpu", "cuda")
# The training step passes no closure, and its gradients are dense.
UNSUPPORTED = {"lbfgs": "needs a closure", "sparseadam": "takes only sparse gradients"}


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Return the optimizer of `parameters`. Raises RequestError."""
    name = config.name.lower()
    check(
        name not in UNSUPPORTED,
        "optimizer.name",
        config.name,
        UNSUPPORTED.get(name, ""),
        "choose another optimizer",
    )
    factory = OPTIMIZERS.get(name) or load_extension("brainseg.optimizers", config.name)
    check(
        factory is not None,
        "optimizer.name",
        config.name,
        "no such optimizer",
        known_names(config.name, [*OPTIMIZERS, *registered_names("brainseg.optimizers")]),
    )
    arguments: dict[str, Any] = {"params": list(parameters), "lr": config.lr}
    if config.weight_decay is not None:
        arguments["weight_decay"] = config.weight_decay
    # A choice in the request takes precedence. Torch refuses `fused` with the other two options.
    conflicts = {"fused", "foreach", "differentiable"} & config.options.keys()
    if (
        name in FUSED_OPTIMIZERS
        and not conflicts
        and all(parameter.device.type in FUSED_DEVICES for parameter in arguments["params"])
    ):
        arguments["fused"] = True
    return call_with_options(factory, "optimizer", config, arguments)
