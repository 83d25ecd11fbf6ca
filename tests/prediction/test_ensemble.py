"""Ensembles: the mean of the members' probabilities, and never a score on patients that one of them saw."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from brainseg import evaluate, predict, train
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
from brainseg.core.errors import RequestError
from brainseg.data.dataset import MRIDataset
from brainseg.prediction.trained_model import load_checkpoint
from brainseg.reports.predictions import read_predictions

FLOAT32 = DeviceConfig("cpu", "float32")


@pytest.fixture(scope="module")
def members(phantom_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two seeds of fold 0, of which one sees neighbouring slices, and fold 1."""
    root, made = tmp_path_factory.mktemp("members"), {}
    for name, seed, fold, context in (("a", 0, 0, 0), ("b", 1, 0, 1), ("other fold", 0, 1, 0)):
        config = TrainConfig(
            seed=seed,
            data=DataConfig(path=str(phantom_file), context=context),
            split=KFoldConfig(folds=3, fold=fold),
            epochs=4,
            model=UNetConfig(depth=2, width=4),
            optimizer=OptimizerConfig("adamw", lr=1e-2),
            device=FLOAT32,
            tracking=TrackingConfig("none"),
            output=str(root / name),
        )
        assert train.run(config).state == "finished"
        made[name] = str(root / name)
    return made


def scored(output: Path, checkpoint: Any, data: Path, **further: Any) -> pd.DataFrame:
    config = EvaluateConfig(
        checkpoint=checkpoint,
        output=str(output),
        data=DataConfig(path=str(data)),
        device=FLOAT32,
        predictions="probabilities",
        overlays=False,
        **further,
    )
    evaluate.check_request(config)
    assert evaluate.run(config) == 0
    return pd.read_csv(output / "patients.csv").set_index("patient")


def test_an_ensemble_is_the_mean_of_its_members(
    members: dict[str, str], phantom_file: Path, tmp_path: Path
) -> None:
    single = [scored(tmp_path / name, members[name], phantom_file) for name in "ab"]
    both = scored(tmp_path / "both", [members["a"], members["b"]], phantom_file)
    assert set(both.index) == set(single[0].index) and set(both.role) == {"test"}
    for patient in both.index:
        parts = [
            read_predictions(tmp_path / name / "predictions.h5", patient).probability / 255.0
            for name in "ab"
        ]
        mean = read_predictions(tmp_path / "both" / "predictions.h5", patient)
        assert np.abs(mean.probability / 255.0 - np.mean(parts, axis=0)).max() <= 1 / 255
    assert not json.loads((tmp_path / "both" / "summary.json").read_text())["leaky"]


def test_a_patient_that_a_member_saw_is_refused(
    members: dict[str, str], phantom_file: Path, tmp_path: Path
) -> None:
    mixed = [members["a"], members["other fold"]]
    with pytest.raises(RequestError, match="is in these parts of every checkpoint"):
        scored(tmp_path / "none", mixed, phantom_file)
    with pytest.raises(RequestError, match="trained or selected on by some of them"):
        scored(tmp_path / "all", mixed, phantom_file, split=SplitConfig("all"))
    leaky = scored(tmp_path / "leaky", mixed, phantom_file, split=SplitConfig("all"), leaky=True)
    summary = json.loads((tmp_path / "leaky" / "summary.json").read_text())
    assert summary["leaky"] and not any(name.startswith("test/") for name in summary["metrics"])
    assert set(leaky.role) == {"train", "validation"}, "filed under the closest that a member came"


def test_members_of_different_inference_settings_are_refused(
    members: dict[str, str], phantom_file: Path, tmp_path: Path
) -> None:
    config = TrainConfig(
        data=DataConfig(path=str(phantom_file)),
        split=KFoldConfig(folds=3),
        epochs=1,
        model=UNetConfig(depth=2, width=4),
        device=FLOAT32,
        tracking=TrackingConfig("none"),
        output=str(tmp_path / "c"),
    )
    config.inference.threshold = 0.3
    assert train.run(config).state == "finished"
    with pytest.raises(RequestError, match="different settings"):
        scored(tmp_path / "out", [members["a"], config.output], phantom_file)


@pytest.mark.parametrize("checkpoint", [[], "", ["a", 3]])
def test_no_name_is_no_checkpoint(checkpoint: Any) -> None:
    with pytest.raises(RequestError, match="must be a name"):
        EvaluateConfig(checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        ({"channel": "FLAIR"}, "data.channel=FLAIR: .*a was trained with None; leave it out"),
        ({"context": 2}, "data.context=2: .*a was trained with 0; leave it out"),
    ],
)
def test_what_the_checkpoint_says_itself_cannot_be_asked_otherwise(
    asked: dict[str, Any], rule: str, members: dict[str, str], phantom_file: Path, tmp_path: Path
) -> None:
    """It would be left aside without a word: whoever asks for FLAIR alone would read the score of all three."""
    data = DataConfig(path=str(phantom_file), **asked)
    config = EvaluateConfig(checkpoint=members["a"], output=str(tmp_path / "out"), data=data)
    with pytest.raises(RequestError, match=rule):
        evaluate.run(config)
    assert not (tmp_path / "out").exists()


def test_data_held_in_memory_give_the_same_scores_and_are_held_once(
    members: dict[str, str], phantom_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[tuple[int, bool]] = []
    hold = MRIDataset.hold

    def noted(data: MRIDataset, device: Any, memory: Any) -> MRIDataset:
        held.append((data.context, memory is None))
        return hold(data, device, memory)

    monkeypatch.setattr(MRIDataset, "hold", noted)
    pair = [members["a"], members["b"]]
    scores = [
        evaluated_as(pair, phantom_file, tmp_path / resident, resident)
        for resident in ("auto", "yes")
    ]
    assert held == [(0, True), (1, False)], (
        "under yes alone; the second takes over what the first has read"
    )
    pd.testing.assert_frame_equal(*scores)


def evaluated_as(pair: list[str], data: Path, output: Path, resident: str) -> pd.DataFrame:
    config = EvaluateConfig(
        checkpoint=pair,
        output=str(output),
        data=DataConfig(path=str(data), resident=resident),
        device=FLOAT32,
        overlays=False,
        viewer=0,
    )
    assert evaluate.run(config) == 0
    return pd.read_csv(output / "patients.csv")


def test_predict_files_a_patient_that_a_member_saw_as_leaky(members: dict[str, str]) -> None:
    """Splits name patients, scores name their scans, which end in a date."""
    both = [load_checkpoint(members[name]) for name in ("a", "other fold")]
    shared = next(name for name in both[0].split.test if both[1].split.role(name) == "train")
    scored = SimpleNamespace(
        name="x", role="train", score=SimpleNamespace(patient=f"{shared}_20000101")
    )
    assert predict._is_leaky([scored], both)
    assert not predict._is_leaky(
        [SimpleNamespace(name="x", role="unknown", score=scored.score)], both
    ), "another scan under that name"
    assert not predict._is_leaky([scored], both[:1])
