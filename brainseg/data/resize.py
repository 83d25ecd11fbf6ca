"""Downsampling of batches, for the part of a run that trains at low resolution."""

import torch
import torch.nn.functional as F
from torch import Tensor


def downsample_by_two(image: Tensor, mask: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return image and mask at half their height and width, (H // 2, W // 2).

    `image` is float32 (B, C, H, W). `mask` is uint8 (B, 1, H, W), an index of one of `classes`.
    Each square of four pixels becomes one pixel, where the image takes their mean and the mask
    their most frequent class. In a tie the higher class wins, so that a thin rim stays tumour. An
    odd last row or column is left out.
    """
    # The highest class comes first, because argmax returns the first of equal shares.
    shares = torch.stack(
        [F.avg_pool2d((mask == index).float(), 2) for index in range(classes - 1, -1, -1)]
    )
    labels = classes - 1 - shares.argmax(0)
    return F.avg_pool2d(image, 2), labels.to(mask.dtype)
