"""The run folders of a comparison: selection, configuration and scores of each."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from brainseg.config import TrainConfig, flatten
from brainseg.core.errors import check
from brainseg.reports.tables import read_scores
from brainseg.runs.find import resolve_run
from brainseg.runs.identity import REPETITION_SETTINGS, drop_non_identity, non_default_settings
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
        return drop_non_identity(flatten(asdict(self.config)), self.ignored)

    @cached_property
    def configuration(self) -> str:
        """Return the settings that differ from the defaults, except seed and fold, as JSON text.

        The text is equal for runs that are repeats of each other.
        """
        ignored = (*REPETITION_SETTINGS, *self.ignored)
        return json.dumps(
            sorted(drop_non_identity(non_default_settings(self.config), ignored).items())
        )

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

    def slices_of(self, role: str) -> "pd.DataFrame | None":
        """Return the rows of slices.csv for the patients of `role`, or None without that file.

        Runs made by older versions have no slices.csv.
        """
        path = self.path / "slices.csv"
        if not path.is_file():
            return None
        slices = read_scores(path)
        return slices[slices.patient.isin(self.patients.patient[self.patients.role == role])]

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


def load_runs(
    runs: Sequence[str] | None,
    sweep: str | None,
    experiment: str | None,
    root: str | Path,
    uri: str | None,
) -> list[ScoredRun]:
    """Return the requested runs without duplicates.

    `runs` are run folders, folders of run folders, or MLflow ids. `sweep` is the id of a sweep and
    `experiment` the name of an MLflow experiment. Without any of the three, all runs below `root`
    are loaded. Runs named in `runs` keep their order and may repeat one another. Otherwise only one
    of the runs that repeat one another is kept, and the oldest runs come first.
    Raises RequestError if there is no run.
    """
    if runs:
        paths = [path for run in runs for path in (_below(Path(run)) or [resolve_run(run, "runs")])]
    elif sweep is not None:
        paths = sweep_run_folders(sweep, Path(root))
    elif experiment is not None:
        from brainseg.tracking.lookup import folders_of_experiment

        paths = folders_of_experiment(experiment, uri)
    else:
        paths = _below(Path(root))
        check(
            bool(paths),
            "root",
            root,
            "no run is below it",
            "name runs=[A,B], sweep=ID or tracking.experiment=NAME",
        )
    # One folder may be reached by several names, and its patients would count twice.
    loaded = _pool_devices(
        [ScoredRun(path) for path in dict.fromkeys(path.resolve() for path in paths)]
    )
    return loaded if runs else _drop_repeats(loaded)


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


def _pool_devices(runs: list[ScoredRun]) -> list[ScoredRun]:
    """Return the runs, without their device settings where these only separate folds and seeds.

    Folds that were trained on several machines, each under its own device settings, are one
    configuration. Where the same fold and seed finished on several devices, or where only one
    device has a finished run, the devices are compared.
    """
    pooled = {run: replace(run, ignored=("device",)) for run in runs}
    groups: dict[str, list[ScoredRun]] = {}
    for run, without_device in pooled.items():
        groups.setdefault(without_device.configuration, []).append(run)

    def compares_devices(group: list[ScoredRun]) -> bool:
        finished = [run for run in group if run.state == "finished"]
        # Pooling replaces a failed run by a finished one of another device. If that is the only
        # device with scores, nobody would be told that the others failed.
        if len({run.configuration for run in finished}) < 2:
            return True
        return len({pooled[run].repeat for run in finished}) < len({run.repeat for run in finished})

    mixed = [group for group in groups.values() if len({run.configuration for run in group}) > 1]
    pools = [group for group in mixed if not compares_devices(group)]
    if not pools:
        return runs
    # Beside a comparison of devices, a group on a single device is named by it.
    affected = pools if len(pools) < len(mixed) else groups.values()
    chosen = {run for group in affected for run in group}
    return [pooled[run] if run in chosen else run for run in runs]


def _drop_repeats(runs: Sequence[ScoredRun]) -> list[ScoredRun]:
    """Return one of the runs that repeat one another: the last finished run, else the last run."""
    selected: dict[tuple[Any, ...], ScoredRun] = {}
    for run in sorted(runs, key=lambda run: run.facts["created"]):
        if (
            run.state == "finished"
            or run.repeat not in selected
            or selected[run.repeat].state != "finished"
        ):
            selected[run.repeat] = run
    return list(selected.values())


def _below(path: Path) -> list[Path]:
    """Return the run folders at or directly below `path`, the oldest first."""
    is_run = (path / "run.json").is_file()
    folders = [path] if is_run else [file.parent for file in path.glob("*/run.json")]
    return sorted(folders, key=lambda folder: (RunFolder(folder).facts["created"], folder.name))
