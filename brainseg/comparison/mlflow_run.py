"""The MLflow run of a comparison.

Pooled scores are its metrics. Tables, pictures and the report are its artifacts. Its description
links to the runs compared.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from brainseg.comparison.compare import Comparison
from brainseg.comparison.report import headline
from brainseg.comparison.runs import ScoredRun
from brainseg.core.errors import shorten_error
from brainseg.reports.tables import format_interval
from brainseg.tracking.client import (
    add_layout,
    connect,
    describe_charts,
    experiment_id,
    run_link,
    short_timeouts,
    store_of,
)
from brainseg.tracking.refusals import RefusedError, remedy_of
from brainseg.tracking.result_run import (
    SECONDS,
    Result,
    begin_run,
    find_candidates,
    picture_link,
    typed_command,
    write_run,
)
from brainseg.tracking.runs import find_run, mirror_among
from brainseg.tracking.upload import DEFAULT_TRACKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

log = logging.getLogger("brainseg")

# Lines of the description up to which runs are linked by name. The tag `runs` contains all of them.
MAX_LINES = 50
# Columns of the table that become metrics of the run.
POOLED_METRICS = (
    "dice",
    "dice_low",
    "dice_high",
    "dice_median",
    "missed",
    "iou",
    "precision",
    "recall",
    "hd95_median",
    "nsd",
    "hd95_3d_median",
    "volume_error_ml",
    "spread_over_seeds",
    "spread_over_folds",
)


def log_comparison(
    comparison: Comparison,
    folder: Path,
    kind: str,
    sweep: str | None,
    uri: str | None,
    experiment: str | None = None,
) -> str:
    """Write the comparison in `folder` to MLflow and return lines for the terminal.

    `kind` is comparison, cross_validation or sweep_summary. `uri` and `experiment` replace those of
    the first run. If the same sweep or the same runs were compared before, the metrics and files of
    that MLflow run are updated. If the store fails, a warning is logged and no error is raised.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return _log(comparison, folder, kind, sweep, uri, experiment)
    except (MlflowException, SQLAlchemyError, OSError, RefusedError) as error:
        return warn_not_up_to_date(error)


def warn_not_up_to_date(error: Exception) -> str:
    """Log a warning that MLflow is not up to date, and return a line with the remedy."""
    reason, remedy = shorten_error(error, 300), remedy_of(error)
    log.warning("tracking failed: %s%s", reason, f"; {remedy}" if remedy else "")
    when = f"{remedy}, then" if remedy else "later"
    return f"MLflow:        not up to date; {when} the same command again brings it there"


def _log(
    comparison: Comparison,
    folder: Path,
    kind: str,
    sweep: str | None,
    uri: str | None,
    experiment_override: str | None,
) -> str:
    """Write the comparison to MLflow and return lines for the terminal."""
    runs = [run for configuration in comparison.configurations for run in configuration.runs]
    # Runs that were not tracked leave the comparison to the default store and experiment.
    tracking = runs[0].facts["tracking"] or DEFAULT_TRACKING
    uri = store_of(runs[0].facts, runs[0].path, uri)
    result = _result(comparison, folder, kind, sweep)
    # Two starts of one sweep may end in the same instant, and would each create the run.
    # FileLock's Timeout is an OSError.
    with short_timeouts(SECONDS), FileLock(folder.parent / f".{folder.name}.lock", timeout=SECONDS):
        client = connect(uri)
        experiment = experiment_id(
            client, uri, experiment_override or tracking["experiment"], tracking["artifacts"]
        )
        run_ids = _run_ids(client, experiment, runs)
        candidates = find_candidates(client, experiment, result)
        existing_run = _find_existing_run(candidates, folder, set(run_ids.values()))
        run = begin_run(client, experiment, result, existing_run)
        tags = {"runs": ",".join(sorted(run_ids.values()))[:5000]}
        result = replace(result, tags=result.tags | tags)
        description = _description(comparison, uri, experiment, run_ids, _pictures(run, folder))
        write_run(client, uri, run, result, folder, description)
        add_layout(client, experiment, sweep)
    link = f"MLflow run:    {run_link(uri, experiment, run.info.run_id)}"
    # A sweep has printed the link to its charts at its start.
    is_sweep_end = experiment_override is not None
    return link if is_sweep_end else f"{link}\n{describe_charts(uri, experiment, sweep)}"


def _result(comparison: Comparison, folder: Path, kind: str, sweep: str | None) -> Result:
    """Return the MLflow run's contents, without the links to the runs compared."""
    runs = [run for configuration in comparison.configurations for run in configuration.runs]
    uids = sorted(run.facts["uid"] for run in runs)
    # The id of a sweep ends in a hash, which would not fit into the column of MLflow's table.
    name = f"{kind.replace('_', ' ')} {folder.name}" if sweep is None else sweep.rsplit("-", 1)[0]
    tags = {
        "role": comparison.role,
        "exploratory": json.dumps(comparison.exploratory),
        "baseline": comparison.baseline.label,
    } | ({"sweep": sweep} if sweep else {})
    return Result(
        kind,
        f"\N{BLACK STAR} {name}",
        # A sweep keeps its summary while its number of runs grows, so its id stands for the runs.
        sweep or [uids, comparison.baseline.label],
        min(run.start_time for run in runs),
        max(run.end_time for run in runs),
        _metrics(comparison),
        tags,
    )


def _pictures(run: "MlflowRun", folder: Path) -> list[str]:
    """Return Markdown of the two pictures that answer most questions, where they exist."""
    return [
        picture_link(run, f"pictures/{name}.png")
        for name in ("ranking", "curves")
        if (folder / "pictures" / f"{name}.png").is_file()
    ]


def _metrics(comparison: Comparison) -> dict[str, float]:
    """Return the metrics of the MLflow run.

    `pooled/NAME` are the scores of the best configuration. Of several configurations, `dice/LABEL`
    is the mean Dice of each.
    """
    best = comparison.table.iloc[0]
    metrics = {f"pooled/{name}": float(best[name]) for name in POOLED_METRICS if name in best.index}
    if len(comparison.table) > 1:
        metrics |= {
            f"dice/{_metric_name(row.configuration)}": row.dice
            for row in comparison.table.head(200).itertuples()
        }
    # NaN is the only value that does not equal itself. It marks scores that are undefined.
    return {name: value for name, value in metrics.items() if value == value}


def _metric_name(label: str) -> str:
    """Return `label` with an underscore for each character that MLflow refuses in metric names.

    MLflow accepts letters, digits and a few signs. `=` is not among them.
    """
    letters = (letter if letter.isalnum() or letter in "_-. " else "_" for letter in label)
    return "".join(letters)[:200]


def _find_existing_run(
    candidates: "Sequence[MlflowRun]", folder: Path, run_ids: set[str]
) -> "MlflowRun | None":
    """Return the MLflow run of this comparison among `candidates`, or None.

    It is the first one that compares any of the runs `run_ids`, else the one whose files are in
    `folder`, else one whose own folder no longer exists. Copies of a project, and two projects with
    sweeps of the same id, may share a store without sharing their runs. An equal digest alone
    therefore does not identify the comparison.
    """
    matches = [run for run in candidates if run_ids & set(run.data.tags.get("runs", "").split(","))]
    return next(iter(matches), None) or mirror_among(
        candidates, folder, lambda place: (place / "comparison.csv").is_file()
    )


def _run_ids(
    client: "MlflowClient", experiment: str, runs: "Sequence[ScoredRun]"
) -> dict[str, str]:
    """Return MLflow's id of each run that is in the experiment, by the uid of its run folder."""
    mlflow_runs = {
        run.facts["uid"]: find_run(client, experiment, run.facts["uid"], run.path)
        for scored in runs
        for run in scored.trained_runs
    }
    return {uid: run.info.run_id for uid, run in mlflow_runs.items() if run is not None}


def _description(
    comparison: Comparison,
    uri: str,
    experiment: str,
    run_ids: dict[str, str],
    pictures: Sequence[str],
) -> str:
    """Return Markdown for the page of the MLflow run: headline, table, pictures, links to runs."""
    lines = [headline(comparison), ""]
    lines += ["| configuration | dice | 95 % interval | missed |", "|---|---|---|---|"]
    for row in comparison.table.head(30).itertuples():
        dice_interval = format_interval(row.dice_low, row.dice_high)
        lines.append(f"| {row.configuration} | {row.dice:.3f} | {dice_interval} | {row.missed:g} |")
    lines += ["", f"`{typed_command()}`", "", *pictures, ""]
    for configuration in comparison.configurations:
        for run in (run for scored in configuration.runs for run in scored.trained_runs):
            if (run_id := run_ids.get(run.facts["uid"])) and len(lines) < MAX_LINES:
                link = run_link(uri, experiment, run_id)
                lines.append(f"- [{configuration.label}, {run.path.name}]({link})")
    return "\n".join(lines)
