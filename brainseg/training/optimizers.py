"""Optimizers by name: those of torch.optim, and those of installed packages (entry points `brainseg.optimizers`)."""

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
# One pass over weight, gradient and moments instead of one for each operation: less than half the time, on the devices of FUSING.
FUSED = ("adam", "adamw", "sgd")
FUSING = ("cpu", "cuda")
NEEDS_MORE = {"lbfgs": "needs a closure", "sparseadam": "takes sparse gradients only"}


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer over `parameters`. Raises RequestError."""
    name = config.name.lower()
    check(
        name not in NEEDS_MORE,
        "optimizer.name",
        config.name,
        NEEDS_MORE.get(name, ""),
        "choose another",
    )
    found = OPTIMIZERS.get(name) or load_extension("brainseg.optimizers", config.name)
    check(
        found is not None,
        "optimizer.name",
        config.name,
        "no such optimizer",
        known_names(config.name, [*OPTIMIZERS, *registered_names("brainseg.optimizers")]),
    )
    given: dict[str, Any] = {"params": list(parameters), "lr": config.lr}
    if config.weight_decay is not None:
        given["weight_decay"] = config.weight_decay
    own_choice = {"fused", "foreach", "differentiable"} & config.options.keys()
    if (
        name in FUSED
        and not own_choice
        and all(parameter.device.type in FUSING for parameter in given["params"])
    ):
        given["fused"] = True
    return call_with_options(found, "optimizer", config, given)
