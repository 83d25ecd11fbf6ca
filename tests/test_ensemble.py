"""Ensembles: the mean of the members' probabilities, and never a score on patients that one of them saw."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from brainseg import evaluate, train
from brainseg.config import (
    DataConfig,
    DeviceConfig,
    EvaluateConfig,
    KFoldConfig,
    OptimizerConfig,
    SplitConfig,
    TrackingConfig,
    TrainConfig,
    UNetConfig,
)
from brainseg.errors import RequestError
from brainseg.records.predictions import read_predictions

FLOAT32 = DeviceConfig("cpu", "float32")


@pytest.fixture(scope="module")
def members(phantom_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two seeds of fold 0, of which one sees neighbouring slices, and fold 1."""
    root, made = tmp_path_factory.mktemp("members"), {}
    for name, seed, fold, context in (("a", 0, 0, 0), ("b", 1, 0, 1), ("other fold", 0, 1, 0)):
        config = TrainConfig(
            seed=seed, data=DataConfig(path=str(phantom_file), context=context), split=KFoldConfig(folds=3, fold=fold), epochs=4,
            model=UNetConfig(depth=2, width=4), optimizer=OptimizerConfig("adamw", lr=1e-2), device=FLOAT32,
            tracking=TrackingConfig("none"), output=str(root / name),
        )
        assert train.run(config).state == "finished"
        made[name] = str(root / name)
    return made


def scored(output: Path, checkpoint: Any, data: Path, **further: Any) -> pd.DataFrame:
    config = EvaluateConfig(checkpoint=checkpoint, output=str(output), data=DataConfig(path=str(data)), device=FLOAT32,
                            predictions="probabilities", overlays=False, **further)
    evaluate.check(config)
    assert evaluate.run(config) == 0
    return pd.read_csv(output / "patients.csv").set_index("patient")


def test_an_ensemble_is_the_mean_of_its_members(members: dict[str, str], phantom_file: Path, tmp_path: Path) -> None:
    single = [scored(tmp_path / name, members[name], phantom_file) for name in "ab"]
    both = scored(tmp_path / "both", [members["a"], members["b"]], phantom_file)
    assert set(both.index) == set(single[0].index) and set(both.role) == {"test"}
    for patient in both.index:
        parts = [read_predictions(tmp_path / name / "predictions.h5", patient).probability / 255.0 for name in "ab"]
        mean = read_predictions(tmp_path / "both" / "predictions.h5", patient)
        assert np.abs(mean.probability / 255.0 - np.mean(parts, axis=0)).max() <= 1 / 255
    assert not json.loads((tmp_path / "both" / "summary.json").read_text())["leaky"]


def test_a_patient_that_a_member_saw_is_refused(members: dict[str, str], phantom_file: Path, tmp_path: Path) -> None:
    mixed = [members["a"], members["other fold"]]
    with pytest.raises(RequestError, match="is in these parts of every checkpoint"):
        scored(tmp_path / "none", mixed, phantom_file)
    with pytest.raises(RequestError, match="trained or selected on by some of them"):
        scored(tmp_path / "all", mixed, phantom_file, split=SplitConfig("all"))
    leaky = scored(tmp_path / "leaky", mixed, phantom_file, split=SplitConfig("all"), leaky=True)
    summary = json.loads((tmp_path / "leaky" / "summary.json").read_text())
    assert summary["leaky"] and not any(name.startswith("test/") for name in summary["metrics"])
    assert set(leaky.role) == {"train", "validation"}, "filed under the closest that a member came"


def test_members_of_different_inference_settings_are_refused(members: dict[str, str], phantom_file: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=DataConfig(path=str(phantom_file)), split=KFoldConfig(folds=3), epochs=1, model=UNetConfig(depth=2, width=4),
                         device=FLOAT32, tracking=TrackingConfig("none"), output=str(tmp_path / "c"))
    config.inference.threshold = 0.3
    assert train.run(config).state == "finished"
    with pytest.raises(RequestError, match="different settings"):
        scored(tmp_path / "out", [members["a"], config.output], phantom_file)


@pytest.mark.parametrize("checkpoint", [[], "", ["a", 3]])
def test_no_name_is_no_checkpoint(checkpoint: Any) -> None:
    with pytest.raises(RequestError, match="must be a name"):
        EvaluateConfig(checkpoint=checkpoint)
