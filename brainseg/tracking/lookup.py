"""From a name in MLflow to a file on this machine: `runs:/ID` and `models:/NAME@ALIAS` for a checkpoint, a run's id for its folder."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg.core.errors import RequestError, check
from brainseg.core.places import has_run
from brainseg.tracking.client import connect, short_timeouts, tracking_uri
from brainseg.tracking.names import experiment_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

SECONDS = 30  # a command waits for its checkpoint
OURS = "tags.kind = 'run'"  # not the summaries of sweeps and comparisons
log = logging.getLogger("brainseg")


def checkpoint_of(name: str, uri: str | None = None) -> Path:
    """The best.pt that `runs:/ID`, `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/MODEL_ID` means.

    Where the store keeps its artifacts in a folder it is that very file, else a download. Raises RequestError if there is none.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(uri)
    with short_timeouts(SECONDS):
        try:
            client = connect(uri, make=False)
            place = _of_run(client, name) if name.startswith("runs:/") else _of_model(client, name)
            path = Path(download_artifacts(f"{place}/best.pt", tracking_uri=uri))
        except (MlflowException, OSError) as error:
            raise RequestError(
                f"checkpoint={name}: not found in {uri}: {' '.join(str(error).split())[:200]}"
            ) from error
    if not path.is_file():
        raise RequestError(
            f"checkpoint={name}: its model in {uri} has no best.pt; give a model that brainseg.train logged"
        )
    return path


def folder_of(run_id: str, uri: str | None = None) -> Path:
    """The run folder of an MLflow run. Raises RequestError if the run is not known or its folder is not on this machine."""
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(uri)
    with short_timeouts(SECONDS):
        try:
            tags = connect(uri, make=False).get_run(run_id).data.tags
        except (MlflowException, OSError) as error:
            raise RequestError(
                f"run={run_id}: not found in {uri}: {' '.join(str(error).split())[:200]}"
            ) from error
    folder = _folder_here(tags)
    if folder is None:
        raise RequestError(
            f"run={run_id}: its folder {tags.get('folder')} is not here; give the folder itself, or run where it is"
        )
    return folder


def _folder_here(tags: dict[str, str]) -> Path | None:
    """Return the folder that a run's tags name if that very run lies there, else None."""
    folder = Path(tags.get("folder", ""))
    return folder if "folder" in tags and has_run(folder, tags.get("brainseg.uid", "")) else None


def folder_behind(name: str, uri: str | None = None) -> Path | None:
    """The run folder that `runs:/ID` or a `models:/` name of `checkpoint_of` came from; None if it is not on this machine.

    Raises RequestError where there is no such name.
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
            return _folder_here(client.get_run(run_id).data.tags) if run_id else None
        except (MlflowException, OSError) as error:
            raise RequestError(
                f"checkpoint={name}: not found in {uri}: {' '.join(str(error).split())[:200]}"
            ) from error


def folders_of(experiment: str, uri: str | None = None) -> list[Path]:
    """The run folders of an MLflow experiment that are on this machine, the oldest first; warns of those that are not.

    Raises RequestError if there is no such experiment or none of its folders is here.
    """
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(uri)
    with short_timeouts(SECONDS):
        try:
            client = connect(uri, make=False)
            found = client.get_experiment_by_name(experiment_name(experiment))
            check(
                found is not None, "tracking.experiment", experiment, f"no such experiment in {uri}"
            )
            assert found is not None
            page = client.search_runs([found.experiment_id], OURS, order_by=["start_time"])
            runs = list(page)
            while page.token:
                page = client.search_runs(
                    [found.experiment_id], OURS, order_by=["start_time"], page_token=page.token
                )
                runs += page
        except (MlflowException, OSError) as error:
            raise RequestError(
                f"tracking.experiment={experiment}: not read from {uri}: {' '.join(str(error).split())[:200]}"
            ) from error
    here = [folder for run in runs if (folder := _folder_here(run.data.tags)) is not None]
    check(
        bool(here),
        "tracking.experiment",
        experiment,
        f"none of its {len(runs)} runs has its folder on this machine",
    )
    if len(here) < len(runs):
        log.warning(
            "%d of the %d runs of %s have no folder on this machine and are left out",
            len(runs) - len(here),
            len(runs),
            experiment,
        )
    return here


def model_of_run(client: "MlflowClient", run: "Run") -> "LoggedModel | None":
    """The last model of a run: one that was extended has several."""
    outputs = run.outputs.model_outputs if run.outputs else []
    return (
        client.get_logged_model(max(outputs, key=lambda output: output.step).model_id)
        if outputs
        else None
    )


def _of_run(client: "MlflowClient", name: str) -> str:
    """Where the files of the last model of a run are."""
    run = client.get_run(name.removeprefix("runs:/").strip("/"))
    model = model_of_run(client, run)
    if model is None:
        raise RequestError(
            f"checkpoint={name}: the run is {run.info.status} and has no model; a run logs it when it finishes"
        )
    return model.artifact_location


def _source_of_model(client: "MlflowClient", name: str) -> str | None:
    """The id of the run that a model is of."""
    wanted = name.removeprefix("models:/").strip("/")
    if "@" in wanted:
        return client.get_model_version_by_alias(*wanted.rsplit("@", 1)).run_id
    if "/" in wanted:
        return client.get_model_version(*wanted.rsplit("/", 1)).run_id
    return client.get_logged_model(wanted).source_run_id


def _of_model(client: "MlflowClient", name: str) -> str:
    """Where the files of a model are: `models:/` itself would be looked for in MLflow's global store, which need not be ours."""
    wanted = name.removeprefix("models:/").strip("/")
    if "@" in wanted:
        version = client.get_model_version_by_alias(*wanted.rsplit("@", 1))
        return client.get_model_version_download_uri(version.name, version.version)
    if "/" in wanted:
        return client.get_model_version_download_uri(*wanted.rsplit("/", 1))
    return client.get_logged_model(wanted).artifact_location
