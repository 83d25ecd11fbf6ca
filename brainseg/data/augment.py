"""Random changes of the training slices, a batch at a time, on the batch's device; image and mask share one draw.

Legend:  B batch, C channels, H W height and width; a drawn quantity is (B, 1, 1, 1), or (B, C, 1, 1) where it is per channel.

`sample_augmentation` takes all randomness from one generator on the CPU (the engine seeds it before each step), so that the draw does not
depend on the device; `apply` is a function of the draw and the batch alone. Left-right is the last axis. A batch of
16 x 3 x 256 x 256 costs some 25 ms on two CPU cores, and 35 ms with noise.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from brainseg.config import AugmentConfig
from brainseg.data.transfer import to_device


class Augmentation(NamedTuple):
    """What happens to each sample of a batch; None is a part that is off. `angle`, `zoom`, `shift` are there all or none."""

    flip: Tensor | None = None  # (B, 1, 1, 1) bool: mirrored left to right
    angle: Tensor | None = None  # (B, 1, 1, 1) radians, clockwise
    zoom: Tensor | None = None  # (B, 1, 1, 1) factor on the size of what is seen
    shift: Tensor | None = (
        None  # (B, 2, 1, 1) to the right and down, as a share of the width and of the height
    )
    gamma: Tensor | None = None  # (B, 1, 1, 1) exponent
    contrast: Tensor | None = None  # (B, C, 1, 1) factor on the distance from the mean
    brightness: Tensor | None = None  # (B, C, 1, 1) added
    noise: Tensor | None = None  # (B, 1, 1, 1) standard deviation
    seed: Tensor | None = None  # () int64, always on the CPU: of the noise
    source: Tensor | None = (
        None  # (B, sequences) int64: what each sequence is taken from, itself or FLAIR
    )


def sample_augmentation(
    config: AugmentConfig,
    batch: int,
    channels: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    sequences: Sequence[str] = (),
) -> Augmentation:
    """Draw the changes of a batch from `generator` (on the CPU; None: torch's default one) and move them to `device`.

    `sequences` are the names of a slice's channels, for config.missing; context repeats them. All numbers are drawn, whichever
    parts are on: switching a part on leaves the others as they were. With every part off nothing is drawn.
    """
    if config == AugmentConfig():
        return Augmentation()
    sizes = [1, 1, 1, 2, 1, channels, channels, 1]
    uniform = to_device(
        torch.rand(batch, sum(sizes), 1, 1, generator=generator), device
    )  # in one piece: one transfer
    seed = torch.randint(2**62, (), generator=generator)
    flip, angle, zoom, shift, gamma, contrast, brightness, noise = uniform.split(sizes, dim=1)
    moved = bool(config.rotate or config.scale or config.shift)
    return Augmentation(
        flip=flip < config.flip if config.flip else None,
        angle=between(angle, math.radians(config.rotate)) if moved else None,
        zoom=1 + between(zoom, config.scale) if moved else None,
        shift=between(shift, config.shift) if moved else None,
        gamma=between(gamma, config.gamma).exp() if config.gamma else None,
        contrast=1 + between(contrast, config.contrast) if config.contrast else None,
        brightness=between(brightness, config.brightness) if config.brightness else None,
        noise=config.noise * noise if config.noise else None,
        seed=seed if config.noise else None,
        source=to_device(
            sources(
                sequences, torch.rand(batch, len(sequences), generator=generator) < config.missing
            ),
            device,
        )
        if config.missing
        else None,
    )


def can_miss(sequences: Sequence[str]) -> bool:
    """Whether FLAIR is there to stand in for another sequence."""
    return "FLAIR" in sequences and len(sequences) > 1


def sources(sequences: Sequence[str], missing: Tensor) -> Tensor:
    """Which sequence each one is taken from, int64 like `missing`, bool (B, sequences): FLAIR's own place where it is missing."""
    return torch.where(missing, list(sequences).index("FLAIR"), torch.arange(len(sequences)))


def between(uniform: Tensor, largest: float) -> Tensor:
    """From [0, 1) to [-largest, largest)."""
    return largest * (2 * uniform - 1)


def apply(draw: Augmentation, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Image float32 (B, C, H, W) in [0, 1] and mask uint8 (B, 1, H, W) -> both changed, same types, range and layout.

    The inputs are not written to; with every part off they are returned themselves. What comes in from outside the image
    is 0: background. The intensity goes last, so that it treats that background like the image's own.
    """
    channels_last = (
        image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()
    )
    if draw.source is not None:
        image = fill_missing_with_flair(image, draw.source)
    if draw.angle is not None:
        image, mask = warp(draw, image, mask)
    elif draw.flip is not None:
        # Exact, unlike a resampling.
        image, mask = (
            torch.where(draw.flip, image.flip(-1), image),
            torch.where(draw.flip, mask.flip(-1), mask),
        )
    image = change_intensity(draw, image)
    # Resampling gives NCHW whatever it got.
    return image.contiguous(memory_format=torch.channels_last) if channels_last else image, mask


def fill_missing_with_flair(image: Tensor, source: Tensor) -> Tensor:
    """FLAIR in the place of missing sequences: (B, slices * sequences, H, W) -> the same, by (B, sequences)."""
    of_slices = image.unflatten(1, (-1, source.shape[1])).transpose(1, 2)
    chosen = of_slices[torch.arange(len(image), device=image.device)[:, None], source]
    return chosen.transpose(1, 2).flatten(1, 2)


def warp(draw: Augmentation, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Flip, zoom, turn and shift in one resampling: (B, C, H, W) bilinear, (B, 1, H, W) nearest, so that classes stay classes."""
    grid = sampling_grid(draw, *image.shape[-2:])
    image = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    labels = F.grid_sample(
        mask.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return image, labels.to(mask.dtype)


def sampling_grid(draw: Augmentation, height: int, width: int) -> Tensor:
    """Where each pixel comes from: (B, H, W, 2) as x, y in units in which the image spans [-1, 1].

    A point p of the source, in pixels from the centre, goes to q = R Z F p + t (R turn, Z zoom, F flip, t shift); the grid
    holds p = F R^-1 (q - t) / Z. In pixels, for in shares of the sides a turn would shear an image that is not square. Not by
    `affine_grid`: its matrix product runs in bfloat16 under autocast and in TF32 on a GPU, wrong by up to a pixel.
    """
    assert draw.angle is not None and draw.zoom is not None and draw.shift is not None
    device = draw.angle.device
    x = (
        torch.arange(width, device=device) + 0.5 - width / 2 - draw.shift[:, :1] * width
    )  # (B, 1, 1, W)
    y = (torch.arange(height, device=device) + 0.5 - height / 2).view(-1, 1) - draw.shift[
        :, 1:
    ] * height  # (B, 1, H, 1)
    cosine, sine = draw.angle.cos() / draw.zoom, draw.angle.sin() / draw.zoom
    mirror = 1.0 if draw.flip is None else 1 - 2 * draw.flip.float()
    across, down = mirror * 2 / width, 2 / height
    # The products are of lines; only the two sums have the size of the image, written in place (ten times faster).
    grid = torch.empty(len(draw.angle), 1, height, width, 2, device=device)
    torch.add(across * cosine * x, across * sine * y, out=grid[..., 0])
    torch.add(-down * sine * x, down * cosine * y, out=grid[..., 1])
    return grid.squeeze(1)


def change_intensity(draw: Augmentation, image: Tensor) -> Tensor:
    """Gamma, contrast, brightness, noise, in this order, then clip to [0, 1]: (B, C, H, W) -> (B, C, H, W)."""
    if all(part is None for part in (draw.gamma, draw.contrast, draw.brightness, draw.noise)):
        return image
    # One copy, then in place: fresh memory for every step made this five times slower.
    image = image.clone() if draw.gamma is None else image**draw.gamma
    if draw.contrast is not None:
        mean = image.mean((2, 3), keepdim=True)
        image.mul_(draw.contrast).add_(mean * (1 - draw.contrast))
    if draw.brightness is not None:
        image.add_(draw.brightness)
    if draw.noise is not None and draw.seed is not None:
        generator = torch.Generator(image.device).manual_seed(int(draw.seed))
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        image.add_(noise.mul_(draw.noise))
    return image.clamp_(0, 1)
