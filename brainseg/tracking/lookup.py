"""Lookup of files on this machine by their MLflow names.

`runs:/ID` and `models:/NAME@ALIAS` name a checkpoint. A run's id names its run folder.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg.core.errors import RequestError, check, shorten_error
from brainseg.core.places import has_run
from brainseg.tracking.client import connect, short_timeouts, tracking_uri
from brainseg.tracking.names import experiment_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

# Timeout of a request. A command cannot continue without its checkpoint, so it waits this long.
SECONDS = 30
# Excludes the summaries of sweeps and comparisons, which are MLflow runs, too.
RUNS_FILTER = "tags.kind = 'run'"
log = logging.getLogger("brainseg")


def checkpoint_of(name: str, uri: str | None = None) -> Path:
    """Return the path of the best.pt that an MLflow name refers to.

    The name is `runs:/ID`, `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/MODEL_ID`. If
    the store keeps its artifacts in a folder, the path is that of the artifact itself, else that of
    a download. Raises RequestError if there is no such file.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(uri)
    with short_timeouts(SECONDS):
        try:
            client = connect(uri, make=False)
            place = (
                _location_of_run(client, name)
                if name.startswith("runs:/")
                else _location_of_model(client, name)
            )
            path = Path(download_artifacts(f"{place}/best.pt", tracking_uri=uri))
        except (MlflowException, OSError) as error:
            raise RequestError(
                f"checkpoint={name}: not found in {uri}: {shorten_error(error)}"
            ) from error
    if not path.is_file():
        raise RequestError(
            f"checkpoint={name}: its model in {uri} has no best.pt; "
            "give a model that brainseg.train logged"
        )
    return path


def folder_of_run(run_id: str, uri: str | None = None) -> Path:
    """Return the run folder of an MLflow run.

    Raises RequestError if MLflow does not know the run, or if its folder is not on this machine.
    """
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(uri)
    with short_timeouts(SECONDS):
        try:
            tags = connect(uri, make=False).get_run(run_id).data.tags
        except (MlflowException, OSError) as error:
            raise RequestError(
                f"run={run_id}: not found in {uri}: {shorten_error(error)}"
            ) from error
    folder = _local_folder(tags)
    if folder is None:
        raise RequestError(
            f"run={run_id}: its folder {tags.get('folder')} is not on this machine; "
            "give the path of the folder, or use the machine that has it"
        )
    return folder


def _local_folder(tags: dict[str, str]) -> Path | None:
    """Return the folder that a run's tags name if it contains that very run, else None."""
    folder = Path(tags.get("folder", ""))
    return folder if "folder" in tags and has_run(folder, tags.get("brainseg.uid", "")) else None


def folder_of_checkpoint(name: str, uri: str | None = None) -> Path | None:
    """Return the run folder that an MLflow name of `checkpoint_of` came from.

    Returns None if the folder is not on this machine. Raises RequestError if MLflow does not know
    the name.
    """
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(uri)
    with short_timeouts(SECONDS):
        try:
            client = connect(uri, make=False)
            run_id = (
                name.removeprefix("runs:/").strip("/")
                if name.startswith("runs:/")
                else _source_of_model(client, name)
            )
            return _local_folder(client.get_run(run_id).data.tags) if run_id else None
        except (MlflowException, OSError) as error:
            raise RequestError(
                f"checkpoint={name}: not found in {uri}: {shorten_error(error)}"
            ) from error


def folders_of_experiment(experiment: str, uri: str | None = None) -> list[Path]:
    """Return the run folders of an MLflow experiment that are on this machine, the oldest first.

    Logs a warning if some are not. Raises RequestError if there is no such experiment, or if none
    of its folders is on this machine.
    """
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(uri)
    with short_timeouts(SECONDS):
        try:
            client = connect(uri, make=False)
            record = client.get_experiment_by_name(experiment_name(experiment))
            rule = f"no such experiment in {uri}"
            check(record is not None, "tracking.experiment", experiment, rule)
            assert record is not None
            experiments, order = [record.experiment_id], ["start_time"]
            page = client.search_runs(experiments, RUNS_FILTER, order_by=order)
            runs = list(page)
            while page.token:
                page = client.search_runs(
                    experiments, RUNS_FILTER, order_by=order, page_token=page.token
                )
                runs += page
        except (MlflowException, OSError) as error:
            raise RequestError(
                f"tracking.experiment={experiment}: not read from {uri}: {shorten_error(error)}"
            ) from error
    folders = [folder for run in runs if (folder := _local_folder(run.data.tags)) is not None]
    rule = f"none of its {len(runs)} runs has its folder on this machine"
    check(bool(folders), "tracking.experiment", experiment, rule)
    if len(folders) < len(runs):
        log.warning(
            "%d of the %d runs of %s have no folder on this machine and are left out",
            len(runs) - len(folders),
            len(runs),
            experiment,
        )
    return folders


def model_of_run(client: "MlflowClient", run: "Run") -> "LoggedModel | None":
    """Return the last model of a run, or None. An extended run has several models."""
    outputs = run.outputs.model_outputs if run.outputs else []
    return (
        client.get_logged_model(max(outputs, key=lambda output: output.step).model_id)
        if outputs
        else None
    )


def _location_of_run(client: "MlflowClient", name: str) -> str:
    """Return the place of the files of a run's last model."""
    run = client.get_run(name.removeprefix("runs:/").strip("/"))
    model = model_of_run(client, run)
    if model is None:
        raise RequestError(
            f"checkpoint={name}: the run is {run.info.status} and has no model; "
            "a run logs its model when it finishes"
        )
    return model.artifact_location


def _source_of_model(client: "MlflowClient", name: str) -> str | None:
    """Return the id of the run that logged a model."""
    model = name.removeprefix("models:/").strip("/")
    if "@" in model:
        return client.get_model_version_by_alias(*model.rsplit("@", 1)).run_id
    if "/" in model:
        return client.get_model_version(*model.rsplit("/", 1)).run_id
    return client.get_logged_model(model).source_run_id


def _location_of_model(client: "MlflowClient", name: str) -> str:
    """Return the place of a model's files.

    A `models:/` name cannot be used directly: MLflow would look it up in its global store, which
    may be another store.
    """
    model = name.removeprefix("models:/").strip("/")
    if "@" in model:
        version = client.get_model_version_by_alias(*model.rsplit("@", 1))
        return client.get_model_version_download_uri(version.name, version.version)
    if "/" in model:
        return client.get_model_version_download_uri(*model.rsplit("/", 1))
    return client.get_logged_model(model).artifact_location
