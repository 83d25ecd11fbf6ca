"""Logits to masks: flips, padding, modes, thresholds and components."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from brainseg.config import InferenceConfig
from brainseg.core.errors import DataError, RequestError
from brainseg.evaluation.inference import (
    check_components,
    keep_components,
    predict_probabilities,
    predict_volume,
    to_mask,
)


class Model(nn.Module):
    """A convolution that sees asymmetry, with dropout and batch norm, and that counts its forwards."""

    def __init__(self, outputs=1, multiple=1):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Dropout(0.5),
            nn.Conv2d(4, outputs, 3, padding=1),
        )
        self.multiple, self.sizes = multiple, []

    def forward(self, images):
        """(B, 2, H, W) -> (B, outputs, H, W)."""
        self.sizes.append(tuple(images.shape[-2:]))
        assert images.shape[-1] % self.multiple == 0 and images.shape[-2] % self.multiple == 0
        return self.layers(images)


def images(slices=5, height=6, width=9):
    return torch.rand(slices, 2, height, width, generator=torch.Generator().manual_seed(1))


FLIPS = {
    "none": [()],
    "horizontal": [(), (3,)],
    "vertical": [(), (2,)],
    "both": [(), (3,), (2,), (2, 3)],
}


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_probability_is_the_mean_over_mirrored_images(flips, outputs):
    model = Model(outputs).eval()
    x = images()
    activate = torch.sigmoid if outputs == 1 else lambda logits: torch.softmax(logits, 1)
    with torch.no_grad():
        expected = torch.stack(
            [torch.flip(activate(model(torch.flip(x, axes))), axes) for axes in FLIPS[flips]]
        ).mean(0)
        model.sizes.clear()
        probability = predict_probabilities(model, x, InferenceConfig(flips=flips))
    assert len(model.sizes) == len(FLIPS[flips])
    torch.testing.assert_close(probability, expected)


def test_flips_make_the_probability_symmetric():
    x, config, model = images(), InferenceConfig(flips="both"), Model().eval()
    with torch.no_grad():
        torch.testing.assert_close(
            predict_probabilities(model, x.flip(3), config),
            predict_probabilities(model, x, config).flip(3),
        )
        plain = InferenceConfig()
        assert not torch.allclose(
            predict_probabilities(model, x.flip(3), plain),
            predict_probabilities(model, x, plain).flip(3),
        )


@pytest.mark.parametrize("flips", FLIPS)
def test_volume_has_the_plain_views_logits_whatever_the_batches(flips):
    model, x, config = Model().eval(), images(), InferenceConfig(flips=flips)
    with torch.no_grad():
        logits, expected = model(x), predict_probabilities(model, x, config)
    for size in (1, 2, 5):
        probability, volume_logits = predict_volume(model, x.split(size), config)
        assert (probability.dtype, volume_logits.dtype) == (torch.float32, torch.float32)
        torch.testing.assert_close(volume_logits, logits)
        torch.testing.assert_close(probability, expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 4, 16]))
def test_padding_meets_the_multiple_and_is_cropped_back(height, width, multiple):
    model = Model(multiple=multiple).eval()
    x = images(2, height, width)
    _, logits = predict_volume(model, [x], InferenceConfig(), pad_multiple=multiple)
    assert logits.shape == (2, 1, height, width)
    assert model.sizes == [(-(-height // multiple) * multiple, -(-width // multiple) * multiple)]
    inner = (
        ...,
        slice(0, max(height - 2, 0)),
        slice(0, max(width - 2, 0)),
    )  # two 3x3 convolutions see two pixels of padding
    torch.testing.assert_close(logits[inner], Model().eval()(x)[inner])


def test_padding_repeats_the_edge():
    identity = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(identity.weight)
    x = torch.ones(1, 1, 3, 3)
    _, logits = predict_volume(identity, [x], InferenceConfig(), pad_multiple=8)
    assert logits[0, 0, 2, 2] == 9  # zeros at the bottom and right would give 4


def test_every_module_is_put_back_into_its_mode():
    model = Model().train()
    model.layers[1].eval()  # a frozen batch norm
    before = model.layers[1].running_mean.clone()
    seen = []
    model.layers[2].register_forward_pre_hook(lambda module, _: seen.append(module.training))
    predict_volume(model, [images()], InferenceConfig())
    assert (
        seen == [False]
        and model.training
        and model.layers[2].training
        and not model.layers[1].training
    )
    assert torch.equal(before, model.layers[1].running_mean)


def test_modes_are_put_back_after_an_error():
    model = Model().train()
    with pytest.raises(RuntimeError):
        predict_volume(model, [torch.zeros(1, 7, 4, 4)], InferenceConfig())
    assert all(module.training for module in model.modules())


def test_tensors_made_by_the_batches_can_be_trained_on_afterwards():
    kept, model = [], Model()

    def batches():
        kept.append(images() + 0)
        yield kept[0]

    _, logits = predict_volume(model, batches(), InferenceConfig())
    assert not logits.requires_grad
    model(kept[0]).sum().backward()


def test_autocast_wraps_every_forward_and_results_stay_float32():
    entered = []

    @contextmanager
    def autocast():
        with torch.autocast("cpu", torch.bfloat16):
            entered.append(1)
            yield

    model = Model()
    dtypes = []
    model.register_forward_hook(lambda *call: dtypes.append(call[2].dtype))
    probability, logits = predict_volume(
        model, images().split(2), InferenceConfig(flips="both"), autocast
    )
    assert len(entered) == 3 and dtypes == [torch.bfloat16] * 12
    assert torch.equal(logits.to(torch.bfloat16).float(), logits), (
        "the logits are what the model gave"
    )
    plain, logits = predict_volume(model, images().split(2), InferenceConfig(), autocast)
    torch.testing.assert_close(
        plain, logits.sigmoid(), rtol=1e-6, atol=0
    )  # computed in float32: bfloat16 is off by 1e-3
    assert probability.dtype == torch.float32


def test_nan_is_not_hidden_in_a_mask():
    model = Model()
    nn.init.constant_(model.layers[3].bias, torch.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        predict_volume(model, [images()], InferenceConfig())


def test_a_volume_without_slices_is_an_error():
    with pytest.raises(DataError):
        predict_volume(Model(), [], InferenceConfig())


def test_the_threshold_itself_is_tumour_and_several_outputs_take_the_largest():
    one = torch.tensor([0.0, 0.4999, 0.5, 1.0]).reshape(1, 1, 2, 2)
    assert to_mask(one, InferenceConfig()).tolist() == [[[0, 0], [1, 1]]]
    assert to_mask(one, InferenceConfig(threshold=0.0)).all()
    several = torch.tensor([[0.5, 0.1], [0.3, 0.2], [0.2, 0.7]]).reshape(1, 3, 1, 2)
    mask = to_mask(several, InferenceConfig())
    assert mask.dtype == np.uint8 and mask.tolist() == [[[0, 2]]]


def brute_components(mask):
    """Flood fill over the 26 neighbours, in the order of the voxels."""
    left, components = {tuple(p) for p in np.argwhere(mask)}, []
    for start in map(tuple, np.argwhere(mask)):
        if start not in left:
            continue
        stack, component = [start], set()
        left.remove(start)
        while stack:
            point = stack.pop()
            component.add(point)
            near = [q for q in left if all(abs(a - b) <= 1 for a, b in zip(point, q, strict=True))]
            left.difference_update(near)
            stack += near
        components.append(component)
    return components


@settings(max_examples=150, deadline=None)
@given(arrays(np.uint8, (3, 5, 6), elements=st.sampled_from([0, 0, 0, 0, 1, 2])), st.integers(0, 6))
def test_components_equal_a_flood_fill(mask, least):
    """Of each class by itself."""
    largest, enough = set(), set()
    for label in (1, 2):
        found = brute_components(mask == label)
        largest |= max(found, key=len, default=set())  # max takes the first of equals
        enough |= {point for component in found if len(component) >= least for point in component}
    expected = {"largest": largest, "min_volume": enough}
    for components, points in expected.items():
        config = InferenceConfig(components=components, min_volume=least)
        kept = keep_components(mask, config)
        assert {tuple(p) for p in np.argwhere(kept)} == points
        assert kept.dtype == np.uint8 and np.array_equal(kept[kept > 0], mask[kept > 0]), (
            "classes stay as they were"
        )
    assert keep_components(mask, InferenceConfig()) is mask


def test_components_of_a_volume_that_nobody_said_are_refused():
    check_components(InferenceConfig(components="min_volume", min_volume=1))
    check_components(InferenceConfig(components="largest"))
    with pytest.raises(
        RequestError,
        match=r"inference\.min_volume=0: under inference\.components=min_volume must be at least 1",
    ):
        check_components(InferenceConfig(components="min_volume"))
