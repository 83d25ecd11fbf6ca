"""The first training step of a run, rehearsed before anything is created: a network, a loss or an optimizer that cannot do it is refused.

The network sees the smallest batch of an epoch, in each size that the run will have. Batch norm fails on a batch of one whose
features are one pixel wide, instance norm on any such batch, and a network with deep supervision returns a list. None of this shows
when the network is built, or on a larger batch.

The rehearsal runs on the meta device, which computes shapes alone. What fails there runs once more with numbers on the CPU, whose
result counts: some networks, such as SwinUNETR, read numbers while they are built, and the meta device has none.
"""

import os
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from brainseg.config import TrainConfig
from brainseg.core.errors import RequestError, check
from brainseg.models import networks
from brainseg.models.unet import UNet, smallest_size
from brainseg.training import losses, optimizers


class Fault(NamedTuple):
    """Why a network cannot train: the error itself, and the rule and the remedy of the message."""

    reason: str
    rule: str
    remedy: str


LONGEST_REASON = 200  # characters of another library's message


def smallest_batch(slices: int, batch_size: int) -> int:
    """Return the slices of the smallest batch of an epoch: the last one holds what the others leave."""
    return slices % batch_size or batch_size


def check_training_step(
    config: TrainConfig, channels: int, classes: Sequence[str], size: tuple[int, int], slices: int
) -> int:
    """Return the number of parameters of the run's network, whose first training step is sound.

    `channels` are those of an image, `size` is its height and width in pixels, `slices` is the length of an epoch. Raises
    RequestError for a network that cannot be built, has too many parameters for this machine, or cannot train on the smallest
    batch at one of the run's sizes, and for a loss or an optimizer that cannot do a step.
    """
    outputs = networks.num_outputs(classes)
    halved = [(size[0] // 2, size[1] // 2)] if config.half_resolution else []
    # Two images stand for any larger batch.
    batch = min(smallest_batch(slices, config.batch_size), 2)
    built = {each: _built(config, channels, outputs, each) for each in (size, *halved)}
    parameters = sum(parameter.numel() for parameter in built[size].parameters())
    _check_memory(config, parameters)
    for each, network in built.items():
        _check_network(config, network, (channels, *each), outputs, batch, slices)
    _check_loss_and_optimizer(config, built[size], outputs)
    return parameters


def _built(
    config: TrainConfig, channels: int, outputs: int, size: tuple[int, int], device: str = "meta"
) -> nn.Module:
    """Return the network without numbers, or with numbers where it reads them while it is built. Raises RequestError."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return networks.build_network(config.model, channels, outputs, size)
    except RequestError:
        if device == "cpu":
            raise
        return _built(config, channels, outputs, size, "cpu")


def _check_memory(config: TrainConfig, parameters: int) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # Weights, gradient and Adam's two moments, in float32.
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
    """Raise RequestError if `network` cannot train on `batch` images of shape (C, H, W), or returns other than logits."""

    def fault(number: int) -> Fault | None:
        if _is_known_to_train(network, image[1:]):
            return None
        at_first = _fault(network, (number, *image), outputs)
        if at_first is None or not next(network.parameters()).is_meta:
            return at_first
        return _fault(
            _built(config, image[0], outputs, image[1:], "cpu"), (number, *image), outputs
        )

    fault_of_batch = fault(batch)
    if fault_of_batch is None:
        return
    if batch == 1 and fault(2) is None:
        rule = (
            f"the last batch of an epoch holds 1 of {slices} slices"
            if config.batch_size > 1
            else "a batch holds 1 slice"
        )
        check(
            False,
            "batch_size",
            config.batch_size,
            f"{rule}, and model.name={config.model.name} cannot train on it ({fault_of_batch.reason})",
            "choose a batch_size that leaves no remainder of 1, lower model.depth, or choose another model.norm",
        )
    check(False, "model.name", config.model.name, fault_of_batch.rule, fault_of_batch.remedy)


def _is_known_to_train(network: nn.Module, size: tuple[int, ...]) -> bool:
    """Return True for our U-Net while its lowest level has more than one pixel: it needs no rehearsal, which takes a while."""
    return isinstance(network, UNet) and max(size) > network.multiple


def _fault(network: nn.Module, shape: tuple[int, ...], outputs: int) -> Fault | None:
    """Return why `network` gives no logits for images of `shape` (B, C, H, W) in training or in eval mode, or None."""
    expected = (shape[0], outputs, *shape[2:])
    images = torch.zeros(shape, device=next(network.parameters()).device)
    for mode in (True, False):
        try:
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
                warnings.simplefilter("ignore")
                logits = network.train(mode)(images)
        except Exception as error:  # a network raises anything for what it cannot take
            reason = _first_line(error)
            rule = f"takes no images of {shape[2]}x{shape[3]} pixels in training ({reason})"
            return Fault(
                reason,
                rule,
                "choose another network or other model.* settings, or prepare images of another size",
            )
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            kind = (
                f"the shape {tuple(logits.shape)}"
                if isinstance(logits, Tensor)
                else f"a {type(logits).__name__}"
            )
            reason = f"returns {kind}, where one tensor of logits {expected} is needed"
            return Fault(
                reason,
                reason,
                "choose a segmentation network, and switch off deep supervision in model.options",
            )
    return None


def _check_loss_and_optimizer(config: TrainConfig, network: nn.Module, outputs: int) -> None:
    """Raise RequestError if the optimizer refuses the network's parameters, or the loss or the optimizer cannot do a step."""
    optimizers.build_optimizer(config.optimizer, network.parameters())
    criterion = losses.build_loss(config.loss, outputs)
    layer = nn.Conv2d(1, outputs, kernel_size=3, padding=1)
    optimizer = optimizers.build_optimizer(config.optimizer, layer.parameters())
    side = smallest_size(6)
    mask = (torch.arange(2 * side * side).reshape(2, 1, side, side) % max(outputs, 2)).to(
        torch.uint8
    )
    for family, name, act in (
        (
            "loss",
            config.loss.name,
            lambda: criterion(layer(torch.ones(2, 1, side, side)).float(), mask).backward(),
        ),
        ("optimizer", config.optimizer.name, optimizer.step),
    ):
        try:
            act()
        except Exception as error:  # as of networks
            raise RequestError(
                f"{family}.name={name}: cannot do a training step ({_first_line(error)}); see {family}.options"
            ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:LONGEST_REASON] if lines else type(error).__name__
