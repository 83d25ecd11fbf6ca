"""The U-Net of Ronneberger, Fischer and Brox.

Ronneberger, Fischer, Brox 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
MICCAI.

Legend:  B batch, C channels in, K channels out, H W height and width, F features of a level.
A level is a resolution. Level l works at (H / 2**l, W / 2**l) with
F = min(width * growth**l, max_width) features.

    level 0   block --------------------- skip ----------------------> up + concatenate, block, 1x1
    level 1      pool, block ------------ skip ------------> up + concatenate, block
    level 2              pool, block ---- skip ---> up + concatenate, block
    level 3 (depth 4)            pool, block (bottom)

All layers are in one `nn.Sequential`, so that a loop over the levels builds a network of any depth.
The skip connections use a stack. A forward hook pushes the output of each encoder block, and a
second hook pops it after the up-convolution of the same level. The last pushed output is the first
that is needed. The paper's valid convolutions are padded here, so that logits have the size of the
image.

With stem=2 the network works at half the resolution. Each square of four pixels becomes four
channels (space to depth), and four logits per output become a square of four pixels at the end
(sub-pixel convolution, Shi et al. 2016, "Real-Time Single Image and Video Super-Resolution").
Level l then works at (H / (stem * 2**l), W / (stem * 2**l)). The level at full resolution is the
slowest one: without it a step in float32 on 2 cores takes 0.3 times as long.

With deep supervision, a 1x1 convolution turns the features of each decoder level between the bottom
and the first level into logits of their own, in training only.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brainseg.core.errors import check
from brainseg.models.deep_supervision import enlarge

NORMS = ("batch", "instance", "group", "none")
STEMS = (1, 2, 4)


def smallest_size(depth: int, stem: int = 1) -> int:
    """Return the smallest height and width in pixels of a U-Net, stem * 2**(depth - 1).

    At this size the bottom level has one pixel. Multiples of this size pass without padding. At
    this size itself batch norm cannot train on a batch of one, and instance norm cannot train at
    all, because a single value has no variance (torch raises ValueError).
    """
    return stem * 2 ** (depth - 1)


def normalisation(norm: str, features: int) -> nn.Module:
    """Return the normalisation layer `norm` for (B, F, H, W).

    Group norm has eight groups if the number of features allows it (Wu and He 2018).
    """
    if norm == "batch":
        return nn.BatchNorm2d(features)
    if norm == "instance":
        return nn.InstanceNorm2d(features, affine=True)
    if norm == "group":
        return nn.GroupNorm(math.gcd(features, 8), features)
    return nn.Identity()


class Block(nn.Module):
    """Two 3x3 convolutions, each followed by a norm and a ReLU, and then spatial dropout.

    Spatial dropout drops complete feature maps (Tompson et al. 2015).
    """

    def __init__(self, in_features: int, features: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_features, features, kernel_size=3, padding=1)
        self.bn1 = normalisation(norm, features)
        self.conv2 = nn.Conv2d(features, features, kernel_size=3, padding=1)
        self.bn2 = normalisation(norm, features)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, features, H, W) of the input (B, in_features, H, W)."""
        # ReLU does not work in place. The output of the norm is freed at once in both cases, and a
        # step in bf16 on 2 cores is 7 % faster this way.
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.dropout(x)


class UNet(nn.Module):
    """U-Net of any depth and width, from images (B, C, H, W) to logits (B, K, H, W) of any size.

    `depth` is the number of levels, with depth - 1 poolings. K = 1 is one foreground class,
    followed by a sigmoid. K > 1 are K classes including the background, followed by a softmax. With
    depth=4, width=32, growth=1 the network has 161,985 parameters, and its weights have the names
    of the reference implementation. `stem` is 1, 2 or 4, the factor by which the first level is
    smaller than the image. With `deep_supervision`, which needs a depth of at least 3, training
    returns the list of the logits of levels 0, 1, ... depth - 2, all of the size of the image. The
    weights of such a network load into one without deep supervision, too. Each copy has its own
    stack, and an instance must be used by one thread only. Raises RequestError for impossible
    arguments and for an image of another shape than (B, in_channels, H, W).
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        depth: int = 4,
        width: int = 32,
        growth: int = 1,
        max_width: int | None = None,
        norm: str = "batch",
        dropout: float = 0.0,
        stem: int = 1,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        counts = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "depth": depth,
            "width": width,
            "growth": growth,
        }
        for name, value in counts.items():
            check(
                isinstance(value, int) and value >= 1,
                f"model.{name}",
                value,
                "must be a whole number of at least 1",
            )
        cap = width * growth**depth if max_width is None else max_width
        check(
            cap >= width,
            "model.max_width",
            max_width,
            f"must be null or at least model.width={width}",
        )
        check(norm in NORMS, "model.norm", norm, f"must be one of {', '.join(NORMS)}")
        check(0 <= dropout < 1, "model.dropout", dropout, "must lie in [0, 1)")
        check(stem in STEMS, "model.stem", stem, "must be 1, 2 or 4")
        check(
            not deep_supervision or depth >= 3,
            "model.deep_supervision",
            "true",
            f"has no effect with model.depth={depth}, which has no decoder level to supervise",
            "set model.depth to at least 3",
        )

        self.in_channels = in_channels
        self.stem = stem
        self.multiple = smallest_size(depth, stem)
        self.activations: list[Tensor] = []
        self.decoded: list[Tensor] = []
        features = [min(width * growth**level, cap) for level in range(depth)]
        self.layers = nn.Sequential()
        features_in = in_channels * stem**2
        for level in range(depth):
            if level > 0:
                self.layers.append(nn.MaxPool2d(2))
            self.layers.append(Block(features_in, features[level], norm, dropout))
            features_in = features[level]
            if level < depth - 1:
                self.layers[-1].register_forward_hook(self.push)
        for level in reversed(range(depth - 1)):
            self.layers.append(
                nn.ConvTranspose2d(
                    features_in, features[level], kernel_size=2, stride=2, bias=False
                )
            )
            self.layers[-1].register_forward_hook(self.pop)
            self.layers.append(Block(2 * features[level], features[level], norm, dropout))
            if deep_supervision and level > 0:
                self.layers[-1].register_forward_hook(self.keep_decoded)
            features_in = features[level]
        self.layers.append(nn.Conv2d(features_in, out_channels * stem**2, kernel_size=1))
        # The heads come last, so that a seed gives the other layers the weights that they have
        # without deep supervision. They are ordered as the decoder, from the lowest level up.
        self.heads = nn.ModuleList(
            nn.Conv2d(features[level], out_channels, kernel_size=1)
            for level in (range(depth - 2, 0, -1) if deep_supervision else ())
        )
        if not deep_supervision:
            self.register_load_state_dict_pre_hook(drop_heads)

    # The hooks are bound methods, so that pickle finds them by name and deepcopy binds them to the
    # copy. A closure would continue to use the stack of the original.
    def push(self, block: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        """Push the output (B, F, h, w) of an encoder block to the stack, as its forward hook."""
        self.activations.append(output)

    def pop(self, up: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """Return the output of an up-convolution with the skip connection, as its forward hook.

        The output (B, F, h, w) and the skip (B, F, h, w) are concatenated to (B, 2F, h, w).
        """
        return torch.cat([output, self.activations.pop()], dim=1)

    def keep_decoded(self, block: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep the output (B, F, h, w) of a decoder block in training, as its forward hook."""
        if self.training:
            self.decoded.append(output)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return the logits (B, K, H, W) of an image (B, C, H, W).

        With deep supervision, training returns a list of the logits of all levels, the first level
        first.
        """
        check(
            image.ndim == 4 and image.shape[1] == self.in_channels,
            "image shape",
            tuple(image.shape),
            f"must be (B, {self.in_channels}, H, W) for model.in_channels={self.in_channels}",
            "check data.channel and data.context",
        )
        height, width = image.shape[-2:]
        pad_rows, pad_columns = -height % self.multiple, -width % self.multiple
        if pad_rows or pad_columns:
            # The padding consists of zeros, which is the black that surrounds every head and the
            # padding of the convolutions. Replicated edges would smear tissue outwards, and their
            # gradient is not deterministic on CUDA. The padding is below and to the right, so that
            # the pixels keep their place in the pooling grid.
            image = F.pad(image, (0, pad_columns, 0, pad_rows))
        padded_size = image.shape[-2:]
        if self.stem > 1:
            image = F.pixel_unshuffle(image, self.stem)
        try:
            logits = self.layers(image)
            # Outside training no features were kept, so that the list is empty.
            auxiliary = [
                enlarge(head(features), padded_size)
                for head, features in zip(self.heads, self.decoded, strict=False)
            ]
        finally:
            # After a forward that failed, the next forward would otherwise pop a stale skip.
            self.activations.clear()
            self.decoded.clear()
        if self.stem > 1:
            logits = F.pixel_shuffle(logits, self.stem)
        levels = [logits, *reversed(auxiliary)]
        if pad_rows or pad_columns:
            levels = [level[..., :height, :width] for level in levels]
        return levels if auxiliary else levels[0]


def drop_heads(network: nn.Module, weights: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Remove the heads of deep supervision from weights, before a network without them loads them.

    The arguments are those of a hook of `Module.register_load_state_dict_pre_hook`.
    """
    for name in [name for name in weights if name.startswith(f"{prefix}heads.")]:
        del weights[name]
