"""What MLflow would refuse is sent under a name that it takes; what it refuses for good is not said to pass by itself."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tracked_runs import client, points, the_run, write_run

from brainseg import sync
from brainseg.tracking.lookup import folders_of_experiment
from brainseg.tracking.mirror import Mirror
from brainseg.tracking.names import experiment_name, mlflow_keys
from brainseg.tracking.refusals import remedy_of
from brainseg.tracking.upload import RunUpload, upload_run


@pytest.mark.parametrize(
    "name", ["Tumor (core)", "GD+", "a//b", "../b", "T1c/", "é (œ)", "x" * 300]
)
def test_every_class_of_a_run_is_in_mlflow(name: str, store: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", store)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["metrics"][f"val/dice/{name}"] = row["epoch"] / 10
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    upload_run(folder)
    (key,) = {
        key
        for key in the_run(store).data.metrics
        if key not in ("train/loss", "val/loss", "val/dice", "speed/epoch_seconds")
        and not key.startswith("best/")
    }
    assert [value for _, value, _ in points(store, key)] == [0.1, 0.2, 0.3]
    before = the_run(store).to_dictionary()
    upload_run(folder)
    assert the_run(store).to_dictionary() == before, "each point once"


@given(st.lists(st.text(max_size=300), unique=True, max_size=20))
def test_keys_are_taken_by_mlflow_and_different(names: list[str]) -> None:
    """The rule is MLflow's own, which every store applies."""
    from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name

    keys = mlflow_keys(names)
    assert len(set(keys.values())) == len(names) and mlflow_keys(reversed(names)) == keys
    for key in keys.values():
        _validate_metric_name(key)
        assert len(key) <= MAX_ENTITY_KEY_LENGTH


def test_names_that_mlflow_takes_stay_as_they_are() -> None:
    names = [
        "val/dice",
        "val/dice/NCR/NET",
        "optimizer.options.momentum",
        "speed/images_per_second",
        "a b-c:d",
    ]
    assert mlflow_keys(names) == dict(zip(names, names, strict=True))
    assert mlflow_keys(["GD+", "a+b", "a(b"])["GD+"] == "GD_"


def test_a_long_experiment_name_is_shortened_and_found(store: str, tmp_path: Path) -> None:
    names = ["x" * 600 + ending for ending in "ab"]
    for name in names:
        tracked = {"uri": store, "artifacts": "mlartifacts", "experiment": name}
        upload_run(write_run(tmp_path / name[-1], store, uid=f"uid-{name[-1]}", tracking=tracked))
    assert [folders_of_experiment(name, store) for name in names] == [
        [tmp_path / "a"],
        [tmp_path / "b"],
    ]
    assert [len(experiment_name(name)) for name in (*names, "short")] == [500, 500, 5]


def test_a_deleted_experiment_is_said_once_with_the_remedy(
    store: str, tmp_path: Path, caplog: Any, capsys: Any
) -> None:
    folder = write_run(tmp_path / "run", store)
    mlflow = client(store)
    experiment = mlflow.create_experiment("brainseg", (tmp_path / "mlartifacts").as_uri())
    mlflow.delete_experiment(experiment)
    mirror = Mirror(folder)
    caplog.clear()
    for _ in range(3):
        mirror.not_before = 0.0
        mirror.update()
    mirror.update(final=True)
    (said,) = [record.message for record in caplog.records]
    assert (
        f"mlflow experiments restore -x {experiment}" in said
        and "waiting does not help" in said
        and "catch up" not in said
    )
    assert "refused" in mirror.describe()
    assert sync.run([str(folder)]) == 1
    shown = capsys.readouterr()
    assert "0 of 1 runs are in MLflow, 1 failed" in shown.out and "experiments restore" in shown.err
    mlflow.restore_experiment(experiment)
    mirror.update(final=True)
    assert (
        not mirror.failing and "MLflow run:" in mirror.describe() and sync.run([str(folder)]) == 0
    )


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("INVALID_PARAMETER_VALUE", "tracking.uri=URI"),
        ("BAD_REQUEST", "tracking.uri=URI"),
        ("UNAUTHENTICATED", "MLFLOW_TRACKING_PASSWORD"),
        ("PERMISSION_DENIED", "MLFLOW_TRACKING_PASSWORD"),
        ("ENDPOINT_NOT_FOUND", "check tracking.uri"),
        ("NOT_IMPLEMENTED", "update"),
        ("INTERNAL_ERROR", None),
        ("TEMPORARILY_UNAVAILABLE", None),
        ("DEADLINE_EXCEEDED", None),
        ("REQUEST_LIMIT_EXCEEDED", None),
        ("RESOURCE_EXHAUSTED", None),
        ("ABORTED", None),
        ("CANCELLED", None),
    ],
)
def test_what_may_pass_is_told_from_what_does_not_by_mlflows_codes(
    code: str,
    words: str | None,
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ErrorCode

    error = MlflowException("no", ErrorCode.Value(code))

    def refused(_: RunUpload) -> None:
        raise error

    monkeypatch.setattr(RunUpload, "update", refused)
    mirror = Mirror(tmp_path / "run")
    mirror.update()
    (said,) = [record.message for record in caplog.records]
    assert ("MLflow will catch up" in said) is (words is None)
    assert words is None or words in said
    assert (remedy_of(error) is None) is (words is None)


def test_errors_of_network_and_disk_may_pass() -> None:
    import requests

    assert remedy_of(requests.exceptions.JSONDecodeError("no JSON", "", 0)) is None
    assert remedy_of(TimeoutError("a lock")) is None and remedy_of(OSError("disk full")) is None
    assert remedy_of(ValueError("run.json: not what a run writes")) == "correct it"
