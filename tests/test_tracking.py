"""MLflow is a faithful mirror of the run folder: complete, each point once, and never a reason for training to stop."""

import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainseg import sync
from brainseg.errors import RequestError
from brainseg.records import mlflow_content, mlflow_view, tracking
from brainseg.records.mlflow_lookup import checkpoint_of, folder_of
from brainseg.records.mlflow_store import chart_link, connect, limited, tracking_uri, ui_command
from brainseg.records.tracking import Mirror, Tracker, replicate

START = 1_700_000_000_000
LONG = "x" * 9000
ROOT = Path(__file__).resolve().parent.parent


def write_run(folder: Path, uri: str, epochs: int = 3, state: str = "running", uid: str = "uid-1", **record: Any) -> Path:
    """A run folder as training leaves it after so many epochs; val/dice is highest, first, at epoch 2."""
    tracked = {"uri": uri, "artifacts": "mlartifacts", "experiment": "brainseg"}
    split = {"name": "holdout", "sha256": "5" * 64, "train": 4, "validation": 2, "test": 2, "leaky": False}
    data = {"name": "phantom", "path": "/data/phantom.h5", "fingerprint": "f" * 64, "patients": 8, "slices": 64}
    run = {"uid": uid, "identity": "abc", "name": "depth=4", "created": START, "host": "box", "data": data, "split": split}
    run |= {"code": {"version": "0.1", "commit": "c0ffee", "dirty": True}, "device": {"asked": "auto", "got": "cpu"}}
    run |= {"overrides": ["model.depth=4"], "sweep": None, "job": None, "parameters": 161985, "tracking": tracked}
    ended = None if state == "running" else START + 60_000
    status = {"state": state, "host": "box", "pid": 1, "started": START, "ended": ended, "error": "it broke" if state == "failed" else None}
    files = {
        "run.json": json.dumps(run | record),
        "status.json": json.dumps(status),
        "config.yaml": f"epochs: {max(epochs, 3)}\nmodel: {{name: unet, depth: 4, options: {{}}}}\noptimizer: {{lr: 1e-4}}\nnote: {LONG}\n",
        "split.json": "{}",
        "metrics.jsonl": "".join(json.dumps(row(epoch)) + "\n" for epoch in range(1, epochs + 1)),
        "log.txt": "what was said",
        "code.diff": "",
    }
    if state == "finished":
        files |= {"summary.json": json.dumps({"best": {"epoch": 2, "val/dice": 0.9}, "metrics": {"test/dice": 0.8, "test/hd95": None}})}
        files |= {"patients.csv": "patient,dice\n", "slices.csv": "patient,slice\n"}
        files |= {"pictures/curves.png": "png", "checkpoints/best.pt": "weights"}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def row(epoch: int) -> dict[str, Any]:
    metrics = {"train/loss": 1 / epoch, "val/dice": 0.9 if epoch >= 2 else 0.5, "speed/epoch_seconds": 5.0}
    return {"epoch": epoch, "step": 10 * epoch, "time": START + 5000 * epoch, "metrics": metrics}


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised, empty MLflow database: making it costs seconds, copying it nothing."""
    database = tmp_path_factory.mktemp("template") / "mlflow.db"
    with limited(1):
        connect(f"sqlite:///{database}")
    return database


@pytest.fixture
def store(tmp_path: Path, template: Path) -> str:
    shutil.copy(template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def client(uri: str) -> Any:
    with limited(5):
        return connect(uri)


def the_run(uri: str) -> Any:
    """The only run of the store."""
    mlflow = client(uri)
    (found,) = mlflow.search_runs([mlflow.get_experiment_by_name("brainseg").experiment_id])
    return mlflow.get_run(found.info.run_id)


def points(uri: str, key: str) -> list[tuple[int, float, int]]:
    return sorted((point.step, point.value, point.timestamp) for point in client(uri).get_metric_history(the_run(uri).info.run_id, key))


def database_rows(uri: str) -> dict[str, int]:
    """How many rows each table of a SQLite store has."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


# What is recorded


def test_a_finished_run_is_complete(store: str, tmp_path: Path) -> None:
    link = replicate(write_run(tmp_path / "run", store, state="finished", sweep="s1", job=3))
    run = the_run(store)
    assert run.info.run_id in link and run.info.run_name == "depth=4"
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", START, START + 60_000)
    params = {"epochs": "3", "model.name": "unet", "model.depth": "4", "model.options": "{}", "optimizer.lr": "0.0001"}
    assert {key: value for key, value in run.data.params.items() if key != "note"} == params
    assert len(run.data.params["note"]) == mlflow_content.VALUE_LENGTH
    expected = {"brainseg.uid": "uid-1", "kind": "run", "code.dirty": "true", "device.got": "cpu", "sweep": "s1", "job": "3"}
    expected |= {"split.sha256": "5" * 64, "data.fingerprint": "f" * 64, "overrides": "model.depth=4", "host": "box"}
    assert run.data.tags.items() >= expected.items() and "leaky" not in run.data.tags
    assert points(store, "train/loss") == [(epoch, 1 / epoch, START + 5000 * epoch) for epoch in (1, 2, 3)]
    assert points(store, "test/dice") == [(2, 0.8, START + 10_000)] and points(store, "test/hd95") == []
    assert points(store, "best/val_dice") == [(2, 0.9, START + 10_000)] and run.data.metrics["best/epoch"] == 2
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, json.loads(entry.dataset.profile)) == ("phantom", {"patients": 8, "slices": 64})
    names = {artifact.path for artifact in client(store).list_artifacts(run.info.run_id)}
    assert names == {*tracking.FIRST_FILES, *tracking.LAST_FILES, "pictures"}
    assert client(store).get_experiment(run.info.experiment_id).artifact_location == (tmp_path / "mlartifacts").as_uri()


def test_the_model_is_the_best_checkpoint(store: str, tmp_path: Path) -> None:
    import mlflow

    replicate(write_run(tmp_path / "run", store, state="finished"))
    run = the_run(store)
    (output,) = run.outputs.model_outputs
    model = client(store).get_logged_model(output.model_id)
    assert (output.step, model.status, model.source_run_id) == (2, "READY", run.info.run_id)
    assert {metric.key: metric.value for metric in model.metrics} == {"best/epoch": 2, "best/val_dice": 0.9, "test/dice": 0.8}
    path = mlflow.artifacts.download_artifacts(model.artifact_location, tracking_uri=store, dst_path=str(tmp_path / "down"))
    assert (Path(path) / "best.pt").read_text() == "weights" and (Path(path) / "config.yaml").exists()


def test_names_in_mlflow_lead_to_the_checkpoint_and_the_folder(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    replicate(write_run(tmp_path / "run", store, state="finished"))
    run_id, model_id = the_run(store).info.run_id, the_run(store).outputs.model_outputs[0].model_id
    client(store).create_registered_model("tumour")
    client(store).create_model_version("tumour", f"models:/{model_id}", model_id=model_id)
    client(store).set_registered_model_alias("tumour", "best", 1)
    for name in (f"runs:/{run_id}", f"models:/{model_id}", "models:/tumour@best", "models:/tumour/1"):
        assert checkpoint_of(name).read_text() == "weights"
    assert folder_of(run_id) == tmp_path / "run"


def test_a_name_that_leads_nowhere_is_a_request_error(store: str, tmp_path: Path) -> None:
    replicate(write_run(tmp_path / "run", store))
    run_id = the_run(store).info.run_id
    for name in (f"runs:/{run_id}", f"runs:/{'0' * 32}", "models:/m-0", "models:/none@best", "models:/none/1"):
        with pytest.raises(RequestError, match="checkpoint="):
            checkpoint_of(name, store)
    shutil.rmtree(tmp_path / "run")
    for missing in (run_id, "0" * 32):
        with pytest.raises(RequestError, match="run="):
            folder_of(missing, store)


def test_doing_it_again_changes_nothing(store: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", store, state="finished")
    tracker = Tracker(folder)
    tracker.update()
    before, rows = the_run(store).to_dictionary(), database_rows(store)
    tracker.update()
    replicate(folder)
    assert database_rows(store) == rows and the_run(store).to_dictionary() == before


@pytest.mark.parametrize("state", ["running", "failed", "killed"])
def test_an_unfinished_run_says_so_and_has_no_model(store: str, tmp_path: Path, state: str) -> None:
    replicate(write_run(tmp_path / "run", store, state=state))
    run = the_run(store)
    assert run.info.status == state.upper() and not run.outputs.model_outputs
    assert run.data.tags.get("error") == ("it broke" if state == "failed" else None)
    stored = {artifact.path for artifact in client(store).list_artifacts(run.info.run_id)}
    assert ("log.txt" in stored) == (state != "running")
    assert ("best/val_dice" in run.data.metrics) == (state != "running")


def test_leaky_and_infinite_values_are_shown_as_such(store: str, tmp_path: Path) -> None:
    leaky = {"name": "reference", "sha256": "5" * 64, "train": 4, "validation": 2, "test": 0, "leaky": True}
    folder = write_run(tmp_path / "run", store, epochs=1, split=leaky)
    row_1 = row(1)
    row_1["metrics"] |= {"val/loss": math.inf, "val/hd95": math.nan}
    (folder / "metrics.jsonl").write_text(json.dumps(row_1) + "\n")
    replicate(folder)
    replicate(folder)
    assert the_run(store).data.tags["leaky"] == "true"
    for key in ("val/loss", "val/hd95"):
        ((_, value, _),) = points(store, key)
        assert math.isnan(value)


def test_the_chart_link_names_a_layout_that_the_experiment_has(store: str, tmp_path: Path) -> None:
    replicate(write_run(tmp_path / "run", store))
    experiment = client(store).get_experiment_by_name("brainseg")
    link = chart_link(store, experiment.experiment_id)
    assert f"#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART" in link
    layout = json.loads(experiment.tags["mlflow.sharedViewState." + re.search("viewStateShareKey=(.*)", link)[1]])
    sections = {section["uuid"] for section in layout["compareRunSections"]}
    assert layout["compareRunCharts"][0]["metricKey"] == "val/dice"
    assert {chart["metricSectionId"] for chart in layout["compareRunCharts"]} <= sections


def test_an_experiment_made_by_hand_gets_the_layout_too(store: str, tmp_path: Path) -> None:
    client(store).create_experiment("brainseg", (tmp_path / "elsewhere").as_uri())
    replicate(write_run(tmp_path / "run", store))
    assert client(store).get_experiment_by_name("brainseg").tags.keys() >= mlflow_view.experiment_tags().keys()


# A run that goes on


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(growth=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=5))
def test_each_epoch_is_one_point_however_it_came(template: Path, tmp_path_factory: Any, growth: list[tuple[int, bool]]) -> None:
    """The folder grows by a few epochs at a time, replicated by the same process or a new one."""
    base = tmp_path_factory.mktemp("growing")
    shutil.copy(template, base / "mlflow.db")
    store, epochs, tracker = f"sqlite:///{base / 'mlflow.db'}", 0, Tracker(base / "run")
    for more, new_process in growth:
        epochs += more
        write_run(base / "run", store, epochs)
        tracker = Tracker(base / "run") if new_process else tracker
        tracker.update()
    assert points(store, "train/loss") == [(epoch, 1 / epoch, START + 5000 * epoch) for epoch in range(1, epochs + 1)]


def test_an_epoch_lost_and_run_again_stays_one_point(store: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", store, epochs=3)
    replicate(folder)
    again = row(3)
    again["time"] += 777
    again["metrics"]["speed/epoch_seconds"] = 6.0
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in (row(1), row(2), again, row(4))))
    replicate(folder)
    assert [step for step, _, _ in points(store, "speed/epoch_seconds")] == [1, 2, 3, 4]


def test_a_finished_run_that_is_extended_runs_again_and_finishes(store: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", store, epochs=3, state="finished")
    replicate(folder)
    replicate(write_run(folder, store, epochs=4, state="running"))
    assert the_run(store).info.status == "RUNNING"
    replicate(write_run(folder, store, epochs=5, state="finished"))
    run = the_run(store)
    assert (run.info.status, run.data.params["epochs"], run.data.tags["extended.epochs"]) == ("FINISHED", "3", "5")
    assert [step for step, _, _ in points(store, "val/dice")] == [1, 2, 3, 4, 5]
    assert len(run.outputs.model_outputs) == 1, "best.pt has not changed"


def test_a_model_whose_upload_broke_is_completed_by_the_next(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    folder = write_run(tmp_path / "run", store, state="finished")

    def broken(*_: Any) -> None:
        raise OSError("connection lost")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="connection lost"):
        patch.setattr(MlflowClient, "log_model_artifact", broken)
        replicate(folder)
    replicate(folder)
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
    mirror = Mirror(tmp_path / "run")
    assert not mirror.begun
    write_run(tmp_path / "run", "sqlite:///none.db")
    assert not mirror.begun, "another host's"
    (tmp_path / "run" / "status.json").write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    assert mirror.begun


# A store that is not there


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def hanging() -> Iterator[str]:
    """A server that accepts a connection and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def answering_500() -> Iterator[str]:
    class Broken(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        do_POST = do_PUT = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", ["closed", "hanging", "answering_500"])
def test_a_dead_server_costs_a_second_now_and_then_and_one_warning(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    uri = closed_port() if kind == "closed" else request.getfixturevalue(kind)
    mirror = Mirror(write_run(tmp_path / "run", uri))
    started = time.monotonic()
    mirror.update()
    cost = time.monotonic() - started
    assert cost < 1.9, "one request of at most one second, not repeated"
    assert mirror.not_before - time.monotonic() > 0.9 * tracking.PATIENCE * cost - 1
    started = time.monotonic()
    for _ in range(1000):
        mirror.update()
    assert kind == "closed" or time.monotonic() - started < 0.5, "no attempt before its time"
    mirror.update(final=True)
    assert len([record for record in caplog.records if "tracking failed" in record.message]) == 2, "the first and the final one"
    assert "brainseg.sync" in caplog.records[-1].message and "brainseg.sync" in mirror.describe()


def test_a_store_that_comes_back_is_caught_up_with(template: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "share"
    place.write_text("a file where the store's folder should be: as a network folder that is not mounted")
    store = f"sqlite:///{place / 'mlflow.db'}"
    mirror = Mirror(write_run(tmp_path / "run", store, epochs=1))
    mirror.update()
    assert mirror.failing
    place.unlink()
    place.mkdir()
    shutil.copy(template, place / "mlflow.db")
    write_run(tmp_path / "run", store, epochs=4)
    mirror.not_before = 0.0
    mirror.update()
    assert not mirror.failing and "MLflow run:" in mirror.describe()
    assert [step for step, _, _ in points(store, "val/dice")] == [1, 2, 3, 4]
    assert len(caplog.records) == 1


def test_a_slow_store_is_asked_less_often(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time inside tracking stays under a hundredth of the whole; the first success does not count."""
    clock, updates = [0.0], [0]
    monkeypatch.setattr(tracking.time, "monotonic", lambda: clock[0])

    def slow(tracker: Tracker) -> None:
        updates[0] += 1
        clock[0] += 0.5
        tracker.run_id = "known"

    monkeypatch.setattr(Tracker, "update", slow)
    mirror = Mirror(tmp_path)
    mirror.update()
    assert updates[0] == 1 and mirror.not_before == 0.0
    while clock[0] < 1000:
        clock[0] += 1
        mirror.update()
    assert 10 < updates[0] <= 2 + 1000 / (100 * 0.5)


def test_a_file_that_is_no_database_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database " * 100)
    started = time.monotonic()
    with limited(1), pytest.raises(OSError, match=r"mlflow\.db"):
        connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert time.monotonic() - started < 1


def test_a_store_whose_making_was_cut_short_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.tracking import sqlalchemy_store

    def cut_short(uri: str, _: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_text("half a database")
        raise OSError("no space left")

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", cut_short)
    with limited(1), pytest.raises(OSError, match="no space left"):
        connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".db"] == []


def start_together(folder: str, barrier: Any) -> None:
    barrier.wait()
    replicate(folder, seconds=60)


@pytest.mark.parametrize("one_folder", [False, True])
def test_four_processes_start_together(tmp_path: Path, template: Path, one_folder: bool) -> None:
    """Each with its run on a store that is not there yet; and all four on one folder, as a training and three syncs."""
    if one_folder:
        shutil.copy(template, tmp_path / "mlflow.db")
    store, fork = f"sqlite:///{tmp_path / 'mlflow.db'}", multiprocessing.get_context("fork")
    uids = ["same"] * 4 if one_folder else [f"uid-{number}" for number in range(4)]
    folders = [write_run(tmp_path / uid, store, state="finished", uid=uid) for uid in uids]
    with limited(1):  # mlflow is imported once, here
        barrier = fork.Barrier(4)
    processes = [fork.Process(target=start_together, args=(str(folder), barrier)) for folder in folders]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    mlflow = client(store)
    (experiment,) = [entry for entry in mlflow.search_experiments() if entry.name != "Default"]
    runs = mlflow.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["brainseg.uid"] for run in runs) == sorted(set(uids))
    assert len(mlflow.search_logged_models([experiment.experiment_id])) == len(set(uids))


# Where the store is


def test_the_store_is_mlflow_db_here_whatever_lies_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("name: left over from an older MLflow")
    assert tracking_uri(None) == f"sqlite:///{tmp_path / 'mlflow.db'}" == tracking_uri("sqlite:///mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000/")
    assert tracking_uri(None) == "http://server:5000"
    assert tracking_uri("sqlite:////tmp/a.db") == "sqlite:////tmp/a.db"


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "file:///tmp/mlruns", "https://me:secret@server", "postgresql://me:secret@db/mlflow"])
def test_a_store_that_cannot_be_or_would_leak_is_refused(uri: str) -> None:
    with pytest.raises(RequestError, match=r"tracking\.uri") as refusal:
        tracking_uri(uri)
    assert "secret" not in str(refusal.value) and "\n" not in str(refusal.value)


def test_links_lead_to_the_server_or_to_this_machine(tmp_path: Path) -> None:
    assert chart_link("https://server/mlflow", "7").startswith("https://server/mlflow/#/experiments/7/runs?")
    assert ui_command("https://server/mlflow") is None
    assert chart_link("sqlite:////tmp/a.db", "7").startswith("http://127.0.0.1:5000/#/experiments/7/runs?")
    command = ui_command("sqlite:////tmp/a.db") or []
    assert command[command.index("--host") + 1] == "127.0.0.1"


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with limited(1):
        assert (os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"], os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) == ("1", "0")
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77" and "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


# The commands


def test_sync_finds_runs_reports_each_and_counts_failures(store: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    good = [write_run(tmp_path / "runs" / "sweep" / name, store, uid=name) for name in ("a", "b")]
    assert sync.run([str(tmp_path / "runs"), str(good[0])]) == 0
    assert "2 of 2 runs are in MLflow" in capsys.readouterr().out
    write_run(tmp_path / "runs" / "c", closed_port(), uid="c")
    (tmp_path / "runs" / "c" / "status.json").unlink()
    assert sync.run([str(tmp_path / "runs")]) == 1
    said = capsys.readouterr()
    assert "2 of 3 runs are in MLflow, 1 failed" in said.out and "status.json" in said.err


def test_sync_takes_runs_to_another_store(store: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", closed_port())
    assert sync.run([str(folder)]) == 1
    assert sync.run([str(folder), f"tracking.uri={store}"]) == 0
    assert the_run(store).info.run_name == "depth=4"


@pytest.mark.parametrize("arguments", [["nowhere"], ["tracking.url=x"], ["tracking.uri=mlruns"], []])
def test_sync_refuses_a_wrong_request_in_one_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sync.run(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_package_is_imported_without_mlflow() -> None:
    heavy = "{'mlflow', 'pandas', 'torch', 'matplotlib'}"
    code = f"import sys, brainseg.sync, brainseg.records.tracking; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.slow
def test_a_real_server_killed_and_started_again(template: Path, tmp_path: Path) -> None:
    """Over HTTP, served by scripts/ui.py: complete, caught up after the server was away, and Ctrl-C leaves no process."""
    shutil.copy(template, tmp_path / "mlflow.db")
    with serving(tmp_path) as uri:
        mirror = Mirror(write_run(tmp_path / "run", uri, epochs=1))
        wait_until(lambda: mirror.update() or not mirror.failing)
    write_run(tmp_path / "run", uri, epochs=2)
    mirror.not_before = 0.0
    mirror.update()
    assert mirror.failing
    with serving(tmp_path, port=int(uri.rsplit(":", 1)[1])) as again:
        assert again == uri
        write_run(tmp_path / "run", uri, epochs=4, state="finished")
        mirror.update(final=True)
        assert not mirror.failing, mirror.describe()
        replicate(tmp_path / "run")
        with limited(10):
            run = the_run(uri)
            assert (run.info.status, len(run.outputs.model_outputs)) == ("FINISHED", 1)
            assert [step for step, _, _ in points(uri, "val/dice")] == [1, 2, 3, 4]
            assert "pictures" in {artifact.path for artifact in client(uri).list_artifacts(run.info.run_id)}


class serving:
    """`scripts/ui.py` in `folder`, ended by Ctrl-C; enters with the server's address."""

    def __init__(self, folder: Path, port: int = 5600) -> None:
        self.folder, self.port = folder, port

    def __enter__(self) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(ROOT / "scripts" / "ui.py"), f"--port={self.port}"]
        self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        said = "".join(iter(self.process.stdout.readline, "Ctrl-C ends it.\n"))
        return re.search(r"http://127.0.0.1:\d+", said)[0]

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(20) == 0
        assert self.process.stdout
        self.process.stdout.close()


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.parametrize(("state", "minutes", "seconds"), [
    ("finished", 1, 1), ("finished", 20, 6), ("failed", 20, 6), ("finished", 900, 10), ("killed", 900, 1), ("running", 900, 1),
])
def test_a_slow_server_is_waited_for_once_the_run_has_ended(tmp_path: Path, state: str, minutes: int, seconds: int) -> None:
    """Half a percent of the run's time, so that a server a second away still gets the run; who killed a run does not wait so long."""
    tracker = Tracker(write_run(tmp_path / "run", f"sqlite:///{tmp_path}/m.db", state=state))
    tracker.status = {"state": state, "started": START, "ended": None if state == "running" else START + minutes * 60_000}
    assert tracker._patience() == seconds
