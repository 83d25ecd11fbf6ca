"""Trial of the first training step before any file is created.

A network, loss or optimizer that cannot do the step is refused. The network gets the smallest batch
of an epoch, in each image size of the run. Batch norm fails on a batch of one image whose features
are one pixel wide, instance norm on any batch of such features, and a classifier returns no image.
These errors do not occur when the network is built, or on a larger batch.

The trial runs on the meta device, which computes only shapes. A network that fails there is tried
once more with values on the CPU, and that result counts: some networks, such as SwinUNETR, read
values while they are built, and the meta device has none.
"""

import os
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from brainseg.config import TrainConfig
from brainseg.core.errors import RequestError, check
from brainseg.models import networks
from brainseg.models.unet import UNet, smallest_size
from brainseg.training import losses, optimizers


class Fault(NamedTuple):
    """The reason why a network cannot train, and the rule and remedy of the error message."""

    reason: str
    rule: str
    remedy: str


# Characters of another library's error message.
LONGEST_REASON = 200


def smallest_batch(slices: int, batch_size: int) -> int:
    """Return the number of slices of the smallest batch of an epoch, which is the last one."""
    return slices % batch_size or batch_size


def check_training_step(
    config: TrainConfig, channels: int, classes: Sequence[str], size: tuple[int, int], slices: int
) -> int:
    """Return the number of parameters of the run's network after a successful trial step.

    `channels` are those of an image, `size` is its height and width in pixels, `slices` is the
    length of an epoch. Raises RequestError for a network that cannot be built, has too many
    parameters for this machine, or cannot train on the smallest batch at one of the run's sizes,
    and for a loss or an optimizer that cannot do a step.
    """
    outputs = networks.num_outputs(classes)
    halved = [(size[0] // 2, size[1] // 2)] if config.half_resolution else []
    # Two images stand for any larger batch.
    batch = min(smallest_batch(slices, config.batch_size), 2)
    built = {
        image_size: _build_network(config, channels, outputs, image_size)
        for image_size in (size, *halved)
    }
    parameters = sum(parameter.numel() for parameter in built[size].parameters())
    _check_memory(config, parameters)
    for image_size, network in built.items():
        _check_network(config, network, (channels, *image_size), outputs, batch, slices)
    _check_loss_and_optimizer(config, built[size], outputs)
    return parameters


def _build_network(
    config: TrainConfig, channels: int, outputs: int, size: tuple[int, int], device: str = "meta"
) -> nn.Module:
    """Return the network without values, or with values if it reads them while it is built.

    Raises RequestError.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return networks.build_network(config.model, channels, outputs, size)
    except RequestError:
        if device == "cpu":
            raise
        return _build_network(config, channels, outputs, size, "cpu")


def _check_memory(config: TrainConfig, parameters: int) -> None:
    """Raise RequestError if the weights and the optimizer's state exceed this machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # 16 bytes hold weight, gradient and Adam's two moments in float32.
    check(
        16 * parameters < memory,
        "model",
        config.model.name,
        f"{parameters:,} parameters need more than this machine's {memory / 1e9:.0f} GB",
        "lower model.width, model.depth or model.max_width",
    )


def _check_network(
    config: TrainConfig,
    network: nn.Module,
    image: tuple[int, int, int],
    outputs: int,
    batch: int,
    slices: int,
) -> None:
    """Raise RequestError if `network` cannot train on `batch` images of shape (C, H, W).

    A network that returns anything but logits is refused, too.
    """

    def find_fault(images: int) -> Fault | None:
        if _is_known_to_train(network, image[1:]):
            return None
        fault = _try_forward(network, (images, *image), outputs)
        # A few networks make some of their weights with values even on the meta device.
        if fault is None or not any(parameter.is_meta for parameter in network.parameters()):
            return fault
        on_cpu = _build_network(config, image[0], outputs, image[1:], "cpu")
        return _try_forward(on_cpu, (images, *image), outputs)

    fault = find_fault(batch)
    if fault is None:
        return
    # If two images work, the batch size is wrong and not the network.
    if batch == 1 and find_fault(2) is None:
        rule = (
            f"the last batch of an epoch holds 1 of {slices} slices"
            if config.batch_size > 1
            else "a batch holds 1 slice"
        )
        check(
            False,
            "batch_size",
            config.batch_size,
            f"{rule}, and model.name={config.model.name} cannot train on it ({fault.reason})",
            "choose a batch_size that leaves no remainder of 1, lower model.depth, "
            "or choose another model.norm",
        )
    check(False, "model.name", config.model.name, fault.rule, fault.remedy)


def _is_known_to_train(network: nn.Module, size: tuple[int, ...]) -> bool:
    """Return True for our U-Net if its lowest level has more than one pixel."""
    # The trial takes a while, and this network does not need it.
    return isinstance(network, UNet) and max(size) > network.multiple


def _try_forward(network: nn.Module, shape: tuple[int, ...], outputs: int) -> Fault | None:
    """Return why `network` gives no logits for images of `shape` (B, C, H, W), or None if it does.

    The forward pass is tried in training mode, in which a network with deep supervision returns the
    logits of several levels, and in eval mode.
    """
    expected = (shape[0], outputs, *shape[2:])
    images = torch.zeros(shape, device=next(network.parameters()).device)
    for mode in (True, False):
        try:
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
                warnings.simplefilter("ignore")
                output = network.train(mode)(images)
        except Exception as error:
            # Networks raise errors of any type for an input that they do not support.
            reason = _first_line(error)
            rule = f"takes no images of {shape[2]}x{shape[3]} pixels in training ({reason})"
            return Fault(
                reason,
                rule,
                "choose another network or other model.* settings, "
                "or prepare images of another size",
            )
        levels = output if isinstance(output, list) and mode else [output]
        misfit = next((level for level in levels if _shape_of(level) != expected), None)
        if misfit is not None:
            shape_or_type = _shape_of(misfit) or type(misfit).__name__
            kind = f"{'the shape' if _shape_of(misfit) else 'a'} {shape_or_type}"
            reason = f"returns {kind}, where one tensor of logits {expected} is needed"
            return Fault(
                reason, reason, "choose a segmentation network, not a classifier or an autoencoder"
            )
    return None


def _shape_of(output: Any) -> tuple[int, ...]:
    """Return the shape of a tensor, or an empty tuple for anything else."""
    return tuple(output.shape) if isinstance(output, Tensor) else ()


def _check_loss_and_optimizer(config: TrainConfig, network: nn.Module, outputs: int) -> None:
    """Raise RequestError if the loss or the optimizer cannot do a step.

    The optimizer must also accept the network's parameters.
    """
    optimizers.build_optimizer(config.optimizer, network.parameters())
    criterion = losses.build_loss(config.loss, outputs)
    # A single layer stands for the network.
    layer = nn.Conv2d(1, outputs, kernel_size=3, padding=1)
    optimizer = optimizers.build_optimizer(config.optimizer, layer.parameters())
    side = smallest_size(6)
    mask = (torch.arange(2 * side * side).reshape(2, 1, side, side) % max(outputs, 2)).to(
        torch.uint8
    )
    for group, name, act in (
        (
            "loss",
            config.loss.name,
            lambda: criterion(layer(torch.ones(2, 1, side, side)).float(), mask).backward(),
        ),
        ("optimizer", config.optimizer.name, optimizer.step),
    ):
        try:
            act()
        except Exception as error:
            # Losses and optimizers raise errors of any type, too.
            raise RequestError(
                f"{group}.name={name}: cannot do a training step ({_first_line(error)}); "
                f"change {group}.options, or choose another {group}"
            ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:LONGEST_REASON] if lines else type(error).__name__
