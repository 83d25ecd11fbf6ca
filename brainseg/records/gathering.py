"""Which run folders a comparison means, and what each of them holds."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainseg.config import TrainConfig, flatten
from brainseg.errors import check
from brainseg.records.folders import locate
from brainseg.records.identity import differing, without_identity
from brainseg.records.run import RunFolder
from brainseg.records.sweep_record import jobs_of

if TYPE_CHECKING:
    import pandas as pd

REPEATED = ("seed", "split.fold")  # runs that differ in these alone are repeats of one configuration


@dataclass(frozen=True)
class Run:
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
        return without_identity(flatten(asdict(self.config)))

    @cached_property
    def configuration(self) -> str:
        """Equal for runs that are repeats of each other: what differs from the defaults, seed and fold aside."""
        return json.dumps(sorted(without_identity(differing(self.config), REPEATED).items()))

    @cached_property
    def patients(self) -> "pd.DataFrame":
        """patients.csv, one row a patient scored; `role` is validation or test."""
        import pandas as pd

        return pd.read_csv(self.path / "patients.csv")

    def slices_of(self, role: str) -> "pd.DataFrame | None":
        """slices.csv of the patients of a role; None for a run that was made before there was one."""
        import pandas as pd

        path = self.path / "slices.csv"
        found = pd.read_csv(path) if path.is_file() else None
        return found if found is None else found[found.patient.isin(self.patients.patient[self.patients.role == role])]

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one an epoch."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    @property
    def seconds(self) -> float:
        """Time of all epochs, training and validation."""
        return sum(row["metrics"]["speed/epoch_seconds"] for row in self.history)


def gather(runs: Sequence[str] | None, sweep: str | None, experiment: str | None, root: str | Path, uri: str | None) -> list[Run]:
    """The runs asked for, in the order given or begun, each once. Raises RequestError where there is none.

    `runs` are folders, folders of folders, or MLflow ids; `sweep` is a sweep's id; `experiment` an MLflow
    experiment. Without any, all runs below `root`.
    """
    if runs:
        paths = [path for run in runs for path in (_below(Path(run)) or [locate(run, "runs")])]
    elif sweep is not None:
        made = sorted(map(Run, jobs_of(sweep, Path(root))), key=lambda run: run.facts["created"])
        latest = {(run.configuration, run.config.seed, run.settings.get("split.fold")): run.path for run in made}
        paths = list(latest.values())  # a job repeated, or run again under other code, counts once
    elif experiment is not None:
        from brainseg.records.mlflow_lookup import folders_of

        paths = folders_of(experiment, uri)
    else:
        paths = _below(Path(root))
        check(bool(paths), "root", root, "no run is below it", "name runs=[A,B], sweep=ID or tracking.experiment=NAME")
    return [Run(path) for path in dict.fromkeys(path.resolve() for path in paths)]


def chosen_among(checkpoint: str) -> int:
    """How many configurations the sweep of a checkpoint's run tried, 1 without one: its test score is that of the one chosen."""
    folder = Path(checkpoint) if (Path(checkpoint) / "run.json").is_file() else Path(checkpoint).parent.parent
    sweep = RunFolder(folder).facts["sweep"] if (folder / "run.json").is_file() else None
    return len({Run(path).configuration for path in jobs_of(sweep, folder.parent)}) if sweep else 1


def _below(path: Path) -> list[Path]:
    """Run folders at or below `path`, the oldest first."""
    found = [path] if (path / "run.json").is_file() else [file.parent for file in path.glob("*/run.json")]
    return sorted(found, key=lambda one: (RunFolder(one).facts["created"], one.name))
