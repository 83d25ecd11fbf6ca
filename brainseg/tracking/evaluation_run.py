"""The MLflow run of an evaluation: its scores, its files, and a link to the training run."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from brainseg.tracking.client import connect, experiment_id, run_link, short_timeouts
from brainseg.tracking.contents import is_logged
from brainseg.tracking.logged_model import log_dataset
from brainseg.tracking.result_run import (
    SECONDS,
    Result,
    begin_run,
    find_candidates,
    picture_link,
    typed_command,
    write_run,
)
from brainseg.tracking.runs import mirror_among, runs_of_uid


@dataclass(frozen=True)
class Evaluation:
    """The facts of an evaluation that its MLflow run contains."""

    name: str
    # The uids of the evaluated runs.
    uids: Sequence[str]
    # The folder with summary.json and the other files.
    folder: Path
    metrics: Mapping[str, float]
    # Name, path, fingerprint, patients and slices of the data.
    data: Mapping[str, Any]
    leaky: bool
    # Milliseconds since 1970.
    started: int


def log_evaluation(
    evaluation: Evaluation, uri: str, experiment_name: str, artifacts: str | None
) -> str:
    """Write the evaluation to MLflow and return the URL of its run.

    An evaluation of the same runs on the same data into the same folder updates that run. Raises
    MlflowException, SQLAlchemyError, OSError or RefusedError if the store fails.
    """
    result = Result(
        "evaluation",
        f"evaluation of {evaluation.name}"[:60],
        [list(evaluation.uids), evaluation.data["fingerprint"], str(evaluation.folder.absolute())],
        evaluation.started,
        round(time.time() * 1000),
        {name: value for name, value in evaluation.metrics.items() if is_logged(name)},
        {"leaky": "true"} if evaluation.leaky else {},
    )
    lock = FileLock(evaluation.folder.parent / f".{evaluation.folder.name}.lock", timeout=SECONDS)
    with short_timeouts(SECONDS), lock:
        client = connect(uri)
        experiment = experiment_id(client, uri, experiment_name, artifacts)
        existing_run = mirror_among(
            find_candidates(client, experiment, result),
            evaluation.folder,
            lambda place: (place / "summary.json").is_file(),
        )
        run = begin_run(client, experiment, result, existing_run)
        lines = [f"`{typed_command()}`", ""]
        for uid in evaluation.uids:
            for trained in runs_of_uid(client, experiment, uid)[:1]:
                link = run_link(uri, experiment, trained.info.run_id)
                lines.append(f"- evaluates [{trained.info.run_name}]({link})")
        if (evaluation.folder / "pictures" / "overlays.png").is_file():
            lines += ["", picture_link(run, "pictures/overlays.png")]
        log_dataset(client, run, dict(evaluation.data))
        write_run(client, uri, run, result, evaluation.folder, "\n".join(lines))
    return run_link(uri, experiment, run.info.run_id)
