"""Where the MLflow store is, how it is made, and what is refused."""

import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from signs import IN_NAMES
from sqlalchemy.engine import make_url
from tracked_runs import client, write_run

from brainseg.core.errors import RequestError
from brainseg.tracking.client import (
    chart_link,
    connect,
    experiment_id,
    import_mlflow,
    short_timeouts,
    sqlite_uri,
    tracking_uri,
    ui_command,
)
from brainseg.tracking.upload import upload_run


def test_a_file_that_is_no_database_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database " * 100)
    import_mlflow()  # the import is not what is timed
    started = time.monotonic()
    with short_timeouts(1), pytest.raises(OSError, match=r"mlflow\.db"):
        connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert time.monotonic() - started < 1


def test_a_store_whose_making_was_cut_short_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.tracking import sqlalchemy_store

    def cut_short(uri: str, _: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_text("half a database")
        raise OSError("no space left")

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", cut_short)
    with short_timeouts(1), pytest.raises(OSError, match="no space left"):
        connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".db"] == []


def start_together(folder: str, barrier: Any) -> None:
    barrier.wait()
    upload_run(folder, seconds=60)


@pytest.mark.parametrize("one_folder", [False, True])
def test_four_processes_start_together(tmp_path: Path, template: Path, one_folder: bool) -> None:
    """Each with its run on a store that is not there yet; and all four on one folder, as a training and three syncs."""
    if one_folder:
        shutil.copy(template, tmp_path / "mlflow.db")
    store, fork = f"sqlite:///{tmp_path / 'mlflow.db'}", multiprocessing.get_context("fork")
    uids = ["same"] * 4 if one_folder else [f"uid-{number}" for number in range(4)]
    folders = [write_run(tmp_path / uid, store, state="finished", uid=uid) for uid in uids]
    with short_timeouts(1):  # mlflow is imported once, here
        barrier = fork.Barrier(4)
    processes = [
        fork.Process(target=start_together, args=(str(folder), barrier)) for folder in folders
    ]
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


def test_the_store_is_mlflow_db_here_whatever_lies_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("name: left over from an older MLflow")
    assert (
        tracking_uri(None)
        == f"sqlite:///{tmp_path / 'mlflow.db'}"
        == tracking_uri("sqlite:///mlflow.db")
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000/")
    assert tracking_uri(None) == "http://server:5000"
    assert tracking_uri("sqlite:////tmp/a.db") == "sqlite:////tmp/a.db"


@pytest.mark.parametrize("sign", [*IN_NAMES, "%20", "%3F", "a?b=c&d"])
def test_the_database_of_a_folder_lies_in_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    """SQLAlchemy, which opens the file, reads the URL as the path that it was made from."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / f"a{sign}b"
    folder.mkdir()
    monkeypatch.chdir(folder)
    uri = tracking_uri(None)
    assert make_url(uri).database == str(folder / "mlflow.db")
    assert tracking_uri(uri) == uri, "the URL that a run has stored means the same file"


@pytest.mark.parametrize("sign", ["?", "%20", "#", "&", "größe", " (1)"])
def test_records_of_a_folder_lie_in_it_and_nothing_lies_beside_it(
    tmp_path: Path, template: Path, sign: str
) -> None:
    folder = tmp_path / f"a{sign}b"
    folder.mkdir()
    shutil.copy(template, folder / "mlflow.db")
    uri = sqlite_uri(folder / "mlflow.db")
    with short_timeouts(1):
        mlflow = connect(uri, make=False)
        run = mlflow.create_run(experiment_id(mlflow, uri, "x", None)).info.run_id
        mlflow.log_text(run, "written", "a.txt")
    assert os.listdir(tmp_path) == [folder.name]
    # The template was copied here, so its paths were brought home under a lock.
    assert sorted(os.listdir(folder)) == ["mlartifacts", "mlflow.db", "mlflow.db.lock"]
    (artifact,) = (folder / "mlartifacts").rglob("a.txt")
    assert artifact.read_text() == "written"


def test_what_follows_the_path_of_a_typed_url_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        tracking_uri("sqlite:///my%20runs/a.db?timeout=30")
        == f"sqlite:///{tmp_path}/my runs/a.db?timeout=30"
    )


@pytest.mark.parametrize(
    "uri",
    [
        "mlruns",
        "./mlruns",
        "file:///tmp/mlruns",
        "https://me:secret@server",
        "postgresql://me@db/mlflow?password=secret",
        "http://me:secret@[::1:5000",
        "postgresql://me:secret@db/mlflow",
        "postgresql://db/mlflow",
        "mysql+pymysql://db/mlflow",
        "s3://bucket/mlflow",
    ],
)
def test_a_store_that_cannot_be_or_would_leak_is_refused(uri: str) -> None:
    with pytest.raises(RequestError, match=r"tracking\.uri") as refusal:
        tracking_uri(uri)
    assert "secret" not in str(refusal.value) and "\n" not in str(refusal.value)


def test_links_lead_to_the_server_or_to_this_machine(tmp_path: Path) -> None:
    assert chart_link("https://server/mlflow", "7").startswith(
        "https://server/mlflow/#/experiments/7/runs?"
    )
    assert ui_command("https://server/mlflow") is None
    assert chart_link("sqlite:////tmp/a.db", "7").startswith(
        "http://127.0.0.1:5000/#/experiments/7/runs?"
    )
    command = ui_command("sqlite:////tmp/a.db") or []
    assert command[command.index("--host") + 1] == "127.0.0.1"


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with short_timeouts(1):
        assert (
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"],
            os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"],
        ) == ("1", "0")
    assert (
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
        and "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
    )
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
