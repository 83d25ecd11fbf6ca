"""A batch at half its height and width, for the part of a run that is trained at low resolution."""

import torch
import torch.nn.functional as F
from torch import Tensor


def downsample_by_two(image: Tensor, mask: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Image float32 (B, C, H, W) and index of one of `classes`, uint8 (B, 1, H, W), at (H // 2, W // 2), from squares of four pixels.

    The image takes their mean, the mask the class that most of them have and of a draw the higher one, so that a thin rim stays tumour.
    An odd last row or column is left out.
    """
    shares = torch.stack(
        [F.avg_pool2d((mask == index).float(), 2) for index in range(classes - 1, -1, -1)]
    )  # argmax takes the first
    labels = classes - 1 - shares.argmax(0)
    return F.avg_pool2d(image, 2), labels.to(mask.dtype)
