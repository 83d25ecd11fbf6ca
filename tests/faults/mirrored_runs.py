"""What MLflow must hold of a run, whatever became of it or of the server; and a training slow enough to be met midway."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from test_races import status_of
from tracked_runs import COMPLETE

from brainseg.tracking.client import connect, short_timeouts
from brainseg.tracking.contents import is_logged
from brainseg.tracking.upload import FIRST_FILES, LAST_FILES


def rows_of(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def mirrored(run: Path, uri: str, status: str, times: bool = True) -> Any:
    """Assert that MLflow has this run folder, once: each point, each file, and if finished its model; returns MLflow's run.

    Without `times`: epochs behind the best one were run again, and MLflow keeps when and how fast they were the first time.
    """
    from mlflow.artifacts import download_artifacts

    with short_timeouts(10):
        mlflow = connect(uri)
        (found,) = mlflow.search_runs(
            [mlflow.get_experiment_by_name("brainseg").experiment_id],
            f"tags.`brainseg.uid` = '{uid_of(run)}'",
        )
        record = mlflow.get_run(found.info.run_id)
        points = [
            point
            for key in record.data.metrics
            for point in mlflow.get_metric_history(found.info.run_id, key)
        ]
        artifacts = {item.path for item in mlflow.list_artifacts(found.info.run_id)}
        models = mlflow.search_logged_models(
            [found.info.experiment_id], f"source_run_id = '{found.info.run_id}'"
        )
        stored = {
            name: Path(
                download_artifacts(f"runs:/{found.info.run_id}/{name}", tracking_uri=uri)
            ).read_bytes()
            for name in artifacts & {"log.txt", "metrics.jsonl", "summary.json", "patients.csv"}
        }
    assert record.info.status == status
    each_point_once(run, points, times)
    ended = status != "RUNNING"
    assert artifacts - {"pictures"} == {
        name for name in FIRST_FILES + LAST_FILES * ended if (run / name).exists()
    }
    assert stored == {name: (run / name).read_bytes() for name in stored}
    if ended and rows_of(run):
        # Equal Dice is decided by the lower loss.
        best = max(
            rows_of(run), key=lambda row: (row["metrics"]["val/dice"], -row["metrics"]["val/loss"])
        )
        assert (record.data.metrics["best/epoch"], record.data.metrics["best/val_dice"]) == (
            best["epoch"],
            best["metrics"]["val/dice"],
        )
    if status == "FINISHED":
        assert "pictures" in artifacts
        assert (
            record.data.metrics["test/dice"]
            == json.loads((run / "summary.json").read_text())["metrics"]["test/dice"]
        )
        assert {model.status for model in models} == {"READY"}
        assert {model.model_id for model in models} == {
            output.model_id for output in record.outputs.model_outputs
        }
    return record


def each_point_once(run: Path, points: list[Any], times: bool) -> None:
    expected = {
        (key, row["epoch"]): (value, row["time"])
        for row in rows_of(run)
        for key, value in row["metrics"].items()
        # A repeated epoch may have other measurements of the machine.
        if is_logged(key) and not key.startswith("system/")
    }
    # The best score so far is sent again whenever it rises, always at step 0. So are the scores of
    # the test patients, if an extended run has another best epoch.
    points = [point for point in points if not point.key.startswith(("best/", "test/"))]
    found = {(point.key, point.step): (point.value, point.timestamp) for point in points}
    assert len(found) == len(points), "a point twice"
    assert {key for key, _ in found.keys() - expected.keys()} <= {
        key
        for key, _ in found
        if key.startswith(("best/", "test/", "val/hd95", "val/nsd", "system/"))
    }
    assert expected.keys() <= found.keys(), "a point is missing"
    if times:
        assert {where: found[where] for where in expected} == expected
    else:
        assert {
            where: found[where][0]
            for where in expected
            if not where[0].startswith(("speed/", "system/"))
        } == {
            where: value
            for where, (value, _) in expected.items()
            if not where[0].startswith(("speed/", "system/"))
        }


def is_complete(
    run: Path, epochs: int, checkpoints: Iterable[str] = ("best",), pictures: Iterable[str] = ()
) -> None:
    """`pictures` are those that only a run of more than a minute draws."""
    files = COMPLETE | {f"checkpoints/{name}.pt" for name in checkpoints}
    files |= {f"pictures/{name}" for name in pictures}
    assert {
        path.relative_to(run).as_posix() for path in run.rglob("[!.]*") if path.is_file()
    } == files
    assert status_of(run)["state"] == "finished"
    assert [row["epoch"] for row in rows_of(run)] == list(range(epochs))


def uid_of(run: Path) -> str:
    return json.loads((run / "run.json").read_text())["uid"]


def store_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


class Paced:
    """Run in the child: a step takes `seconds` longer, and what each `Mirror.update` took is written to times.json."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> None:
        from brainseg import train
        from brainseg.tracking.mirror import Mirror
        from brainseg.training import loop

        run, update, augmented = train.run, Mirror.update, loop.augment_batch
        attempts: list[tuple[float, bool]] = []

        def timed_run(*arguments: Any) -> Any:
            started = time.monotonic()
            outcome = run(*arguments)
            Path("times.json").write_text(
                json.dumps({"seconds": time.monotonic() - started, "attempts": attempts})
            )
            return outcome

        def timed_update(mirror: Mirror, final: bool = False) -> None:
            started = time.monotonic()
            update(mirror, final)
            attempts.append((time.monotonic() - started, mirror.failing))

        def slower(*arguments: Any) -> Any:
            time.sleep(self.seconds)
            return augmented(*arguments)

        train.run, Mirror.update, loop.augment_batch = timed_run, timed_update, slower  # type: ignore[method-assign]
