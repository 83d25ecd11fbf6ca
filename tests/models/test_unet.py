"""The U-Net: the reference's numbers, any depth and size, and a stack that is empty whatever happened."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from brainseg.core.errors import RequestError
from brainseg.models.unet import UNet, smallest_size


def tiny(**changes: Any) -> UNet:
    """An untrained U-Net of three levels in evaluation mode, the same each time."""
    torch.manual_seed(0)
    return UNet(**{"depth": 3, "width": 4, **changes}).eval()


def picture(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def test_reference_architecture() -> None:
    model = UNet(in_channels=3, out_channels=1, depth=4, width=32, growth=1)
    assert sum(p.numel() for p in model.parameters()) == 161_985
    kinds = [type(layer).__name__ for layer in model.layers]
    down, up = ["Block", "MaxPool2d"] * 3 + ["Block"], ["ConvTranspose2d", "Block"] * 3
    assert kinds == [*down, *up, "Conv2d"]


def test_names_of_the_weights() -> None:
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    one = ["conv1.weight", "conv1.bias", *(f"bn1.{n}" for n in norm)]
    block = one + [name.replace("1", "2", 1) for name in one]
    blocks = {n: [f"layers.{n}.{name}" for name in block] for n in (0, 2, 4)}
    expected = [
        *blocks[0],
        *blocks[2],
        "layers.3.weight",
        *blocks[4],
        "layers.5.weight",
        "layers.5.bias",
    ]
    names = list(UNet(depth=2).state_dict())
    assert names == expected
    assert list(UNet(depth=2, dropout=0.3).state_dict()) == names


def test_reference_weights(reference: Path) -> None:
    model = UNet(depth=4, width=32, growth=1)
    model.load_state_dict(
        torch.load(reference / "unet.pt", weights_only=True)["state_dict"], strict=True
    )
    stored = np.load(reference / "unet_io.npz")
    probability = torch.from_numpy(stored["probability"])
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(stored["image"]))
    torch.testing.assert_close(logits.sigmoid(), probability, atol=1e-5, rtol=0)
    # All stored probabilities are below 1.2e-5: only the logits tell a right network from one that says "no tumour".
    torch.testing.assert_close(logits, probability.double().logit().float(), atol=1e-3, rtol=0)


def test_two_levels_by_hand() -> None:
    """The whole computation again, written out: concatenation puts the up-convolution first, then the skip."""
    model = tiny(depth=2, norm="none", in_channels=2)
    image = picture(1, 2, 4, 6)
    weights = model.state_dict()

    def block(x: Tensor, n: int) -> Tensor:
        for conv in ("conv1", "conv2"):
            x = F.conv2d(
                x,
                weights[f"layers.{n}.{conv}.weight"],
                weights[f"layers.{n}.{conv}.bias"],
                padding=1,
            ).clamp(min=0)
        return x

    skip = block(image, 0)
    bottom = block(F.max_pool2d(skip, 2), 2)
    up = F.conv_transpose2d(bottom, weights["layers.3.weight"], stride=2)
    expected = F.conv2d(
        block(torch.cat([up, skip], 1), 4), weights["layers.5.weight"], weights["layers.5.bias"]
    )
    torch.testing.assert_close(model(image), expected)


@settings(max_examples=40, deadline=None)
@given(
    depth=st.integers(1, 4),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    classes=st.integers(1, 3),
)
def test_any_depth_and_size(depth: int, height: int, width: int, classes: int) -> None:
    model = tiny(depth=depth, out_channels=classes, norm="group")
    image = picture(2, 3, height, width)
    with torch.no_grad():
        logits = model(image)
        below, right = -height % smallest_size(depth), -width % smallest_size(depth)
        whole = model.layers(F.pad(image, (0, right, 0, below)))
    assert logits.shape == (2, classes, height, width)
    assert torch.equal(logits, whole[..., :height, :width])
    assert model.activations == []


def test_a_size_that_fits_is_not_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    expected = model.layers(picture(1, 3, 8, 12))
    monkeypatch.setattr(F, "pad", None)
    assert torch.equal(model(picture(1, 3, 8, 12)), expected)


@pytest.mark.parametrize(
    ("growth", "cap", "expected"), [(1, None, [4, 4, 4]), (2, None, [4, 8, 16]), (2, 9, [4, 8, 9])]
)
def test_features_of_the_levels(growth: int, cap: int | None, expected: list[int]) -> None:
    model = tiny(growth=growth, max_width=cap)
    assert [model.layers[n].conv2.out_channels for n in (0, 2, 4)] == expected
    assert [model.layers[n].conv2.out_channels for n in (8, 6)] == expected[:2]
    assert model(picture(1, 3, 8, 8)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
def test_every_parameter_learns(norm: str) -> None:
    model = tiny(norm=norm, width=6, growth=2).train()
    model(picture(2, 3, 16, 16)).square().sum().backward()
    kinds = {
        "batch": nn.BatchNorm2d,
        "instance": nn.InstanceNorm2d,
        "group": nn.GroupNorm,
        "none": nn.Identity,
    }
    assert type(model.layers[0].bn1) is kinds[norm]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(
        p.grad.abs().sum() > 0
        for name, p in model.named_parameters()
        if name.endswith("conv2.weight")
    )


def test_dropout_drops_in_training_alone() -> None:
    model, plain, image = tiny(dropout=0.5), tiny(), picture(1, 3, 8, 8)
    assert torch.equal(model(image), plain(image))
    first, second = model.train()(image), model(image)
    assert not torch.equal(first, second)


def test_stack_is_empty_after_an_error() -> None:
    model, image = tiny(), picture(1, 3, 8, 8)
    expected = model(image)

    def fail(*_: Any) -> None:
        assert len(model.activations) == 2
        raise RuntimeError("out of memory")

    handle = model.layers[4].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(image)
    assert model.activations == []
    handle.remove()
    assert torch.equal(model(image), expected)


def test_a_copy_has_its_own_stack() -> None:
    model, image = tiny(), picture(1, 3, 8, 8)
    twin = copy.deepcopy(model)
    seen: list[tuple[int, int]] = []
    twin.layers[4].register_forward_hook(
        lambda *_: seen.append((len(model.activations), len(twin.activations)))
    )
    assert torch.equal(twin(image), model(image))
    assert seen == [(0, 2)]


def test_pickle() -> None:
    model, image = tiny(dropout=0.1), picture(1, 3, 8, 8)
    twin = pickle.loads(pickle.dumps(model))  # noqa: S301 (our own bytes)
    assert torch.equal(twin(image), model(image))
    assert twin.activations is not model.activations


def test_compiles_as_one_graph() -> None:
    model = tiny().train()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")
    for image in (picture(2, 3, 8, 8), picture(2, 3, 9, 7)):
        assert torch.equal(compiled(image), model(image))
    assert compiled.activations == []
    assert list(compiled._orig_mod.state_dict()) == list(model.state_dict())


def test_exports() -> None:
    model, image = tiny(), picture(2, 3, 8, 8)
    program = torch.export.export(model, (image,))
    torch.testing.assert_close(program.module()(image), model(image))


def test_channels_last_and_bfloat16() -> None:
    model, image = tiny(width=8), picture(2, 3, 12, 16)
    with torch.no_grad():
        expected = model(image)
        model, image = (
            model.to(memory_format=torch.channels_last),
            image.to(memory_format=torch.channels_last),
        )
        torch.testing.assert_close(model(image), expected, atol=1e-5, rtol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(image)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.05)


def test_without_gradients() -> None:
    model, image = tiny(), picture(1, 3, 8, 8)
    with torch.inference_mode():
        assert not model(image).requires_grad
    assert model(image).requires_grad


WRONG = [
    ({"depth": 0}, "model.depth=0"),
    ({"depth": 2.5}, "model.depth=2.5"),
    ({"width": 0}, "model.width=0"),
    ({"growth": 0}, "model.growth=0"),
    ({"in_channels": 0}, "model.in_channels=0"),
    ({"out_channels": 0}, "model.out_channels=0"),
    ({"max_width": 3}, "model.max_width=3"),
    ({"max_width": 0}, "model.max_width=0"),
    ({"norm": "layer"}, "model.norm=layer"),
    ({"dropout": 1.0}, "model.dropout=1.0"),
    ({"dropout": -0.1}, "model.dropout=-0.1"),
]


@pytest.mark.parametrize(("argument", "named"), WRONG, ids=[named for _, named in WRONG])
def test_impossible_arguments(argument: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=f"^{named}: must"):
        tiny(**argument)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 8, 8)])
def test_wrong_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=r"must be \(B, 3, H, W\)"):
        tiny()(picture(*shape))


@pytest.mark.parametrize("stem", [2, 4])
def test_a_stem_is_a_network_of_fewer_pixels_and_more_channels(stem: int) -> None:
    """Space to depth, the plain network, and depth to space: nothing else."""
    model = tiny(stem=stem, in_channels=2, out_channels=3)
    inner = tiny(in_channels=2 * stem**2, out_channels=3 * stem**2)
    inner.load_state_dict(model.state_dict())
    image = picture(2, 2, 8 * stem, 12 * stem)
    with torch.no_grad():
        expected = F.pixel_shuffle(inner(F.pixel_unshuffle(image, stem)), stem)
        assert torch.equal(model(image), expected)
        # Logit k of the inner network's output o is pixel (k // stem, k % stem) of output o.
        logits = inner(F.pixel_unshuffle(image, stem))
    assert torch.equal(model(image)[:, 1, 1::stem, 0::stem], logits[:, stem**2 + stem])


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    depth=st.integers(1, 4),
    stem=st.sampled_from([1, 2, 4]),
)
@settings(max_examples=25, deadline=None)
def test_any_size_with_any_stem(height: int, width: int, depth: int, stem: int) -> None:
    model = tiny(depth=depth, stem=stem, width=2)
    with torch.no_grad():
        assert model(picture(1, 3, height, width)).shape == (1, 1, height, width)
    assert model.multiple == smallest_size(depth, stem) == stem * 2 ** (depth - 1)


def test_impossible_stem() -> None:
    with pytest.raises(RequestError, match=r"model\.stem=3: must be 1, 2 or 4"):
        UNet(stem=3)
