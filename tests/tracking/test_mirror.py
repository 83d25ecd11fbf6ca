"""MLflow is a faithful mirror of the run folder: complete, and each point once."""

import json
import math
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tracked_runs import START, client, points, row, the_run, write_run

from brainseg.config import TrackingConfig
from brainseg.core.errors import RequestError
from brainseg.runs.callbacks import mirroring
from brainseg.runs.run_folder import RunFolder
from brainseg.tracking import chart_layout, contents
from brainseg.tracking.client import chart_link
from brainseg.tracking.lookup import checkpoint_of, folder_of_run
from brainseg.tracking.mirror import Mirror
from brainseg.tracking.upload import FIRST_FILES, LAST_FILES, RunUpload, upload_run


def database_rows(uri: str) -> dict[str, int]:
    """How many rows each table of a SQLite store has."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        tables = [
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        return {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in tables
        }


# What is recorded


def test_a_finished_run_is_complete(store: str, tmp_path: Path) -> None:
    link = upload_run(write_run(tmp_path / "run", store, state="finished", sweep="s1", job=3))
    run = the_run(store)
    assert run.info.run_id in link and run.info.run_name == "depth=4"
    assert (run.info.status, run.info.start_time, run.info.end_time) == (
        "FINISHED",
        START,
        START + 60_000,
    )
    assert run.data.params == {
        "model.name": "unet",
        "model.depth": "4",
        "optimizer.lr": "0.0001",
        "model.parameters": "161985",
    }
    places = {"folder", "folder.host", "folder.inode"}
    assert {name: run.data.tags[name] for name in run.data.tags.keys() - places} == {
        "brainseg.uid": "uid-1",
        "brainseg.name": "depth=4",
        "kind": "run",
        "epochs": "3",
        "device": "cpu",
        "sweep": "s1",
        "sweep.s1": "true",
        "code.dirty": "true",
        "mlflow.runName": "depth=4",
        "mlflow.runColor": contents.COLOURS[3],
        "mlflow.note.content": "`python -m brainseg.train model.depth=4`",
        "mlflow.source.name": "brainseg.train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "c0ffee",
    }
    assert points(store, "train/loss") == [
        (epoch, 1 / epoch, START + 5000 * epoch) for epoch in (1, 2, 3)
    ]
    assert (
        points(store, "test/dice") == [(0, 0.8, START + 60_000)]
        and points(store, "test/hd95") == []
    )
    assert (
        points(store, "best/val_dice") == [(0, 0.9, START + 10_000)]
        and run.data.metrics["best/epoch"] == 2
    )
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, json.loads(entry.dataset.profile)) == (
        "phantom",
        {"patients": 8, "slices": 64},
    )
    names = {artifact.path for artifact in client(store).list_artifacts(run.info.run_id)}
    assert names == {*FIRST_FILES, *LAST_FILES, "pictures"}
    assert (
        client(store).get_experiment(run.info.experiment_id).artifact_location
        == (tmp_path / "mlartifacts").as_uri()
    )


def test_the_model_is_the_best_checkpoint(store: str, tmp_path: Path) -> None:
    import mlflow

    upload_run(write_run(tmp_path / "run", store, state="finished"))
    run = the_run(store)
    (output,) = run.outputs.model_outputs
    model = client(store).get_logged_model(output.model_id)
    assert (output.step, model.status, model.source_run_id) == (2, "READY", run.info.run_id)
    assert {metric.key: metric.value for metric in model.metrics} == {
        "best/epoch": 2,
        "best/val_dice": 0.9,
        "test/dice": 0.8,
    }
    path = mlflow.artifacts.download_artifacts(
        model.artifact_location, tracking_uri=store, dst_path=str(tmp_path / "down")
    )
    assert (Path(path) / "best.pt").read_text() == "weights" and (
        Path(path) / "config.yaml"
    ).exists()


def test_names_in_mlflow_lead_to_the_checkpoint_and_the_folder(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    upload_run(write_run(tmp_path / "run", store, state="finished"))
    run_id, model_id = the_run(store).info.run_id, the_run(store).outputs.model_outputs[0].model_id
    client(store).create_registered_model("tumour")
    client(store).create_model_version("tumour", f"models:/{model_id}", model_id=model_id)
    client(store).set_registered_model_alias("tumour", "best", 1)
    for name in (
        f"runs:/{run_id}",
        f"models:/{model_id}",
        "models:/tumour@best",
        "models:/tumour/1",
    ):
        assert checkpoint_of(name).read_text() == "weights"
    assert folder_of_run(run_id) == tmp_path / "run"


def test_a_name_that_leads_nowhere_is_a_request_error(store: str, tmp_path: Path) -> None:
    upload_run(write_run(tmp_path / "run", store))
    run_id = the_run(store).info.run_id
    for name in (
        f"runs:/{run_id}",
        f"runs:/{'0' * 32}",
        "models:/m-0",
        "models:/none@best",
        "models:/none/1",
    ):
        with pytest.raises(RequestError, match="checkpoint="):
            checkpoint_of(name, store)
    shutil.rmtree(tmp_path / "run")
    for missing in (run_id, "0" * 32):
        with pytest.raises(RequestError, match="run="):
            folder_of_run(missing, store)


def test_doing_it_again_changes_nothing(store: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", store, state="finished")
    tracker = RunUpload(folder)
    tracker.update()
    before, rows = the_run(store).to_dictionary(), database_rows(store)
    tracker.update()
    upload_run(folder)
    assert database_rows(store) == rows and the_run(store).to_dictionary() == before


@pytest.mark.parametrize("state", ["running", "failed", "killed"])
def test_an_unfinished_run_says_so_and_has_no_model(store: str, tmp_path: Path, state: str) -> None:
    upload_run(write_run(tmp_path / "run", store, state=state))
    run = the_run(store)
    assert run.info.status == state.upper() and not run.outputs.model_outputs
    assert run.data.tags.get("error") == ("it broke" if state == "failed" else None)
    stored = {artifact.path for artifact in client(store).list_artifacts(run.info.run_id)}
    assert ("log.txt" in stored) == (state != "running")
    assert run.data.metrics["best/val_dice"] == 0.9


def test_leaky_and_infinite_values_are_shown_as_such(store: str, tmp_path: Path) -> None:
    leaky = {
        "name": "reference",
        "sha256": "5" * 64,
        "train": 4,
        "validation": 2,
        "test": 0,
        "leaky": True,
    }
    folder = write_run(tmp_path / "run", store, epochs=1, split=leaky)
    row_1 = row(1)
    row_1["metrics"] |= {"val/loss": math.inf, "val/hd95": math.nan}
    (folder / "metrics.jsonl").write_text(json.dumps(row_1) + "\n")
    upload_run(folder)
    upload_run(folder)
    assert the_run(store).data.tags["leaky"] == "true"
    for key in ("val/loss", "val/hd95"):
        ((_, value, _),) = points(store, key)
        assert math.isnan(value)


def test_the_chart_link_names_a_layout_that_the_experiment_has(store: str, tmp_path: Path) -> None:
    upload_run(write_run(tmp_path / "run", store))
    experiment = client(store).get_experiment_by_name("brainseg")
    link = chart_link(store, experiment.experiment_id)
    assert (
        f"#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
        in link
    )
    layout = json.loads(
        experiment.tags["mlflow.sharedViewState." + re.search("viewStateShareKey=(.*)", link)[1]]
    )
    sections = {section["uuid"] for section in layout["compareRunSections"]}
    assert layout["compareRunCharts"][0]["metricKey"] == "val/dice"
    assert {chart["metricSectionId"] for chart in layout["compareRunCharts"]} <= sections


def test_an_experiment_made_by_hand_gets_the_layout_too(store: str, tmp_path: Path) -> None:
    client(store).create_experiment("brainseg", (tmp_path / "elsewhere").as_uri())
    upload_run(write_run(tmp_path / "run", store))
    assert (
        client(store).get_experiment_by_name("brainseg").tags.keys()
        >= chart_layout.experiment_tags().keys()
    )


# A run that goes on


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(growth=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=5))
def test_each_epoch_is_one_point_however_it_came(
    template: Path, tmp_path_factory: Any, growth: list[tuple[int, bool]]
) -> None:
    """The folder grows by a few epochs at a time, replicated by the same process or a new one."""
    base = tmp_path_factory.mktemp("growing")
    shutil.copy(template, base / "mlflow.db")
    store, epochs, tracker = f"sqlite:///{base / 'mlflow.db'}", 0, RunUpload(base / "run")
    for more, new_process in growth:
        epochs += more
        write_run(base / "run", store, epochs)
        tracker = RunUpload(base / "run") if new_process else tracker
        tracker.update()
    assert points(store, "train/loss") == [
        (epoch, 1 / epoch, START + 5000 * epoch) for epoch in range(1, epochs + 1)
    ]


def test_an_epoch_lost_and_run_again_stays_one_point(store: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", store, epochs=3)
    upload_run(folder)
    again = row(3)
    again["time"] += 777
    again["metrics"]["speed/epoch_seconds"] = 6.0
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(entry) + "\n" for entry in (row(1), row(2), again, row(4)))
    )
    upload_run(folder)
    assert [step for step, _, _ in points(store, "speed/epoch_seconds")] == [1, 2, 3, 4]


def test_a_finished_run_that_is_extended_runs_again_and_finishes(
    store: str, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run", store, epochs=3, state="finished")
    upload_run(folder)
    upload_run(write_run(folder, store, epochs=4, state="running"))
    assert the_run(store).info.status == "RUNNING"
    upload_run(write_run(folder, store, epochs=5, state="finished", label="epochs=5"))
    run = the_run(store)
    assert (run.info.status, run.info.run_name, run.data.tags["epochs"]) == (
        "FINISHED",
        "epochs=5",
        "5",
    )
    assert "epochs" not in run.data.params, "MLflow could not change it"
    assert [step for step, _, _ in points(store, "val/dice")] == [1, 2, 3, 4, 5]
    assert len(run.outputs.model_outputs) == 1, "best.pt has not changed"


def test_a_name_that_was_given_in_mlflow_stays(store: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", store, label="epochs=3")
    upload_run(folder)
    client(store).update_run(the_run(store).info.run_id, name="my favourite")
    upload_run(write_run(folder, store, epochs=5, label="epochs=5"))
    assert the_run(store).info.run_name == "my favourite"


def test_a_model_whose_upload_broke_is_completed_by_the_next(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository as Files

    folder, log_artifact = write_run(tmp_path / "run", store, state="finished"), Files.log_artifact

    def broken(files: Any, path: str, *further: Any) -> None:
        if Path(path).name == "best.pt":
            raise OSError("connection lost")
        log_artifact(files, path, *further)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="connection lost"):
        patch.setattr(Files, "log_artifact", broken)
        upload_run(folder)
    upload_run(folder)
    (output,) = the_run(store).outputs.model_outputs
    (model,) = client(store).search_logged_models([the_run(store).info.experiment_id])
    assert (model.model_id, model.status) == (output.model_id, "READY")


def test_a_run_deleted_in_the_ui_comes_back_as_a_new_one(store: str, tmp_path: Path) -> None:
    mirror = Mirror(write_run(tmp_path / "run", store, epochs=1))
    mirror.update()
    client(store).delete_run(the_run(store).info.run_id)
    write_run(tmp_path / "run", store, epochs=2)
    mirror.update()  # fails: MLflow takes nothing for a deleted run
    mirror.update(final=True)
    assert [step for step, _, _ in points(store, "val/dice")] == [1, 2]


def test_only_the_process_at_work_on_a_folder_mirrors_it(tmp_path: Path) -> None:
    """A process that was refused the folder sends nothing; another one sends the last status."""
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    folder = RunFolder(write_run(tmp_path / "run", store, state="failed"))
    with mirroring(folder, TrackingConfig(uri=store)):
        pass
    assert not (tmp_path / "mlflow.db").exists()
    with mirroring(folder, TrackingConfig(uri=store)):
        folder.was_active = True
    assert the_run(store).info.status == "FAILED"


# A curve that was replaced


def rewrite_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))


def test_a_curve_that_was_replaced_gets_a_run_of_its_own(store: str, tmp_path: Path) -> None:
    """A run that is extended from its best epoch on another curve: MLflow would keep the old values of the epochs behind it."""
    folder = write_run(tmp_path / "run", store, epochs=3, state="finished", sweep="s1")
    upload_run(folder)
    former = the_run(store).info.run_id
    write_run(folder, store, epochs=2)
    tracker = RunUpload(folder)
    tracker.update()
    assert tracker.run_id == former, "what is there so far is the same curve"
    other = [row(1), row(2), row(3), row(4)]
    other[2]["metrics"]["train/loss"] = 0.25
    rewrite_metrics(folder, other)
    tracker.update()
    upload_run(folder)
    mlflow = client(store)
    runs = {
        run.info.run_id: run
        for run in mlflow.search_runs([mlflow.get_experiment_by_name("brainseg").experiment_id])
    }
    assert set(runs) == {former, tracker.run_id} and len(runs) == 2
    assert runs[former].info.run_name == "depth=4 (replaced)" and not any(
        tag.startswith("sweep") for tag in runs[former].data.tags
    )
    losses = {
        name: {point.step: point.value for point in mlflow.get_metric_history(name, "train/loss")}
        for name in runs
    }
    assert losses == {
        former: {1: 1.0, 2: 0.5, 3: 1 / 3},
        tracker.run_id: {1: 1.0, 2: 0.5, 3: 0.25, 4: 0.25},
    }


def test_an_epoch_that_was_repeated_at_another_speed_is_the_same_curve(
    store: str, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run", store, epochs=3)
    upload_run(folder)
    repeated = [row(1), row(2), row(3)]
    repeated[2]["metrics"]["speed/epoch_seconds"] = 7.0
    rewrite_metrics(folder, repeated)
    upload_run(folder)
    assert points(store, "speed/epoch_seconds")[-1][1] == 5.0, (
        "the only run of the store has each point once"
    )


def test_the_final_scores_are_those_of_the_checkpoint(store: str, tmp_path: Path) -> None:
    """Of equal val/dice the lowest val/loss is best.pt: while nothing is predicted, val/dice stays the same."""
    folder = write_run(tmp_path / "run", store, epochs=3, state="finished")
    tied = [row(1), row(2), row(3)]
    for one, loss in zip(tied, (0.9, 0.7, 0.8), strict=True):
        one["metrics"] |= {"val/dice": 0.5, "val/loss": loss}
    rewrite_metrics(folder, tied)
    upload_run(folder)
    assert the_run(store).data.metrics["best/epoch"] == 2
    (output,) = the_run(store).outputs.model_outputs
    assert output.step == 2, "the model is that of the best epoch"
    # MLflow draws scores at step 0 as bars.
    assert [step for step, _, _ in points(store, "test/dice")] == [0]
