"""Loss functions of logits (B, K, H, W) and a mask (B, 1, H, W).

To add one, write a class, enter it in `LOSSES`, name it in the help of `LossConfig.name`
(config/model.py), and add conf/loss/NAME.yaml for `loss=NAME`. The arguments of `__init__` become
`loss.options.ARGUMENT`. A loss of another package needs only an entry point (docs/extending.md).

Legend:  B batch, K outputs of the network, H W height and width, F foreground classes.
K = 1 means one foreground class behind a sigmoid (F = 1). The mask is then 0 or 1, or a share
between them. K > 1 means classes behind a softmax, of which class 0 is background (F = K - 1). The
mask then contains class indices. All sums are in float32: a batch has a million pixels, more than
bfloat16 (8 bits) or float16 (11 bits, at most 65,504) can count.
"""

import inspect
import math
from collections.abc import Callable, Sequence
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
    """Raise RequestError unless the shapes are (B, K, H, W) and (B, 1, H, W)."""
    fits = logits.ndim == 4 and mask.shape == (logits.shape[0], 1, *logits.shape[2:])
    rule = f"must be (B, 1, H, W) for logits (B, K, H, W), and these are {tuple(logits.shape)}"
    check(fits, "mask shape", tuple(mask.shape), rule)


def foreground(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability and the truth of each foreground class, both (B, F, H, W).

    The probability is float32. The arguments are logits (B, K, H, W) and a mask (B, 1, H, W).
    """
    if logits.shape[1] == 1:
        return logits.float().sigmoid(), mask
    classes = torch.arange(1, logits.shape[1], device=mask.device).view(1, -1, 1, 1)
    return logits.float().softmax(dim=1)[:, 1:], mask == classes


class DiceLoss(nn.Module):
    """Dice loss, one minus the soft Dice coefficient.

    Reference: Milletari, Navab, Ahmadi 2016, "V-Net", here without their squares. The loss of a
    foreground class, with p the probability and m the truth, is

        1 - (2 sum(p m) + smooth) / (sum(p) + sum(m) + smooth)

    and the losses of the classes are averaged. The sums run over the whole batch, as in the
    reference implementation. A slice without tumour then still counts, through its false positives.
    With `per_sample` the sums run over each sample, and the losses are averaged. Every slice then
    has the same weight, but a slice without tumour has almost no gradient until its probabilities
    are almost zero. `slice_weight` is the weight, from 0 to 1, of the mean loss of the single
    slices with tumour beside the loss of the batch, which large tumours dominate. `smooth` (above
    0) makes the loss of two empty masks 0. Raises RequestError if the shapes do not fit.
    """

    def __init__(
        self, smooth: float = 1.0, per_sample: bool = False, slice_weight: float = 0.0
    ) -> None:
        super().__init__()
        check(0 <= slice_weight <= 1, "loss.slice_weight", slice_weight, "must lie between 0 and 1")
        check(
            not (per_sample and slice_weight),
            "loss.slice_weight",
            slice_weight,
            "has no effect with per_sample=true, where every slice has its own loss",
            "leave out one of the two",
        )
        check(
            math.isfinite(smooth) and smooth > 0,
            "loss.smooth",
            smooth,
            "must be above 0",
            "with 0 two empty masks would give 0 / 0",
        )
        self.smooth = smooth
        self.per_sample = per_sample
        self.slice_weight = slice_weight

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the loss (), float32, in [0, 1].

        The arguments are logits (B, K, H, W) of any float type and a mask (B, 1, H, W).
        """
        check_shapes(logits, mask)
        p, m = foreground(logits, mask)
        # Each sum is (B, F), or (F,) over the batch.
        overlap, predicted = (p * m).sum((2, 3)), p.sum((2, 3))
        true = m.sum((2, 3), dtype=torch.float32)
        if self.per_sample:
            return self._loss(overlap, predicted + true).mean()
        loss = self._loss(overlap.sum(0), (predicted + true).sum(0)).mean()
        if not self.slice_weight:
            return loss
        has_class = (true > 0).float()
        by_slice = self._loss(overlap, predicted + true) * has_class
        mean_of_slices = by_slice.sum() / has_class.sum().clamp(min=1)
        return (1 - self.slice_weight) * loss + self.slice_weight * mean_of_slices

    def _loss(self, overlap: Tensor, total: Tensor) -> Tensor:
        """Return one minus the Dice coefficient, from sums of p m and of p + m."""
        return 1 - (2 * overlap + self.smooth) / (total + self.smooth)


class BCEDiceLoss(nn.Module):
    """Weighted mean of cross-entropy and Dice loss.

        weight * cross-entropy + (1 - weight) * Dice loss

    The cross-entropy (binary for K = 1, over the classes for K > 1) is the mean over all pixels. It
    treats each pixel separately and has a useful gradient from the first step. The Dice loss
    measures the overlap and does not drown in the background. With weight=1 only the cross-entropy
    counts, with weight=0 only the Dice loss, and by default their mean. The cross-entropy starts
    near ln 2 = 0.69. If 1 % of the pixels is tumour, it is 0.056 as soon as the network has learnt
    that share. After that the Dice loss dominates at any middle weight. The other arguments and the
    errors are those of `DiceLoss`.
    """

    def __init__(
        self,
        smooth: float = 1.0,
        per_sample: bool = False,
        weight: float = 0.5,
        slice_weight: float = 0.0,
    ) -> None:
        super().__init__()
        check(
            0 <= weight <= 1,
            "loss.weight",
            weight,
            "must lie between 0 (Dice alone) and 1 (cross-entropy alone)",
        )
        self.dice = DiceLoss(smooth, per_sample, slice_weight)
        self.weight = weight

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the loss (), float32.

        The arguments are logits (B, K, H, W) of any float type and a mask (B, 1, H, W).
        """
        check_shapes(logits, mask)
        if logits.shape[1] == 1:
            entropy = F.binary_cross_entropy_with_logits(logits.float(), mask.float())
        else:
            entropy = F.cross_entropy(logits.float(), mask[:, 0].long())
        return self.weight * entropy + (1 - self.weight) * self.dice(logits, mask)


def deeply_supervised_loss(
    criterion: nn.Module, output: Tensor | Sequence[Tensor], mask: Tensor
) -> Tensor:
    """Return the loss () of a network's output in training.

    `output` contains logits (B, K, H, W), or those of several levels under deep supervision, the
    final ones first. The loss is then the mean over the levels with the weights 1/2**level, so
    that it has the scale of a single loss.
    """
    if isinstance(output, Tensor):
        return criterion(output.float(), mask)
    weights = [0.5**level for level in range(len(output))]
    weighted = [
        weight / sum(weights) * criterion(logits.float(), mask)
        for weight, logits in zip(weights, output, strict=True)
    ]
    return torch.stack(weighted).sum()


LOSSES: dict[str, Callable[..., nn.Module]] = {"dice": DiceLoss, "bce_dice": BCEDiceLoss}


class FloatMask(nn.Module):
    """A criterion that gets the mask in the type of the logits, as MONAI's losses require."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the loss () of logits (B, K, H, W) and a mask (B, 1, H, W)."""
        return self.criterion(logits, mask.to(logits.dtype))


def build_loss(config: LossConfig, outputs: int = 1) -> nn.Module:
    """Return the criterion for a network with K `outputs`.

    The criterion is called with logits (B, K, H, W) and a mask, uint8, (B, 1, H, W). Raises
    RequestError.
    """
    builtin = LOSSES.get(config.name) or load_extension("brainseg.losses", config.name)
    factory = builtin or monai_class("monai.losses", config.name, nn.Module)
    check(
        factory is not None,
        "loss.name",
        config.name,
        "no such loss",
        known_names(
            config.name, [*LOSSES, *registered_names("brainseg.losses")], "monai.losses", nn.Module
        ),
    )
    if builtin:
        return call_with_options(factory, "loss", config, {})
    return FloatMask(
        call_with_options(factory, "loss", config, _monai_arguments(factory, config, outputs))
    )


def _monai_arguments(
    factory: Callable[..., nn.Module], config: LossConfig, outputs: int
) -> dict[str, Any]:
    """Return the arguments that tell a MONAI loss how to read logits and mask.

    One output means a sigmoid. Several outputs mean a softmax, and class indices that are converted
    to one channel per class. `loss.options` take precedence, and arguments that the loss does not
    have are left out. Raises RequestError if the loss takes no softmax of several classes.
    """
    parameters = inspect.signature(factory).parameters
    if outputs == 1:
        arguments: dict[str, Any] = {"sigmoid": True}
    else:
        softmax = next((name for name in ("softmax", "use_softmax") if name in parameters), None)
        fits = softmax is not None and "to_onehot_y" in parameters
        check(
            fits,
            "loss.name",
            config.name,
            f"the data have {outputs} classes, and this loss takes no softmax of class indices",
            "use dice, bce_dice, or a MONAI loss with the arguments softmax and to_onehot_y, "
            "such as DiceCELoss",
        )
        # Losses of overlap take `softmax`, pixel-wise losses take `use_softmax`. The former leave
        # out the background, as ours do, because its Dice is always high.
        arguments = {
            str(softmax): True,
            "to_onehot_y": True,
            **({"include_background": False} if softmax == "softmax" else {}),
        }
        sigmoid = bool(config.options.get("sigmoid"))
        check(
            not sigmoid,
            "loss.options.sigmoid",
            "true",
            f"the data have {outputs} classes, which need a softmax",
            "remove this option",
        )
    return {
        name: value
        for name, value in arguments.items()
        if name in parameters and name not in config.options
    }
