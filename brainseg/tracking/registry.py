"""Access to MLflow's model registry: names, versions and aliases that refer to a run's LoggedModel.

Registration neither copies nor pickles a file.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from brainseg.core.errors import DataError, RequestError, check, shorten_error
from brainseg.tracking.client import connect, short_timeouts, store_of, tracking_uri
from brainseg.tracking.lookup import SECONDS, model_of_run
from brainseg.tracking.names import experiment_name
from brainseg.tracking.runs import find_run
from brainseg.tracking.upload import DEFAULT_TRACKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

# MLflow's page of a LoggedModel reads this tag to link to the model's versions.
VERSIONS_TAG = "mlflow.modelVersions"


class LoggedCheckpoint(NamedTuple):
    """A run's best checkpoint in the MLflow store `uri`."""

    uri: str
    run_id: str
    model: "LoggedModel"


class RegisteredModel(NamedTuple):
    """A version in the registry. `previous_version` is the version that had the alias before."""

    version: int
    is_new: bool
    previous_version: int | None


def find_checkpoint(run: str, uri: str | None = None) -> LoggedCheckpoint:
    """Return the LoggedModel of a run named by its folder, its MLflow id or runs:/ID.

    Creates nothing. `uri` replaces the store that the folder names. Raises RequestError if MLflow
    does not know the run, or has no model of it.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    folder = Path(run)
    record = _record(folder) if (folder / "run.json").is_file() else None
    uri = store_of(record, folder, uri) if record else tracking_uri(uri)
    remedy = f"python -m brainseg.sync {run if record else 'runs'} sends it to MLflow"
    with short_timeouts(SECONDS):
        try:
            client = connect(uri, make=False)
            run_id = (
                _id_of(client, record, folder) if record else run.removeprefix("runs:/").strip("/")
            )
            check(run_id is not None, "run", run, f"MLflow does not know it in {uri}", remedy)
            mlflow_run = client.get_run(str(run_id))
            model = model_of_run(client, mlflow_run)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise RequestError(
                f"run={run}: not found in {uri} ({shorten_error(error)}); {remedy}"
            ) from error
    rule = f"it is {mlflow_run.info.status} and has no model; a run logs its model when it finishes"
    check(model is not None, "run", run, rule, f"if it has finished, {remedy}")
    assert model is not None
    return LoggedCheckpoint(uri, mlflow_run.info.run_id, model)


def register_checkpoint(
    checkpoint: LoggedCheckpoint, name: str, alias: str | None
) -> RegisteredModel:
    """Register the checkpoint as a version of the model `name`, once, and give it the alias.

    The checkpoint is registered, not the run. If the run was extended and has a better checkpoint
    since, that checkpoint becomes an additional version. Raises DataError if the store fails or
    refuses.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    with short_timeouts(SECONDS):
        try:
            client = connect(checkpoint.uri, make=False)
            version = _version_of(client, name, checkpoint)
            is_new = version is None
            if version is None:
                version = _create(client, name, checkpoint)
            previous = client.get_registered_model(name).aliases.get(alias) if alias else None
            if alias and str(previous) != str(version):
                client.set_registered_model_alias(name, alias, str(version))
        except (MlflowException, SQLAlchemyError) as error:
            raise DataError(
                f"name={name}: not registered in {checkpoint.uri}: {shorten_error(error)}"
            ) from error
    return RegisteredModel(version, is_new, int(previous) if previous else None)


def _record(folder: Path) -> dict[str, Any]:
    """Return the uid, the path and the store of a run from its `run.json`.

    Raises RequestError if the file is not valid.
    """
    try:
        facts = json.loads((folder / "run.json").read_text())
        tracking = facts["tracking"]
        if tracking is not None:
            tracking = {"uri": tracking["uri"], "experiment": tracking["experiment"]}
        return {"uid": str(facts["uid"]), "path": facts.get("path"), "tracking": tracking}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RequestError(
            f"{folder}/run.json: not what a run writes ({type(error).__name__}: {error})"
        ) from error


def _id_of(client: "MlflowClient", record: dict[str, Any], folder: Path) -> str | None:
    """Return MLflow's id of the run that mirrors the folder."""
    tracking = record["tracking"] or DEFAULT_TRACKING
    experiment = client.get_experiment_by_name(experiment_name(tracking["experiment"]))
    if experiment is None:
        return None
    run = find_run(client, experiment.experiment_id, record["uid"], folder)
    return run.info.run_id if run is not None else None


def _version_of(client: "MlflowClient", name: str, checkpoint: LoggedCheckpoint) -> int | None:
    """Return the version of the model `name` that is this checkpoint, or None."""
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{checkpoint.run_id}'")
    numbers = [
        int(version.version)
        for version in versions
        if version.source == checkpoint.model.artifact_location
    ]
    return max(numbers, default=None)


def _create(client: "MlflowClient", name: str, checkpoint: LoggedCheckpoint) -> int:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model = checkpoint.model
    tags = {
        key: value
        for key, value in model.tags.items()
        if key in ("brainseg.uid", "checkpoint.sha256")
    }
    # The version needs the place itself. MLflow would look up `models:/ID` in its global store,
    # which may be another store.
    place, run_id, model_id = model.artifact_location, checkpoint.run_id, model.model_id
    version = client.create_model_version(
        name, place, run_id, tags, await_creation_for=SECONDS, model_id=model_id
    )
    _add_link(client, model, name, int(version.version))
    return int(version.version)


def _add_link(client: "MlflowClient", model: "LoggedModel", name: str, version: int) -> None:
    """Make MLflow's page of the LoggedModel show the version, as `mlflow.register_model` does."""
    versions = json.loads(model.tags.get(VERSIONS_TAG, "[]"))
    versions.append({"name": name, "version": str(version)})
    client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: json.dumps(versions)})
