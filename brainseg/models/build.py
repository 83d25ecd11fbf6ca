"""The one place where names become a model, a loss and an optimizer.

A name is looked up in our own table, then in the family's library (MONAI's networks and losses, torch.optim), then among the
entry points of installed packages (groups `brainseg.models`, `brainseg.losses`, `brainseg.optimizers`). Names, never import
paths: a config cannot make the runner import anything.
"""

import copy
import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brainseg.config import LossConfig, ModelConfig, OptimizerConfig, UNetConfig
from brainseg.core.errors import RequestError, check
from brainseg.core.extensions import extension, registered
from brainseg.models.unet import UNet, smallest_size
from brainseg.training.losses import BCEDiceLoss, DiceLoss

LOSSES: dict[str, Callable[..., nn.Module]] = {"dice": DiceLoss, "bce_dice": BCEDiceLoss}
OPTIMIZERS = {
    name.lower(): value
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value)
    and issubclass(value, torch.optim.Optimizer)
    and value is not torch.optim.Optimizer
}
# Classes of MONAI that fetch weights, and torch.hub code with them, by themselves; of the others `pretrained...` is switched off.
FETCHING = (
    "PerceptualLoss",
    "TorchVisionFCModel",
    "Transchex",
    "MultiModal",
    "BertPreTrainedModel",
)
# One pass over weight, gradient and moments instead of one for each operation: less than half the time, on the devices of FUSING.
FUSED = ("adam", "adamw", "sgd")
FUSING = ("cpu", "cuda")
NEEDS_MORE = {"lbfgs": "needs a closure", "sparseadam": "takes sparse gradients only"}


def outputs(classes: Sequence[str]) -> int:
    """Outputs of the network: one, behind a sigmoid, for background and one class; else one a class, behind a softmax."""
    return len(classes) if len(classes) > 2 else 1


class FloatMask(nn.Module):
    """MONAI's losses want a mask of the logits' type."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, K, H, W), mask (B, 1, H, W) -> loss ()."""
        return self.criterion(logits, mask.to(logits.dtype))


def model(
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
        _known(
            config.name, ["unet", *registered("brainseg.models")], "monai.networks.nets", nn.Module
        ),
    )
    given = {
        "spatial_dims": 2,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "pretrained": False,
    }
    return _call(
        found,
        "model",
        config,
        given if "img_size" in config.options else given | {"img_size": size},
    )


def of_one_size(config: ModelConfig) -> bool:
    """Whether the network is built for one size of image (it is told `img_size`, as UNETR) and takes no other."""
    found = None if isinstance(config, UNetConfig) else _network(config.name)
    return found is not None and "img_size" in inspect.signature(found).parameters


def size_fault(network: nn.Module, in_channels: int, size: tuple[int, int]) -> str:
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
    return extension("brainseg.models", name) or _monai("monai.networks.nets", name, nn.Module)


def loss(config: LossConfig, outputs: int = 1) -> nn.Module:
    """The criterion for a network of K `outputs`: called as loss(logits (B, K, H, W), mask uint8 (B, 1, H, W)). Raises RequestError."""
    own = LOSSES.get(config.name) or extension("brainseg.losses", config.name)
    found = own or _monai("monai.losses", config.name, nn.Module)
    check(
        found is not None,
        "loss.name",
        config.name,
        "no such loss",
        _known(config.name, [*LOSSES, *registered("brainseg.losses")], "monai.losses", nn.Module),
    )
    if own:
        return _call(found, "loss", config, {})
    return FloatMask(_call(found, "loss", config, _activation(found, config, outputs)))


def _activation(
    found: Callable[..., nn.Module], config: LossConfig, outputs: int
) -> dict[str, Any]:
    """What MONAI's losses must be told of the logits and the mask; ours see it from the shapes. Options of the request go first.

    One output: a sigmoid. Several: a softmax, and class indices to be spread over as many channels. A loss that measures overlap
    (it takes `softmax`; the pixel-wise ones take `use_softmax`) leaves the background out, as ours: its Dice is always high.
    """
    taken = inspect.signature(found).parameters
    if outputs == 1:
        told: dict[str, Any] = {"sigmoid": True}
    else:
        softmax = next((name for name in ("softmax", "use_softmax") if name in taken), None)
        fits = softmax is not None and "to_onehot_y" in taken
        check(
            fits,
            "loss.name",
            config.name,
            f"the data have {outputs} classes, and it takes no softmax of class indices",
            "use dice, bce_dice or a loss of MONAI that takes softmax and to_onehot_y, as DiceCELoss",
        )
        told = {
            str(softmax): True,
            "to_onehot_y": True,
            **({"include_background": False} if softmax == "softmax" else {}),
        }
        sigmoid = bool(config.options.get("sigmoid"))
        check(
            not sigmoid,
            "loss.options.sigmoid",
            "true",
            f"the data have {outputs} classes behind a softmax",
            "leave it out",
        )
    return {
        name: value for name, value in told.items() if name in taken and name not in config.options
    }


def optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer over `parameters`. Raises RequestError."""
    name = config.name.lower()
    check(
        name not in NEEDS_MORE,
        "optimizer.name",
        config.name,
        NEEDS_MORE.get(name, ""),
        "choose another",
    )
    found = OPTIMIZERS.get(name) or extension("brainseg.optimizers", config.name)
    check(
        found is not None,
        "optimizer.name",
        config.name,
        "no such optimizer",
        _known(config.name, [*OPTIMIZERS, *registered("brainseg.optimizers")]),
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
    return _call(found, "optimizer", config, given)


def _call(found: Any, family: str, config: Any, given: dict[str, Any]) -> Any:
    """Call what a name stands for with the options it takes; the others are refused by name."""
    taken = inspect.signature(found).parameters
    options = {**{key: value for key, value in given.items() if key in taken}, **config.options}
    free = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values())
    for key, value in config.options.items():
        check(
            free or key in taken,
            f"{family}.options.{key}",
            value,
            f"{config.name} takes no such option",
            f"known: {', '.join(name for name in taken if name not in given)}{_without_options(family, config.name)}",
        )
        check(
            key not in given and not str(key).startswith("pretrained"),
            f"{family}.options.{key}",
            value,
            "is no option",
            "no weights are fetched"
            if str(key).startswith("pretrained")
            else "the data or another setting says it",
        )
    if "weight_decay" in given and "weight_decay" not in taken:
        raise RequestError(
            f"optimizer.weight_decay={given['weight_decay']}: {config.name} takes none; set it to null"
        )
    try:
        return found(**options)
    except Exception as error:  # options are free, and there is nothing that torch and MONAI do not raise for those they cannot take
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise RequestError(f"{family}={config.name}: {reason}; see {family}.options") from error


def _without_options(family: str, name: str) -> str:
    """Return how to choose a loss or an optimizer without the options of the choice that was composed, after a semicolon."""
    choice = {"loss": "monai", "optimizer": "own"}.get(family)
    return (
        f"; if the option is that of another choice, write {family}={choice} {family}.name={name}"
        if choice
        else ""
    )


def _monai(module: str, name: str, kind: type) -> Any:
    """Return the class that MONAI's module defines under this name, or None."""
    if not name.isidentifier() or not name[0].isupper():
        return None
    return _monai_classes(module, kind).get(name)


def _monai_classes(module: str, kind: type) -> dict[str, Any]:
    """Return the classes that MONAI's module itself defines, by name; its imports of other libraries are not offered."""
    # The import takes seconds, so it waits until such a name is asked for.
    import monai.losses
    import monai.networks.nets

    members = vars(
        {"monai.losses": monai.losses, "monai.networks.nets": monai.networks.nets}[module]
    )
    own = (
        found
        for found in members.items()
        if inspect.isclass(found[1]) and issubclass(found[1], kind)
    )
    return {
        name: found
        for name, found in own
        if found.__module__.startswith(module) and name not in FETCHING
    }


def _known(name: str, table: Iterable[str], module: str = "", kind: type = object) -> str:
    """Return which known name was meant, if one is like it, and where the known names are listed."""
    listed = sorted(table)
    close = difflib.get_close_matches(name, listed, n=1)
    if module and not close:
        theirs = _monai_classes(module, kind)
        close = [
            other for other in theirs if other.lower() == name.lower()
        ] or difflib.get_close_matches(name, theirs, n=1, cutoff=0.8)
    more = f" or a class of {module}" if module else ""
    return (f"did you mean {close[0]}? " if close else "") + f"known: {', '.join(listed)}{more}"
