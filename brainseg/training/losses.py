"""The criteria. Each takes logits (B, K, H, W) and a mask (B, 1, H, W), and gives one number to minimise.

Legend:  B batch, K classes of the network, H W height and width, F foreground classes.
K = 1 is one foreground class behind a sigmoid (F = 1), and the mask is 0 or 1 (or a share between them). K > 1 are classes
behind a softmax of which class 0 is background (F = K - 1), and the mask holds class indices. Everything is summed in
float32: a batch has a million pixels, more than bfloat16 (8 bits) or float16 (11 bits, at most 65,504) can count.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brainseg.config import LossConfig
from brainseg.core.errors import check
from brainseg.core.extensions import (
    call_with_options,
    known_names,
    load_extension,
    monai_class,
    registered_names,
)


def check_shapes(logits: Tensor, mask: Tensor) -> None:
    """Raise RequestError, naming both shapes, unless they are (B, K, H, W) and (B, 1, H, W)."""
    fits = logits.ndim == 4 and mask.shape == (logits.shape[0], 1, *logits.shape[2:])
    rule = f"must be (B, 1, H, W) for logits (B, K, H, W), which are {tuple(logits.shape)}"
    check(fits, "mask shape", tuple(mask.shape), rule)


def foreground(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, K, H, W) and mask (B, 1, H, W) -> probability, float32, and truth of each foreground class (B, F, H, W)."""
    if logits.shape[1] == 1:
        return logits.float().sigmoid(), mask
    classes = torch.arange(1, logits.shape[1], device=mask.device).view(1, -1, 1, 1)
    return logits.float().softmax(dim=1)[:, 1:], mask == classes


class DiceLoss(nn.Module):
    """One minus the soft Dice coefficient (Milletari, Navab, Ahmadi 2016, "V-Net"; here without their squares).

    Per foreground class, then averaged over the classes: 1 - (2 sum(p m) + smooth) / (sum(p) + sum(m) + smooth), with p the
    probability and m the truth. The sums run over the whole batch, as in the reference: a slice without tumour then still
    counts, through its false positives. `per_sample` takes them over each sample and averages the losses: every slice
    weighs the same, but one without tumour gives almost no gradient until its probabilities are almost zero.
    `smooth` (above 0) decides what two empty masks give: 0. Raises RequestError where shapes do not fit.
    """

    def __init__(self, smooth: float = 1.0, per_sample: bool = False) -> None:
        super().__init__()
        check(
            math.isfinite(smooth) and smooth > 0,
            "loss.smooth",
            smooth,
            "must be above 0",
            "two empty masks would give 0 / 0",
        )
        self.smooth = smooth
        self.per_sample = per_sample

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, K, H, W) of any float type, mask (B, 1, H, W) -> loss (), float32, in [0, 1]."""
        check_shapes(logits, mask)
        p, m = foreground(logits, mask)
        pixels = (2, 3) if self.per_sample else (0, 2, 3)
        overlap = (p * m).sum(pixels)
        total = p.sum(pixels) + m.sum(pixels, dtype=torch.float32)
        return (1 - (2 * overlap + self.smooth) / (total + self.smooth)).mean()


class BCEDiceLoss(nn.Module):
    """weight * cross-entropy + (1 - weight) * Dice loss.

    The cross-entropy (binary for K = 1, over the classes for K > 1) is the mean over all pixels: it looks at each pixel by
    itself and has a useful gradient from the first step. The Dice loss looks at the overlap and is not drowned by the
    background. weight=1 is the cross-entropy alone, weight=0 the Dice loss alone, the default their mean. The
    cross-entropy starts near ln 2 = 0.69, and where 1 % of the pixels is tumour it is 0.056 as soon as the network knows
    that share; from then on Dice leads at any middling weight. Arguments and errors otherwise as for `DiceLoss`.
    """

    def __init__(self, smooth: float = 1.0, per_sample: bool = False, weight: float = 0.5) -> None:
        super().__init__()
        check(
            0 <= weight <= 1,
            "loss.weight",
            weight,
            "must lie between 0 (Dice alone) and 1 (cross-entropy alone)",
        )
        self.dice = DiceLoss(smooth, per_sample)
        self.weight = weight

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, K, H, W) of any float type, mask (B, 1, H, W) -> loss (), float32."""
        check_shapes(logits, mask)
        if logits.shape[1] == 1:
            entropy = F.binary_cross_entropy_with_logits(logits.float(), mask.float())
        else:
            entropy = F.cross_entropy(logits.float(), mask[:, 0].long())
        return self.weight * entropy + (1 - self.weight) * self.dice(logits, mask)


LOSSES: dict[str, Callable[..., nn.Module]] = {"dice": DiceLoss, "bce_dice": BCEDiceLoss}


class FloatMask(nn.Module):
    """MONAI's losses want a mask of the logits' type."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, K, H, W), mask (B, 1, H, W) -> loss ()."""
        return self.criterion(logits, mask.to(logits.dtype))


def build_loss(config: LossConfig, outputs: int = 1) -> nn.Module:
    """The criterion for a network of K `outputs`: called as loss(logits (B, K, H, W), mask uint8 (B, 1, H, W)). Raises RequestError."""
    own = LOSSES.get(config.name) or load_extension("brainseg.losses", config.name)
    found = own or monai_class("monai.losses", config.name, nn.Module)
    check(
        found is not None,
        "loss.name",
        config.name,
        "no such loss",
        known_names(
            config.name, [*LOSSES, *registered_names("brainseg.losses")], "monai.losses", nn.Module
        ),
    )
    if own:
        return call_with_options(found, "loss", config, {})
    return FloatMask(call_with_options(found, "loss", config, _activation(found, config, outputs)))


def _activation(
    found: Callable[..., nn.Module], config: LossConfig, outputs: int
) -> dict[str, Any]:
    """What MONAI's losses must be told of the logits and the mask; ours see it from the shapes. Options of the request go first.

    One output: a sigmoid. Several: a softmax, and class indices to be spread over as many channels. A loss that measures overlap
    (it takes `softmax`; the pixel-wise ones take `use_softmax`) leaves the background out, as ours: its Dice is always high.
    """
    taken = inspect.signature(found).parameters
    if outputs == 1:
        told: dict[str, Any] = {"sigmoid": True}
    else:
        softmax = next((name for name in ("softmax", "use_softmax") if name in taken), None)
        fits = softmax is not None and "to_onehot_y" in taken
        check(
            fits,
            "loss.name",
            config.name,
            f"the data have {outputs} classes, and it takes no softmax of class indices",
            "use dice, bce_dice or a loss of MONAI that takes softmax and to_onehot_y, as DiceCELoss",
        )
        told = {
            str(softmax): True,
            "to_onehot_y": True,
            **({"include_background": False} if softmax == "softmax" else {}),
        }
        sigmoid = bool(config.options.get("sigmoid"))
        check(
            not sigmoid,
            "loss.options.sigmoid",
            "true",
            f"the data have {outputs} classes behind a softmax",
            "leave it out",
        )
    return {
        name: value for name, value in told.items() if name in taken and name not in config.options
    }
