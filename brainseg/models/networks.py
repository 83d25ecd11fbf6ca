"""Networks by name: from this package, MONAI, segmentation_models_pytorch and entry points.

To add one, write it in a package with an entry point `brainseg.models` (docs/extending.md), or
here: a module beside unet.py, a branch in `build_network`, its settings in config/model.py and
config/schema.py, and conf/model/NAME.yaml for `model=NAME`.
"""

import copy
import inspect
from collections.abc import Callable, Sequence

import torch
from torch import nn

from brainseg.config import ModelConfig, UNetConfig
from brainseg.core.errors import check
from brainseg.core.extensions import (
    call_with_options,
    known_names,
    load_extension,
    monai_class,
    registered_names,
)
from brainseg.models.deep_supervision import unify_outputs
from brainseg.models.smp import PREFIX, find_smp_class, smp_arguments
from brainseg.models.unet import UNet, smallest_size


def num_outputs(classes: Sequence[str]) -> int:
    """Return the number of output channels of a network.

    Background and one other class need one channel, followed by a sigmoid. More classes need one
    channel per class, followed by a softmax.
    """
    return len(classes) if len(classes) > 2 else 1


def build_network(
    config: ModelConfig, in_channels: int, out_channels: int, size: tuple[int, int]
) -> nn.Module:
    """Return the network for images (B, in_channels, *size) and logits (B, out_channels, *size).

    A network with deep supervision returns a list of such logits in training.
    Raises RequestError if the name or the options are wrong, or the images are too small.
    """
    if isinstance(config, UNetConfig) and config.name == "unet":
        smallest = smallest_size(config.depth, config.stem)
        check(
            min(size) >= smallest,
            "model.depth",
            config.depth,
            f"images of {size[0]}x{size[1]} pixels are too small, at least {smallest} are needed",
            "lower model.depth or model.stem",
        )
        check(
            not config.options,
            "model.options",
            config.options,
            "unet has no further options",
            "set model.depth, model.width and the other settings of model",
        )
        return UNet(
            in_channels,
            out_channels,
            config.depth,
            config.width,
            config.growth,
            config.max_width,
            config.norm,
            config.dropout,
            config.stem,
            config.deep_supervision,
        )
    constructor = _find_constructor(config.name)
    check(
        constructor is not None,
        "model.name",
        config.name,
        "no such network",
        known_names(
            config.name,
            ["unet", *registered_names("brainseg.models")],
            "monai.networks.nets",
            nn.Module,
        ),
    )
    arguments: dict[str, object] = {
        "spatial_dims": 2,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "pretrained": False,
    }
    if "img_size" not in config.options:
        arguments["img_size"] = size
    if config.name.startswith(PREFIX):
        arguments |= smp_arguments(config.name, config.options, out_channels)
    network = call_with_options(constructor, "model", config, arguments)
    network.register_forward_hook(unify_outputs)
    return network


def needs_fixed_size(config: ModelConfig) -> bool:
    """Return True if the network takes only the size of image for which it was built.

    Such a network, for example UNETR, has the parameter `img_size`.
    """
    constructor = None if isinstance(config, UNetConfig) else _find_constructor(config.name)
    return constructor is not None and "img_size" in inspect.signature(constructor).parameters


def unsupported_size_reason(network: nn.Module, in_channels: int, size: tuple[int, int]) -> str:
    """Return torch's reason why the network cannot take images of this size.

    The reason is "" if the network can take them, or if only a real image would show the failure.
    The check computes shapes alone, which takes neither memory nor time. Networks of MONAI need
    sides that their poolings divide, while the U-Net of this package pads.
    """
    if isinstance(network, UNet):
        return ""
    try:
        shapes = copy.deepcopy(network).to("meta").eval()
        with torch.no_grad():
            shapes(torch.empty(1, in_channels, *size, device="meta"))
    except Exception as error:
        # Networks raise all kinds of errors, so the text of the error decides if the size is the
        # reason. Other reasons are an operation that needs numbers, or a network that cannot be
        # copied.
        reason = (str(error).splitlines() or [""])[0]
        return (
            reason
            if any(word in reason.lower() for word in ("size", "divisible", "spatial"))
            else ""
        )
    return ""


def _find_constructor(name: str) -> Callable[..., nn.Module] | None:
    """Return the class or function that builds the network `name`, or None."""
    return (
        load_extension("brainseg.models", name)
        or find_smp_class(name)
        or monai_class("monai.networks.nets", name, nn.Module)
    )
