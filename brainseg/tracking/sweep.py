"""A sweep in MLflow: the link to its charts, and copies of its jobs.

The copies include jobs that an earlier sweep ran, and jobs that were sent to another store.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from brainseg.config import TrackingConfig
from brainseg.core.errors import shorten_error
from brainseg.tracking.chart_layout import sweep_tag
from brainseg.tracking.client import (
    add_layout,
    connect,
    describe_charts,
    experiment_id,
    short_timeouts,
    tracking_uri,
)
from brainseg.tracking.refusals import RefusedError
from brainseg.tracking.runs import find_run
from brainseg.tracking.upload import upload_run

# Timeout of a request, at the end of a sweep and before its first job.
SECONDS = 30
SECONDS_BEFORE = 5


def prepare_charts(sweep: str, tracking: TrackingConfig) -> str:
    """Store the chart layout of a sweep, and return lines for the terminal with the charts' link.

    The layout selects the jobs by their tag, so that they appear in the charts as they start.
    Raises MlflowException, SQLAlchemyError, OSError or RefusedError if the store fails.
    """
    uri = tracking_uri(tracking.uri)
    with short_timeouts(SECONDS_BEFORE):
        client = connect(uri)
        experiment = experiment_id(client, uri, tracking.experiment, tracking.artifacts)
        add_layout(client, experiment, sweep)
    return describe_charts(uri, experiment, sweep)


def mirror_sweep(sweep: str, folders: Sequence[Path], tracking: TrackingConfig) -> list[str]:
    """Send every job of a sweep to the store of this request, with the tag of the sweep.

    The sweep's chart finds its jobs by this tag. A job that the sweep skipped may only have the tag
    of the sweep that ran it, or be in another store. Returns the reason of each failure. Raises
    MlflowException, SQLAlchemyError, OSError or RefusedError if the store itself fails.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    uri, failures = tracking_uri(tracking.uri), []
    with short_timeouts(SECONDS):
        client = connect(uri)
        experiment = experiment_id(client, uri, tracking.experiment, tracking.artifacts)
        for folder in folders:
            if not (folder / "status.json").is_file():
                # The run has not begun.
                continue
            uid = json.loads((folder / "run.json").read_text())["uid"]
            run = find_run(client, experiment, uid, folder)
            state = json.loads((folder / "status.json").read_text())["state"].upper()
            is_there = (
                run is not None and sweep_tag(sweep) in run.data.tags and run.info.status == state
            )
            if is_there:
                continue
            try:
                upload_run(folder, uri, SECONDS, tracking.experiment, sweep)
            except (
                MlflowException,
                SQLAlchemyError,
                OSError,
                RefusedError,
                KeyError,
                json.JSONDecodeError,
            ) as error:
                failures.append(f"{folder}: {shorten_error(error)}")
    return failures
