"""Checkpoints verify themselves and execute nothing."""

import hashlib
import io
import os
import random
from pathlib import Path

import pytest
import torch

from brainseg.core.errors import DataError, RequestError
from brainseg.models.unet import UNet
from brainseg.runs import checkpoint


def content() -> dict:
    history = [{"epoch": 0, "metrics": {"val/dice": 0.5}}]
    return {
        "model": {"a": torch.arange(1000.0)},
        "epoch": 3,
        "config": {"seed": 0},
        "history": history,
    }


def test_it_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    checkpoint.save(path, content())
    found = checkpoint.load(path)
    assert torch.equal(found["model"].pop("a"), torch.arange(1000.0))
    assert found == {**content(), "model": {}}


def test_plain_torch_reads_it(tmp_path: Path) -> None:
    network = UNet(3, 1, depth=2, width=4)
    checkpoint.save(tmp_path / "a.pt", {"model": network.state_dict(), "config": {"seed": 0}})
    stored = torch.load(tmp_path / "a.pt", weights_only=True)
    again = UNet(3, 1, depth=2, width=4)
    again.load_state_dict(stored["model"])
    assert stored["config"] == {"seed": 0}
    assert all(
        torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True)
    )


def test_the_first_format_is_read(tmp_path: Path) -> None:
    inner = io.BytesIO()
    torch.save(content(), inner)
    stored = {"sha256": hashlib.sha256(inner.getvalue()).hexdigest()}
    stored["payload"] = torch.frombuffer(bytearray(inner.getvalue()), dtype=torch.uint8)
    torch.save(stored, tmp_path / "a.pt")
    assert checkpoint.load(tmp_path / "a.pt")["epoch"] == 3
    stored["payload"][500] ^= 1
    torch.save(stored, tmp_path / "a.pt")
    with pytest.raises(DataError, match="damaged"):
        checkpoint.load(tmp_path / "a.pt")


def test_damage_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    checkpoint.save(path, content())
    sound = path.read_bytes()
    dice = random.Random(0)
    silent = 0
    for _ in range(150):
        damaged = bytearray(sound)
        damaged[dice.randrange(len(sound))] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        try:
            found = checkpoint.load(path)
        except DataError as error:
            assert str(path) in str(error)
        else:  # a bit of the archive's own padding or time stamps: the content is what was saved
            silent += (
                not torch.equal(found["model"]["a"], torch.arange(1000.0)) or found["epoch"] != 3
            )
    assert silent == 0
    for length in (0, 1, 100, len(sound) // 2, len(sound) - 1):
        path.write_bytes(sound[:length])
        with pytest.raises(DataError, match=r"a\.pt"):
            checkpoint.load(path)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["outer", "inner", "second format"])
def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, place: str) -> None:
    trap = tmp_path / "executed"
    inner = io.BytesIO()
    torch.save({"model": Malicious(trap)}, inner)
    if place == "outer":
        (tmp_path / "a.pt").write_bytes(inner.getvalue())
    elif place == "second format":
        torch.save({"format": checkpoint.FORMAT, "model": Malicious(trap)}, tmp_path / "a.pt")
    else:
        payload = torch.frombuffer(bytearray(inner.getvalue()), dtype=torch.uint8)
        torch.save(
            {"sha256": hashlib.sha256(inner.getvalue()).hexdigest(), "payload": payload},
            tmp_path / "a.pt",
        )
    with pytest.raises(DataError):
        checkpoint.load_weights(tmp_path / "a.pt")
    assert not trap.exists()


def test_foreign_weights(tmp_path: Path) -> None:
    weights = {"layers.0.weight": torch.ones(2)}
    for stored in (weights, {"state_dict": weights, "epoch": 3}):
        torch.save(stored, tmp_path / "a.pt")
        assert torch.equal(
            checkpoint.load_weights(tmp_path / "a.pt")["model"]["layers.0.weight"], torch.ones(2)
        )
        with pytest.raises(DataError, match="not a brainseg checkpoint"):
            checkpoint.load(tmp_path / "a.pt")
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(DataError, match="contains no weights"):
        checkpoint.load_weights(tmp_path / "a.pt")
    with pytest.raises(RequestError, match="no such file"):
        checkpoint.load_weights(tmp_path / "b.pt")


def test_a_tensor_that_stands_for_more_than_its_storage_comes_back(tmp_path: Path) -> None:
    """A network's buffer may be an expanded tensor."""
    expanded = torch.ones(1).expand(7)
    checkpoint.save(tmp_path / "a.pt", {"model": {"a": expanded}})
    assert torch.equal(checkpoint.load(tmp_path / "a.pt")["model"]["a"], expanded)
