"""From a model's logits to a volume's mask: the one code for validation, test, evaluate and predict.

    predict_volume -> to_mask -> keep_components

What is done is in `InferenceConfig`, stored in the checkpoint, so that a score is always that of the masks a user gets.
Axes: B slices of a batch, S of a volume, C image channels, K outputs of the model (1: tumour or not; more: one a class).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from brainseg.config import InferenceConfig
from brainseg.core.errors import DataError, check

# The mirrored axes of each view; the plain image comes first, its logits are what the criterion sees.
VIEWS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "horizontal": ((), (-1,)),
    "vertical": ((), (-2,)),
    "both": ((), (-1,), (-2,), (-2, -1)),
}


def predict_volume(
    model: nn.Module,
    batches: Iterable[Tensor],
    config: InferenceConfig,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    pad_multiple: int = 1,
) -> tuple[Tensor, Tensor]:
    """Run `model` over one volume's slices; returns probability and logits, float32 (S, K, H, W), on the CPU.

    `batches` are float (B, C, H, W) on the model's device, in slice order. The probability is averaged over the mirrored
    views of `config.flips`; the logits are the plain view's alone, for the criterion. `pad_multiple` is the multiple that
    the model needs height and width to be; our U-Net needs none. The model runs in eval mode, and every module is put
    back as it was. Raises DataError without a slice, FloatingPointError when an output is NaN (a mask would hide it).
    """
    parts = []
    with evaluation_mode(model):
        for images in batches:
            # Not around the loop: tensors that `batches` makes and keeps would be unusable for training afterwards.
            with torch.inference_mode():
                with autocast():
                    views = list(view_logits(model, images, config.flips, pad_multiple))
                both = torch.stack([mean_probability(views), views[0].float()])
                parts.append(
                    both.cpu()
                )  # the one copy, and the one wait for the device, of a batch
    if not parts:
        raise DataError("a volume without slices can't be predicted")
    probability, logits = torch.cat(parts, dim=1)
    if torch.isnan(logits).any() or torch.isnan(probability).any():
        remedy = "lower optimizer.lr, or set device.precision=float32"
        raise FloatingPointError(
            f"the model's output is NaN: training diverged or half precision overflowed; {remedy}"
        )
    return probability, logits


def predict_probabilities(
    model: nn.Module, images: Tensor, config: InferenceConfig, pad_multiple: int = 1
) -> Tensor:
    """Probability float32 (B, K, H, W) of float `images` (B, C, H, W), averaged over the views of `config.flips`, on their device."""
    return mean_probability(list(view_logits(model, images, config.flips, pad_multiple)))


def check_threshold(config: InferenceConfig, classes: Sequence[str]) -> None:
    """Raise RequestError for a threshold that would decide nothing: of several classes the most probable one is taken."""
    decides = len(classes) <= 2 or config.threshold == InferenceConfig.threshold
    check(
        decides,
        "inference.threshold",
        config.threshold,
        f"the data have {len(classes)} classes, the most probable one is taken",
        "leave it out",
    )


def check_components(config: InferenceConfig) -> None:
    """Raise RequestError for components=min_volume without a volume: all of them would be kept."""
    decides = config.components != "min_volume" or config.min_volume > 0
    check(
        decides,
        "inference.min_volume",
        config.min_volume,
        "under inference.components=min_volume must be at least 1",
        "as inference.min_volume=100",
    )


def to_mask(probability: Tensor, config: InferenceConfig) -> np.ndarray:
    """Class index uint8 (S, H, W) of a probability (S, K, H, W): p >= threshold for one output, the largest for several."""
    if probability.shape[1] == 1:
        return (probability[:, 0] >= config.threshold).to(torch.uint8).cpu().numpy()
    return probability.argmax(dim=1).to(torch.uint8).cpu().numpy()


def keep_components(mask: np.ndarray, config: InferenceConfig) -> np.ndarray:
    """Keep all, the largest (the first of equals), or the big enough 3-D components of a uint8 mask (S, H, W).

    Voxels that touch by face, edge or corner (26 neighbours) are one component, because slices are thick and a tumour may
    shift by a pixel between them. Each class has components of its own. Volumes are in voxels.
    """
    if config.components == "all":
        return mask
    from scipy.ndimage import label

    kept = np.zeros_like(mask)
    for index in np.unique(mask[mask > 0]):
        components, count = label(mask == index, structure=np.ones((3, 3, 3), bool))
        volume = np.bincount(components.ravel())
        volume[0] = 0  # what is outside this class is no component
        keep = (
            np.arange(count + 1) == volume.argmax()
            if config.components == "largest"
            else volume >= config.min_volume
        )
        keep[0] = False
        kept[keep[components]] = index
    return kept


def view_logits(
    model: nn.Module, images: Tensor, flips: str, pad_multiple: int
) -> Iterator[Tensor]:
    """Logits (B, K, H, W) of each view, mirrored back; the first is the plain image's."""
    for axes in VIEWS[flips]:
        yield (
            padded_logits(model, images.flip(axes), pad_multiple).flip(axes)
            if axes
            else padded_logits(model, images, pad_multiple)
        )


def padded_logits(model: nn.Module, images: Tensor, multiple: int) -> Tensor:
    """Logits of `images` (B, C, H, W) padded at the bottom and right to `multiple` by repeating the edge, cropped back."""
    height, width = images.shape[-2:]
    down, right = -height % multiple, -width % multiple
    if down or right:
        images = functional.pad(images, (0, right, 0, down), mode="replicate")
    return model(images)[..., :height, :width]


def mean_probability(views: list[Tensor]) -> Tensor:
    """Mean float32 probability (B, K, H, W) of the views' logits: the sigmoid of one output, the softmax of several."""
    several = views[0].shape[1] > 1
    # In float32: half precision has few numbers near 1, where a threshold might lie.
    return torch.stack(
        [view.float().softmax(dim=1) if several else view.float().sigmoid() for view in views]
    ).mean(dim=0)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for the block; afterwards every module has the mode it had, a frozen one inside a training model too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
