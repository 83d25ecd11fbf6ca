"""Cross-validation by real commands on a tiny phantom: every patient scored once, by a model that never saw it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from warm_processes import call

from brainseg.data.volume import patient_of
from brainseg.evaluation.statistics import bootstrap

COHORT = ["data.phantom.patients=9", "data.phantom.slices=6", "data.phantom.size=32"]
TINY = [*COHORT, "model.depth=2", "model.width=4", "epochs=2", "device=cpu", "optimizer.lr=1e-2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds, trained by one command."""
    folder = tmp_path_factory.mktemp("cross_validation")
    call(folder, "train", "-m", *TINY, "split=kfold", "split.folds=3", "split.fold=range(3)")
    return folder


def runs(folder: Path) -> list[Path]:
    found = [path.parent for path in folder.glob("runs/*/run.json")]
    return sorted(found, key=lambda path: json.loads((path / "run.json").read_text())["job"])


def test_every_patient_is_tested_once_and_selects_nothing_there(folder: Path) -> None:
    tested = []
    for run in runs(folder):
        split = json.loads((run / "split.json").read_text())
        patients = pd.read_csv(run / "patients.csv").assign(
            name=lambda rows: rows.patient.map(patient_of)
        )
        assert not set(split["test"]) & {*split["train"], *split["validation"]}
        assert sorted(patients.name[patients.role == "test"]) == split["test"]
        assert sorted(patients.name[patients.role == "validation"]) == split["validation"], (
            "what best.pt was selected on"
        )
        best = json.loads((run / "summary.json").read_text())["best"]
        assert best["val/dice"] == pytest.approx(
            patients.dice[patients.role == "validation"].mean(), abs=1e-6
        )
        tested += split["test"]
    assert len(tested) == len(set(tested)) == 9


@pytest.fixture(scope="module")
def said(folder: Path) -> str:
    return call(folder, "compare", "output=pooled")


def test_compare_pools_them(folder: Path, said: str) -> None:
    of_folds = [pd.read_csv(run / "patients.csv").query("role == 'test'") for run in runs(folder)]
    scores = pd.concat(of_folds).set_index("patient").dice.sort_index()
    assert len(scores) == 9
    (row,) = pd.read_csv(folder / "pooled" / "comparison.csv").itertuples()
    assert (row.runs, row.patients) == (3, 9)
    assert row.dice == pytest.approx(scores.mean(), abs=1e-6)
    assert row.dice_median == pytest.approx(scores.median(), abs=1e-6)
    assert (row.dice_low, row.dice_high) == pytest.approx(
        tuple(bootstrap(scores.to_numpy())), abs=1e-6
    )
    assert row.missed == (scores < 0.05).sum(), "each phantom has a tumour"
    assert f"mean Dice {row.dice:.3f}" in said and "of 9 test patients missed" in said
    written = pd.read_csv(folder / "pooled" / "patients.csv").set_index("patient").dice.sort_index()
    assert np.allclose(written, scores, atol=1e-6)


def test_mlflow_holds_one_pooled_run_linked_to_its_folds(folder: Path, said: str) -> None:
    from mlflow import MlflowClient

    call(folder, "compare", "output=pooled")
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("brainseg").experiment_id
    (pooled,) = client.search_runs([experiment], "tags.kind = 'cross_validation'")
    folds = client.search_runs([experiment], "tags.kind = 'run'")
    assert set(pooled.data.tags["runs"].split(",")) == {run.info.run_id for run in folds}
    assert all(run.info.run_id in pooled.data.tags["mlflow.note.content"] for run in folds)
    row = pd.read_csv(folder / "pooled" / "comparison.csv").iloc[0]
    assert pooled.data.metrics["pooled/dice"] == pytest.approx(row.dice, abs=1e-6)
    assert len(client.get_metric_history(pooled.info.run_id, "pooled/dice")) == 1, (
        "told twice, there once"
    )
    assert {"report.html", "comparison.csv", "pictures"} <= {
        item.path for item in client.list_artifacts(pooled.info.run_id)
    }


def test_an_experiment_is_compared_by_its_name(folder: Path) -> None:
    assert "of 9 test patients" in call(
        folder, "compare", "tracking.experiment=brainseg", "output=by_name"
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sweep=nothing"], "no such sweep"),
        (["runs=[nothing]"], "holds no run"),
        (["sweep=a", "tracking.experiment=b"], "Only one selection is allowed"),
        (["baseline=nothing"], "holds no run"),
        (["clinical=nothing.csv"], "no such file"),
        (["tracking.experiment=nothing"], "no such experiment"),
    ],
)
def test_a_wrong_request_is_one_line(folder: Path, overrides: list[str], said: str) -> None:
    text = call(folder, "compare", *overrides, code=2)
    assert said in text and len(text.strip().splitlines()) == 1
