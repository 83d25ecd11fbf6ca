"""Real commands on a tiny phantom: train, resume, repeat, sweep, evaluate, MLflow."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tracked_runs import COMPLETE
from warm_processes import call, start

from brainseg.reports.predictions import read_predictions
from brainseg.tracking.contents import LEFT_OUT

SMALL = [
    "data.phantom.patients=10",
    "data.phantom.slices=8",
    "data.phantom.size=32",
    "model.depth=2",
    "model.width=4",
    "model.dropout=0.1",
    "epochs=2",
    "device=cpu",
    "checkpoint.keep=all",
]
CONTRACT = {
    "dice",
    "dice_median",
    "patients_missed",
    "loss",
    "iou",
    "precision",
    "recall",
    "dice_tumour_slices",
    "empty_slice_false_positives",
    "hd95_undefined",
    "nsd",
}
# Measured at the end of a run alone. The phantom has no spacing, and so nothing in 3-D.
AT_THE_END = ("hd95", "hd95_undefined", "nsd")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


def history(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            key: value
            for key, value in row["metrics"].items()
            if not key.startswith(("speed/", "system/"))
        }
        for row in rows
    ]


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A run by the command as it is typed, in a new process with nothing imported."""
    command = [sys.executable, "-m", "brainseg.train", *SMALL, "output=first"]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "first"


def test_a_run_leaves_what_it_promises(trained: Path) -> None:
    names = {
        path.relative_to(trained).as_posix()
        for path in trained.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    assert names == COMPLETE | {"checkpoints/last.pt", "checkpoints/previous.pt"}
    split = json.loads((trained / "split.json").read_text())
    patients = pd.read_csv(trained / "patients.csv")
    assert {
        role: sorted(name.rsplit("_", 1)[0] for name in part.patient)
        for role, part in patients.groupby("role")
    } == {"validation": split["validation"], "test": split["test"]}
    slices = pd.read_csv(trained / "slices.csv")
    of_patient = (
        slices.groupby("patient")[["truth_pixels", "predicted_pixels", "overlap"]]
        .sum()
        .loc[patients.patient]
    )
    assert of_patient.truth_pixels.tolist() == patients.tumour_pixels.tolist()
    dice = 2 * of_patient.overlap / (of_patient.truth_pixels + of_patient.predicted_pixels)
    assert dice.tolist() == pytest.approx(patients.dice.tolist(), abs=1e-6)
    summary = json.loads((trained / "summary.json").read_text())
    assert {f"{part}/{name}" for part in ("val", "test") for name in CONTRACT} <= set(
        summary["metrics"]
    )
    assert summary["metrics"]["test/dice"] == pytest.approx(
        patients[patients.role == "test"].dice.mean(), abs=1e-6
    )
    best = max(history(trained), key=lambda row: row["val/dice"])
    assert {
        name: value
        for name, value in summary["metrics"].items()
        if name.startswith("val/") and name.removeprefix("val/") not in AT_THE_END
    } == {name: value for name, value in best.items() if name.startswith("val/")}, (
        "the scores of best.pt are those that selected it, and HD95 is measured at the end alone"
    )


def test_mlflow_has_it_all(folder: Path, trained: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("brainseg").experiment_id])
    run = next(run for run in runs if run.data.tags["folder"] == str(trained))
    assert run.info.status == "FINISHED"
    for name in CONTRACT - LEFT_OUT:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, f"val/{name}")]
        assert steps == ([run.data.metrics["best/epoch"]] if name in AT_THE_END else [0, 1])
        assert f"test/{name}" in run.data.metrics
    assert not any(metric.split("/")[1] in LEFT_OUT for metric in run.data.metrics)
    assert run.data.metrics["system/cpu_cores"] > 0
    assert run.data.params["model.depth"] == "2"
    assert run.inputs.dataset_inputs[0].dataset.digest
    assert [model.name for model in client.search_logged_models([run.info.experiment_id])]
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {
        "config.yaml",
        "split.json",
        "patients.csv",
        "summary.json",
        "pictures",
        "log.txt",
    } <= artifacts


def test_the_same_command_twice_is_the_same_run_also_inside_a_sweep(
    folder: Path, trained: Path
) -> None:
    call(folder, "train", *SMALL, "output=second", "tracking=none")
    assert history(folder / "second") == history(trained)
    shown = call(folder, "train", "-m", *SMALL, "seed=5,6,0", "output=sweep", "tracking=none")
    assert "3 jobs: 3 finished, 0 skipped, 0 failed" in shown
    runs = {
        json.loads((path.parent / "run.json").read_text())["job"]: path.parent
        for path in folder.glob("sweep/*/run.json")
    }
    assert history(runs[2]) == history(trained)
    assert json.loads((runs[2] / "run.json").read_text())["label"] == "seed=0", (
        "in MLflow a job is named by what was swept"
    )
    assert history(runs[0]) != history(trained)
    assert "3 jobs: 0 finished, 3 skipped, 0 failed" in call(
        folder, "train", "-m", *SMALL, "seed=5,6,0", "output=sweep", "tracking=none"
    )


def test_a_choosing_sweep_sees_no_test_patient(folder: Path) -> None:
    call(
        folder,
        "train",
        "-m",
        *SMALL,
        "epochs=1",
        "model.width=2,3",
        "output=widths",
        "tracking=none",
    )
    for path in folder.glob("widths/*/summary.json"):
        assert not any(name.startswith("test/") for name in json.loads(path.read_text())["metrics"])
        assert set(pd.read_csv(path.parent / "patients.csv").role) == {"validation"}
    chosen = next(folder.glob("widths/unet-*"))
    said = call(
        folder, "evaluate", f"checkpoint={chosen}", *SMALL[:3], "device=cpu", "output=tested"
    )
    assert "one of 2 configurations of its sweep" in said
    assert json.loads((folder / "tested" / "summary.json").read_text())["chosen_among"] == 2


def test_evaluate_equals_the_runs_own_scores(folder: Path, trained: Path) -> None:
    call(
        folder,
        "evaluate",
        "checkpoint=first",
        *SMALL[:3],
        "device=cpu",
        "parts=[validation,test]",
        "output=scores",
    )
    assert (folder / "scores" / "patients.csv").read_bytes() == (
        trained / "patients.csv"
    ).read_bytes()
    patient = pd.read_csv(trained / "patients.csv").patient[0]
    kept = read_predictions(trained / "predictions.h5", patient)
    assert kept.probability is None, "probabilities are kept on request only"
    assert (kept.mask == read_predictions(folder / "scores" / "predictions.h5", patient).mask).all()
    whole = [
        "checkpoint=first/checkpoints/best.pt",
        *SMALL[:3],
        "device=cpu",
        "split=all",
        "output=all",
        "predictions=probabilities",
    ]
    everyone = call(folder, "evaluate", *whole)
    assert "10 patients by their role in training: " in everyone
    assert pd.read_csv(folder / "all" / "patients.csv").role.value_counts().to_dict() == {
        "train": 7,
        "validation": 2,
        "test": 1,
    }
    for row in pd.read_csv(folder / "all" / "patients.csv").itertuples():
        kept = read_predictions(folder / "all" / "predictions.h5", row.patient)
        assert kept.role == row.role and kept.mask.sum() == row.predicted_pixels
        assert np.abs((kept.probability[:, 0] >= 128) != kept.mask).sum() == 0, (
            "0.5 lies between 127/255 and 128/255"
        )


def test_a_signal_saves_and_resume_goes_on_to_the_same_bits(folder: Path, trained: Path) -> None:
    long = [*SMALL, "epochs=12", "tracking=none"]
    process = start(folder, "train", *long, "output=killed")
    deadline = time.monotonic() + 200
    while not (folder / "killed" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    said = process.finish(143, seconds=60)
    assert json.loads((folder / "killed" / "status.json").read_text())["state"] == "killed"
    assert "with resume=auto to resume" in said
    assert 1 <= len(history(folder / "killed")) < 12
    call(folder, "train", "resume=killed")
    call(folder, "train", *long, "output=unharmed")
    assert history(folder / "killed") == history(folder / "unharmed")
    assert (folder / "killed" / "patients.csv").read_bytes() == (
        folder / "unharmed" / "patients.csv"
    ).read_bytes()


def test_a_finished_run_is_extended_to_the_same_bits(folder: Path, trained: Path) -> None:
    call(
        folder, "train", "-m", *SMALL, "scheduler=none", "epochs=3", "output=long", "tracking=none"
    )
    call(folder, "train", *SMALL, "scheduler=none", "epochs=2", "output=short", "tracking=none")
    call(folder, "train", "resume=short", "epochs=3")
    assert history(folder / "short") == history(next(folder.glob("long/*/run.json")).parent)


def test_an_extension_that_is_refused_changes_nothing(folder: Path, trained: Path) -> None:
    """Of a finished run, whose cosine ended at 0; it had become one that failed, and another start of its sweep would have deleted it."""
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    for further, why in (("epochs=9", "another curve"), ("max_minutes=3", "extend it by epochs")):
        assert why in call(folder, "train", "resume=first", further, code=2)
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_run_says_until_when_its_images_are_of_half_the_size(folder: Path, trained: Path) -> None:
    shown = call(
        folder, "train", *SMALL, "half_resolution=0.6", "epochs=5", "output=half", "tracking=none"
    )
    steps = json.loads((folder / "half" / "metrics.jsonl").read_text().splitlines()[2])["step"]
    assert (
        f"half size:    the first {steps} steps, into epoch 2, use images of half the size;"
        in shown
    )
    assert "half size:" not in (trained / "log.txt").read_text()


def test_a_finished_run_is_repeated_from_its_folder(folder: Path, trained: Path) -> None:
    call(folder, "train", "from=first", "output=again", "tracking=none")
    assert history(folder / "again") == history(trained)
    shown = call(folder, "train", "from=first", "resume=first", "seed=9", code=2)
    assert "seed was the default, is 9" in shown


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.depth=9", "data.phantom.size=32"], "model.depth=9"),
        (["data.path=none.h5"], "data.path=none.h5: no such file"),
        (
            ["model.depth=11", "model.growth=2", "data.phantom.size=1024"],
            "parameters need more than",
        ),
        (["device=cuda"], "no CUDA or ROCm device"),
        (["data.phantom.patients=4"], "at least 7 are needed"),
        (["optimizer.options.nothing=1"], "takes no such option"),
        (["loss.name=none"], "loss.name=none: no such loss"),
        (
            ["model=monai", "model.name=UNETR", "half_resolution=0.5"],
            "half_resolution=0.5: model.name=UNETR takes images of one size",
        ),
        (
            ["model=attention_unet", "data.phantom.size=100"],
            "model.name=AttentionUnet: takes no images of 100x100 pixels",
        ),
        (
            ["model=attention_unet", "data.phantom.size=40", "half_resolution=0.5"],
            "takes no images of 20x20 pixels",
        ),
        (["tracking.uri=file:///x"], "tracking.uri"),
    ],
)
def test_what_data_or_machine_rule_out_is_refused_and_nothing_created(
    tmp_path: Path, overrides: list[str], words: str
) -> None:
    shown = call(tmp_path, "train", *overrides, code=2)
    assert words in shown
    assert shown.count("\n") == 1, shown
    assert list(tmp_path.iterdir()) == []
