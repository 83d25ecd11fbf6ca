"""Batch norm folded into the convolutions: the same logits and masks, and the model untouched."""

import pytest
import torch
from torch import nn

from brainseg.models.folding import fold_batch_norm
from brainseg.models.unet import UNet


def trained_unet(**changes: object) -> UNet:
    """A U-Net whose norms have seen images, so that their statistics matter."""
    torch.manual_seed(0)
    model = UNet(**{"depth": 3, "width": 8, **changes})  # type: ignore[arg-type]
    for _ in range(3):
        model(3 * torch.rand(4, 3, 32, 32) + 1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2)
                module.bias.uniform_(-1, 1)
    return model


@pytest.mark.parametrize(("stem", "deep_supervision"), [(1, False), (2, False), (2, True)])
def test_the_logits_are_the_same_and_the_model_stays(stem: int, deep_supervision: bool) -> None:
    model = trained_unet(stem=stem, deep_supervision=deep_supervision)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = torch.rand(2, 3, 40, 24)
    folded = fold_batch_norm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        logits = model.eval()(image)
        torch.testing.assert_close(folded(image), logits, atol=1e-5, rtol=1e-5)
    threshold = logits.median()
    assert torch.equal(folded(image) > threshold + 1e-4, logits > threshold + 1e-4)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert list(after) == list(before)


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
def test_other_norms_and_other_networks_are_returned_themselves(norm: str) -> None:
    for model in (UNet(depth=2, width=4, norm=norm), nn.Sequential(nn.Conv2d(3, 1, 1))):
        assert fold_batch_norm(model) is model
