"""The search for real, in processes of its own on a tiny phantom."""

import os
import signal
import time
from pathlib import Path

import pytest
from searching import LR, TINY, call, planned, states, studied
from warm_processes import Command, start

from brainseg import search
from brainseg.runs.run_folder import RunFolder
from brainseg.tuning.study import Study

pytestmark = pytest.mark.usefixtures("empty_folder")
BAR = [
    "optimizer.lr=0.001,0.002,0.003,0.004,0.005,1e30",
    "inference.threshold=0.2,0.25,0.3,0.35,1.0",
]  # 1e30 fails, 1.0 finds nothing


def begin(folder: Path, *arguments: str) -> Command:
    return start(folder, "search", *TINY, *arguments)


def test_eight_trials_with_one_failing_and_one_pruned_go_on_to_twelve(empty_folder: Path) -> None:
    command = [
        *BAR,
        "tracking=none",
        "study=bar",
        "prune_after=2",
        "prune_warmup=1",
        "sampler_seed=22",
    ]
    shown = begin(empty_folder, *command, "trials=8").finish(1)
    eight = studied("bar")
    assert sorted(states("bar")) == ["COMPLETE"] * 6 + ["FAIL", "PRUNED"]
    assert "study bar: 8 trials: 6 finished, 1 pruned, 1 failed" in shown
    (failed,) = (trial for trial in eight if trial.state.name == "FAIL")
    assert (
        failed.params["optimizer.lr"] == "1e+30" and "NonFiniteError" in failed.user_attrs["reason"]
    )
    assert "NonFiniteError" in Path(failed.user_attrs["folder"], "log.txt").read_text()
    (pruned,) = (trial for trial in eight if trial.state.name == "PRUNED")
    status = RunFolder(pruned.user_attrs["folder"]).status
    assert status["state"] == "killed" and status["error"].startswith(
        "pruned after epoch 0: val/dice 0.0000"
    )

    begin(empty_folder, *command, "trials=12").finish(0, 1)
    twelve = studied("bar")
    assert len(twelve) == 12 and [trial.params for trial in twelve[:8]] == [
        trial.params for trial in eight
    ]
    assert Path("runs/search/bar/search.png").read_bytes().startswith(b"\x89PNG")
    folders = {trial.user_attrs["folder"] for trial in twelve}
    assert {RunFolder(folder).facts["sweep"] for folder in folders} == {"bar"}
    assert {trial.user_attrs["uid"] for trial in twelve} == {
        RunFolder(folder).facts["uid"] for folder in folders
    }
    for trial in twelve:
        if trial.state.name == "COMPLETE":
            for name, word in (("summary.json", "test/"), ("patients.csv", ",test,")):
                assert word not in Path(trial.user_attrs["folder"], name).read_text()


@pytest.mark.slow
def test_mlflow_says_that_a_run_was_pruned(empty_folder: Path, monkeypatch) -> None:
    from mlflow import MlflowClient

    study = Study(Path("runs/search/typed.db"), plan_of(BAR).settings)
    for threshold in ("0.2", "0.25", "1.0"):
        study.optuna.enqueue_trial({"optimizer.lr": "0.001", "inference.threshold": threshold})
    assert call(monkeypatch, *TINY, *BAR, "trials=3", "prune_after=2", "prune_warmup=1") == 0
    client = MlflowClient(f"sqlite:///{empty_folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("brainseg").experiment_id
    runs = sorted(
        client.search_runs([experiment], "tags.sweep = 'typed'"),
        key=lambda run: RunFolder(Path(run.data.tags["folder"])).facts["job"],
    )
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED", "KILLED"]
    assert [run.data.tags["brainseg.uid"] for run in runs] == [
        trial.user_attrs["uid"] for trial in studied()
    ]
    assert (
        runs[2].data.tags["error"].startswith("pruned after epoch 0")
        and runs[0].info.run_name == "lr=0.001 threshold=0.2"
    )


def plan_of(varied: list[str]) -> search.Plan:
    return planned(*TINY, *varied)


@pytest.mark.slow
def test_processes_that_share_a_study_make_exactly_its_trials_though_one_is_killed(
    empty_folder: Path,
) -> None:
    command = [LR, "tracking=none", "study=shared", "trials=10", "prune=none", "epochs=6"]
    processes = [begin(empty_folder, *command) for _ in range(3)]
    while (
        not (empty_folder / "runs/search/shared.db").exists()
        or states("shared").count("COMPLETE") < 2
    ):
        time.sleep(0.2)
    os.kill(processes[0].pid, signal.SIGKILL)
    processes[0].finish(-signal.SIGKILL)
    for process in processes[1:]:
        process.finish(0)
    begin(empty_folder, *command).finish(0)
    assert states("shared").count("COMPLETE") == 10
    assert set(states("shared")) <= {"COMPLETE", "FAIL"} and states("shared").count("FAIL") <= 1
    assert (
        len(
            {
                trial.user_attrs["folder"]
                for trial in studied("shared")
                if trial.state.name == "COMPLETE"
            }
        )
        == 10
    )


def test_the_file_lies_in_folders_of_any_name(empty_folder: Path) -> None:
    database = empty_folder / "a?b #%20c" / "s.db"
    for _ in range(2):
        Study(database, {"epochs": "4"})
    assert database.is_file() and [path.name for path in empty_folder.iterdir()] == ["a?b #%20c"]
