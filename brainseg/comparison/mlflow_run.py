"""A comparison's own MLflow run: pooled numbers as metrics, tables, pictures and the report as artifacts, links to the runs."""

import hashlib
import json
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from brainseg.comparison.compare import Comparison
from brainseg.comparison.runs import ScoredRun
from brainseg.reports.tables import interval
from brainseg.tracking import chart_layout
from brainseg.tracking.client import (
    chart_link,
    connect,
    experiment_id,
    files_at,
    run_link,
    short_timeouts,
    store_of,
    ui_command,
)
from brainseg.tracking.refusals import RefusedError, remedy_of
from brainseg.tracking.runs import mirror_among, place_tags, run_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

log = logging.getLogger("brainseg")

SECONDS = 30
LINKS = 50  # runs that are linked by name in the description; all are in the tag `runs`
COLUMNS = (
    "dice",
    "dice_low",
    "dice_high",
    "dice_median",
    "missed",
    "iou",
    "precision",
    "recall",
    "hd95_median",
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
    """Bring MLflow up to date with the comparison in `folder`; returns lines for the terminal. A store that fails is warned of.

    `kind` is comparison, cross_validation or sweep_summary. The same sweep, or the same runs, compared again are the same
    MLflow run, whose numbers and files are brought up to date. `uri` and `experiment` replace those of the first run.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return _log(comparison, folder, kind, sweep, uri, experiment)
    except (MlflowException, SQLAlchemyError, OSError, RefusedError) as error:
        return not_up_to_date(error)


def not_up_to_date(error: Exception) -> str:
    """Warn that MLflow took nothing, and return the line that says what brings it there."""
    reason, remedy = " ".join(str(error).split())[:300], remedy_of(error)
    log.warning("tracking failed: %s%s", reason, f"; {remedy}" if remedy else "")
    when = f"{remedy}, then" if remedy else "later"
    return f"MLflow:        not up to date; {when} the same command again brings it there"


def _log(
    comparison: Comparison,
    folder: Path,
    kind: str,
    sweep: str | None,
    uri: str | None,
    named: str | None,
) -> str:
    from mlflow.entities import Metric, RunTag

    runs = [run for one in comparison.configurations for run in one.runs]
    where = runs[0].facts["tracking"] or {"uri": None, "artifacts": None, "experiment": "brainseg"}
    uri = store_of(runs[0].facts, runs[0].path, uri)
    uids = sorted(run.facts["uid"] for run in runs)
    of_what = sweep or [uids, comparison.baseline.label]  # a sweep keeps its summary as it grows
    digest = hashlib.sha256(json.dumps([kind, of_what]).encode()).hexdigest()
    # Two starts of one sweep may end in the same instant, and would each create the run. FileLock's Timeout is an OSError.
    with short_timeouts(SECONDS), FileLock(folder.parent / f".{folder.name}.lock", timeout=SECONDS):
        client = connect(uri)
        experiment = experiment_id(client, uri, named or where["experiment"], where["artifacts"])
        of_runs = _run_ids(client, experiment, runs)
        earlier = client.search_runs([experiment], f"tags.`brainseg.comparison` = '{digest}'")
        found = _same_comparison(earlier, folder, set(of_runs.values()))
        started = min(run.folder.status["started"] for run in runs)
        ended = max(run.folder.status["ended"] for run in runs)
        identified = {"brainseg.comparison": digest, "kind": kind}
        title = f"{kind.replace('_', ' ')} {sweep or folder.name}"
        run = found or client.create_run(
            experiment, start_time=started, tags=identified, run_name=title
        )
        run_id = run.info.run_id
        tags = (
            identified
            | place_tags(folder)
            | {
                "runs": ",".join(sorted(of_runs.values()))[:5000],
                "role": comparison.role,
                "exploratory": json.dumps(comparison.exploratory),
                "baseline": comparison.baseline.label,
                "mlflow.note.content": _description(comparison, uri, experiment, of_runs),
            }
            | ({"sweep": sweep} if sweep else {})
        )
        client.log_batch(
            run_id,
            metrics=[Metric(key, value, ended, 0) for key, value in _metrics(comparison).items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        files_at(run.info.artifact_uri, uri).log_artifacts(str(folder))
        client.set_terminated(run_id, "FINISHED", end_time=ended)
        for key, value in chart_layout.experiment_tags(sweep).items():
            client.set_experiment_tag(experiment, key, value)
    lines = [
        f"MLflow run:    {run_link(uri, experiment, run_id)}",
        f"MLflow charts: {chart_link(uri, experiment, sweep)}",
    ]
    if command := ui_command(uri):
        lines.append(f"they open by:  {shlex.join(command)}")
    return "\n".join(lines)


def _metrics(comparison: Comparison) -> dict[str, float]:
    """Of the best (or only) configuration under `pooled/`; the mean Dice of each under `dice/LABEL`."""
    best = comparison.table.iloc[0]
    metrics = {f"pooled/{name}": float(best[name]) for name in COLUMNS}
    if len(comparison.table) > 1:
        metrics |= {
            f"dice/{_allowed(row.configuration)}": row.dice
            for row in comparison.table.head(200).itertuples()
        }
    return {name: value for name, value in metrics.items() if value == value}


def _allowed(label: str) -> str:
    """MLflow's metric names take letters, digits and a few signs; `=` is none of them."""
    return "".join(letter if letter.isalnum() or letter in "_-. " else "_" for letter in label)[
        :200
    ]


def _same_comparison(
    earlier: "Sequence[MlflowRun]", folder: Path, run_ids: set[str]
) -> "MlflowRun | None":
    """Return the MLflow run of this comparison among those of the same question; None if they are all of other runs.

    Copies of a project, and two projects that ask the same question, share a store without sharing their runs.
    """
    mine = [run for run in earlier if run_ids & set(run.data.tags.get("runs", "").split(","))]
    return next(iter(mine), None) or mirror_among(
        earlier, folder, lambda place: (place / "comparison.csv").is_file()
    )


def _run_ids(
    client: "MlflowClient", experiment: str, runs: "Sequence[ScoredRun]"
) -> dict[str, str]:
    """Return MLflow's id of each run that is in the experiment, by our uid."""
    found = {
        run.facts["uid"]: run_of(client, experiment, run.facts["uid"], run.path) for run in runs
    }
    return {uid: run.info.run_id for uid, run in found.items() if run is not None}


def _description(comparison: Comparison, uri: str, experiment: str, of_runs: dict[str, str]) -> str:
    """Markdown for the run's page: the table, and a link to each run."""
    lines = ["| configuration | dice | 95 % interval | missed |", "|---|---|---|---|"]
    for row in comparison.table.head(30).itertuples():
        lines.append(
            f"| {row.configuration} | {row.dice:.3f} | {interval(row.dice_low, row.dice_high)} | {row.missed:g} |"
        )
    lines.append("")
    for one in comparison.configurations:
        for run in one.runs:
            if (run_id := of_runs.get(run.facts["uid"])) and len(lines) < LINKS:
                lines.append(
                    f"- [{one.label}, {run.path.name}]({run_link(uri, experiment, run_id)})"
                )
    return "\n".join(lines)[:5000]
