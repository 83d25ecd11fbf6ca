"""Networks by name: ours, MONAI's, and those of installed packages (entry points `brainseg.models`)."""

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
from brainseg.models.unet import UNet, smallest_size


def num_outputs(classes: Sequence[str]) -> int:
    """Outputs of the network: one, behind a sigmoid, for background and one class; else one a class, behind a softmax."""
    return len(classes) if len(classes) > 2 else 1


def build_network(
    config: ModelConfig, in_channels: int, out_channels: int, size: tuple[int, int]
) -> nn.Module:
    """The network for images (B, in_channels, *size) and logits (B, out_channels, *size). Raises RequestError."""
    if isinstance(config, UNetConfig) and config.name == "unet":
        smallest = smallest_size(config.depth)
        check(
            min(size) >= smallest,
            "model.depth",
            config.depth,
            f"images of {size[0]}x{size[1]} pixels are below {smallest}",
            "lower model.depth",
        )
        check(
            not config.options,
            "model.options",
            config.options,
            "unet takes none",
            "set model.depth, model.width and the like",
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
        )
    found = _network(config.name)
    check(
        found is not None,
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
    given = {
        "spatial_dims": 2,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "pretrained": False,
    }
    return call_with_options(
        found,
        "model",
        config,
        given if "img_size" in config.options else given | {"img_size": size},
    )


def needs_fixed_size(config: ModelConfig) -> bool:
    """Whether the network is built for one size of image (it is told `img_size`, as UNETR) and takes no other."""
    found = None if isinstance(config, UNetConfig) else _network(config.name)
    return found is not None and "img_size" in inspect.signature(found).parameters


def unsupported_size_reason(network: nn.Module, in_channels: int, size: tuple[int, int]) -> str:
    """Why the network cannot take images of this size, as torch says it; "" if it can, or if only a real image would tell.

    It sees shapes alone, which takes neither memory nor time. MONAI's networks want sides that their poolings divide; ours pads.
    """
    if isinstance(network, UNet):
        return ""
    try:
        shapes = copy.deepcopy(network).to("meta").eval()
        with torch.no_grad():
            shapes(torch.empty(1, in_channels, *size, device="meta"))
    except Exception as error:  # of another size; or an operation that needs numbers, a network that cannot be copied, whatever it raises
        reason = (str(error).splitlines() or [""])[0]
        return (
            reason
            if any(word in reason.lower() for word in ("size", "divisible", "spatial"))
            else ""
        )
    return ""


def _network(name: str) -> Callable[..., nn.Module] | None:
    return load_extension("brainseg.models", name) or monai_class(
        "monai.networks.nets", name, nn.Module
    )
