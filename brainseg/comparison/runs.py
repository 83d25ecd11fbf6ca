"""The run folders of a comparison: selection, configuration and scores of each."""

import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from brainseg.config import TrainConfig, flatten
from brainseg.reports.tables import read_scores
from brainseg.runs.identity import (
    REPETITION_SETTINGS,
    drop_non_identity,
    non_default_settings,
    training_budget,
)
from brainseg.runs.run_folder import RunFolder
from brainseg.runs.sweep_record import sweep_run_folders

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ScoredRun:
    """A run folder, read for comparison."""

    path: Path
    # Names of settings that do not distinguish configurations, see `_pool_devices`.
    ignored: tuple[str, ...] = ()

    @cached_property
    def folder(self) -> RunFolder:
        return RunFolder(self.path)

    @cached_property
    def facts(self) -> dict[str, Any]:
        return self.folder.facts

    @cached_property
    def config(self) -> TrainConfig:
        return self.folder.config

    @property
    def state(self) -> str:
        """Return `finished`, or the state of a run without scores.

        The other states are new, running, failed, killed and interrupted.
        """
        return self.folder.state

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return every setting that changes results, by dotted name."""
        settings = drop_non_identity(flatten(asdict(self.config)), self.ignored)
        return settings | self.additional_settings

    @cached_property
    def additional_settings(self) -> dict[str, Any]:
        """Return what distinguishes configurations and is no setting of `train`."""
        return {}

    @property
    def trained_runs(self) -> "list[ScoredRun]":
        """Return the runs that trained what was scored."""
        return [self]

    @property
    def evaluate_arguments(self) -> list[str]:
        """Return the overrides of `evaluate` that score the same network in the same way.

        No data file needs to be named, because the checkpoint contains its name.
        """
        return [f"checkpoint={self.path}"]

    @property
    def budget(self) -> tuple[str, float]:
        """Return the setting that limits the training, and its value."""
        return training_budget(self.config)

    @property
    def start_time(self) -> int:
        """Return the start of the run in milliseconds since 1970."""
        return self.folder.status["started"]

    @property
    def end_time(self) -> int:
        return self.folder.status["ended"]

    @cached_property
    def configuration(self) -> str:
        """Return the settings that differ from the defaults, except seed and fold, as JSON text.

        The text is equal for runs that are repeats of each other.
        """
        ignored = (*REPETITION_SETTINGS, *self.ignored)
        settings = drop_non_identity(non_default_settings(self.config), ignored)
        return json.dumps(sorted((settings | self.additional_settings).items()))

    @property
    def repeat(self) -> tuple[Any, ...]:
        """Return data, configuration, seed and fold.

        They are equal for runs that repeat one another, for example after a change of the code or
        with rerun=true.
        """
        return (
            self.facts["data"]["fingerprint"],
            self.configuration,
            self.config.seed,
            self.settings.get("split.fold"),
        )

    @cached_property
    def patients(self) -> "pd.DataFrame":
        """Return patients.csv, a row for each scored patient. `role` is validation or test."""
        return read_scores(self.path / "patients.csv")

    @cached_property
    def slices(self) -> "pd.DataFrame | None":
        """Return slices.csv, a row for each slice, or None for runs of older versions."""
        path = self.path / "slices.csv"
        return read_scores(path) if path.is_file() else None

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl, one per epoch."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    @property
    def seconds(self) -> float:
        """Return the seconds of all epochs in metrics.jsonl, training and validation."""
        return sum(row["metrics"]["speed/epoch_seconds"] for row in self.history)

    def median_speed(self, name: str) -> float:
        """Return the median over the epochs of speed/`name`, or NaN if it was not measured."""
        key = f"speed/{name}"
        values = [row["metrics"][key] for row in self.history if key in row["metrics"]]
        return median(values) if values else math.nan

    @property
    def memory(self) -> float:
        """Return the peak memory in 10^9 bytes, that of the GPU if the run had one.

        NaN if the run did not measure it, or if an earlier job of its process needed more.
        """
        for name in ("system/gpu_memory_gb", "system/memory_gb"):
            values = [row["metrics"][name] for row in self.history if name in row["metrics"]]
            if values:
                return max(values)
        return math.nan


def count_configurations_tried(checkpoint: str) -> int:
    """Return how many configurations were tried in the sweep of the run that wrote `checkpoint`.

    The test score of that run is the score of a network selected among as many. The count is 1 for
    a run outside a sweep, and for a checkpoint in MLflow whose run folder is not on this machine.
    """
    if checkpoint.startswith(("runs:/", "models:/")):
        from brainseg.tracking.lookup import folder_of_checkpoint

        run_folder = folder_of_checkpoint(checkpoint)
        if run_folder is None:
            return 1
        path = run_folder
    else:
        path = Path(checkpoint).resolve()
    # `checkpoint` is a run folder, or a file in its folder checkpoints/.
    folder = path if (path / "run.json").is_file() else path.parent.parent
    sweep = RunFolder(folder).facts.get("sweep") if (folder / "run.json").is_file() else None
    if not sweep:
        return 1
    return len({ScoredRun(path).configuration for path in sweep_run_folders(sweep, folder.parent)})
