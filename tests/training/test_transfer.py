"""Initial weights: what fits by name and shape, and filters for another number of input channels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from brainseg.models.unet import UNet
from brainseg.training.transfer import fit_weights, repeat_channels


def unet(channels: int, **options: int) -> UNet:
    torch.manual_seed(channels)
    return UNet(channels, depth=2, width=4, **options).eval()


@given(st.integers(1, 5), st.integers(1, 7), st.sampled_from([1, 4]))
def test_channels_are_repeated_in_order_and_rescaled(before: int, after: int, block: int) -> None:
    weight = torch.arange(2.0 * before * block).reshape(2, before * block, 1, 1) + 1
    repeated = repeat_channels(weight, after * block, block)
    assert repeated.shape == (2, after * block, 1, 1)
    for channel in range(after):
        for part in range(block):
            expected = weight[:, channel % before * block + part] * before / after
            assert torch.allclose(repeated[:, channel * block + part], expected)


@pytest.mark.parametrize("stem", [1, 2])
def test_a_network_gives_the_same_output_for_an_image_whose_channels_are_doubled(stem: int) -> None:
    source, network = unet(3, stem=stem), unet(6, stem=stem)
    fitted = fit_weights(source.state_dict(), network.state_dict(), 6, 3)
    assert fitted.adapted == ["layers.0.conv1.weight"]
    assert not fitted.missing and not fitted.unused
    network.load_state_dict(fitted.weights)
    image = torch.rand(1, 3, 16, 16)
    assert torch.allclose(network(torch.cat([image, image], 1)), source(image), atol=1e-5)


def test_what_does_not_fit_is_named() -> None:
    source, network = unet(3), unet(4, out_channels=3)
    weights = {f"module.{name}": weight for name, weight in source.state_dict().items()}
    weights["criterion.weight"] = torch.ones(1)
    fitted = fit_weights(weights, network.state_dict(), 4)
    assert fitted.adapted == ["layers.0.conv1.weight"] and fitted.has_filters
    assert fitted.missing == ["layers.5.weight", "layers.5.bias"], "three classes instead of one"
    assert fitted.unused == ["module.layers.5.weight", "module.layers.5.bias", "criterion.weight"]
    assert fitted.weights.keys() | set(fitted.missing) == network.state_dict().keys()


class Encoded(nn.Module):
    """A network of segmentation_models_pytorch in small: its encoder is a classifier."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Conv2d(4, 1, 1)


def layers(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_classifier_fits_the_encoder_of_a_network(prefix: str) -> None:
    classifier = nn.ModuleDict({"stem": layers(3), "fc": nn.Linear(4, 2)})
    source = {f"{prefix}{name}": weight for name, weight in classifier.state_dict().items()}
    network = Encoded(nn.ModuleDict({"stem": layers(6)}))
    fitted = fit_weights(source, network.state_dict(), 6)
    assert fitted.adapted == ["encoder.stem.0.weight"]
    assert fitted.missing == ["head.weight", "head.bias"]
    assert fitted.unused == [f"{prefix}fc.weight", f"{prefix}fc.bias"]
    filters = classifier["stem"][0].weight.detach()
    assert torch.equal(fitted.weights["encoder.stem.0.weight"], filters.repeat(1, 2, 1, 1) / 2)


def test_a_classifier_of_timm_fits_although_its_layers_are_called_otherwise() -> None:
    classifier = nn.ModuleDict({"stages": nn.ModuleList([layers(3)]), "fc": nn.Linear(4, 2)})
    # Here the layers are children of the encoder itself, as in timm's networks of features.
    network = Encoded(nn.ModuleDict({"model": nn.ModuleDict({"stages_0": layers(3)})}))
    fitted = fit_weights(classifier.state_dict(), network.state_dict(), 3)
    assert fitted.missing == ["head.weight", "head.bias"]
    assert fitted.unused == ["fc.weight", "fc.bias"]
    weight = fitted.weights["encoder.model.stages_0.0.weight"]
    assert torch.equal(weight, classifier["stages"][0][0].weight)


def test_nothing_fits_another_network_or_another_layout_of_the_input() -> None:
    network = unet(3)
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert not fit_weights(other.state_dict(), network.state_dict(), 3, 3).has_filters
    # Twelve input channels are four parts of three channels, and not four times as many channels.
    spread = fit_weights(unet(3, stem=2).state_dict(), network.state_dict(), 3, 3)
    assert "layers.0.conv1.weight" in spread.missing and not spread.adapted
