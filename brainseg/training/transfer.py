"""Weights of another network as the initial weights of a run: those that fit by name and shape.

Another number of input channels is no obstacle. The first convolution's channels are repeated in
order and rescaled by the ratio of the numbers, so that its output keeps its size (as in timm's
`adapt_input_conv`). The source may also be an image classifier, such as a ResNet of torchvision or
timm, whose weights then fit the encoder of a network.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from brainseg.training.state import State

# Where networks keep an encoder that is also an image classifier: those of
# segmentation_models_pytorch and MONAI's FlexibleUNet, and the former with an encoder of timm.
ENCODERS = ("encoder.", "encoder.model.")


class FittedWeights(NamedTuple):
    """The weights that fit a network, and the names of the others."""

    # By the names of the network.
    weights: dict[str, Tensor]
    # Convolutions whose input channels were repeated.
    adapted: list[str]
    # Weights of the network that keep their random values.
    missing: list[str]
    # Weights of the source that are not used.
    unused: list[str]

    @property
    def has_filters(self) -> bool:
        """Return True if a weight with more than one dimension fits, and not only norms."""
        return any(weight.ndim > 1 for weight in self.weights.values())


def fit_weights(
    source: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    channels: int,
    source_channels: int | None = None,
) -> FittedWeights:
    """Return the weights of `source` that fit the weights `expected` by name and shape.

    Names may have a prefix that other programs add, such as `module.`. `channels` is the number of
    input channels of the network, and `source_channels` that of the source, None if unknown. Values
    of `expected` are not read, so that they may be on the meta device.
    """
    names = _match_names(source, expected)
    change = _find_channel_change(source, expected, names, channels, source_channels)
    fitted, adapted = {}, []
    for name, target in expected.items():
        weight = source.get(names.get(name, ""))
        if weight is None:
            continue
        if weight.shape == target.shape:
            fitted[name] = weight
        elif change and _differs_in_channels(weight, target, change):
            fitted[name] = repeat_channels(weight, target.shape[1], change.block)
            adapted.append(name)
    used = {names[name] for name in fitted}
    return FittedWeights(
        fitted,
        adapted,
        [name for name in expected if name not in fitted],
        [name for name in source if name not in used],
    )


def load_fitted_weights(state: State, fitted: FittedWeights) -> None:
    """Load the weights into a state before its first step, and into its averaged weights."""
    state.model.load_state_dict(fitted.weights, strict=False)
    if state.average is not None:
        state.average.module.load_state_dict(state.model.state_dict())


def repeat_channels(weight: Tensor, size: int, block: int = 1) -> Tensor:
    """Return a filter (F, size, h, w) from a filter (F, C * block, h, w).

    Each image channel has `block` consecutive input channels, as after space to depth. Channel c of
    the result is channel c modulo C of `weight`, times C * block / size.
    """
    count, total = size // block, weight.shape[1] // block
    blocks = weight.unflatten(1, (total, block))[:, torch.arange(count) % total]
    return blocks.flatten(1, 2) * (total / count)


class ChannelChange(NamedTuple):
    """Input channels of the first convolution in the source and in the network."""

    source_size: int
    size: int
    # Input channels of the convolution per channel of the image.
    block: int


def _find_channel_change(
    source: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    names: Mapping[str, str],
    channels: int,
    source_channels: int | None,
) -> ChannelChange | None:
    """Return how the input of the first convolution differs, or None if it is the same or unfit."""
    name = next((name for name, target in expected.items() if target.ndim == 4), "")
    weight = source.get(names.get(name, ""))
    if weight is None or weight.ndim != 4 or expected[name].shape[1] % channels:
        return None
    source_size, size = weight.shape[1], expected[name].shape[1]
    block = size // channels
    # A source of unknown channels is taken to have the same layout.
    fits = 0 < source_size == block * (source_channels or source_size // block)
    change = ChannelChange(source_size, size, block)
    return change if fits and _differs_in_channels(weight, expected[name], change) else None


def _differs_in_channels(weight: Tensor, target: Tensor, change: ChannelChange) -> bool:
    """Return True for filters that differ in the number of input channels alone, as in `change`."""
    return (
        weight.ndim == target.ndim == 4
        and (weight.shape[1], target.shape[1]) == (change.source_size, change.size)
        and change.source_size != change.size
        and weight.shape[0] == target.shape[0]
        and weight.shape[2:] == target.shape[2:]
    )


def _match_names(source: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the source's name of each weight of the network that the source has.

    The source may stand for the whole network or for its encoder. What gives most names is taken.
    """
    candidates = [_strip_prefix(source, {name: name for name in expected})]
    for encoder in ENCODERS:
        plain = {name: name.removeprefix(encoder) for name in expected if name.startswith(encoder)}
        candidates.append(_strip_prefix(source, plain))
        # In an encoder of timm the layers `stages.0` of the classifier are called `stages_0`.
        classifier = {name: re.sub(r"_(\d+)\.", r".\1.", text) for name, text in plain.items()}
        candidates.append(_strip_prefix(source, classifier))
    return max(candidates, key=len)


def _strip_prefix(source: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, str]:
    """Return the `names` that exist in the source under the prefix that gives most of them."""
    first = next(iter(names.values()), "")
    prefixes = {key.removesuffix(first) for key in source if f".{key}".endswith(f".{first}")}
    candidates = [
        {name: prefix + plain for name, plain in names.items() if prefix + plain in source}
        for prefix in sorted(prefixes | {""}, key=len)
    ]
    return max(candidates, key=len)
