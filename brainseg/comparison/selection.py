"""Selection of the runs and evaluations of a comparison."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from brainseg.comparison.evaluations import ScoredEvaluation, is_evaluation
from brainseg.comparison.runs import ScoredRun
from brainseg.core.errors import check
from brainseg.runs.find import resolve_run
from brainseg.runs.run_folder import RunFolder
from brainseg.runs.sweep_record import sweep_run_folders


def load_runs(
    runs: Sequence[str] | None,
    sweep: str | None,
    experiment: str | None,
    root: str | Path,
    uri: str | None,
) -> list[ScoredRun]:
    """Return the requested runs without duplicates.

    `runs` are folders of runs or evaluations, parent folders of several, or MLflow ids. `sweep` is
    the id of a sweep and `experiment` the name of an MLflow experiment. Without any of the three,
    all runs below `root` are loaded. Runs named in `runs` keep their order and may repeat one
    another. Otherwise only one of the runs that repeat one another is kept, and the oldest runs
    come first.
    Raises RequestError if there is no run.
    """
    if runs:
        paths = [path for run in runs for path in _find_folders(run)]
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
        [open_scored(path) for path in dict.fromkeys(path.resolve() for path in paths)]
    )
    return loaded if runs else _drop_repeats(loaded)


def open_scored(path: Path) -> ScoredRun:
    """Return the run or the evaluation in a folder."""
    return ScoredEvaluation(path) if is_evaluation(path) else ScoredRun(path)


def find_folder(name: str, setting: str) -> Path:
    """Return the folder of the run or evaluation `name`, which `setting` names.

    Raises RequestError if there is none.
    """
    return Path(name) if is_evaluation(Path(name)) else resolve_run(name, setting)


def _find_folders(name: str) -> list[Path]:
    """Return the folders of runs and evaluations at or directly below `name`.

    Raises RequestError if there is none.
    """
    path = Path(name)
    if (path / "run.json").is_file() or is_evaluation(path):
        return [path]
    return [*_below(path), *sorted(filter(is_evaluation, path.glob("*/")))] or [
        resolve_run(name, "runs")
    ]


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
