"""Networks with deep supervision: in training they return the logits of several levels.

Lee et al. 2015, "Deeply-Supervised Nets", AISTATS. The networks of MONAI return them in four ways:
DynUNet stacks them in one tensor, SegResNetDS returns a list at lower resolutions, MedNeXt a tuple,
and BasicUNetPlusPlus a list even in evaluation. Here they all become a list of logits (B, K, H, W),
the level of the final logits first.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

# The nested decoders of U-Net++ are listed from the shallowest to the deepest, which is the best
# one. The other networks begin with their final logits.
SHALLOWEST_FIRST = ("BasicUNetPlusPlus",)


def unify_outputs(network: nn.Module, images: tuple[Tensor], output: Any) -> Any:
    """Return one tensor of logits, or in training the list of all levels, as a forward hook.

    The logits of lower levels (B, K, h, w) are enlarged to the size of the images (B, C, H, W). In
    evaluation the final logits are returned. Any other output is returned unchanged, such as a
    tuple in evaluation, which is that of an autoencoder with its latent variables.
    """
    if isinstance(output, Tensor) and output.ndim == images[0].ndim + 1:
        output = list(output.unbind(1))
    is_supervised = isinstance(output, list) or (isinstance(output, tuple) and network.training)
    if not is_supervised or not all(
        isinstance(logits, Tensor) and logits.ndim == images[0].ndim for logits in output
    ):
        return output
    if type(network).__name__ in SHALLOWEST_FIRST:
        output = output[::-1]
    if not network.training or len(output) == 1:
        return output[0]
    return [enlarge(logits, images[0].shape[-2:]) for logits in output]


def enlarge(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return logits (B, K, h, w) at the height and width `size`, each pixel as a rectangle.

    Unlike bilinear interpolation, this has a deterministic gradient on CUDA.
    """
    return logits if logits.shape[-2:] == size else F.interpolate(logits, size=size, mode="nearest")
