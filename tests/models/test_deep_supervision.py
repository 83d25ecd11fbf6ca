"""Deep supervision: a list of full-size logits in training, the final logits in evaluation, and a weighted loss."""

import pytest
import torch
from torch import Tensor, nn

from brainseg.core.errors import RequestError
from brainseg.models.deep_supervision import unify_outputs
from brainseg.models.unet import UNet
from brainseg.training.losses import BCEDiceLoss, deeply_supervised_loss


def unet(seed: int = 0, **changes: object) -> UNet:
    torch.manual_seed(seed)
    return UNet(**{"depth": 4, "width": 4, "norm": "group", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("stem", "size"), [(1, (32, 32)), (1, (19, 30)), (2, (45, 32))])
def test_training_returns_full_size_logits_of_each_level(stem: int, size: tuple[int, int]) -> None:
    model = unet(stem=stem, deep_supervision=True, out_channels=3)
    image = torch.rand(2, 3, *size)
    levels = model.train()(image)
    assert [tuple(level.shape) for level in levels] == [(2, 3, *size)] * 3
    for number, level in enumerate(levels[1:], start=1):
        side = stem * 2**number
        coarse = level[..., ::side, ::side]
        enlarged = coarse.repeat_interleave(side, 2).repeat_interleave(side, 3)
        assert torch.equal(level, enlarged[..., : size[0], : size[1]])
        assert coarse.unique().numel() > coarse.shape[1]
    assert torch.equal(model.eval()(image), levels[0]) and model.decoded == []


def test_the_other_layers_and_their_first_weights_are_those_without_it() -> None:
    plain, supervised = unet().eval(), unet(deep_supervision=True).eval()
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(plain(image), supervised(image))
    heads = set(supervised.state_dict()) - set(plain.state_dict())
    assert heads == {"heads.0.weight", "heads.0.bias", "heads.1.weight", "heads.1.bias"}


def test_its_weights_load_into_a_network_without_it() -> None:
    plain, supervised = unet(seed=1).eval(), unet(deep_supervision=True).eval()
    weights = supervised.state_dict()
    plain.load_state_dict(weights)
    assert "heads.0.weight" in weights
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(plain(image), supervised(image))
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"other"):
        plain.load_state_dict(weights | {"other": torch.zeros(1)})


def test_a_network_without_a_lower_decoder_level_is_refused() -> None:
    with pytest.raises(RequestError, match=r"model.deep_supervision=true: has no effect with mode"):
        UNet(depth=2, deep_supervision=True)


class Mean(nn.Module):
    """A criterion whose loss is the mean of the logits."""

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        return logits.mean()


def test_the_loss_weighs_the_levels_1_1_2_1_4() -> None:
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    levels = [torch.full((2, 1, 8, 8), value) for value in (7.0, 14.0, 28.0)]
    # (1 * 7 + 1/2 * 14 + 1/4 * 28) / (7/4)
    assert deeply_supervised_loss(Mean(), levels, mask).item() == pytest.approx(12.0)
    assert deeply_supervised_loss(Mean(), levels[1], mask).item() == 14.0


def test_each_head_gets_a_gradient_of_the_loss() -> None:
    model = unet(deep_supervision=True)
    mask = (torch.rand(2, 1, 32, 32) > 0.5).to(torch.uint8)
    deeply_supervised_loss(BCEDiceLoss(), model(torch.rand(2, 3, 32, 32)), mask).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


class Answer(nn.Module):
    """A network that returns what it was made with."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output
        self.register_forward_hook(unify_outputs)

    def forward(self, images: Tensor) -> object:
        return self.output


class BasicUNetPlusPlus(Answer):
    """Stands for MONAI's network, which lists its best output last."""


FINAL, LOW = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 2, 2)
ENLARGED = LOW.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize(
    ("network", "trained", "evaluated"),
    [
        (Answer(FINAL), FINAL, FINAL),
        (Answer(torch.stack([FINAL, ENLARGED], dim=1)), [FINAL, ENLARGED], FINAL),
        (Answer([FINAL, LOW]), [FINAL, ENLARGED], FINAL),
        (Answer([FINAL]), FINAL, FINAL),
        (BasicUNetPlusPlus([ENLARGED, FINAL]), [FINAL, ENLARGED], FINAL),
        # The tuple of an autoencoder stays what it is in evaluation, where the trial step refuses it.
        (Answer((FINAL, LOW)), [FINAL, ENLARGED], (FINAL, LOW)),
        (
            Answer((FINAL, torch.tensor(1.0))),
            (FINAL, torch.tensor(1.0)),
            (FINAL, torch.tensor(1.0)),
        ),
    ],
)
def test_the_outputs_of_monais_networks_become_a_list(
    network: Answer, trained: object, evaluated: object
) -> None:
    images = torch.zeros(2, 3, 4, 4)
    for output, expected in (
        (network.train()(images), trained),
        (network.eval()(images), evaluated),
    ):
        assert type(output) is type(expected)
        torch.testing.assert_close(output, expected, atol=0, rtol=0)
