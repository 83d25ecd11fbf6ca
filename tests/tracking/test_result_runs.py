"""Comparisons and evaluations in MLflow: a run of their own that opens with table and pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scored_runs import scored_run
from test_register import call as call
from tracked_runs import client

from brainseg import compare, evaluate
from brainseg.compare import publish
from brainseg.comparison.compare import compare_runs
from brainseg.config import CompareConfig, CompareTrackingConfig
from brainseg.tracking.chart_layout import experiment_tags

DESCRIPTION = "mlflow.note.content"


def runs_of_kind(store: str, kind: str) -> list[Any]:
    experiment = client(store).get_experiment_by_name("brainseg").experiment_id
    return list(client(store).search_runs([experiment], f"tags.kind = '{kind}'"))


def evaluations_in(store: str, folder: Path) -> list[Any]:
    """The runs of evaluations whose files are in the folder. Other tests share the store."""
    runs = runs_of_kind(store, "evaluation")
    return [run for run in runs if run.data.tags["folder"] == str(folder)]


def test_an_evaluation_is_a_run_that_links_to_the_training(
    project: Path, call: Callable[..., str]
) -> None:
    store = f"sqlite:///{project / 'mlflow.db'}"
    for _ in range(2):
        said = call(evaluate, "checkpoint=run", "device=cpu", "output=logged")
    (run,) = evaluations_in(store, project / "logged")
    assert f"runs/{run.info.run_id}" in said and run.info.run_name == "evaluation of run"
    assert (run.info.status, run.data.metrics.keys() >= {"test/dice", "test/hd95"}) == (
        "FINISHED",
        True,
    )
    assert "test/iou" not in run.data.metrics
    runs = runs_of_kind(store, "run")
    (trained,) = (run for run in runs if run.data.tags["folder"] == str(project / "run"))
    assert run.data.metrics["test/dice"] == pytest.approx(trained.data.metrics["test/dice"])
    assert trained.info.run_id in run.data.tags[DESCRIPTION]
    assert (
        f"get-artifact?path=pictures/overlays.png&run_uuid={run.info.run_id}"
        in run.data.tags[DESCRIPTION]
    )
    (entry,) = run.inputs.dataset_inputs
    assert entry.dataset.digest == trained.inputs.dataset_inputs[0].dataset.digest
    names = {item.path for item in client(store).list_artifacts(run.info.run_id)}
    assert names >= {"summary.json", "patients.csv", "failures.csv", "pictures"}
    call(evaluate, "checkpoint=run", "device=cpu", "output=unlogged", "tracking=none")
    assert not evaluations_in(store, project / "unlogged")


def test_a_summary_opens_with_pictures_and_keeps_the_layout_of_the_jobs(
    store: str, tmp_path: Path
) -> None:
    runs = [
        scored_run(tmp_path / str(width), {"a": 0.5, "b": width / 20}, width=width)
        for width in (8, 16)
    ]
    (key,) = experiment_tags("depth-width-3fa2b1")
    client(store).create_experiment("brainseg", tags={key: "layout of the jobs"})
    tracking = CompareTrackingConfig(uri=store)
    config = CompareConfig(sweep="depth-width-3fa2b1", viewer=0, tracking=tracking)
    publish(compare_runs(runs), tmp_path / "summary", config)
    (run,) = runs_of_kind(store, "sweep_summary")
    assert run.info.run_name == "\N{BLACK STAR} depth-width"
    assert run.data.tags["mlflow.runColor"] == "#000000"
    description = run.data.tags[DESCRIPTION]
    for picture in ("ranking", "curves"):
        address = f"get-artifact?path=pictures/{picture}.png&run_uuid={run.info.run_id}"
        assert f"![{picture}]({address})" in description
    assert description.startswith("Best of 2 configurations, width=16: mean Dice 0.65")
    assert description.index("| configuration | dice |") < description.index("![ranking]")
    assert client(store).get_experiment_by_name("brainseg").tags[key] == "layout of the jobs"


def test_each_comparison_has_a_folder_of_its_own() -> None:
    def folder(**settings: Any) -> Path:
        return compare._output_folder(CompareConfig(**settings))

    first = folder(runs=["runs/a", "runs/b"])
    assert first.parent == Path("comparisons") and first.name.startswith("a-and-1-")
    assert first == folder(runs=["runs/a", "runs/b"])
    others = [
        folder(runs=["runs/a", "runs/c"]),
        folder(runs=["runs/b", "runs/a"]),
        folder(runs=["runs/a", "runs/b"], baseline="width=8"),
        folder(runs=["runs/a"]),
        folder(),
        folder(root="elsewhere"),
    ]
    assert len({first, *others}) == 7
    assert folder(sweep="s1") == Path("runs/sweeps/s1")
