"""Weights that other programs saved: read, with what was done to their names said, or refused by the names that do not fit."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from brainseg.config import DataConfig, UNetConfig
from brainseg.core.errors import DataError, RequestError
from brainseg.prediction.trained_model import TrainedModel, load_model
from brainseg.runs import checkpoint
from brainseg.runs.foreign_weights import match_weights

SMALL = UNetConfig(depth=2, width=4)


def network() -> nn.Module:
    from brainseg.models.unet import UNet

    torch.manual_seed(0)
    return UNet(3, 1, depth=2, width=4)


def loaded(path: Path) -> TrainedModel:
    return load_model(str(path), DataConfig(), SMALL)


def wrapped(model: nn.Module) -> dict[str, object]:
    """The state dicts of torch's own wrappers, and the dicts that are usual around them."""
    lightning = nn.Module()
    lightning.net, lightning.criterion = model, nn.BCEWithLogitsLoss(pos_weight=torch.ones(1))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    weights = model.state_dict()
    return {
        "plain": weights,
        "DataParallel": nn.DataParallel(model).state_dict(),
        "compiled": torch.compile(model).state_dict(),
        "averaged": averaged.state_dict(),
        "Lightning": {
            "state_dict": lightning.state_dict(),
            "epoch": 3,
            "pytorch-lightning_version": "2.5.0",
            "hyper_parameters": {},
        },
        "model_state_dict": {"model_state_dict": weights, "optimizer_state_dict": {"state": {}}},
        "model": {"model": {"state_dict": nn.DataParallel(model).state_dict()}, "epoch": 1},
        "weights": {"weights": weights},
    }


@pytest.mark.parametrize(
    "form",
    [
        "plain",
        "DataParallel",
        "compiled",
        "averaged",
        "Lightning",
        "model_state_dict",
        "model",
        "weights",
    ],
)
def test_every_usual_form_gives_the_same_network(tmp_path: Path, form: str, caplog) -> None:
    model = network().eval()
    torch.save(wrapped(model)[form], tmp_path / "w.pt")
    with caplog.at_level(logging.INFO, "brainseg"):
        found = loaded(tmp_path / "w.pt").network()
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(found(images), model(images))
    prefix = {
        "DataParallel": "module.",
        "compiled": "_orig_mod.",
        "averaged": "module.",
        "Lightning": "net.",
        "model": "module.",
    }.get(form)
    assert (
        (f"the prefix {prefix} is removed" in caplog.text)
        if prefix
        else "prefix" not in caplog.text
    )
    left_out = {"averaged": "n_averaged", "Lightning": "criterion.pos_weight"}.get(form)
    assert (
        (f"1 tensors are not of the network and left out: {left_out}" in caplog.text)
        if left_out
        else "left out" not in caplog.text
    )


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    model = network().eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded(tmp_path / "w.safetensors").network()(images), model(images))
    (tmp_path / "w.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match=r"w\.safetensors: damaged, or no safetensors file"):
        loaded(tmp_path / "w.safetensors")


def test_what_does_not_fit_is_named_and_counted(tmp_path: Path) -> None:
    weights = {
        f"module.{key}": value
        for key, value in network().state_dict().items()
        if "layers.1" not in key and "bn1" not in key
    }
    weights |= {f"module.extra.{number}": torch.ones(1) for number in range(4)} | {
        "module.layers.0.conv1.weight": torch.ones(2, 3, 3, 3)
    }
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(RequestError) as refused:
        loaded(tmp_path / "w.pt").network()
    said = str(refused.value)
    assert 'behind the prefix "module."' in said and "\n" not in said
    assert "missing: layers.0.bn1.weight, layers.0.bn1.bias, layers.0.bn1.running_mean, ..." in said
    assert "4 unexpected: module.extra.0, module.extra.1, module.extra.2, ..." in said
    assert "1 of another shape: layers.0.conv1.weight (2, 3, 3, 3), not (4, 3, 3, 3)" in said


def test_two_networks_in_a_file_are_not_chosen_from() -> None:
    expected = network().state_dict()
    both = {
        f"{name}.{key}": value for name in ("student", "teacher") for key, value in expected.items()
    }
    with pytest.raises(RequestError, match=r"contains 2 networks, under student\., teacher\."):
        match_weights(both, expected, "w.pt", "model=unet")


class Whole(nn.Linear):
    """A network that is saved whole, as torch.save(model), by its class."""


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"# README\n\nText.\n", "is not a file of weights; name a checkpoint"),
        (b"", "is not a file of weights"),
        (b"\x80\x02damaged", "damaged"),
        (
            None,
            r"it contains \S*Whole.*; save only the weights, with torch.save\(model.state_dict\(\), FILE\)",
        ),
    ],
)
def test_a_file_that_is_none_is_refused_without_torchs_advice(
    tmp_path: Path, content: bytes | None, rule: str
) -> None:
    if content is None:
        torch.save(Whole(1, 1), tmp_path / "README.md")
    else:
        (tmp_path / "README.md").write_bytes(content)
    with pytest.raises(DataError, match=rule) as refused:
        checkpoint.load_weights(tmp_path / "README.md")
    assert (
        "\n" not in str(refused.value)
        and "weights_only" not in str(refused.value)
        and "README.md" in str(refused.value)
    )
