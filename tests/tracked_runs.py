"""Run folders as training leaves them, for what mirrors runs into MLflow; and what a store then holds of the only one."""

import json
import socket
from pathlib import Path
from typing import Any

from brainseg.tracking.client import connect, short_timeouts

# The files of a finished run that keeps its best checkpoint alone.
COMPLETE = {
    "SHA256SUMS",
    "checkpoints/best.pt",
    "code.diff",
    "config.yaml",
    "log.txt",
    "metrics.jsonl",
    "patients.csv",
    "pictures/curves.png",
    "pictures/overlays.png",
    "predictions.h5",
    "run.json",
    "slices.csv",
    "split.json",
    "status.json",
    "summary.json",
}
START = 1_700_000_000_000
LONG = "x" * 9000


def write_run(
    folder: Path,
    uri: str,
    epochs: int = 3,
    state: str = "running",
    uid: str = "uid-1",
    **record: Any,
) -> Path:
    """A run folder as training leaves it after so many epochs; val/dice is highest, first, at epoch 2."""
    tracked = {"uri": uri, "artifacts": "mlartifacts", "experiment": "brainseg"}
    split = {
        "name": "holdout",
        "sha256": "5" * 64,
        "train": 4,
        "validation": 2,
        "test": 2,
        "leaky": False,
    }
    data = {
        "name": "phantom",
        "path": "/data/phantom.h5",
        "fingerprint": "f" * 64,
        "patients": 8,
        "slices": 64,
    }
    run = {
        "uid": uid,
        "identity": "abc",
        "name": "depth=4",
        "created": START,
        "host": "box",
        "data": data,
        "split": split,
    }
    run |= {
        "code": {"version": "0.1", "commit": "c0ffee", "dirty": True},
        "device": {"asked": "auto", "got": "cpu"},
    }
    run |= {
        "overrides": ["model.depth=4"],
        "sweep": None,
        "job": None,
        "parameters": 161985,
        "tracking": tracked,
    }
    ended = None if state == "running" else START + 60_000
    status = {
        "state": state,
        "host": "box",
        "pid": 1,
        "started": START,
        "ended": ended,
        "error": "it broke" if state == "failed" else None,
    }
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
        files |= {
            "summary.json": json.dumps(
                {
                    "best": {"epoch": 2, "val/dice": 0.9},
                    "metrics": {"test/dice": 0.8, "test/hd95": None},
                }
            )
        }
        files |= {"patients.csv": "patient,dice\n", "slices.csv": "patient,slice\n"}
        files |= {"pictures/curves.png": "png", "checkpoints/best.pt": "weights"}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def row(epoch: int) -> dict[str, Any]:
    dice = 0.9 if epoch >= 2 else 0.5
    metrics = {
        "train/loss": 1 / epoch,
        "val/loss": 1 - dice,
        "val/dice": dice,
        "speed/epoch_seconds": 5.0,
    }
    return {"epoch": epoch, "step": 10 * epoch, "time": START + 5000 * epoch, "metrics": metrics}


def client(uri: str) -> Any:
    with short_timeouts(5):
        return connect(uri)


def the_run(uri: str) -> Any:
    """The only run of the store."""
    mlflow = client(uri)
    (found,) = mlflow.search_runs([mlflow.get_experiment_by_name("brainseg").experiment_id])
    return mlflow.get_run(found.info.run_id)


def points(uri: str, key: str) -> list[tuple[int, float, int]]:
    return sorted(
        (point.step, point.value, point.timestamp)
        for point in client(uri).get_metric_history(the_run(uri).info.run_id, key)
    )


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
