"""Which run folders a comparison means, and what each of them holds."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainseg.config import TrainConfig, flatten
from brainseg.core.errors import check
from brainseg.reports.tables import read_scores
from brainseg.runs.find import resolve_run
from brainseg.runs.identity import drop_non_identity, non_default_settings
from brainseg.runs.run_folder import RunFolder
from brainseg.runs.sweep_record import jobs_of

if TYPE_CHECKING:
    import pandas as pd

REPEATED = (
    "seed",
    "split.fold",
)  # runs that differ in these alone are repeats of one configuration


@dataclass(frozen=True)
class ScoredRun:
    """A run folder, read for comparison."""

    path: Path

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
        """finished, or why it has no scores: new, running, failed, killed, interrupted."""
        return self.folder.state

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting that makes numbers, by dotted name."""
        return drop_non_identity(flatten(asdict(self.config)))

    @cached_property
    def configuration(self) -> str:
        """Equal for runs that are repeats of each other: what differs from the defaults, seed and fold aside."""
        return json.dumps(
            sorted(drop_non_identity(non_default_settings(self.config), REPEATED).items())
        )

    @property
    def repeat(self) -> tuple[Any, ...]:
        """Equal for runs that are the same question asked again: as after a change of the code, or with rerun=true."""
        return (
            self.facts["data"]["fingerprint"],
            self.configuration,
            self.config.seed,
            self.settings.get("split.fold"),
        )

    @cached_property
    def patients(self) -> "pd.DataFrame":
        """patients.csv, one row a patient scored; `role` is validation or test."""
        return read_scores(self.path / "patients.csv")

    def slices_of(self, role: str) -> "pd.DataFrame | None":
        """slices.csv of the patients of a role; None for a run that was made before there was one."""
        path = self.path / "slices.csv"
        found = read_scores(path) if path.is_file() else None
        return (
            found
            if found is None
            else found[found.patient.isin(self.patients.patient[self.patients.role == role])]
        )

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one an epoch."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    @property
    def seconds(self) -> float:
        """Time of all epochs, training and validation."""
        return sum(row["metrics"]["speed/epoch_seconds"] for row in self.history)


def load_runs(
    runs: Sequence[str] | None,
    sweep: str | None,
    experiment: str | None,
    root: str | Path,
    uri: str | None,
) -> list[ScoredRun]:
    """The runs asked for, in the order given or begun, each once. Raises RequestError where there is none.

    `runs` are folders, folders of folders, or MLflow ids; `sweep` is a sweep's id; `experiment` an MLflow
    experiment. Without any, all runs below `root`. But for `runs`, of those that repeat one another one is taken.
    """
    if runs:
        paths = [path for run in runs for path in (_below(Path(run)) or [resolve_run(run, "runs")])]
    elif sweep is not None:
        paths = jobs_of(sweep, Path(root))
    elif experiment is not None:
        from brainseg.tracking.lookup import folders_of

        paths = folders_of(experiment, uri)
    else:
        paths = _below(Path(root))
        check(
            bool(paths),
            "root",
            root,
            "no run is below it",
            "name runs=[A,B], sweep=ID or tracking.experiment=NAME",
        )
    found = [ScoredRun(path) for path in dict.fromkeys(path.resolve() for path in paths)]
    return found if runs else _each_once(found)


def count_configurations_tried(checkpoint: str) -> int:
    """How many configurations the sweep of a checkpoint's run tried, 1 without one: its test score is that of the one chosen.

    1 also for a checkpoint in MLflow whose run folder is not on this machine.
    """
    if checkpoint.startswith(("runs:/", "models:/")):
        from brainseg.tracking.lookup import folder_behind

        found = folder_behind(checkpoint)
        if found is None:
            return 1
        path = found
    else:
        path = Path(checkpoint).resolve()
    folder = path if (path / "run.json").is_file() else path.parent.parent
    sweep = RunFolder(folder).facts.get("sweep") if (folder / "run.json").is_file() else None
    return (
        len({ScoredRun(path).configuration for path in jobs_of(sweep, folder.parent)})
        if sweep
        else 1
    )


def _each_once(runs: Sequence[ScoredRun]) -> list[ScoredRun]:
    """Of runs that repeat one another the last that finished, else the last."""
    kept: dict[tuple[Any, ...], ScoredRun] = {}
    for run in sorted(runs, key=lambda run: run.facts["created"]):
        if (
            run.state == "finished"
            or run.repeat not in kept
            or kept[run.repeat].state != "finished"
        ):
            kept[run.repeat] = run
    return list(kept.values())


def _below(path: Path) -> list[Path]:
    """Run folders at or below `path`, the oldest first."""
    found = (
        [path]
        if (path / "run.json").is_file()
        else [file.parent for file in path.glob("*/run.json")]
    )
    return sorted(found, key=lambda one: (RunFolder(one).facts["created"], one.name))
