"""A training of two steps by the real command, for the tables of networks."""

import json
import math
from pathlib import Path

import pytest

from brainseg import train
from brainseg.cli.main import run_command
from brainseg.prediction.trained_model import load_checkpoint


def train_two_steps(*settings: str) -> int:
    """Train on a phantom in the folder `run`, and return the exit code."""
    with pytest.raises(SystemExit) as stop:
        run_command(
            "train",
            train.run,
            train.check_request,
            [
                "data.phantom.patients=10",
                "data.phantom.slices=4",
                # Seven patients train, which are 28 slices.
                "batch_size=14",
                "epochs=1",
                "device=cpu",
                "tracking=none",
                "predictions=none",
                "output=run",
                *settings,
            ],
        )
    return stop.value.code


def check_that_it_trains(*settings: str) -> None:
    """Two steps give finite scores, and a checkpoint that loads again."""
    assert train_two_steps(*settings) == 0
    (row,) = map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
    assert row["step"] == 2 and math.isfinite(row["metrics"]["train/loss"])
    assert 0 <= row["metrics"]["val/dice"] <= 1
    assert load_checkpoint("run").network().training is False
