"""Halving a batch: means of the image, majorities of the mask, at the same place."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brainseg.data.resize import downsample_by_two


def squares(mask: torch.Tensor) -> list[list[int]]:
    """The four pixels behind each pixel of the halved mask."""
    height, width = mask.shape[0] // 2 * 2, mask.shape[1] // 2 * 2
    return (
        mask[:height, :width]
        .reshape(height // 2, 2, width // 2, 2)
        .transpose(1, 2)
        .reshape(-1, 4)
        .tolist()
    )


@given(
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    classes=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_the_mask_takes_the_class_of_most_and_of_a_draw_the_higher(
    height: int, width: int, classes: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, classes, (2, 1, height, width), generator=random, dtype=torch.uint8)
    image = torch.rand(2, 3, height, width, generator=random)
    small, labels = downsample_by_two(image, mask, classes)
    assert (small.shape, labels.shape, labels.dtype) == (
        (2, 3, height // 2, width // 2),
        (2, 1, height // 2, width // 2),
        torch.uint8,
    )
    for whole, half in zip(mask, labels, strict=True):
        assert half.flatten().tolist() == [
            max(set(four), key=lambda index: (four.count(index), index))
            for four in squares(whole[0])
        ]
    assert small[0, 0, 0, 0].item() == pytest.approx(image[0, 0, :2, :2].mean().item())


def test_an_empty_mask_stays_empty_and_the_inputs_stay_as_they_are() -> None:
    image, mask = torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    before = image.clone()
    assert not downsample_by_two(image, mask, 2)[1].any() and torch.equal(image, before)
