"""A sweep's id, its record from start to start, and the summary that ends it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scored_runs import scored_run
from test_end_to_end import SMALL
from warm_processes import call

from brainseg.compare import summarise_sweep
from brainseg.comparison.runs import count_configurations_tried
from brainseg.comparison.selection import load_runs
from brainseg.config import TrackingConfig
from brainseg.core.errors import RequestError
from brainseg.runs.sweep_record import last_sweep, sweep_id, sweep_run_folders, write_record

NAMES = {"TCGA_A_1_1": 0.5, "TCGA_A_2_1": 0.7, "TCGA_B_3_1": 0.6}


def jobs(*widths: int, fixed: tuple[str, ...] = ("epochs=3",)) -> list[list[str]]:
    return [[*fixed, f"model.width={width}"] for width in widths]


def test_the_id_is_that_of_the_question() -> None:
    one = sweep_id(jobs(4, 8), ["model.width"])
    assert one.startswith("width-") and one == sweep_id(jobs(4, 8, 16), ["model.width"]), (
        "widened by a value"
    )
    assert one == sweep_id(
        jobs(4, 8, fixed=("epochs=3", "tracking=none", "hydra/launcher=joblib", "output=x")),
        ["model.width"],
    )
    assert one != sweep_id(jobs(4, 8, fixed=("epochs=4",)), ["model.width"])
    assert one != sweep_id([[*job, "seed=1"] for job in jobs(4, 8)], ["model.width"])


def test_a_record_keeps_what_a_narrower_start_left_out(tmp_path: Path) -> None:
    made = {
        width: str(scored_run(tmp_path / str(width), NAMES, width=width).path)
        for width in (4, 8, 16)
    }
    for widths in ((4, 8), (8, 16)):
        write_record(
            tmp_path,
            "width-1",
            [
                {"overrides": job, "folder": made[width], "state": "finished", "reason": ""}
                for width, job in zip(widths, jobs(*widths), strict=True)
            ],
        )
    assert [path.name for path in sweep_run_folders("width-1", tmp_path)] == ["4", "8", "16"]
    assert last_sweep(tmp_path) == "width-1"


def test_a_killed_sweep_is_found_by_its_runs(tmp_path: Path) -> None:
    """Killed, it has written no record: its runs say whose they are."""
    scored_run(tmp_path / "a", NAMES, sweep="width-2")
    scored_run(tmp_path / "b", NAMES, sweep="another")
    assert [path.name for path in sweep_run_folders("width-2", tmp_path)] == ["a"]
    with pytest.raises(RequestError, match="no such sweep"):
        sweep_run_folders("width-3", tmp_path)
    with pytest.raises(RequestError, match="is no sweep's id"):
        sweep_run_folders("../width-2", tmp_path)


def test_a_job_made_again_counts_once(tmp_path: Path) -> None:
    for name in ("old", "new"):
        scored_run(tmp_path / name, NAMES, sweep="width-2")
    assert [run.path.name for run in load_runs(None, "width-2", None, tmp_path, None)] == ["new"]


def test_a_sweep_of_which_nothing_finished_says_so(tmp_path: Path) -> None:
    scored_run(tmp_path / "a", NAMES, state="failed", sweep="width-2")
    said = summarise_sweep("width-2", tmp_path, TrackingConfig("none"))
    assert said.startswith("no comparison: ") and "it broke" in said


def test_a_sweep_ends_with_its_summary_also_if_a_job_failed(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    tiny = [*SMALL, "epochs=1", "model.width=2,3"]
    said = call(
        tmp_path, "train", "-m", *tiny, "optimizer.lr=1e-3,1e30", code=1
    )  # that rate gives a loss that is not finite
    (record,) = (tmp_path / "runs" / "sweeps").glob("*.json")
    failed = [job for job in json.loads(record.read_text())["jobs"] if job["state"] == "failed"]
    assert len(failed) == 2 and "Traceback" not in said
    # The end of a reason is printed once, by its job. The table and the notes have its begin.
    for job in failed:
        assert said.count(job["reason"][-80:]) == 1
    assert said.count("NonFiniteError: loss nan") == 3 * len(failed)
    table = pd.read_csv(record.with_suffix("") / "comparison.csv")
    assert set(table.configuration) >= {"width=2 lr=0.001", "width=3 lr=0.001"}
    assert "Left out: " in said and (record.with_suffix("") / "report.html").is_file()

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("brainseg")
    (summary,) = client.search_runs([experiment.experiment_id], "tags.kind = 'sweep_summary'")
    assert summary.data.tags["sweep"] == record.stem
    assert {"report.html", "comparison.csv", "pictures"} <= {
        item.path for item in client.list_artifacts(summary.info.run_id)
    }
    assert len(charted(client, experiment, record.stem)) == 4, (
        "a job of the sweep each, the failed ones too"
    )
    assert said.count(f"viewStateShareKey=brainseg-3-{record.stem}") == 1, "the link, once"
    assert "mlflow server" not in said and said.count("python -m brainseg.ui") == 1


def charted(client: Any, experiment: Any, sweep: str) -> list[Any]:
    """The runs that the chart link of a sweep draws: MLflow applies the filter of the layout."""
    layout = json.loads(experiment.tags[f"mlflow.sharedViewState.brainseg-3-{sweep}"])
    return client.search_runs([experiment.experiment_id], layout["searchFilter"])


def test_the_chart_of_a_sweep_has_the_jobs_that_it_skipped(tmp_path: Path) -> None:
    """Jobs of another sweep; and all of them in a store that was named after they had run."""
    from mlflow import MlflowClient

    tiny = [*SMALL, "epochs=1"]
    call(tmp_path, "train", "-m", *tiny, "model.width=2,3")
    said = call(tmp_path, "train", "-m", *tiny, "model.width=2,3", "seed=0,1")
    assert "2 finished, 2 skipped" in said
    records = {
        path.stem: json.loads(path.read_text())
        for path in (tmp_path / "runs" / "sweeps").glob("*.json")
    }
    assert all(
        Path(job["folder"]).parent == Path()
        for record in records.values()
        for job in record["jobs"]
    )
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("brainseg")
    assert {name: len(charted(client, experiment, name)) for name in records} == {
        name: 4 if "seed" in name else 2 for name in records
    }
    again = call(
        tmp_path,
        "train",
        "-m",
        *tiny,
        "model.width=2,3",
        "seed=0,1",
        "tracking.uri=sqlite:///new.db",
    )
    assert "0 finished, 4 skipped" in again
    client = MlflowClient(f"sqlite:///{tmp_path / 'new.db'}")
    (sweep,) = (name for name in records if "seed" in name)
    of_sweep = charted(client, client.get_experiment_by_name("brainseg"), sweep)
    assert len(of_sweep) == 4 and all(
        run.info.status == "FINISHED" and "test/dice" not in run.data.metrics for run in of_sweep
    )


def test_a_sweep_without_its_server_is_in_mlflow_after_the_same_command_again(
    tmp_path: Path,
) -> None:
    from mlflow import MlflowClient
    from tracked_runs import closed_port

    tiny = [*SMALL, "epochs=1", "model.width=2,3"]
    said = call(tmp_path, "train", "-m", *tiny, f"tracking.uri={closed_port()}")
    assert "MLflow charts: not available" in said
    assert "not up to date; later the same command again brings it there" in said
    assert "not in MLflow: 2 of 2 jobs, which are not in its charts (" in said
    call(tmp_path, "train", "-m", *tiny)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("brainseg")
    (record,) = (tmp_path / "runs" / "sweeps").glob("*.json")
    assert len(charted(client, experiment, record.stem)) == 2
    (summary,) = client.search_runs([experiment.experiment_id], "tags.kind = 'sweep_summary'")
    assert len(summary.data.tags["runs"].split(",")) == 2


def test_a_record_stays_true_where_its_folder_is_copied(tmp_path: Path) -> None:
    """The jobs of the copy are the copy's, whether the record was written before paths were relative or after."""
    made = scored_run(tmp_path / "runs" / "a", NAMES).path
    job = {"overrides": ["model.width=4"], "state": "finished", "reason": ""}
    write_record(tmp_path / "runs", "width-1", [{**job, "folder": str(made)}])
    shutil.copytree(tmp_path / "runs", tmp_path / "copy")
    assert sweep_run_folders("width-1", tmp_path / "copy") == [tmp_path / "copy" / "a"]
    record = tmp_path / "copy" / "sweeps" / "width-1.json"
    record.write_text(json.dumps({"id": "width-1", "jobs": [{**job, "folder": str(made)}]}))
    assert sweep_run_folders("width-1", tmp_path / "copy") == [tmp_path / "copy" / "a"]


def test_the_last_that_finished_counts_and_data_are_not_mixed(tmp_path: Path) -> None:
    for name, state in (("first", "finished"), ("second", "finished"), ("third", "failed")):
        scored_run(tmp_path / name, NAMES, state=state, sweep="width-2")
    scored_run(
        tmp_path / "other", NAMES, sweep="width-2", data={"path": "b.h5", "fingerprint": "e" * 64}
    )
    for sweep in ("width-2", None):
        assert [run.path.name for run in load_runs(None, sweep, None, tmp_path, None)] == [
            "second",
            "other",
        ]


def test_a_checkpoint_is_one_of_those_its_sweep_tried_from_wherever_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for width in (8, 16, 32):
        scored_run(tmp_path / f"w{width}", NAMES, width=width, sweep="width-2")
    (tmp_path / "w8" / "checkpoints").mkdir()
    assert (
        count_configurations_tried(str(tmp_path / "w8"))
        == count_configurations_tried(str(tmp_path / "w8" / "checkpoints" / "best.pt"))
        == 3
    )
    monkeypatch.chdir(tmp_path / "w8")
    assert count_configurations_tried(".") == count_configurations_tried("checkpoints/best.pt") == 3
