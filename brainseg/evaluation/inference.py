"""The steps from a network's logits to the mask of a volume.

    predict_volume -> to_mask -> keep_components

Validation, test, `evaluate` and `predict` share this code. `InferenceConfig` holds its settings and
is stored in the checkpoint, so a score always belongs to the masks that a user gets.
Axes: B slices of a batch, S slices of a volume, C image channels, K outputs of the network. One
output is tumour or background, and several outputs are one per class.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from brainseg.config import InferenceConfig
from brainseg.core.errors import DataError, check

# The mirrored axes of each view. The plain image comes first, because the criterion gets its
# logits.
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
    """Return the probability and the logits of one volume, float32 (S, K, H, W), on the CPU.

    `batches` are float (B, C, H, W) on the model's device, in slice order. The probability is
    averaged over the mirrored views of `config.flips`. The logits are those of the plain view, for
    the criterion. Height and width are padded to a multiple of `pad_multiple` for models that need
    it. Our U-Net does not. The model runs in eval mode, and every module gets its former mode back.
    Raises DataError if there is no slice. Raises FloatingPointError if an output is NaN, because a
    mask would hide the NaN.
    """
    parts = []
    with evaluation_mode(model):
        for images in batches:
            # The context covers the model only, not the loop. Otherwise tensors that `batches`
            # creates and keeps could not be used for training afterwards.
            with torch.inference_mode():
                with autocast():
                    views = list(view_logits(model, images, config.flips, pad_multiple))
                both = torch.stack([mean_probability(views), views[0].float()])
                # Each batch is copied once, so that the host waits for the device once.
                parts.append(both.cpu())
    if not parts:
        raise DataError("a volume without slices can't be predicted")
    probability, logits = torch.cat(parts, dim=1)
    if torch.isnan(logits).any() or torch.isnan(probability).any():
        raise FloatingPointError(
            "the model's output is NaN, because training diverged or half precision overflowed; "
            "lower optimizer.lr, or set device.precision=float32"
        )
    return probability, logits


def predict_probabilities(
    model: nn.Module, images: Tensor, config: InferenceConfig, pad_multiple: int = 1
) -> Tensor:
    """Return the probability float32 (B, K, H, W) of float `images` (B, C, H, W), on their device.

    The probability is averaged over the views of `config.flips`.
    """
    return mean_probability(list(view_logits(model, images, config.flips, pad_multiple)))


def check_threshold(config: InferenceConfig, classes: Sequence[str]) -> None:
    """Raise RequestError if a threshold is set although the data have several classes.

    The most probable of several classes is taken, so the threshold would have no effect.
    """
    has_effect = len(classes) <= 2 or config.threshold == InferenceConfig.threshold
    check(
        has_effect,
        "inference.threshold",
        config.threshold,
        f"has no effect on {len(classes)} classes, of which the most probable one is taken",
        "leave it out",
    )


def check_components(config: InferenceConfig) -> None:
    """Raise RequestError if components=min_volume has no volume.

    All components would be kept.
    """
    has_effect = config.components != "min_volume" or config.min_volume > 0
    check(
        has_effect,
        "inference.min_volume",
        config.min_volume,
        "under inference.components=min_volume must be at least 1",
        "set it to a number of voxels, such as inference.min_volume=100",
    )


def to_mask(probability: Tensor, config: InferenceConfig) -> np.ndarray:
    """Return the class indices uint8 (S, H, W) of a probability (S, K, H, W).

    A single output is compared with the threshold (p >= threshold). Among several outputs the
    class of the largest probability is taken.
    """
    if probability.shape[1] == 1:
        return (probability[:, 0] >= config.threshold).to(torch.uint8).cpu().numpy()
    return probability.argmax(dim=1).to(torch.uint8).cpu().numpy()


def keep_components(mask: np.ndarray, config: InferenceConfig) -> np.ndarray:
    """Return a uint8 mask (S, H, W) with only the 3-D components that `config.components` keeps.

    These are all components, the largest (the first of equals), or those of at least
    `config.min_volume` voxels. Voxels that touch by face, edge or corner (26 neighbours) belong to
    one component, because slices are thick and a tumour may shift by a pixel between them. The
    components of each class are separate.
    """
    if config.components == "all":
        return mask
    from scipy.ndimage import find_objects, label

    filtered = np.zeros_like(mask)
    # The boxes of the classes, None for a class without a pixel. Labelling a box takes a tenth of
    # the time of labelling the volume.
    for index, box in enumerate(find_objects(mask), start=1):
        if box is None:
            continue
        components, count = label(mask[box] == index, structure=np.ones((3, 3, 3), bool))
        volume = np.bincount(components.ravel())
        # Label 0 is everything outside this class. It must not be the largest component.
        volume[0] = 0
        is_large = (
            np.arange(count + 1) == volume.argmax()
            if config.components == "largest"
            else volume >= config.min_volume
        )
        is_large[0] = False
        filtered[box][is_large[components]] = index
    return filtered


def view_logits(
    model: nn.Module, images: Tensor, flips: str, pad_multiple: int
) -> Iterator[Tensor]:
    """Yield the logits (B, K, H, W) of each view, mirrored back. The plain image comes first."""
    for axes in VIEWS[flips]:
        yield (
            padded_logits(model, images.flip(axes), pad_multiple).flip(axes)
            if axes
            else padded_logits(model, images, pad_multiple)
        )


def padded_logits(model: nn.Module, images: Tensor, multiple: int) -> Tensor:
    """Return the logits of `images` (B, C, H, W), padded to `multiple` and cropped back.

    The padding is at the bottom and right and repeats the edge.
    """
    height, width = images.shape[-2:]
    extra_rows, extra_columns = -height % multiple, -width % multiple
    if extra_rows or extra_columns:
        images = functional.pad(images, (0, extra_columns, 0, extra_rows), mode="replicate")
    return model(images)[..., :height, :width]


def mean_probability(views: list[Tensor]) -> Tensor:
    """Return the mean float32 probability (B, K, H, W) over the logits of several views.

    The probability is the sigmoid of a single output, or the softmax of several outputs.
    """
    is_multiclass = views[0].shape[1] > 1
    # Half precision has few numbers near 1, where a threshold might lie. Hence float32.
    return torch.stack(
        [view.float().softmax(dim=1) if is_multiclass else view.float().sigmoid() for view in views]
    ).mean(dim=0)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode for the block, and give every module its former mode back.

    The mode is stored per module, because a model in training may contain frozen modules.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
