"""Replication of a sweep's jobs to MLflow.

This includes jobs that an earlier sweep ran, and jobs that were sent to another store.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from brainseg.config import TrackingConfig
from brainseg.tracking.chart_layout import sweep_tag
from brainseg.tracking.client import connect, experiment_id, short_timeouts, tracking_uri
from brainseg.tracking.mirror import replicate
from brainseg.tracking.refusals import RefusedError
from brainseg.tracking.runs import find_run

# Timeout of a request.
SECONDS = 30


def mirror_sweep(sweep: str, folders: Sequence[Path], tracking: TrackingConfig) -> str:
    """Send every job of a sweep to the store of this request, with the tag of the sweep.

    The sweep's chart finds its jobs by this tag. A job that the sweep skipped may only have the tag
    of the sweep that ran it, or be in another store. Returns the reason of the first failure, or an
    empty text. Raises MlflowException, SQLAlchemyError, OSError or RefusedError if the store itself
    fails.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    uri, failure = tracking_uri(tracking.uri), ""
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
                replicate(folder, uri, SECONDS, tracking.experiment, sweep)
            except (
                MlflowException,
                SQLAlchemyError,
                OSError,
                RefusedError,
                KeyError,
                json.JSONDecodeError,
            ) as error:
                failure = failure or f"{folder}: {' '.join(str(error).split())[:200]}"
    return failure
