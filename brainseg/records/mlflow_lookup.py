"""From a name in MLflow to a file on this machine: `runs:/ID` and `models:/NAME@ALIAS` for a checkpoint, a run's id for its folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from brainseg.errors import RequestError
from brainseg.records.mlflow_store import connect, limited, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

SECONDS = 30  # a command waits for its checkpoint


def checkpoint_of(name: str, uri: str | None = None) -> Path:
    """The best.pt that `runs:/ID`, `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/MODEL_ID` means.

    Where the store keeps its artifacts in a folder it is that very file, else a download. Raises RequestError if there is none.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(uri)
    with limited(SECONDS):
        try:
            client = connect(uri, make=False)
            place = _of_run(client, name) if name.startswith("runs:/") else _of_model(client, name)
            path = Path(download_artifacts(f"{place}/best.pt", tracking_uri=uri))
        except (MlflowException, OSError) as error:
            raise RequestError(f"checkpoint={name}: not found in {uri}: {' '.join(str(error).split())[:200]}") from error
    if not path.is_file():
        raise RequestError(f"checkpoint={name}: its model in {uri} has no best.pt; give a model that brainseg.train logged")
    return path


def folder_of(run_id: str, uri: str | None = None) -> Path:
    """The run folder of an MLflow run. Raises RequestError if the run is not known or its folder is not on this machine."""
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(uri)
    with limited(SECONDS):
        try:
            folder = connect(uri, make=False).get_run(run_id).data.tags.get("folder")
        except (MlflowException, OSError) as error:
            raise RequestError(f"run={run_id}: not found in {uri}: {' '.join(str(error).split())[:200]}") from error
    if folder is None or not (Path(folder) / "run.json").is_file():
        raise RequestError(f"run={run_id}: its folder {folder} is not here; give the folder itself, or run where it is")
    return Path(folder)


def _of_run(client: "MlflowClient", name: str) -> str:
    """Where the files of the last model of a run are."""
    run = client.get_run(name.removeprefix("runs:/").strip("/"))
    outputs = run.outputs.model_outputs if run.outputs else []
    if not outputs:
        raise RequestError(f"checkpoint={name}: the run is {run.info.status} and has no model; a run logs it when it finishes")
    return client.get_logged_model(max(outputs, key=lambda output: output.step).model_id).artifact_location


def _of_model(client: "MlflowClient", name: str) -> str:
    """Where the files of a model are: `models:/` itself would be looked for in MLflow's global store, which need not be ours."""
    wanted = name.removeprefix("models:/").strip("/")
    if "@" in wanted:
        version = client.get_model_version_by_alias(*wanted.rsplit("@", 1))
        return client.get_model_version_download_uri(version.name, version.version)
    if "/" in wanted:
        return client.get_model_version_download_uri(*wanted.rsplit("/", 1))
    return client.get_logged_model(wanted).artifact_location
