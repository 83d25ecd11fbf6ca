"""Run folders as training leaves them, with the scores that a test gives them: for what compares runs."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from brainseg.comparison.runs import ScoredRun
from brainseg.config import DeviceConfig, KFoldConfig, TrainConfig, UNetConfig

START = 1_700_000_000_000
COLUMNS = {
    "slices": 2,
    "tumour_pixels": 100,
    "iou": 0.5,
    "precision": 0.5,
    "recall": 0.5,
    "hd95": 3.0,
    "dice_tumour_slices": 0.5,
    "tumour_slices": 1,
    "predicted_pixels": 90,
    "empty_slices": 1,
    "empty_slice_false_positives": 0,
    "loss": 0.3,
}


def scored_run(
    folder: Path,
    test: Mapping[str, float],
    validation: Mapping[str, float] | None = None,
    state: str = "finished",
    seed: int = 0,
    fold: int = 0,
    width: int = 8,
    max_minutes: float | None = None,
    threads: int | None = None,
    subjects: Mapping[str, str] | None = None,
    **facts: Any,
) -> ScoredRun:
    """A run of split=kfold whose patients scored these Dice; `facts` go into run.json.

    `subjects` has the patient of each volume, if patients have several.
    """
    config = TrainConfig(
        seed=seed,
        split=KFoldConfig(fold=fold),
        model=UNetConfig(width=width),
        max_minutes=max_minutes,
        device=DeviceConfig(threads=threads),
    )
    rows = [
        {"patient": name, "role": role, "dice": dice}
        for role, part in (("validation", validation or {"VAL_X_0": 0.5}), ("test", test))
        for name, dice in part.items()
    ]
    folder.mkdir(parents=True)
    number = len(list(folder.parent.glob("*/run.json")))
    record = {
        "uid": f"{number:032x}",
        "name": f"unet-{folder.name}",
        "created": START + number,
        "parameters": 1000 * width,
        "tracking": None,
        "data": {"path": str(folder / "none.h5"), "fingerprint": "f" * 64},
        "split": {"leaky": False},
        "code": {"sha256": "c" * 64},
        "device": {"got": "cpu"},
        "overrides": [],
        "sweep": None,
    }
    (folder / "run.json").write_text(json.dumps(record | facts))
    (folder / "config.yaml").write_text(
        OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))
    )
    error = "it broke" if state == "failed" else None
    status = {
        "state": state,
        "host": "elsewhere",
        "pid": 1,
        "started": START,
        "ended": START + 9000,
        "error": error,
    }
    (folder / "status.json").write_text(json.dumps(status))
    history = [
        {"epoch": epoch, "metrics": {"val/dice": 0.1 * epoch, "speed/epoch_seconds": 2.0}}
        for epoch in range(3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    if state == "finished":
        table = pd.DataFrame(rows).assign(**COLUMNS)
        if subjects is not None:
            table["subject"] = [subjects.get(name, name) for name in table.patient]
        table.to_csv(folder / "patients.csv", index=False)
        slices = [
            {
                "patient": row["patient"],
                "slice": at,
                "truth_pixels": 100 * at,
                "predicted_pixels": 90 * at,
                "overlap": 80 * at,
            }
            for row in rows
            for at in range(2)
        ]
        pd.DataFrame(slices).to_csv(folder / "slices.csv", index=False)
    return ScoredRun(folder)
