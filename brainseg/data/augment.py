"""Random augmentation of training batches on the batch's device, with one draw for image and mask.

Legend:  B batch, C channels, H W height and width.
Shapes:  a drawn quantity is (B, 1, 1, 1), or (B, C, 1, 1) where each channel has its own value.

`sample_augmentation` takes all randomness from one generator on the CPU, so that the draw does not
depend on the device. The training loop seeds this generator before each step. `apply_augmentation`
is a function of the draw and the batch alone. Left-right is the last axis. A batch of
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

# Half of the pixels over which a pasted tumour merges with the image around it.
PASTE_MARGIN = 4


class Augmentation(NamedTuple):
    """Parameters of the changes to each sample of a batch.

    A change that is off is None. `angle`, `zoom` and `shift` are either all set or all None.
    """

    # (B, 1, 1, 1) bool, True for samples that are mirrored left to right.
    flip: Tensor | None = None
    # (B, 1, 1, 1) radians, clockwise.
    angle: Tensor | None = None
    # (B, 1, 1, 1) factor on the size of the head in the image.
    zoom: Tensor | None = None
    # (B, 2, 1, 1) to the right and down, as a share of the width and of the height.
    shift: Tensor | None = None
    # (B, 1, 1, 1) exponent.
    gamma: Tensor | None = None
    # (B, C, 1, 1) factor on the distance from the mean.
    contrast: Tensor | None = None
    # (B, C, 1, 1) summand.
    brightness: Tensor | None = None
    # (B, 1, 1, 1) standard deviation of the noise.
    noise: Tensor | None = None
    # () int64, the seed of the noise, always on the CPU.
    seed: Tensor | None = None
    # (B,) int64, the sample whose tumour is pasted into each sample: itself for none.
    donor: Tensor | None = None
    # (B, sequences) int64, the sequence that fills each sequence's place: itself or FLAIR.
    source: Tensor | None = None


def sample_augmentation(
    config: AugmentConfig,
    batch: int,
    channels: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    sequences: Sequence[str] = (),
) -> Augmentation:
    """Draw the changes of a batch on the CPU and move them to `device`.

    `generator` is a CPU generator, or None for torch's default generator. `sequences` are the names
    of the channels of a slice without its neighbours, and `config.missing` needs them. All numbers
    are drawn, whichever changes are on, so that switching a change on leaves the others as they
    were. With every change off, nothing is drawn.
    """
    if config == AugmentConfig():
        return Augmentation()
    sizes = [1, 1, 1, 2, 1, channels, channels, 1]
    # One tensor for all quantities needs only one transfer to the device.
    uniform = to_device(torch.rand(batch, sum(sizes), 1, 1, generator=generator), device)
    seed = torch.randint(2**62, (), generator=generator)
    flip, angle, zoom, shift, gamma, contrast, brightness, noise = uniform.split(sizes, dim=1)
    is_moved = bool(config.rotate or config.scale or config.shift)
    return Augmentation(
        flip=flip < config.flip if config.flip else None,
        angle=scale_symmetrically(angle, math.radians(config.rotate)) if is_moved else None,
        zoom=1 + scale_symmetrically(zoom, config.scale) if is_moved else None,
        shift=scale_symmetrically(shift, config.shift) if is_moved else None,
        gamma=scale_symmetrically(gamma, config.gamma).exp() if config.gamma else None,
        contrast=1 + scale_symmetrically(contrast, config.contrast) if config.contrast else None,
        brightness=scale_symmetrically(brightness, config.brightness)
        if config.brightness
        else None,
        noise=config.noise * noise if config.noise else None,
        seed=seed if config.noise else None,
        source=to_device(
            choose_sources(
                sequences, torch.rand(batch, len(sequences), generator=generator) < config.missing
            ),
            device,
        )
        if config.missing
        else None,
        # A generator of its own, so that pasting leaves the missing sequences as they were.
        donor=to_device(
            choose_donors(batch, config.paste, torch.Generator().manual_seed(int(seed) + 1)), device
        )
        if config.paste
        else None,
    )


def choose_donors(batch: int, share: float, generator: torch.Generator) -> Tensor:
    """Return for each of `batch` samples the sample whose tumour it gets, int64 (B,).

    With probability `share` this is another sample, and otherwise the sample itself.
    """
    itself = torch.arange(batch)
    other = (itself + torch.randint(1, max(batch, 2), (batch,), generator=generator)) % batch
    return torch.where(torch.rand(batch, generator=generator) < share, other, itself)


def can_replace_by_flair(sequences: Sequence[str]) -> bool:
    """Return True if there is FLAIR and another sequence, which FLAIR could replace."""
    return "FLAIR" in sequences and len(sequences) > 1


def choose_sources(sequences: Sequence[str], missing: Tensor) -> Tensor:
    """Return the index of the sequence that fills each sequence's place, int64 (B, sequences).

    A place that is True in `missing`, bool (B, sequences), gets the index of FLAIR. Every other
    place gets its own index.
    """
    return torch.where(missing, list(sequences).index("FLAIR"), torch.arange(len(sequences)))


def scale_symmetrically(uniform: Tensor, largest: float) -> Tensor:
    """Return values of [0, 1) scaled to [-largest, largest)."""
    return largest * (2 * uniform - 1)


def apply_augmentation(draw: Augmentation, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return image and mask with the draw applied.

    The image is float32 (B, C, H, W) in [0, 1] and the mask uint8 (B, 1, H, W). Types, value range
    and memory layout stay the same. The inputs are not written to. With every change off, the input
    tensors themselves are returned. Pixels that move in from outside the image are 0, which is
    background.
    """
    channels_last = (
        image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()
    )
    if draw.source is not None:
        image = fill_missing_with_flair(image, draw.source)
    if draw.angle is not None:
        image, mask = warp(draw, image, mask)
    elif draw.flip is not None:
        # Without rotation, zoom and shift a flip is exact. Resampling would interpolate.
        image, mask = (
            torch.where(draw.flip, image.flip(-1), image),
            torch.where(draw.flip, mask.flip(-1), mask),
        )
    if draw.donor is not None:
        image, mask = paste_tumours(image, mask, draw.donor)
    # Intensity changes last, so that the background that moved in changes like the image's own.
    image = change_intensity(draw, image)
    # Resampling returns NCHW layout for any input layout.
    return image.contiguous(memory_format=torch.channels_last) if channels_last else image, mask


def paste_tumours(image: Tensor, mask: Tensor, donor: Tensor) -> tuple[Tensor, Tensor]:
    """Paste the tumour of each sample's donor into image (B, C, H, W) and mask (B, 1, H, W).

    `donor` (B,) is the index of the donor. The region is the tumour and its surroundings, over
    which the weight of the donor's pixels falls from 1 to 0, so that no edge shows where the region
    ends.
    Reference: Zhang et al. 2021, "CarveMix", MICCAI (arXiv 2108.06883), here within a batch, with a
    soft edge, and with a fixed margin.
    """
    tumour = (mask > 0).to(image.dtype)
    # The tumour grown by the margin, then blurred over the same distance: 1 inside the tumour, and
    # 0 farther away than twice the margin.
    grown = F.max_pool2d(tumour, 2 * PASTE_MARGIN + 1, stride=1, padding=PASTE_MARGIN)
    weight = F.avg_pool2d(grown, 2 * PASTE_MARGIN + 1, stride=1, padding=PASTE_MARGIN)
    weight = torch.maximum(weight, tumour)[donor]
    # A sample whose donor is the sample itself stays as it was.
    is_other = (donor != torch.arange(len(donor), device=donor.device)).view(-1, 1, 1, 1)
    weight = weight * is_other
    # Where the donor's pixels prevail, its healthy tissue has its healthy label.
    pasted = torch.where(weight > 0.5, mask[donor], mask)
    return torch.lerp(image, image[donor], weight), pasted


def fill_missing_with_flair(image: Tensor, source: Tensor) -> Tensor:
    """Return images (B, slices * sequences, H, W) in which FLAIR replaces missing sequences.

    `source` (B, sequences) is the index of the sequence that fills each place, as in
    `choose_sources`.
    """
    # (B, sequences, slices, H, W), so that one index selects a sequence in all slices of a sample.
    by_sequence = image.unflatten(1, (-1, source.shape[1])).transpose(1, 2)
    filled = by_sequence[torch.arange(len(image), device=image.device)[:, None], source]
    return filled.transpose(1, 2).flatten(1, 2)


def warp(draw: Augmentation, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Flip, zoom, rotate and shift image (B, C, H, W) and mask (B, 1, H, W) in one resampling.

    The image is interpolated bilinearly. The mask takes the nearest pixel, so that each value stays
    a class index.
    """
    grid = sampling_grid(draw, *image.shape[-2:])
    image = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    labels = F.grid_sample(
        mask.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return image, labels.to(mask.dtype)


def sampling_grid(draw: Augmentation, height: int, width: int) -> Tensor:
    """Return the source of each pixel, (B, H, W, 2) as x, y where the image spans [-1, 1].

    A point p of the source, in pixels from the centre, moves to q = R Z F p + t, with R rotation,
    Z zoom, F flip and t shift. The grid contains p = F R^-1 (q - t) / Z. The rotation is computed
    in pixels, because in shares of the sides it would shear an image that is not square.
    `affine_grid` is not used, because its matrix product runs in bfloat16 under autocast and in
    TF32 on a GPU, with errors of up to a pixel.
    """
    assert draw.angle is not None and draw.zoom is not None and draw.shift is not None
    device = draw.angle.device
    # x is (B, 1, 1, W) and y is (B, 1, H, 1).
    x = torch.arange(width, device=device) + 0.5 - width / 2 - draw.shift[:, :1] * width
    rows = torch.arange(height, device=device) + 0.5 - height / 2
    y = rows.view(-1, 1) - draw.shift[:, 1:] * height
    cosine, sine = draw.angle.cos() / draw.zoom, draw.angle.sin() / draw.zoom
    mirror = 1.0 if draw.flip is None else 1 - 2 * draw.flip.float()
    across, down = mirror * 2 / width, 2 / height
    # The products have the size of one row or column. Only the two sums have the size of the image,
    # and they are written in place, which is ten times faster.
    grid = torch.empty(len(draw.angle), 1, height, width, 2, device=device)
    torch.add(across * cosine * x, across * sine * y, out=grid[..., 0])
    torch.add(-down * sine * x, down * cosine * y, out=grid[..., 1])
    return grid.squeeze(1)


def change_intensity(draw: Augmentation, image: Tensor) -> Tensor:
    """Return images (B, C, H, W) after gamma, contrast, brightness and noise, clipped to [0, 1]."""
    if all(change is None for change in (draw.gamma, draw.contrast, draw.brightness, draw.noise)):
        return image
    # The steps change one copy in place, as new memory for each made this five times slower.
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
