"""The U-Net (Ronneberger, Fischer, Brox 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI).

Legend:  B batch, C channels in, K channels out, H W height and width, F features of a level.
A level is a resolution: level l works at (H / 2**l, W / 2**l) with F = min(width * growth**l, max_width) features.

    level 0   block ---------------------------- skip ----------------------------> up + concatenate, block, 1x1
    level 1      pool, block ------------------- skip ------------> up + concatenate, block
    level 2              pool, block ----------- skip ---> up + concatenate, block
    level 3 (depth 4)            pool, block (bottom)

Everything stands in one `nn.Sequential`, so that the depth is a loop and nothing else. The skip connections travel over a
stack: a forward hook pushes what an encoder block gives, another pops it behind the up-convolution of the same level; what
was pushed last is wanted first. The paper's valid convolutions are padded here, so that logits have the size of the image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brainseg.core.errors import check

NORMS = ("batch", "instance", "group", "none")


def smallest_size(depth: int) -> int:
    """Height and width in pixels at which the bottom of a U-Net of this depth still has one pixel: 2**(depth - 1).

    It is also what a size must be a multiple of to pass without padding. At this very size batch norm cannot train on a
    batch of one, and instance norm cannot train at all: a single value has no variance (torch raises ValueError).
    """
    return 2 ** (depth - 1)


def normalisation(norm: str, features: int) -> nn.Module:
    """The layer for (B, F, H, W) that `norm` names. Groups: eight where the features allow it (Wu and He 2018)."""
    if norm == "batch":
        return nn.BatchNorm2d(features)
    if norm == "instance":
        return nn.InstanceNorm2d(features, affine=True)
    if norm == "group":
        return nn.GroupNorm(math.gcd(features, 8), features)
    return nn.Identity()


class Block(nn.Module):
    """Two 3x3 convolutions, each followed by a norm and a ReLU; then dropout of whole feature maps (Tompson et al. 2015)."""

    def __init__(self, in_features: int, features: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_features, features, kernel_size=3, padding=1)
        self.bn1 = normalisation(norm, features)
        self.conv2 = nn.Conv2d(features, features, kernel_size=3, padding=1)
        self.bn2 = normalisation(norm, features)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features, H, W) -> (B, features, H, W)."""
        # Not in place: what the norm gave is freed at once either way, and a step in bf16 on 2 cores is 7 % faster so.
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.dropout(x)


class UNet(nn.Module):
    """U-Net of any depth and width: images (B, C, H, W) in, logits (B, K, H, W) out, of any height and width.

    `depth` counts the levels (depth - 1 poolings). K = 1 is one foreground class behind a sigmoid, K > 1 are K classes,
    background included, behind a softmax. With depth=4, width=32, growth=1 it has 161,985 parameters and the names of the
    reference's weights. A copy has a stack of its own; one instance serves one thread. Raises RequestError for impossible
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

        self.in_channels = in_channels
        self.multiple = smallest_size(depth)
        self.activations: list[Tensor] = []
        features = [min(width * growth**level, cap) for level in range(depth)]
        self.layers = nn.Sequential()
        before = in_channels
        for level in range(depth):
            if level > 0:
                self.layers.append(nn.MaxPool2d(2))
            self.layers.append(Block(before, features[level], norm, dropout))
            before = features[level]
            if level < depth - 1:
                self.layers[-1].register_forward_hook(self.push)
        for level in reversed(range(depth - 1)):
            self.layers.append(
                nn.ConvTranspose2d(before, features[level], kernel_size=2, stride=2, bias=False)
            )
            self.layers[-1].register_forward_hook(self.pop)
            self.layers.append(Block(2 * features[level], features[level], norm, dropout))
            before = features[level]
        self.layers.append(nn.Conv2d(before, out_channels, kernel_size=1))

    # The hooks are bound methods: pickle finds them by name, and deepcopy binds them to the copy (a closure would go on
    # using the stack of the original).
    def push(self, block: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        """Forward hook of an encoder block: keep its output (B, F, h, w) for the way up."""
        self.activations.append(output)

    def pop(self, up: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """Forward hook of an up-convolution: (B, F, h, w) and the skip (B, F, h, w) -> (B, 2F, h, w), the skip last."""
        return torch.cat([output, self.activations.pop()], dim=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K, H, W)."""
        check(
            image.ndim == 4 and image.shape[1] == self.in_channels,
            "image shape",
            tuple(image.shape),
            f"must be (B, {self.in_channels}, H, W) for model.in_channels={self.in_channels}",
            "check data.volume and data.context",
        )
        height, width = image.shape[-2:]
        below, right = -height % self.multiple, -width % self.multiple
        if below or right:
            # Zeros: the black that surrounds every head, and what the convolutions pad with; replicated edges would smear
            # tissue outwards, and their gradient is not deterministic on CUDA. Below and to the right, so that the pixels
            # keep their place in the pooling grid. A size that fits is not touched.
            image = F.pad(image, (0, right, 0, below))
        try:
            logits = self.layers(image)
        finally:
            self.activations.clear()  # empty after a forward that raised, too: a stale skip would be popped by the next
        return logits[..., :height, :width] if below or right else logits
