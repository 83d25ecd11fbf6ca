"""Augmentation: image and mask stay together, the seed decides everything, and what is off leaves no trace."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from brainseg import train
from brainseg.config import AugmentConfig, DataConfig, KFoldConfig, TrainConfig, UNetConfig
from brainseg.core.errors import RequestError
from brainseg.data.augment import (
    Augmentation,
    apply_augmentation,
    choose_donors,
    paste_tumours,
    sample_augmentation,
)

SEQUENCES = ("pre-contrast", "FLAIR", "post-contrast")
EVERYTHING = AugmentConfig(
    flip=0.5,
    rotate=20,
    scale=0.2,
    shift=0.1,
    gamma=0.3,
    contrast=0.2,
    brightness=0.1,
    noise=0.05,
    paste=0.5,
)
GEOMETRY = AugmentConfig(flip=0.5, rotate=180, scale=0.3, shift=0.2)


def slices(
    batch: int = 4, channels: int = 3, height: int = 16, width: int = 20
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(batch, channels, height, width, generator=generator)
    return image, torch.randint(
        0, 2, (batch, 1, height, width), generator=generator, dtype=torch.uint8
    )


def square(height: int = 48, width: int = 64) -> tuple[Tensor, Tensor]:
    """A bright square off the centre and its mask, rows 10 to 19 and columns 40 to 49, eight times."""
    mask = torch.zeros(8, 1, height, width, dtype=torch.uint8)
    mask[..., 10:20, 40:50] = 1
    return mask.float().repeat(1, 2, 1, 1), mask


def moved(
    angle: float = 0.0,
    zoom: float = 1.0,
    across: float = 0.0,
    down: float = 0.0,
    flip: bool = False,
) -> Augmentation:
    def one(*values: float) -> Tensor:
        return torch.tensor(values).view(1, -1, 1, 1)

    return Augmentation(
        flip=one(flip).bool(),
        angle=one(math.radians(angle)),
        zoom=one(zoom),
        shift=one(across, down),
    )


def test_off_returns_the_inputs_themselves_and_draws_nothing() -> None:
    image, mask = slices()
    before = torch.get_rng_state()
    nothing = sample_augmentation(AugmentConfig(), 4, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(part is None for part in nothing)
    changed, labels = apply_augmentation(nothing, image, mask)
    assert changed is image and labels is mask


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_flips_alone_are_exact(share: float) -> None:
    image, mask = slices(batch=32)
    torch.manual_seed(0)
    changes = sample_augmentation(AugmentConfig(flip=share), 32, 3)
    flipped, labels = apply_augmentation(changes, image, mask)
    assert changes.flip is not None and changes.angle is None
    for n, mirrored in enumerate(changes.flip.flatten().tolist()):
        assert torch.equal(flipped[n], image[n].flip(-1) if mirrored else image[n])
        assert torch.equal(labels[n], mask[n].flip(-1) if mirrored else mask[n])
    assert changes.flip.all() if share == 1 else 8 < changes.flip.sum() < 24


def test_movements_by_hand() -> None:
    """On a square image: no movement, a flip, quarter turns and whole-pixel shifts are all exact, so they show the directions."""
    image, mask = slices(batch=1, height=16, width=16)
    shifted = torch.zeros_like(image)
    shifted[..., 2:, 4:] = image[..., :-2, :-4]
    cases = [
        (moved(), image),
        (moved(flip=True), image.flip(-1)),
        (moved(angle=90), image.rot90(-1, (-2, -1))),  # clockwise
        (moved(angle=90, flip=True), image.flip(-1).rot90(-1, (-2, -1))),  # flipped first
        (moved(across=4 / 16, down=2 / 16), shifted),  # to the right and down
    ]
    for changes, expected in cases:
        torch.testing.assert_close(
            apply_augmentation(changes, image, mask)[0], expected, atol=1e-4, rtol=0
        )
    assert torch.equal(
        apply_augmentation(moved(angle=90), image, mask)[1], mask.rot90(-1, (-2, -1))
    )


def test_zoom_enlarges() -> None:
    image, mask = square()
    _, labels = apply_augmentation(moved(zoom=1.5), image[:1], mask[:1])
    assert labels.sum() == pytest.approx(100 * 1.5**2, rel=0.1)


def test_a_turn_does_not_shear_an_image_that_is_not_square() -> None:
    """The bright square's centre, 13 pixels right of and 9 above the middle, ends where a rigid turn takes it."""
    image, mask = square()
    _, labels = apply_augmentation(moved(angle=30), image[:1], mask[:1])
    y, x = labels[0, 0].nonzero().float().mean(0) + 0.5 - torch.tensor([24.0, 32.0])
    cosine, sine, right, down = (
        math.cos(math.radians(30)),
        math.sin(math.radians(30)),
        45 - 32,
        15 - 24,
    )
    assert x.item() == pytest.approx(cosine * right - sine * down, abs=0.3)
    assert y.item() == pytest.approx(sine * right + cosine * down, abs=0.3)
    assert labels.sum() == pytest.approx(100, rel=0.1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_image_and_mask_move_together(seed: int) -> None:
    """Where the moved square is bright, and nowhere else, is its moved mask; the edge may differ by the interpolation."""
    torch.manual_seed(seed)
    image, mask = square()
    changes = sample_augmentation(GEOMETRY, 8, 2)
    bright, labels = apply_augmentation(changes, image, mask)
    inside = labels.bool().expand_as(bright)
    assert (bright[inside] > 0.2).all()
    assert (bright[~inside] < 0.6).all()
    assert (labels != mask).any()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    channels=st.integers(1, 4),
)
def test_ranges_types_and_classes(seed: int, height: int, width: int, channels: int) -> None:
    torch.manual_seed(seed)
    image = torch.rand(3, channels, height, width)
    mask = torch.randint(0, 4, (3, 1, height, width), dtype=torch.uint8)
    kept = image.clone(), mask.clone()
    changed, labels = apply_augmentation(sample_augmentation(EVERYTHING, 3, channels), image, mask)
    assert changed.shape == image.shape and labels.shape == mask.shape
    assert (changed.dtype, labels.dtype) == (torch.float32, torch.uint8)
    assert changed.isfinite().all() and changed.min() >= 0 and changed.max() <= 1
    assert set(labels.unique().tolist()) <= {0, *mask.unique().tolist()}
    assert torch.equal(image, kept[0]) and torch.equal(mask, kept[1])


@pytest.mark.parametrize(
    "config",
    [EVERYTHING, AugmentConfig(noise=0.1), AugmentConfig(flip=0.5), AugmentConfig(gamma=0.5)],
)
def test_the_seed_decides_everything(config: AugmentConfig) -> None:
    image, mask = slices()

    def run(seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        changes = sample_augmentation(config, 4, 3)
        torch.rand(5)  # whatever is drawn in between, as by dropout
        return apply_augmentation(changes, image, mask)

    first, again, other = run(1), run(1), run(3)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_a_generator_of_its_own() -> None:
    before = torch.get_rng_state()
    every = dataclasses.replace(EVERYTHING, missing=0.5)
    one, two = (
        sample_augmentation(every, 4, 3, torch.Generator().manual_seed(5), sequences=SEQUENCES)
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_switching_a_part_on_leaves_the_others() -> None:
    def gamma(**parts: float) -> Tensor | None:
        torch.manual_seed(0)
        return sample_augmentation(AugmentConfig(gamma=0.2, **parts), 4, 3).gamma

    assert torch.equal(gamma(), gamma(rotate=10, contrast=0.3, noise=0.1, flip=0.5))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.floats(0.01, 0.9))
def test_ranges_of_the_draw(seed: int, size: float) -> None:
    torch.manual_seed(seed)
    parts = ("scale", "shift", "gamma", "contrast", "brightness", "noise")
    changes = sample_augmentation(
        AugmentConfig(rotate=100 * size, **dict.fromkeys(parts, size)), 16, 3
    )
    largest = {
        "angle": (changes.angle, math.radians(100 * size)),
        "zoom": (changes.zoom - 1, size),
        "shift": (changes.shift, size),
        "gamma": (changes.gamma.log(), size),
        "contrast": (changes.contrast - 1, size),
        "brightness": (changes.brightness, size),
        "noise": (2 * changes.noise - size, size),  # one-sided
    }
    for part, (values, limit) in largest.items():
        assert values.abs().max() <= limit * 1.0001 + 1e-6, part
        assert values.min() < 0 < values.max(), part
        assert values.abs().max() > limit / 2, part
    assert changes.flip is None
    assert changes.contrast.shape == changes.brightness.shape == (16, 3, 1, 1)


def test_intensity_by_hand() -> None:
    image, mask = (
        torch.tensor([0.04, 0.16, 0.36, 0.64]).view(1, 1, 2, 2),
        torch.ones(1, 1, 2, 2, dtype=torch.uint8),
    )

    def intensity(**parts: Any) -> list[float]:
        changes = Augmentation(
            **{name: torch.tensor(value).view(1, 1, 1, 1) for name, value in parts.items()}
        )
        changed, labels = apply_augmentation(changes, image, mask)
        assert labels is mask
        return changed.flatten().tolist()

    assert intensity(gamma=0.5) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert intensity(brightness=0.5) == pytest.approx([0.54, 0.66, 0.86, 1.0])
    assert intensity(contrast=1.5) == pytest.approx([0.0, 0.09, 0.39, 0.81])  # about the mean, 0.3
    assert intensity(gamma=0.5, contrast=0.5, brightness=-0.1) == pytest.approx(
        [0.25, 0.35, 0.45, 0.55]
    )


def test_contrast_is_about_the_mean_of_each_channel() -> None:
    image = torch.tensor([[0.2, 0.4], [0.6, 0.8]]).view(1, 2, 1, 2)
    changed, _ = apply_augmentation(
        Augmentation(contrast=torch.tensor([2.0, 0.5]).view(1, 2, 1, 1)),
        image,
        torch.zeros(1, 1, 1, 2, dtype=torch.uint8),
    )
    assert changed.flatten().tolist() == pytest.approx([0.1, 0.5, 0.65, 0.75])


def test_noise_has_its_standard_deviation() -> None:
    image, mask = torch.full((2, 3, 64, 64), 0.5), torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    sigma = torch.tensor([0.02, 0.1]).view(2, 1, 1, 1)
    changed, _ = apply_augmentation(Augmentation(noise=sigma, seed=torch.tensor(7)), image, mask)
    assert (changed - 0.5).std((1, 2, 3)).tolist() == pytest.approx([0.02, 0.1], rel=0.05)
    assert abs((changed - 0.5).mean()) < 0.003
    assert not torch.allclose(changed[1, 0], changed[1, 1])
    other, _ = apply_augmentation(Augmentation(noise=sigma, seed=torch.tensor(8)), image, mask)
    assert not torch.allclose(changed, other)


@pytest.mark.parametrize(
    "config", [EVERYTHING, AugmentConfig(flip=0.5), AugmentConfig(gamma=0.2, noise=0.1)]
)
def test_layout_is_kept_and_changes_nothing(config: AugmentConfig) -> None:
    image, mask = slices()
    last = image.to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    changes = sample_augmentation(config, 4, 3)
    plain, turned = (
        apply_augmentation(changes, image, mask),
        apply_augmentation(changes, last, mask),
    )
    assert plain[0].is_contiguous() and turned[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(turned[0], plain[0], atol=1e-5, rtol=0)
    assert torch.equal(turned[1], plain[1])


def test_autocast_changes_nothing() -> None:
    image, mask = slices()
    torch.manual_seed(0)
    changes = sample_augmentation(EVERYTHING, 4, 3)
    expected = apply_augmentation(changes, image, mask)
    with torch.autocast("cpu", torch.bfloat16):
        got = apply_augmentation(changes, image, mask)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.parametrize("context", [0, 1])
def test_flair_stands_in_for_a_missing_sequence_in_every_slice_of_the_sample(context: int) -> None:
    image, mask = slices(batch=400, channels=3 * (2 * context + 1), height=2, width=2)
    torch.manual_seed(0)
    changes = sample_augmentation(
        AugmentConfig(missing=0.25), 400, image.shape[1], sequences=SEQUENCES
    )
    changed, labels = apply_augmentation(changes, image, mask)
    assert torch.equal(labels, mask) and changes.source is not None
    missing = changes.source != torch.arange(3)
    assert not missing[:, 1].any()  # FLAIR itself is always there
    assert (abs(missing[:, [0, 2]].float().mean(0) - 0.25) < 0.05).all()
    assert 10 < missing[:, [0, 2]].all(1).sum() < 45  # both, as often as chance has it
    for n in range(400):
        for channel in range(image.shape[1]):
            source = channel - channel % 3 + 1 if missing[n, channel % 3] else channel
            assert torch.equal(changed[n, channel], image[n, source])


def test_missing_sequences_leave_the_other_draws_as_they_were() -> None:
    torch.manual_seed(0)
    without = sample_augmentation(EVERYTHING, 4, 3)
    torch.manual_seed(0)
    beside = sample_augmentation(
        dataclasses.replace(EVERYTHING, missing=0.5), 4, 3, sequences=SEQUENCES
    )
    assert without.source is None and beside.source is not None
    for one, other in zip(without[:-1], beside[:-1], strict=True):
        assert torch.equal(one, other)  # type: ignore[arg-type]


def test_a_sequence_can_be_missing_only_where_flair_stands_in(phantom_file: Path) -> None:
    data = DataConfig(path=str(phantom_file))
    rest = {
        "model": UNetConfig(depth=2),
        "split": KFoldConfig(folds=3),
        "augment": AugmentConfig(missing=0.1),
    }
    train.check_request(TrainConfig(data=data, **rest))
    alone = dataclasses.replace(data, channel="FLAIR")
    with pytest.raises(
        RequestError,
        match=r"augment.missing=0.1: FLAIR replaces .* the sequences are FLAIR; set it to 0",
    ):
        train.check_request(TrainConfig(data=alone, **rest))


def test_a_pasted_tumour_by_hand() -> None:
    """The donor's pixels inside the tumour, the sample's own far away, a mixture between, and the labels of the pixels that prevail."""
    image, mask = torch.zeros(3, 2, 40, 40), torch.zeros(3, 1, 40, 40, dtype=torch.uint8)
    image[0], image[1], image[2] = 0.1, 0.5, 0.9
    mask[1, 0, 10:20, 10:20] = 1
    mask[0, 0, 30:33, 30:33] = 2
    mask[0, 0, 21, 15] = 2
    before = image.clone(), mask.clone()
    pasted, labels = paste_tumours(image, mask, torch.tensor([1, 1, 0]))
    assert torch.equal(pasted[1], image[1]) and torch.equal(labels[1], mask[1])
    assert (pasted[0, :, 10:20, 10:20] == 0.5).all() and (pasted[0, :, :, 30:] == 0.1).all()
    edge = pasted[0, 0, 15, 20:28]
    assert (edge.diff() < 0).all() and 0.1 < edge[3] < 0.5, "a soft edge"
    assert (labels[0, 0, 10:20, 10:20] == 1).all() and (labels[0, 0, 30:33, 30:33] == 2).all()
    assert (labels[0] > 0).sum() == 109, "healthy tissue of the donor covers the pixel beside it"
    assert (labels[2] == mask[0]).all(), "the classes of the donor"
    assert torch.equal(image, before[0]) and torch.equal(mask, before[1])


@given(batch=st.integers(1, 9), share=st.floats(0, 1), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_donors_are_others_or_none(batch: int, share: float, seed: int) -> None:
    donors = choose_donors(batch, share, torch.Generator().manual_seed(seed))
    assert donors.shape == (batch,) and donors.min() >= 0 and donors.max() < batch
    if share in (0.0, 1.0) and batch > 1:
        assert ((donors == torch.arange(batch)) == (share == 0)).all()


def test_pasting_leaves_the_other_draws_as_they_were() -> None:
    config = AugmentConfig(flip=0.5, rotate=10, gamma=0.2)
    pasting = dataclasses.replace(config, paste=0.5)
    draws = [
        sample_augmentation(c, 4, 3, torch.Generator().manual_seed(1)) for c in (config, pasting)
    ]
    assert draws[0].donor is None and draws[1].donor is not None
    for name in ("flip", "angle", "zoom", "shift", "gamma"):
        assert torch.equal(getattr(draws[0], name), getattr(draws[1], name))
