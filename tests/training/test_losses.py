"""The criteria: hand-computed values, the reference's numbers, and float32 sums whatever the logits are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from brainseg.config import LossConfig
from brainseg.core.errors import RequestError
from brainseg.training import losses
from brainseg.training.losses import BCEDiceLoss, DiceLoss

CRITERIA = [DiceLoss, BCEDiceLoss]


def logits_of(*probabilities: float) -> Tensor:
    """(B, 1, 1, 2) from two probabilities a sample."""
    return torch.tensor(probabilities).logit().view(-1, 1, 1, 2)


def mask_of(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 2)


def test_dice_by_hand() -> None:
    logits, mask = logits_of(0.8, 0.4, 0.1, 0.3), mask_of(1, 0, 0, 0)
    assert DiceLoss()(logits, mask).item() == pytest.approx(1 - (2 * 0.8 + 1) / (1.6 + 1 + 1))
    assert DiceLoss(smooth=0.5)(logits, mask).item() == pytest.approx(
        1 - (2 * 0.8 + 0.5) / (1.6 + 1 + 0.5)
    )
    first, second = 1 - (2 * 0.8 + 1) / (1.2 + 1 + 1), 1 - 1 / (0.4 + 1)
    assert DiceLoss(per_sample=True)(logits, mask).item() == pytest.approx((first + second) / 2)


def test_dice_gradient_by_hand() -> None:
    logits = logits_of(0.8, 0.4).requires_grad_()
    DiceLoss()(logits, mask_of(1, 0)).backward()
    overlap, total = 2 * 0.8 + 1, 1.2 + 1 + 1  # loss = 1 - overlap / total
    inside, outside = -(2 * total - overlap) / total**2, overlap / total**2
    expected = [inside * 0.8 * 0.2, outside * 0.4 * 0.6]  # times the slope of the sigmoid
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx(expected)


def test_dice_of_empty_masks() -> None:
    nothing = torch.full((2, 1, 4, 4), -100.0)
    empty = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert DiceLoss()(nothing, empty) == 0
    assert DiceLoss()(-nothing, 1 - empty) == 0
    assert DiceLoss()(-nothing, empty).item() == pytest.approx(1 - 1 / 33)
    assert DiceLoss()(nothing, 1 - empty).item() == pytest.approx(1 - 1 / 33)


def test_reference_values(reference: Path) -> None:
    stored = np.load(reference / "dice_loss.npz")
    probability, mask = torch.from_numpy(stored["probability"]), torch.from_numpy(stored["mask"])
    logits = probability.logit().requires_grad_()
    loss = DiceLoss()(logits, mask)
    loss.backward()
    assert loss.item() == pytest.approx(float(stored["loss"]), abs=1e-6)
    slope = probability * (
        1 - probability
    )  # of the sigmoid: the stored gradient is with respect to the probability
    torch.testing.assert_close(
        logits.grad, torch.from_numpy(stored["gradient"]) * slope, atol=1e-9, rtol=1e-4
    )
    empty = torch.zeros_like(mask)
    assert DiceLoss()(logits, empty).item() == pytest.approx(
        float(stored["loss_empty_mask"]), abs=1e-6
    )
    assert DiceLoss()(torch.full_like(logits, -200), empty).item() == float(
        stored["loss_both_empty"]
    )


def test_classes_by_hand() -> None:
    """Three classes, two pixels: Dice of classes 1 and 2 averaged, background left out."""
    p = torch.tensor([[0.5, 0.2], [0.3, 0.7], [0.2, 0.1]]).view(1, 3, 1, 2)
    mask = mask_of(2, 1)
    one = 1 - (2 * 0.7 + 1) / (1.0 + 1 + 1)
    two = 1 - (2 * 0.2 + 1) / (0.3 + 1 + 1)
    assert DiceLoss()(p.log(), mask).item() == pytest.approx((one + two) / 2)
    entropy = -(np.log(0.2) + np.log(0.7)) / 2
    loss = BCEDiceLoss(weight=0.25)(p.log(), mask).item()
    assert loss == pytest.approx(0.25 * entropy + 0.75 * (one + two) / 2)


@pytest.mark.parametrize("per_sample", [False, True])
def test_two_classes_are_one_foreground(per_sample: bool) -> None:
    """A softmax over (0, z) is a sigmoid of z, so that K = 2 and K = 1 must agree."""
    torch.manual_seed(0)
    z, mask = torch.randn(3, 1, 5, 7), torch.randint(0, 2, (3, 1, 5, 7), dtype=torch.uint8)
    both = torch.cat([torch.zeros_like(z), z], dim=1)
    for criterion in (DiceLoss(per_sample=per_sample), BCEDiceLoss(per_sample=per_sample)):
        torch.testing.assert_close(criterion(both, mask), criterion(z, mask))


def test_weight_goes_from_dice_to_cross_entropy() -> None:
    logits, mask = logits_of(0.8, 0.4), mask_of(1, 0)
    entropy = -(np.log(0.8) + np.log(0.6)) / 2
    dice = 1 - 2.6 / 3.2
    for weight, expected in (
        (0.0, dice),
        (1.0, entropy),
        (0.5, (entropy + dice) / 2),
        (0.1, 0.1 * entropy + 0.9 * dice),
    ):
        assert BCEDiceLoss(weight=weight)(logits, mask).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_sums_are_float32(criterion: type, dtype: torch.dtype, autocast: bool) -> None:
    """262,144 pixels of probability 1/2: float16 overflows at 65,504, and bfloat16 stops counting far below."""
    logits = torch.zeros(4, 1, 256, 256, dtype=dtype, requires_grad=True)
    mask = torch.zeros(4, 1, 256, 256, dtype=torch.uint8)
    mask[:, :, :64] = 1
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = criterion()(logits, mask)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(criterion()(logits.float(), mask).item(), rel=1e-6)
    dice = 1 - (65536 + 1) / (131072 + 65536 + 1)
    assert loss.item() == pytest.approx(
        dice if criterion is DiceLoss else (dice + np.log(2)) / 2, rel=1e-5
    )
    assert logits.grad is not None and logits.grad.dtype == dtype


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_over_classes_are_float32(criterion: type, dtype: torch.dtype) -> None:
    """The same for three classes, and for a mask of shares in half precision."""
    torch.manual_seed(0)
    logits, mask = (
        torch.randn(2, 3, 256, 256).to(dtype),
        torch.randint(0, 3, (2, 1, 256, 256), dtype=torch.uint8),
    )
    assert criterion()(logits, mask).item() == pytest.approx(
        criterion()(logits.float(), mask).item(), rel=1e-6
    )
    shares = torch.rand(2, 1, 256, 256).to(dtype)
    one = logits[:, :1]
    assert criterion()(one, shares).item() == pytest.approx(
        criterion()(one.float(), shares.float()).item(), rel=1e-6
    )


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    classes=st.integers(1, 4),
    per_sample=st.booleans(),
)
def test_dice_range_and_direction(seed: int, batch: int, classes: int, per_sample: bool) -> None:
    """Between 0 and 1, 0 for the truth itself, and a small step down the gradient lowers it."""
    torch.manual_seed(seed)
    logits = torch.randn(batch, classes, 4, 5, requires_grad=True)
    mask = torch.randint(0, max(classes, 2), (batch, 1, 4, 5), dtype=torch.uint8)
    criterion = DiceLoss(per_sample=per_sample)
    loss = criterion(logits, mask)
    loss.backward()
    assert 0 <= loss.item() <= 1
    assert criterion(logits - 0.1 * logits.grad, mask) < loss
    sure = (
        200 * (mask == torch.arange(classes).view(1, -1, 1, 1)).float()
        if classes > 1
        else 400 * mask.float() - 200
    )
    assert criterion(sure, mask).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(
    ("logits", "mask"),
    [((2, 1, 4, 4), (2, 4, 4)), ((2, 1, 4, 4), (1, 1, 4, 4)), ((2, 3, 4, 4), (2, 3, 4, 4))],
)
def test_shapes_that_do_not_fit(
    criterion: type, logits: tuple[int, ...], mask: tuple[int, ...]
) -> None:
    with pytest.raises(RequestError) as error:
        criterion()(torch.zeros(logits), torch.zeros(mask, dtype=torch.uint8))
    assert str(logits) in str(error.value) and str(mask) in str(error.value)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("smooth", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_smooth(criterion: type, smooth: float) -> None:
    with pytest.raises(RequestError, match=r"loss\.smooth="):
        criterion(smooth=smooth)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_impossible_weight(weight: float) -> None:
    with pytest.raises(RequestError, match=r"loss\.weight="):
        BCEDiceLoss(weight=weight)


def test_no_state() -> None:
    assert list(BCEDiceLoss().state_dict()) == list(BCEDiceLoss().parameters()) == []


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(
    "name", ["DiceLoss", "DiceCELoss", "GeneralizedDiceLoss", "TverskyLoss", "FocalLoss"]
)
def test_losses_of_monai_are_told_of_logits_and_classes(name: str, outputs: int) -> None:
    """The right answer costs less than a wrong one, which raw logits or class indices would not give."""
    mask = torch.randint(
        0,
        max(outputs, 2),
        (2, 1, 16, 16),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    wrong = (mask + 1) % max(outputs, 2)
    sure, mistaken = [
        8 * (m == torch.arange(outputs).view(1, -1, 1, 1)).float() if outputs > 1 else 16.0 * m - 8
        for m in (mask, wrong)
    ]
    loss = losses.build_loss(LossConfig(name, {}), outputs)
    assert 0 <= loss(sure, mask) < 0.02 < 0.3 < loss(mistaken, mask)


def test_our_dice_loss_equals_that_of_monai_for_classes() -> None:
    logits, mask = torch.randn(2, 4, 9, 8), torch.randint(0, 4, (2, 1, 9, 8), dtype=torch.uint8)
    options = {"batch": True, "smooth_nr": 1.0, "smooth_dr": 1.0}
    torch.testing.assert_close(
        DiceLoss()(logits, mask),
        losses.build_loss(LossConfig("DiceLoss", options), 4)(logits, mask),
    )


def test_a_loss_for_one_class_is_refused_for_several() -> None:
    with pytest.raises(RequestError, match="takes no softmax of class indices"):
        losses.build_loss(LossConfig("SSIMLoss", {}), 3)
    with pytest.raises(RequestError, match=r"loss\.options\.sigmoid"):
        losses.build_loss(LossConfig("DiceLoss", {"sigmoid": True}), 3)


@pytest.mark.parametrize("criterion", [DiceLoss, BCEDiceLoss])
def test_slice_weight_by_hand(criterion: type) -> None:
    """Two slices with tumour and one without: the mean of two single losses beside that of the batch."""
    torch.manual_seed(0)
    logits = torch.randn(3, 1, 6, 5)
    mask = torch.zeros(3, 1, 6, 5, dtype=torch.uint8)
    mask[0, 0, :2] = 1
    mask[2, 0, 5, 4] = 1
    options = {} if criterion is DiceLoss else {"weight": 0.0}
    batch = criterion(**options)(logits, mask)
    slices = [criterion(**options)(logits[i : i + 1], mask[i : i + 1]) for i in (0, 2)]
    mixed = criterion(**options, slice_weight=0.25)(logits, mask)
    torch.testing.assert_close(mixed, 0.75 * batch + 0.25 * sum(slices) / 2)
    # A batch without any tumour has the loss of the batch alone.
    empty = torch.zeros_like(mask)
    alone = criterion(**options, slice_weight=1.0)(logits, empty)
    assert alone == 0
    with pytest.raises(RequestError, match=r"loss\.slice_weight=2: must lie between 0 and 1"):
        criterion(slice_weight=2)
    with pytest.raises(
        RequestError, match=r"loss\.slice_weight=0\.5: has no effect with per_sample"
    ):
        criterion(slice_weight=0.5, per_sample=True)
